"""A pack of evidence: audits, what their runs tell, and documents about both, in a folder that anyone can check.

See `iet_agc.auditing.pack_folder` for what lies there. Documents follow from the other files alone, so who checks a
pack makes them again.
"""

import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iet_agc.auditing.finished import FILES, SCORES, WATCH
from iet_agc.auditing.model_card import card_facts, told_facts
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
from iet_agc.reporting.croissant import croissant
from iet_agc.reporting.evidence import Fact, audit_facts, evidence, run_facts
from iet_agc.reporting.model_card import Audited, method_in_words, render_card
from iet_agc.reporting.pack_page import PackedAudit, PackedRun, render_pack
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.exposure import read_telemetry
from iet_agc.runtime.files import replace_text, replacing, sha256, shown
from iet_agc.runtime.progress import say
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.training.identity import check_files, read_identity

__all__ = ["OF_AUDIT", "OF_RUN", "documents", "pack_audits"]

#: Folders of a pack; what a killed call left there is made again.
_FOLDERS = ("audits", "runs")

#: What is taken of an audit beside audit.json, where it is there; and of a run, whose curves are taken as well.
OF_AUDIT = (*FILES, SCORES, WATCH, LIST_NAME)
OF_RUN = ("config.json", "identity.json", "telemetry.csv", "watch.jsonl")

#: Libraries that numbers and pages follow from.
_LIBRARIES = ("iet-agc", "torch", "numpy", "scipy", "matplotlib", "jinja2")


def pack_audits(audits: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write a pack: what `iet-agc pack` does.

    Args:
        audits: folders of audits. A run that one of them names as its training set, or in whose folder it lies, comes
            along, if the audit is against the images that it was trained on.
        out: folder of the pack. The same call again leaves a whole one as it is.

    Returns:
        A summary, JSON values only.

    Raises:
        UserError: no audit, a damaged one, or one of before audits kept what was measured; a run that is not finished,
            or samples that other weights drew; or `out` holds something else.
    """
    named = _named(audits)
    records = {name: _read(folder) for name, folder in named.items()}
    runs = _runs(named, records)
    made_of = {
        "audits": {name: sha256(folder / "audit.json") for name, folder in named.items()},
        "runs": {name: sha256(run / "identity.json") for name, run in runs.items()},
    }
    folder = ResultFolder(out, MANIFEST, "pack", "made_of", {"audits": "audits", "runs": "runs"})
    folder.check(made_of)
    with folder.at_work(made_of) as to_do:
        if to_do:
            _write(folder, named, records, runs, made_of)
        else:
            say(f"{shown(out)} holds this pack: nothing to do")
    return _summary(out)


def _named(audits: Sequence[Path]) -> dict[str, Path]:
    """Names for people, one for each audit: that of its folder, or, where it repeats, of both folders."""
    if not audits:
        raise UserError("a pack needs at least one audit: give a folder that 'iet-agc audit' wrote", "audits")
    names: dict[str, Path] = {}
    for folder in dict.fromkeys(each.resolve() for each in audits):
        plain = [_plain(folder.name), _plain(f"{folder.parent.name}-{folder.name}")]
        free = [*plain, *(f"{plain[1]}-{number}" for number in range(2, len(audits) + 2))]
        names[next(name for name in free if name.casefold() not in map(str.casefold, names))] = folder
    return names


def _plain(name: str) -> str:
    """A name as a pack has them."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] or "audit"
    return plain if is_safe(plain) else f"audit-{plain}"


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
    return _plain(run.name) if not index else f"{_plain(run.name)}-{index + 1}"


def _is_of(run: Path, record: AuditRecord) -> bool:
    known = read_identity(run)
    return known is not None and known["train"]["sha256"] == record.sha256.train


# Writing ----------------------------------------------------------------------------------------------------


def _write(
    folder: ResultFolder,
    named: Mapping[str, Path],
    records: Mapping[str, AuditRecord],
    runs: Mapping[str, Path],
    made_of: Mapping[str, Any],
) -> None:
    pack = folder.place
    for each in _FOLDERS:
        shutil.rmtree(pack / each, ignore_errors=True)
    for name, source in named.items():
        _copy(source, pack / "audits" / name, ["audit.json", *OF_AUDIT])
    about: dict[str, Any] = {"made_of": made_of, "runs": {}, "packed_with": _packed_with()}
    for name, run in runs.items():
        own = [each for each in named if _is_of(run, records[each])]
        about["runs"][name] = _take_run(run, pack / "runs" / name, {each: named[each] for each in own})
    facts = {"format": FORMAT, "version": VERSION, **about, "audits": {name: _told(records[name]) for name in named}}
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


def _told(record: AuditRecord) -> dict[str, Any]:
    """What the manifest says of an audit: which images and networks, and with what it was made."""
    networks = {name: space.sha256 for name, space in record.feature_spaces.items()}
    return {
        "images": record.sha256.model_dump(mode="json"),
        "networks": networks,
        "made_with": record.provenance.model_dump(mode="json") if record.provenance else None,
    }


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
    runs = []
    for name, told in sorted(facts["runs"].items()):
        place, audited = pack / "runs" / name, told["audits"]
        settings, known = read_settings(place), read_identity(place) or {}
        audits = [Audited(records[each], own) for each, own in audited.items()]
        made[f"runs/{name}/model-card.md"] = render_card(told_facts(told["title"], settings, known, audits))
        numbers += run_facts(name, method_in_words(settings), _skipped(place), known.get("privacy"))
        runs.append(PackedRun(name, told["title"], [*audited]))
    described = {f"training-set-{name}.json": name for name in _first_of_each(records)}
    for file, name in described.items():
        table = pack / "audits" / name / "training-images.csv"
        made[file] = _json(croissant(name, records[name], sha256(table), table.stat().st_size))
    made["evidence.json"] = _json(evidence(numbers))
    packed = [PackedAudit(name, record) for name, record in records.items()]
    made["index.html"] = render_pack(packed, runs, numbers, described, facts)
    return made


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
