"""Tensors kept for others: found as they were made, or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from iet_agc.runtime.files import WriteError
from iet_agc.runtime.kept_tensors import KeptTensors
from tests.processes import Program

ROWS = {"features": torch.arange(12.0).view(4, 3), "logits": torch.ones(4, 2, dtype=torch.float64)}
KEY = ["pixels", False, 3]


@pytest.fixture
def kept(tmp_path: Path) -> KeptTensors:
    return KeptTensors(tmp_path / "cache")


def entry(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache").glob("*.safetensors")
    return file


def test_what_was_kept_is_found_by_its_key_alone(kept: KeptTensors) -> None:
    assert kept.find(KEY) is None
    kept.keep(KEY, ROWS)
    found = kept.find(KEY)
    assert found is not None
    assert found.keys() == ROWS.keys()
    assert all(torch.equal(found[name], ROWS[name]) and found[name].dtype == ROWS[name].dtype for name in ROWS)
    assert kept.find(["pixels", True, 3]) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content.replace(b'"F32"', b'"I32"'),
        lambda content: b"",
        lambda content: b"\xff" * len(content),
    ],
    ids=["short", "one bit", "type", "empty", "other"],
)
def test_a_damaged_entry_is_none_and_is_replaced(
    tmp_path: Path, kept: KeptTensors, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    kept.keep(KEY, ROWS)
    whole = entry(tmp_path).read_bytes()
    assert damage(whole) != whole
    entry(tmp_path).write_bytes(damage(whole))
    assert kept.find(KEY) is None
    assert capsys.readouterr().err == f"{entry(tmp_path)} is damaged: what it holds is computed again\n"
    kept.keep(KEY, ROWS)
    assert entry(tmp_path).read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(WriteError, match=r"cache cannot keep features, .*: choose another cache, or none") as error:
        KeptTensors(tmp_path / "cache").keep(KEY, ROWS)
    assert "\n" not in str(error.value)


def test_processes_that_keep_the_same_at_once_leave_it_whole(tmp_path: Path, kept: KeptTensors) -> None:
    rows = {"features": torch.arange(2.0**18).view(-1, 64)}

    def keep_often() -> None:
        for _ in range(20):
            kept.keep(KEY, rows)
            found = kept.find(KEY)
            assert found is not None
            assert torch.equal(found["features"], rows["features"])

    ended = [program.ended() for program in [Program(keep_often) for _ in range(3)]]
    assert [(each.returncode, each.stderr) for each in ended] == [(0, "")] * 3
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".safetensors", ".lock"}
