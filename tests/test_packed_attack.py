"""Attacks in a pack: what is in it, every number of it, and attacks that are no part of it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iet_agc
from iet_agc.auditing.attack import attack_model, read_attack_record
from iet_agc.auditing.drawings import DRAWINGS, read_drawings
from iet_agc.auditing.pack import pack_audits
from iet_agc.auditing.recount_attack import recount_attack
from iet_agc.auditing.verify import verify_pack
from iet_agc.runtime.errors import UserError
from tests.commands import call
from tests.packs import audited_run, content, edited

ATTACK = "attacks/attack/attack.json"
HOW: Any = {"budget": 30, "steps": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_networks: None) -> iet_agc.Run:
    return audited_run(tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="module")
def attacked(run: iet_agc.Run) -> Path:
    """With a cut so high that something is recovered."""
    attack_model(run.folder, run.folder.parent / "attack", **HOW)
    return run.folder.parent / "attack"


@pytest.fixture(scope="module")
def pack(run: iet_agc.Run, attacked: Path) -> Path:
    return iet_agc.pack(run.folder / "audit", out=run.folder.parent / "pack", attacks=attacked).folder


def test_it_holds_the_attack_and_is_sound(pack: Path, attacked: Path) -> None:
    found = verify_pack(pack)
    assert (found["sound"], found["changed"], found["differences"]) == (True, [], [])
    assert found["documents"] == 6
    assert [note.split(":")[0] for note in found["notes"]] == ["attacks/attack"]
    files = content(pack)
    for name in ("attack.json", "images.csv", DRAWINGS, "attack.html"):
        assert files[f"attacks/attack/{name}"] == (attacked / name).read_bytes()
    record, manifest = read_attack_record(attacked), json.loads(files["manifest.json"])
    assert record.images is not None
    assert manifest["attacks"]["attack"] == {"images": record.images.model_dump(), "weights": record.weights_sha256}
    assert manifest["audits"]["audit"]["images"]["train"] == record.images.train
    assert {*record.weights_sha256.values()} <= {*manifest["audits"]["audit"]["weights"].values()}


def test_budget_outcome_and_control_stand_beside_what_asks_for_them(pack: Path) -> None:
    found = json.loads((pack / "evidence.json").read_text())
    record = json.loads((pack / ATTACK).read_text())
    facts = {fact["number"]: fact for fact in found["facts"] if fact["file"] == ATTACK}
    assert facts["budget"]["value"] == 30
    assert facts["found"]["title"] == "outcome"
    for number, each in enumerate(record["found"]["attacks"]):
        for kind in ("train", "held_out"):
            fact = facts[f"found.attacks.{number}.{kind}.share"]
            assert (fact["value"], fact["ci95"]) == (each[kind]["share"], each[kind]["ci95"])
            assert fact["supports"] == ["EDPB 28/2024", "NIST MS-2.10-001"]
    page = (pack / "index.html").read_text()
    assert 'href="attacks/attack/attack.html"' in page
    assert "No attack on the model" not in page
    card = (pack / "runs/run/model-card.md").read_text()
    assert "### Looked for as an adversary would: training images are" in card
    assert "within a budget of 30 plain samples of 2 steps" in card


def lowered(*path: str | int) -> Callable[[Any], None]:
    def change(record: Any) -> None:
        for each in path[:-1]:
            record = record[each]
        record[path[-1]] = record[path[-1]] * 0.99 - 1e-7

    return change


def another_weight(record: Any) -> None:
    record["weights_sha256"] = dict.fromkeys(record["weights_sha256"], "0" * 64)


def nearer(arrays: Any) -> None:
    arrays["redrawing_train_ratios"][3] = 1e-6


@pytest.mark.parametrize(
    ("file", "change", "where"),
    [
        (ATTACK, lowered("found", "attacks", 1, "train", "ci95", 1), f"{ATTACK}: found.attacks.1.train.ci95.1"),
        (ATTACK, lowered("found", "attacks", 0, "held_out", "ci95", 1), "found.attacks.0.held_out.ci95.1"),
        (ATTACK, lowered("found", "attacks", 1, "beyond_chance", "value"), "found.attacks.1.beyond_chance.value"),
        (ATTACK, lowered("found", "attacks", 0, "per_hour", "ci95", 1), "found.attacks.0.per_hour.ci95.1"),
        (ATTACK, lowered("found", "attacks", 1, "cut"), "found.attacks.1.cut"),
        (ATTACK, lambda record: record.update(budget=3000), f"{ATTACK}: budget"),
        (ATTACK, lambda record: record["found"].update(num_train=9), "found.num_train"),
        (ATTACK, lowered("found", "audit_cut"), "attack.json: audit_cut"),
        (ATTACK, another_weight, "weights_sha256"),
        ("attacks/attack/images.csv", lambda text: re.sub(r"(\ntrain,\d+,.*?)0\.", r"\g<1>7.", text, count=1), "train"),
        ("attacks/attack/images.csv", lambda text: text.replace("\nheld_out,", "\ntrain,", 1), "images.csv: train"),
        (
            "attacks/attack/images.csv",
            lambda text: re.sub(r"(\ntrain,\d+,[^,]*,)\d", r"\g<1>77", text, count=1),
            "multiplicity",
        ),
        (f"attacks/attack/{DRAWINGS}", nearer, "redrawing_score"),
        ("attacks/attack/attack.html", lambda text: text.replace("may recover", "recover"), "attack.html, line"),
        ("evidence.json", lambda found: found["facts"][-2].update(value=0.5), "evidence.json, line"),
        ("runs/run/model-card.md", lambda text: text.replace("adversary", "friend"), "model-card.md, line"),
    ],
)
def test_what_is_edited_is_named_though_all_digests_agree(
    pack: Path, tmp_path: Path, file: str, change: Callable[[Any], Any], where: str
) -> None:
    found = verify_pack(edited(pack, tmp_path / "pack", file, change))
    assert not found["sound"]
    assert where in " ".join(str(each) for each in found["differences"])


def test_every_changed_byte_is_named(pack: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pack, tmp_path / "pack"))
    for name, written in content(pack).items():
        if name.startswith("attacks/"):
            for at in (0, len(written) // 2, -1):
                changed = bytearray(written)
                changed[at] ^= 1
                (copy / name).write_bytes(changed)
                assert [each["file"] for each in verify_pack(copy)["changed"]] == [name]
            (copy / name).write_bytes(written)


def of_others(run: iet_agc.Run, attacked: Path, place: Path) -> str:
    """Of the same run, the weights that no sample was drawn from."""
    sampled = Path(read_attack_record(attacked).pipeline).name
    attack_model(run.folder, place / "a", weights="ema" if sampled == "raw" else "raw", **HOW)
    return "is an attack on other weights than those that the audits are of"


def of_before(run: iet_agc.Run, attacked: Path, place: Path) -> str:
    shutil.copytree(attacked, place / "a")
    record = json.loads((place / "a" / "attack.json").read_text())
    del record["seal"], record["images"]
    (place / "a" / "attack.json").write_text(json.dumps(record))
    return "does not hold drawings.npz, which older attacks lack"


def damaged(run: iet_agc.Run, attacked: Path, place: Path) -> str:
    shutil.copytree(attacked, place / "a")
    (place / "a" / "images.csv").write_text("set\n")
    return "images.csv is not as it was written"


def nothing(run: iet_agc.Run, attacked: Path, place: Path) -> str:
    return "attack.json is not there: give a folder that 'iet-agc attack' wrote"


@pytest.mark.parametrize("made", [of_others, of_before, damaged, nothing])
def test_attacks_that_do_not_belong_are_refused_before_anything_is_written(
    run: iet_agc.Run, attacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], made: Any
) -> None:
    told = made(run, attacked, tmp_path)
    capsys.readouterr()
    audit = str(run.folder / "audit")
    status, out, err = call(capsys, "pack", audit, "--attack", str(tmp_path / "a"), "--out", str(tmp_path / "pack"))
    assert (status, out) == (2, "")
    assert told in err
    assert [line for line in err.splitlines() if not line.startswith("warning")][1:] == []
    assert not (tmp_path / "pack").exists()


def test_a_pack_with_an_attack_is_another_one(run: iet_agc.Run, pack: Path, attacked: Path) -> None:
    before = content(pack)
    pack_audits([run.folder / "audit"], pack, [attacked])
    assert content(pack) == before
    with pytest.raises(UserError, match="holds another pack"):
        pack_audits([run.folder / "audit"], pack)


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("totals", np.array([2**40, 497]), "are not all below"),
        ("sampling_train_targets", np.zeros(3, np.int64), "are not 30 whole numbers"),
        ("redrawing_train_ratios", np.full(15, np.nan), "are not ratios"),
        ("redrawing_train_places", np.arange(15) + 10**6, "are not all below"),
        ("redrawing_train_places", np.zeros(15, np.int64), "are not ascending"),
        ("more", np.zeros(3), "there is no array 'more'"),
    ],
)
def test_drawings_that_do_not_fit_are_refused(
    attacked: Path, tmp_path: Path, name: str, array: np.ndarray, told: str
) -> None:
    with np.load(attacked / DRAWINGS) as archive:
        arrays: dict[str, Any] = dict(archive) | {name: array}
    np.savez(tmp_path / DRAWINGS, **arrays)
    with pytest.raises(UserError, match=told):
        read_drawings(tmp_path, ("sampling", "redrawing"))


def test_numbers_are_counted_again_where_something_is_recovered(attacked: Path) -> None:
    found = recount_attack(attacked)
    rows = (attacked / "images.csv").read_text().count("\n") - 1
    assert found.differences == []
    assert found.counted > 5 * rows
