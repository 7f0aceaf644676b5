"""Bundles: everything a run needs to go on, as safetensors and JSON.

A bundle is a folder that appears whole or not at all:

    bundle.json                what it is, of which run, at which point; the SHA-256 of each file
    shared.safetensors         weights and EMA weights, equal for all members
    member-0000.safetensors    optimizer moments, loss bank and counts of one member

Files are written into a staging folder, flushed to the disk, and the folder is renamed at the end.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import flush, replace_text, replacing, sha256
from iet_agc.runtime.reading import read_object

__all__ = ["Bundle", "BundleError", "newest_about", "newest_bundle", "read_bundle", "seal", "stage"]

_FORMAT = "iet-agc bundle"
_VERSION = 1


class BundleError(UserError):
    """A bundle that cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are whole.

    Attributes:
        folder: where it is.
        about: what `seal` was given: round, steps, the run's hash.
    """

    folder: Path
    about: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, such as "shared" or "member-0003", on the CPU."""
        return safetensors.torch.load_file(self.folder / f"{name}.safetensors")


def stage(staging: Path, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """Write files of a bundle to be, from any process that sees the folder.

    Args:
        staging: folder that becomes the bundle.
        parts: {"shared": tensors by name, "member-0003": ...}.

    Returns:
        {file name: SHA-256}, for `seal`.
    """
    staging.mkdir(parents=True, exist_ok=True)
    digests = {}
    for name, tensors in parts.items():
        file = staging / f"{name}.safetensors"
        with replacing(file) as unfinished:
            safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, unfinished)
        digests[file.name] = sha256(file)
    return digests


def seal(staging: Path, folder: Path, files: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """Turn a staging folder into the bundle `folder`, which must not exist yet."""
    content = {"format": _FORMAT, "version": _VERSION, **about, "files": dict(files)}
    replace_text(staging / "bundle.json", json.dumps(content, indent=1))
    flush(staging)
    if folder.exists():  # a damaged one of the same name
        shutil.rmtree(folder)
    os.rename(staging, folder)
    flush(folder.parent)


def read_bundle(folder: Path) -> Bundle:
    """Open a bundle after checking that every byte of it is as it was written.

    Raises:
        BundleError: it is damaged, of another format, or of a later version.
    """
    try:
        about = read_object(folder / "bundle.json")
    except UserError as error:
        raise BundleError(f"{folder} is no bundle of iet-agc: its bundle.json is missing or damaged") from error
    kind, version, files = (about.get(name) for name in ("format", "version", "files"))
    if kind != _FORMAT or version != _VERSION:
        raise BundleError(f"{folder} is {kind!r} version {version}; this program reads {_FORMAT!r} version {_VERSION}")
    if not isinstance(files, dict):
        raise BundleError(f"{folder} is damaged: its bundle.json names no files")
    if type(about.get("round")) is not int or about["round"] < 0:
        raise BundleError(f"{folder} is damaged: its bundle.json does not say its round")
    for name, digest in files.items():
        file = folder / name
        if file.parent != folder or not file.is_file() or sha256(file) != digest:
            raise BundleError(f"{folder} is damaged: {name} is not as it was written")
        try:
            with safetensors.safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise BundleError(f"{folder} is damaged: {name} holds no tensors") from error
    return Bundle(folder, about)


def newest_bundle(
    folder: Path, pattern: str, identity: Mapping[str, Collection[str]], warn: Callable[[str], object]
) -> Bundle | None:
    """The newest usable bundle of a run.

    Args:
        folder: where the run's bundles are.
        pattern: which ones, a glob; their names sort by age.
        identity: what a bundle of this run says of itself: by name, one of these.
        warn: called with one line about each damaged bundle that is passed over.

    Raises:
        BundleError: a bundle is whole, but of another run.
    """
    candidates = sorted(folder.glob(pattern))
    while candidates:
        candidate = candidates.pop()
        try:
            bundle = read_bundle(candidate)
        except BundleError as error:
            warn(f"{error}; " + (f"trying {candidates[-1].name}" if candidates else "there is none before it"))
            continue
        if any(bundle.about.get(key) not in values for key, values in identity.items()):
            raise BundleError(
                f"{candidate} belongs to a run with other settings or images: choose another output", "out"
            )
        return bundle
    return None


def newest_about(folder: Path, pattern: str) -> dict[str, Any] | None:
    """What the newest bundle says of itself, without a look at its tensors; None where there is none that can be read.

    Args:
        folder, pattern: see `newest_bundle`.
    """
    for candidate in sorted(folder.glob(pattern), reverse=True):
        try:
            about = read_object(candidate / "bundle.json")
        except UserError:
            continue
        if about.get("format") == _FORMAT and about.get("version") == _VERSION:
            return about
    return None
