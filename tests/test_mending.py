"""Images are mended only where it is asked for: counted, listed, and equal to what a person would have done by hand."""

import csv
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from iet_agc.auditing.schema import LeftOut, read_record
from iet_agc.config.data_settings import FolderData
from iet_agc.data.datasets.registry import _source, load_dataset
from iet_agc.data.folders import load_images
from iet_agc.data.mending import Mending, TreatedFile, UnusableFilesError, counts, list_beside
from iet_agc.runtime.errors import UserError
from tests.commands import call

SIZE = 8


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (SIZE, SIZE, 3), dtype=np.uint8)


def turned(file: Path, orientation: int, array: np.ndarray) -> None:
    """A PNG: exact, and with EXIF data as a JPEG has them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(file, exif=exif)


def mixed(folder: Path, first: int = 0) -> Path:
    """Four good images, one of each kind that can be mended, three that cannot be, and a text file, which is none."""
    folder.mkdir()
    for seed in range(4):
        Image.fromarray(pixels(first + seed)).save(folder / f"good{seed}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(first + 4)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(pixels(first + 5, SIZE, SIZE, 4)).save(folder / "clear.png")
    Image.fromarray(pixels(first + 6, SIZE, SIZE).astype(np.uint16) * 257).save(folder / "deep.png")
    stream = io.BytesIO()
    Image.fromarray(pixels(first + 7, 64, 64, 3)).save(stream, "PNG")
    (folder / "cut.png").write_bytes(stream.getvalue()[:4000])
    (folder / "page.jpg").write_text("not found")
    (folder / "notes.txt").write_text("no image")
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_unasked_a_mixed_folder_is_refused_with_what_would_mend_it(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "mixed")
    with pytest.raises(UnusableFilesError, match="5 of 9 files cannot be used: ") as error:
        load_images(folder)
    assert str(error.value).endswith(
        "; 2 damaged, 1 over-8-bits, 1 transparent (mended by background white), 1 turned (mended by orient true); "
        "on_bad skip leaves such files out"
    )
    assert error.value.mends == {"background": "white", "orient": "true", "on_bad": "skip"}
    assert [(file.path, file.kind, file.done) for file in error.value.files] == [
        ("clear.png", "transparent", "refused"),
        ("cut.png", "damaged", "refused"),
        ("deep.png", "over-8-bits", "refused"),
        ("page.jpg", "damaged", "refused"),
        ("turned.jpg", "turned", "refused"),
    ]


def test_each_option_mends_its_kind_and_no_other(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "mixed")
    for mending, kinds in (
        (Mending(orient=True), {"damaged", "over-8-bits", "transparent"}),
        (Mending(background="white"), {"damaged", "over-8-bits", "turned"}),
        (Mending(orient=True, background="black"), {"damaged", "over-8-bits"}),
    ):
        with pytest.raises(UnusableFilesError) as error:
            load_images(folder, mending=mending)
        assert {file.kind for file in error.value.files} == kinds
    images = load_images(folder, mending=Mending(on_bad="skip"))
    assert images.files == tuple(f"good{seed}.png" for seed in range(4))
    assert counts(images.treated) == {
        "left out: damaged": 2,
        "left out: over-8-bits": 1,
        "left out: transparent": 1,
        "left out: turned": 1,
    }
    images = load_images(folder, mending=Mending(orient=True, background="white", on_bad="skip"))
    assert images.files == ("clear.png", *(f"good{seed}.png" for seed in range(4)), "turned.jpg")
    assert counts(images.treated) == {
        "left out: damaged": 2,
        "left out: over-8-bits": 1,
        "oriented": 1,
        "put on white": 1,
    }
    assert [file.path for file in images.treated] == ["clear.png", "cut.png", "deep.png", "page.jpg", "turned.jpg"]
    assert images.left_out == ("cut.png", "deep.png", "page.jpg")


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("shape", [None, (3, 6, 6)], ids=str)
def test_every_orientation_is_undone(tmp_path: Path, orientation: int, shape: tuple[int, int, int] | None) -> None:
    upright = pixels(0, 6, 10, 3)
    # how a camera stores it: the inverse of what the orientation says, by the EXIF standard's words
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    turned(tmp_path / "a" / "x.png", orientation, np.ascontiguousarray(stored))
    Image.fromarray(upright).save(tmp_path / "b" / "x.png")
    mended = load_images(tmp_path / "a", shape, mending=Mending(orient=True))
    assert torch.equal(mended.images, load_images(tmp_path / "b", shape).images)
    assert counts(mended.treated) == {"oriented": 1}


@pytest.mark.parametrize(("background", "colour"), [("white", 255), ("black", 0), ("#2040FF", (32, 64, 255))])
def test_a_background_stands_where_an_image_is_transparent(tmp_path: Path, background: str, colour: object) -> None:
    array = pixels(0, SIZE, SIZE, 4)
    array[..., 3] = np.where(np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 3 == 0, 0, 255)
    array[0, 0, 3] = 128
    Image.fromarray(array).save(tmp_path / "a.png")
    found = load_images(tmp_path, mending=Mending(background=background)).images[0].permute(1, 2, 0).numpy()
    clear, opaque = array[..., 3] == 0, array[..., 3] == 255
    assert (found[clear] == np.array(colour)).all()
    assert (found[opaque] == array[opaque][:, :3]).all()
    half = array[0, 0, :3].astype(float) * 128 / 255 + np.array(colour) * 127 / 255
    assert np.abs(found[0, 0] - half).max() <= 1


def test_grey_stays_grey_on_grey_and_becomes_colour_on_colour(tmp_path: Path) -> None:
    Image.fromarray(pixels(0, SIZE, SIZE, 2), "LA").save(tmp_path / "a.png")
    assert load_images(tmp_path, mending=Mending(background="white")).shape == (1, SIZE, SIZE)
    assert load_images(tmp_path, mending=Mending(background="#ff0000")).shape == (3, SIZE, SIZE)
    opaque = np.stack([pixels(0, SIZE, SIZE), np.full((SIZE, SIZE), 255, np.uint8)], -1)
    Image.fromarray(opaque, "LA").save(tmp_path / "a.png")
    assert load_images(tmp_path, mending=Mending(background="#ff0000")).shape == (1, SIZE, SIZE)


@pytest.mark.parametrize(("bits", "row", "key"), [(4, b"\0\xf7", 15), (2, b"\0\xd0", 3)])
def test_a_transparent_value_of_few_bits_is_widened_with_the_pixels(
    tmp_path: Path, bits: int, row: bytes, key: int
) -> None:
    """Two pixels, of which the first has the transparent value: on black it is black, though it is the lightest."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)), (b"tRNS", struct.pack(">H", key))]
    chunks += [(b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    content = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    (tmp_path / "a.png").write_bytes(b"".join([b"\x89PNG\r\n\x1a\n", *content]))
    found = load_images(tmp_path, mending=Mending(background="black")).images.flatten().tolist()
    assert found[0] == 0
    assert found[1] > 0


@pytest.mark.parametrize("shape", [None, (3, 4, 4)], ids=str)
def test_a_folder_that_needs_no_mending_is_the_same_to_the_bit(
    tmp_path: Path, shape: tuple[int, int, int] | None
) -> None:
    for seed in range(5):
        Image.fromarray(pixels(seed)).save(tmp_path / f"{seed}.png")
    plain = load_images(tmp_path, shape)
    asked = load_images(tmp_path, shape, mending=Mending(True, "#ff0000", "skip"))
    assert torch.equal(plain.images, asked.images)
    assert (plain.files, plain.treated) == (asked.files, asked.treated)


@pytest.mark.parametrize("shape", [None, (1, 4, 4)], ids=str)
def test_what_is_left_out_has_no_say(tmp_path: Path, shape: tuple[int, int, int] | None) -> None:
    """A cut colour image of another size among grey ones: they stay grey, of their own size."""
    for seed in range(3):
        Image.fromarray(pixels(seed, SIZE, SIZE)).save(tmp_path / f"{seed}.png")
    alone = load_images(tmp_path, shape).images
    stream = io.BytesIO()
    Image.fromarray(pixels(7, 64, 64, 3)).save(stream, "PNG")
    (tmp_path / "1cut.png").write_bytes(stream.getvalue()[:4000])
    images = load_images(tmp_path, shape, mending=Mending(on_bad="skip"))
    assert torch.equal(images.images, alone)
    assert images.left_out == ("1cut.png",)


def test_other_sizes_are_listed_and_never_left_out(tmp_path: Path) -> None:
    for seed in range(3):
        Image.fromarray(pixels(seed)).save(tmp_path / f"{seed}.png")
    Image.fromarray(pixels(7, 4, 6, 3)).save(tmp_path / "small.png")
    for mending in (Mending(), Mending(on_bad="skip")):
        with pytest.raises(UnusableFilesError, match=r"1 of 4 images have another size.*convert_to") as error:
            load_images(tmp_path, mending=mending)
        assert [(file.path, file.kind) for file in error.value.files] == [("small.png", "other-size")]


def test_two_images_must_remain(tmp_path: Path) -> None:
    Image.fromarray(pixels(0)).save(tmp_path / "good.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(UnusableFilesError, match=r"1 of 2 files cannot be used: .*fewer than 2 images remain"):
        load_images(tmp_path, mending=Mending(on_bad="skip"))
    Image.fromarray(pixels(1)).save(tmp_path / "other.png")
    assert len(load_images(tmp_path, mending=Mending(on_bad="skip"))) == 2


def test_memory_and_closed_folders_are_no_reason_to_leave_images_out() -> None:
    for kind in ("out-of-memory", "folder", "other-size"):
        assert not Mending(on_bad="skip").leaves_out(kind)
    assert Mending(on_bad="skip").leaves_out("damaged")
    assert not Mending().leaves_out("damaged")


@pytest.mark.parametrize("options", [{"background": "red"}, {"background": "#fff"}, {"on_bad": "ignore"}])
def test_other_values_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))} .* is not") as error:
        Mending(**options)  # pyright: ignore[reportArgumentType]
    assert error.value.field == next(iter(options))


