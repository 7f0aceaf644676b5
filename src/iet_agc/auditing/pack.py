"""A pack of evidence: audits, attacks, what runs tell, and documents about these, in a folder that anyone can check.

See `iet_agc.auditing.pack_folder` for what lies there. Documents follow from the other files alone, so who checks a
pack makes them again.
"""

import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iet_agc.auditing.drawings import DRAWINGS, read_drawings
from iet_agc.auditing.finished import FILES, SCORES, WATCH
from iet_agc.auditing.model_card import card_facts, drawn_from, told_facts
from iet_agc.auditing.pack_folder import (
    FORMAT,
    MANIFEST,
    STATEMENT,
    VERSION,
    files_below,
    is_safe,
    manifest_text,
    statement_text,
)
from iet_agc.auditing.schema import AuditRecord, read_record
from iet_agc.config.fingerprint import fingerprint
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.data.mending import LIST_NAME
from iet_agc.reporting import audit_page
from iet_agc.reporting.attack_page import ATTACK_FILES
from iet_agc.reporting.croissant import croissant
from iet_agc.reporting.evidence import Fact, attack_facts, audit_facts, evidence, run_facts
from iet_agc.reporting.model_card import Attacked, Audited, method_in_words, render_card
from iet_agc.reporting.pack_page import PackedAudit, PackedRun, render_pack
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.exposure import read_telemetry
from iet_agc.runtime.files import replace_text, replacing, sha256, shown
from iet_agc.runtime.progress import say
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.training.identity import check_files, read_identity

if TYPE_CHECKING:
    from iet_agc.auditing.attack import AttackRecord

__all__ = ["OF_ATTACK", "OF_AUDIT", "OF_RUN", "attack_told", "documents", "is_of_audited", "pack_audits"]

#: Folders of a pack; what a killed call left there is made again.
_FOLDERS = ("audits", "attacks", "runs")

#: What is taken of an audit beside audit.json, where it is there; and of a run, whose curves are taken as well.
OF_AUDIT = (*FILES, SCORES, WATCH, LIST_NAME)
OF_RUN = ("config.json", "identity.json", "telemetry.csv", "watch.jsonl")

#: What is taken of an attack; its page is made again.
OF_ATTACK = (ATTACK_FILES["json"], ATTACK_FILES["csv"], DRAWINGS)

#: Libraries that numbers and pages follow from.
_LIBRARIES = ("iet-agc", "torch", "numpy", "scipy", "matplotlib", "jinja2")


def pack_audits(audits: Sequence[Path], out: Path, attacks: Sequence[Path] = ()) -> dict[str, Any]:
    """Write a pack: what `iet-agc pack` does.

    Args:
        audits: folders of audits. A run that one of them names as its training set, or in whose folder it lies, comes
            along, if the audit is against the images that it was trained on.
        out: folder of the pack. The same call again leaves a whole one as it is.
        attacks: folders of attacks on the weights that were audited.

    Returns:
        A summary, JSON values only.

    Raises:
        UserError: no audit, a damaged one, or one of before audits kept what was measured; a run that is not finished,
            or samples that other weights drew; an attack on another model, or of other training images; or `out` holds
            something else.
    """
    if not audits:
        raise UserError("a pack needs at least one audit: give a folder that 'iet-agc audit' wrote", "audits")
    named, tried = _named(audits, "audit"), _named(attacks, "attack")
    records = {name: _read(folder) for name, folder in named.items()}
    parts = _Parts(named, records, _runs(named, records), tried)
    about = {name: _told(record, bool(tried)) for name, record in records.items()}
    about_attacks = {name: _told_of_attack(folder, parts, about) for name, folder in tried.items()}
    made_of = {  # packs of before attacks have no such key
        "audits": {name: sha256(folder / "audit.json") for name, folder in named.items()},
        "runs": {name: sha256(run / "identity.json") for name, run in parts.runs.items()},
        "attacks": {name: sha256(_attack_file(folder)) for name, folder in tried.items()} or None,
    }
    folder = ResultFolder(out, MANIFEST, "pack", "made_of", {name: name for name in made_of})
    folder.check(made_of)
    with folder.at_work(made_of) as to_do:
        if to_do:
            known = {name: value for name, value in made_of.items() if value is not None}
            told = {"audits": about, **({"attacks": about_attacks} if tried else {})}
            _write(folder, parts, known, told)
        else:
            say(f"{shown(out)} holds this pack: nothing to do")
    return _summary(out)


