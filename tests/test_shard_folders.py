"""Shards on disk: what each holds, what comes along, and that the same command again changes nothing."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import iet_agc
from iet_agc.data import shards
from iet_agc.data.datasets.captioned_folder import read_captioned
from iet_agc.data.folders import load_images
from iet_agc.data.grids import save_image
from iet_agc.data.image_set import unique_images
from iet_agc.data.shards import KeepTogether, cut_shards, shard_sizes
from iet_agc.method.sharding import partition
from iet_agc.runtime.errors import UserError
from tests.commands import call
from tests.similar_images import scenes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 cats and 10 dogs of several sizes, each with a caption beside it; the first dog is also the first cat."""
    folder = tmp_path / "photos"
    images = scenes(30)
    for number, image in enumerate(images):
        name = folder / ("cats" if number < 20 else "dogs") / f"{number:02d}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        save_image(images[0] if number == 20 else image[:, : 20 + number % 3], name)
        name.with_suffix(".txt").write_text(f"a picture of {number}\n")
    save_image(images[0], folder / "cats" / "00.png")
    return folder


def lists(out: Path) -> list[list[str]]:
    return [file.read_text().splitlines() for file in sorted(out.glob("shard-*.txt"))]


def below(folder: Path, ending: str = ".png") -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob(f"*{ending}"))


# What is cut ------------------------------------------------------------------------------------------------


def test_shards_are_disjoint_cover_all_and_have_a_share_of_each_class(photos: Path, tmp_path: Path) -> None:
    told = cut_shards(photos, tmp_path / "s", 3)
    found = lists(tmp_path / "s")
    assert sorted(name for some in found for name in some) == below(photos)
    assert told["sizes"] == [len(some) for some in found] == [10, 10, 10]
    for some, shard in zip(found, told["shards"], strict=True):
        counts = {name: sum(each.startswith(name) for each in some) for name in ("cats", "dogs")}
        assert counts == shard["classes"]
        assert counts["cats"] in (6, 7)
        assert counts["dogs"] in (3, 4)


