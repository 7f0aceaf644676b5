"""Groups as neighbours: copies of images with near copies are detected, tables of others are read, crowds counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import iet_agc
from iet_agc.auditing.compute import audit
from iet_agc.auditing.duplicates import find_duplicates
from iet_agc.data.copy_tables import Copy, pair_table, read_pairs
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.groups import crowded, group_sizes, labels_of, nearest_groups, representatives_of
from iet_agc.metrics.neighbors import nearest
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.tables import read_table
from tests.packs import edited

COPIES = 60


def noise(count: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def near(image: Tensor, count: int, seed: int, levels: int) -> Tensor:
    """Copies of an image, each pixel a few levels off."""
    moved = torch.randint(-levels, levels + 1, (count, *image.shape), generator=torch.Generator().manual_seed(seed))
    return (image + moved).clamp(0, 255).to(torch.uint8)


TRAIN = torch.cat([noise(200, 1), near(noise(200, 1)[7], COPIES, 2, levels=2)])
HELD_OUT, COPIED = noise(150, 3), near(noise(200, 1)[7], 10, 4, levels=10)


def test_only_the_nearest_image_of_each_group_counts() -> None:
    queries, references = noise(20, 5), noise(40, 6)
    labels = labels_of(40, [(0, 3), (0, 17), (8, 9), (9, 8), (12, 12)])
    assert representatives_of(labels).tolist() == [place for place in range(40) if place not in (3, 17, 9)]
    assert group_sizes(labels, torch.ones_like(labels))[[0, 3, 17, 8, 12]].tolist() == [3, 3, 3, 2, 1]
    assert group_sizes(labels, torch.full((40,), 2))[[17, 12]].tolist() == [6, 2]
    distances, indices = nearest_groups(lambda rows, k: nearest(queries[rows], references, k), 20, labels, 10)
    every, order = nearest(queries, references, 40)
    for row in range(20):
        first: dict[int, int] = {}
        for at, image in enumerate(order[row].tolist()):
            first.setdefault(int(labels[image]), at)
        places = [*first.values()][:10]
        assert distances[row].tolist() == every[row][places].tolist()
        assert indices[row].tolist() == order[row][places].tolist()


def test_as_many_images_are_searched_as_it_takes() -> None:
    references = torch.cat([noise(30, 1), near(noise(1, 2)[0], 500, 3, levels=2)])
    labels = labels_of(530, [(30, place) for place in range(31, 530)])
    asked: list[int] = []

    def search(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        asked.append(k)
        return nearest(references[[40, 0]][rows], references, k)

    distances, indices = nearest_groups(search, 2, labels, 5)
    assert asked == [10, 40, 160, 504]
    assert indices[0, 0] == 40
    assert not distances.isinf().any()
    assert len(labels[indices[0]].unique()) == 5


def test_without_copies_groups_change_no_number() -> None:
    sets = [ImageSet(noise(120, seed), str(seed)) for seed in (1, 2, 3)]
    plain, grouped = (
        audit(*sets, flips=True, groups=asked, extractors=["pixels"]).numbers.model_dump() for asked in (False, True)
    )
    assert grouped.pop("groups")["num_groups"] == 120
    assert plain.pop("groups") is None
    assert {name for name in plain if plain[name] != grouped[name]} == {"conventions"}


@pytest.mark.parametrize("asked", [True, [(7, 200 + place) for place in range(COPIES)]])
def test_copies_of_an_image_with_near_copies_are_detected(asked: Any) -> None:
    sets = ImageSet(TRAIN, "train"), ImageSet(COPIED, "copies"), ImageSet(HELD_OUT, "real")
    alone, groups = (audit(*sets, groups=each, measure_quality=False) for each in (False, asked))
    assert alone.numbers.copied.count == 0
    assert groups.numbers.copied.count == 10
    assert groups.numbers.statistics.auth_pct.count == 0
    assert groups.numbers.train_copies is not None
    assert groups.numbers.train_copies.near is not None
    assert groups.numbers.train_copies.near.largest == COPIES + 1
    assert groups.numbers.groups is not None
    assert groups.numbers.groups.num_groups == 200
    fresh = audit(sets[0], ImageSet(noise(300, 9), "fresh"), sets[2], groups=asked, measure_quality=False).numbers
    assert fresh.copied.count <= 9


def test_a_set_of_one_group_is_refused() -> None:
    sets = ImageSet(TRAIN[200:], "train"), ImageSet(COPIED, "copies")
    with pytest.raises(UserError, match="all images of the training set train are one group"):
        audit(*sets, groups=[(0, place) for place in range(1, COPIES)])


def with_background(count: int, seed: int) -> Tensor:
    """Images of one background, each with an object of its own."""
    images = noise(1, 77).repeat(count, 1, 1, 1)
    images[:, :, 2:5, 2:5] = noise(count, seed)[:, :, 2:5, 2:5]
    return images


def test_a_repeated_background_is_a_crowd_and_near_copies_are_none() -> None:
    def count(train: Tensor) -> tuple[int, int]:
        sets = [ImageSet(images, "set") for images in (train, HELD_OUT, HELD_OUT)]
        groups = audit(*sets, groups=True, measure_quality=False).numbers.groups
        assert groups is not None
        assert groups.crowded is not None
        return groups.crowded.train.count, groups.crowded.held_out.count

    assert count(TRAIN) == (0, 0)  # near copies are one group
    assert count(torch.cat([noise(200, 1), with_background(50, 8)])) == (49, 0)  # two of them are near copies


def test_crowds_are_counted_by_the_tenth_other_group() -> None:
    usual = torch.linspace(1, 2, 50).repeat(5, 1)
    nine, ten = usual.clone(), usual.clone()
    nine[0, :9], ten[0, :10] = 0.01, 0.01
    assert [crowded(each, usual, 0.1).train.count for each in (nine, ten)] == [0, 1]  # type: ignore[union-attr]
    assert crowded(usual[:, :9], usual, 0.1) is None


# Folders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training set, samples and held-out images, as files."""
    place = tmp_path_factory.mktemp("arrays")
    for name, images in (("train", torch.cat([TRAIN, TRAIN[7:8]])), ("samples", COPIED), ("real", HELD_OUT)):
        np.savez(place / f"{name}.npz", images=images.permute(0, 2, 3, 1).numpy())
    return place


