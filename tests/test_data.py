"""Image sets: what is read, what is refused and how, and that nothing is unpickled."""

import gzip
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode, functional

from iet_agc.data import arrays, conversion, room
from iet_agc.data.conversion import convert
from iet_agc.data.datasets import fashion_mnist
from iet_agc.data.datasets.registry import split
from iet_agc.data.duplicates import plant_duplicates
from iet_agc.data.folders import load_images
from iet_agc.data.grids import image_grid, save_image
from iet_agc.data.image_set import ImageSet, unique_images
from tests.image_sets import load_named

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def _pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _image_set(count: int, size: int = 4) -> ImageSet:
    """Images that all differ, labelled by their place."""
    images = torch.arange(count * size * size).reshape(count, 1, size, size)
    return ImageSet((images * 37 % 256).to(torch.uint8), "numbers", torch.arange(count))


def _rows(images: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


# -- the digits


def test_digits_are_scikit_learns_scaled_to_bytes() -> None:
    train, held_out = load_named("digits")
    assert len(train) == 1797
    assert len(held_out) == 0
    assert train.shape == (1, 8, 8)
    assert train.labels is not None
    original: Any = load_digits()
    expected = {}
    for image, label in zip(original["images"], original["target"], strict=True):
        pixels = bytes(round(value * 255 / 16) for value in image.ravel())  # by Python's exact round; no value is a tie
        expected.setdefault(pixels, []).append(int(label))
    found: dict[bytes, list[int]] = {}
    for row, label in zip(_rows(train.images), train.labels.tolist(), strict=True):
        found.setdefault(row, []).append(label)
    assert {k: sorted(v) for k, v in found.items()} == {k: sorted(v) for k, v in expected.items()}
    assert train.images.max() == 255
    assert train.images.min() == 0


def test_the_demos_planted_duplicates() -> None:
    unique, held_out = load_named("digits", num_train=1300)
    train, same_held_out = load_named("digits", num_train=1300, planted_images=20, planted_copies=40)
    assert len(unique) == 1300
    assert len(train) == 2080
    assert len(held_out) == 497
    assert torch.equal(held_out.images, same_held_out.images)
    assert torch.equal(train.images[:1300], unique.images)
    rows = _rows(train.images)
    before = _rows(unique.images)
    for planted in before[:20]:
        assert rows.count(planted) == 40 * before.count(planted)
    for other in before[20:60]:
        assert rows.count(other) == before.count(other) + 39 * before[:20].count(other)


# -- splitting and planting


@pytest.mark.parametrize("num_train", [1, 7, 20])
def test_split_is_disjoint_and_covering(num_train: int) -> None:
    images = _image_set(20)
    train, held_out = split(images, num_train)
    assert train.labels is not None
    assert held_out.labels is not None
    assert len(train) == num_train
    assert sorted([*train.labels.tolist(), *held_out.labels.tolist()]) == list(range(20))
    for part in (train, held_out):
        assert part.labels is not None
        assert torch.equal(part.images, images.images[part.labels])  # pixels and labels stay together


def test_unique_images_keep_their_first_place() -> None:
    pixels = torch.from_numpy(_pixels(4, 1, 5, 5))
    first, inverse = unique_images(pixels[[3, 1, 3, 0, 1]])
    assert first.tolist() == [0, 1, 3]
    assert inverse.tolist() == [0, 1, 0, 2, 1]


def test_split_is_decided_by_its_seed() -> None:
    images = _image_set(50)
    same, again, other = (split(images, 25, seed)[0].labels for seed in (1, 1, 2))
    assert same is not None
    assert torch.equal(same, again)  # pyright: ignore[reportArgumentType]
    assert not torch.equal(same, other)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("num_train", [0, 21, -1])
def test_split_names_an_impossible_size(num_train: int) -> None:
    with pytest.raises(ValueError, match=f"data.num_train {num_train} is not between 1 and the 20 images of numbers"):
        split(_image_set(20), num_train)


def test_plant_duplicates_by_hand() -> None:
    planted = plant_duplicates(_image_set(5), num_images=2, copies=3)
    assert planted.labels is not None
    assert planted.labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1]
    assert torch.equal(planted.images, _image_set(5).images[planted.labels])
    for nothing in (plant_duplicates(_image_set(5), 2, 1), plant_duplicates(_image_set(5), 0, 9)):
        assert torch.equal(nothing.images, _image_set(5).images)


