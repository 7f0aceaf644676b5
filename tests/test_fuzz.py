"""Some of the fuzz driver's cases (`make fuzz` has more), known dangers one by one, and a proof that it can fail."""

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from iet_agc import cli
from iet_agc.data.datasets.captioned_folder import read_captioned
from iet_agc.data.decoding import UnfitError, decode
from iet_agc.data.folders import load_images
from iet_agc.runtime.errors import UserError, one_line
from iet_agc.runtime.reading import parse_json, parse_toml, read_object, read_text
from tests.fuzz import Driver, call
from tests.miniature import captioned, save_captioned

CASES, SECONDS = 50, 120


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return Driver(tmp_path_factory.mktemp("fuzz") / "workshop", seed=1)


def test_no_damaged_file_gets_more_than_one_line(driver):
    began = time.monotonic()
    found = []
    for number in range(CASES):
        if time.monotonic() - began < SECONDS:
            found += driver.run(number)
    assert found == []
    assert driver.statuses.get(2, 0) > 10  # most files were refused, so they were read


@pytest.mark.parametrize("error", [KeyError("count"), UserError("a KeyError"), UserError("x " * 2000)])
def test_the_driver_finds_what_it_looks_for(driver, monkeypatch, error):
    def run(arguments):
        raise error

    for verb in ("_train", "_sample", "_audit", "_detect", "_report", "_compare", "_pipeline", "_presets"):
        monkeypatch.setattr(cli, verb, run)
    monkeypatch.setattr(cli, "one_line", lambda message: message)
    assert any(driver.run(number) for number in range(5))


# -- text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 70 + b"]" * 70, "nested too deeply"),
        (b"NaN", "NaN stands where a number belongs"),
        (b"1e999", "1e999 is no finite number"),
        (b"9" * 5000, "beyond 64 bits"),
        (b'{"a": 1, "a": 2}', "a stands there more than once"),
        (b'"\\ud800"', "stands in a text"),
        (b'"\\u0000"', "stands in a text"),
        (b"\xff", "not UTF-8, at byte 0"),
        (b"", r"is not JSON \(line 1, column 1: Expecting value\)"),
    ],
)
def test_json_is_refused_with_a_reason(content, reason):
    with pytest.raises(UserError, match=reason) as error:
        parse_json(content, "x.json", "copy it")
    assert str(error.value).startswith("x.json is ")
    assert str(error.value).endswith(": copy it")


def test_json_that_is_taken():
    text = '\ufeff{"a": [1, -2.5, null, true, "\\ud83d\\ude00", "\\\\u0000"], "b": {}}'
    assert parse_json(text.encode(), "x") == {"a": [1, -2.5, None, True, "😀", "\\u0000"], "b": {}}


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = nan", "a = 2020-01-01", f"a = {'9' * 30}", f"a = {'9' * 5000}", "a = ", "[a"]
)
def test_toml_is_refused(text):
    with pytest.raises(UserError, match=r"^x\.toml is damaged, .*: mend it$"):
        parse_toml(text, "x.toml")


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (os.mkfifo, "is a pipe, a socket or a device, not a file"),
        (lambda place: place.symlink_to("/dev/zero"), "is a pipe, a socket or a device, not a file"),
        (lambda place: place.symlink_to("nowhere"), "is not there"),
        (lambda place: place.mkdir(), "is a folder, not a file"),
        (lambda place: os.truncate(os.open(place, os.O_CREAT | os.O_WRONLY), 2**40), "is larger than 256 MiB"),
    ],
    ids=["pipe", "device", "nowhere", "folder", "huge"],
)
def test_only_files_with_an_end_are_read(tmp_path, put, reason):
    put(tmp_path / "x")
    for read in (read_text, read_object):
        with pytest.raises(UserError, match=reason):
            read(tmp_path / "x")


def test_a_line_stays_one_short_line():
    assert one_line("a\n b\x1b[1m\ud800") == "a b\\x1b[1m\\ud800"
    assert len(one_line("x" * 100_000)) <= 240
    assert len(one_line("x " * 100_000)) <= 800
    assert one_line("begin " + "x" * 1000 + " end").startswith("begin x")
    assert one_line("begin " + "x" * 1000 + " end").endswith("x end")


# -- hangs


def test_a_pipe_among_captions_is_refused(tmp_path):
    images = save_captioned(tmp_path / "set", captioned(2))
    os.mkfifo(images / "000.txt")
    with pytest.raises(UserError, match=r"000\.txt is a pipe, a socket or a device, not a file"):
        read_captioned(images, "txt")


def test_a_pipe_that_is_called_an_array_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(UserError, match=r"x\.npy is a pipe"):
        load_images(tmp_path / "x.npy")


def _jpeg(folder: Path, more: int) -> Path:
    """A picture of 64 x 64 that is cut in the middle, and zeros."""
    Image.effect_noise((64, 64), 50).save(folder / "x.jpg")
    size = (folder / "x.jpg").stat().st_size
    os.truncate(folder / "x.jpg", size // 2)
    os.truncate(folder / "x.jpg", more)
    return folder / "x.jpg"


def test_a_picture_of_gigabytes_is_refused_at_once(tmp_path):
    file = _jpeg(tmp_path, 2**33)
    began = time.thread_time()
    with pytest.raises(UnfitError, match="has 8589934592 bytes for 64 x 64 pixels: copy it again"):
        decode(lambda: file.open("rb"))
    assert time.thread_time() - began < 1


def test_a_picture_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    file = _jpeg(tmp_path, 2**21)
    monkeypatch.setattr("iet_agc.data.decoding._LONGEST", -1.0)
    began = time.thread_time()
    with pytest.raises(UnfitError, match="takes too long to be decoded"):
        decode(lambda: file.open("rb"))
    assert time.thread_time() - began < 0.2


def test_call_ends_what_does_not_end(monkeypatch):
    monkeypatch.setattr(cli, "_presets", lambda arguments: time.sleep(30))
    status, _ = call(["presets"], 0.2)
    assert type(status).__name__ == "_Hang"
