"""Duplicates: identities, planted copies, chains, what is on disk and on the page."""

import csv
import json
import re
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as change

from iet_agc import cli
from iet_agc.auditing.duplicates import find_duplicates
from iet_agc.metrics import duplicates
from iet_agc.metrics.duplicates import Group, duplicate_groups, redundant, representatives
from iet_agc.metrics.near_copies import Pairs, same_pictures
from iet_agc.metrics.registration import IDENTITY, difference, register, resample
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.threads import num_threads
from tests.similar_images import scenes


def compressed(images: Tensor, quality: int = 50) -> Tensor:
    result = []
    for image in images:
        file = BytesIO()
        change.to_pil_image(image).save(file, "JPEG", quality=quality)
        result.append(change.pil_to_tensor(Image.open(file)))
    return torch.stack(result)


def cropped(images: Tensor, top: int = 1, left: int = 1, side: int = 29) -> Tensor:
    return change.resize(images[..., top : top + side, left : left + side], list(images.shape[-2:]), antialias=True)


def shifted(images: Tensor, pixels: int = 2) -> Tensor:
    return change.pad(images, [pixels, 0, 0, 0], padding_mode="edge")[..., : images.shape[-1]]


def smaller(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return change.resize(change.resize(images, [height // 2, width // 2], antialias=True), [height, width])


def brighter(images: Tensor) -> Tensor:
    return (images * 1.1).round().clamp(0, 255).to(torch.uint8)


CHANGES = {
    "jpeg": compressed,
    "resized": smaller,
    "brighter": brighter,
    "cropped": cropped,
    "cropped at a corner": lambda images: cropped(images, 0, 3),
    "shifted": shifted,
    "mirrored": lambda images: images.flip(-1),
    "mirrored jpeg": lambda images: compressed(images.flip(-1)),
}


def members(groups: list[Group]) -> list[list[int]]:
    return [[member.image for member in group.members] for group in groups]


# -- identities


def test_equal_images_are_found_by_their_pixels() -> None:
    images = scenes(6)[torch.tensor([0, 1, 2, 1, 3, 4, 1, 5, 0])]
    for near in (False, True):
        groups = duplicate_groups(images, near=near)
        assert members(groups) == [[0, 8], [1, 3, 6]]
        assert {group.kind for group in groups} == {"exact"}
        assert all(member.distance == 0 and not member.mirrored for group in groups for member in group.members)


def test_exact_takes_no_near_copies() -> None:
    images = scenes(40)
    images = torch.cat([images, images[:1] ^ 1])
    assert members(duplicate_groups(images, near=False)) == []
    groups = duplicate_groups(images)
    assert members(groups) == [[0, 40]]
    assert groups[0].kind == "near"


def test_mirrored_images_are_copies_only_with_flips() -> None:
    images = scenes(40)
    images = torch.cat([images, images[3:4].flip(-1), compressed(images[5:6].flip(-1))])
    groups = duplicate_groups(images)
    assert members(groups) == [[3, 40], [5, 41]]
    assert [group.kind for group in groups] == ["exact", "near"]
    assert [sorted(member.mirrored for member in group.members) for group in groups] == [[False, True]] * 2
    assert members(duplicate_groups(images, near=False)) == [[3, 40]]
    assert duplicate_groups(images, flips=False) == []


def test_a_picture_that_is_its_own_mirror_image_is_no_copy() -> None:
    images = scenes(30)
    images[0] = torch.cat([images[0, ..., :16], images[0, ..., :16].flip(-1)], dim=-1)
    assert duplicate_groups(images) == []


def test_the_order_of_images_changes_nothing_but_their_numbers() -> None:
    images = scenes(60)
    images = torch.cat([images, compressed(images[:8]), cropped(images[4:10]), images[20:24], images[21:25].flip(-1)])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))

    def found(groups: list[Group], numbers: Tensor) -> set[tuple[Any, ...]]:
        return {
            tuple(sorted((int(numbers[each.image]), each.distance) for each in group.members if each.kind == "near"))
            for group in groups
        }

    straight, mixed = duplicate_groups(images), duplicate_groups(images[order])
    assert len(straight) >= 14
    assert found(straight, torch.arange(len(images))) == found(mixed, order)
    sets = [{frozenset(int(n[i]) for i in group) for group in members(groups)} for groups, n in (
        (straight, torch.arange(len(images))), (mixed, order))]  # fmt: skip
    assert sets[0] == sets[1]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = scenes(50)
    images = torch.cat([images, compressed(images[:9]), shifted(images[5:12])])
    before = duplicate_groups(images)
    for name, size in {"_ROWS": 7, "_PAIRS": 5, "_IMAGES": 11, "_VALUES": 9000}.items():
        monkeypatch.setattr(f"iet_agc.metrics.near_copies.{name}", size)
    after = duplicate_groups(images)
    assert members(before) == members(after)
    distances = [[each.distance for group in groups for each in group.members] for groups in (before, after)]
    assert distances[0] == pytest.approx(distances[1], abs=1e-5)


def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = scenes(50)
    images = torch.cat([images, compressed(images[:9]), shifted(images[5:12])])
    for name, size in {"_ROWS": 16, "_PAIRS": 8, "_IMAGES": 16}.items():
        monkeypatch.setattr(f"iet_agc.metrics.near_copies.{name}", size)
    found: list[list[Group]] = []
    for count in (1, 2, 3):
        with num_threads(count):
            found.append(duplicate_groups(images))
    assert len(found[0]) >= 12
    assert found[0] == found[1] == found[2]  # to the last bit of every distance


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_no_images_are_copies_of_none(shape: tuple[int, int, int]) -> None:
    none, k = scenes(4, shape)[:0], 3
    for references in (none, scenes(4, shape)):
        assert same_pictures(none, references, torch.zeros(0, k, dtype=torch.int64), flips=True).shape == (0,)
    assert duplicate_groups(none) == []


@pytest.mark.parametrize("count", [1, 2, 3, 12])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (3, 40, 64)])
def test_small_sets_and_odd_sizes(count: int, shape: tuple[int, int, int]) -> None:
    images = scenes(count, shape)
    assert duplicate_groups(images) == []
    assert members(duplicate_groups(torch.cat([images, images[:1]]))) == [[0, count]]


