"""One image of each group of copies is trained on: which one, what is counted, what follows from it, and when."""

import csv
import json
from pathlib import Path

import pytest
import torch

from iet_agc.auditing import compute
from iet_agc.auditing.compute import audit
from iet_agc.config.data_settings import FolderData
from iet_agc.config.fingerprint import fingerprint
from iet_agc.config.overrides import override
from iet_agc.config.settings import Settings
from iet_agc.data.datasets.deduplication import one_of_each
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import counts
from iet_agc.runtime.errors import UserError
from iet_agc.training.loop import start
from tests.photographs import album, with_copies

TINY = {
    "model.channels": "8",
    "model.multipliers": "1,2",
    "model.blocks": "1",
    "model.attention": "",
    "model.groups": "4",
    "train.steps": "2",
    "train.batch_size": "4",
    "run.preview_images": "0",
    "run.device": "cpu",
    "data.name": "folder",
    "data.convert_to": "3x8x8",
}


def names(folder: Path, deduplicate: str | None, **options: object) -> tuple[str, ...]:
    data = FolderData.model_validate({"root": str(folder), "deduplicate": deduplicate, **options})
    return load_dataset(data)[0].files or ()


@pytest.mark.parametrize(
    ("deduplicate", "left_out"), [(None, set()), ("exact", {"b.png"}), ("near", {"b.png", "c.jpg", "d.png"})]
)
def test_one_of_each_group_is_trained_on(deduplicate: str | None, left_out: set[str], tmp_path: Path) -> None:
    folder = with_copies(tmp_path / "photos")
    every = {file.name for file in folder.iterdir()}
    assert {*names(folder, deduplicate)} == every - left_out


def test_the_first_stays_and_the_order_too() -> None:
    images = torch.tensor([5, 7, 5, 9, 7, 5], dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)
    labels = torch.arange(6)
    found = one_of_each(ImageSet(images, "set", labels, captions=tuple((str(n),) for n in range(6))), near=False)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 3]
    assert found.captions == (("0",), ("1",), ("3",))
    assert [(file.path, file.reason) for file in found.treated] == [
        ("image 2", "is equal to image 0"),
        ("image 5", "is equal to image 0"),
        ("image 4", "is equal to image 1"),
    ]
    assert counts(found.treated) == {"left out: duplicate": 3}


def test_a_set_without_copies_is_the_very_set(tmp_path: Path) -> None:
    images = load_dataset(FolderData(root=str(album(tmp_path / "photos"))))[0]
    assert one_of_each(images, near=True) is images


def test_copies_go_before_images_are_held_out_and_before_copies_are_planted(tmp_path: Path) -> None:
    folder = with_copies(tmp_path / "photos")
    options = {"deduplicate": "near", "num_train": 8, "planted_images": 2, "planted_copies": 3, "root": str(folder)}
    train, held_out = load_dataset(FolderData.model_validate(options))
    assert (len(train), len(held_out)) == (8 + 2 * 2, 4)
    assert not {*(train.files or ())} & {*(held_out.files or ())}
    with pytest.raises(UserError, match=r"data.num_train 13 is not between 1 and the 12 images of"):
        names(folder, "near", num_train=13)


def test_with_a_cache_as_without(tmp_path: Path) -> None:
    folder, cache = with_copies(tmp_path / "photos"), str(tmp_path / "cache")
    for deduplicate in (None, "exact", "near", None):
        assert names(folder, deduplicate, cache=cache) == names(folder, deduplicate)


def test_a_run_counts_lists_and_says_what_it_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = with_copies(tmp_path / "photos"), tmp_path / "run"
    settings = override(Settings(), TINY | {"data.root": str(folder), "data.deduplicate": "near"})
    result = start(settings, run)
    assert (result["training_images"], result["mending"]) == (12, {"left out: duplicate": 3})
    assert json.loads((run / "identity.json").read_text())["train"]["mending"] == {"left out: duplicate": 3}
    with (run / "mending.csv").open(newline="") as stream:
        assert {row["path"] for row in csv.DictReader(stream)} == {"b.png", "c.jpg", "d.png"}
    assert capsys.readouterr().err.count("3 left out: duplicate (all are listed in ") == 1
    other = override(settings, {"data.deduplicate": "none"})
    assert fingerprint(other) != fingerprint(settings)
    with pytest.raises(UserError, match=r"data\.deduplicate near is now None"):
        start(other, run)


def test_other_images_are_held_out_from_another_folder(tmp_path: Path) -> None:
    photos, unseen = album(tmp_path / "photos"), album(tmp_path / "unseen", 5, first=100)
    train, held_out = load_dataset(FolderData(root=str(photos), held_out=str(unseen), convert_to="1x8x8"))
    assert (len(train), train.shape, len(held_out), held_out.shape) == (12, (1, 8, 8), 5, (1, 8, 8))
    with pytest.raises(UserError, match="lie in each other"):
        load_dataset(FolderData(root=str(photos), held_out=str(tmp_path)))
    with pytest.raises(UserError, match="nowhere is not a folder of images"):
        load_dataset(FolderData(root=str(photos), held_out=str(tmp_path / "nowhere")))


def test_where_held_out_images_lie_makes_no_other_run(tmp_path: Path) -> None:
    base = override(Settings(), TINY | {"data.root": "photos"})
    assert fingerprint(override(base, {"data.held_out": "unseen"})) == fingerprint(base)


def test_an_audit_counts_copies_in_the_training_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_dataset(FolderData(root=str(with_copies(tmp_path / "photos")), convert_to="3x16x16"))[0]
    again = images.take(torch.tensor([*range(len(images)), 5, 5]))
    samples = load_dataset(FolderData(root=str(album(tmp_path / "drawn", 4, first=90)), convert_to="3x16x16"))[0]

    def counted(flips: bool) -> tuple[object, object]:
        found = audit(again, samples, extractors=["pixels"], flips=flips).numbers.train_copies
        assert found is not None
        return found.exact.model_dump(), found.near and found.near.model_dump()

    exact, near = {"groups": 2, "images": 5, "largest": 3}, {"groups": 2, "images": 4, "largest": 2}
    assert counted(flips=True) == (exact, near)
    assert counted(flips=False) == (exact, {"groups": 1, "images": 2, "largest": 2})
    monkeypatch.setattr(compute, "MOST_UNASKED", 14)
    assert counted(flips=True) == (exact, near)  # of 14 unique ones
    monkeypatch.setattr(compute, "MOST_UNASKED", 13)
    assert counted(flips=True) == (exact, None)
