"""Image sets of the Hugging Face hub, or of a local folder in its layout, by the `datasets` package (extra `hf`)."""

import importlib
import io
from functools import partial
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import torch

from iet_agc.config.data_settings import HuggingFaceData
from iet_agc.data.captions import texts_of
from iet_agc.data.datasets.reader import mending_of
from iet_agc.data.decoding import UnfitError
from iet_agc.data.folders import read_images
from iet_agc.data.image_set import ImageSet, Parts
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.extras import require
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import open_file

__all__ = ["hugging_face_origin", "read_hugging_face", "table_images"]

#: Formats whose readers in `datasets` run and unpickle nothing; "cache" is what was prepared before.
_READERS = {"arrow", "cache", "imagefolder", "parquet"}


def read_hugging_face(data: HuggingFaceData) -> Parts:
    """A dataset of the hub, or of a local folder in its layout, decoded by the rules of `folders.load_images`.

    `data.root` is a local folder (parquet, arrow or image files, or what `save_to_disk` wrote), which needs no network,
    or the name of a dataset on the hub. Its label column holds whole numbers from 0, its caption column a text or a
    list of texts.

    Raises:
        UserError: `datasets` is not installed, no such dataset, split or column, images that cannot be used, or two
            splits with images of different shapes.
    """
    train = _read_split(data, data.train_split or "train")
    test = _read_split(data, data.held_out_split) if data.held_out_split else None
    if test is not None and test.shape != train.shape:
        raise UserError(
            f"{train.name}: images of the two splits differ, {train.size} and {test.size}: set data.convert_to"
        )
    return train, test


def hugging_face_origin(data: HuggingFaceData) -> list[Path] | str:
    """The local folder, or where `datasets` keeps the prepared files of a dataset on the hub, a name with its version.

    Raises:
        UserError: see `read_hugging_face`.
    """
    if data.root_path is None or data.root_path.exists():
        return [data.root_path] if data.root_path else []
    return str(_builder(_library(), _name(data), data.subset, data.revision).cache_dir)


def _read_split(data: HuggingFaceData, part: str) -> ImageSet:
    image_column, label_column, caption_column = data.image_column or "image", data.label_column, data.caption_column
    datasets = _library()
    name = _name(data)
    table = _table(datasets, name, part, data.subset, data.revision)
    for column in filter(None, (image_column, label_column, caption_column)):
        if column not in table.column_names:
            there = ", ".join(map(repr, table.column_names))
            raise UserError(
                f"{shown(name)} has no column {column!r}, it has {there}: set data.image_column, data.label_column and "
                "data.caption_column"
            )
    if not isinstance(table.features[image_column], datasets.Image):
        raise UserError(f"column {image_column!r} of {shown(name)} holds no images: set data.image_column")
    if not len(table):
        raise UserError(f"{shown(name)} has no images in its split {part!r}: choose another")
    return table_images(table, shown(name), image_column, label_column, caption_column, data)


def table_images(
    table: Any,
    name: str,
    image_column: str,
    label_column: str | None = None,
    caption_column: str | None = None,
    how: HuggingFaceData = HuggingFaceData(),  # noqa: B008 (frozen)
) -> ImageSet:
    """The rows of a `datasets.Dataset`, decoded by the rules of `folders.load_images`.

    Args:
        table: with one row or more.
        name: for people.
        image_column, label_column, caption_column: columns that it has.
        how: to what size images are brought, and how files are mended.

    Raises:
        UserError: images that cannot be used, or labels and captions that are none.
    """
    encoded = table.select_columns([image_column]).cast_column(image_column, _library().Image(decode=False))
    rows = {PurePath(f"row {row:07d}"): partial(_opened, encoded, row, image_column) for row in range(len(table))}
    images = read_images(rows, name, how.shape, resize=how.resize, mending=mending_of(how))
    if images.left_out:
        places = {str(row): place for place, row in enumerate(rows)}
        table = table.select([places[file] for file in images.files or ()])
    labels = None if label_column is None else _labels(table[label_column], f"column {label_column!r} of {name}")
    captions = None
    if caption_column is not None:
        where = f"column {caption_column!r} of {name}, row"
        captions = tuple(texts_of(value, f"{where} {row}") for row, value in enumerate(table[caption_column]))
    return ImageSet(images.images, images.name, labels, captions=captions, treated=images.treated)


def _library() -> Any:
    require("datasets", "hf", "data.name hugging-face")
    return importlib.import_module("datasets")


def _name(data: HuggingFaceData) -> str:
    if not data.root:
        raise UserError(
            "data.name is 'hugging-face', but data.root does not say which: set it to a local folder, or to the name "
            "of a dataset on the hub"
        )
    return data.root


def _table(datasets: Any, name: str, part: str, subset: str | None, revision: str | None) -> Any:
    """The rows of one split."""
    folder = Path(name)
    if revision and folder.exists():
        raise UserError(f"data.revision {revision!r} has no effect on {shown(name)}, which is no dataset of the hub")
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return _saved(datasets, folder, part)
    builder = _builder(datasets, name, subset, revision)
    try:
        builder.download_and_prepare()
        splits = {str(split) for split in builder.info.splits}
        if part in splits:
            return builder.as_dataset(split=part)
    except Exception as error:  # what it raises is not documented, and network errors are of many kinds
        raise UserError(f"{shown(name)} cannot be read by 'datasets': {in_words(error)}") from error
    raise UserError(f"{shown(name)} has no split {part!r}, it has {', '.join(sorted(splits))}: choose one of them")


def _builder(datasets: Any, name: str, subset: str | None, revision: str | None) -> Any:
    try:
        builder = datasets.load_dataset_builder(name, name=subset, revision=revision)
    except Exception as error:
        raise UserError(
            f"{shown(name)} is no local folder of a dataset, nor can it be got from the hub: {in_words(error)}"
        ) from error
    reader = type(builder).__module__.split(".")[-1]
    if reader not in _READERS:
        raise UserError(f"{shown(name)} is read by the {reader!r} reader of 'datasets': convert it to parquet files")
    return builder


def _saved(datasets: Any, folder: Path, part: str) -> Any:
    """The rows of a folder that `save_to_disk` wrote; a lone table is its own training part."""
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise UserError(f"{shown(folder)} cannot be read by 'datasets': {in_words(error)}") from error
    parts = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if part not in parts:
        raise UserError(f"{shown(folder)} has no split {part!r}, it has {', '.join(parts)}: choose one of them")
    return parts[part]


def _opened(table: Any, row: int, column: str) -> BinaryIO:
    image = table[row][column]
    if image is None:
        raise UnfitError("holds no image: leave the row out", "missing")
    return io.BytesIO(image["bytes"]) if image["bytes"] is not None else open_file(Path(image["path"]))


def _labels(values: Any, where: str) -> torch.Tensor:
    labels = list(values)
    if odd := [value for value in labels if type(value) is not int or not 0 <= value < 2**63]:
        raise UserError(f"{where} holds {odd[0]!r}, which is no class: classes are whole numbers from 0")
    return torch.tensor(labels, dtype=torch.int64)
