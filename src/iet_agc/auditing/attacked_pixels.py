"""A model over pixels, to be attacked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from iet_agc.auditing.attack_ways import OnImages
from iet_agc.auditing.pixel_models import Apart, check_fit
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import Scheduler
from iet_agc.diffusion.redrawing import redraw
from iet_agc.diffusion.samplers import labels_of, rows_at_a_time, sample
from iet_agc.diffusion.unet import Network, image_shape, load_pipeline, num_classes, weight_files
from iet_agc.runtime.seeds import generator

__all__ = ["PixelModel", "open_pixels"]


def open_pixels(folder: Path, steps: int, device: torch.device) -> "PixelModel":
    """The model of a pipeline folder; `steps` are those of a plain sample.

    Raises:
        UserError: it cannot be read as one.
    """
    model, scheduler = load_pipeline(folder, device)
    return PixelModel(model, scheduler, {file.name: file for file in weight_files(folder)}, steps, device)


@dataclass(frozen=True)
class PixelModel:
    """See `attack_ways.Model`."""

    model: Network
    scheduler: Scheduler
    files: Mapping[str, Path]
    per_sample: int
    device: torch.device

    @property
    def rows(self) -> int:
        """See `attack_ways.Model`."""
        return rows_at_a_time(image_shape(self.model), self.device)

    def fitted(self, apart: Apart) -> "PixelModel":
        """See `attack_ways.Model`."""
        check_fit(self.model, apart.train, apart.held_out)
        return self

    def sampled(self, seeds: Sequence[int], on_images: OnImages = lambda count: None) -> Tensor:
        """See `attack_ways.Model`."""
        classes, device = num_classes(self.model), self.device.type
        labels = None if classes is None else labels_of(seeds, classes)
        shape = image_shape(self.model)
        return sample(self.model, self.scheduler, seeds, shape, self.per_sample, device, on_images, labels)  # pyright: ignore[reportArgumentType]

    def redrawn(self, images: ImageSet, draws: Sequence[int], on_images: OnImages = lambda count: None) -> Tensor:
        """See `attack_ways.Model`."""
        noise = {draw: torch.randn(images.shape, generator=generator("attack", draw)) for draw in {*draws}}
        labels = None if num_classes(self.model) is None else images.labels
        each = torch.stack([noise[draw] for draw in draws])
        return redraw(self.model, self.scheduler, images.images, each, labels, on_images)  # pyright: ignore[reportArgumentType]
