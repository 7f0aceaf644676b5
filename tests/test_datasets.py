"""Named image sets, in miniature and in their published formats: what comes out, and what is refused, how."""

import gzip
import hashlib
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from iet_agc.auditing.sources import load_part
from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.config.settings import validate
from iet_agc.data.conversion import convert
from iet_agc.data.datasets import afhq
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.folders import load_images
from iet_agc.data.image_set import ImageSet
from iet_agc.training.loop import start
from tests.commands import refused
from tests.image_sets import load_named

#: The two sets: torchvision's loader, its training batches, its test batch.
FILES = {
    "cifar10": (CIFAR10, [*(f"data_batch_{i}" for i in range(1, 6))], "test_batch"),
    "cifar100": (CIFAR100, ["train"], "test"),
}


def _pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _save(file: Path, pixels: np.ndarray, **how: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, **how)


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


# -- CIFAR


def _batch(name: str, file: str, seed: int, width: int = 3072) -> bytes:
    """A batch as it is published: a pickle of a dictionary with rows of 3,072 bytes and labels, protocol 2."""
    content = {"data": _pixels(6, width, seed=seed), "batch_label": file}
    labels = [(seed + i) % 7 for i in range(6)]
    content |= {"labels": labels} if name == "cifar10" else {"fine_labels": labels, "coarse_labels": [99] * 6}
    return pickle.dumps(content, protocol=2)


