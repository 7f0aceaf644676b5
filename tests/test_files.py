"""Folders: only written where they are ours, and by one program at a time."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.unet import build_unet, save_pipeline
from iet_agc.runtime import files
from iet_agc.runtime.files import check_ours, only_one, replacing_folder
from iet_agc.training.loop import train
from tests.drawing import draw_samples
from tests.tiny_runs import images, settings

BUSY = "another process is at work in .*: wait for it, or choose another --out"


def test_a_folder_with_other_things_or_below_a_file_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/a cannot be a folder: there is a file of that name"):
        check_ours(tmp_path / "file" / "a", "mark", {"mine"}, "thing")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for odd in (tmp_path / "pipe", tmp_path / "lost", tmp_path / "lost" / "a", Path(os.devnull)):
        with pytest.raises(ValueError, match="cannot be a folder: there is a file of that name"):
            check_ours(odd, "mark", {"mine"}, "thing")
    (tmp_path / "pipe").unlink()
    (tmp_path / "lost").unlink()
    with pytest.raises(ValueError, match="is not empty and holds no thing: choose another --out"):
        check_ours(tmp_path, "mark", {"mine"}, "thing")
    check_ours(tmp_path, "mark", {"file"}, "thing")
    check_ours(tmp_path, "file", {"mine"}, "thing")


def test_another_program_is_kept_out_until_the_first_is_done_or_killed(tmp_path: Path) -> None:
    hold = f"""if True:
        from pathlib import Path
        from iet_agc.runtime.files import only_one
        with only_one(Path({str(tmp_path / "a")!r})):
            print("in", flush=True)
            input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match=BUSY), only_one(tmp_path / "a"):
            pass
        other.kill()
    with only_one(tmp_path / "a"):
        pass


def test_two_do_not_train_or_sample_into_one_folder(tmp_path: Path) -> None:
    with only_one(tmp_path / "run"), pytest.raises(ValueError, match=BUSY):
        train(settings(), images(), tmp_path / "run", torch.device("cpu"))
    model = build_unet(8, 1, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4)
    save_pipeline(model, make_scheduler(), tmp_path / "model")
    with only_one(tmp_path / "drawn"), pytest.raises(ValueError, match=BUSY):
        draw_samples(tmp_path / "model", range(2), tmp_path / "drawn", steps=1)


@pytest.mark.parametrize("call", range(3))
def test_a_kill_while_a_folder_is_replaced_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Killed before the old folder is put aside, between the two renames, or before the old one is removed."""
    place, calls = tmp_path / "raw", []
    with replacing_folder(place, own=()) as unfinished:
        unfinished.mkdir()
        (unfinished / "weights").write_text("old")
    (place / "README.md").write_text("a person's")

    def killed(honest):
        def step(*arguments: object) -> None:
            calls.append(arguments)
            if len(calls) > call:
                raise KeyboardInterrupt
            honest(*arguments)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "rename", killed(files.os.rename))
        patch.setattr(files, "_put_back", lambda *arguments: None)  # a kill ends nothing
        with suppress(KeyboardInterrupt), replacing_folder(place, own={"weights"}) as unfinished:
            unfinished.mkdir()
            (unfinished / "weights").write_text("new")
    whole = [folder for folder in (place, tmp_path / ".raw.replaced") if folder.exists()]
    assert whole
    assert all((folder / "README.md").read_text() == "a person's" for folder in whole)
    if place.exists():
        assert (place / "weights").read_text() == ("new" if call == 2 else "old")
    with replacing_folder(place, own={"weights"}) as unfinished:
        unfinished.mkdir()
        (unfinished / "weights").write_text("again")
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]
    assert {file.name: file.read_text() for file in place.iterdir()} == {"weights": "again", "README.md": "a person's"}
