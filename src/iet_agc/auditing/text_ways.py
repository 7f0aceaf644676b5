"""Ways to look for copies that only models with captions allow.

ranking       captions are ranked by how far they move the first predicted noise, see `memorized_prompts`, and only the
              most suspicious ones are sampled, several times each. Of held-out captions the same share is.
embeddings    an embedding is fitted to each target, see `embedding_search`, and sampled several times. To held-out
              images it is done as well.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from iet_agc.auditing.attack_ways import (
    Attacked,
    Found,
    Kind,
    OnEvaluations,
    OnImages,
    Plan,
    Rows,
    Targets,
    all_targets,
    as_drawn,
    in_parts,
    nearest_rows,
    some_targets,
    timed,
    weighed,
)
from iet_agc.auditing.attacked_text import TextModel
from iet_agc.auditing.memorized_prompts import prompt_magnitudes
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.samplers import SAMPLERS
from iet_agc.metrics.attacks import Drawn
from iet_agc.metrics.target_ratios import target_ratios
from iet_agc.runtime.files import digest
from iet_agc.runtime.progress import say
from iet_agc.text_to_image.embedding_search import DIFFERENTIATED, fit_embeddings, targets_at_a_time
from iet_agc.text_to_image.families import for_single_encoder, has_single_encoder
from iet_agc.text_to_image.pipeline import draw_embedded

__all__ = ["text_about", "text_plans"]

#: A suspicious caption is sampled with so many seeds.
_SEEDS = 4

#: Evaluations that rank a caption: with and without it, at the first step of one seed.
_PER_CAPTION = 2


def text_plans(model: TextModel, attacked: Attacked) -> Sequence[Plan]:
    """The further ways that the model's family allows."""
    if has_single_encoder(model.pipeline):
        return Ranking(model, attacked).plan, Fitting(model, attacked).plan
    say(f"{for_single_encoder(model.pipeline, 'ranking captions and fitting embeddings')}: both are left out")
    return ()


