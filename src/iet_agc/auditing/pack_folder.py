"""A pack on disk: what may lie there, what covers what, and the statement that its owner signs. No torch.

manifest.json     the mark of the folder: facts, and a seal with the SHA-256 of every other file
statement.json    an in-toto Statement of all files but these two, with the facts as its predicate; unsigned
index.html        what is in here, for people
evidence.json     each number beside what asks for such evidence
audits/NAME/      the folder of each audit, as it was written, with its page
attacks/NAME/     the same of each attack
runs/NAME/        settings, identity, telemetry and curves of each run that an audit names, with its model card
training-set-NAME.json    Croissant metadata of each training set; NAME is the first audit against it

A change of any byte is noticed: the seal covers every file but the manifest, and of the manifest and the statement
there is one form each that says what they say. The statement's own SHA-256 stands for the whole pack.
"""

import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import sha256, shown
from iet_agc.runtime.reading import parse_json, read_bytes
from iet_agc.runtime.seal import damaged, is_sealed

__all__ = [
    "FORMAT",
    "MANIFEST",
    "STATEMENT",
    "changed_files",
    "check_files",
    "files_below",
    "manifest_text",
    "read_manifest",
    "statement_text",
]

FORMAT = "iet-agc pack"
MANIFEST, STATEMENT = "manifest.json", "statement.json"
VERSION = 1

_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "urn:iet-agc:pack:1"

#: Limits of what is looked at: bytes of all files, how many there are, how deep they lie.
_ALL, _MOST, _DEEPEST = 8 * 2**30, 2000, 4

#: Bytes of the manifest and of the statement, which are read whole.
_LARGEST_TEXT = 16 * 2**20

#: Endings of the files that a pack has, and the most bytes of one. What is executed or unpickled is none of them.
_ENDINGS = {
    ".json": 2**26,
    ".jsonl": 2**28,
    ".csv": 2**27,
    ".npz": 2**30,
    ".html": 2**27,
    ".md": 2**24,
}

#: What a result folder has while it is made; the lock stays there.
_WORK = (".lock", ".parts")

#: A part of a path.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")

_REFUSED = "it was not written by 'iet-agc pack'"


# What may lie there -----------------------------------------------------------------------------------------


def files_below(pack: Path, being_made: bool = False) -> list[str]:
    """Paths of all files of a pack, in order, after looking at their kinds, names and sizes; none is opened.

    Args:
        pack: the folder.
        being_made: it is, so that its parts may lie there.

    Raises:
        UserError: a link, a device, a name that could lead elsewhere or is another's in other letters, a file of
            another kind, or more or larger ones than a pack has.
    """
    found, total = [], 0
    for name, entry in _entries(pack, pack, 0, _WORK if being_made else _WORK[:1]):
        status = entry.stat(follow_symlinks=False)
        total += status.st_size
        if len(found) >= _MOST or status.st_size > _ENDINGS[PurePosixPath(name).suffix] or total > _ALL:
            raise UserError(
                f"{shown(pack)} has more or larger files than a pack has, such as {shown(name)}: {_REFUSED}"
            )
        found.append(name)
    same: dict[str, str] = {}
    for name in found:
        other = same.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            raise UserError(f"{shown(pack)} has {shown(other)} and {shown(name)}, one name on some disks: {_REFUSED}")
    return sorted(found)


def _entries(pack: Path, folder: Path, depth: int, left: Sequence[str]) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = str(PurePosixPath(Path(entry.path).relative_to(pack)))
            mode = entry.stat(follow_symlinks=False).st_mode
            is_empty = stat.S_ISREG(mode) and not entry.stat(follow_symlinks=False).st_size
            if name in left and (is_empty or stat.S_ISDIR(mode)):
                continue
            if stat.S_ISLNK(mode) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
                raise UserError(f"{shown(pack)}: {shown(name)} is {kind}, which a pack has none of: {_REFUSED}")
            if not is_safe(name) or depth >= _DEEPEST:
                raise UserError(f"{shown(pack)}: {name!a:.120} is no name of a pack's file: {_REFUSED}")
            if stat.S_ISDIR(mode):
                yield from _entries(pack, Path(entry.path), depth + 1, ())
            elif PurePosixPath(name).suffix not in _ENDINGS:
                kind = "is of a kind that a pack has none of, and is not opened"
                raise UserError(f"{shown(pack)}: {shown(name)} {kind}: {_REFUSED}")
            else:
                yield name, entry