def test_a_seed_is_a_split(photos: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        cut_shards(photos, tmp_path / name, 3, seed, lists_only=True)
    first, again, other = (lists(tmp_path / name) for name in "abc")
    assert first == again != other


def test_they_are_those_of_partition_by_class_and_by_copy_as_a_run_has_them(photos: Path, tmp_path: Path) -> None:
    images = load_images(photos, (3, 64, 64))
    assert images.files is not None
    labels = torch.tensor([int(name.startswith("dogs")) for name in images.files])
    groups_of: dict[KeepTogether | None, torch.Tensor | None] = {None: None, "exact": unique_images(images.images)[1]}
    for kind, groups in groups_of.items():
        cut_shards(photos, out := tmp_path / f"{kind}", 3, 5, kind, lists_only=True)
        found = partition(labels, 3, seed=5, groups=groups)
        assert lists(out) == [[images.files[place] for place in shard.tolist()] for shard in found]


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_copies_are_kept_in_one_shard_only_on_request(photos: Path, tmp_path: Path, kind: Any) -> None:
    if kind == "near":
        save_image(scenes(1)[0] ^ 1, photos / "dogs" / "20.png")
    pair = {"cats/00.png", "dogs/20.png"}

    def together(seed: int, **options: Any) -> bool:
        cut_shards(photos, out := tmp_path / f"{seed}{options}", 5, seed, lists_only=True, **options)
        return any(pair <= set(some) for some in lists(out))

    assert not all(together(seed) for seed in range(2))
    assert kind == "exact" or not all(together(seed, keep_together="exact") for seed in range(2))
    assert all(together(seed, keep_together=kind) for seed in range(2))
    told = cut_shards(photos, tmp_path / "told", 5, keep_together=kind)
    assert (told["groups"], told["largest_group"]) == (1, 2)


def test_an_array_file_has_lists_of_indices(tmp_path: Path) -> None:
    pixels = scenes(9)
    pixels[4] = pixels[7]
    np.savez(tmp_path / "images.npz", images=pixels.numpy())
    told = cut_shards(tmp_path / "images.npz", tmp_path / "s", 3, keep_together="exact")
    assert sorted(int(place) for some in lists(tmp_path / "s") for place in some) == [*range(9)]
    assert any({"4", "7"} <= set(some) for some in lists(tmp_path / "s"))
    assert not [entry for entry in (tmp_path / "s").iterdir() if entry.is_dir()]
    assert not told["folders"]


def test_names_are_in_order_however_many_there_are(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", scenes(30).numpy())
    told = cut_shards(tmp_path / "a.npy", tmp_path / "s", 12)
    names = [shard["name"] for shard in told["shards"]]
    assert names == sorted(names)
    assert (names[0], names[-1]) == ("shard-00", "shard-11")


# What comes along -------------------------------------------------------------------------------------------


def test_folders_hold_links_to_the_images_and_captions_beside_them(photos: Path, tmp_path: Path) -> None:
    (photos / "README.md").write_text("about")
    told = cut_shards(photos, out := tmp_path / "s", 3)
    for number, some in enumerate(lists(out)):
        assert below(out / f"shard-{number}") == sorted(some)
        assert below(out / f"shard-{number}", ".txt") == sorted(name.replace(".png", ".txt") for name in some)
        assert all(os.path.samefile(photos / name, out / f"shard-{number}" / name) for name in some)
    assert (told["captioned"], told["left_behind"]) == (30, 1)


def test_a_link_in_the_source_becomes_the_file_that_it_leads_to(photos: Path, tmp_path: Path) -> None:
    (photos / "cats" / "00.png").rename(tmp_path / "elsewhere.png")
    (photos / "cats" / "00.png").symlink_to("../../elsewhere.png")
    cut_shards(photos, tmp_path / "s", 2)
    (place,) = (tmp_path / "s").rglob("cats/00.png")
    assert os.path.samefile(place, tmp_path / "elsewhere.png")
    assert not place.is_symlink()


@pytest.mark.parametrize("inside", ["", "cats"])
def test_lines_of_metadata_go_with_their_images(photos: Path, tmp_path: Path, inside: str) -> None:
    images = below(photos / inside)
    rows = [{"file_name": name, "text": [f"über {name}", "a"], "more": 1} for name in images]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in reversed(rows))
    (photos / inside / "metadata.jsonl").write_text(text, encoding="utf-8")
    cut_shards(photos, out := tmp_path / "s", 3)
    found = []
    for number, some in enumerate(lists(out)):
        place = out / f"shard-{number}" / inside
        found += (place / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        if not inside:
            images = read_captioned(place, "metadata.jsonl", (3, 8, 8))
            assert images.captions == tuple((f"über {name}", "a") for name in some)
    assert sorted(map(json.loads, found), key=str) == sorted(rows, key=str)


def test_entries_of_a_json_file_of_captions_go_with_their_images(photos: Path, tmp_path: Path) -> None:
    texts = {f"/other/machine/{name}": [f"a {name}"] for name in below(photos)}
    (photos / "captions.json").write_text(json.dumps(texts))
    cut_shards(photos, out := tmp_path / "s", 3)
    for number, some in enumerate(lists(out)):
        images = read_captioned(out / f"shard-{number}", "captions.json", (3, 8, 8))
        assert images.captions == tuple((f"a {name}",) for name in some)


def test_other_json_is_no_caption(photos: Path, tmp_path: Path) -> None:
    (photos / "dataset.json").write_text('{"licence": "mine"}')
    assert cut_shards(photos, tmp_path / "s", 3)["left_behind"] == 1
    assert not [*(tmp_path / "s").rglob("dataset.json")]


# Again ------------------------------------------------------------------------------------------------------


def contents(out: Path) -> dict[str, bytes]:
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_the_same_again_changes_nothing_and_something_else_is_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = cut_shards(photos, out := tmp_path / "s", 3, keep_together="exact")
    before = contents(out)
    with monkeypatch.context() as patched:
        patched.setattr(shards, "_planned", lambda *given: pytest.fail("cut again"))
        assert cut_shards(photos, out, 3, keep_together="exact") == told
        with pytest.raises(UserError, match=r"holds another set of shards \(members is 3, not 4\)"):
            cut_shards(photos, out, 4, keep_together="exact")
        save_image(scenes(1)[0], photos / "cats" / "new.png")
        with pytest.raises(UserError, match="of other images"):
            cut_shards(photos, out, 3, keep_together="exact")
    assert contents(out) == before


@pytest.mark.parametrize("lost", ["shard-1.txt", "shard-0/cats", "shard-2"])
def test_what_was_lost_is_made_again(photos: Path, tmp_path: Path, lost: str) -> None:
    cut_shards(photos, out := tmp_path / "s", 3)
    before = contents(out)
    shutil.rmtree(out / lost) if (out / lost).is_dir() else (out / lost).unlink()
    cut_shards(photos, out, 3)
    assert contents(out) == before


def test_a_kill_is_made_good(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_shards(photos, tmp_path / "whole", 3)
    link, linked = shards._link, []

    def killed(*given: Any) -> Any:
        linked.append(given)
        if len(linked) == 2:
            raise KeyboardInterrupt
        return link(*given)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "_link", killed)
        with pytest.raises(KeyboardInterrupt):
            cut_shards(photos, tmp_path / "s", 3)
    assert not (tmp_path / "s" / "shards.json").exists()
    with pytest.raises(UserError, match=r"shards\.json is not there: give a folder"):
        shard_sizes(tmp_path / "s")
    cut_shards(photos, tmp_path / "s", 3)
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


# Bad input --------------------------------------------------------------------------------------------------


def test_sizes_are_read_and_changed_ones_refused(photos: Path, tmp_path: Path) -> None:
    cut_shards(photos, out := tmp_path / "s", 4)
    assert shard_sizes(out) == [8, 8, 7, 7]
    (out / "shards.json").write_text((out / "shards.json").read_text().replace("8", "9"))
    with pytest.raises(UserError, match=r"shards\.json is not as it was written: cut the shards again"):
        shard_sizes(out)


def test_bad_input_gets_one_line_and_leaves_nothing(photos: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    cases = {
        ("nowhere", "--members", 2): "nowhere is not a folder of images, nor an .npz, .npy, .tar or .parquet file",
        (tmp_path / "empty", "--members", 2): "empty holds no images",
        (photos, "--members", 31): "cannot cut 30 images into 31 shards: use 1 to 30",
        (photos, "--members", 30, "--keep-together", "exact"): "cannot cut 29 groups into 30 shards: use 1 to 29",
        (photos, "--members", "two"): "argument --members: invalid int value: 'two'",
    }
    for words, line in cases.items():
        status, out, err = call(capsys, "shards", *words, "--out", tmp_path / "s")
        assert (status, out) == (2, ""), words
        assert line in err
        assert len(err.strip().splitlines()) == 1
        assert not (tmp_path / "s").exists()
    status, _, err = call(capsys, "shards", photos, "--members", 2, "--out", photos / "s")
    assert status == 2
    assert "lies in" in err


def test_captions_that_cannot_come_along_are_refused(photos: Path, tmp_path: Path) -> None:
    for name, text, line in (
        ("metadata.csv", "file_name,text\n", r"metadata\.csv is not read: save its rows as metadata\.jsonl"),
        ("metadata.jsonl", '{"file_name": "cats/99.png"}\n', "line 1: there is no image cats/99.png beside it"),
        ("metadata.jsonl", '{"text": "a"}\n', "line 1 has no file_name"),
        ("metadata.jsonl", "{\n", "line 1 is damaged"),
    ):
        (photos / name).write_text(text)
        with pytest.raises(UserError, match=line):
            cut_shards(photos, tmp_path / "s", 2)
        (photos / name).unlink()
        assert not (tmp_path / "s").exists()


def test_files_that_are_no_images_are_refused_or_left_out(photos: Path, tmp_path: Path, capsys: Any) -> None:
    (photos / "cats" / "x.heic").write_bytes(b"")
    (photos / "cats" / "00.png").write_bytes(b"not a picture")
    words = ["shards", photos, "--members", 2, "--out", tmp_path / "s"]
    status, _, err = call(capsys, *words)
    assert status == 2
    assert "1 of 31 files cannot be used" in err
    assert "--on-bad skip" in err
    (tmp_path / "s.mending.csv").unlink()
    status, out, _ = call(capsys, *words, "--on-bad", "skip", "--keep-together", "exact")
    assert status == 0
    assert (json.loads(out)["num_images"], json.loads(out)["left_out"]) == (29, 2)
    assert len((tmp_path / "s" / "mending.csv").read_text().splitlines()) == 3


def test_a_run_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a run: give the images that are to be trained on"):
        cut_shards(tmp_path, tmp_path / "s", 2)


# From Python ------------------------------------------------------------------------------------------------


def test_from_python(photos: Path, tmp_path: Path) -> None:
    found = iet_agc.shards(photos, 4, out=tmp_path / "s", quiet=True)
    assert found.sizes == [8, 8, 7, 7]
    assert [below(folder) for folder in found.folders] == [sorted(some) for some in found.lists]
    assert "8, 8, 7, 7" in found._repr_html_()
    assert torch.tensor(found.sizes).sum() == 30
