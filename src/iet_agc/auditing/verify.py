"""Check a pack: is every byte as it was written, and does every printed number follow from what the pack holds?

Three steps, each of which ends the check where it fails:

1. what may lie there at all: links, devices, names that lead elsewhere, bombs and pickles are refused (bad input);
2. every file against its SHA-256, and the manifest and the statement against their one form;
3. every number of every audit and attack counted again from the scores of each image, every document made again.

With the images, the distances, and with them the quality, are measured again as well, and compared.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from iet_agc.auditing.finished import Asked
from iet_agc.auditing.pack import OF_ATTACK, OF_AUDIT, OF_RUN, attack_told, documents, is_of_audited
from iet_agc.auditing.pack_folder import (
    MANIFEST,
    STATEMENT,
    changed_files,
    check_files,
    files_below,
    read_manifest,
)
from iet_agc.auditing.recount import MOST_ARRAYS, Difference, Recount, compare_leaves, read_table, recount
from iet_agc.auditing.schema import AuditRecord, read_record
from iet_agc.auditing.sources import Part
from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import Mending
from iet_agc.reporting.charts import undrawn
from iet_agc.runtime.array_files import read_arrays
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import sha256
from iet_agc.runtime.paths import network_options
from iet_agc.runtime.reading import read_text

__all__ = ["Images", "verify_pack"]

#: What is drawn, which other libraries draw otherwise; all else on a page is compared.
_DRAWN = re.compile(r"<svg.*?</svg>|data:image/[^\"']*", re.DOTALL)

#: In the features of networks numbers are those of another machine only so far, relatively.
_ROUNDING = 1e-3

#: The table of training images, whose groups an audit may have been given.
_IMAGES = "training-images.csv"

#: What is another one whenever an audit is made again.
_OF_ITS_MAKING = ("made_of", "names", "provenance", "mending", "warnings", "version", "clip")

#: Why only pixels were measured again.
_NO_NETWORK = (
    "only pixels were measured again: the audit used a network that is a file, which a pack cannot be trusted to name; "
    "give that file as an extractor"
)


@dataclass(frozen=True)
class Images:
    """Where images are from which an audit is measured again, as `iet-agc audit` takes them; `given` are in memory.

    A pack names networks, and may name any file: only those of these `extractors` are loaded whose SHA-256 it tells.
    """

    train: str
    samples: str
    held_out: str | None = None
    given: Mapping[Part, ImageSet] = field(default_factory=dict)
    extractors: Sequence[Path] = ()


@dataclass
class _Found:
    """What came of a check.

    Attributes:
        counted: numbers that were counted again; `measured`: and those that were measured again, from images.
        documents: how many were made again and are the same.
        notes: what was not compared, and why, in words.
    """

    changed: dict[str, str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    counted: int = 0
    measured: int = 0
    documents: int = 0
    only_images: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def verify_pack(pack: Path, images: Images | None = None, digest: str | None = None) -> dict[str, Any]:
    """Check a pack: what `iet-agc verify` does. Nothing is written, nothing is fetched.

    Args:
        pack: the folder.
        images: from which the distances are measured again; None: numbers are counted from those in the pack.
        digest: SHA-256 that `iet-agc pack` told; the pack has to be that one.

    Returns:
        A summary, JSON values only; "sound" is False where anything differs.

    Raises:
        UserError: it is no pack, or a hostile one.
    """
    if not pack.is_dir() or pack.is_symlink():
        raise UserError(f"{pack} is no folder: give one that 'iet-agc pack' wrote", "pack")
    files = files_below(pack)
    manifest = read_manifest(pack)
    if manifest:
        check_files(pack, manifest)
    found = _Found(changed=changed_files(pack, files, manifest))
    told = sha256(pack / STATEMENT) if STATEMENT in files else None
    if digest is not None and told != digest.lower():
        found.changed[STATEMENT] = f"is not that of the digest {digest.lower()[:64]}"
    if manifest and not found.changed:
        _count(pack, manifest, found)
        if images and not found.differences:
            _measure(pack, manifest, images, found)
    return {
        "pack": str(pack),
        "sound": not (found.changed or found.differences),
        "digest": told,
        "files": len(files),
        "changed": [{"file": name, "how": how} for name, how in sorted(found.changed.items())],
        "differences": [asdict(each) for each in found.differences],
        "counted": found.counted,
        "documents": found.documents,
        "measured": found.measured,
        "only_images": found.only_images,
        "notes": found.notes,
    }


# Counting again ---------------------------------------------------------------------------------------------


def _count(pack: Path, manifest: Mapping[str, Any], found: _Found) -> None:
    """Numbers and documents, from what the pack holds."""
    for name in _audits(manifest):
        result = recount(pack / "audits" / name)
        found.counted += result.counted
        found.differences += [replace(each, where=f"audits/{each.where}") for each in result.differences]
        for each, count in result.only_images.items():
            found.only_images[each] = found.only_images.get(each, 0) + count
        _compare_facts(pack, name, manifest, found)
    for name in sorted(manifest.get("attacks", ())):
        _count_attack(pack, name, manifest, found)
    facts = {name: value for name, value in manifest.items() if name != "seal"}
    theirs, ours = facts["packed_with"].get("iet-agc"), version("iet-agc")
    if theirs != ours:
        found.notes.append(f"documents were not made again: iet-agc {theirs!s:.20} wrote them, this is {ours}")
        return
    try:
        made = _documents(pack, facts)
    except UserError as error:
        if not found.differences:
            raise
        found.notes.append(f"documents were not made again: {error}")  # what differs matters more
        return
    for name, text in made.items():
        _compare_text(name, read_text(pack / name) if (pack / name).is_file() else "", text, found)
    known = {*made, *_copied(manifest), MANIFEST, STATEMENT}
    found.differences += [
        Difference(name, "a file of the pack", "no file that a pack has")
        for name in manifest["seal"]["files"]
        if name not in known
    ]


def _count_attack(pack: Path, name: str, manifest: Mapping[str, Any], found: _Found) -> None:
    """Numbers of an attack, and whether it is on what was audited."""
    from iet_agc.auditing.attack import read_attack_record
    from iet_agc.auditing.recount_attack import ONLY_DRAWING, compare_with_audit, recount_attack

    folder = pack / "attacks" / name
    compared = [compare_with_audit(folder, pack / "audits" / each) for each in _audits(manifest)]
    for result in filter(None, [recount_attack(folder), *compared]):
        found.counted += result.counted
        found.differences += [replace(each, where=f"attacks/{each.where}") for each in result.differences]
    found.notes.append(f"attacks/{name}: {ONLY_DRAWING}")
    if not any(compared):
        found.notes.append(f"attacks/{name}: the audit's cut is as told, since no audit here is of the same images")
    record = read_attack_record(folder)
    if manifest["attacks"][name] != attack_told(record):
        found.differences.append(Difference(f"{MANIFEST}: attacks.{name}", "other digests", "the attack's"))
    elif not is_of_audited(attack_told(record), manifest):
        where = f"attacks/{name}/attack.json: weights_sha256"
        found.differences.append(Difference(where, "weights that were audited", "those of no audit of these images"))


def _audits(manifest: Mapping[str, Any]) -> list[str]:
    """Names of the audits.

    Raises:
        UserError: the manifest does not say them as a pack's does.
    """
    try:
        names = sorted(manifest["audits"])
        runs = [run["audits"] for run in manifest["runs"].values()]
        parts = [*names, *manifest["runs"], *manifest.get("attacks", ())]
        usable = names and all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in parts)
        if usable and all({*each} <= {*names} for each in runs) and manifest["packed_with"].get("iet-agc"):
            return names
    except (KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{MANIFEST} does not say what the pack holds: it was not written by 'iet-agc pack'")


def _documents(pack: Path, facts: Mapping[str, Any]) -> dict[str, str]:
    try:
        with undrawn():  # nor is it compared, see `_compare_text`
            return documents(pack, facts)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{MANIFEST} does not say what documents are made of: {in_words(error)}") from None


def _copied(manifest: Mapping[str, Any]) -> set[str]:
    """Paths of the files that a pack takes as they are, of these audits and runs."""
    found = {f"audits/{name}/{file}" for name in manifest["audits"] for file in ("audit.json", *OF_AUDIT)}
    found |= {f"attacks/{name}/{file}" for name in manifest.get("attacks", ()) for file in OF_ATTACK}
    found |= {f"runs/{name}/{file}" for name in manifest["runs"] for file in OF_RUN}
    curves = re.compile(r"runs/([^/]+)/curves/[^/]+\.jsonl")
    return found | {
        name for name in manifest["seal"]["files"] if (curve := curves.fullmatch(name)) and curve[1] in manifest["runs"]
    }


def _compare_facts(pack: Path, name: str, manifest: Mapping[str, Any], found: _Found) -> None:
    """What the manifest says of an audit, with the audit."""
    folder = pack / "audits" / name
    record = read_record(folder / "audit.json", OF_AUDIT)
    told = manifest["audits"][name]
    networks = {each: space.sha256 for each, space in record.feature_spaces.items()}
    for key, value in {"images": record.sha256.model_dump(mode="json"), "networks": networks}.items():
        if told.get(key) != value:
            found.differences.append(Difference(f"{MANIFEST}: audits.{name}.{key}", "other digests", "the audit's"))


def _compare_text(name: str, printed: str, made: str, found: _Found) -> None:
    """A document with what it has to be; what is drawn in it may be drawn otherwise."""
    if printed == made or _DRAWN.sub("", printed) == _DRAWN.sub("", made):
        found.documents += 1
        return
    there, here = _DRAWN.sub("", printed).splitlines(), _DRAWN.sub("", made).splitlines()
    pairs = enumerate(zip([*there, ""], [*here, ""], strict=False), start=1)
    line, (first, second) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    found.differences.append(Difference(f"{name}, line {line}", _short(first, second), _short(second, first)))


def _short(text: str, other: str) -> str:
    """A line from shortly before where it differs."""
    at = next(
        (place for place, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other))
    )
    return json.dumps(text[max(at - 20, 0) : at + 40])


# Measuring again --------------------------------------------------------------------------------------------


def _measure(pack: Path, manifest: Mapping[str, Any], images: Images, found: _Found) -> None:
    """Make the audits of these images again, in a folder that is removed, and compare."""
    names = _audits(manifest)
    for name in names:
        folder = pack / "audits" / name
        record = read_record(folder / "audit.json")
        with ExitStack() as stack:
            again = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "audit"
            try:
                made = _audit_again(folder, record, images, again)
            except UserError as error:
                if len(names) == 1:
                    raise
                found.notes.append(f"audits/{name} was not measured again: {error}")
                continue
            if len(names) > 1 and made.sha256.samples != record.sha256.samples:
                found.notes.append(f"audits/{name} was not measured again: it is of other samples")
                continue
            result, whole = Recount(), _networks(record, images.extractors) is not None
            _compare_audit(folder, record, made, again, result, whole)
            found.measured += result.counted
            found.differences += result.differences
            if record.clip:
                found.notes.append(
                    f"audits/{name}: the CLIP score was not measured again, since its model may be fetched"
                )
            if not whole:
                found.notes.append(f"audits/{name}: {_NO_NETWORK}")
            for each in [*found.only_images]:
                if whole or not each.startswith(("feature space", "quality")):
                    found.only_images.pop(each)
    if not found.measured and not found.differences:
        raise UserError("no audit of the pack is of these samples: give those that it was made of", "samples")


def _audit_again(folder: Path, record: AuditRecord, images: Images, out: Path) -> AuditRecord:
    """The same audit, of these images; groups that were given are those of its table."""
    from iet_agc.auditing.run import audit_sources

    told, mended = record.conventions, record.mending
    mending = Mending()
    if mended:
        mending = Mending(mended.orient, mended.background, mended.on_bad, mended.resize, mended.crop)
    size = None
    if told.convert_to:
        channels, height, width = map(int, told.convert_to.split("x"))
        size = channels, height, width
    names = _networks(record, images.extractors)
    asked = Asked(
        images.train,
        images.samples,
        images.held_out,
        out,
        flips=told.flips,
        extractors=names or (),
        convert_to=size,
        mending=mending,
        measure_quality=names is not None and record.quality.extractor is not None,
        groups=record.groups is not None and (record.groups.origin == "searched" or str(folder / _IMAGES)),
        transformed=record.transformed is not None,
    )
    return audit_sources(asked, fail_above=record.gate.fail_above if record.gate else None, given=images.given)


def _networks(record: AuditRecord, given: Sequence[Path]) -> list[str] | None:
    """The networks of an audit, by name or as files that are given; None where one of them cannot be had."""
    files = {sha256(file): str(file) for file in given}
    known = {name: space.sha256 for name, space in record.feature_spaces.items()}
    quality = record.quality.extractor
    names: list[str] = []
    wanted: list[str] = [*([quality] if quality else []), *known]
    for name in dict.fromkeys(wanted):
        if "/" not in name and not Path(name).suffix:
            names.append(name)
        elif (file := files.get(known.get(name) or "")) is not None:
            names.append("?".join(filter(None, (file, network_options(name)))))
        else:
            return None
    return names


def _compare_audit(
    folder: Path, record: AuditRecord, made: AuditRecord, again: Path, result: Recount, whole: bool
) -> None:
    """Compare all that was measured again: `whole`, or in pixels only."""
    printed, expected = (json.loads(each.model_dump_json()) for each in (record, made))
    for name in _OF_ITS_MAKING + (() if whole else ("quality", "feature_spaces", "verdict", "gate")):
        for each in (printed, expected):
            each.pop(name)
    if whole:  # a network is called by the file that it was given as
        expected["feature_spaces"] = dict(
            zip(printed["feature_spaces"], expected["feature_spaces"].values(), strict=True)
        )
        for where in (printed, *printed["feature_spaces"].values()):
            where["quality"].pop("extractor")
        for where in (expected, *expected["feature_spaces"].values()):
            where["quality"].pop("extractor")
        for each in (
            printed,
            expected,
        ):  # verdict and gate call networks by their files; both are counted again elsewhere
            each.pop("verdict")
            each.pop("gate")
    of_networks = {name: expected.pop(name) for name in ("quality", "feature_spaces") if whole}
    if record.transformed:
        of_networks["transformed"] = expected.pop("transformed")  # rounded as theirs
    file = f"audits/{folder.name}/audit.json, measured again"
    rest = compare_leaves(file, printed, expected, result)
    for path, value in rest.items():
        if path[0] not in of_networks and value is not None:
            result.differences.append(Difference(f"{file}: {'.'.join(map(str, path))}", "there", "nothing"))
    compare_leaves(file, {name: printed[name] for name in of_networks}, of_networks, result, _ROUNDING)
    for name in ("scores.npz", "pictures.npz"):
        _compare_npz(folder, again, name, result, whole)
    for name in ("samples.csv", _IMAGES):
        _compare_table(folder, again, name, result)


def _compare_npz(folder: Path, again: Path, name: str, result: Recount, whole: bool) -> None:
    """Arrays: of pixels bit by bit, of networks and of what was resampled up to rounding."""
    printed, made = (read_arrays(each / name, MOST_ARRAYS) for each in (folder, again))
    for array in sorted({*printed, *made}):
        if not whole and array.startswith(("features", "similar")):
            continue
        first, second = printed.get(array), made.get(array)
        result.counted += 0 if second is None else second.size
        if first is None or second is None or first.shape != second.shape or first.dtype.kind != second.dtype.kind:
            same = False
        elif second.dtype.kind == "f" and array.startswith(("features", "similar", "pixels_transformed")):
            same = bool(np.allclose(first, second, rtol=_ROUNDING, atol=_ROUNDING))
        elif array == "transformed_overlaid":  # resampled, so rounded to another grey level
            same = bool((np.maximum(first, second) - np.minimum(first, second) <= 1).all())
        else:
            same = bool(np.array_equal(first, second))
        if not same:
            where = f"audits/{folder.name}/{name}: {array}"
            result.differences.append(Difference(where, "other values", "what these images give"))


def _compare_table(folder: Path, again: Path, name: str, result: Recount) -> None:
    """Columns that images decide; names of files and seeds are those of who made it."""
    printed, made = (read_table(each / name) for each in (folder, again))
    columns = [
        each
        for each in (
            "ratio",
            "nearest",
            "distance",
            "mirrored",
            "image",
            "multiplicity",
            "copied",
            "group",
            "group_images",
            "transformed_nearest",
        )
        if each in made[0]
    ]
    for column in columns:
        first, second = ([row.get(column) for row in rows] for rows in (printed, made))
        result.counted += len(second)
        if first != second:
            row = next(
                (at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), len(second)
            )
            where = f"audits/{folder.name}/{name}: {column}, row {row}"
            told = [str(each[row]) if row < len(each) else "nothing" for each in (first, second)]
            result.differences.append(Difference(where, *told))
