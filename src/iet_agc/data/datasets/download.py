"""Published files, fetched when asked for."""

from pathlib import Path
from typing import Any

from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import shown

__all__ = ["fetch"]


def fetch(kind: type[Any], root: Path, address: str) -> None:
    """Let torchvision download and unpack a set, with its checksums."""
    try:
        kind(root, download=True)
    except (RuntimeError, OSError, EOFError) as error:
        raise UserError(
            f"{kind.__name__} could not be fetched from {address} into {shown(root)}: {in_words(error)}; "
            "fetch it elsewhere and set data.root to its folder"
        ) from error