def _moved(image: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Shifted with its edge repeated, pixel by pixel."""
    _, height, width = image.shape
    rows = [min(max(row + down, 0), height - 1) for row in range(height)]
    columns = [min(max(column + right, 0), width - 1) for column in range(width)]
    return image[:, rows][:, :, columns]


@pytest.mark.parametrize("size", [8, 24])
def test_shifted_copies_are_moved_by_up_to_an_eighth(size: int) -> None:
    images = ImageSet(torch.from_numpy(_pixels(3, 1, size, size)), "noise")
    planted, most = plant_duplicates(images, 2, 40, kind="shifted"), size // 8
    assert torch.equal(planted.images[:3], images.images)
    offsets = [(down, right) for down in range(-most, most + 1) for right in range(-most, most + 1)]
    found = []
    for number, copy in enumerate(planted.images[3:]):
        found += [offset for offset in offsets if torch.equal(copy, _moved(images.images[number % 2], *offset))]
    assert len(found) == 2 * 39  # each is one of the shifts, and one only
    assert {abs(down) for down, _ in found} == {abs(right) for _, right in found} == {*range(most + 1)}


def test_copies_of_other_brightness_are_multiples_of_their_image() -> None:
    images = ImageSet(torch.full((2, 3, 4, 4), 100, dtype=torch.uint8), "grey")
    planted = plant_duplicates(images, 1, 200, kind="brightness").images[2:]
    levels = planted[:, 0, 0, 0]
    assert bool((planted == levels[:, None, None, None]).all())
    assert 70 <= int(levels.min()) <= 75
    assert 125 <= int(levels.max()) <= 130
    bright = ImageSet(torch.full((2, 1, 4, 4), 250, dtype=torch.uint8), "white")
    assert int(plant_duplicates(bright, 1, 50, kind="brightness").images.max()) == 255  # and not round the corner


@pytest.mark.parametrize("kind", ["shifted", "brightness"])
def test_near_copies_follow_from_the_seed_and_are_near(kind: Any) -> None:
    how: dict[str, Any] = {"num_train": 200, "planted_images": 4, "planted_copies": 3}
    first, again = (load_named("digits", **how, planted_kind=kind)[0] for _ in range(2))
    other, exact = load_named("digits", **how, planted_kind=kind, seed=1)[0], load_named("digits", **how)[0]
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint not in (other.fingerprint, exact.fingerprint)
    assert torch.equal(first.images[:200], exact.images[:200])
    apart = (first.images[200:].double() - exact.images[200:]).square().mean((1, 2, 3))
    others = (first.images[200:].double() - exact.images[4:12]).square().mean((1, 2, 3))
    assert float(apart.mean()) < float(others.mean())


def test_a_kind_of_copies_that_are_not_planted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.planted_kind has no effect: set data.planted_images and data.plant"):
        load_named("digits", planted_kind="shifted")


@pytest.mark.parametrize(("num_images", "copies"), [(6, 2), (-1, 2), (2, 0)])
def test_impossible_plantings(num_images: int, copies: int) -> None:
    with pytest.raises(ValueError, match=f"cannot plant {num_images} of 5 images {copies} times each"):
        plant_duplicates(_image_set(5), num_images, copies)


def test_unknown_names_and_a_folder_without_root() -> None:
    with pytest.raises(
        ValueError,
        match=r"setting data.name: input should be 'digits', .*'folder' .it is 'cifar'",
    ):
        load_named("cifar")
    with pytest.raises(ValueError, match=r"set data.root"):
        load_named("folder")


# -- image sets


def test_fingerprint_sees_every_pixel_and_the_shape() -> None:
    images = torch.from_numpy(_pixels(5, 1, 4, 6))
    one = ImageSet(images, "a")
    changed = images.clone()
    changed[3, 0, 2, 1] ^= 1
    assert one.fingerprint == ImageSet(images.clone(), "b", torch.zeros(5)).fingerprint
    assert one.fingerprint != ImageSet(changed, "a").fingerprint
    assert one.fingerprint != ImageSet(images.reshape(5, 1, 6, 4), "a").fingerprint
    strided = images.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert not strided.is_contiguous()
    assert one.fingerprint == ImageSet(strided, "a").fingerprint
    assert len(one.fingerprint) == 64


@pytest.mark.parametrize("images", [torch.zeros(3, 1, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_images_at_rest_are_four_dimensional_bytes(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"mine: images must be uint8 \(N, C, H, W\), not torch"):
        ImageSet(images, "mine")


# -- Fashion-MNIST


def _idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def _miniature(folder: Path) -> dict[str, np.ndarray]:
    """Fashion-MNIST's four files with a dozen images."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "train-images-idx3-ubyte": _pixels(9, 28, 28),
        "train-labels-idx1-ubyte": np.arange(9, dtype=np.uint8),
        "t10k-images-idx3-ubyte": _pixels(3, 28, 28, seed=1),
        "t10k-labels-idx1-ubyte": np.arange(3, dtype=np.uint8),
    }
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(_idx(array)))
    return arrays


