"""Memorized prompts, detected without any training image: how far the text moves the predicted noise.

d_t = || eps(x_t, prompt) - eps(x_t, "") ||_2          over all values of a latent
d   = mean of d_t over the steps of guided sampling, then over seeds

Where an image is memorized with its prompt, the text drives every noise to that image, and d is large: Wen et al.,
"Detecting, Explaining, and Mitigating Memorization in Diffusion Models", ICLR 2024, arXiv 2407.21720, section 3.

A model may predict v = sqrt(abar) eps - sqrt(1 - abar) x_0. With x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps that is
eps = sqrt(abar) v + sqrt(1 - abar) x_t, whose second term is the same with and without text:

eps(x_t, prompt) - eps(x_t, "") = sqrt(abar) (v(x_t, prompt) - v(x_t, ""))

detect.json    the prompts, the highest magnitude first, and how well it tells the memorized ones from the others;
               written last, with it the folder is whole
detect.png     both groups, and the ROC curve, where it is known which are memorized
.parts         while it is at work
"""

import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import SerializerFunctionWrapHandler, ValidationError, model_serializer
from torch import Tensor

from iet_agc.config.overrides import override
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.config.settings import Settings
from iet_agc.data.captions import check_texts
from iet_agc.diffusion.samplers import denoise, described, initial_noise, rows_at_a_time, scheduler_of
from iet_agc.metrics.intervals import Count, Interval, Portion, Proportion, Record, auc_interval, share
from iet_agc.reporting.charts import HELD_OUT, PALETTE, style
from iet_agc.runtime import distributed
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import digest, replacing, sha256
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.parts import compute_parts, read_parts
from iet_agc.runtime.precision import Precision, autocast, resolved
from iet_agc.runtime.progress import progress_bar
from iet_agc.runtime.reading import read_json, read_object
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import unsealed
from iet_agc.text_to_image.families import check_single_encoder
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.text_to_image.pipeline import guided, load_text_pipeline, text_weight_files
from iet_agc.training.identity import check_files, check_pipeline, given_images, weights_of

__all__ = ["Separation", "detect_prompts", "planted_prompts", "prompt_magnitudes", "separation"]

_MARK, _PICTURE = "detect.json", "detect.png"

#: A part on disk holds so many batches.
_PART = 8

#: So many prompts are in the summary.
_HIGHEST = 10

#: Share of the other prompts that may be taken for memorized ones: less than this, as in the authors' code.
_FALSE_ALARM = 0.01


# -- the magnitude


@torch.inference_mode()
def prompt_magnitudes(
    pipeline: TextPipeline,
    seeds: Sequence[int],
    prompts: Sequence[str],
    steps: int = 50,
    guidance: float = 7.5,
    first_steps: int | None = None,
    on_images: Callable[[float], object] = lambda count: None,
    precision: Precision = "float32",
) -> Tensor:
    """Magnitude of the text-conditional noise prediction, d_t above, along the way on which `pipeline.draw` draws.

    Args:
        pipeline: all its parts on one device.
        seeds: one per image; equal seeds and prompts give equal magnitudes, whatever the others are.
        prompts: one per image.
        steps: of DDIM with eta = 0; each evaluates the U-Net with and without the text.
        guidance: of the sampling; as in diffusers, there is none up to 1.
        first_steps: stop after so many of the steps; None takes all.
        on_images: called after each step with the finished fraction of images, for progress.
        precision: of the U-Net's products.

    Returns:
        float64 (N, first_steps), at least 0, on the CPU; the first step is the noisiest.

    Raises:
        UserError: a prompt that is too long.
    """
    scheduler, device = scheduler_of(pipeline.scheduler, "ddim", steps), pipeline.denoiser.device
    scheduler.timesteps = scheduler.timesteps[:first_steps]  # a step looks back by 1000 / steps, not by this list
    precision = resolved(precision, device)
    texts = list(dict.fromkeys(["", *prompts]))
    numbers, embedded = {text: number for number, text in enumerate(texts)}, pipeline.embed(pipeline.tokens(texts))
    found = [torch.empty(0, len(scheduler.timesteps), dtype=torch.float64)]
    for places, count in fixed_rows(len(seeds), rows_at_a_time(pipeline.image_shape, device)):
        noise = initial_noise([seeds[place] for place in places], pipeline.latent_shape)
        own = [prompts[place] for place in places]
        told = embedded[[numbers[text] for text in [""] * len(own) + own]].to(device)
        differences: list[Tensor] = []
        finished = count / len(scheduler.timesteps)
        with autocast(precision, device):  # around all steps: weights are cast once
            predict = guided(pipeline, told, guidance, partial(_note, differences))
            denoise(predict, scheduler, noise.to(device), lambda s=finished: on_images(s))
        found.append(torch.stack(differences, dim=1)[:count].cpu() * _to_noise(scheduler))
    return torch.cat(found)