@pytest.fixture(scope="module")
def audited(arrays: Path) -> Path:
    parts = [str(arrays / f"{name}.npz") for name in ("train", "samples", "real")]
    iet_agc.audit(*parts, out=arrays / "audit", groups=True, extractors=["pixels"], quiet=True)
    return arrays / "audit"


def test_the_multiplicity_of_copied_images_is_told(audited: Path) -> None:
    rows = read_table(audited / "samples.csv")
    assert {(row["group"], row["group_images"]) for row in rows} == {("7", str(COPIES + 2))}
    of_train = {row["image"]: row for row in read_table(audited / "training-images.csv")}
    assert (of_train["7"]["multiplicity"], of_train["7"]["group_images"]) == ("2", str(COPIES + 2))
    assert of_train["230"]["group"] == "7"
    assert (of_train["8"]["group"], of_train["8"]["group_images"]) == ("8", "1")
    page = iet_agc.report(audited).read_text()
    assert f"{COPIES + 2} copies in the training set" in page
    assert "200 groups in all" in page
    assert "--groups" in page


def test_a_pack_counts_groups_again_and_measures_them_again(audited: Path, arrays: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    iet_agc.pack(audited, out=pack)
    parts = [str(arrays / f"{name}.npz") for name in ("train", "samples", "real")]
    found = iet_agc.verify(pack, *parts, quiet=True)
    assert found.sound, found
    lie = "audits/audit/audit.json"

    def crowd(record: Any) -> None:
        train = record["groups"]["crowded"]["train"]
        record["groups"]["crowded"]["train"] = dict(train, count=1, share=1 / train["total"])

    changed = iet_agc.verify(edited(pack, tmp_path / "edited", lie, crowd), quiet=True)
    assert any("groups.crowded.train.count" in each for each in map(str, changed.differences))


def test_the_same_audit_by_groups_that_were_found_before(audited: Path, arrays: Path, tmp_path: Path) -> None:
    find_duplicates(str(arrays / "train.npz"), tmp_path / "found", flips=False, pairs=tmp_path / "pairs.json")
    parts = [str(arrays / f"{name}.npz") for name in ("train", "samples", "real")]
    for place in (tmp_path / "found", tmp_path / "pairs.json", audited / "training-images.csv"):
        again = iet_agc.audit(
            *parts, out=tmp_path / f"by {place.name}", groups=place, extractors=["pixels"], quiet=True
        )
        assert again.record.groups is not None
        assert again.record.groups.origin == "given"
        assert (again.folder / "samples.csv").read_bytes() == (audited / "samples.csv").read_bytes()
    with pytest.raises(UserError, match="is of other images"):
        iet_agc.audit(*parts[::-1], out=tmp_path / "other", groups=tmp_path / "found", quiet=True)


# Tables of other programs -----------------------------------------------------------------------------------

FILES = ImageSet(noise(4, 1), "photos", files=("a/1.png", "a/2.png", "b/1.png", "c.png"))


def written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("name", "text", "pairs"),
    [
        ("d.json", '{"a/1.png": ["2.png"], "a/2.png": [], "c.png": [["b/1.png", 3]]}', [(0, 1), (3, 2)]),
        ("s.csv", "from,to,distance\n/data/photos/a/1.png,/data/photos/c.png,0.99\n", [(0, 3)]),
        ("g.csv", "group,image,file\n1,0,a/1.png\n1,3,c.png\n2,1,a/2.png\n", [(0, 0), (0, 3), (1, 1)]),
        ("n.json", "{}", []),
    ],
)
def test_tables_of_copies_are_read(tmp_path: Path, name: str, text: str, pairs: list[tuple[int, int]]) -> None:
    assert read_pairs(written(tmp_path / name, text), FILES) == pairs


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("d.json", '{"a/1.png": ["x.png"]}', "'x.png' is no image of photos"),
        ("d.json", '{"a/1.png": ["1.png"]}', "'1.png' may be several images of photos"),
        ("d.json", '{"a/1.png": "c.png"}', "'a/1.png' has no list of duplicates"),
        ("d.json", '{"a/1.png": [3]}', "3 is no file name"),
        ("d.json", '["a/1.png"]', "is no dictionary"),
        ("d.json", "{", "is not JSON"),
        ("s.csv", "from,to\na/1.png\n", "a row has fewer columns"),
        ("s.csv", "left,right\na/1.png,c.png\n", "has no columns from and to"),
        ("g.csv", "group,image\n1,4\n", "'4' is no image of photos"),
        ("t.txt", "", "is no table of copies"),
        ("missing.csv", None, "is not there"),
    ],
)
def test_other_tables_are_refused_in_one_line(tmp_path: Path, name: str, text: str | None, why: str) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=why) as refused:
        read_pairs(file, FILES)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["pairs.json", "similarity.csv"])