@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw"], ids=["debian", "torchvision"])
def test_fashion_mnist_in_both_layouts(tmp_path: Path, layout: str) -> None:
    arrays = _miniature(tmp_path / layout)
    train, test = load_named("fashion-mnist", root=tmp_path)
    assert train.shape == test.shape == (1, 28, 28)
    assert train.labels is not None
    assert test.labels is not None
    assert sorted(train.labels.tolist()) == list(range(9))
    assert np.array_equal(train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"][train.labels.numpy()])
    assert np.array_equal(test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert test.labels.tolist() == [0, 1, 2]


def test_fashion_mnist_where_debian_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _miniature(tmp_path / "fashion-mnist")
    monkeypatch.setattr(fashion_mnist, "_FASHION_FOLDERS", (str(tmp_path / "none"), str(tmp_path / "fashion-mnist")))
    train, test = load_named("fashion-mnist", num_train=4)
    assert len(train) == 4
    assert len(test) == 3


def test_missing_fashion_mnist_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Fashion-MNIST is not in .*install Debian's dataset-fashion-mnist, or set data.root"
    ) as error:
        load_named("fashion-mnist", root=tmp_path)
    assert str(tmp_path / "FashionMNIST" / "raw") in str(error.value)
    assert "\n" not in str(error.value)


def _damaged(whole: bytes) -> dict[str, bytes]:
    packed = gzip.compress(whole)
    return {
        "last byte": gzip.compress(whole[:-1]),
        "one byte more": gzip.compress(whole + b"x"),
        "wrong magic": gzip.compress(b"\1" + whole[1:]),
        "floats": gzip.compress(whole[:2] + b"\x0d" + whole[3:]),
        "not gzip": whole,
        "gzip cut short": packed[:-20],
        "nothing": b"",
        "inside the sizes": gzip.compress(whole[:9]),
        "inside the magic": gzip.compress(whole[:3]),
        "empty": gzip.compress(b""),
        "flipped bits": packed[:12] + bytes([packed[12] ^ 255, packed[13] ^ 255, packed[14] ^ 255]) + packed[15:],
    }


@pytest.mark.parametrize("damage", list(_damaged(bytes(100))))
def test_damaged_idx_files_are_named(tmp_path: Path, damage: str) -> None:
    arrays = _miniature(tmp_path)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(_damaged(_idx(arrays["train-images-idx3-ubyte"]))[damage])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz"):
        load_named("fashion-mnist", root=tmp_path)


@pytest.mark.parametrize("says", [(9, 28, 28), (2**15, 2**15, 2**15)], ids=["zeros behind it", "a header of 32 TiB"])
def test_an_idx_file_is_not_unzipped_without_a_limit(tmp_path: Path, says: tuple[int, ...]) -> None:
    """64 MiB of zeros are 64 KiB zipped."""
    _miniature(tmp_path)
    header = bytes([0, 0, 8, len(says)]) + b"".join(size.to_bytes(4, "big") for size in says)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + bytes(2**26), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is not an IDX file .* longer than"):
            load_named("fashion-mnist", root=tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_a_missing_part_of_fashion_mnist_is_named(tmp_path: Path) -> None:
    _miniature(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz is not there"):
        load_named("fashion-mnist", root=tmp_path)


@pytest.mark.skipif(not DEBIAN.exists(), reason=f"{DEBIAN} is not there: apt-get install dataset-fashion-mnist")
def test_the_real_fashion_mnist() -> None:
    train, test = load_named("fashion-mnist", num_train=1000)
    assert len(train) == 1000
    assert len(test) == 10_000
    assert train.shape == (1, 28, 28)
    assert test.labels is not None
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert test.labels[:5].tolist() == [9, 2, 1, 1, 6]


# -- folders


def _save(file: Path, pixels: np.ndarray, mode: str | None = None, **how: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, **how)


def test_folders_are_read_at_any_depth_in_the_order_of_paths(tmp_path: Path) -> None:
    arrays = {name: _pixels(6, 5, 3, seed=i) for i, name in enumerate(["a/z.png", "b.PNG", "b/c/d.webp", "c.png"])}
    for name, pixels in reversed(arrays.items()):
        how: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
        _save(tmp_path / name, pixels, **how)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    images = load_images(tmp_path)
    order = sorted(tmp_path / name for name in arrays)
    assert images.name == str(tmp_path)
    assert images.images.is_contiguous()
    expected = np.stack([arrays[str(file.relative_to(tmp_path))] for file in order]).transpose(0, 3, 1, 2)
    assert np.array_equal(images.images.numpy(), expected)
    assert images.shape == (3, 6, 5)
    assert load_named("folder", root=tmp_path, num_train=3)[1].images.shape == (1, 3, 6, 5)


def test_jpeg_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPEG"):
        _save(tmp_path / name, _pixels(8, 8, 3), quality=90, format="JPEG")
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(load_images(tmp_path).images[0].permute(1, 2, 0).numpy(), np.asarray(image))


def test_grey_stays_one_channel(tmp_path: Path) -> None:
    for i in range(3):
        _save(tmp_path / f"{i}.png", _pixels(4, 4, seed=i))
    _save(tmp_path / "bits.png", _pixels(4, 4), mode="1")
    images = load_images(tmp_path)
    assert images.shape == (1, 4, 4)
    assert np.array_equal(images.images[2, 0].numpy(), _pixels(4, 4, seed=2))
    assert set(images.images[3].unique().tolist()) <= {0, 255}


def test_grey_among_colours_becomes_colour(tmp_path: Path) -> None:
    grey, colour = _pixels(4, 4), _pixels(4, 4, 3)
    _save(tmp_path / "a.png", grey)
    _save(tmp_path / "b.png", colour)
    images = load_images(tmp_path).images
    assert np.array_equal(images[0].numpy(), np.stack([grey] * 3))
    assert np.array_equal(images[1].numpy(), colour.transpose(2, 0, 1))


def test_alpha_is_dropped_and_palettes_resolved(tmp_path: Path) -> None:
    opaque = np.dstack([_pixels(4, 4, 3), np.full((4, 4), 255, np.uint8)])
    _save(tmp_path / "a.png", opaque)
    palette = Image.fromarray(_pixels(4, 4, 3)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "b.png")
    images = load_images(tmp_path)
    assert images.shape == (3, 4, 4)
    assert np.array_equal(images.images[0].numpy(), opaque[:, :, :3].transpose(2, 0, 1))
    assert np.array_equal(images.images[1].numpy(), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))


def test_grey_palettes_are_grey_and_coloured_ones_are_not(tmp_path: Path) -> None:
    grey = Image.fromarray(_pixels(4, 4) // 16)
    grey.putpalette([value for level in range(16) for value in (level * 17,) * 3])
    grey.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"  # the condition under test
    images = load_images(tmp_path)
    assert images.shape == (1, 4, 4)
    assert np.array_equal(images.images[0, 0].numpy(), _pixels(4, 4) // 16 * 17)
    grey.putpalette([value for level in range(16) for value in (level * 17, 0, 0)])
    grey.save(tmp_path / "a.png")
    assert load_images(tmp_path).shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("mode", "how"),
    [
        ("RGBA", {"format": "PNG"}),
        ("LA", {"format": "PNG"}),
        ("L", {"format": "PNG", "transparency": 7}),
        ("RGB", {"format": "PNG", "transparency": (1, 2, 3)}),
        ("P", {"format": "PNG", "transparency": 250}),
        ("P", {"format": "GIF", "transparency": 250}),
        ("RGBA", {"format": "WEBP", "lossless": True}),
        ("RGBA", {"format": "TIFF"}),
    ],
)
def test_opaque_transparency_is_accepted(tmp_path: Path, mode: str, how: dict[str, Any]) -> None:
    grey = Image.fromarray(np.arange(100, 116, dtype=np.uint8).reshape(4, 4))
    whole = grey.convert(mode) if mode != "P" else grey.convert("RGB").quantize(16)
    whole.save(tmp_path / f"a.{how['format']}", **how)
    images = load_images(tmp_path)
    assert images.shape[0] == (1 if mode in {"L", "LA", "P"} else 3)
    assert (images.images[0].numpy() == np.asarray(grey)).all()


@pytest.mark.parametrize("suffix", ["bmp", "gif", "tif", "tiff", "ppm", "pgm", "apng", "jfif"])
def test_further_formats_are_read_not_left_out(tmp_path: Path, suffix: str) -> None:
    pixels = _pixels(6, 5, 3) if suffix not in {"gif", "pgm", "jfif"} else _pixels(6, 5)
    form = {"apng": "PNG", "jfif": "JPEG", "pgm": "PPM", "ppm": "PPM", "tif": "TIFF"}.get(suffix, suffix.upper())
    _save(tmp_path / f"a.{suffix}", pixels, format=form)
    found = load_images(tmp_path).images[0].permute(1, 2, 0).numpy()
    with Image.open(tmp_path / f"a.{suffix}") as image:
        expected = np.asarray(image.convert("L" if pixels.ndim == 2 else "RGB")).reshape(found.shape)
    assert np.array_equal(found, expected)
    assert suffix == "jfif" or np.array_equal(found, pixels.reshape(found.shape))


def test_other_files_are_no_images(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _pixels(4, 4))
    for name in ("labels.json", "notes.txt", "features.npz", "README", ".hidden", "movie.mp4"):
        (tmp_path / name).write_bytes(b"")
    assert len(load_images(tmp_path)) == 1


def test_links_are_followed_and_count_by_their_paths(tmp_path: Path) -> None:
    _save(tmp_path / "elsewhere" / "deep" / "a.png", _pixels(4, 4))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "twice.png").symlink_to(tmp_path / "elsewhere" / "deep" / "a.png")
    images = load_images(folder).images
    assert len(images) == 2
    assert torch.equal(images[0], images[1])


def test_the_number_of_threads_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(150):
        _save(tmp_path / f"{i % 7}" / f"{i}.png", _pixels(4, 5, 3, seed=i))
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(conversion, "_NUM_THREADS", threads)
        found.append(load_images(tmp_path).images)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    order = [int(file.stem) for file in sorted(tmp_path.rglob("*.png"))]
    expected = np.stack([_pixels(4, 5, 3, seed=i) for i in order]).transpose(0, 3, 1, 2)
    assert np.array_equal(found[0].numpy(), expected)


def test_progress_adds_up(tmp_path: Path) -> None:
    for i in range(70):
        _save(tmp_path / f"{i}.png", _pixels(4, 4, seed=i))
    told: list[int] = []
    load_images(tmp_path, on_images=told.append)
    assert len(told) > 1
    assert sum(told) == 70
    np.save(tmp_path / "a.npy", _pixels(9, 1, 4, 4))
    told.clear()
    load_images(tmp_path / "a.npy", on_images=told.append)
    assert sum(told) == 9


def test_a_folder_takes_the_memory_of_its_images_once(tmp_path: Path) -> None:
    for i in range(64):
        _save(tmp_path / f"{i}.bmp", _pixels(128, 128, 3, seed=i))
    load_images(tmp_path)  # imports and caches
    tracemalloc.start()
    try:
        images = load_images(tmp_path).images
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert images.numel() < peak < 1.3 * images.numel()


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no images \(\.apng, .*\.jpg, .*\.png, .*\.webp\)"):
        load_images(tmp_path)
    for missing in (tmp_path / "missing", tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(ValueError, match=r"is not a folder of images, nor an .npz, .npy, .tar or .parquet file"):
            load_images(missing)


def test_more_than_the_memory_is_refused_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        _save(tmp_path / f"{i}.png", _pixels(4, 4, seed=i))
    np.save(tmp_path / "a.npy", _pixels(3, 1, 4, 4))
    monkeypatch.setattr(room, "_memory", lambda: 47)
    for read in (
        lambda: load_images(tmp_path),
        lambda: load_images(tmp_path / "a.npy"),
        lambda: convert(_image_set(3), (1, 4, 5)),
    ):
        with pytest.raises(ValueError, match=r"need 0\.0 GiB, this machine has 0\.0: give fewer or smaller images"):
            read()
    monkeypatch.setattr(room, "_memory", lambda: 48)
    assert len(load_images(tmp_path)) == len(load_images(tmp_path / "a.npy")) == 3


# -- one size for all


def _mixed_bag(folder: Path) -> list[Path]:
    """Images of several sizes, proportions and colours, each in a folder of its own."""
    shapes = [(9, 14, 3), (14, 9), (8, 8, 3), (5, 5), (20, 31, 3), (16, 16), (1, 40, 3)]
    for i, shape in enumerate(shapes):
        _save(folder / str(i) / "a.png", _pixels(*shape, seed=i))
    return [folder / str(i) for i in range(len(shapes))]


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 8, 8), (1, 5, 5), (3, 6, 10), (1, 30, 7), (3, 1, 1)])
def test_converted_in_memory_is_converted_while_reading(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    folders = _mixed_bag(tmp_path)
    each = torch.cat([convert(load_images(folder), shape).images for folder in folders])
    together = load_images(tmp_path, shape)
    assert together.shape == shape
    assert torch.equal(together.images, each)
    for i in range(4):  # uniform in size, grey among colours
        _save(tmp_path / "uniform" / f"{i}.png", _pixels(*((9, 7, 3) if i % 2 else (9, 7)), seed=i))
    assert torch.equal(
        load_images(tmp_path / "uniform", shape).images, convert(load_images(tmp_path / "uniform"), shape).images
    )


def test_what_has_the_shape_is_unchanged_to_the_bit(tmp_path: Path) -> None:
    images = replace(_image_set(6, size=5), name="x")
    assert convert(images, (1, 5, 5)) is images
    colour = _pixels(5, 5, 3)
    _save(tmp_path / "a.png", colour)
    _save(tmp_path / "b.png", _pixels(7, 5, 3))
    assert np.array_equal(load_images(tmp_path, (3, 5, 5)).images[0].numpy(), colour.transpose(2, 0, 1))


def test_conversion_keeps_labels_and_name() -> None:
    converted = convert(_image_set(20), (3, 2, 2))
    assert converted.name == "numbers"
    assert converted.labels is not None
    assert converted.labels.tolist() == list(range(20))


def test_conversion_in_closed_form() -> None:
    flat = ImageSet(torch.full((2, 1, 9, 30), 77, dtype=torch.uint8), "flat")
    assert (convert(flat, (3, 32, 16)).images == 77).all()
    red = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 255
    assert (convert(ImageSet(red, "red"), (1, 4, 4)).images == round(255 * 0.299)).all()  # ITU-R 601-2
    grey = ImageSet(torch.from_numpy(_pixels(3, 1, 4, 4)), "grey")
    assert torch.equal(convert(grey, (3, 4, 4)).images, grey.images.expand(-1, 3, -1, -1))
    assert torch.equal(convert(convert(grey, (3, 4, 4)), (1, 4, 4)).images, grey.images)


def test_conversion_cuts_the_ends_and_squeezes_nothing() -> None:
    wide = torch.zeros(1, 1, 16, 48, dtype=torch.uint8)
    wide[..., 20:28] = 200  # a bar of 8 in the middle 16 columns
    wide[..., :8] = 255  # far outside of the middle
    found = convert(ImageSet(wide, "wide"), (1, 16, 16)).images
    assert torch.equal(found, wide[..., 16:32])
    tall = ImageSet(wide.permute(0, 1, 3, 2).contiguous(), "tall")
    assert torch.equal(convert(tall, (1, 16, 16)).images, wide[..., 16:32].permute(0, 1, 3, 2))


def test_conversion_has_no_aliasing() -> None:
    stripes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    small = convert(ImageSet(stripes, "stripes"), (1, 8, 8)).images.int()
    assert (small[..., 1:-1] - 128).abs().max() <= 2  # picking pixels would give 0 or 255


#: (width, height): square; wider and taller, halves and odd numbers of pixels to cut off; smaller; a line.
SIZES = [
    (48, 48),
    (48, 32),
    (61, 40),
    (40, 61),
    (64, 47),
    (37, 64),
    (16, 23),
    (11, 9),
    (9, 11),
    (5, 5),
    (16, 1),
    (1, 16),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("edge", [16, 15])
@pytest.mark.parametrize("channels", [1, 3])
def test_bilinear_is_torchvisions_resize_and_crop(
    tmp_path: Path, size: tuple[int, int], edge: int, channels: int
) -> None:
    """Of PIL images, as the paper's authors called them, to the bit; from a file and from memory."""
    pixels = _pixels(size[1], size[0], 3) if channels == 3 else _pixels(size[1], size[0])
    theirs = transforms.Compose([transforms.Resize(edge, InterpolationMode.BILINEAR), transforms.CenterCrop(edge)])
    expected = np.asarray(theirs(Image.fromarray(pixels))).reshape(edge, edge, channels).transpose(2, 0, 1)
    _save(tmp_path / "a.png", pixels)
    shape = (channels, edge, edge)
    assert np.array_equal(load_images(tmp_path, shape, resize="bilinear").images[0].numpy(), expected)
    assert np.array_equal(convert(load_images(tmp_path), shape, "bilinear").images[0].numpy(), expected)
    if size[0] == size[1]:  # which authors that give both edges get as well
        squeezed = np.asarray(transforms.Resize((edge, edge))(Image.fromarray(pixels)))
        assert np.array_equal(squeezed.reshape(edge, edge, channels).transpose(2, 0, 1), expected)


def test_bilinear_covers_parts_that_are_no_squares() -> None:
    """As torchvision's functions do where they are told the whole size."""
    for (width, height), (shape, whole) in {
        (40, 30): ((1, 10, 20), (15, 20)),
        (30, 40): ((1, 10, 20), (26, 20)),
        (31, 40): ((1, 20, 10), (20, 15)),
        (8, 8): ((1, 3, 5), (5, 5)),
    }.items():
        pixels = _pixels(height, width)
        picture: Any = Image.fromarray(pixels)
        larger = functional.resize(picture, [*whole], InterpolationMode.BILINEAR)
        expected = torch.from_numpy(np.asarray(functional.center_crop(larger, [*shape[1:]])).copy())
        found = convert(ImageSet(torch.from_numpy(pixels)[None, None], "x"), shape, "bilinear")
        assert torch.equal(found.images[0, 0], expected)


def test_ways_to_resize_differ_and_bicubic_is_the_default(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _pixels(32, 32, 3))
    ways = {way: load_images(tmp_path, (3, 8, 8), resize=way).images for way in ("bicubic", "bilinear")}
    assert torch.equal(load_images(tmp_path, (3, 8, 8)).images, ways["bicubic"])
    assert not torch.equal(ways["bicubic"], ways["bilinear"])


def test_impossible_ways_to_resize_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _pixels(4, 4))
    odd: Any = "lanczos"
    images = _image_set(3)
    for read in (
        lambda: load_images(tmp_path, (1, 8, 8), resize=odd),
        lambda: convert(images, (1, 8, 8), odd),
    ):
        with pytest.raises(ValueError, match=r"^cannot resize images by 'lanczos': use one of bicubic, bilinear$"):
            read()


def test_a_line_is_not_resized_to_a_wall(tmp_path: Path) -> None:
    """A file of a few hundred bytes could take all of the memory."""
    _save(tmp_path / "line.png", _pixels(1, 65))
    with pytest.raises(ValueError, match=r"line\.png is 65 x 1, too narrow to be resized to 8 x 8: crop it before"):
        load_images(tmp_path, (1, 8, 8), resize="bilinear")
    with pytest.raises(ValueError, match=r"each image is 65 x 1, too narrow to be resized to 8 x 8: crop it before"):
        convert(load_images(tmp_path), (1, 8, 8), "bilinear")
    assert load_images(tmp_path, (1, 8, 8)).shape == (1, 8, 8)  # cut before it is resized


@pytest.mark.parametrize("shape", [(2, 8, 8), (0, 8, 8), (3, 0, 8), (3, 8, -1), (8, 8)])
def test_impossible_shapes_are_refused(tmp_path: Path, shape: Any) -> None:
    _save(tmp_path / "a.png", _pixels(4, 4))
    for read in (lambda: load_images(tmp_path, shape), lambda: convert(_image_set(3), shape)):
        with pytest.raises(ValueError, match=r"cannot bring images to [-x0-9]+: give CxHxW with 1 or 3 channels"):
            read()


def test_only_grey_and_colour_can_be_converted() -> None:
    odd = ImageSet(torch.zeros(2, 4, 8, 8, dtype=torch.uint8), "odd")
    with pytest.raises(ValueError, match="odd has images of 4 channels: only 1 or 3 can be converted"):
        convert(odd, (3, 8, 8))


# -- arrays


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_in_both_orders(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = _pixels(5, channels, 6, 7)
    for order, array in (("nchw", pixels), ("nhwc", pixels.transpose(0, 2, 3, 1)), ("f", np.asfortranarray(pixels))):
        file = tmp_path / f"{order}.{suffix}"
        if suffix == "npy":
            np.save(file, array)
        else:
            np.savez(file, images=array, seeds=np.arange(5))
        images = load_images(file).images
        assert images.is_contiguous()
        assert np.array_equal(images.numpy(), pixels)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["arr_0", "images", "pictures"])
def test_a_lone_array_may_have_any_name(tmp_path: Path, save: Any, name: str) -> None:
    save(tmp_path / "A.NPZ.npz", **{name: _pixels(5, 6, 7)})
    (tmp_path / "A.NPZ.npz").rename(tmp_path / "A.NPZ")
    images = load_images(tmp_path / "A.NPZ")
    assert images.shape == (1, 6, 7)
    assert np.array_equal(images.images[:, 0].numpy(), _pixels(5, 6, 7))


def test_arrays_are_converted_as_well(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", _pixels(5, 6, 7))
    found = load_images(tmp_path / "a.npy", (3, 4, 4)).images
    assert torch.equal(found, convert(load_images(tmp_path / "a.npy"), (3, 4, 4)).images)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 1, 4, 4)), r"holds float64 \(2, 1, 4, 4\), not uint8"),
        (np.zeros((2, 1, 4, 4), np.int64), "holds int64 .*, not uint8"),
        (np.zeros((2, 1, 4, 4), np.uint16), "holds uint16 .*, not uint8"),
        (np.zeros((2, 1, 4, 4), bool), "holds bool .*, not uint8"),
        (np.zeros((2, 4, 4, 4), np.uint8), r"holds uint8 \(2, 4, 4, 4\), not uint8 .* of 1 or 3 channels"),
        (np.zeros((2, 4), np.uint8), r"holds uint8 \(2, 4\), not uint8 \(N, C, H, W\) or \(N, H, W, C\)"),
        (np.zeros((), np.uint8), r"holds uint8 \(\), not"),
        (np.zeros((8, 8, 3), np.uint8), "holds .*; one image alone needs a first axis of 1"),
        (np.zeros((3, 8, 8), np.uint8), "holds .*; one image alone needs a first axis of 1"),
        (np.zeros((0, 1, 4, 4), np.uint8), r"holds no images, its shape is \(0, 1, 4, 4\)"),
        (np.zeros((4, 1, 0, 4), np.uint8), "holds no images"),
        (np.zeros(3, [("a", np.uint8)]), "holds .*, not uint8"),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_of_something_else_are_refused(tmp_path: Path, array: np.ndarray, message: str, suffix: str) -> None:
    (np.save if suffix == "npy" else np.savez)(tmp_path / f"odd.{suffix}", array)
    with pytest.raises(ValueError, match=rf"odd\.{suffix} {message}"):
        load_images(tmp_path / f"odd.{suffix}")