def _note(differences: list[Tensor], without: Tensor, told: Tensor) -> None:
    """Add the norm of the difference of two predictions, float64 (N,)."""
    differences.append((told - without).double().flatten(1).norm(dim=1))


def _to_noise(scheduler: Any) -> Tensor:
    """What makes a difference of predictions one of noise, at each timestep, float64; see the top."""
    scale = scheduler.alphas_cumprod[scheduler.timesteps].double().sqrt()
    return scale if scheduler.config.prediction_type == "v_prediction" else torch.ones_like(scale)


# -- how well it tells


class Detected(Proportion):
    """The share of memorized prompts whose magnitude is above the cut."""

    cut: float


class Separation(Record):
    """How well magnitudes tell memorized prompts from others.

    Attributes:
        num_memorized, num_others: prompts of each kind.
        auc: how often a memorized prompt has the larger magnitude of a random pair, ties half.
        tpr_at_1_percent_fpr: the memorized prompts above the cut, under which lie all others but less than 1 %; with
            Wilson's interval given the cut.
    """

    num_memorized: Count
    num_others: Count
    auc: Portion
    auc_ci95: Interval
    tpr_at_1_percent_fpr: Detected


def separation(magnitudes: Sequence[float], memorized: Sequence[bool]) -> Separation:
    """How well magnitudes tell memorized prompts from others.

    Args:
        magnitudes: one per prompt.
        memorized: whether each is; both kinds must be there.

    Raises:
        UserError: all are memorized, or none.
    """
    from sklearn.metrics import roc_auc_score

    values, positive = np.asarray(magnitudes, dtype=np.float64), np.asarray(memorized, dtype=bool)
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        raise UserError(f"{count} prompts are memorized and {others} are not: give at least one of each")
    auc = float(roc_auc_score(positive, values))
    allowed = math.ceil(_FALSE_ALARM * others) - 1
    cut = float(np.sort(values[~positive])[-1 - allowed])
    found = share(int((values[positive] > cut).sum()), count)
    return Separation(
        num_memorized=count,
        num_others=others,
        auc=auc,
        auc_ci95=auc_interval(auc, count, others),
        tpr_at_1_percent_fpr=Detected(cut=cut, **found.model_dump()),
    )


# -- prompts


