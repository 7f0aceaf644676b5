"""The model card of a run as Markdown, with the hub's metadata: it claims no more than the audits allow. No torch here.

What an audit found stands in the metadata's model-index only where the audit can tell and its samples are known to be
the model's own. The same facts give the same text: no date, no device, no path of the machine.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined, Template

from iet_agc.auditing.schema import AuditRecord, Verdict
from iet_agc.auditing.verdict import Outcome, doubts
from iet_agc.auditing.verdict import verdict as judge
from iet_agc.config.data_settings import HuggingFaceData
from iet_agc.config.settings import Settings, TrainSettings
from iet_agc.metrics.attacks import WAYS, Attacks
from iet_agc.metrics.gate import Way
from iet_agc.metrics.intervals import Proportion, three_digits

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

__all__ = ["MARK", "Attacked", "Audited", "CardFacts", "ImagesTold", "method_in_words", "render_card", "verdict_words"]

#: Stands in every card of ours, after its metadata, and in no other file.
MARK = "<!-- written by iet-agc card -->"

#: What a verdict is called, and what follows from it and what does not.
_VERDICTS: dict[Outcome, tuple[str, str]] = {
    "copies": ("Copies found", "More samples are copies of training images than chance explains."),
    "undecided": (
        "Undecided",
        "More than chance is neither shown nor excluded: more samples and held-out images tell.",
    ),
    "chance": (
        "No copying beyond chance shown",
        "This does not show that nothing is copied: shares up to the upper limit of the interval are possible, and "
        "what such an audit cannot detect is listed below.",
    ),
    "cannot_tell": (
        "Cannot tell",
        "This audit says nothing of how much is copied, neither that much is nor that little.",
    ),
}


#: What is added to the verdict on samples that may be another model's.
_UNKNOWN = ", of samples of unknown origin"


@dataclass(frozen=True)
class ImagesTold:
    """Images that a run tells of: their name for people, number, and SHA-256 over shape and pixels."""

    name: str
    num: int
    sha256: str


@dataclass(frozen=True)
class Audited:
    """An audit.

    Attributes:
        numbers: the content of its audit.json.
        are_own: whether its samples are known to be drawn from the model's weights.
    """

    numbers: AuditRecord
    are_own: bool

    @property
    def verdict(self) -> Verdict:
        """What it allows to say."""
        return self.numbers.verdict or judge(self.numbers)


@dataclass(frozen=True)
class Attacked:
    """An attack on a model.

    Attributes:
        name: of its folder.
        budget: plain samples, of so many `steps` each.
        weights: SHA-256 of the files that were attacked, by name.
        numbers: what was recovered.
    """

    name: str
    budget: int
    steps: int
    weights: Mapping[str, str]
    numbers: Attacks

    @property
    def outcome(self) -> str:
        """In words; of all ways together."""
        if any(each.is_beyond_chance for each in self.numbers.attacks):
            return "training images are recovered"
        return "training images are not shown to be recovered more often than held-out images"


@dataclass(frozen=True)
class CardFacts:
    """All that a card says.

    Attributes:
        title: what the model is called.
        settings: of the run.
        train, held_out: the images that it was trained on, and those that it holds out.
        given: the training images were handed over by a program, and are none that the settings read.
        weights: SHA-256 of the exported files, by pipeline ("raw", "ema") and path below it.
        audits: of its samples.
        attacks: on its weights.
        stopped: where the run ended early, see `iet_agc.training.identity.stopped`; None where it did not.
        privacy: of a run of DP-SGD, see `iet_agc.training.private.Privacy`; None of others.
    """

    title: str
    settings: Settings
    train: ImagesTold
    held_out: ImagesTold | None
    given: bool
    weights: dict[str, dict[str, str]]
    audits: Sequence[Audited]
    attacks: Sequence[Attacked] = ()
    stopped: Mapping[str, int] | None = None
    privacy: Mapping[str, Any] | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of all members, that the weights come from."""
        members = self.settings.method.members
        return self.stopped["weights_of_step"] * members if self.stopped else self.settings.total_steps


@cache
def _template() -> Template:
    environment = Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": three_digits, "code": _code, "count": "{:,}".format, "last": _last}
    text = files("iet_agc.reporting").joinpath("templates", "model_card.md.j2").read_text(encoding="utf-8")
    return environment.from_string(text)


def render_card(facts: CardFacts) -> str:
    """The card: YAML between two lines of dashes, then Markdown."""
    settings = facts.settings
    body = _template().render(
        facts=facts,
        settings=settings,
        mark=MARK,
        method=method_in_words(settings),
        is_text=settings.model.kind == "text-to-image",
        is_dit=settings.model.network == "dit",
        scheduler="FlowMatchEulerDiscreteScheduler" if settings.model.objective == "flow" else "DDIMScheduler",
        weights=settings.sample.weights,
        audits=[
            (audit, verdict_words([audit]), _VERDICTS[audit.verdict.outcome][1], [*_ways(audit)])
            for audit in facts.audits
        ],
        attack_ways=WAYS,
        version=version("iet-agc"),
    )
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n{body.rstrip()}\n"


def verdict_words(audits: Sequence[Audited]) -> str:
    """The verdicts of all audits, for people; without any, that there is none."""
    words = (f"{_VERDICTS[audit.verdict.outcome][0]}{'' if audit.are_own else _UNKNOWN}" for audit in audits)
    return "; ".join(dict.fromkeys(words)) or "Not audited"


