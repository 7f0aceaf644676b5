"""What the registry knows of each image set: how it is read, and what the cache tells it by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from iet_agc.config.data_settings import DataSettings
from iet_agc.data.image_set import Parts

__all__ = ["Reader"]

S = TypeVar("S", bound=DataSettings)


@dataclass(frozen=True)
class Reader(Generic[S]):
    """How an image set is read.

    Attributes:
        settings: the class of its settings.
        read: its training images and, where it has one, its test part; raises UserError on missing or damaged files.
        origin: files, and folders of files, that it is read from, or the version of what is not in files. Nothing where
            there are none (yet): then it is not cached.
    """

    settings: type[S]
    read: Callable[[S], Parts]
    origin: Callable[[S], Sequence[Path] | str]