def planted_prompts(run: Path) -> tuple[list[str], list[str]]:
    """Prompts of a finished text-to-image run that planted duplicates, and which of them are those of the planted.

    Of every image it is the first caption. The others are captions of the images that follow the planted ones, as many
    of them where there are; training images are in random order. A caption stands once.

    Returns:
        All prompts, and the planted ones.

    Raises:
        UserError: no such run, nothing is planted, or there are no others.
    """
    settings = read_settings(run)
    data = settings.data
    if settings.model.kind != "text-to-image":
        raise UserError(f"{run} is no text-to-image run: it has no prompts to detect")
    if given := given_images(run):  # its settings say what they would have planted
        raise UserError(
            f"{run} was trained on {given}, of which it is not known what was planted: {_GIVE_BOTH}", "prompts"
        )
    if not data.planted_images or data.planted_copies < 2:
        raise UserError(f"{run} has no planted images: {_GIVE_BOTH}", "prompts")
    captions = _first_captions(run)
    unique = len(captions) - data.planted_images * (data.planted_copies - 1)  # further copies stand behind all images
    planted = list(dict.fromkeys(captions[: data.planted_images]))
    others = [text for text in dict.fromkeys(captions[data.planted_images : unique]) if text not in planted]
    if not others:
        raise UserError(f"{run} has no captions but those of its planted images: {_GIVE_BOTH}", "prompts")
    return planted + others[: len(planted)], planted


_GIVE_BOTH = "give prompts, and which of them are memorized"


def _first_captions(run: Path) -> list[str]:
    """The first caption of each training image, in their order."""
    file = run / "captions.json"
    if not file.exists():
        raise UserError(f"{run} is not finished: run the same 'iet-agc train' again to finish it")
    check_files(run, [file])
    content = read_json(file, _GIVE_BOTH)
    if not isinstance(content, list) or not all(_is_captions(texts) for texts in content):
        raise UserError(f"{file} holds something else than captions: {_GIVE_BOTH}", "prompts")
    return [texts[0] for texts in content]


def _is_captions(texts: object) -> bool:
    """Whether these are the captions of an image, as a run writes them."""
    return isinstance(texts, list) and bool(texts) and all(isinstance(text, str) for text in texts)


def _checked(prompts: Sequence[str], memorized: Sequence[str] | None) -> list[str]:
    """The prompts, each once."""
    if not prompts:
        raise UserError("there is no prompt to look at: give some, or take those planted in a run", "prompts")
    check_texts(prompts)
    unique = list(dict.fromkeys(prompts))
    if memorized is None:
        return unique
    if absent := [text for text in memorized if text not in set(unique)]:
        raise UserError(f"memorized prompt {absent[0]!r} is not among the prompts: add it there, in the same letters")
    if len(set(memorized)) in (0, len(unique)):
        which = "all prompts are" if memorized else "no prompt is"
        raise UserError(f"{which} said to be memorized, so there is nothing to tell apart: give some of each")
    return unique


# -- on disk


class _Made(Record):
    """What magnitudes were made from."""

    format: Literal["iet-agc detect"] = "iet-agc detect"
    version: Literal[1] = 1
    pipeline: str
    weights_sha256: dict[str, str]
    measure: str = "L2 norm of eps(x_t, prompt) - eps(x_t, empty), mean over steps, then over seeds"
    sampler: str = "DDIM, eta 0"
    scheduler: dict[str, object]
    steps: int
    guidance: float
    device: str
    rows: int
    precision: Precision
    seeds: int
    first_steps: int
    num_prompts: int
    prompts_sha256: str
    memorized_sha256: str | None


class _OfPrompt(Record):
    """A prompt's magnitude: the mean over seeds, their standard deviation (None of one), and each; memorized or not."""

    prompt: str
    magnitude: float
    sd: float | None
    by_seed: tuple[float, ...]
    memorized: bool | None = None

    @model_serializer(mode="wrap")
    def _unless_unknown(self, plain: SerializerFunctionWrapHandler) -> dict[str, object]:
        found: dict[str, object] = plain(self)
        return {key: value for key, value in found.items() if key != "memorized" or value is not None}


class _Detection(_Made):
    """The whole of detect.json, beside its seal."""

    separation: Separation | None
    prompts: tuple[_OfPrompt, ...]


