"""Seals: no bit of what a result folder holds changes without a word."""

import json
from pathlib import Path

import numpy as np
import pytest

from iet_agc.reporting.audit_page import render
from iet_agc.reporting.comparison import compare
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import digest
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.seal import damaged, unsealed, write_sealed
from tests.audits_on_disk import audit_on_disk
from tests.faulty import contents

CONTENT = {"version": 1, "numbers": {"a": [1, 2.5, None], "é": "x"}, "tuple": (1, 2), "keys": {3: True}}
READ = {"samples.csv", "training-images.csv", "pictures.npz", "curves.json", "audit.json"}


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "it" / "deep").mkdir(parents=True)
    (tmp_path / "it" / "deep" / "table").write_text("a table")
    write_sealed(tmp_path / "it" / "it.json", CONTENT, ["deep/table"])
    return tmp_path / "it"


def test_what_was_written_is_read(folder: Path) -> None:
    file = folder / "it.json"
    (folder / "notes.txt").write_text("a person's")
    found = unsealed(file, read_object(file, "again"), "again", None)
    assert found == json.loads(json.dumps(CONTENT))
    file.write_text(json.dumps(read_object(file, "again"), sort_keys=True))  # the same content, laid out otherwise
    assert unsealed(file, read_object(file, "again"), "again", None) == found


def test_no_bit_changes_without_a_word(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON is refused, or reads as it was written, but for its layout; or it has no seal, which is said."""
    file, honest = folder / "it.json", json.loads(json.dumps(CONTENT))
    for bit in range(8 * file.stat().st_size):
        flip(file, bit)
        try:
            found = unsealed(file, read_object(file, "again"), "again", None)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert found == honest or "has no digests" in capsys.readouterr().err
        flip(file, bit)
    for bit in range(8 * (folder / "deep" / "table").stat().st_size):
        flip(folder / "deep" / "table", bit)
        with pytest.raises(UserError, match=r"deep/table is not as it was written: do it again"):
            unsealed(file, read_object(file, ""), "do it again", ["deep/table"])
        unsealed(file, read_object(file, ""), "")  # who does not read the table does not look at it
        flip(folder / "deep" / "table", bit)
    (folder / "deep" / "table").unlink()
    assert list(damaged(file, read_object(file, ""), None)) == [folder / "deep" / "table"]


@pytest.mark.parametrize("seal", [3, [], {}, {"files": []}, {"files": {}, "content": None}])
def test_a_seal_that_is_none_is_refused(folder: Path, seal: object) -> None:
    content = read_object(folder / "it.json", "") | {"seal": seal}
    with pytest.raises(UserError, match=r"it.json is not as it was written: again"):
        unsealed(folder / "it.json", content, "again")


def test_digests_are_those_of_their_text() -> None:
    assert digest({"b": ["é"], "a": 1}) == digest({"a": 1, "b": ("é",)})
    assert digest([]) == "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"


def test_a_flipped_bit_in_an_audit_is_refused_and_mended_by_the_same_command(tmp_path: Path) -> None:
    rng, names = np.random.default_rng(0), [str(tmp_path / name) for name in ("train.npy", "samples.npy", "real.npy")]
    for name, count in zip(names, (130, 24, 105), strict=True):
        np.save(name, rng.integers(256, size=(count, 1, 8, 8), dtype=np.uint8))

    def audit() -> None:
        train, samples, real = names
        audit_on_disk(train, samples, real, tmp_path / "a", on_done=lambda share: None, device="cpu")

    audit()
    before = contents(tmp_path / "a")
    page = render({"a": tmp_path / "a"})
    assert before.keys() > READ
    for name in sorted(READ):
        for _ in range(6):
            flip(file := tmp_path / "a" / name, int(rng.integers(8 * len(before[name]))))
            with pytest.raises(UserError, match=rf"{name} is .*; run the same|{name} is .*: run the same|has version"):
                render({"a": tmp_path / "a"})
            if name == "audit.json":
                with pytest.raises(UserError):
                    compare([tmp_path / "a"])
            file.write_bytes(before[name])
    flip(tmp_path / "a" / "pictures.npz", 8 * len(before["pictures.npz"]) // 2)
    audit()
    assert contents(tmp_path / "a") == before
    assert render({"a": tmp_path / "a"}) == page