@dataclass(frozen=True)
class _Parts:
    """What a pack is made of, by names for people: audits with their records, runs and attacks."""

    named: Mapping[str, Path]
    records: Mapping[str, AuditRecord]
    runs: Mapping[str, Path]
    attacks: Mapping[str, Path]

    def of_run(self, name: str) -> dict[str, Path]:
        """The audits against the images that a run was trained on."""
        return {each: self.named[each] for each, record in self.records.items() if _is_of(self.runs[name], record)}


def _attack_file(folder: Path) -> Path:
    if not (file := folder / ATTACK_FILES["json"]).is_file():
        raise UserError(f"{shown(file)} is not there: give a folder that 'iet-agc attack' wrote")
    return file


def _named(folders: Sequence[Path], what: str) -> dict[str, Path]:
    """Names for people, one for each folder: that of its own, or, where it repeats, of both folders."""
    names: dict[str, Path] = {}
    for folder in dict.fromkeys(each.resolve() for each in folders):
        plain = [_plain(folder.name, what), _plain(f"{folder.parent.name}-{folder.name}", what)]
        free = [*plain, *(f"{plain[1]}-{number}" for number in range(2, len(folders) + 2))]
        names[next(name for name in free if name.casefold() not in map(str.casefold, names))] = folder
    return names