def detect_prompts(
    source: Path,
    out: Path,
    prompts: Sequence[str],
    memorized: Sequence[str] | None = None,
    num_seeds: int = 4,
    first_steps: int | None = None,
    given: Mapping[str, object] | None = None,
    device: str = "auto",
) -> dict[str, object]:
    """Measure prompts and write a folder: what `iet-agc detect` does; the same call again resumes.

    Args:
        source: a finished text-to-image run, or a diffusers pipeline folder.
        out: the folder.
        prompts: a repeated one counts once.
        memorized: which of them are known to be; the others are taken not to be. None: how well they are told apart is
            left out.
        num_seeds: images of each prompt, of seeds 0, 1 and so on, the same for all.
        first_steps: see `prompt_magnitudes`.
        given: settings of section `sample` to replace, such as {"steps": 20}.
        device: "auto", "cpu" or "cuda".

    Returns:
        A summary, JSON values only.

    Raises:
        UserError: no text-to-image pipeline, prompts that do not fit, impossible numbers, or `out` holds something
            else or another detection.
    """
    began = time.perf_counter()
    folder, settings = _asked(source, given or {})
    asked = settings.sample
    unique, where = _checked(prompts, memorized), distributed.choose_device(device)
    pipeline = replace(load_text_pipeline(folder), cuts=settings.text.too_long == "cut")  # as it was trained
    check_single_encoder(pipeline, "the detection of memorized prompts")
    pipeline.tokens(unique)  # refuses those that are too long
    made = _Made(
        pipeline=str(folder.resolve()),
        weights_sha256={str(file.relative_to(folder)): sha256(file) for file in text_weight_files(folder)},
        scheduler=described(pipeline.scheduler),
        steps=asked.steps,
        guidance=asked.guidance,
        device=where.type,
        rows=rows_at_a_time(pipeline.image_shape, where),
        precision=resolved(asked.precision, where),
        seeds=_in_range("seeds", num_seeds, 2**32),
        first_steps=_in_range("first_steps", asked.steps if first_steps is None else first_steps, asked.steps),
        num_prompts=len(unique),
        prompts_sha256=digest(unique),
        memorized_sha256=None if memorized is None else digest(sorted({*memorized})),
    )
    about = made.model_dump()
    result = ResultFolder(out, _MARK, "detection")
    result.check(about)
    total = len(unique) * num_seeds
    with (
        distributed.processes(where),
        result.at_work(about) as unfinished,
        progress_bar("detect", total, unit="image", shown=distributed.rank() == 0) as bar,
    ):
        if unfinished:
            pipeline.to(where)
            magnitudes = _magnitudes(result.parts, made, pipeline, unique, bar.update)
            distributed.barrier()  # others may still be reading parts
            if distributed.rank() == 0:
                _write(result, made, unique, magnitudes, None if memorized is None else {*memorized})
    return _summary(out) | {"seconds": round(time.perf_counter() - began, 1)}


def _asked(source: Path, given: Mapping[str, object]) -> tuple[Path, Settings]:
    """The pipeline of a source, and its settings, with those given."""
    run = is_run(source)
    settings = read_settings(source) if run else Settings()
    settings = override(settings, {f"sample.{name}": value for name, value in given.items()})
    pipeline = weights_of(source, settings.sample.weights) if run else source
    check_pipeline(pipeline)
    return pipeline, settings


def _in_range(name: str, value: int, most: int) -> int:
    if not 1 <= value <= most:
        raise UserError(f"{name} {value} is not between 1 and {most}", name)
    return value


