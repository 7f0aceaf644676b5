"""Published files, fetched when asked for."""

from pathlib import Path
from typing import TYPE_CHECKING

from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import shown

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10, FashionMNIST

__all__ = ["fetch"]


def fetch(kind: "type[CIFAR10 | FashionMNIST]", root: Path, address: str) -> None:
    """Let torchvision download and unpack a set, with its checksums."""
    try:
        kind(root, download=True)
    except (RuntimeError, OSError, EOFError) as error:
        raise UserError(
            f"{kind.__name__} could not be fetched from {address} into {shown(root)}: {in_words(error)}; "
            "fetch it elsewhere and set data.root to its folder"
        ) from error