def _plain(name: str, what: str) -> str:
    """A name as a pack has them."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or what
    return plain if is_safe(plain) else f"{what}-{plain}"


def _read(folder: Path) -> AuditRecord:
    record = read_record(folder / "audit.json", OF_AUDIT)
    if not (folder / SCORES).is_file():
        raise UserError(
            f"{shown(folder)} does not hold {SCORES}, which older audits lack: run the same 'iet-agc audit' again"
        )
    return record


def _runs(named: Mapping[str, Path], records: Mapping[str, AuditRecord]) -> dict[str, Path]:
    """The runs that audits name, by names for people."""
    found: dict[str, Path] = {}
    for name, folder in named.items():
        told = records[name].names
        for place in [*([Path(told.train)] if told else []), folder.parent]:
            if is_run(place) and _is_of(place, records[name]):
                found.setdefault(sha256(place / "identity.json"), place.resolve())
    return {_unique(run, index): run for index, run in enumerate(found.values())}


def _unique(run: Path, index: int) -> str:
    name = _plain(run.name, "run")
    return name if not index else f"{name}-{index + 1}"


def _is_of(run: Path, record: AuditRecord) -> bool:
    known = read_identity(run)
    return known is not None and known["train"]["sha256"] == record.sha256.train


# Writing ----------------------------------------------------------------------------------------------------


def _write(folder: ResultFolder, parts: _Parts, made_of: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    pack = folder.place
    for each in _FOLDERS:
        shutil.rmtree(pack / each, ignore_errors=True)
    for name, source in parts.named.items():
        _copy(source, pack / "audits" / name, ["audit.json", *OF_AUDIT])
    for name, source in parts.attacks.items():
        _copy(source, pack / "attacks" / name, OF_ATTACK)
    about: dict[str, Any] = {"made_of": made_of, "runs": {}, "packed_with": _packed_with()}
    for name, run in parts.runs.items():
        about["runs"][name] = _take_run(run, pack / "runs" / name, parts.of_run(name))
    facts = {"format": FORMAT, "version": VERSION, **about, **told}
    for name, text in documents(pack, facts).items():
        replace_text(pack / name, text)
    files = [name for name in files_below(pack, being_made=True) if name not in (MANIFEST, STATEMENT)]
    hashes = {name: sha256(pack / name) for name in files}
    replace_text(pack / STATEMENT, statement_text(facts, hashes))
    folder.finish(facts, [*files, STATEMENT])


def _copy(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(target / name) as unfinished:
                shutil.copyfile(source / name, unfinished)


def _take_run(run: Path, target: Path, audits: Mapping[str, Path]) -> dict[str, Any]:
    """Copy what a run tells, after comparing it with what it was, and say what its card needs beside that."""
    curves = sorted((run / "curves").glob("*.jsonl"))
    there = [run / name for name in OF_RUN if (run / name).is_file()] + curves
    check_files(run, [file for file in there if file.name not in ("config.json", "identity.json")])
    facts = card_facts(run, [*audits.values()])
    _copy(run, target, [str(file.relative_to(run)) for file in there])
    return {
        "title": facts.title,
        "settings": fingerprint(facts.settings),
        "weights": facts.weights,
        "audits": {name: audit.are_own for name, audit in zip(audits, facts.audits, strict=True)},
    }


def _told(record: AuditRecord, with_weights: bool) -> dict[str, Any]:
    """What the manifest says of an audit: which images and networks, with what it was made, and of which weights."""
    networks = {name: space.sha256 for name, space in record.feature_spaces.items()}
    origin = drawn_from(record) if with_weights else None
    return {
        "images": record.sha256.model_dump(mode="json"),
        "networks": networks,
        "made_with": record.provenance.model_dump(mode="json") if record.provenance else None,
        **({"weights": origin} if origin else {}),
    }


# Attacks ----------------------------------------------------------------------------------------------------


def _told_of_attack(folder: Path, parts: _Parts, audits: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of an attack, after comparing its files with what they were, and it with the audits.

    Raises:
        UserError: it is damaged, of before attacks kept what was drawn, or on what was not audited.
    """
    from iet_agc.auditing.attack import read_attack_record

    _attack_file(folder)
    record = read_attack_record(folder, OF_ATTACK)
    if record.images is None or not (folder / DRAWINGS).is_file():
        raise UserError(
            f"{shown(folder)} does not hold {DRAWINGS}, which older attacks lack: run the same 'iet-agc attack' with "
            "another output"
        )
    told = attack_told(record)
    runs = {name: {"weights": _exported(run), "audits": [*parts.of_run(name)]} for name, run in parts.runs.items()}
    if not is_of_audited(told, {"audits": audits, "runs": runs}):
        raise UserError(
            f"{shown(folder)} is an attack on other weights than those that the audits are of, or with other training "
            "images: attack the model that was audited"
        )
    return told


def _exported(run: Path) -> dict[str, dict[str, str]]:
    return (read_identity(run) or {}).get("weights") or {}


def attack_told(record: "AttackRecord") -> dict[str, Any]:
    """What the manifest says of an attack: which images, and which weights."""
    images = record.images.model_dump(mode="json") if record.images else {}
    return {"images": images, "weights": record.weights_sha256}


