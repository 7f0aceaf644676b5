"""Tar archives and parquet tables: the images of a folder, whatever they come in; and pixels that are not in memory."""

import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iet_agc.auditing.schema import AuditRecord
from iet_agc.config.data_settings import FolderData
from iet_agc.data import arrays, folders, parquet_files
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.folders import load_images
from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import Mending
from iet_agc.data.pixel_store import PixelStore
from iet_agc.data.survey import look_at, survey_folder
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.packed_files import packed_files
from iet_agc.runtime.seeds import generator
from tests.audits_on_disk import audit_on_disk
from tests.commands import call

Files = dict[str, bytes]


def noise(count: int, seed: int) -> np.ndarray:
    """uint8 (count, 8, 8, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def encoded(images: np.ndarray) -> Files:
    return {f"{at:04d}.png": png(image) for at, image in enumerate(images)}


def save_folder(folder: Path, files: Files) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def add(archive: tarfile.TarFile, name: str, content: bytes, **header: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in header.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def save_archive(file: Path, files: Files, form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(file, "w", format=form) as archive:
        for name, content in files.items():
            add(archive, name, content)


def save_archives(folder: Path, files: Files, length: int = 50) -> None:
    """Archives in webdataset's layout, with a text, a class and a pickled object for each image."""
    folder.mkdir()
    names = [*files]
    for number, start in enumerate(range(0, len(names), length)):
        some: Files = {}
        for name in names[start : start + length]:
            key = name.removesuffix(".png")
            some |= {f"{key}.txt": b"noise", f"{key}.cls": b"3", name: files[name], f"{key}.pth": b"\x80\x02."}
        save_archive(folder / f"part-{number:03d}.tar", some)


def save_tables(folder: Path, files: Files, length: int = 60, kind: str = "struct", rows: int = 25) -> None:
    """Tables in Hugging Face's layout."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    names = [*files]
    starts = range(0, len(names), length)
    for number, start in enumerate(starts):
        some = names[start : start + length]
        values: list[Any] = [files[name] for name in some]
        if kind == "struct":
            values = [{"bytes": content, "path": name} for content, name in zip(values, some, strict=True)]
        table = pyarrow.table({"image": values, "label": list(range(len(some)))})
        place = folder / f"train-{number:05d}-of-{len(starts):05d}.parquet"
        parquet.write_table(table, place, row_group_size=rows)


# -- the same images, whatever they come in


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set of 130 images, two of them repeated, 24 samples and 105 held-out images, in four forms."""
    place = tmp_path_factory.mktemp("sets")
    train = noise(130, 1)
    train[[20, 90]] = train[7]
    parts = {"train": train, "samples": np.concatenate([train[[7, 9, 7]], noise(21, 3)]), "real": noise(105, 2)}
    for name, images in parts.items():
        files = encoded(images)
        save_folder(place / f"{name}-folder", files)
        np.save(place / f"{name}-array.npy", images.transpose(0, 3, 1, 2))
        save_archives(place / f"{name}-archives", files)
        save_tables(place / f"{name}-tables", files)
    return place


def audited(sets: Path, out: Path, form: str, **options: Any) -> AuditRecord:
    train, samples, real = (str(sets / f"{name}-{form}") for name in ("train", "samples", "real"))
    options = {"device": "cpu", "on_done": lambda share: None, "measure_quality": False, **options}
    return audit_on_disk(train, samples, real, out, **options)


def numbers(record: AuditRecord) -> dict[str, Any]:
    return record.model_dump(exclude={"provenance"})


def test_an_audit_finds_the_same_in_a_folder_an_array_archives_and_tables(sets: Path, tmp_path: Path) -> None:
    found = {form: audited(sets, tmp_path / form, form) for form in ("folder", "array.npy", "archives", "tables")}
    assert found["folder"].num_train_unique == 128
    assert found["folder"].calibrated is not None
    for record in found.values():
        assert numbers(record) == numbers(found["folder"])
    rows = (tmp_path / "archives" / "samples.csv").read_text().splitlines()
    assert "part-000.tar/0000.png" in rows[1]
    assert "train-00000-of-00001.parquet/row 0000000" in (tmp_path / "tables" / "samples.csv").read_text()


