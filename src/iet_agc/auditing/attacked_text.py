"""A text-to-image pipeline, to be attacked with captions; the ways that only these allow are in `text_ways`.

An adversary knows captions, but not how often each stands in the training set: each is given once before any comes
again. What stands first in a training set must not count either, so they are in random order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iet_agc.auditing.attack_ways import OnImages
from iet_agc.auditing.pixel_models import Apart
from iet_agc.config.settings import SampleSettings, Settings
from iet_agc.data.captions import in_turn
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.samplers import Sampler, rows_at_a_time
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.precision import resolved
from iet_agc.runtime.seeds import generator
from iet_agc.sampling.sample_set import text_sampler
from iet_agc.text_to_image.caption_augmentation import Changes
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.pipeline import compares, draw, load_text_pipeline, text_weight_files
from iet_agc.text_to_image.redrawing import redraw_captioned

__all__ = ["TextModel", "open_text"]


def open_text(folder: Path, settings: Settings, steps: int, device: torch.device) -> "TextModel":
    """The text-to-image pipeline of a folder.

    Args:
        folder: of the pipeline.
        settings: of the run that it is of, which say how its samples are drawn.
        steps: of a plain sample.
        device: where it is moved.

    Raises:
        UserError: it cannot be read as one, or cannot be sampled so.
    """
    pipeline = replace(load_text_pipeline(folder), cuts=settings.text.too_long == "cut")
    asked = settings.sample.model_copy(
        update={"steps": steps, "precision": resolved(settings.sample.precision, device)}
    )
    sampler = text_sampler(pipeline, asked, Changes(**asked.changes()))
    files = {str(file.relative_to(folder)): file for file in text_weight_files(folder)}
    return TextModel(pipeline.to(device), files, asked, sampler, settings.text.captions == "first")


@dataclass(frozen=True)
class TextModel:
    """See `attack_ways.Model`.

    Attributes:
        asked: how its samples are drawn.
        first: whether it was trained on the first caption of each image alone.
        prompts: of plain samples, by turns; see `prompts_of`.
    """

    pipeline: TextPipeline
    files: Mapping[str, Path]
    asked: SampleSettings
    sampler: Sampler
    first: bool
    prompts: Sequence[str] = ()

    @property
    def device(self) -> torch.device:
        """See `attack_ways.Model`."""
        return self.pipeline.vae.device

    @property
    def rows(self) -> int:
        """See `attack_ways.Model`."""
        return rows_at_a_time(self.pipeline.image_shape, self.device)

    @property
    def per_sample(self) -> int:
        """See `attack_ways.Model`."""
        steps = len(self.pipeline.sampling_scheduler(self.sampler, self.asked.steps).timesteps)
        return steps * (2 if compares(self.pipeline, self.asked.guidance) else 1)

    @property
    def scheduler(self) -> Any:
        """See `attack_ways.Model`."""
        return self.pipeline.scheduler

    def fitted(self, apart: Apart) -> "TextModel":
        """See `attack_ways.Model`."""
        for images, what in ((apart.train, "training"), (apart.held_out, "held-out")):
            if images.captions is None:
                name = "train" if images is apart.train else "held_out"
                raise UserError(f"the model draws by captions, and the {what} images have none: give some with", name)
            self.pipeline.tokens(self.prompts_of(images))  # refuses those that are too long
        if apart.train.shape != self.pipeline.image_shape:
            size = " x ".join(map(str, self.pipeline.image_shape))
            raise UserError(f"the training images are {apart.train.size}, the model draws {size}: sizes must agree")
        return replace(self, prompts=self.prompts_of(apart.train))

    def prompts_of(self, images: ImageSet) -> list[str]:
        """The captions of images that the model may be told, each once, in random order."""
        texts = [*dict.fromkeys(in_turn(images.captions or (), self.first))]
        return [texts[place] for place in torch.randperm(len(texts), generator=generator("attack", "captions"))]

    def sampled(self, seeds: Sequence[int], on_images: OnImages = lambda count: None) -> Tensor:
        """See `attack_ways.Model`."""
        return self.drawn(seeds, [self.prompts[seed % len(self.prompts)] for seed in seeds], on_images)

    def drawn(self, seeds: Sequence[int], prompts: Sequence[str], on_images: OnImages) -> Tensor:
        """Samples of prompts, as a run draws them, uint8 (N, C, H, W)."""
        return draw(
            self.pipeline,
            seeds,
            prompts,
            self.asked.steps,
            self.asked.guidance,
            on_images=on_images,
            precision=self.asked.precision,
            sampler=self.sampler,
            changes=Changes(**self.asked.changes()),
            embedding_noise=self.asked.embedding_noise,
        )

    def redrawn(self, images: ImageSet, draws: Sequence[int], on_images: OnImages = lambda count: None) -> Tensor:
        """See `attack_ways.Model`."""
        shape, captions = self.pipeline.latent_shape, [texts[0] for texts in images.captions or ()]
        noise = {number: torch.randn(shape, generator=generator("attack", number)) for number in {*draws}}
        each = torch.stack([noise[number] for number in draws])
        how = self.asked.guidance, on_images, self.asked.precision
        return redraw_captioned(self.pipeline, images.images, captions, each, *how)
