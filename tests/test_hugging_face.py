"""Datasets in the layout of Hugging Face, from local folders, without a network."""

import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iet_agc.data.conversion import Resize, convert
from iet_agc.data.mending import UnusableFilesError
from tests.commands import refused
from tests.image_sets import load_named

pytest.importorskip("datasets")

WAYS: tuple[Resize, ...] = ("bicubic", "bilinear")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = importlib.import_module("datasets").config
    importlib.import_module("datasets").disable_progress_bars()
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(importlib.import_module("huggingface_hub").constants, "HF_HUB_OFFLINE", True)


def _pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _encoded(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def _parquet(folder: Path, images: list[bytes | None], part: str = "train", **columns: Any) -> Path:
    """A dataset as the hub keeps it: data/PART-00000-of-00001.parquet with encoded images."""
    library = importlib.import_module("datasets")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    rows = [None if image is None else {"bytes": image, "path": None} for image in images]
    features = {"img": library.Image()}
    table = library.Dataset.from_dict({"img": rows}, features=library.Features(features))
    for name, values in columns.items():
        table = table.add_column(name, values)
    table.to_parquet(str(folder / "data" / f"{part}-00000-of-00001.parquet"))
    return folder


def _good(folder: Path, **columns: Any) -> Path:
    return _parquet(folder, [_encoded(_pixels(6, 6, 3, seed=seed)) for seed in range(5)], **columns)


def _ours(**options: Any) -> list[str]:
    return [word for name, value in options.items() for word in (f"--data.{name}", str(value))]


def test_parquet_files_with_labels(tmp_path: Path) -> None:
    root = _good(tmp_path / "set", fine=[4, 0, 1, 1, 3])
    train, held_out = load_named("hugging-face", root, image_column="img", label_column="fine", num_train=4)
    assert (len(train), len(held_out)) == (4, 1)
    found = {}
    for part in (train, held_out):
        assert part.labels is not None
        assert part.labels.dtype == torch.int64
        found |= {image.numpy().tobytes(): int(label) for image, label in zip(part.images, part.labels, strict=True)}
    expected = {_pixels(6, 6, 3, seed=seed).transpose(2, 0, 1).tobytes(): [4, 0, 1, 1, 3][seed] for seed in range(5)}
    assert found == expected
    assert load_named("hugging-face", root, image_column="img")[0].labels is None


def test_images_are_resized_as_asked(tmp_path: Path) -> None:
    root = _good(tmp_path / "set")
    found = [load_named("hugging-face", root, image_column="img", shape=(3, 4, 4), resize=way)[0] for way in WAYS]
    assert found[0].fingerprint != found[1].fingerprint
    plain, _ = load_named("hugging-face", root, image_column="img")
    for way, images in zip(WAYS, found, strict=True):
        assert torch.equal(images.images, convert(plain, (3, 4, 4), way).images)


def test_captions_in_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a", "b", "ü 🐻", "d", "__import__('os')"]
    several = [[text, "x"] for text in texts]
    root = _good(tmp_path / "set", text=texts, several=several, empty=[*texts[:4], " "])
    options: dict[str, Any] = {"image_column": "img", "num_train": 5}
    for column, expected in (("text", [(text,) for text in texts]), ("several", [tuple(some) for some in several])):
        images, _ = load_named("hugging-face", root, caption_column=column, **options)
        assert images.captions is not None
        found = {image.numpy().tobytes(): some for image, some in zip(images.images, images.captions, strict=True)}
        assert [found[_pixels(6, 6, 3, seed=seed).transpose(2, 0, 1).tobytes()] for seed in range(5)] == expected
    assert load_named("hugging-face", root, **options)[0].captions is None
    ours = {"name": "hugging-face", "root": root, "image_column": "img"}
    told = refused(capsys, tmp_path, *_ours(**ours, caption_column="empty"))
    assert "column 'empty' of" in told
    assert "row 4 has no caption, or one that is empty or no text: give it a text, or a list of them" in told
    assert "has no column 'caption'" in refused(capsys, tmp_path, *_ours(**ours, caption_column="caption"))


def test_rows_that_are_left_out_take_their_labels_and_captions_along(tmp_path: Path) -> None:
    images = [_encoded(_pixels(6, 6, 3, seed=seed)) for seed in range(5)]
    bad: list[bytes | None] = [images[0], None, images[2], images[3][:40], images[4]]
    root = _parquet(tmp_path / "set", bad, fine=[4, 0, 1, 2, 3], text=list("abcde"))
    options: dict[str, Any] = {"image_column": "img", "label_column": "fine", "caption_column": "text", "num_train": 3}
    with pytest.raises(UnusableFilesError, match="2 of 5 files cannot be used"):
        load_named("hugging-face", root, **options)
    train, _ = load_named("hugging-face", root, **options, on_bad="skip")
    assert train.labels is not None
    assert train.captions is not None
    rows = zip(train.images, train.labels.tolist(), train.captions, strict=True)
    found = {image.numpy().tobytes(): (label, texts) for image, label, texts in rows}
    expected = {0: (4, ("a",)), 2: (1, ("c",)), 4: (3, ("e",))}
    assert found == {_pixels(6, 6, 3, seed=seed).transpose(2, 0, 1).tobytes(): row for seed, row in expected.items()}
    assert [(file.path, file.kind) for file in train.treated] == [
        ("row 0000001", "missing"),
        ("row 0000003", "damaged"),
    ]


def test_two_splits(tmp_path: Path) -> None:
    root = _good(tmp_path / "set")
    _parquet(root, [_encoded(_pixels(6, 6, 3, seed=9))], part="test")
    train, held_out = load_named("hugging-face", root, image_column="img", held_out_split="test")
    assert (len(train), len(held_out)) == (5, 1)
    assert np.array_equal(held_out.images[0].permute(1, 2, 0).numpy(), _pixels(6, 6, 3, seed=9))
    assert len(load_named("hugging-face", root, image_column="img", train_split="test")[0]) == 1


def test_a_folder_of_images_with_classes(tmp_path: Path) -> None:
    for part, count in (("train", 4), ("test", 2)):
        for number in range(count):
            file = tmp_path / "set" / part / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_pixels(4, 4, 3, seed=number)).save(file)
    train, held_out = load_named(
        "hugging-face", tmp_path / "set", held_out_split="test", label_column="label", num_train=4
    )
    assert train.labels is not None
    assert sorted(train.labels.tolist()) == [0, 0, 1, 1]
    assert len(held_out) == 2


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    library = importlib.import_module("datasets")
    table = library.Dataset.from_dict(
        {"image": [{"bytes": _encoded(_pixels(4, 4)), "path": None}]}, features=library.Features(image=library.Image())
    )
    table.save_to_disk(str(tmp_path / "alone"))
    library.DatasetDict(train=table, test=table).save_to_disk(str(tmp_path / "both"))
    assert load_named("hugging-face", tmp_path / "alone")[0].shape == (1, 4, 4)
    assert len(load_named("hugging-face", tmp_path / "both", held_out_split="test")[1]) == 1
    with pytest.raises(ValueError, match="alone has no split 'test', it has train: choose one of them"):
        load_named("hugging-face", tmp_path / "alone", held_out_split="test")