@pytest.mark.parametrize("kind", ["struct", "bytes"])
@pytest.mark.parametrize("kept", [100, 1])
def test_tables_hold_structs_or_bytes_and_are_read_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, kept: int
) -> None:
    monkeypatch.setattr(parquet_files, "_KEPT", kept)
    images = noise(70, 4)
    save_tables(tmp_path / "tables", encoded(images), 100, kind)
    found = load_images(tmp_path / "tables")
    assert np.array_equal(found.images.numpy(), images.transpose(0, 3, 1, 2))
    rows = parquet_files.rows_of(next((tmp_path / "tables").iterdir()))
    for row in (69, 0, 33, 34, 2, 69):
        assert rows[row]().read() == png(images[row])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_in_archives_may_be_long_and_of_any_alphabet(tmp_path: Path, form: int) -> None:
    names = [
        "a/" * 60 + "b.png",
        "é.png",
        *([] if form == tarfile.USTAR_FORMAT else ["c" * 180 + "/" + "d" * 150 + ".png"]),
    ]
    images = noise(len(names), 1)
    save_archive(tmp_path / "a.tar", dict(zip(names, map(png, images), strict=True)), form)
    found = load_images(tmp_path / "a.tar")
    assert found.files == tuple(f"a.tar/{name}" for name in names)
    assert np.array_equal(found.images.numpy(), images.transpose(0, 3, 1, 2))


def test_what_folders_refuse_and_mend_archives_do_as_well(tmp_path: Path) -> None:
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(1, 5)[0]).save(turned, "PNG", exif=exif)
    files = encoded(noise(4, 1)) | {"0004.png": b"\x89PNG", "0005.png": turned.getvalue(), "0006.heic": b"?"}
    save_folder(tmp_path / "folder", files)
    save_archive(tmp_path / "a.tar", files)
    how = Mending(orient=True, on_bad="skip")
    folder, archive = (load_images(tmp_path / name, mending=how) for name in ("folder", "a.tar"))
    assert archive.fingerprint == folder.fingerprint
    assert [file.path for file in archive.treated] == [f"a.tar/{file.path}" for file in folder.treated]
    assert [file.kind for file in archive.treated] == ["damaged", "turned", "other-format"]
    with pytest.raises(UserError, match=r"a\.tar: 3 of 7 files cannot be used: a\.tar/0004\.png cannot be read"):
        load_images(tmp_path / "a.tar")


# -- which files a path names


def test_patterns_name_files_in_the_order_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        Path(f"a-{number:02d}.tar").touch()
    Path("b[1].tar").touch()
    assert packed_files(Path("a-{08..10}.tar")) == [Path("a-08.tar"), Path("a-09.tar"), Path("a-10.tar")]
    assert packed_files(Path("{a-1?,a-0{1,1}}.tar")) == packed_files(Path("a-{01,10,11}.tar"))
    assert len(packed_files(Path("*.tar"))) == 13
    assert packed_files(Path("b[1].tar")) == [Path("b[1].tar")]
    assert packed_files(Path("a.npy")) == packed_files(tmp_path) == []
    for pattern, reason in (("a-{11..12}.tar", r"a-12\.tar is not there"), ("c-*.tar", r"c-\*\.tar fits no file")):
        with pytest.raises(UserError, match=reason):
            packed_files(Path(pattern))
    with pytest.raises(UserError, match="names more than 100,000 files"):
        packed_files(Path("{0..9999999}/{a*,b*}.tar"))


