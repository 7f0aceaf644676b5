"""The same audit again: over in a moment where nothing changed, asked for in full where anything did."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iet_agc.auditing import run
from iet_agc.auditing.finished import INPUTS, Asked, inputs_of
from tests.commands import call

ASKED = ("--train", "t.npy", "--samples", "s.npy", "--held-out", "h.npy", "--extractor", "pixels", "--device", "cpu")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    images = torch.randint(0, 256, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for name, part in zip("tsh", images.split([200, 60, 140]), strict=True):
        np.save(f"{name}.npy", part.numpy())
    return tmp_path


def again(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[Any, str, str]:
    """The same command, where an audit in full would fail."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("in full")

    with monkeypatch.context() as patched:
        patched.setattr(run, "audit_sources", refuse)
        return call(capsys, "audit", *ASKED, "--out", "a", *more)


def test_the_same_audit_is_not_made_again(folder, capsys, monkeypatch) -> None:
    first = call(capsys, "audit", *ASKED, "--out", "a")
    there = {file.name: file.read_bytes() for file in (folder / "a").iterdir()}
    status, printed, said = again(capsys, monkeypatch)
    assert (status, first[0]) == (0, 0)
    assert "a holds this audit: nothing to do" in said
    assert there == {file.name: file.read_bytes() for file in (folder / "a").iterdir()}
    assert json.loads(printed) | {"names": None} == json.loads(first[1]) | {"names": None}


def test_another_share_decides_the_gate_anew_and_the_page_goes(folder, capsys, monkeypatch) -> None:
    call(capsys, "audit", *ASKED, "--out", "a", "--fail-above", "0.5")
    call(capsys, "report", "a")
    assert again(capsys, monkeypatch, "--fail-above", "0.5")[0] == 0
    assert (folder / "a" / "report.html").exists()
    _, printed, said = again(capsys, monkeypatch, "--fail-above", "0.4")
    assert "check passed" in said
    assert json.loads(printed)["gate"]["fail_above"] == 0.4
    assert not (folder / "a" / "report.html").exists()
    assert call(capsys, "check", "a", "--fail-above", "0.4")[0] == 0  # it is sealed
    assert call(capsys, "report", "a")[0] == 0


@pytest.mark.parametrize("change", ["samples", "flips", "damage", "inputs"])
def test_what_changed_is_asked_for_in_full(change, folder, capsys, monkeypatch) -> None:
    call(capsys, "audit", *ASKED, "--out", "a")
    more = ()
    if change == "samples":
        os.utime("s.npy", ns=(1, 1))
    if change == "flips":
        more = ("--flips",)
    if change == "damage":
        file = folder / "a" / "samples.csv"
        file.write_bytes(file.read_bytes()[:-1] + b" ")
    if change == "inputs":
        (folder / "a" / INPUTS).write_text("{")
    with pytest.raises(AssertionError, match="in full"):
        again(capsys, monkeypatch, *more)


def test_inputs_that_cannot_be_told_are_not(folder) -> None:
    asked = Asked("t.npy", "s.npy", None, folder / "a", device="cpu")
    assert inputs_of(replace(asked, clip="some/hub-id")) is None
    assert inputs_of(replace(asked, train="not-there")) is None
    known = inputs_of(asked)
    assert known is not None
    assert inputs_of(replace(asked, train="digits")) not in (None, known)
    (folder / "a").mkdir()
    (folder / "a" / "x").touch()
    assert inputs_of(asked) == known