def text_about(model: TextModel, attacked: Attacked) -> dict[str, object]:
    """What drawings follow from beside files, images, budget and steps, JSON values."""
    told = model.asked.model_dump(include={"guidance", "precision", "embedding_noise"}) | model.asked.changes()
    single, apart = has_single_encoder(model.pipeline), attacked.apart
    return {
        **told,
        "sampler": SAMPLERS[model.sampler],
        "train_captions_sha256": digest(apart.train.captions),
        "held_out_captions_sha256": digest(apart.held_out.captions),
        "ranking": asdict(Ranking(model, attacked).numbers) if single else None,
        "embeddings": asdict(Fitting(model, attacked).numbers) if single else None,
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
class Ranking:
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
        ranked, sampled = numbers.ranked + numbers.held_out_ranked, numbers.sampled + numbers.held_out_sampled
        return Plan(_PER_CAPTION * ranked + numbers.seeds * self.model.per_sample * sampled, self._find)

    def _find(self, parts: Path, on_evaluations: OnEvaluations) -> Found:
        numbers, before = self.numbers, _PER_CAPTION * self.numbers.ranked
        on_images = weighed(on_evaluations, _PER_CAPTION)
        chosen, ranking = self._ranked("train", numbers.ranked, numbers.sampled, parts, on_images)
        others, _ = self._ranked("held_out", numbers.held_out_ranked, numbers.held_out_sampled, parts, on_images)
        on_images = weighed(on_evaluations, self.model.per_sample)
        own = self._sampled("train", chosen, parts, on_images)
        real = self._sampled("held_out", others, parts, on_images)
        targets = all_targets(self.attacked.apart)
        both = zip((own, real), targets, strict=True)
        mine, others_drawn = (as_drawn(rows["near"], rows["ratio"], len(each.places)) for rows, each in both)
        return Found(
            way="ranking",
            targets=targets,
            drawn=(mine, others_drawn),
            evaluations=before + len(own["near"]) * self.model.per_sample,
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

        rows = in_parts(parts, f"ranked-{_named(kind)}", ranked, model.rows, make, on_images)
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
        return in_parts(parts, name, total, self.model.rows, make, on_images)

    def _drawn(
        self, chosen: Sequence[str], drawings: Sequence[int], on_images: OnImages = lambda count: None
    ) -> Tensor:
        prompts = [chosen[drawing % len(chosen)] for drawing in drawings]
        return self.model.drawn([drawing // len(chosen) for drawing in drawings], prompts, on_images)


def _named(kind: Kind) -> str:
    return kind.replace("_", "-")


# Embeddings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fit:
    """How embeddings are fitted.

    Attributes:
        steps: of Adam, batch: times and noises at each, rate: of learning; see `fit_embeddings`.
        seeds: with how many each embedding is sampled.
        targets, held_out: to how many images of either kind.
    """

    targets: int
    held_out: int
    steps: int = 20
    batch: int = 8
    rate: float = 0.1
    seeds: int = 2


@dataclass(frozen=True)
class Fitting:
    """Embeddings of a model, fitted to as many targets as the budget allows."""

    model: TextModel
    attacked: Attacked

    @property
    def per_fit(self) -> int:
        """Evaluations to fit an embedding."""
        how = _Fit(0, 0)
        return how.steps * how.batch * DIFFERENTIATED

    @property
    def per_target(self) -> int:
        """Evaluations to fit an embedding and to sample it."""
        return self.per_fit + _Fit(0, 0).seeds * self.model.per_sample

    @cached_property
    def targets(self) -> tuple[Targets, Targets]:
        """The images that embeddings are fitted to."""
        return some_targets(self.attacked.apart, self.attacked.evaluations // self.per_target)

    @property
    def numbers(self) -> _Fit:
        """How it is done."""
        own, real = self.targets
        return _Fit(len(own.places), len(real.places))

    @property
    def plan(self) -> Plan:
        """The whole of it."""
        return Plan(sum(len(each.places) for each in self.targets) * self.per_target, self._find)

    def _find(self, parts: Path, on_evaluations: OnEvaluations) -> Found:
        own, real = (self._fitted(each, parts, on_evaluations) for each in self.targets)
        seeds, images = self.numbers.seeds, self.targets[0].images

        def again(drawings: Sequence[int]) -> Tensor:
            chosen = images.take(torch.tensor(drawings) // seeds)
            return self._drawn(chosen)[torch.arange(len(drawings)), torch.tensor(drawings) % seeds]

        return Found(
            way="embeddings",
            targets=self.targets,
            drawn=(_by_target(own), _by_target(real)),
            evaluations=len(own["ratio"]) * self.per_target,
            seconds=float(own["seconds"].sum()),
            again=again,
        )

    def _fitted(self, targets: Targets, parts: Path, on_evaluations: OnEvaluations) -> Rows:
        """Of every target the ratio of each seed, float64 (N, S), and the seconds of all of it."""
        attacked, seeds, own = self.attacked, self.numbers.seeds, targets.own

        def make(items: slice) -> dict[str, Tensor]:
            some = torch.arange(items.start, items.stop)
            images = targets.images.take(some)
            drawn, seconds = timed(self.model, lambda: self._drawn(images, on_evaluations))
            each, places = images.images.repeat_interleave(seeds, 0), own[some].repeat_interleave(seeds)
            ratios = target_ratios(drawn.flatten(0, 1), each, places, attacked.references, attacked.flips)
            return {"ratio": ratios.view(-1, seeds), "seconds": seconds}

        name, total = f"fitted-{_named(targets.kind)}", len(targets.places)
        rows = targets_at_a_time(self.model.pipeline, self.numbers.batch)
        return in_parts(parts, name, total, rows, make, weighed(on_evaluations, self.per_target))

    def _drawn(self, images: ImageSet, on_evaluations: OnEvaluations = lambda count: None) -> Tensor:
        """Samples by the embeddings of images, uint8 (N, S, C, H, W)."""
        model, how, captions = self.model, self.numbers, [texts[0] for texts in images.captions or ()]
        rule = how.steps, how.batch, how.rate, weighed(on_evaluations, self.per_fit)
        embedded = fit_embeddings(model.pipeline, images.images, captions, *rule)
        drawn = draw_embedded(
            model.pipeline,
            [*range(how.seeds)] * len(images),
            embedded[torch.arange(len(images)).repeat_interleave(how.seeds)],
            model.asked.steps,
            model.asked.guidance,
            on_images=weighed(on_evaluations, model.per_sample),
            precision=model.asked.precision,
            sampler=model.sampler,
        )
        return drawn.unflatten(0, (len(images), how.seeds))


def _by_target(rows: Rows) -> Drawn:
    """All seeds of the first target, then all of the second, and so on."""
    ratios = rows["ratio"]
    return as_drawn(torch.arange(len(ratios)).repeat_interleave(ratios.shape[1]), ratios.flatten(), len(ratios))