def test_archives_are_trained_on_with_their_captions(tmp_path: Path) -> None:
    images = noise(70, 1)
    files = encoded(images)
    save_archives(tmp_path / "train", files)
    save_archive(tmp_path / "held-out.tar", encoded(noise(3, 2)))
    given = {"name": "folder", "root": str(tmp_path / "train" / "*.tar"), "held_out": str(tmp_path / "held-out.tar")}
    train, held_out = load_dataset(FolderData.model_validate({**given, "captions": "txt", "orient": True}))
    order = torch.randperm(70, generator=generator("split", 0))
    assert np.array_equal(train.images.numpy(), images.transpose(0, 3, 1, 2)[order.numpy()])
    assert (train.captions, len(held_out)) == ((("noise",),) * 70, 3)
    for change, reason in (
        ({"captions": "txt", "root": given["held_out"]}, "3 images have no captions of their own"),
        ({"classes": "folders"}, "needs a subfolder for each class"),
        ({"captions": "captions.json"}, "is no folder"),
    ):
        with pytest.raises(UserError, match=reason):
            load_dataset(FolderData.model_validate({**given, "held_out": None, **change}))
    surveyed = look_at(tmp_path / "train", lambda sizes: sizes[0])
    found = survey_folder(tmp_path / "train", surveyed)
    assert (len(found.images), found.captions, found.classes) == (70, "txt", 0)


def test_a_folder_with_several_splits_asks_for_one(tmp_path: Path) -> None:
    files = encoded(noise(3, 1))
    for name in ("test-0000", "train-0000", "train-0001"):
        save_archive(tmp_path / f"{name}.tar", files)
    with pytest.raises(UserError, match=r"several splits \(test-\*, train-\*\): give one of them, as .*/test-\*\.tar"):
        load_images(tmp_path)
    assert len(load_images(tmp_path / "train-{0000..0001}.tar")) == 6
    (tmp_path / "0.png").write_bytes(files["0000.png"])
    assert load_images(tmp_path).files == ("0.png",)  # a folder of images, with archives beside them


