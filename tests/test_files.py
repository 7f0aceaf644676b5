"""Folders: only written where they are ours, and by one program at a time."""

import errno
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.unet import build_unet, save_pipeline
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import check_ours, only_one, put_back, replacing_folder
from iet_agc.training.loop import train
from tests.drawing import draw_samples
from tests.faulty import contents, forked
from tests.tiny_runs import images, settings

BUSY = "another process is at work in .*: wait for it, or choose another output"


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
    with pytest.raises(ValueError, match="is not empty and holds no thing: choose another output"):
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


def export(place: Path, seed: int, own: Collection[str] | None) -> dict[str, str]:
    torch.manual_seed(seed)
    model = build_unet(8, 1, channels=8, multipliers=(1,), blocks=1, attention=(), groups=4)
    return save_pipeline(model, make_scheduler(), place, own or ())


@pytest.mark.slow
def test_an_export_that_is_killed_anywhere_leaves_the_old_pipeline_or_the_new_one(tmp_path: Path) -> None:
    """Before every call that changes the disk. A person's file beside it stays in either case."""
    own = export(tmp_path / "old" / "raw", 0, None)
    (tmp_path / "old" / "raw" / "README.md").write_text("a person's")
    old = contents(tmp_path / "old" / "raw")
    shutil.copytree(tmp_path / "old", tmp_path / "fresh")
    export(tmp_path / "fresh" / "raw", 1, own)
    new, outcomes = contents(tmp_path / "fresh" / "raw"), []
    assert new.keys() == old.keys()
    assert new != old
    for number in itertools.count(1):
        place = tmp_path / str(number) / "raw"
        shutil.copytree(tmp_path / "old", place.parent)
        died = forked(lambda place=place: export(place, 1, own), before=number).killed
        put_back(place)  # with which the next attempt starts
        outcomes.append(contents(place))
        assert outcomes[-1] in (old, new), f"before change {number}"
        with replacing_folder(place, own) as unfinished:
            shutil.copytree(tmp_path / "fresh" / "raw", unfinished)
        assert contents(place.parent) == {f"raw/{name}": content for name, content in new.items()}
        shutil.rmtree(place.parent)
        if not died:
            break
    assert [each == new for each in outcomes] == sorted(each == new for each in outcomes)
    assert outcomes.count(old) > 8
    assert outcomes.count(new) > 2


def replace_and_fail(place: Path, error: Exception) -> None:
    with replacing_folder(place) as unfinished:
        unfinished.mkdir()
        (unfinished / "weights").write_text("new")
        raise error


def test_an_error_while_a_folder_is_replaced_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "raw"
    place.mkdir()
    (place / "weights").write_text("old")
    for error, said in (
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room there, or choose"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "device; make room there, or choose"),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            "raw cannot be written: Permission denied; choose another",
        ),
    ):
        with pytest.raises(UserError, match=said):
            replace_and_fail(place, error)
        assert contents(tmp_path) == {"raw/weights": b"old"}
    with pytest.raises(SafetensorError, match="invalid header"):  # a mistake of ours
        replace_and_fail(place, SafetensorError("invalid header"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]


def test_of_a_link_the_folder_that_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "weights").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with replacing_folder(tmp_path / "link") as unfinished:
        unfinished.mkdir()
        (unfinished / "weights").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "there") == {"weights": b"new"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"there", "link"}
