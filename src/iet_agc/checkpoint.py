"""Bundles: everything a run needs to go on, as safetensors and JSON.

A bundle is a folder that appears whole or not at all:

    bundle.json                what it is, of which run, at which point; the SHA-256 of each file
    shared.safetensors         weights and EMA weights, equal for all members
    member-0000.safetensors    optimizer moments, loss bank and counts of one member

Files are written into a staging folder, flushed to the disk, and the folder is renamed at the end.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

__all__ = ["Bundle", "BundleError", "read_bundle", "seal", "stage", "write_text"]

_FORMAT = "iet-agc bundle"
_VERSION = 1


class BundleError(ValueError):
    """A bundle that cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose files are whole.

    Attributes:
        folder: where it is.
        about: what `seal` was told: round, steps, the run's hash.
    """

    folder: Path
    about: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, such as "shared" or "member-0003", on the CPU."""
        return safetensors.torch.load_file(self.folder / f"{name}.safetensors")


def stage(staging: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write one file of a bundle to be, from any process that sees the folder.

    Returns:
        {file name: SHA-256}, for `seal`.
    """
    staging.mkdir(parents=True, exist_ok=True)
    file = staging / f"{name}.safetensors"
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    _flush(file)
    return {file.name: _sha256(file)}


def seal(staging: Path, folder: Path, files: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """Turn a staging folder into the bundle `folder`, which must not exist yet."""
    content = {"format": _FORMAT, "version": _VERSION, **about, "files": dict(files)}
    write_text(staging / "bundle.json", json.dumps(content, indent=1))
    _flush(staging)
    if folder.exists():  # a damaged one of the same name
        shutil.rmtree(folder)
    os.rename(staging, folder)
    _flush(folder.parent)


def read_bundle(folder: Path) -> Bundle:
    """Open a bundle after checking that every byte of it is as it was written.

    Raises:
        BundleError: it is damaged, of another format, or of a later version.
    """
    try:
        about = json.loads((folder / "bundle.json").read_text())
        kind, version, files = about["format"], about["version"], dict(about["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder} is no bundle of iet-agc: its bundle.json is missing or damaged") from error
    if kind != _FORMAT or version != _VERSION:
        raise BundleError(f"{folder} is {kind!r} version {version}; this program reads {_FORMAT!r} version {_VERSION}")
    for name, digest in files.items():
        file = folder / name
        if file.parent != folder or not file.is_file() or _sha256(file) != digest:
            raise BundleError(f"{folder} is damaged: {name} is not as it was written")
        try:
            with safetensors.safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise BundleError(f"{folder} is damaged: {name} holds no tensors") from error
    return Bundle(folder, about)


def write_text(file: Path, text: str) -> None:
    """Replace a text file in one step, on the disk when this returns."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text)
    _flush(unfinished)
    os.replace(unfinished, file)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
