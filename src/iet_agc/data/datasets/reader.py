"""What the registry knows of each image set: how it is read, and what the cache tells it by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from iet_agc.config.data_settings import DataSettings, FolderData, HuggingFaceData, Laion10kData
from iet_agc.data.image_set import Parts
from iet_agc.data.mending import Mending

__all__ = ["Reader", "mending_of"]

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


def mending_of(data: FolderData | Laion10kData | HuggingFaceData) -> Mending:
    """What the settings of image files ask to be mended."""
    return Mending(data.orient, data.background, data.on_bad, crop=data.crop)