def test_flat_images_are_copies_of_their_own_colour_only() -> None:
    flat = torch.tensor([[250, 250, 250], [252, 252, 252], [250, 20, 20], [20, 20, 250]], dtype=torch.uint8)
    images = torch.cat([scenes(30), flat[:, :, None, None].expand(4, 3, 32, 32)])
    assert members(duplicate_groups(images)) == [[30, 31]]


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, C, H, W\)"):
        duplicate_groups(torch.zeros(4, 3, 8, 8))


# -- what is found


@pytest.mark.parametrize("name", CHANGES)
def test_planted_copies_are_found(name: str) -> None:
    images = scenes(80)
    groups = duplicate_groups(torch.cat([images, CHANGES[name](images[:20])]))
    right = [[place, 80 + place] for place in range(20)]
    least = 19 if name not in ("shifted", "cropped at a corner") else 15
    assert sum(pair in right for pair in members(groups)) >= least
    assert redundant(groups) <= 20


def test_pictures_that_are_merely_alike_are_not_linked() -> None:
    """One scene with a mark in another place of each: the differences are small, and as small as to all others."""
    scene = scenes(1)
    images = scene.repeat(36, 1, 1, 1)
    for number, image in enumerate(images):
        top, left = 4 * (number // 6) + 4, 4 * (number % 6) + 4
        image[:, top : top + 4, left : left + 4] = 255 - image[:, top : top + 4, left : left + 4]
    assert duplicate_groups(images) == []
    assert members(duplicate_groups(torch.cat([images, images[:1] ^ 1]))) == [[0, 36]]


def test_how_a_copy_lies_over_its_original_is_told() -> None:
    images = scenes(40)
    groups = duplicate_groups(torch.cat([images, shifted(images[:1], 2), cropped(images[1:2], 0, 3)]))
    assert members(groups) == [[0, 40], [1, 41]]
    for group, (zoom, right) in zip(groups, ((1.0, 2 / 32), (32 / 29, -1.5 / 29)), strict=True):
        turned = group.centre >= 40  # seen from the copy, it is the other way round
        other = next(member for member in group.members if member.image != group.centre)
        assert other.zoom == pytest.approx([1 / zoom if turned else zoom] * 2, abs=0.02)
        assert other.shift[1] == pytest.approx(-right / zoom if turned else right, abs=0.015)


# -- groups


def links(*pairs: tuple[int, int, float]) -> Pairs:
    first, second, distance = (torch.tensor(column) for column in zip(*pairs, strict=True))
    still = torch.tensor([IDENTITY]).expand(len(first), 4)
    return Pairs(first, second, torch.zeros(len(first), dtype=torch.bool), still, distance)


def grouped(monkeypatch: pytest.MonkeyPatch, pairs: Pairs, count: int) -> list[set[int]]:
    """Groups by given pairs, in the numbers of unique images by their hashes."""
    monkeypatch.setattr(duplicates, "near_copies", lambda images, order, flips, on_done: pairs)
    images = scenes(count)
    order = sorted(range(count), key=lambda place: duplicates.digests(images)[place])
    return [{order.index(image) for image in group} for group in members(duplicate_groups(images))]


def test_a_chain_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 0 - 1 - 2 - 3 - 4 the ends have nothing in common: every member is a copy of its centre."""
    chain = links(*((place, place + 1, 0.01) for place in range(4)))
    found = grouped(monkeypatch, chain, 6)
    assert sorted(map(sorted, found)) == [[0, 1, 2], [3, 4]]


def test_a_star_is_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two crops need not be near copies of each other."""
    assert grouped(monkeypatch, links((0, 2, 0.01), (1, 2, 0.01), (2, 3, 0.01)), 5) == [{0, 1, 2, 3}]


def test_a_slow_change_is_not_one_group() -> None:
    """One picture fades into another in 60 steps."""
    ends = scenes(2).float()
    steps = torch.linspace(0, 1, 60)[:, None, None, None]
    fading = ((1 - steps) * ends[0] + steps * ends[1]).round().to(torch.uint8)
    groups = members(duplicate_groups(torch.cat([fading, scenes(40, seed=3)])))
    assert max((len(group) for group in groups), default=0) < 20
    assert not any(0 in group and 59 in group for group in groups)


def test_representatives_are_the_first_of_each_group() -> None:
    images = scenes(5)[torch.tensor([3, 0, 1, 0, 3, 3, 2])]
    groups = duplicate_groups(images)
    assert representatives(groups, len(images)).tolist() == [0, 1, 2, 6]
    assert redundant(groups) == 3
    assert duplicate_groups(images[representatives(groups, len(images))]) == []


# -- registration


def test_registration_finds_a_known_zoom_and_shift() -> None:
    """In closed form: the second image is the first one resampled."""
    first = scenes(16, (1, 16, 16)).float()
    placement = torch.tensor([0.92, 0.05, 1.0, -0.08]).expand(16, 4)
    second, _ = resample(first, placement)
    found = register(first, second, torch.tensor([IDENTITY]).expand(16, 4), 8)
    assert (found - placement).abs().median() < 0.003
    assert difference(first, second, placement).whole.max() < 1e-4


def test_identity_and_brightness_leave_nothing_over() -> None:
    first = scenes(8, (3, 16, 16)).float()
    still = torch.tensor([IDENTITY]).expand(8, 4)
    assert torch.equal(resample(first, still)[0], first)
    assert difference(first, 0.9 * first + 7, still).whole.max() < 1e-6
    assert difference(first, first.flip(0), still).whole.min() > 0.3
    assert difference(first, 255 - first, still).whole.min() > 1  # a negative is no copy


# -- on disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    images = scenes(30)
    for number, image in enumerate(images):
        change.to_pil_image(image).save(place / f"{number:02d}.png")
    change.to_pil_image(images[4]).save(place / "again.png", compress_level=0)
    change.to_pil_image(images[7]).save(place / "small.jpg", quality=60)
    return place


def test_a_folder_becomes_counts_a_table_a_page_and_a_list(folder: Path, tmp_path: Path) -> None:
    numbers = find_duplicates(
        str(folder), tmp_path / "out", keep_list=tmp_path / "keep.txt", on_done=lambda share: None
    )
    assert (numbers["images"], numbers["unique"], numbers["kept"]) == (32, 31, 30)
    assert numbers["groups"] == {"exact": 1, "near": 1}
    assert numbers["redundant"] == {"count": 2, "share": 2 / 32}
    assert json.loads((tmp_path / "out" / "duplicates.json").read_text()) == numbers
    rows = list(csv.DictReader((tmp_path / "out" / "groups.csv").open()))
    assert [(row["group"], row["kind"], row["file"], row["kept"]) for row in rows] == [
        ("1", "exact", "04.png", "0"), ("1", "exact", "again.png", "1"),  # the larger file stays
        ("2", "near", "07.png", "1"), ("2", "near", "small.jpg", "0"),
    ]  # fmt: skip
    kept = (tmp_path / "keep.txt").read_text().splitlines()
    assert kept == [f"{number:02d}.png" for number in range(30) if number != 4] + ["again.png"]
    again = find_duplicates(str(folder), tmp_path / "out", keep_list=tmp_path / "keep.txt", on_done=lambda share: None)
    assert again == numbers


def test_the_page_is_whole_and_escaped(folder: Path, tmp_path: Path) -> None:
    (folder / "again.png").rename(folder / "<b>again & again.png")
    find_duplicates(str(folder), tmp_path / "out", on_done=lambda share: None)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 of 32 images repeat another one" in page
    assert page.count("<img ") == 4
    assert "&lt;b&gt;again &amp; again.png" in page
    assert "<b>" not in page
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_large_groups_are_cut_short_on_the_page_only(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", torch.cat([scenes(1).repeat(40, 1, 1, 1), scenes(3, seed=1)]).numpy())
    find_duplicates(str(tmp_path / "images.npy"), tmp_path / "out", on_done=lambda share: None)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<img ") == 12
    assert "and 28 more, in groups.csv" in page
    assert len((tmp_path / "out" / "groups.csv").read_text().splitlines()) == 41


def test_without_duplicates_the_page_says_so(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", scenes(20).numpy())
    numbers = find_duplicates(str(tmp_path / "images.npy"), tmp_path / "out", on_done=lambda share: None)
    assert numbers["redundant"] == {"count": 0, "share": 0.0}
    assert "No duplicates found" in (tmp_path / "out" / "report.html").read_text()


def test_the_list_of_somebody_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("years of work")
    with pytest.raises(UserError, match="is there and is not the list of"):
        find_duplicates(str(folder), tmp_path / "out", keep_list=mine, on_done=lambda share: None)
    assert mine.read_text() == "years of work"
    assert not (tmp_path / "out").exists()


def test_images_of_one_run_are_a_source_of_another_kind(tmp_path: Path) -> None:
    """A named set, brought to another size."""
    numbers = find_duplicates("digits", tmp_path / "out", near=False, convert_to=(1, 4, 4), on_done=lambda share: None)
    assert (numbers["images"], numbers["shape"], numbers["converted"]) == (1797, [1, 4, 4], True)
    assert set(numbers["conventions"]) == {"exact", "groups", "kept", "flips"}


def test_the_verb_prints_json_and_fails_above(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def status(*options: str) -> Any:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["duplicates", str(folder), "--out", str(tmp_path / "out"), *options])
        return stopped.value.code

    assert status("--fail-above", "0.05") == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["gate"] == {"fail_above": 0.05, "failed": True}
    assert "check failed: 6.25% of images are beyond one of each group, more than 5.00%" in said.err
    assert status("--fail-above", "0.07") == 0
    capsys.readouterr()
    assert status("--exact", "--no-flips", "--keep-list", str(tmp_path / "keep.txt")) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["groups"], numbers["flips"]) == ({"exact": 1, "near": 0}, False)
    assert len((tmp_path / "keep.txt").read_text().splitlines()) == 31


def test_members_are_records() -> None:
    """What the loader takes: groups made by hand work as those that were found."""
    group = duplicate_groups(scenes(2)[torch.tensor([0, 1, 1])])[0]
    assert representatives([replace(group, centre=2)], 3).tolist() == [0, 1]