def _magnitudes(
    parts: Path,
    made: _Made,
    pipeline: TextPipeline,
    prompts: Sequence[str],
    on_images: Callable[[float], object],
) -> Tensor:
    """Every prompt with every seed, over all processes, float64 (P, S)."""
    seeds, length = made.seeds, _PART * made.rows

    def make(items: slice) -> dict[str, Tensor]:
        own = range(items.start, items.stop)
        drawn = [item % seeds for item in own]
        told = [prompts[item // seeds] for item in own]
        how = made.steps, made.guidance, made.first_steps, on_images, made.precision
        return {"magnitudes": prompt_magnitudes(pipeline, drawn, told, *how).mean(1)}

    total = len(prompts) * seeds
    compute_parts(parts, "magnitudes", total, length, make, on_images)
    return read_parts(parts, "magnitudes", total, length)["magnitudes"].reshape(len(prompts), seeds)


def _write(
    result: ResultFolder, made: _Made, prompts: Sequence[str], magnitudes: Tensor, memorized: set[str] | None
) -> None:
    values = magnitudes.mean(1).tolist()
    spread = magnitudes.std(1).tolist() if magnitudes.shape[1] > 1 else [None] * len(prompts)
    rows = [
        _OfPrompt(
            prompt=prompt,
            magnitude=value,
            sd=deviation,
            by_seed=tuple(each),
            memorized=None if memorized is None else prompt in memorized,
        )
        for prompt, value, deviation, each in zip(prompts, values, spread, magnitudes.tolist(), strict=True)
    ]
    rows.sort(key=lambda row: -row.magnitude)
    found = None
    if memorized is not None:
        highest_first, marks = [row.magnitude for row in rows], [row.prompt in memorized for row in rows]
        found = separation(highest_first, marks)
        with replacing(result.place / _PICTURE) as unfinished:
            unfinished.write_bytes(_png(highest_first, marks, found))
    detection = _Detection(**made.model_dump(), separation=found, prompts=tuple(rows))
    result.finish(detection.model_dump(mode="json"), [] if found is None else [_PICTURE])


def _summary(out: Path) -> dict[str, object]:
    content = unsealed(out / _MARK, read_object(out / _MARK, "detect again"), "detect again")
    try:
        found = _Detection.model_validate_json(json.dumps(content))
    except ValidationError:
        raise UserError(f"{out / _MARK} is damaged: remove it, or choose another output", "out") from None
    told = found.model_dump(
        mode="json", include={"num_prompts", "seeds", "steps", "first_steps", "guidance", "separation"}
    )
    highest = [row.model_dump(mode="json", exclude={"by_seed"}) for row in found.prompts[:_HIGHEST]]
    return {"detect": str(out), **told, "highest": highest}


# -- the picture


def _png(magnitudes: Sequence[float], memorized: Sequence[bool], found: Separation) -> bytes:
    from sklearn.metrics import roc_curve

    values, positive = np.asarray(magnitudes, np.float64), np.asarray(memorized, np.bool_)
    with style():
        figure = Figure(figsize=(7.2, 3.2))
        groups, curve = figure.subplots(1, 2)
        _draw_groups(groups, values, positive, found.tpr_at_1_percent_fpr.cut)
        false, true, _ = roc_curve(positive, values, drop_intermediate=False)
        curve.plot(false, true, color=PALETTE[0], linewidth=1.6)
        curve.plot([0, 1], [0, 1], color=HELD_OUT, linestyle="--", linewidth=1.1)
        curve.set_xlabel("others taken for memorized")
        curve.set_ylabel("memorized prompts found")
        low, high = found.auc_ci95
        curve.set_title(f"AUC {found.auc:.3f} (95 % interval {low:.3f} to {high:.3f})", fontsize=9)
        stream = io.BytesIO()
        FigureCanvasAgg(figure).print_figure(stream, format="png", dpi=200, metadata={"Software": None})
    return stream.getvalue()


def _draw_groups(axes: Axes, values: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_], cut: float) -> None:
    """A histogram of each group, and the cut."""
    edges = np.histogram_bin_edges(values, bins=30).tolist()
    for mask, colour, name in ((~positive, HELD_OUT, "others"), (positive, PALETTE[0], "memorized")):
        axes.hist(values[mask], bins=edges, color=colour, alpha=0.65, label=f"{name} ({int(mask.sum())})")
    axes.axvline(cut, color=PALETTE[-1], linestyle="--", linewidth=1.1, label="cut (< 1 % of others)")
    axes.set_xlabel("magnitude")
    axes.set_ylabel("prompts")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, handlelength=1, columnspacing=1)