def test_the_command_line_takes_patterns_and_says_what_is_not_there(
    sets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = ["--held-out", sets / "real-folder", "--no-quality", "--device", "cpu"]
    pattern = f"{sets}/train-archives/part-{{000..002}}.tar"
    command = ["audit", "--train", pattern, "--samples", sets / "samples-archives", *real, "--out", tmp_path / "a"]
    assert call(capsys, *command)[0] == 0
    assert "nothing to do" in call(capsys, *command)[2]
    other = ["audit", "--train", f"{sets}/x-*.tar", "--samples", "y", *real, "--out", tmp_path / "b"]
    status, _, told = call(capsys, *other)
    assert (status, told.count("\n")) == (2, 1)
    assert "x-*.tar fits no file" in told


# -- archives and tables from anyone


def special(kind: bytes, name: str = "9.png", **header: Any) -> Callable[[tarfile.TarFile], None]:
    return lambda archive: add(archive, name, b"", type=kind, **header)


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (special(tarfile.SYMTYPE, linkname="/etc/passwd"), r"9\.png is a link, a pipe or a device"),
        (special(tarfile.LNKTYPE, linkname="0000.png"), r"9\.png is a link, a pipe or a device"),
        (special(tarfile.CHRTYPE, devmajor=1, devminor=5), r"9\.png is a link, a pipe or a device"),
        (special(tarfile.FIFOTYPE), r"9\.png is a link, a pipe or a device"),
        (lambda archive: add(archive, "../9.png", png(noise(1, 9)[0])), r"9\.png has a path that leaves the archive"),
        (lambda archive: add(archive, "/9.png", png(noise(1, 9)[0])), r"9\.png has a path that leaves the archive"),
        (
            lambda archive: add(archive, "9.png", b"0", pax_headers={"GNU.sparse.realsize": str(2**60)}),
            r"9\.png is sparse in its archive",
        ),
        (special(tarfile.GNUTYPE_SPARSE), r"its member 9\.png is sparse"),
        (lambda archive: add(archive, "0000.png", b""), r"more than one image of a sample, 0000\.png and 0000\.png"),
        (lambda archive: add(archive, "0000.a.jpg", b""), r"0000\.png and 0000\.a\.jpg: pack one for each"),
        (
            lambda archive: add(archive, "x", b"0" * 2**21, type=tarfile.GNUTYPE_LONGNAME),
            r"an extended header has 2,097,152 bytes",
        ),
        (lambda archive: add(archive, "x", b"99 a=b\n", type=tarfile.XHDTYPE), "an extended header is none"),
        (
            lambda archive: [
                add(archive, "x", b"11 size=-9\n", type=tarfile.XHDTYPE),
                add(archive, "9.png", b""),
            ],
            r"its member 9\.png is cut short",
        ),
    ],
)  # fmt: skip
def test_only_plain_files_of_an_archive_are_read(
    tmp_path: Path, put: Callable[[tarfile.TarFile], object], reason: str
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in encoded(noise(3, 1)).items():
            add(archive, name, content)
        put(archive)
    with pytest.raises(UserError, match=reason) as caught:
        load_images(tmp_path / "a.tar")
    assert "\n" not in str(caught.value)


def huge(content: bytes) -> bytes:
    """The first member claims 2^50 bytes."""
    header = tarfile.TarInfo("0.png")
    header.size = 2**50
    return header.tobuf(tarfile.GNU_FORMAT) + content


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda whole: whole[:700], r"its member 0000\.png is cut short"),
        (lambda whole: whole[:1024], "its end is missing"),
        (lambda whole: whole + whole, "it goes on after its end"),
        (lambda whole: b"\x1f\x8b" + whole, "it is compressed or something else"),
        (lambda whole: whole[:1024] + b"x" * 512 + whole[1024:], "the header at byte 1024 is none"),
        (huge, r"its member 0\.png is cut short"),
        (lambda whole: b"", "it is too short"),
    ],
)
def test_archives_that_are_not_whole_are_refused(tmp_path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    save_archive(tmp_path / "whole.tar", encoded(noise(3, 1)), tarfile.USTAR_FORMAT)
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(change(whole))
    with pytest.raises(UserError, match=rf"a\.tar is no tar archive that can be read, {reason}"):
        load_images(tmp_path / "a.tar", mending=Mending(on_bad="skip"))


def test_tables_without_one_column_of_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images: list[Any] = [png(image) for image in noise(3, 1)]
    tables = {
        "none": {"label": [1, 2, 3]},
        "several": {"left": images, "right": images},
        "null": {"image": [images[0], None, images[2]]},
        "paths": {"image": [{"bytes": None, "path": "/etc/passwd"}, *({"bytes": one} for one in images[1:])]},
    }
    for name, columns in tables.items():
        parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "null.parquet").read_bytes()[:-9])
    for name, reason in {
        "none": r"has not one column of images .*, but none: name it 'image'",
        "several": r"but 'left', 'right': name it 'image'",
        "null": r"null\.parquet/row 0000001 holds no bytes of an image",
        "paths": r"paths\.parquet/row 0000000 holds no bytes of an image",
        "cut": r"cut\.parquet cannot be read as a parquet table",
    }.items():
        with pytest.raises(UserError, match=reason):
            load_images(tmp_path / f"{name}.parquet")
    skipped = load_images(tmp_path / "null.parquet", mending=Mending(on_bad="skip"))
    assert skipped.files == ("null.parquet/row 0000000", "null.parquet/row 0000002")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'iet-agc\[parquet\]'"):
        load_images(tmp_path / "null.parquet")


