"""The image sets by their settings: what is trained on, what is held out, and what is planted."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import PIL
import torch

from iet_agc.config.data_settings import (
    AfhqDogData,
    CifarData,
    DataSettings,
    DigitsData,
    EmojiData,
    FashionMnistData,
    FolderData,
    HuggingFaceData,
    Laion10kData,
)
from iet_agc.data.cache import cached, stamps
from iet_agc.data.captions import captioned
from iet_agc.data.conversion import convert
from iet_agc.data.datasets.afhq import afhq_dog_origin, read_afhq_dog
from iet_agc.data.datasets.captioned_folder import captioned_origin, read_laion
from iet_agc.data.datasets.cifar import cifar_origin, read_cifar
from iet_agc.data.datasets.deduplication import one_of_each
from iet_agc.data.datasets.digits import digits_origin, read_digits
from iet_agc.data.datasets.emoji import emoji_origin, read_emoji
from iet_agc.data.datasets.fashion_mnist import fashion_mnist_origin, read_fashion_mnist
from iet_agc.data.datasets.folder import read_folder
from iet_agc.data.datasets.hugging_face import hugging_face_origin, read_hugging_face
from iet_agc.data.datasets.reader import Reader, mending_of
from iet_agc.data.duplicates import plant_duplicates
from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import Mending
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator

__all__ = ["load_dataset", "split"]

_ALL: tuple[Reader[Any], ...] = (
    Reader(DigitsData, read_digits, digits_origin),
    Reader(FashionMnistData, read_fashion_mnist, fashion_mnist_origin),
    Reader(CifarData, read_cifar, cifar_origin),
    Reader(AfhqDogData, read_afhq_dog, afhq_dog_origin),
    Reader(Laion10kData, read_laion, captioned_origin),
    Reader(EmojiData, read_emoji, emoji_origin),
    Reader(HuggingFaceData, read_hugging_face, hugging_face_origin),
    Reader(FolderData, read_folder, captioned_origin),
)

#: What reads each image set, by the class of its settings.
READERS = {reader.settings: reader for reader in _ALL}


def load_dataset(data: DataSettings) -> tuple[ImageSet, ImageSet]:
    """The training set of a run and the images held out from it.

    Where the image set has a test part it is that which is held out, otherwise the images that are not trained on.
    With `data.cache` decoded images are kept there for the next time, and mapped into memory from there; not the
    digits, and not in the run that downloads them.

    Raises:
        UserError: missing or damaged files, impossible numbers.
    """
    source = _source(data) if data.cache else None
    if data.cache and source:
        train, held_out = cached(Path(data.cache), source, lambda: _read(data))
    else:
        train, held_out = _read(data)
    if data.caption:
        train, held_out = captioned(train, data.caption), captioned(held_out, data.caption)
    count, copies, captions = data.planted_images, data.planted_copies, data.planted_captions
    return plant_duplicates(train, count, copies, captions, kind=data.planted_kind, seed=data.seed), held_out


def split(images: ImageSet, num_train: int | None, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """A random training part and the rest, held out.

    Args:
        images: all of them.
        num_train: size of the training part; None takes all and holds nothing out.
        seed: what shuffles.
    """
    num_train = len(images) if num_train is None else num_train
    if not 1 <= num_train <= len(images):
        raise UserError(f"data.num_train {num_train} is not between 1 and the {len(images)} images of {images.name}")
    order = torch.randperm(len(images), generator=generator("split", seed))
    return images.take(order[:num_train]), images.take(order[num_train:])


def _read(data: DataSettings) -> tuple[ImageSet, ImageSet]:
    """The images that are trained on, each once, and those that are held out."""
    train, test = READERS[type(data)].read(data)
    if shape := data.shape:
        train = convert(train, shape, data.resize)
        test = None if test is None else convert(test, shape, data.resize)
    if data.deduplicate:
        train = one_of_each(train, near=data.deduplicate == "near")
    chosen, rest = split(train, data.num_train, data.seed)
    return chosen, rest if test is None else test


def _source(data: DataSettings) -> dict[str, object] | None:
    """All that the decoded images depend on, for the cache; None where there is nothing (yet) to tell them by."""
    origin = READERS[type(data)].origin(data)
    if not (known := origin if isinstance(origin, str) else stamps(origin)):
        return None
    mending = mending_of(data).asked if isinstance(data, FolderData | Laion10kData | HuggingFaceData) else {}
    others = {*DataSettings.model_fields, "download", *(option.name for option in fields(Mending))}
    options = {name: getattr(data, name) for name in type(data).model_fields.keys() - others}
    options |= {"deduplicate": data.deduplicate}
    options |= {"shape": data.shape, "resize": data.resize} | mending
    return {
        "name": data.name,
        "options": {name: value for name, value in options.items() if value is not None},
        "origin": known,
        "decoder": PIL.__version__,
        "num_train": data.num_train,
        "seed": data.seed,
    }
