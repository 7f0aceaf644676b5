"""Images that cannot be used: every kind is named with its file, the reason and the mend, on one line."""

import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from iet_agc.data.decoding import strict_pillow
from iet_agc.data.folders import load_images


def _pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _colour(size: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(_pixels(size, size, 3, seed=seed))


def _encoded(image: Image.Image, form: str, **how: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=form, **how)
    return stream.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, bits: int, colours: int, rows: bytes, *extra: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *extra, _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")])


def _see_through(mode: str, form: str, **how: object) -> bytes:
    image = Image.fromarray(_pixels(8, 8)).convert(mode)
    image.putalpha(Image.fromarray(np.where(np.arange(64).reshape(8, 8) == 40, 254, 255).astype(np.uint8)))
    return _encoded(image, form, **how)


def _tiff(values: np.ndarray, bits: int, samples: int, kind: int = 1, planar: int = 1) -> bytes:
    """An uncompressed TIFF by hand: Pillow writes no 16-bit colours."""
    body = values.tobytes()
    lengths = [len(body) // samples] * samples if planar == 2 else [len(body)]
    offsets = [8 + sum(lengths[:i]) for i in range(len(lengths))]
    tables, at = b"", 8 + len(body)

    def entry(tag: int, form: int, numbers: list[int]) -> bytes:
        nonlocal tables
        packed = b"".join(struct.pack("<H" if form == 3 else "<I", number) for number in numbers)
        if len(packed) > 4:
            tables, where = tables + packed, at + len(tables)
            packed = struct.pack("<I", where)
        return struct.pack("<HHI", tag, form, len(numbers)) + packed.ljust(4, b"\0")

    tags = [
        entry(256, 3, [values.shape[1]]),
        entry(257, 3, [values.shape[0]]),
        entry(258, 3, [bits] * samples),
        entry(259, 3, [1]),
        entry(262, 3, [2 if samples == 3 else 1]),
        entry(273, 4, offsets),
        entry(277, 3, [samples]),
        entry(278, 3, [values.shape[0]]),
        entry(279, 4, lengths),
        entry(284, 3, [planar]),
        entry(339, 3, [kind] * samples),
    ]
    end = at + len(tables)
    return b"II*\0" + struct.pack("<I", end) + body + tables + struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)


def _frames(form: str, **how: object) -> bytes:
    return _encoded(_colour(), form, save_all=True, append_images=[_colour(seed=1)], **how)


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _encoded(_colour(), "JPEG", exif=exif)


def _ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says that its colours are turned into YCC."""
    content = _encoded(_colour().convert("CMYK"), "JPEG")
    at = content.index(b"Adobe") + 11  # 5 letters, version, two flags of 2 bytes; then the transform
    assert content[at] == 0
    return content[:at] + b"\2" + content[at + 1 :]


WIDE = _pixels(8, 8, 3).astype(np.uint16) * 257
CUT = "cannot be read as an image, .*truncated.*: copy it again or remove it"
BITS = "has 16 bits per channel: save it with 8"
MOVING = "is animated or has pages, 2 pictures: give single images"
CLEAR = "is transparent in places: put it on a background and save it without alpha"
UNKNOWN = "cannot be read as an image, it is damaged or of an unknown format: copy it again or remove it"

#: name: (what is in the file, what is said about it); each name is the file's.
KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "is empty, 0 bytes: copy it again or remove it"),
    "text.jpg": (lambda: b"<html>404 not found</html>", UNKNOWN),
    "head.png": (lambda: _encoded(_colour(), "PNG")[:20], "cannot be read as an image, Truncated File Read: copy it"),
    "eps.png": (lambda: _encoded(_colour(), "EPS"), UNKNOWN),
    "cut.png": (lambda: _encoded(_colour(64), "PNG")[:4000], CUT),
    "cut.jpg": (lambda: _encoded(_colour(64), "JPEG")[:2000], CUT),
    "cut.webp": (lambda: _encoded(_colour(64), "WEBP")[:2000], "cannot be read as an image, .*: copy it again"),
    "cut.bmp": (lambda: _encoded(_colour(64), "BMP")[:4000], CUT),
    "cut.gif": (lambda: _encoded(_colour(64), "GIF")[:2000], CUT),
    "cut.tif": (lambda: _encoded(_colour(64), "TIFF")[:-400], "cannot be read as an image, .*: copy it again"),
    "cut.ppm": (lambda: _encoded(_colour(64), "PPM")[:4000], CUT),
    "flipped.png": (lambda: _flipped(_encoded(_colour(16), "PNG"), 60), "cannot be read as an image, .*: copy it"),
    "flipped-pixel.png": (
        lambda: _flipped(_encoded(_colour(16), "PNG", compress_level=0), 300),
        "cannot be read as an image, .*: copy it again or remove it",
    ),
    "no-pixels.png": (
        lambda: _png(8, 8, 8, 2, b"").replace(b"IDAT", b"iDAT"),
        "cannot be read as an image, .*: copy it again",
    ),
    "grey16.png": (lambda: _encoded(Image.fromarray(WIDE[:, :, 0]), "PNG"), BITS),
    "rgb16.png": (lambda: _png(8, 8, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in WIDE)), BITS),
    "rgba16.png": (lambda: _png(1, 1, 16, 6, b"\0" + b"\1\2\3\4\5\6\xff\xff"), BITS),
    "la16.png": (lambda: _png(1, 1, 16, 4, b"\0" + b"\1\2\xff\xff"), BITS),
    "grey16.tif": (lambda: _tiff(WIDE[:, :, :1], 16, 1), BITS),
    "rgb16.tif": (lambda: _tiff(WIDE, 16, 3), BITS),
    "planes16.tif": (lambda: _tiff(WIDE, 16, 3, planar=2), BITS),
    "int32.tif": (lambda: _encoded(Image.fromarray(WIDE[:, :, 0].astype(np.int32)), "TIFF"), "has 32 bits per channel"),
    "float.tif": (
        lambda: _encoded(Image.fromarray(_pixels(8, 8).astype(np.float32)), "TIFF"),
        "has floating-point pixels: save it with 8 bits per channel",
    ),
    "grey16.pgm": (lambda: b"P5 2 2 65535\n" + bytes(8), BITS),
    "rgb16.ppm": (lambda: b"P6 2 2 1023\n" + bytes(24), BITS),
    "plain16.ppm": (lambda: b"P3 1 1 1023\n1 2 3\n", BITS),
    "float.pgm": (lambda: b"Pf 2 2 -1.0\n" + bytes(16), "has floating-point pixels: save it with 8 bits"),
    "cmyk.jpg": (
        lambda: _encoded(_colour().convert("CMYK"), "JPEG"),
        "has colour mode CMYK: convert it to 8-bit grey or RGB",
    ),
    "ycck.jpg": (_ycck, "has colour mode CMYK: convert it to 8-bit grey or RGB"),
    "lab.tif": (lambda: _encoded(_colour().convert("LAB"), "TIFF"), "has colour mode LAB: convert it to 8-bit grey"),
    "moving.gif": (lambda: _frames("GIF"), MOVING),
    "moving.webp": (lambda: _frames("WEBP", duration=100), MOVING),
    "moving.png": (lambda: _frames("PNG"), MOVING),
    "pages.tif": (lambda: _frames("TIFF"), MOVING),
    "stereo.jpg": (lambda: _frames("MPO"), MOVING),
    "clear.png": (lambda: _see_through("RGB", "PNG"), CLEAR),
    "clear.webp": (lambda: _see_through("RGB", "WEBP", lossless=True), CLEAR),
    "clear.tif": (lambda: _see_through("RGB", "TIFF"), CLEAR),
    "clear-grey.png": (lambda: _see_through("L", "PNG"), CLEAR),
    "clear-palette.png": (lambda: _encoded(_colour().quantize(16), "PNG", transparency=3), CLEAR),
    "clear-palette.gif": (lambda: _encoded(_colour().quantize(16), "GIF", transparency=3), CLEAR),
    "clear-palette-steps.png": (
        lambda: _encoded(_colour().quantize(16), "PNG", transparency=bytes([255] * 8 + [200] * 8)),
        CLEAR,
    ),
    "clear-key.png": (
        lambda: _encoded(_colour(), "PNG", transparency=tuple(int(value) for value in _pixels(8, 8, 3)[2, 2])),
        CLEAR,
    ),
    "clear-bits.png": (lambda: _png(8, 1, 1, 0, b"\0\x0f", _chunk(b"tRNS", b"\0\1")), CLEAR),
    "clear-4-bits.png": (lambda: _png(2, 1, 4, 0, b"\0\xf0", _chunk(b"tRNS", b"\0\x0f")), CLEAR),
    "turned.jpg": (_turned, "is to be turned, by its EXIF orientation: turn its pixels or remove the tag"),
    "bomb.png": (
        lambda: _png(60_000, 60_000, 8, 2, b""),
        r"is too large to be decoded safely, Image size \(3600000000 pixels\).*: make it smaller",
    ),
    "bomb.gif": (
        lambda: _encoded(_colour(), "GIF")[:6] + b"\xff\xff\xff\xff" + _encoded(_colour(), "GIF")[10:],
        "is too large to be decoded safely, .*: make it smaller",
    ),
    "photo.avif": (lambda: b"\0\0\0\x1cftypavif", "is AVIF, which is not read: convert it to PNG"),
    "photo.HEIC": (lambda: b"\0\0\0\x1cftypheic", "is HEIC, which is not read: convert it to PNG"),
    "scan.jp2": (lambda: b"", "is JP2, which is not read: convert it to PNG"),
    "new\nline\x1b.png": (lambda: b"", "is empty"),
}


def _message(folder: Path) -> str:
    with pytest.raises(ValueError, match=r".") as error:
        load_images(folder)
    assert str(error.value).isprintable()  # one line, and nothing that would steer a terminal
    return str(error.value)


@pytest.mark.parametrize("name", KINDS, ids=ascii)
def test_every_bad_kind_is_named_with_reason_and_mend(tmp_path: Path, name: str) -> None:
    write, said = KINDS[name]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / name).write_bytes(write())
    shown = f"deep/{name}" if name.isprintable() else ascii(f"deep/{name}")
    start = f"{tmp_path}: 1 of 1 files cannot be used: {shown} "
    message = _message(tmp_path)
    assert message.startswith(start)
    assert re.match(said, message.removeprefix(start))
    _colour().save(tmp_path / "good.png")  # among good ones, and when all are brought to one size
    with pytest.raises(ValueError, match=r"1 of 2 files cannot be used"):
        load_images(tmp_path, (3, 4, 4))


@pytest.mark.parametrize("name", ["rgb16.png", "rgb16.tif", "planes16.tif", "rgb16.ppm"])
def test_what_pillow_alone_would_take_without_a_word(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(KINDS[name][0]())
    with Image.open(tmp_path / name) as image:
        image.load()
        assert image.mode == "RGB"  # the condition under test


def test_several_bad_files_make_one_line_with_the_first_five(tmp_path: Path) -> None:
    for i in range(4):
        _colour(seed=i).save(tmp_path / f"good{i}.png")
    names = ["cut.png", "rgb16.png", "empty.png", "cmyk.jpg", "moving.gif", "photo.avif", "clear.png"]
    for name in names:
        (tmp_path / name).write_bytes(KINDS[name][0]())
    message = _message(tmp_path)
    assert message.startswith(f"{tmp_path}: 7 of 11 files cannot be used: clear.png is transparent in places: ")
    for name in sorted(names)[:5]:
        assert f"{name} " in message
    for name in sorted(names)[5:]:
        assert name not in message
    assert message.endswith(
        "; and 2 more; 1 animated, 1 colour-mode, 2 damaged, 1 other-format, 1 over-8-bits, "
        "1 transparent (mended by background white); on_bad skip leaves such files out"
    )


def test_a_folder_of_nothing_but_bad_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.heic").write_bytes(b"")
    assert "2 of 2 files cannot be used" in _message(tmp_path)


def test_links_to_nothing_loops_pipes_and_folders_named_like_images(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "folder.png" / "deep").mkdir(parents=True)
    _colour().save(folder / "folder.png" / "deep" / "a.png")
    assert len(load_images(folder)) == 1
    (folder / "nothing.png").symlink_to(folder / "missing.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "folder.png" / "loop").symlink_to(folder)
    (folder / "outer").symlink_to(tmp_path)
    (folder / "unmounted").symlink_to(tmp_path / "disk")  # may have been a folder of images
    os.mkfifo(folder / "pipe.png")
    message = _message(folder)
    assert message.startswith(f"{folder}: 6 of 7 files cannot be used: ")
    for said in (
        "folder.png/loop is a link to a folder that it stands in: remove it",
        "outer is a link to a folder that it stands in: remove it",
        "nothing.png is a link to nothing: mend the link or remove it",
        "itself.png is a link to nothing: mend the link or remove it",
        "pipe.png is a pipe, a socket or a device, no file: remove it",
    ):
        assert said in message
    assert message.endswith("; and 1 more; 6 no-file; on_bad skip leaves such files out")


def test_loops_of_two_links_end(tmp_path: Path) -> None:
    for here, there in (("a", "b"), ("b", "a")):
        (tmp_path / here).mkdir()
        _colour().save(tmp_path / here / "x.png")
        (tmp_path / here / "link").symlink_to(tmp_path / there)
    message = _message(tmp_path)
    assert "a/link/link is a link to a folder that it stands in" in message
    assert "b/link/link is a link to a folder that it stands in" in message


@contextmanager
def _bound_by_permissions(folder: Path) -> Generator[None]:
    """As somebody else where this is root, whom permissions do not bind."""
    if os.geteuid():
        yield
        return
    private = [one for one in (folder, *folder.parents) if one.stat().st_mode & 0o777 == 0o700]
    for one in private:
        one.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for one in private:
            one.chmod(0o700)


def test_files_and_folders_without_permission(tmp_path: Path) -> None:
    closed, hidden = tmp_path / "closed.png", tmp_path / "hidden"
    hidden.mkdir()
    for file in (closed, hidden / "a.png", tmp_path / "good.png"):
        _colour().save(file)
    for path in (closed, hidden):
        path.chmod(0)
    try:
        with _bound_by_permissions(tmp_path):
            message, inner = _message(tmp_path), _message(hidden)
    finally:
        hidden.chmod(0o700)
    assert message == (
        f"{tmp_path}: 2 of 3 files cannot be used: closed.png cannot be opened, Permission denied: make it readable; "
        "hidden cannot be opened, Permission denied: make it readable; 1 folder, 1 unreadable; "
        "on_bad skip leaves out all but folder"
    )
    assert "cannot be opened, Permission denied: make it readable" in inner


def test_mixed_sizes_name_two_files_and_the_way_out(tmp_path: Path) -> None:
    for name, size in (("a.png", (6, 4)), ("b.png", (4, 6)), ("c.png", (4, 6)), ("d.png", (9, 9))):
        _colour().resize(size).save(tmp_path / name)
    assert _message(tmp_path) == (
        f"{tmp_path}: 2 of 4 images have another size: a.png is 6 x 4, b.png is 4 x 6 (width x height): all images of "
        "a set must have one size; an audit brings them to one by resize or crop HxW or by convert_to "
        "CxHxW, a training by data.crop or data.convert_to"
    )


def test_bad_files_come_before_mixed_sizes(tmp_path: Path) -> None:
    _colour(8).save(tmp_path / "a.png")
    _colour(9).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"")
    assert "1 of 3 files cannot be used: c.png is empty" in _message(tmp_path)


def test_cut_files_are_refused_even_where_pillow_is_told_to_accept_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    (tmp_path / "cut.jpg").write_bytes(KINDS["cut.jpg"][0]())
    with Image.open(tmp_path / "cut.jpg") as image:
        image.load()  # the condition under test: it is accepted
    assert "cut.jpg cannot be read as an image" in _message(tmp_path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_two_readers_at_once_leave_pillow_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    entered, seen = threading.Event(), []

    def read() -> None:
        entered.set()
        with strict_pillow():
            seen.append(ImageFile.LOAD_TRUNCATED_IMAGES)

    other = threading.Thread(target=read)
    with strict_pillow():
        other.start()
        entered.wait()
        other.join(0.2)
        assert not seen  # it waits: else the first to leave would make the other one lenient
    other.join()
    assert seen == [False]
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from iet_agc.data import folders

    decode = folders.decode
    _colour(8).save(tmp_path / "a.png")
    monkeypatch.setattr(folders, "decode", lambda *given: (decode(*given)[0].resize((9, 9)), {}))
    assert "a.png is not what its header says, or changed while it was read: try again" in _message(tmp_path)


def test_broken_exif_is_no_orientation(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_encoded(_colour(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert load_images(tmp_path).shape == (3, 8, 8)


# -- damage at many places


def _valid_npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, images=_pixels(3, 1, 5, 5) // 64)
    return stream.getvalue()


def _valid_npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, _pixels(3, 1, 5, 5))
    return stream.getvalue()


WHOLE: dict[str, Callable[[], bytes]] = {
    "a.png": lambda: _encoded(_colour(), "PNG"),
    "palette.png": lambda: _encoded(_colour().quantize(8), "PNG"),
    "a.jpg": lambda: _encoded(_colour(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0"),
    "a.webp": lambda: _encoded(_colour(), "WEBP", lossless=True),
    "a.gif": lambda: _encoded(_colour(), "GIF"),
    "a.bmp": lambda: _encoded(_colour(), "BMP"),
    "a.tif": lambda: _encoded(_colour(), "TIFF", compression="tiff_lzw"),
    "a.ppm": lambda: _encoded(_colour(), "PPM"),
    "a.npz": _valid_npz,
    "a.npy": _valid_npy,
}


def _damaged(whole: bytes, times: int) -> Iterator[bytes]:
    draw = np.random.default_rng(len(whole))
    for i in range(times):
        content = bytearray(whole)
        for at in draw.integers(0, min(len(whole), 160) if i % 2 else len(whole), size=1 + i % 3):
            content[at] = draw.integers(0, 256)
        cut = int(draw.integers(0, len(whole))) if i % 5 == 0 else len(whole)
        yield bytes(content[:cut])


def _outcome(path: Path) -> str:
    """The message, or nothing where images came out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image_set = load_images(path).images
    except ValueError as error:
        return str(error)
    assert image_set.dtype == torch.uint8
    assert image_set.ndim == 4
    return ""


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_bytes_raise_one_line_or_give_images(tmp_path: Path, name: str) -> None:
    whole = WHOLE[name]()
    outcomes = []
    for content in (whole, *_damaged(whole, 100)):
        (tmp_path / name).write_bytes(content)
        outcomes.append(_outcome(tmp_path / name if name.endswith(("npz", "npy")) else tmp_path))
    assert outcomes[0] == ""
    assert all(message.isprintable() for message in outcomes)
    assert sum(bool(message) for message in outcomes) > 20