def test_the_list_stands_beside_the_output_and_never_among_the_images(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    error = UnusableFilesError("bad", str(images), [TreatedFile("a, b.png", "damaged", "refused", "is cut")], {})
    beside = list_beside(error, tmp_path / "runs" / "one")
    assert beside == tmp_path / "runs" / "one.mending.csv"
    assert rows(beside) == [
        {"set": str(images), "path": "a, b.png", "kind": "damaged", "done": "refused", "reason": "is cut"}
    ]
    for out in (None, images / "run", images):
        place = list_beside(error, out)
        assert rows(place) == rows(beside)
        assert not place.is_relative_to(images)
        place.unlink()
    assert list(images.iterdir()) == []


# -- settings of a training, and what comes with images


def data(folder: Path, **options: object) -> FolderData:
    return FolderData.model_validate({"root": str(folder), **options})


def test_settings_mend_a_training_set(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "mixed")
    options: dict[str, object] = {"orient": True, "background": "white", "on_bad": "skip"}
    train, held_out = load_dataset(data(folder, **options, num_train=4))
    assert (len(train), len(held_out)) == (4, 2)
    mending = Mending(orient=True, background="white", on_bad="skip")
    assert train.treated == held_out.treated == load_images(folder, mending=mending).treated
    for option in options:  # each is needed
        left = {name: value for name, value in options.items() if name != option}
        if option == "on_bad":
            with pytest.raises(UnusableFilesError, match="3 of 9 files"):
                load_dataset(data(folder, **left))
        else:
            assert len(load_dataset(data(folder, **left))[0]) == 5


def test_a_cache_keeps_what_was_done_and_tells_mended_sets_apart(tmp_path: Path) -> None:
    folder, cache = mixed(tmp_path / "mixed"), str(tmp_path / "cache")
    found = []
    for options in ({"on_bad": "skip"}, {"on_bad": "skip", "orient": True}):
        plain = load_dataset(data(folder, **options))[0]
        for _ in range(2):
            kept = load_dataset(data(folder, **options, cache=cache))[0]
            assert torch.equal(kept.images, plain.images)
            assert kept.treated == plain.treated
        found.append(len(plain))
    assert found == [4, 5]
    assert len(list(Path(cache).glob("*.lock"))) == 2


def test_a_source_that_is_not_mended_has_the_cache_of_before(tmp_path: Path) -> None:
    mixed(tmp_path / "mixed")
    source = _source(data(tmp_path / "mixed", classes="folders"))
    assert source is not None
    assert source["options"] == {"classes": "folders", "resize": "bicubic"}


@pytest.mark.parametrize("captions", ["txt", "metadata.jsonl", "captions.json"])
def test_captions_of_images_that_are_left_out_are_left_out(tmp_path: Path, captions: str) -> None:
    folder = mixed(tmp_path / "mixed")
    (folder / "notes.txt").unlink()
    names = [file.name for file in sorted(folder.iterdir())]
    if captions == "txt":
        for name in names:
            (folder / name).with_suffix(".txt").write_text(f"about {name}")
    elif captions == "metadata.jsonl":
        lines = [json.dumps({"file_name": name, "text": f"about {name}"}) for name in names]
        (folder / captions).write_text("\n".join(lines))
    else:
        (folder / captions).write_text(json.dumps({f"/elsewhere/{name}": f"about {name}" for name in names}))
    images = load_dataset(data(folder, captions=captions, on_bad="skip", orient=True))[0]
    assert images.captions == tuple((f"about {name}",) for name in images.files or ())
    assert len(images) == 5
    if captions == "txt":  # others without an image are an error as before
        (folder / "more.txt").write_text("about nothing")
        with pytest.raises(UserError, match=r"1 captions have no image, such as more\.txt"):
            load_dataset(data(folder, captions=captions, on_bad="skip", orient=True))


def test_an_array_file_has_nothing_to_mend(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(0, 4, 3, SIZE, SIZE))
    assert len(load_dataset(data(tmp_path / "a.npy"))[0]) == 4
    with pytest.raises(UserError, match=r"is an array file, on which data\.orient has no effect: leave it out"):
        load_dataset(data(tmp_path / "a.npy", orient=True))


# -- verbs


TINY = (
    *("--model.channels", 8, "--model.multipliers", 1, "--model.groups", 4, "--model.attention", ""),
    *("--train.batch_size", 4, "--train.steps", 1, "--method.members", 1, "--method.rounds", 1, "--run.threads", 1),
    *("--run.preview_images", 0, "--data.planted_images", 0, "--data.planted_copies", 1, "--data.num_train", "none"),
)


def train(folder: Path, run: Path, *more: object) -> tuple[object, ...]:
    return ("train", "digits-default", "--out", run, *TINY, "--data.name", "folder", "--data.root", folder, *more)


def test_a_training_lists_what_it_refuses_and_what_it_mended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, run = mixed(tmp_path / "mixed"), tmp_path / "run"
    status, _, told = call(capsys, *train(folder, run))
    assert status == 2
    beside = tmp_path / "run.mending.csv"
    assert told.splitlines()[-1] == (
        f"iet-agc: {folder}: 5 of 9 files cannot be used: 2 damaged, 1 over-8-bits, 1 transparent, 1 turned; have them "
        "mended or left out (--data.background white --data.orient true --data.on_bad skip); all are listed in "
        f"{beside}"
    )
    assert [row["path"] for row in rows(beside)] == ["clear.png", "cut.png", "deep.png", "page.jpg", "turned.jpg"]
    assert not run.exists()
    options = ("--data.background", "white", "--data.orient", "true", "--data.on_bad", "skip")
    status, out, told = call(capsys, *train(folder, run, *options))
    assert status == 0
    done = {"left out: damaged": 2, "left out: over-8-bits": 1, "oriented": 1, "put on white": 1}
    assert f"2 left out: damaged, 1 left out: over-8-bits, 1 oriented, 1 put on white (all are listed in {run}" in told
    summary, identity = json.loads(out), json.loads((run / "identity.json").read_text())
    assert (summary["training_images"], summary["mending"], identity["train"]["mending"]) == (6, done, done)
    assert [(row["path"], row["done"]) for row in rows(run / "mending.csv")] == [
        ("clear.png", "put on white"),
        ("cut.png", "left out"),
        ("deep.png", "left out"),
        ("page.jpg", "left out"),
        ("turned.jpg", "oriented"),
    ]
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        ["clear.png", "cut.png", "deep.png", "notes.txt", "page.jpg", "turned.jpg", *(f"good{i}.png" for i in range(4))]
    )