def test_configurations(tmp_path: Path) -> None:
    root = _good(tmp_path / "set")
    (root / "other").mkdir()
    (root / "other" / "train.parquet").write_bytes((root / "data" / "train-00000-of-00001.parquet").read_bytes())
    (root / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files: data/*.parquet\n- config_name: b\n  data_files: other/*\n---\n"
    )
    with pytest.raises(ValueError, match="Config name is missing"):
        load_named("hugging-face", root, image_column="img")
    assert len(load_named("hugging-face", root, image_column="img", subset="b")[0]) == 5


def test_cached_as_uncached(tmp_path: Path) -> None:
    root = _good(tmp_path / "set", fine=[4, 0, 1, 1, 3])
    options: dict[str, Any] = {"image_column": "img", "label_column": "fine"}
    plain = load_named("hugging-face", root, **options)[0]
    for _ in range(2):
        kept = load_named("hugging-face", root, cache=tmp_path / "cache", **options)[0]
        assert kept.fingerprint == plain.fingerprint
        assert torch.equal(kept.labels, plain.labels)  # pyright: ignore[reportArgumentType]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = _good(tmp_path / "set", fine=["a", "b", "c", "d", "e"], neg=[0, 1, 2, -1, 0])
    ours = {"name": "hugging-face", "root": root, "image_column": "img"}
    for changes, message in (
        ({"root": "none"}, "data.name is 'hugging-face', but data.root does not say which: set it to a local folder"),
        ({"image_column": "none"}, "set has no column 'image', it has 'img', 'fine', 'neg': set data.image_column"),
        ({"image_column": "fine"}, "column 'fine' of", ),
        ({"label_column": "fine"}, "holds 'a', which is no class: classes are whole numbers from 0"),
        ({"label_column": "neg"}, "holds -1, which is no class"),
        ({"label_column": "class"}, "set has no column 'class', it has"),
        ({"train_split": "all"}, "set has no split 'all', it has train: choose one of them"),
        ({"subset": "b"}, "BuilderConfig 'b' not found"),
        ({"root": tmp_path / "nowhere"}, "nowhere is no local folder of a dataset, nor can it be got from the hub"),
        ({"root": "someone/something"}, "someone/something is no local folder of a dataset, nor can it be got"),
    ):  # fmt: skip
        assert message in refused(capsys, tmp_path, *_ours(**(ours | changes)))


def test_bad_images_are_named_by_their_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = _encoded(_pixels(6, 6, 3))
    moving = io.BytesIO()
    first, second = (Image.fromarray(_pixels(6, 6, 3, seed=seed)) for seed in range(2))
    first.save(moving, format="PNG", save_all=True, append_images=[second])
    root = _parquet(tmp_path / "set", [whole, whole[:60], None, moving.getvalue()])
    told = refused(capsys, tmp_path, *_ours(name="hugging-face", root=root, image_column="img"))
    assert "3 of 4 files cannot be used: " in told
    (listed,) = tmp_path.rglob("*mending.csv")
    rows = listed.read_text(encoding="utf-8")
    assert "row 0000001,damaged,refused," in rows
    assert "holds no image: leave the row out" in rows
    assert "row 0000003,animated,refused," in rows
    sizes = _parquet(tmp_path / "sizes", [whole, _encoded(_pixels(6, 7, 3))])
    told = refused(capsys, tmp_path, *_ours(name="hugging-face", root=sizes, image_column="img"))
    assert "row 0000001 is 7 x 6, row 0000000 is 6 x 6" in told


def test_readers_that_could_run_something_are_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"image": "http://127.0.0.1:9/a.png"}) + "\n")
    told = refused(capsys, tmp_path, *_ours(name="hugging-face", root=tmp_path / "set"))
    assert "is read by the 'json' reader of 'datasets': convert it to parquet files" in told
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    refused(capsys, tmp_path, *_ours(name="hugging-face", root=tmp_path / "code"))
    assert not (tmp_path / "executed").exists()


def test_the_extra_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    told = refused(capsys, tmp_path, *_ours(name="hugging-face", root=tmp_path))
    assert told.endswith("needs the package datasets: pip install 'iet-agc[hf]'")


def test_a_dataset_of_the_hub_is_taken_at_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the library is asked for, and a cache of decoded images tells apart."""
    library = importlib.import_module("datasets")
    honest, asked = library.load_dataset_builder, []
    places = {"v1": _good(tmp_path / "v1"), None: _parquet(tmp_path / "main", [_encoded(_pixels(6, 6, 3))] * 4)}

    def builder(path: str, revision: str | None, **options: Any) -> Any:
        asked.append((path, revision))
        return honest(str(places[revision]), **options)

    monkeypatch.setattr(library, "load_dataset_builder", builder)
    monkeypatch.chdir(tmp_path)
    for revision, count in (("v1", 5), (None, 4)):
        for _ in range(2):
            options: Any = {"image_column": "img", "revision": revision}
            train, _ = load_named("hugging-face", "someone/photos", cache=tmp_path / "cache", **options)
            assert len(train) == count
            assert asked[-1] == ("someone/photos", revision)
    with pytest.raises(ValueError, match=r"data.revision 'v1' has no effect on .*main, which is no dataset of the hub"):
        load_named("hugging-face", places[None], image_column="img", revision="v1")
    with pytest.raises(ValueError, match=r"data.revision has no effect on digits, it is for hugging-face"):
        load_named("digits", revision="v1")
