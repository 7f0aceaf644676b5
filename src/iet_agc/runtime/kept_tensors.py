"""Tensors that took long to make, kept on disk by what they follow from: made once, found by whoever needs them again.

KEY.safetensors     tensors by name, and their digest
KEY.lock            held while that file is written

KEY is a digest of all that the tensors follow from. An entry appears whole or not at all, and may be removed at any
time. One whose digest does not hold is no entry: a line says so, and the tensors are made anew.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from iet_agc.runtime.files import WriteError, digest, replacing, shown, writing
from iet_agc.runtime.progress import say

__all__ = ["KeptTensors"]

_VERSION = 1


class KeptTensors:
    """A folder of such tensors.

    Args:
        folder: it; made where it is missing, when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: object) -> dict[str, Tensor] | None:
        """The tensors of a key, or None where there are none, or damaged ones.

        Args:
            key: JSON values.
        """
        file = self._file(key)
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as stored:
                found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (it is no mapping)
                if (stored.metadata() or {}).get("sha256") == _digest(found):
                    return found
        except (SafetensorError, OSError, ValueError):
            pass
        say(f"{shown(file)} is damaged: what it holds is computed again")
        return None

    def keep(self, key: object, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors, by one process of those that share the work; programs that do the same wait for each other.

        Raises:
            WriteError: they cannot be written.
        """
        file = self._file(key)
        try:
            with writing(file):
                self._folder.mkdir(parents=True, exist_ok=True)
                with FileLock(file.with_suffix(".lock")), replacing(file) as unfinished:
                    save_file(dict(tensors), unfinished, metadata={"sha256": _digest(tensors)})
        except WriteError as error:
            reason = getattr(error.__cause__, "strerror", None) or error.__cause__
            raise WriteError(
                f"{shown(self._folder)} cannot keep features, {reason}: choose another cache, or none", "cache"
            ) from error

    def _file(self, key: object) -> Path:
        return self._folder / f"{digest([_VERSION, key])[:32]}.safetensors"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values."""
    found = []
    for name, each in sorted(tensors.items()):
        values = hashlib.sha256(each.contiguous().numpy().data).hexdigest()
        found.append([name, str(each.dtype), [*each.shape], values])
    return digest(found)