def test_an_audit_mends_all_folders_alike(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, held_out, out = mixed(tmp_path / "mixed"), mixed(tmp_path / "real", 100), tmp_path / "audit"
    np.save(tmp_path / "samples.npy", pixels(9, 4, 3, SIZE, SIZE))
    sources = ("audit", "--train", folder, "--samples", tmp_path / "samples.npy", "--extractor", "pixels")
    status, _, told = call(capsys, *sources, "--out", out)
    assert status == 2
    assert f"(--background white --orient --on-bad skip); all are listed in {out}.mending.csv" in told
    assert not out.exists()
    status, _, told = call(capsys, *sources, "--out", out, "--background", "red")
    assert (status, told) == (2, "iet-agc: background 'red' is not white, black or #rrggbb (--background)\n")
    options = ("--background", "white", "--orient", "--on-bad", "skip")
    status, _, told = call(capsys, *sources, "--held-out", held_out, "--out", out, *options)
    assert status == 0
    record = read_record(out / "audit.json")
    assert record.num_train == 6
    assert record.mending is not None
    done = {"left out: damaged": 2, "left out: over-8-bits": 1, "oriented": 1, "put on white": 1}
    assert (record.mending.orient, record.mending.background, record.mending.on_bad) == (True, "white", "skip")
    assert record.mending.sets == {"train": done, "held_out": done}
    assert [row["set"] for row in rows(out / "mending.csv")] == ["train"] * 5 + ["held_out"] * 5
    sentence = f"3 files of {folder} cannot be used and were left out: copies of them are not found"
    assert next(each.sentence for each in record.warnings if isinstance(each, LeftOut)) == sentence
    assert f"warning: {sentence}" in told
    assert call(capsys, "report", out)[0] == 0
    page = (out / "report.html").read_text()
    assert "--orient --background white --on-bad skip" in page
    assert "files of held-out" in page


def test_an_audit_that_needs_no_mending_says_nothing_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name, options in (("plain", ()), ("asked", ("--orient", "--background", "white", "--on-bad", "skip"))):
        np.save(tmp_path / "a.npy", pixels(9, 4, 3, SIZE, SIZE))
        sources = ("audit", "--train", tmp_path / "a.npy", "--samples", tmp_path / "a.npy", "--extractor", "pixels")
        assert call(capsys, *sources, "--out", tmp_path / name, *options)[0] == 0
        assert not (tmp_path / name / "mending.csv").exists()
    plain, asked = (read_record(tmp_path / name / "audit.json") for name in ("plain", "asked"))
    assert plain.mending is None
    assert asked.mending is not None
    assert asked.mending.sets == {}
    assert asked.model_copy(update={"mending": None}) == plain


def test_duplicates_of_a_mended_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, out = mixed(tmp_path / "mixed"), tmp_path / "found"
    Image.fromarray(pixels(0)).save(folder / "same.png")
    assert call(capsys, "duplicates", folder, "--out", out)[0] == 2
    assert len(rows(tmp_path / "found.mending.csv")) == 5
    assert call(capsys, "duplicates", folder, "--out", out, "--exact", "--on-bad", "skip")[0] == 0
    numbers = json.loads((out / "duplicates.json").read_text())
    assert (numbers["images"], numbers["groups"]["exact"]) == (5, 1)
    assert sum(numbers["mending"]["files"].values()) == len(rows(out / "mending.csv")) == 5


# Sizes ------------------------------------------------------------------------------------------------------


def sizes(folder: Path) -> Path:
    """Two images of the common size, a wide one, a grey one that is taller, and one that lies on its side by EXIF."""
    folder.mkdir()
    for seed in range(2):
        Image.fromarray(pixels(seed)).save(folder / f"a{seed}.png")
    Image.fromarray(pixels(2, SIZE, 2 * SIZE, 3)).save(folder / "b.png")
    Image.fromarray(pixels(3, SIZE + 5, SIZE)).save(folder / "c.png")
    turned(folder / "d.png", 6, pixels(4, SIZE, 3 * SIZE, 3))
    return folder


def test_images_of_other_sizes_are_resized_or_cropped_when_asked(tmp_path: Path) -> None:
    folder = sizes(tmp_path / "mixed")
    resized = load_images(folder, mending=Mending(orient=True, resize="8x8"))
    cropped = load_images(folder, mending=Mending(orient=True, crop="8x8"))
    assert resized.shape == cropped.shape == (3, SIZE, SIZE)
    for images in (resized, cropped):
        assert np.array_equal(images.images[0].permute(1, 2, 0).numpy(), pixels(0))
    wide = pixels(2, SIZE, 2 * SIZE, 3)
    assert np.array_equal(cropped.images[2].permute(1, 2, 0).numpy(), wide[:, SIZE // 2 : SIZE // 2 + SIZE])
    by_hand = ImageOps.fit(Image.fromarray(wide), (SIZE, SIZE), Image.Resampling.BICUBIC)
    assert np.array_equal(resized.images[2].permute(1, 2, 0).numpy(), np.asarray(by_hand))
    assert counts(resized.treated) == {"oriented": 1, "resized to 8x8": 3}
    assert counts(cropped.treated) == {"cropped to 8x8": 3, "oriented": 1}
    assert [file.path for file in cropped.treated if file.kind == "other-size"] == ["b.png", "c.png", "d.png"]


def test_what_is_too_small_to_be_cut_is_refused_or_left_out(tmp_path: Path) -> None:
    folder = sizes(tmp_path / "mixed")
    with pytest.raises(
        UnusableFilesError, match=r"3 of 5 files cannot be used.* smaller than what is to be cut"
    ) as error:
        load_images(folder, mending=Mending(orient=True, crop="9x8"))
    assert {file.kind for file in error.value.files} == {"too-small"}
    images = load_images(folder, mending=Mending(orient=True, on_bad="skip", crop="9x8"))
    assert counts(images.treated) == {"cropped to 9x8": 2, "left out: too-small": 3, "oriented": 1}


@pytest.mark.parametrize("options", [{"resize": "0x8"}, {"crop": "8"}, {"resize": "8x8", "crop": "8x8"}])
def test_sizes_that_are_none_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(UserError):
        Mending(**options)  # pyright: ignore[reportArgumentType]


def test_one_size_is_asked_for_once(tmp_path: Path) -> None:
    folder = sizes(tmp_path / "mixed")
    with pytest.raises(UserError, match="by convert_to and by resize: leave one out"):
        load_images(folder, (3, 8, 8), mending=Mending(orient=True, resize="8x8"))


def test_audit_and_duplicates_bring_folders_to_one_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, out = sizes(tmp_path / "mixed"), tmp_path / "audit"
    np.save(tmp_path / "samples.npy", pixels(9, 4, 3, SIZE, SIZE))
    sources = ("audit", "--train", folder, "--samples", tmp_path / "samples.npy", "--no-quality", "--out", out)
    status, _, told = call(capsys, *sources, "--orient")
    assert status == 2
    assert f"(--resize 8x8); all are listed in {out}.mending.csv" in told
    assert call(capsys, *sources, "--orient", "--resize", "8")[0] == 0
    record = read_record(out / "audit.json")
    assert record.mending is not None
    assert (record.mending.resize, record.mending.sets) == ("8x8", {"train": {"oriented": 1, "resized to 8x8": 3}})
    assert call(capsys, "report", out)[0] == 0
    assert "--orient --resize 8x8" in (out / "report.html").read_text()
    found = tmp_path / "found"
    assert call(capsys, "duplicates", folder, "--out", found, "--exact", "--orient", "--crop", "8x8")[0] == 0
    numbers = json.loads((found / "duplicates.json").read_text())
    assert numbers["mending"]["files"] == {"cropped to 8x8": 3, "oriented": 1}


def test_a_training_set_is_cropped_by_its_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = sizes(tmp_path / "mixed")
    train_set, _ = load_dataset(data(folder, orient=True, crop="8x8"))
    assert train_set.shape == (3, SIZE, SIZE)
    assert counts(train_set.treated) == {"cropped to 8x8": 3, "oriented": 1}
    status, _, told = call(capsys, *train(folder, tmp_path / "run", "--data.orient", "true"))
    assert status == 2
    assert "(--data.convert_to 3x8x8); all are listed in" in told
