"""Image sets: what is read, what is refused and how, and that nothing is unpickled."""

import gzip
import io
import os
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from iet_agc import data
from iet_agc.data import ImageSet, image_grid, load_dataset, load_images, plant_duplicates, save_image, split

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
    train, held_out = load_dataset("digits")
    assert len(train) == 1797
    assert len(held_out) == 0
    assert train.shape == (1, 8, 8)
    assert train.labels is not None
    original = load_digits()
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
    unique, held_out = load_dataset("digits", num_train=1300)
    train, same_held_out = load_dataset("digits", num_train=1300, planted_images=20, planted_copies=40)
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


@pytest.mark.parametrize(("num_images", "copies"), [(6, 2), (-1, 2), (2, 0)])
def test_impossible_plantings(num_images: int, copies: int) -> None:
    with pytest.raises(ValueError, match=f"cannot plant {num_images} of 5 images {copies} times each"):
        plant_duplicates(_image_set(5), num_images, copies)


def test_unknown_names_and_a_folder_without_root() -> None:
    with pytest.raises(ValueError, match=r"unknown data.name 'cifar': use one of digits, fashion-mnist, folder"):
        load_dataset("cifar")
    with pytest.raises(ValueError, match=r"set data.root"):
        load_dataset("folder")


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
    train, test = load_dataset("fashion-mnist", root=tmp_path)
    assert train.shape == test.shape == (1, 28, 28)
    assert train.labels is not None
    assert test.labels is not None
    assert sorted(train.labels.tolist()) == list(range(9))
    assert np.array_equal(train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"][train.labels.numpy()])
    assert np.array_equal(test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert test.labels.tolist() == [0, 1, 2]


def test_fashion_mnist_where_debian_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _miniature(tmp_path / "fashion-mnist")
    monkeypatch.setattr(data, "_FASHION_FOLDERS", (str(tmp_path / "none"), str(tmp_path / "fashion-mnist")))
    train, test = load_dataset("fashion-mnist", num_train=4)
    assert len(train) == 4
    assert len(test) == 3


def test_missing_fashion_mnist_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Fashion-MNIST is not in .*install Debian's dataset-fashion-mnist, or set data.root"
    ) as error:
        load_dataset("fashion-mnist", root=tmp_path)
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
        load_dataset("fashion-mnist", root=tmp_path)


def test_a_missing_part_of_fashion_mnist_is_named(tmp_path: Path) -> None:
    _miniature(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz cannot be read"):
        load_dataset("fashion-mnist", root=tmp_path)


@pytest.mark.skipif(not DEBIAN.exists(), reason=f"{DEBIAN} is not there: apt-get install dataset-fashion-mnist")
def test_the_real_fashion_mnist() -> None:
    train, test = load_dataset("fashion-mnist", num_train=1000)
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
        _save(tmp_path / name, pixels, **({"lossless": True} if name.endswith("webp") else {}))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    images = load_images(tmp_path)
    order = sorted(tmp_path / name for name in arrays)
    assert images.name == str(tmp_path)
    assert images.images.is_contiguous()
    expected = np.stack([arrays[str(file.relative_to(tmp_path))] for file in order]).transpose(0, 3, 1, 2)
    assert np.array_equal(images.images.numpy(), expected)
    assert images.shape == (3, 6, 5)
    assert load_dataset("folder", root=tmp_path, num_train=3)[1].images.shape == (1, 3, 6, 5)


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


def _cmyk(file: Path) -> None:
    Image.fromarray(_pixels(4, 4, 3)).convert("CMYK").save(file, format="JPEG")


def _sixteen_bits(file: Path) -> None:
    Image.fromarray(_pixels(4, 4).astype(np.uint16) * 257).save(file, format="PNG")
    with Image.open(file) as image:
        assert image.mode.startswith("I")  # the condition under test


def _animated(file: Path) -> None:
    first, second = (Image.fromarray(_pixels(4, 4, 3, seed=i)) for i in range(2))
    first.save(file, format="WEBP", save_all=True, append_images=[second], duration=100, lossless=True)


def _text(file: Path) -> None:
    file.write_text("no image at all")


def _nothing(file: Path) -> None:
    file.write_bytes(b"")


def _truncated(file: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(_pixels(32, 32, 3)).save(stream, format="PNG")
    file.write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])


def _flipped(file: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(_pixels(32, 32, 3)).save(stream, format="PNG")
    content = bytearray(stream.getvalue())
    content[60] ^= 255
    file.write_bytes(content)


def _bomb(file: Path) -> None:
    """The header of a PNG of 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_cmyk, "colour mode CMYK: convert it"),
        (_sixteen_bits, "colour mode I.*: convert it to 8-bit"),
        (_animated, "is animated: give single images"),
        (_text, "cannot be read as an image"),
        (_nothing, "cannot be read as an image"),
        (_truncated, "cannot be read as an image"),
        (_flipped, "cannot be read as an image"),
        (_bomb, "cannot be read as an image"),
    ],
)
def test_what_is_no_plain_image_is_refused_by_name(tmp_path: Path, write: Any, message: str) -> None:
    _save(tmp_path / "a.png", _pixels(4, 4, 3))
    write(tmp_path / "odd.webp" if write is _animated else tmp_path / "odd.png")
    with pytest.raises(ValueError, match=rf"odd\.\w+ .*{message}") as error:
        load_images(tmp_path)
    assert "\n" not in str(error.value)


def test_mixed_sizes_name_both_files(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _pixels(4, 6))
    _save(tmp_path / "b.png", _pixels(6, 4))
    with pytest.raises(ValueError, match=r"b\.png is 4 x 6, .*a\.png is 6 x 4: all images of a set must have one size"):
        load_images(tmp_path)


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no images \(\.jpeg, \.jpg, \.png, \.webp\)"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match=r"is not a folder of images, nor an .npz or .npy file"):
        load_images(tmp_path / "missing")


# -- arrays


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_in_both_orders(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = _pixels(5, channels, 6, 7)
    for order, array in (("nchw", pixels), ("nhwc", pixels.transpose(0, 2, 3, 1))):
        file = tmp_path / f"{order}.{suffix}"
        if suffix == "npy":
            np.save(file, array)
        else:
            np.savez(file, images=array, seeds=np.arange(5))
        assert np.array_equal(load_images(file).images.numpy(), pixels)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 1, 4, 4)),
        np.zeros((2, 1, 4, 4), np.int64),
        np.zeros((2, 4, 4), np.uint8),
        np.zeros((2, 4, 4, 4), np.uint8),
    ],
    ids=["float", "int64", "no channels", "four channels"],
)
def test_arrays_of_something_else_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "odd.npy", array)
    with pytest.raises(ValueError, match=r"odd\.npy holds .*, not uint8 \(N, C, H, W\) or \(N, H, W, C\)"):
        load_images(tmp_path / "odd.npy")


def test_an_npz_without_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "odd.npz", pictures=_pixels(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"odd\.npz has no array named 'images'"):
        load_images(tmp_path / "odd.npz")


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
    with pytest.raises(ValueError, match=rf"odd\.{suffix} cannot be read as an array"):
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
    with pytest.raises(ValueError, match=r"evil\.np. cannot be read as an array"):
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
