"""Seals: a result folder's own JSON file holds digests of itself and of the files that were written with it.

seal.content    SHA-256 of everything else in that JSON, seal.files included, as `digest` takes it
seal.files      path below the folder -> SHA-256

Whoever reads a folder compares what it reads. Other files may stand there, too: nothing is known of them. A folder
without a seal is older than seals, or made by hand; it is taken, with a warning.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import digest, replace_text, sha256, shown
from iet_agc.runtime.progress import say

__all__ = ["damaged", "is_sealed", "sealed", "unsealed", "write_sealed"]

_SEAL = "seal"


def sealed(content: Mapping[str, Any], folder: Path, files: Collection[str] = ()) -> dict[str, Any]:
    """The content of a folder's JSON file, with its seal.

    Args:
        content: JSON values only.
        folder: where `files` are; the JSON file itself is none of them.
        files: paths below it, all written by now.
    """
    hashes = {name: sha256(folder / name) for name in files}
    return {**content, _SEAL: {"content": _content_digest(content, hashes), "files": hashes}}


def write_sealed(file: Path, content: Mapping[str, Any], files: Collection[str] = ()) -> None:
    """Write a folder's JSON file with its seal, in one step; see `sealed`."""
    replace_text(file, json.dumps(sealed(content, file.parent, files), indent=1, allow_nan=False) + "\n")


def unsealed(file: Path, content: Mapping[str, Any], again: str, files: Collection[str] | None = ()) -> dict[str, Any]:
    """The content of a folder's JSON file without its seal, after comparing it, and files, with the seal.

    Args:
        file: which holds `content`.
        content: as it was read.
        again: how it is mended, for people.
        files: paths below its folder that are compared as well, if the seal has them; None: all that it has.

    Raises:
        UserError: one of them is not as it was written.
    """
    if not is_sealed(content):
        say(f"warning: {shown(file)} has no digests, so whether its folder is as it was written is not checked")
    for odd in damaged(file, content, files):
        raise UserError(f"{shown(odd)} is not as it was written: {again}")
    return {name: value for name, value in content.items() if name != _SEAL}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether the content of a JSON file has a seal, good or not."""
    return content.get(_SEAL) is not None


def damaged(file: Path, content: Mapping[str, Any], files: Collection[str] | None = ()) -> Iterator[Path]:
    """The JSON file and those of its folder that are not as they were written; none where there is no seal.

    Args:
        file, content, files: see `unsealed`.
    """
    if not is_sealed(content):
        return
    seal = content[_SEAL]
    hashes = seal.get("files") if isinstance(seal, dict) else None
    rest = {name: value for name, value in content.items() if name != _SEAL}
    if not isinstance(hashes, dict) or seal.get("content") != _content_digest(rest, hashes):
        yield file
        return
    for name in hashes if files is None else files:
        place = file.parent / name
        if name in hashes and not (place.is_file() and sha256(place) == hashes[name]):
            yield place


def _content_digest(content: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """Of the content as JSON reads it back: keys are texts there."""
    return digest(json.loads(json.dumps({**content, _SEAL: {"files": dict(hashes)}})))