def test_an_npz_of_several_arrays_has_to_name_the_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", pictures=_pixels(2, 1, 4, 4), labels=np.arange(2))
    with pytest.raises(
        ValueError, match=r"odd\.npz has no array named 'images'.*it has 'pictures', 'labels'.*: name it"
    ):
        load_images(tmp_path / "odd.npz")
    zipfile.ZipFile(tmp_path / "none.npz", "w").close()
    with pytest.raises(ValueError, match=r"none\.npz has no array named 'images'.*it has none"):
        load_images(tmp_path / "none.npz")


def _npy(shape: str, body: bytes = b"", kind: str = "|u1") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_npy("(50000000, 3, 4096, 4096)"), "holds 0 bytes of pixels, its header says 2516582400000000"),
        (_npy("(2, 1, 4, 4)", bytes(31)), "holds 31 bytes of pixels, its header says 32"),
        (_npy("(2, 1, 4, 4)", bytes(33)), "holds 33 bytes of pixels, its header says 32"),
        (_npy("(-2, 1, -4, 4)", bytes(32)), "holds no images"),
        (_npy("(" * 9000), "has a damaged header"),
        (_npy("__import__('os').getpid()"), "has a damaged header"),
        (_npy("(2, 1, 4, 4)", bytes(32)).replace(b"NUMPY\x01", b"NUMPY\x03"), "is an .npy file of version"),
    ],
    ids=["huge", "short", "long", "negative", "nested", "code", "version"],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_headers_that_lie_are_refused_before_memory_is_taken(
    tmp_path: Path, content: bytes, message: str, suffix: str
) -> None:
    file = tmp_path / f"odd.{suffix}"
    if suffix == "npy":
        file.write_bytes(content)
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", content)
    with pytest.raises(ValueError, match=rf"odd\.{suffix} .*{message}") as error:
        load_images(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (5, 6, 7)])
