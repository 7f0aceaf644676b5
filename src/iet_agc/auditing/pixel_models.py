"""Which model a verb is given, which images it is tried on, and whether these fit a model over pixels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iet_agc.auditing.sources import Part, load_part
from iet_agc.config.overrides import override
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.data.image_set import ImageSet, unique_images
from iet_agc.diffusion.unet import image_shape, is_text_pipeline, num_classes
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.seeds import generator
from iet_agc.training.identity import check_pipeline, weights_of

__all__ = ["Apart", "check_fit", "load_apart", "pixel_pipeline", "some_places", "trained_pipeline"]


def pixel_pipeline(source: Path, weights: str | None, what: str, train: str | None) -> Path:
    """The folder of a model over pixels.

    Args:
        source, weights, train: see `trained_pipeline`.
        what: is done with such models only, for messages: "membership is inferred of".

    Raises:
        UserError: no such model, or it is text-to-image.
    """
    folder = trained_pipeline(source, weights, train)
    if is_text_pipeline(folder):
        raise UserError(f"{shown(folder)} is text-to-image: {what} models over pixels")
    return folder


def trained_pipeline(source: Path, weights: str | None, train: str | None) -> Path:
    """The folder of a model of which it is known what it was trained on.

    Args:
        source: a finished run, or a diffusers pipeline folder.
        weights: of a run, "raw" or "ema"; by default those of its sample.weights.
        train: the training images that were given, without which a pipeline folder is refused.

    Raises:
        UserError: no such model, or nothing says what it was trained on.
    """
    run = is_run(source)
    if not run and weights is not None:
        raise UserError(f"{shown(source)} is no run, and has one kind of weights: leave out which", "weights")
    asked = {} if weights is None else {"sample.weights": weights}
    folder = weights_of(source, override(read_settings(source), asked).sample.weights) if run else source
    check_pipeline(folder)
    if train is None and not run:
        raise UserError(f"{shown(source)} does not say what it was trained on: give the training images", "train")
    return folder


@dataclass(frozen=True)
class Apart:
    """Unique training images, and unique images that are not among them.

    Attributes:
        train, held_out: the images.
        places, held_out_places: where each stands first in the set that it comes from, int64 (N,) and (M,).
        inverse: which unique one each training image is, int64.
        in_train: how many more held-out images there were that are training images.
        whole_sha256: of shape and pixels of both sets as they came, see `ImageSet.fingerprint`.
    """

    train: ImageSet
    held_out: ImageSet
    places: Tensor
    held_out_places: Tensor
    inverse: Tensor
    in_train: int
    whole_sha256: tuple[str, str]

    @property
    def multiplicity(self) -> Tensor:
        """How often each training image stands in the training set, int64 (N,)."""
        return self.inverse.bincount()


def load_apart(train: str, held_out: str, least: int, given: Mapping[Part, ImageSet]) -> Apart:
    """Read training and held-out images.

    Args:
        train, held_out: see `load_part`.
        least: fewer of either kind tell nothing.
        given: those that are in memory, see `load_part`.

    Raises:
        UserError: what `load_part` refuses, sizes that differ, or too few.
    """
    own = load_part(train, "train", given=given.get("train"))[0]
    real = load_part(held_out, "held-out", given=given.get("held-out"))[0]
    if own.shape != real.shape:
        raise UserError(f"held-out images are {real.size}, training images {own.size}: sizes must agree", "held_out")
    first, inverse = unique_images(own.images)
    unique = own.take(first)
    apart, place = unique_images(torch.cat([unique.images, real.images]))
    outside = apart[apart >= len(unique)] - len(unique)
    for count, what in ((len(first), "different training images"), (len(outside), "held-out images not trained on")):
        if count < least:
            raise UserError(f"{count} {what} are too few to tell anything: give {least} or more")
    in_train = int((place[len(unique) :] < len(unique)).sum())
    whole = own.fingerprint, real.fingerprint
    return Apart(unique, real.take(outside), first, outside, inverse, in_train, whole)


def some_places(count: int, most: int, *key: str) -> Tensor:
    """At most so many of a number of places, drawn at random, ascending, int64 (n,); `key` as of `generator`."""
    return torch.randperm(count, generator=generator(*key))[:most].sort().values


def check_fit(model: Any, train: ImageSet, held_out: ImageSet) -> None:
    """Refuse images that a model does not draw.

    Raises:
        UserError: another size than the model's, or classes that it does not have.
    """
    shape, classes = image_shape(model), num_classes(model)
    if train.shape != shape:
        size = " x ".join(map(str, shape))
        raise UserError(f"the training images are {train.size}, the model draws {size}: sizes must agree", "train")
    for images, what in ((train, "training"), (held_out, "held-out")):
        if classes is not None and images.labels is None:
            raise UserError(f"the model is class-conditional, and the {what} images have no classes: give a run's")
        if classes is not None and images.labels is not None and int(images.labels.max()) >= classes:
            raise UserError(f"the {what} images have class {int(images.labels.max())}, the model {classes} classes")