def is_of_audited(told: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether an attack is on weights, and against training images, of one and the same audit.

    Args:
        told: what the manifest says of the attack.
        facts: of the manifest; its "audits" and "runs".
    """
    weights = {*told["weights"].values()}
    return any(
        facts["audits"][name]["images"]["train"] == told["images"].get("train")
        and any(weights and weights <= each for each in known)
        for name, known in _audited_weights(facts).items()
    )


def _audited_weights(facts: Mapping[str, Any]) -> dict[str, list[set[str]]]:
    """By audit, the SHA-256 of the files that drew its samples; where these are not known, those of its run."""
    found: dict[str, list[set[str]]] = {}
    for name, audit in facts["audits"].items():
        of_runs = [
            {*files.values()}
            for run in facts["runs"].values()
            if name in run["audits"]
            for files in run["weights"].values()
        ]
        found[name] = [{*audit["weights"].values()}] if "weights" in audit else of_runs
    return found


def _packed_with() -> dict[str, str]:
    return {
        **{name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _summary(pack: Path) -> dict[str, Any]:
    manifest = json.loads((pack / MANIFEST).read_text(encoding="utf-8"))
    files = manifest["seal"]["files"]
    size = sum((pack / name).stat().st_size for name in files) + len(manifest_text(manifest))
    return {
        "pack": str(pack),
        "audits": [*manifest["made_of"]["audits"]],
        "runs": [*manifest["made_of"]["runs"]],
        "attacks": [*manifest["made_of"].get("attacks", ())],
        "files": len(files) + 1,
        "bytes": size,
        "digest": files[STATEMENT],
    }


# Documents --------------------------------------------------------------------------------------------------


def documents(pack: Path, facts: Mapping[str, Any]) -> dict[str, str]:
    """The documents of a pack, by path; they follow from its other files and the facts of its manifest.

    Raises:
        UserError: a file is damaged.
    """
    names = sorted(facts["audits"])
    records = {name: read_record(pack / "audits" / name / "audit.json") for name in names}
    made: dict[str, str] = {}
    for name in names:
        made[f"audits/{name}/report.html"] = audit_page.render({name: pack / "audits" / name})
    numbers: list[Fact] = [fact for name in names for fact in audit_facts(name, records[name])]
    tried = _attacks(pack, sorted(facts.get("attacks", ())), made)
    numbers += [fact for each in tried for fact in attack_facts(each)]
    runs = []
    for name, told in sorted(facts["runs"].items()):
        place, audited = pack / "runs" / name, told["audits"]
        settings, known = read_settings(place), read_identity(place) or {}
        audits = [Audited(records[each], own) for each, own in audited.items()]
        exported = [{*files.values()} for files in told["weights"].values()]
        own = [each for each in tried if any({*each.weights.values()} <= files for files in exported)]
        made[f"runs/{name}/model-card.md"] = render_card(told_facts(told["title"], settings, known, audits, own))
        numbers += run_facts(name, method_in_words(settings), _skipped(place), known.get("privacy"))
        runs.append(PackedRun(name, told["title"], [*audited]))
    described = {f"training-set-{name}.json": name for name in _first_of_each(records)}
    for file, name in described.items():
        table = pack / "audits" / name / "training-images.csv"
        made[file] = _json(croissant(name, records[name], sha256(table), table.stat().st_size))
    made["evidence.json"] = _json(evidence(numbers))
    packed = [PackedAudit(name, record) for name, record in records.items()]
    made["index.html"] = render_pack(packed, runs, tried, numbers, described, facts)
    return made


def _attacks(pack: Path, names: Sequence[str], made: dict[str, str]) -> list[Attacked]:
    """The attacks of a pack; their pages go to `made`."""
    if not names:
        return []
    from iet_agc.auditing.attack import attack_page, read_attack_record

    found = []
    for name in names:
        folder = pack / "attacks" / name
        record = read_attack_record(folder)
        drawings = read_drawings(folder, tuple(each.way for each in record.found.attacks))
        made[f"attacks/{name}/{ATTACK_FILES['html']}"] = attack_page(record, drawings)
        found.append(Attacked(name, record.budget, record.steps, record.weights_sha256, record.found))
    return found


def _first_of_each(records: Mapping[str, AuditRecord]) -> list[str]:
    """The first audit against each training set."""
    first: dict[str, str] = {}
    for name, record in records.items():
        first.setdefault(record.sha256.train, name)
    return [*first.values()]


def _skipped(run: Path) -> float | None:
    """The share of training examples that Anti-Gradient Control skipped; None where that was not kept."""
    if not (table := run / "telemetry.csv").is_file():
        return None
    seen, skipped = read_telemetry(table)
    return int(skipped.sum()) / max(int(seen.sum()), 1)


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