def test_a_large_array_is_mapped_and_holds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    np.save(tmp_path / "a.npy", _pixels(*shape))
    read = load_images(tmp_path / "a.npy")
    monkeypatch.setattr(arrays, "MAPPED_FROM", 100)
    mapped = load_images(tmp_path / "a.npy")
    assert torch.equal(mapped.images, read.images)
    assert mapped.fingerprint == read.fingerprint
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "a.npy") in maps.read_text()
    mapped.images.zero_()
    assert torch.equal(load_images(tmp_path / "a.npy").images, read.images)  # the file is as it was


@pytest.mark.parametrize("turn", [np.asfortranarray, lambda pixels: pixels.transpose(0, 2, 3, 1)])
def test_pixels_in_another_order_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    pixels = _pixels(5, 3, 4, 6)
    monkeypatch.setattr(arrays, "MAPPED_FROM", 100)
    np.save(tmp_path / "a.npy", turn(pixels))
    found = load_images(tmp_path / "a.npy").images
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), pixels)


def test_a_large_array_that_is_cut_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAPPED_FROM", 100)
    np.save(tmp_path / "a.npy", _pixels(5, 3, 4, 6))
    os.truncate(tmp_path / "a.npy", 128 + 359)
    with pytest.raises(ValueError, match=r"a\.npy .*holds 359 bytes of pixels, its header says 360"):
        load_images(tmp_path / "a.npy")


