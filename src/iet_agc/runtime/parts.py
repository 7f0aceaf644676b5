"""Long work in parts on disk: shared by all processes, and a kill loses no part that was finished."""

import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iet_agc.runtime import distributed
from iet_agc.runtime.files import replacing

__all__ = ["compute_parts", "read_parts"]

#: What a part holds.
Arrays = Mapping[str, Tensor]


def compute_parts(
    folder: Path,
    name: str,
    total: int,
    length: int,
    work: Callable[[slice], Arrays],
    on_done: Callable[[int], object] = lambda count: None,
) -> None:
    """Compute this process's share of the parts that are not there yet; returns when all are there.

    Args:
        folder: where parts are; must exist.
        name: of this work, that of a file; its files are NAME-000000.npz and so on. A damaged one is made again.
        total: number of items.
        length: items per part; the last part takes what is left.
        work: items -> tensors on the CPU, one row per item.
        on_done: called with the number of items of a part that was found finished, or is another process's, for
            progress: these are as fast.
    """
    for number, start in enumerate(range(0, total, length)):
        part, items = folder / f"{name}-{number:06d}.npz", slice(start, min(start + length, total))
        if number % distributed.size() != distributed.rank() or _is_whole(part):
            on_done(items.stop - items.start)
            continue
        arrays: dict[str, Any] = {key: tensor.numpy() for key, tensor in work(items).items()}
        with replacing(part) as unfinished, unfinished.open("wb") as stream:
            np.savez(stream, **arrays)  # before numpy 2.1 any option would be one more array
    distributed.barrier()


def _is_whole(part: Path) -> bool:
    """Whether a part is there and every checksum in it holds."""
    if not part.is_file():
        return False
    try:
        with zipfile.ZipFile(part) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False


def read_parts(folder: Path, name: str, total: int, length: int) -> dict[str, Tensor]:
    """Join the parts that `compute_parts` left, in their order.

    Returns:
        What `work` returned, one row per item.
    """
    rows: dict[str, list[Tensor]] = {}
    for number in range(-(-total // length)):
        with np.load(folder / f"{name}-{number:06d}.npz", allow_pickle=False) as part:
            for key in part.files:
                rows.setdefault(key, []).append(torch.from_numpy(part[key]))
    return {key: torch.cat(tensors) for key, tensors in rows.items()}
