"""Decoded image sets on the disk, mapped into memory: one entry per source, whole or not there, and checked."""

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import TreatedFile
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import WriteError, digest, flush, replace_text, replacing_folder, shown
from iet_agc.runtime.reading import check_regular, read_object
from iet_agc.runtime.stamps import stamps

__all__ = ["cached", "stamps"]

_VERSION = 2


def cached(
    folder: Path, source: Mapping[str, object], read: Callable[[], tuple[ImageSet, ImageSet]]
) -> tuple[ImageSet, ImageSet]:
    """What `read` returns, from the disk where it has been read before.

    Processes that ask for the same at the same time wait for the first of them. An entry may be removed at any time.

    Args:
        folder: where entries are.
        source: all that the images depend on, JSON values only.
        read: reads and decodes.

    Returns:
        Training and held-out images; pixels are mapped, not read, and writing to them changes no file.

    Raises:
        UserError: a damaged entry, a folder that cannot be written to, or what `read` raises.
    """
    key = digest([_VERSION, source])[:32]
    entry = folder / key
    with _locked(folder, key):
        if not entry.exists():
            train, held_out = read()
            try:
                _write(entry, {"train": train, "held_out": held_out})
            except WriteError as error:
                raise _unusable(folder, error.__cause__) from error
    return _read(entry, "train"), _read(entry, "held_out")


@contextmanager
def _locked(folder: Path, key: str) -> Generator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock").acquire()
    except OSError as error:
        raise _unusable(folder, error) from error
    with lock:
        yield


def _unusable(folder: Path, error: BaseException | None) -> UserError:
    reason = getattr(error, "strerror", None) or error
    mend = "set data.cache to another folder, or none"
    return UserError(f"{shown(folder)} cannot keep images, {reason}: {mend}", "data.cache")


def _write(entry: Path, parts: Mapping[str, ImageSet]) -> None:
    with replacing_folder(entry) as unfinished:  # what is there is of a process that was killed, for the lock is ours
        unfinished.mkdir()
        for name, images in parts.items():
            np.save(unfinished / f"{name}.npy", images.images.numpy(), allow_pickle=False)
            flush(unfinished / f"{name}.npy")
            replace_text(unfinished / f"{name}.json", json.dumps(_sealed(_about(images))))
        flush(unfinished)
    flush(entry.parent)


def _about(images: ImageSet) -> dict[str, object]:
    """All of an image set but its pixels, and a checksum of these."""
    return {
        "name": images.name,
        "fingerprint": images.fingerprint,
        "labels": None if images.labels is None else images.labels.tolist(),
        "files": images.files,
        "captions": images.captions,
        **({"treated": [asdict(file) for file in images.treated]} if images.treated else {}),
    }


def _sealed(about: Mapping[str, object]) -> dict[str, object]:
    return {"sha256": digest(about), "about": about}


def _read(entry: Path, part: str) -> ImageSet:
    try:
        sealed = read_object(entry / f"{part}.json")
        about = sealed["about"]
        check_regular(entry / f"{part}.npy")
        # copy on write, as torch has no read-only tensors
        pixels = torch.from_numpy(np.load(entry / f"{part}.npy", mmap_mode="c", allow_pickle=False))
        labels = None if about["labels"] is None else torch.tensor(about["labels"], dtype=torch.int64)
        files = None if about["files"] is None else tuple(about["files"])
        captions = None if about["captions"] is None else tuple(map(tuple, about["captions"]))
        treated = tuple(TreatedFile(**file) for file in about.get("treated", ()))
        images = ImageSet(pixels, about["name"], labels, files, captions, treated)
        intact = sealed == _sealed(about) and images.fingerprint == about["fingerprint"]
    except Exception as error:  # damaged files make readers raise nearly anything
        raise _damaged(entry) from error
    if not intact:
        raise _damaged(entry)
    return images


def _damaged(entry: Path) -> UserError:
    return UserError(f"{shown(entry)} is damaged: remove it, and the images are read again")