def method_in_words(settings: Settings) -> str:
    """How a run was trained, in words."""
    method, parts = settings.method, []
    if method.members > 1:
        parts.append(
            f"Iterative Ensemble Training: {method.members} members, each on a shard of the training set, averaged "
            f"after each of {method.rounds} rounds"
        )
    if method.skip_below == "auto":
        parts.append(
            "Anti-Gradient Control: samples whose loss is a quarter of a standard deviation of the log losses below "
            "the mean loss at their timestep are skipped"
        )
    elif method.skip_below:
        parts.append(
            f"Anti-Gradient Control: samples whose loss is below {method.skip_below:g} of the mean loss at their "
            "timestep are skipped"
        )
    if method.skip_reference == "held-out":
        parts.append("that mean is raised to the loss of held-out images at the noise level")
    if method.skip_within == "gap":
        parts.append(f"it skips at timesteps {settings.train.gap_low} to {settings.train.gap_high} only")
    if method.exchange:
        parts.append(
            f"after every second round (arXiv 2502.09434) members hand on the {method.exchange:.0%} of their images "
            "that they skipped most"
        )
    if method.random_skip:
        parts.append(f"samples are skipped at random, {method.random_skip:.0%} of them")
    parts += _of_others(settings.train)
    return "; ".join(parts) or "plain training: one model, no sample skipped"


def _of_others(train: TrainSettings) -> Iterator[str]:
    """What else a run did against copying, each with its source; see docs/method.md, "The rivals"."""
    if train.timesteps == "gap" and train.gap_density < 1:
        yield (
            f"gap training (arXiv 2602.17846): timesteps {train.gap_low} to {train.gap_high} are drawn "
            f"{train.gap_density:g} times as often as by a uniform density"
        )
    if train.timesteps == "u-shaped":
        yield "U-shaped timesteps (arXiv 2603.13421): those in the middle are drawn less often than those at both ends"
    if train.timesteps == "logit-normal":
        yield "logit-normal timesteps (arXiv 2403.03206): those in the middle are drawn more often"
    if train.target == "ambient":
        yield (
            f"Ambient Diffusion (arXiv 2502.21278): above timestep {train.target_timestep} a part of the noise is "
            "fixed per image"
        )
    if train.target == "smoothed":
        yield (
            f"smoothed targets (arXiv 2601.19285): up to timestep {train.target_timestep} the target is a mean of an "
            "image's neighbours"
        )
    if train.dp_noise:
        yield (
            f"DP-SGD (arXiv 2210.09929): gradients of single images clipped to {train.dp_clip:g}, noise multiplier "
            f"{train.dp_noise:g}"
        )
    if train.min_snr:
        yield f"min-SNR loss weights (arXiv 2303.09556), gamma {train.min_snr:g}"


def _ways(audit: Audited) -> Iterator[tuple[Way, Proportion, float, str]]:
    """By each way of copying: the share of samples, the cut, and why it cannot be told, if it cannot."""
    numbers = audit.numbers
    for way, found in numbers.ways().items():
        if found is not None:
            yield way, found, found.cut, "; ".join(reason.sentence for reason in doubts(numbers, way))


def _metadata(facts: CardFacts) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    settings, results = facts.settings, [*_results(facts)]
    options: dict[str, Any] = {"model_name": facts.title, "eval_results": results} if results else {}
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=_task(settings),
        tags=["diffusion", "iet-agc", "memorization"] + ["not-audited"] * (not facts.audits),
        datasets=None if facts.given else _of_hub(settings),
        base_model=settings.init.model if _is_hub_name(settings.init.model) else None,
        **options,
    )


def _results(facts: CardFacts) -> "Iterator[EvalResult]":
    """What may be quoted without the card around it: of audits that can tell, and of the model's own samples."""
    from huggingface_hub import EvalResult

    for audit in facts.audits:
        if not audit.are_own or audit.verdict.outcome == "cannot_tell":
            continue
        result = partial(
            EvalResult,
            task_type=_task(facts.settings),
            dataset_type="images" if facts.given else facts.settings.data.name,
            dataset_name=_last(facts.train.name),
        )
        for way, found, cut, doubt in _ways(audit):
            if not doubt:
                told = {"count": found.count, "total": found.total, "ci95": list(found.ci95), "cut": cut}
                name = f"Copied {way}, share of samples beyond the calibrated cut, of which 1% is chance"
                yield result(metric_type="copied_share", metric_name=name, metric_value=found.share, metric_args=told)
        quality = audit.numbers.quality
        if quality.extractor and (frechet := quality.frechet_held_out) is not None:
            name = f"Fréchet distance to held-out images, features: {_last(quality.extractor)}"
            yield result(metric_type="frechet_distance", metric_name=name, metric_value=frechet)


def _task(settings: Settings) -> str:
    return "text-to-image" if settings.model.kind == "text-to-image" else "unconditional-image-generation"


def _of_hub(settings: Settings) -> list[str] | None:
    """The dataset of the hub that was trained on."""
    data = settings.data
    return [data.root] if isinstance(data, HuggingFaceData) and data.root and _is_hub_name(data.root) else None


def _is_hub_name(name: str | None) -> bool:
    """Whether a name has the form of the hub's; that of a relative path may as well, which is then not told apart."""
    return bool(name and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name))


def _last(name: str) -> str:
    """The last part of a path: where images lie is the machine's business."""
    return PurePath(name).name if PurePath(name).is_absolute() or name.startswith(".") else name


def _code(text: object) -> str:
    """A text in Markdown that formats nothing in it."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"
