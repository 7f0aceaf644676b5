"""A text-to-image pipeline, to be attacked: with captions, and by ways that only captions allow.

ranking    captions are ranked by how far they move the first predicted noise, see `memorized_prompts`, and only the
           most suspicious ones are sampled, several times each. Of held-out captions the same share is.

An adversary knows captions, but not how often each stands in the training set: plain sampling and the ranking are
given each once. What stands first in a training set must not count either, so they are in random order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iet_agc.auditing.attack_ways import (
    Attacked,
    Found,
    Kind,
    OnImages,
    Plan,
    Rows,
    all_targets,
    as_drawn,
    in_parts,
    nearest_rows,
    redrawing,
    sampling,
    timed,
)
from iet_agc.auditing.memorized_prompts import prompt_magnitudes
from iet_agc.auditing.pixel_models import Apart
from iet_agc.config.settings import SampleSettings, Settings
from iet_agc.data.captions import in_turn
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.samplers import SAMPLERS, Sampler, rows_at_a_time
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import digest
from iet_agc.runtime.precision import resolved
from iet_agc.runtime.progress import say
from iet_agc.runtime.seeds import generator
from iet_agc.sampling.sample_set import text_sampler
from iet_agc.text_to_image.caption_augmentation import Changes
from iet_agc.text_to_image.families import for_single_encoder, has_single_encoder
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.pipeline import compares, draw, load_text_pipeline, text_weight_files
from iet_agc.text_to_image.redrawing import redraw_captioned

__all__ = ["TextModel", "open_text"]

#: A suspicious caption is sampled with so many seeds.
_SEEDS = 4

#: Evaluations that rank a caption: with and without it, at the first step of one seed.
_PER_CAPTION = 2


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

    def plans(self, attacked: Attacked) -> Sequence[Plan]:
        """See `attack_ways.Model`."""
        both = sampling(attacked), redrawing(attacked)
        if has_single_encoder(self.pipeline):
            return *both, _Ranking(self, attacked).plan
        say(f"{for_single_encoder(self.pipeline, 'ranking captions')}: it is left out")
        return both

    def about(self, attacked: Attacked) -> dict[str, object]:
        """See `attack_ways.Model`."""
        told = self.asked.model_dump(include={"guidance", "precision", "embedding_noise"}) | self.asked.changes()
        single = has_single_encoder(self.pipeline)
        return {
            **told,
            "sampler": SAMPLERS[self.sampler],
            "train_captions_sha256": digest(attacked.apart.train.captions),
            "held_out_captions_sha256": digest(attacked.apart.held_out.captions),
            "ranking": asdict(_Ranking(self, attacked).numbers) if single else None,
        }


# Ranking ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Numbers:
    """How many captions.

    Attributes:
        ranked, sampled: training captions, held_out_ranked, held_out_sampled: held-out ones.
        seeds: with how many each of these is sampled.
    """

    ranked: int
    sampled: int
    held_out_ranked: int
    held_out_sampled: int
    seeds: int = _SEEDS


@dataclass(frozen=True)
class _Ranking:
    """Captions of a model, ranked; at most half of the evaluations rank."""

    model: TextModel
    attacked: Attacked

    @cached_property
    def captions(self) -> dict[Kind, list[str]]:
        """All, of both kinds, in random order."""
        apart = self.attacked.apart
        return {"train": [*self.model.prompts], "held_out": self.model.prompts_of(apart.held_out)}

    @cached_property
    def numbers(self) -> _Numbers:
        """How many of them; of held-out captions the same shares."""
        own, real = (len(each) for each in self.captions.values())
        ranked = min(own, max(1, self.attacked.evaluations // 2 // _PER_CAPTION))
        left = (self.attacked.evaluations - _PER_CAPTION * ranked) // (_SEEDS * self.model.per_sample)
        sampled = min(ranked, max(1, left))
        others = max(1, round(ranked / own * real))
        return _Numbers(ranked, sampled, others, min(others, max(1, round(sampled / own * real))))

    @property
    def plan(self) -> Plan:
        """The whole of it."""
        numbers = self.numbers
        drawn = numbers.seeds * (numbers.sampled + numbers.held_out_sampled)
        return Plan(numbers.ranked + numbers.held_out_ranked + drawn, self._find)

    def _find(self, parts: Path, on_images: OnImages) -> Found:
        numbers, before = self.numbers, _PER_CAPTION * self.numbers.ranked
        chosen, ranking = self._ranked("train", numbers.ranked, numbers.sampled, parts, on_images)
        others, _ = self._ranked("held_out", numbers.held_out_ranked, numbers.held_out_sampled, parts, on_images)
        own = self._sampled("train", chosen, parts, on_images)
        real = self._sampled("held_out", others, parts, on_images)
        targets, evaluations = all_targets(self.attacked.apart), before + len(own["near"]) * self.model.per_sample
        drawn = [as_drawn(rows["near"], rows["ratio"], len(each.places)) for rows, each in zip((own, real), targets)]  # noqa: B905
        return Found(
            way="ranking",
            targets=targets,
            drawn=(drawn[0], drawn[1]),
            evaluations=evaluations,
            seconds=ranking + float(own["seconds"].sum()),
            again=lambda drawings: self._drawn(chosen, drawings),
            before=before,
        )

    def _ranked(
        self, kind: Kind, ranked: int, sampled: int, parts: Path, on_images: OnImages
    ) -> tuple[list[str], float]:
        """The most suspicious captions of a kind, the most suspicious first, and the seconds of ranking."""
        texts, model = self.captions[kind][:ranked], self.model

        def measure(prompts: Sequence[str]) -> Tensor:
            how = model.asked.steps, model.asked.guidance, 1, on_images, model.asked.precision
            return prompt_magnitudes(model.pipeline, [0] * len(prompts), prompts, *how)[:, 0]

        def make(items: slice) -> dict[str, Tensor]:
            magnitudes, seconds = timed(model, lambda: measure(texts[items]))
            return {"magnitude": magnitudes, "seconds": seconds}

        rows = in_parts(parts, f"ranked-{_named(kind)}", ranked, model, make, on_images)
        order = rows["magnitude"].argsort(descending=True, stable=True)[:sampled]
        return [texts[place] for place in order], float(rows["seconds"].sum())

    def _sampled(self, kind: Kind, chosen: Sequence[str], parts: Path, on_images: OnImages) -> Rows:
        """Every chosen caption with the first seed, then with the second, and so on: what is nearest, and its ratio."""

        def make(items: slice) -> dict[str, Tensor]:
            drawings = range(items.start, items.stop)
            drawn, seconds = timed(self.model, lambda: self._drawn(chosen, drawings, on_images))
            near, ratios = nearest_rows(self.attacked, drawn, kind)
            return {"near": near, "ratio": ratios, "seconds": seconds}

        name, total = f"suspicious-{_named(kind)}", _SEEDS * len(chosen)
        return in_parts(parts, name, total, self.model, make, on_images)

    def _drawn(
        self, chosen: Sequence[str], drawings: Sequence[int], on_images: OnImages = lambda count: None
    ) -> Tensor:
        prompts = [chosen[drawing % len(chosen)] for drawing in drawings]
        return self.model.drawn([drawing // len(chosen) for drawing in drawings], prompts, on_images)


def _named(kind: Kind) -> str:
    return kind.replace("_", "-")