def _cifar(root: Path, name: str, patch: pytest.MonkeyPatch, width: int = 3072, **other: bytes) -> Path:
    """A miniature set in `root`, unpacked and as an archive, and its checksums where torchvision looks for them."""
    kind, train, test = FILES[name]
    meta = {"label_names" if name == "cifar10" else "fine_label_names": [str(i) for i in range(7)]}
    contents = {file: _batch(name, file, seed, width) for seed, file in enumerate([*train, test])}
    contents |= {kind.meta["filename"]: pickle.dumps(meta, protocol=2)} | other
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    with tarfile.open(root / kind.filename, "w:gz") as archive:
        archive.add(folder, kind.base_folder)
    patch.setattr(kind, "train_list", [[file, _md5(contents[file])] for file in train])
    patch.setattr(kind, "test_list", [[test, _md5(contents[test])]])
    patch.setattr(kind, "meta", kind.meta | {"md5": _md5(contents[kind.meta["filename"]])})
    patch.setattr(kind, "tgz_md5", _md5((root / kind.filename).read_bytes()))
    patch.setattr(kind, "url", "http://127.0.0.1:9/cifar.tar.gz")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_cifar_is_read_as_published(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _cifar(tmp_path, name, monkeypatch)
    _, train_files, _ = FILES[name]
    train, test = load_named(name, tmp_path)
    assert train.labels is not None
    assert test.labels is not None
    expected = np.concatenate([_pixels(6, 3072, seed=seed) for seed in range(len(train_files))]).reshape(-1, 3, 32, 32)
    labels = [(seed + i) % 7 for seed in range(len(train_files)) for i in range(6)]
    found = {image.numpy().tobytes(): label for image, label in zip(train.images, train.labels.tolist(), strict=True)}
    assert found == {image.tobytes(): label for image, label in zip(expected, labels, strict=True)}
    assert np.array_equal(test.images.numpy(), _pixels(6, 3072, seed=len(train_files)).reshape(-1, 3, 32, 32))
    assert test.labels.tolist() == [(len(train_files) + i) % 7 for i in range(6)]  # the fine ones, not the coarse
    few, same_test = load_named(name, tmp_path, num_train=4)
    assert len(few) == 4
    assert torch.equal(same_test.images, test.images)


@pytest.mark.parametrize("name", FILES)
def test_an_archive_that_is_there_is_unpacked_without_a_network(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _cifar(tmp_path, name, monkeypatch)
    whole = load_named(name, tmp_path)[0]
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    told = refused(capsys, tmp_path, "--data.name", name, "--data.root", tmp_path)
    assert f"{folder} is not there ({FILES[name][0].filename} is there, not unpacked): set data.root" in told
    assert "set data.download true to fetch or unpack http://127.0.0.1:9/cifar.tar.gz" in told
    assert load_named(name, tmp_path, download=True)[0].fingerprint == whole.fingerprint
    assert load_named(name, tmp_path, download=True)[0].fingerprint == whole.fingerprint  # nothing left to do


class _Poison:
    """A pickle of this creates a folder when it is opened."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("download", ["false", "true"])
@pytest.mark.parametrize("name", FILES)
def test_no_pickle_is_opened_whose_checksum_is_wrong(
    tmp_path: Path, name: str, download: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _cifar(tmp_path, name, monkeypatch)
    kind, train, test = FILES[name]
    for file in (*train, test, kind.meta["filename"]):
        honest = (folder / file).read_bytes()
        (folder / file).write_bytes(pickle.dumps(_Poison(tmp_path / "executed")))
        (tmp_path / kind.filename).unlink(missing_ok=True)
        settings = ["--data.name", name, "--data.root", tmp_path, "--data.download", download]
        told = refused(capsys, tmp_path, *settings)
        assert not (tmp_path / "executed").exists()
        if download == "false":
            assert f"{folder / file} is not the published file, its MD5 is not" in told
            assert "so it was not opened: remove" in told
        else:
            assert f"{kind.__name__} could not be fetched from http://127.0.0.1:9/cifar.tar.gz" in told
        (folder / file).write_bytes(honest)
    pickle.loads(pickle.dumps(_Poison(tmp_path / "executed")))  # the condition under test: it does execute
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_poisoned_archive_is_not_unpacked(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _cifar(tmp_path, name, monkeypatch)
    archive = tmp_path / FILES[name][0].filename
    folder.rename(tmp_path / "elsewhere")
    archive.write_bytes(archive.read_bytes()[:-50])
    told = refused(capsys, tmp_path, "--data.name", name, "--data.root", tmp_path, "--data.download", "true")
    assert f"{archive} is cut short or not the published file, its MD5 is not" in told
    assert told.endswith("remove it, and it is fetched again")
    assert not folder.exists()


def test_cifar_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, tmp_path, "--data.name", "cifar10")
    assert told.startswith("data.name is 'cifar10', but data.root does not say where: set data.root to the folder that")
    told = refused(capsys, tmp_path, "--data.name", "cifar100", "--data.root", tmp_path / "none")
    assert f"{tmp_path / 'none' / 'cifar-100-python'} is not there: set data.root to the folder that holds" in told
    assert "or set data.download true to fetch or unpack https://www.cs.toronto.edu/~kriz/cifar-100-python" in told


def test_a_missing_batch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _cifar(tmp_path, "cifar10", monkeypatch)
    (folder / "data_batch_3").unlink()
    told = refused(capsys, tmp_path, "--data.name", "cifar10", "--data.root", tmp_path)
    assert f"{folder / 'data_batch_3'} is missing: set data.root" in told


def test_one_channel_where_cifar_has_three(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _cifar(tmp_path, "cifar10", monkeypatch, width=1024)
    told = refused(capsys, tmp_path, "--data.name", "cifar10", "--data.root", tmp_path)
    assert f"{folder} cannot be read as cifar10: 30 labels for 10 images of 3 x 32 x 32: its rows are not of" in told


def test_fashion_mnist_is_unpacked_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    resources = []
    for number, (name, shape) in enumerate(
        {"train-images-idx3": (9, 28, 28), "train-labels-idx1": (9,), "t10k-images-idx3": (3, 28, 28)}.items()
    ):
        resources.append(_idx(raw, name, _pixels(*shape, seed=number) % 10))
    resources.append(_idx(raw, "t10k-labels-idx1", np.arange(3, dtype=np.uint8)))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    train, test = load_named("fashion-mnist", tmp_path, download=True)
    assert (len(train), len(test)) == (9, 3)
    for _ in range(2):
        assert load_named("fashion-mnist", tmp_path, cache=tmp_path / "cache")[0].fingerprint == train.fingerprint
    assert len(list((tmp_path / "cache").glob("*/train.npy"))) == 1
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        ValueError, match=r"FashionMNIST could not be fetched from http://127\.0\.0\.1:9/ into .*; fetch"
    ):
        load_named("fashion-mnist", tmp_path, download=True)
    with pytest.raises(ValueError, match=r"data\.download needs a folder to download to: set data\.root"):
        load_named("fashion-mnist", download=True)


def _idx(folder: Path, name: str, array: np.ndarray) -> tuple[str, str]:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    (folder / f"{name}-ubyte.gz").write_bytes(content)
    return f"{name}-ubyte.gz", _md5(content)


# -- AFHQ


def _dogs(root: Path, test: str = "test") -> Path:
    """StarGAN v2's layout: 5 + 2 dogs of 96 x 96 as JPEG, a cat in each part, and a text."""
    for number in range(5):
        _save(root / "train" / "dog" / f"flickr_dog_{number:06d}.jpg", _pixels(96, 96, 3, seed=number), quality=95)
    for number in range(2):
        _save(root / test / "dog" / f"pixabay_dog_{number:06d}.jpg", _pixels(96, 96, 3, seed=50 + number), quality=95)
    for part in ("train", test):
        _save(root / part / "cat" / "flickr_cat_000000.jpg", _pixels(96, 96, 3, seed=99))
    (root / "README.txt").write_text("AFHQ")
    return root


def _zipped(folder: Path, file: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, prefix + str(path.relative_to(folder)))
    return file


@pytest.mark.parametrize("test", ["test", "val"])
def test_the_dogs_of_afhq_in_every_form(tmp_path: Path, test: str) -> None:
    afhq = _dogs(tmp_path / "data" / "afhq", test)
    zips = [_zipped(afhq, tmp_path / "a.zip"), _zipped(afhq, tmp_path / "b.zip", "afhq/")]
    dogs = afhq / "train" / "dog"
    train, held_out = load_named("afhq-dog", afhq)
    assert train.shape == held_out.shape == (3, 64, 64)
    assert (len(train), len(held_out)) == (5, 2)
    resized = convert(load_images(dogs), (3, 64, 64))  # the rule that the documentation gives
    assert {image.numpy().tobytes() for image in train.images} == {image.numpy().tobytes() for image in resized.images}
    assert torch.equal(held_out.images, convert(load_images(afhq / test / "dog"), (3, 64, 64)).images)
    for root in (afhq.parent, dogs, *zips):
        again, test_part = load_named("afhq-dog", root)
        assert (again.fingerprint, test_part.fingerprint) == (train.fingerprint, held_out.fingerprint)
    assert load_named("afhq-dog", afhq, shape=(3, 16, 16))[0].shape == (3, 16, 16)
    as_authors = transforms.Resize((64, 64))  # bilinear, antialiased, of PIL images
    theirs = {_theirs(as_authors, file) for file in dogs.iterdir()}
    for root in (afhq, dogs, *zips):
        again, test_part = load_named("afhq-dog", root, resize="bilinear")
        assert {image.numpy().tobytes() for image in again.images} == theirs
        assert test_part.fingerprint != held_out.fingerprint


def _theirs(transform: Any, file: Path) -> bytes:
    return np.asarray(transform(Image.open(file).convert("RGB"))).transpose(2, 0, 1).tobytes()


def test_dogs_alone_hold_out_what_is_not_trained_on(tmp_path: Path) -> None:
    alone = _dogs(tmp_path / "afhq") / "train" / "dog"
    alone.rename(tmp_path / "dogs")
    train, held_out = load_named("afhq-dog", tmp_path / "dogs", num_train=3)
    assert (len(train), len(held_out)) == (3, 2)


def test_dogs_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, tmp_path, "--data.name", "afhq-dog")
    assert told.startswith("data.name is 'afhq-dog', but data.root does not say where: set data.root to afhq.zip")
    assert "https://github.com/clovaai/stargan-v2 tells how to get AFHQ" in told
    (tmp_path / "afhq" / "train" / "cat").mkdir(parents=True)
    for root in (tmp_path / "none", tmp_path / "afhq"):
        told = refused(capsys, tmp_path, "--data.name", "afhq-dog", "--data.root", root)
        assert f"{root} holds no train/dog, and is no folder of images alone: set data.root to" in told
    _save(tmp_path / "cats" / "train" / "cat" / "a.jpg", _pixels(8, 8, 3))
    told = refused(
        capsys, tmp_path, "--data.name", "afhq-dog", "--data.root", _zipped(tmp_path / "cats", tmp_path / "cats.zip")
    )
    assert "cats.zip holds no images in train/dog: set data.root" in told


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_bad_image_among_dogs_is_named(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    afhq = _dogs(tmp_path / "afhq")
    _save(afhq / "train" / "dog" / "grey.jpg", _pixels(96, 96))
    whole = (afhq / "train" / "dog" / "flickr_dog_000001.jpg").read_bytes()
    (afhq / "train" / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (afhq / "train" / "dog" / "none.jpg").write_bytes(b"")
    moving = [Image.fromarray(_pixels(96, 96, 3, seed=seed)) for seed in range(2)]
    moving[0].save(afhq / "train" / "dog" / "moving.png", save_all=True, append_images=moving[1:])
    root = afhq if form == "folder" else _zipped(afhq, tmp_path / "afhq.zip")
    told = refused(capsys, tmp_path, "--data.name", "afhq-dog", "--data.root", root)
    assert "4 of 9 files cannot be used: " in told
    assert "grey.jpg is grey, where three channels are expected: give the set's own files" in told
    assert "cut.jpg cannot be read as an image" in told
    assert "none.jpg is empty, 0 bytes" in told
    assert "moving.png is animated or has pages, 2 pictures" in told


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_grey_test_dogs_are_named_as_well(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    afhq = _dogs(tmp_path / "afhq")
    _save(afhq / "test" / "dog" / "grey.jpg", _pixels(96, 96))
    root = afhq if form == "folder" else _zipped(afhq, tmp_path / "afhq.zip")
    told = refused(capsys, tmp_path, "--data.name", "afhq-dog", "--data.root", root)
    assert "1 of 3 files cannot be used: " in told
    assert "grey.jpg is grey, where three channels are expected" in told


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "too large"])
def test_damaged_archives_of_dogs(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = _zipped(_dogs(tmp_path / "afhq"), tmp_path / "afhq.zip")
    content = bytearray(file.read_bytes())
    if damage == "too large":
        monkeypatch.setattr(afhq, "_LARGEST_MEMBER", 1000)
    at = content.index((tmp_path / "afhq" / "train" / "dog" / "flickr_dog_000002.jpg").read_bytes()) + 2000
    content[at] ^= 255
    damaged = {"cut": content[: len(content) // 2], "flipped": content, "text": b"<html>404</html>"}
    file.write_bytes(damaged.get(damage, file.read_bytes()))
    told = refused(capsys, tmp_path, "--data.name", "afhq-dog", "--data.root", file)
    assert {
        "cut": "afhq.zip cannot be read, File is not a zip file: fetch the archive again",
        "flipped": "1 of 5 files cannot be used: train/dog/flickr_dog_000002.jpg cannot be read as an image, Bad CRC",
        "text": "afhq.zip cannot be read, File is not a zip file: fetch the archive again",
        "too large": "5 of 5 files cannot be used: train/dog/flickr_dog_000000.jpg is too large",
    }[damage] in told


# -- LAION-10k


def _laion(root: Path, captions: object = None) -> Path:
    for number, folder in enumerate(("0", "0", "1")):
        _save(root / folder / f"{number:05d}.jpg", _pixels(40, 50, 3, seed=number))
    _save(root / "1" / "00000.jpg", _pixels(300, 290, 3, seed=9))
    given = captions or {
        "/where/authors/had/them/0/00000.jpg": ["a dog", "one dog"],
        "/where/authors/had/them/0/00001.jpg": ["a cat"],
        "./1/00002.jpg": "ein Bär 🐻",
        "/where/authors/had/them/1/00000.jpg": ["__import__('os').mkdir('executed')"],
    }
    (root / "captions.json").write_text(json.dumps(given, ensure_ascii=False), encoding="utf-8")
    return root


def test_laion_keeps_the_captions_of_each_image(tmp_path: Path) -> None:
    train, held_out = load_named("laion-10k", _laion(tmp_path), num_train=3, planted_images=1, planted_copies=3)
    assert train.shape == (3, 256, 256)
    assert train.captions is not None
    assert held_out.captions is not None
    assert train.captions[3:] == (train.captions[0],) * 2
    files = [*(train.files or ())[:3], *(held_out.files or ())]
    assert dict(zip(files, [*train.captions[:3], *held_out.captions], strict=True)) == {
        "0/00000.jpg": ("a dog", "one dog"),
        "0/00001.jpg": ("a cat",),
        "1/00002.jpg": ("ein Bär 🐻",),
        "1/00000.jpg": ("__import__('os').mkdir('executed')",),  # a text like any other
    }
    assert load_named("laion-10k", tmp_path, shape=(3, 8, 8))[0].shape == (3, 8, 8)


def test_laion_can_be_resized_as_its_authors_did(tmp_path: Path) -> None:
    root = _laion(tmp_path / "images")
    resize = transforms.Resize(256, interpolation=transforms.InterpolationMode.BILINEAR)
    theirs = {_theirs(transforms.Compose([resize, transforms.CenterCrop(256)]), file) for file in root.rglob("*.jpg")}
    settings = override(
        load_preset("sd21-laion10k-default"), {"data.root": str(root), "data.cache": str(tmp_path / "cache")}
    )
    for _ in range(2):  # as read, and from the cache
        train, _ = load_dataset(settings.data)
        assert {image.numpy().tobytes() for image in train.images} == theirs
    bicubic = override(settings, {"data.resize": "bicubic"})
    assert {image.numpy().tobytes() for image in load_dataset(bicubic.data)[0].images}.isdisjoint(theirs)
    assert len(list((tmp_path / "cache").glob("*/train.npy"))) == 2


@pytest.mark.parametrize("captions", ["none", "captions.json", "txt"])
def test_a_folder_is_resized_as_asked(tmp_path: Path, captions: str) -> None:
    root = _laion(tmp_path)
    for file in root.rglob("*.jpg"):
        file.with_suffix(".txt").write_text("a dog")
    how: dict[str, Any] = {"shape": (3, 8, 8), "captions": None if captions == "none" else captions}
    found = {way: load_named("folder", root, resize=way, **how)[0].fingerprint for way in ("bicubic", "bilinear")}
    assert found["bicubic"] == load_named("folder", root, **how)[0].fingerprint
    assert found["bicubic"] != found["bilinear"]


def test_captions_may_lie_elsewhere(tmp_path: Path) -> None:
    root = _laion(tmp_path / "images")
    (root / "captions.json").rename(tmp_path / "blip.json")
    assert load_named("laion-10k", root, captions=str(tmp_path / "blip.json"))[0].captions is not None


GOOD = {"0/00000.jpg": "a", "0/00001.jpg": "b", "1/00002.jpg": "c", "1/00000.jpg": "d"}


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        (
            {key: GOOD[key] for key in list(GOOD)[:3]},
            "do not match: 1 captions fit more than one image, such as 0/00000",
        ),
        (
            {key: GOOD[key] for key in list(GOOD) if "2" not in key},
            "1 images have no captions of their own, such as 1/0",
        ),
        (GOOD | {"2/9.jpg": "e"}, "do not match: 1 captions have no image, such as 2/9.jpg"),
        (GOOD | {"0/00001.jpg": ""}, "0/00001.jpg has no caption, or one that is empty or no text: give it a text"),
        (GOOD | {"0/00001.jpg": []}, "0/00001.jpg has no caption, or one that is empty"),
        (GOOD | {"0/00001.jpg": ["a", 3]}, "0/00001.jpg has no caption, or one that is empty or no text"),
        (GOOD | {"0/00001.jpg": " "}, "0/00001.jpg has no caption, or one that is empty or no text"),
        (["a"], "captions.json is not a JSON object of paths and captions"),
    ],
)
def test_captions_that_do_not_fit(
    tmp_path: Path, captions: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _laion(tmp_path / "images", captions)
    assert message in refused(capsys, tmp_path, "--data.name", "laion-10k", "--data.root", root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "Bär"}'.encode("latin-1"), "captions.json is not UTF-8, at byte 8: write it as JSON in UTF-8"),
        (b'{"a": ', "captions.json is damaged, it is not JSON"),
        (b"[" * 100_000, "captions.json is damaged, it is nested too deeply"),
        (rb'{"a": "half \ud83d"}', "captions.json is damaged, '\\ud83d' stands in a text"),
        (b'{"a": "x", "a": "y"}', "captions.json is damaged, a stands there more than once"),
    ],
    ids=["latin-1", "cut", "deep", "half", "twice"],
)
def test_caption_files_that_cannot_be_read(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = _laion(tmp_path / "images")
    (root / "captions.json").write_bytes(content)
    assert message in refused(capsys, tmp_path, "--data.name", "laion-10k", "--data.root", root)


def test_captions_or_images_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = ["--data.name", "laion-10k"]
    told = refused(capsys, tmp_path, *name)
    assert (
        "data.root does not say where: set data.root to the folder of images; https://github.com/somepago/DCR" in told
    )
    assert "is no folder: set data.root" in refused(capsys, tmp_path, *name, "--data.root", tmp_path / "none")
    root = _laion(tmp_path / "images")
    told = refused(capsys, tmp_path, *name, "--data.root", root, "--data.captions", tmp_path / "none.json")
    assert "none.json is not there: give the captions, one JSON file in data.root or as data.captions" in told
    (root / "second.json").write_text("{}")
    assert "images holds 2 .json files: give the cap" in refused(capsys, tmp_path, *name, "--data.root", root)


# -- folders


def test_classes_of_a_folder_are_its_subfolders(tmp_path: Path) -> None:
    for number in range(9):
        _save(tmp_path / "bca"[number % 3] / "deeper" / f"{number}.png", _pixels(4, 4, seed=number))
    images, _ = load_named("folder", tmp_path, classes="folders")
    assert images.labels is not None
    assert ["abc"[label] for label in images.labels] == [file[0] for file in images.files or ()]
    assert images.labels.dtype == torch.int64
    assert load_named("folder", tmp_path)[0].labels is None


def test_folders_without_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _save(tmp_path / "set" / "a" / "1.png", _pixels(4, 4))
    (tmp_path / "set" / "b").mkdir()
    settings = ["--data.name", "folder", "--data.root", tmp_path / "set", "--data.classes"]
    told = refused(capsys, tmp_path, *settings, "folders")
    assert told.endswith("class b has no images: remove the folder or fill it")
    _save(tmp_path / "set" / "2.png", _pixels(4, 4))
    told = refused(capsys, tmp_path, *settings, "folders")
    assert "2.png stands in no subfolder, so data.classes 'folders' gives it no class" in told
    told = refused(capsys, tmp_path, *settings, "names")
    assert told.startswith("setting data.classes: input should be 'folders' (it is 'names')")
    np.save(tmp_path / "a.npy", _pixels(2, 5, 5))
    told = refused(
        capsys, tmp_path, "--data.name", "folder", "--data.root", tmp_path / "a.npy", *settings[4:], "folders"
    )
    assert "a.npy is no folder: data.classes 'folders' needs one" in told


def test_mixed_sizes_are_refused_or_brought_to_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _save(tmp_path / "set" / "a.png", _pixels(8, 8, 3))
    _save(tmp_path / "set" / "b.png", _pixels(9, 8, 3))
    settings = ["--data.name", "folder", "--data.root", tmp_path / "set"]
    told = refused(capsys, tmp_path, *settings)
    assert "1 of 2 images have another size: b.png is 8 x 9, a.png is 8 x 8" in told
    assert "a training by data.crop or data.convert_to (--data.convert_to 3x8x8); all are listed in " in told
    told = refused(capsys, tmp_path, *settings, "--data.convert-to", "2x8x8")
    assert told.startswith("setting data.convert_to: string should match pattern")
    changed = override(validate({}), {"data.name": "folder", "data.root": str(settings[3]), "data.convert-to": "1x6x6"})
    assert load_dataset(changed.data)[0].shape == (1, 6, 6)


def test_fewer_images_than_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        _save(tmp_path / "set" / f"{number}.png", _pixels(8, 8, seed=number))
    settings = ["--data.name", "folder", "--data.root", tmp_path / "set", "--method.members", "4"]
    assert "cannot cut 3 images into 4 shards: use 1 to 3" in refused(capsys, tmp_path, *settings)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("download", "true", "digits"),
        ("classes", "folders", "digits"),
        ("captions", "a.json", "digits"),
        ("subset", "x", "cifar10"),
        ("train_split", "x", "folder"),
        ("held_out_split", "x", "folder"),
        ("image_column", "x", "afhq-dog"),
        ("label_column", "x", "folder"),
        ("caption_column", "x", "folder"),
    ],
)
def test_no_option_is_ignored(
    tmp_path: Path, option: str, value: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, tmp_path, "--data.name", name, f"--data.{option}", value)
    assert told.startswith(f"data.{option} has no effect on {name}, it is for ")


def test_images_of_any_set_can_be_converted() -> None:
    assert load_named("digits", num_train=9, shape=(3, 16, 16))[1].shape == (3, 16, 16)
    by = [load_named("digits", num_train=9, shape=(1, 5, 5), resize=way) for way in ("bicubic", "bilinear")]
    assert all(one.fingerprint != other.fingerprint for one, other in zip(*by, strict=True))


def test_captions_go_where_their_images_go() -> None:
    images = ImageSet(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), "a", captions=(("a",), ("b", "c"), ("d",)))
    assert images.take(torch.tensor([2, 1, 1])).captions == (("d",), ("b", "c"), ("b", "c"))
    assert convert(images, (1, 4, 4)).captions == images.captions


