"""The cache of decoded images: equal to none, one entry per source, whole or not there, and checked when read."""

import errno
import json
import os
import pickle
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from iet_agc.data.cache import cached, stamps
from iet_agc.data.datasets import registry
from iet_agc.data.grids import save_image
from iet_agc.data.image_set import ImageSet
from tests.image_sets import load_named
from tests.processes import Program


def _folder(root: Path, count: int = 6) -> Path:
    for number in range(count):
        (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "ab"[number % 2] / f"{number}.png")
    return root


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sets that were decoded, in their order."""
    told: list[str] = []
    readers = {kind: replace(reader, read=_telling(told, reader.read)) for kind, reader in registry.READERS.items()}
    monkeypatch.setattr(registry, "READERS", readers)
    return told


def _telling(told: list[str], read: Any) -> Any:
    return lambda data: (told.append(data.name), read(data))[1]


def _same(one: ImageSet, other: ImageSet) -> bool:
    labels = (one.labels is None) == (other.labels is None)
    labels = labels and (one.labels is None or torch.equal(one.labels, other.labels))  # pyright: ignore
    return labels and torch.equal(one.images, other.images) and one.images.dtype == other.images.dtype and (
        (one.name, one.files, one.captions) == (other.name, other.files, other.captions)
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_train": 4},
        {"classes": "folders"},
        {"shape": (1, 3, 3)},
        {"shape": (1, 3, 3), "resize": "bilinear"},
        {"num_train": 4, "planted_images": 2, "planted_copies": 3, "seed": 5},
    ],
    ids=str,
)
def test_equal_to_no_cache(tmp_path: Path, options: dict[str, Any], decoded: list[str]) -> None:
    root = _folder(tmp_path / "images")
    plain = load_named("folder", root, **options)
    for _ in range(3):
        kept = load_named("folder", root, cache=tmp_path / "cache", **options)
        assert all(_same(*pair) for pair in zip(plain, kept, strict=True))
    assert decoded == ["folder"] * 2  # without a cache, and once for it


def test_captions_and_labels_are_kept(tmp_path: Path, decoded: list[str]) -> None:
    root = _folder(tmp_path / "images")
    names = [f"{'ab'[number % 2]}/{number}.png" for number in range(6)]
    (root / "captions.json").write_text(json.dumps({name: [name, "ü 🐻"] for name in names}))
    options: dict[str, Any] = {"name": "laion-10k", "root": root, "shape": (3, 4, 4)}
    for _ in range(2):
        kept = load_named(**options, cache=tmp_path / "cache")
        assert _same(kept[0], load_named(**options)[0])
    (root / "captions.json").write_text(json.dumps({name: [f"{name}, seen later"] for name in names}))
    assert _same(load_named(**options, cache=tmp_path / "cache")[0], load_named(**options)[0])


def test_pixels_are_mapped_and_the_file_is_safe_from_writes(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images")
    load_named("folder", root, cache=tmp_path / "cache")
    images = load_named("folder", root, cache=tmp_path / "cache")[0].images
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(_entry(tmp_path / "cache") / "train.npy") in maps.read_text()
    images.zero_()
    assert load_named("folder", root, cache=tmp_path / "cache")[0].images.any()


def test_whatever_changes_the_images_makes_another_entry(tmp_path: Path, decoded: list[str]) -> None:
    root, cache = _folder(tmp_path / "images"), tmp_path / "cache"
    load_named("folder", root, cache=cache)
    changes: list[dict[str, Any]] = [{"shape": (3, 4, 4)}, {"num_train": 3}, {"seed": 1}, {"classes": "folders"}]
    for number, options in enumerate(changes):
        load_named("folder", root, cache=cache, **options)
        assert len(decoded) == number + 2
    before = len(decoded)
    save_image(torch.full((3, 5, 5), 7, dtype=torch.uint8), root / "a" / "0.png")
    changed = load_named("folder", root, cache=cache)
    assert _same(changed[0], load_named("folder", root)[0])
    os.utime(root / "a" / "0.png", ns=(1, 1))
    load_named("folder", root, cache=cache)
    (root / "a" / "2.png").unlink()
    assert len(load_named("folder", root, cache=cache)[0]) == 5
    load_named("folder", _folder(tmp_path / "other"), cache=cache)
    assert len(decoded) == before + 5
    load_named("folder", root, cache=cache)
    load_named("folder", root, cache=cache, planted_images=2, planted_copies=9)  # planted after it
    assert len(decoded) == before + 5


def test_another_decoder_makes_another_entry(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _folder(tmp_path / "images")
    for version in ("1", "1", "2"):
        monkeypatch.setattr(PIL, "__version__", version)
        load_named("folder", root, cache=tmp_path / "cache")
    assert len(decoded) == 2


def test_files_behind_links_are_part_of_the_source(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x.png").write_bytes(b"1")
    (root / "link").symlink_to(tmp_path / "far")
    (root / "loop").symlink_to(root)
    before = stamps([root])
    assert len(before) == 7
    (tmp_path / "far" / "x.png").write_bytes(b"12")
    assert stamps([root]) != before
    assert stamps([root / "a" / "0.png"]) == [one for one in before if one[0].endswith("0.png")]


def _entry(cache: Path) -> Path:
    return next(place for place in cache.iterdir() if place.is_dir())


@pytest.mark.parametrize("damage", ["pixel", "cut", "text", "label", "missing", "pickle"])
def test_a_damaged_entry_is_refused_not_used(tmp_path: Path, damage: str) -> None:
    root, cache = _folder(tmp_path / "images"), tmp_path / "cache"
    load_named("folder", root, cache=cache, classes="folders")
    pixels, about = _entry(cache) / "train.npy", _entry(cache) / "train.json"
    if damage == "pixel":
        pixels.write_bytes(pixels.read_bytes()[:-1] + bytes([pixels.read_bytes()[-1] ^ 1]))
    elif damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "text":
        about.write_text("[]")
    elif damage == "label":
        about.write_text(about.read_text().replace('"labels": [', '"labels": [1, '))
    elif damage == "missing":
        about.unlink()
    else:
        np.save(pixels, np.array([_Poison(tmp_path / "executed")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is damaged: remove it, and the images are read again") as error:
        load_named("folder", root, cache=cache, classes="folders")
    assert str(_entry(cache)) in str(error.value)
    assert not (tmp_path / "executed").exists()


class _Poison:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def test_the_poison_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Poison(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_kill_while_writing_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = _folder(tmp_path / "images"), tmp_path / "cache"

    class KilledError(BaseException):
        pass

    def kill(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", kill)
        with pytest.raises(KilledError):
            load_named("folder", root, cache=cache)
    assert all(place.name.startswith(".") for place in cache.iterdir() if place.is_dir())
    assert len(load_named("folder", root, cache=cache)[0]) == 6
    assert not [place for place in cache.iterdir() if "unfinished" in place.name]


def test_nothing_is_kept_of_images_that_cannot_be_read(tmp_path: Path) -> None:
    root, cache = _folder(tmp_path / "images"), tmp_path / "cache"
    (root / "a" / "bad.png").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"bad\.png is empty"):
            load_named("folder", root, cache=cache)
    assert not [place for place in cache.iterdir() if place.is_dir()]


def decode_once(folder: Path, name: str) -> None:
    """Say which images a cache gives, which were read when two processes had begun."""

    def read() -> tuple[ImageSet, ImageSet]:
        with (folder / "reads").open("a") as file:
            file.write("x")
        while not (folder / "both").exists():
            time.sleep(0.01)
        one = ImageSet(torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4), "a")
        return one, one

    (folder / name).touch()
    print(cached(folder / "cache", {"name": "a"}, read)[0].fingerprint)


def test_two_processes_decode_once(tmp_path: Path) -> None:
    two = [Program(partial(decode_once, tmp_path, name)) for name in ("one", "two")]
    while not ((tmp_path / "one").exists() and (tmp_path / "two").exists()):
        assert all(process.poll() is None for process in two)
    (tmp_path / "both").touch()
    ended = [process.ended(60) for process in two]
    assert len({each.stdout for each in ended}) == 1
    assert [each.returncode for each in ended] == [0, 0]
    assert (tmp_path / "reads").read_text() == "x"


def test_an_entry_depends_on_its_source_alone(tmp_path: Path) -> None:
    sets = [ImageSet(torch.full((2, 1, 3, 3), value, dtype=torch.uint8), "a") for value in (1, 2)]
    for one in sets:
        cached(tmp_path, {"name": int(one.images[0, 0, 0, 0])}, lambda one=one: (one, one))
    for one in sets:
        kept = cached(tmp_path, {"name": int(one.images[0, 0, 0, 0])}, lambda: pytest.fail("is there"))
        assert torch.equal(kept[0].images, one.images)


@pytest.mark.parametrize("where", ["a file", "full"])
def test_folders_that_cannot_keep_images(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = _folder(tmp_path / "images"), tmp_path / "cache"
    if where == "a file":
        cache.write_text("")
    else:
        monkeypatch.setattr(np, "save", _full)
    with pytest.raises(ValueError, match=r"cache cannot keep images, (File exists|No space .*): set data\.cache to"):
        load_named("folder", root, cache=cache)
    assert where == "a file" or not [place for place in cache.iterdir() if place.is_dir() and place.name[0] != "."]


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_embedded_images_are_not_kept(tmp_path: Path) -> None:
    assert len(load_named("digits", cache=tmp_path / "cache")[0]) == 1797
    assert not (tmp_path / "cache").exists()