def test_a_changed_pixel_in_an_archive_is_found_by_its_checksum(tmp_path: Path) -> None:
    pixels = _pixels(4, 1, 8, 8)
    np.savez(tmp_path / "odd.npz", images=pixels)
    content = (tmp_path / "odd.npz").read_bytes()
    at = content.index(pixels.tobytes()) + 100
    (tmp_path / "odd.npz").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.raises(ValueError, match=r"odd\.npz cannot be read as an array: Bad CRC-32"):
        load_images(tmp_path / "odd.npz")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((200, 1, 128, 128), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 200 * 128 * 128 // 100  # the condition under test
    monkeypatch.setattr(room, "_memory", lambda: 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.npz cannot be read as an array: its pixels need 0\.0 GiB"):
            load_images(tmp_path / "bomb.npz")
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "flipped", "missing"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_arrays_are_named(tmp_path: Path, suffix: str, damage: str) -> None:
    file = tmp_path / f"odd.{suffix}"
    if suffix == "npy":
        np.save(file, _pixels(4, 1, 8, 8))
    else:
        np.savez_compressed(file, images=_pixels(4, 1, 8, 8) // 100)
    content = bytearray(file.read_bytes())
    content[8 if suffix == "npy" else 90] ^= 255
    if damage == "missing":
        file.unlink()
    else:
        whole = file.read_bytes()
        file.write_bytes(
            {"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2], "flipped": bytes(content)}[damage]
        )
    with pytest.raises(
        ValueError, match=rf"odd\.{suffix} (cannot be read as an array|has a damaged header|is not there)"
    ):
        load_images(file)


class _Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("suffix", ["npy", "npz", "pickle"])
def test_pickles_are_never_executed(tmp_path: Path, suffix: str) -> None:
    victim = tmp_path / "executed"
    array = np.array([_Malicious(victim)], dtype=object)
    file = tmp_path / f"evil.{suffix.replace('pickle', 'npy')}"
    if suffix == "npy":
        np.save(file, array, allow_pickle=True)
    elif suffix == "npz":
        np.savez(file, images=array)
    else:  # a bare pickle under the name of an array, which numpy would also load
        file.write_bytes(pickle.dumps(_Malicious(victim)))
    with pytest.raises(ValueError, match=r"evil\.np. (holds Python objects|cannot be read as an array)"):
        load_images(file)
    assert not victim.exists()
    loaded = np.load(file, allow_pickle=True)  # the condition under test: the file does execute when it is let
    _ = loaded["images"] if suffix == "npz" else loaded
    assert victim.exists()


# -- looking at images


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_shape_and_contents(channels: int) -> None:
    images = torch.from_numpy(_pixels(4, channels, 8, 8))
    grid = image_grid(images)
    assert grid.dtype == torch.uint8
    assert tuple(grid.shape) == (3, 2 * 34 + 2, 2 * 34 + 2)  # 8 px enlarged to 32, 2 px between and around
    assert torch.equal(grid[:, 2:34:4, 36:68:4], images[1].expand(3, -1, -1))
    assert (grid[:, :2] == 128).all()


def test_image_grid_takes_no_more_than_asked() -> None:
    images = torch.from_numpy(_pixels(100, 1, 32, 32))
    assert tuple(image_grid(images).shape) == (3, 8 * 34 + 2, 8 * 34 + 2)
    assert tuple(image_grid(images, most=9).shape) == (3, 3 * 34 + 2, 3 * 34 + 2)
    assert tuple(image_grid(images[:1], most=9).shape) == (3, 32, 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_saved_images_come_back(tmp_path: Path, channels: int) -> None:
    images = torch.from_numpy(_pixels(1, channels, 5, 7))
    save_image(images[0], tmp_path / "a.png")
    assert torch.equal(load_images(tmp_path).images, images)


def test_a_folder_keeps_the_names_of_its_files(tmp_path: Path) -> None:
    for name in ("b/one.png", "a.png", "odd\n.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2)).save(tmp_path / name)
    images = load_images(tmp_path)
    assert images.files == ("a.png", "b/one.png", r"'odd\n.png'")
    assert images.take(torch.tensor([1, 1])).files == ("b/one.png", "b/one.png")
    assert convert(images, (1, 4, 4)).files == images.files
