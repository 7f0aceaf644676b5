"""Image sets as tests name them."""

from pathlib import Path
from typing import Any

from iet_agc.config.data_settings import DataSettings
from iet_agc.config.settings import validate
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.image_set import ImageSet


def data_of(
    name: str,
    root: Path | str | None = None,
    num_train: int | None = None,
    shape: tuple[int, int, int] | None = None,
    **options: Any,
) -> DataSettings:
    """Settings of an image set, with paths for strings and (C, H, W) for `convert_to`."""
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    place, size = None if root is None else str(root), None if shape is None else "x".join(map(str, shape))
    return validate({"data": {"name": name, "root": place, "num_train": num_train, "convert_to": size, **plain}}).data


def load_named(
    name: str, root: Path | str | None = None, num_train: int | None = None, **options: Any
) -> tuple[ImageSet, ImageSet]:
    """What is trained on and what is held out."""
    return load_dataset(data_of(name, root, num_train, **options))