# -- pixels that are not held in memory


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every set is large; what is decoded."""
    monkeypatch.setattr(arrays, "MAPPED_FROM", 1000)
    seen: list[str] = []
    honest = folders.decode

    def watched(file: Any, *others: Any) -> Any:
        seen.append("decoded")
        if len(seen) == 100:
            raise KeyboardInterrupt
        return honest(file, *others)

    monkeypatch.setattr(folders, "decode", watched)
    return seen


@pytest.mark.parametrize("form", ["archives", "folder"])
def test_a_killed_audit_of_a_large_set_decodes_what_is_missing(
    sets: Path, tmp_path: Path, decoded: list[str], form: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        audited(sets, tmp_path / "a", form)
    stored = [*(tmp_path / "a" / ".decoded").glob("*.pixels")]
    assert [file.stat().st_size for file in stored] == [130 * 192]
    record = audited(sets, tmp_path / "a", form)
    assert len(decoded) == 259 + 1  # each once, but for the one at which it was killed
    assert not (tmp_path / "a" / ".decoded").exists()
    assert numbers(record) == numbers(audited(sets, tmp_path / "b", "array.npy"))


def test_a_set_that_is_refused_leaves_nothing(sets: Path, tmp_path: Path, decoded: list[str]) -> None:
    decoded += ["more"] * 100
    with pytest.raises(UserError, match="sizes must agree"):
        audit_on_disk(str(sets / "train-archives"), "digits", None, tmp_path / "a", measure_quality=False)
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_told_and_the_same_command_goes_on(
    sets: Path, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded += ["more"] * 100
    honest, left = os.pwrite, [60]

    def full(*given: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(*given)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"\.decoded cannot be written: No space left on device; make room"):
        audited(sets, tmp_path / "a", "archives")
    monkeypatch.setattr(os, "pwrite", honest)
    before = len(decoded)
    audited(sets, tmp_path / "a", "archives")
    assert 259 - 30 <= len(decoded) - before <= 259 - 28  # of two threads, some were between pixels and checksum


def test_stored_pixels_are_decoded_once_and_checked(tmp_path: Path, decoded: list[str]) -> None:
    decoded += ["more"] * 100
    images = noise(40, 1)
    save_archive(tmp_path / "a.tar", encoded(images))
    store = PixelStore(tmp_path / "store" / "pixels")

    def load(count: int, **how: Any) -> ImageSet:
        before = len(decoded)
        found = load_images(tmp_path / "a.tar", store=store, **how)
        assert len(decoded) - before == count
        return found

    assert np.array_equal(load(40).images.numpy(), images.transpose(0, 3, 1, 2))
    load(0)  # as another process of torchrun does
    (file,) = store.folder.glob("*.pixels")
    with file.open("r+b") as stream:
        stream.seek(5 * 192)
        stream.write(bytes([255 - images[5].transpose(2, 0, 1).flat[0]]))
    assert np.array_equal(load(1).images.numpy(), images.transpose(0, 3, 1, 2))
    load(40, shape=(3, 6, 6))
    os.utime(tmp_path / "a.tar", (0, 0))
    load(40)
    store.remove()
    assert not (tmp_path / "store").exists()


def test_pixels_may_be_stored_below_the_folder_that_they_come_from(tmp_path: Path, decoded: list[str]) -> None:
    images = noise(40, 1)
    save_folder(tmp_path / "a", encoded(images))
    for count in (40, 40):
        found = load_images(tmp_path / "a", store=PixelStore(tmp_path / "a" / "audit" / "pixels"))
        assert np.array_equal(found.images.numpy(), images.transpose(0, 3, 1, 2))
        assert len(decoded) == count


def test_files_that_change_while_they_are_decoded_are_refused(tmp_path: Path, decoded: list[str]) -> None:
    save_archive(tmp_path / "a.tar", encoded(noise(40, 1)))

    def touch(count: int) -> None:
        os.utime(tmp_path / "a.tar", (count, count))

    with pytest.raises(UserError, match=r"a\.tar changed while it was read"):
        load_images(tmp_path / "a.tar", store=PixelStore(tmp_path / "pixels"), on_images=touch)


def test_chosen_and_converted_pixels_are_stored_as_well(tmp_path: Path, decoded: list[str]) -> None:
    images = torch.from_numpy(noise(90, 1).transpose(0, 3, 1, 2).copy())
    np.save(tmp_path / "a.npy", images.numpy())
    chosen = torch.tensor([5, 3, *range(10, 80)])
    store = PixelStore(tmp_path / "pixels")
    some = ImageSet(images, "a").take(chosen, store.rows)
    assert torch.equal(some.images, images[chosen])
    small = load_images(tmp_path / "a.npy", (1, 4, 4), store=store)
    assert small.fingerprint == load_images(tmp_path / "a.npy", (1, 4, 4)).fingerprint
    assert len([*store.folder.glob("*.pixels")]) == 2