# -- whole runs


TINY = {
    "model.channels": "8",
    "model.multipliers": "1,2",
    "model.blocks": "1",
    "model.attention": "",
    "model.groups": "4",
    "method.members": "2",
    "method.rounds": "2",
    "train.steps": "2",
    "train.batch_size": "4",
    "run.preview_images": "0",
    "run.threads": "1",
    "run.device": "cpu",
}


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "afhq-dog", "laion-10k", "folder"])
def test_a_run_on_a_miniature_of_each_set(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"data.name": name, "data.root": str(tmp_path / "set"), "data.cache": str(tmp_path / "cache")}
    if name in FILES:
        _cifar(tmp_path / "set", name, monkeypatch)
    elif name == "afhq-dog":
        data["data.root"] = str(_zipped(_dogs(tmp_path / "afhq"), tmp_path / "afhq.zip"))
    elif name == "laion-10k":
        _laion(tmp_path / "set")
        data["data.convert_to"] = "3x32x32"
    else:
        _dogs(tmp_path / "set")
        data |= {"data.classes": "folders", "data.convert_to": "3x16x16", "data.num_train": "5"}
    settings = override(validate({}), TINY | data)
    counts = {"cifar10": (30, 6), "cifar100": (6, 6), "afhq-dog": (5, 2), "laion-10k": (4, 0), "folder": (5, 4)}[name]
    for _ in range(2):  # the second time from the cache, and nothing is left to train
        summary = start(settings, tmp_path / "run", lambda steps: None)
        assert (summary["training_images"], summary["held_out_images"]) == counts
    assert len(list((tmp_path / "cache").glob("*/train.npy"))) == 1
    train, held_out = load_part(str(tmp_path / "run"), "train")[0], load_dataset(settings.data)[1]
    plain = load_dataset(settings.data.model_copy(update={"cache": None}))
    assert (train.fingerprint, held_out.fingerprint) == (plain[0].fingerprint, plain[1].fingerprint)


def test_the_cache_does_not_hide_that_a_set_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _cifar(tmp_path / "set", "cifar10", monkeypatch)
    settings: dict[str, Any] = {"name": "cifar10", "root": tmp_path / "set", "cache": tmp_path / "cache"}
    folder.rename(tmp_path / "elsewhere")
    load_named(**settings, download=True)
    assert not (tmp_path / "cache").exists()  # it was not known by its files
    load_named(**settings)
    assert len(list((tmp_path / "cache").glob("*/train.npy"))) == 1
    shutil.rmtree(folder)
    ours = [word for name, value in settings.items() for word in (f"--data.{name}", value)]
    assert f"{folder} is not there" in refused(capsys, tmp_path, *ours)