def test_what_is_written_is_read_as_the_same_groups(tmp_path: Path, name: str) -> None:
    groups = [[Copy("a/2.png", 0.0), Copy("a/1.png", 0.0312), Copy("c.png", 0.01)]]
    assert FILES.files is not None
    text = pair_table(tmp_path / name, FILES.files, groups, "/data/photos")
    labels = labels_of(4, read_pairs(written(tmp_path / name, text), FILES))
    assert labels.tolist() == [0, 0, 2, 0]
    if name == "pairs.json":
        assert json.loads(text)["a/1.png"] == ["a/2.png", "c.png"]
        assert json.loads(text)["b/1.png"] == []
    else:
        assert text.splitlines()[1] == "/data/photos/a/2.png,/data/photos/c.png,0.990000"


def test_a_table_takes_the_place_of_its_own_only(arrays: Path, tmp_path: Path) -> None:
    train, pairs = str(arrays / "train.npz"), tmp_path / "pairs.csv"
    find_duplicates(train, tmp_path / "found", near=False, pairs=pairs)
    find_duplicates(train, tmp_path / "found", near=False, pairs=pairs)
    assert pairs.read_text() == "from,to,distance\n7,260,1.000000\n"
    pairs.write_text("mine")
    with pytest.raises(UserError, match="is there and is not the list"):
        find_duplicates(train, tmp_path / "found", near=False, pairs=pairs)
    with pytest.raises(UserError, match=r"neither .json, as imagededup writes, nor .csv"):
        find_duplicates(train, tmp_path / "found", near=False, pairs=tmp_path / "pairs.txt")