def is_safe(name: str) -> bool:
    """Whether a path stays in its folder, on every system."""
    return all(_PART.fullmatch(part) and not part.endswith(".") for part in name.split("/"))


# What covers what -------------------------------------------------------------------------------------------


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """The one form of a manifest with its seal; `iet_agc.runtime.seal.write_sealed` writes it."""
    return json.dumps(manifest, indent=1, allow_nan=False) + "\n"


def statement_text(facts: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """The one form of a pack's statement, see https://github.com/in-toto/attestation, spec v1.

    Args:
        facts: what the manifest says beside its seal.
        hashes: SHA-256 of every file but the manifest and the statement, by path.
    """
    statement = {
        "_type": _STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": hashes[name]}} for name in sorted(hashes)],
        "predicateType": _PREDICATE_TYPE,
        "predicate": facts,
    }
    return json.dumps(statement, indent=1, allow_nan=False) + "\n"


def read_manifest(pack: Path) -> dict[str, Any] | None:
    """A pack's manifest with its seal; None where it is not as it was written.

    Raises:
        UserError: there is none, or it is a bomb.
    """
    file = pack / MANIFEST
    if not file.is_file():
        raise UserError(f"{shown(file)} is not there: give a folder that 'iet-agc pack' wrote")
    content = read_bytes(file, _LARGEST_TEXT)
    _check_depth(file, content)
    try:
        manifest = parse_json(content, shown(file))
    except UserError:
        return None
    if not isinstance(manifest, dict) or content != manifest_text(manifest).encode():
        return None
    usable = is_sealed(manifest) and not [*damaged(file, manifest)] and isinstance(manifest["seal"]["files"], dict)
    return manifest if usable and manifest.get("format") == FORMAT else None


def _check_depth(file: Path, content: bytes) -> None:
    """Refuse lists in lists that no manifest has, however they are closed."""
    depth = deepest = 0
    for found in re.finditer(rb"[\[\]{}]", content):
        depth += 1 if found[0] in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > 64:
        raise UserError(f"{shown(file)} is nested {deepest:,} levels deep: {_REFUSED}")


def check_files(pack: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest whose files could lie elsewhere, or of another version.

    Raises:
        UserError: it does.
    """
    if manifest.get("version") != VERSION:
        raise UserError(f"{shown(pack)} is a pack of version {manifest.get('version')!r:.20}, this reads {VERSION}")
    for name in manifest["seal"]["files"]:
        if not is_safe(name):
            raise UserError(f"{shown(pack)}: its manifest names {name!a:.120}, which may lie elsewhere: {_REFUSED}")


def changed_files(pack: Path, files: list[str], manifest: Mapping[str, Any] | None) -> dict[str, str]:
    """What is not as it was written, and how, in words: files that changed, are missing, or came from elsewhere.

    Args:
        pack: the folder.
        files: what `files_below` found.
        manifest: what `read_manifest` found; None: that is what changed, and says nothing of the others.
    """
    if manifest is None:
        return {MANIFEST: "is not as it was written"}
    hashes: dict[str, str] = manifest["seal"]["files"]
    found = {name: sha256(pack / name) for name in files if name != MANIFEST}
    odd = {name: "is not there" for name in hashes if name not in found}
    odd |= {name: "is not in the manifest" for name in found if name not in hashes}
    odd |= {name: "is not as it was written" for name in found if name in hashes and found[name] != hashes[name]}
    facts = {name: value for name, value in manifest.items() if name != "seal"}
    rest = {name: value for name, value in hashes.items() if name != STATEMENT}
    if STATEMENT in found and read_bytes(pack / STATEMENT, _LARGEST_TEXT) != statement_text(facts, rest).encode():
        odd.setdefault(STATEMENT, "does not say what the manifest says")
    return odd
