"""Sample sets: generated images with the seed of each, drawn in parts so that a kill loses little.

samples.json      what drew them, and what they were kept away from; with a guard, which seeds it turned down; the class
                  or the prompt of each, if the model is conditional, and what prompts were changed to; written last,
                  with it the set is whole
samples.npz       images uint8 (N, C, H, W), seeds int64 (N,), labels int64 (N,) if the model is class-conditional
images/*.png      instead of the .npz, when asked; named by seed
grid.png          the first 64, to look at
.parts            while it is at work
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from iet_agc.config.overrides import override
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.config.settings import SampleSettings, Settings
from iet_agc.data.captions import check_texts, in_turn
from iet_agc.data.conversion import Resize
from iet_agc.data.folders import load_images
from iet_agc.data.grids import image_grid, save_image
from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import Mending
from iet_agc.diffusion.guidance import TrainingImages, fit_thresholds, guided
from iet_agc.diffusion.process import is_flow, predict_noise
from iet_agc.diffusion.samplers import (
    SAMPLERS,
    Predict,
    Sampler,
    described,
    labels_of,
    rows_at_a_time,
    sample,
    sampler_of,
    scheduler_of,
)
from iet_agc.diffusion.unet import image_shape, is_text_pipeline, load_pipeline, num_classes, weight_files
from iet_agc.runtime import distributed
from iet_agc.runtime.errors import CheckFailed, UserError
from iet_agc.runtime.files import digest, replacing, sha256
from iet_agc.runtime.parts import compute_parts, read_parts
from iet_agc.runtime.precision import Precision, resolved
from iet_agc.runtime.progress import phase, progress_bar
from iet_agc.runtime.reading import read_json, read_object, read_text
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import unsealed
from iet_agc.sampling.conditioning import ClassLabels, Conditioning, Prompts
from iet_agc.text_to_image.caption_augmentation import Changes
from iet_agc.training.identity import check_files, check_pipeline, weights_of

if TYPE_CHECKING:
    from iet_agc.text_to_image.family import TextPipeline

__all__ = ["draw_samples", "load_samples", "read_origin", "read_prompts", "sample_run", "text_sampler"]

_FORMAT, _VERSION = "iet-agc samples", 1

#: A part on disk holds so many batches of the sampler.
_PART = 8

#: A grid has a class in each column up to so many classes.
_MOST_COLUMNS = 16

#: Settings of section `sample` that only prompts have.
_TOLD = ("guidance", "scheduler", "random_tokens", "random_numbers", "repeat_words", "embedding_noise")

#: A guard that lets through fewer than one image in so many is given up with.
_MOST_DRAWN = 10


class Guard(TrainingImages, Protocol):
    """What lets images through or turns them down, such as `iet_agc.auditing.guard.Guard`."""

    def passes(self, images: Tensor) -> Tensor:
        """Whether each image, uint8 (N, C, H, W), is let through; bool (N,)."""
        ...


def draw_samples(
    pipeline: Path,
    out: Path,
    asked: SampleSettings,
    conditioning: Conditioning = None,
    *,
    file_format: Literal["npz", "png"] = "npz",
    device: torch.device | None = None,
    on_images: Callable[[float], object] = lambda count: None,
    guard: Guard | None = None,
    amg: TrainingImages | None = None,
) -> Path:
    """Sample a diffusers pipeline into a folder, over all processes; the same call again resumes.

    Args:
        pipeline: folder of a diffusers pipeline.
        out: the sample set's folder.
        asked: how many images, of which seeds, and how they are drawn. All but `weights`, which is the pipeline.
        conditioning: what the model is conditioned on. A text-to-image pipeline needs prompts.
        file_format: one .npz, or a PNG per image.
        device: where to sample.
        on_images: called with finished fractions of images, for progress; what a resumed call finds
            already done counts at once.
        guard: images that it turns down are left out, and the seeds go on after the last one until there are enough
            that pass. The set is then that of the first seeds that pass.
        amg: what images are pushed away from while they are drawn; in float32, and not of text-to-image.

    Returns:
        `out`.

    Raises:
        UserError: no pipeline, no such class, prompts missing or without effect, AMG where it cannot be, or `out` holds
            something else or another sample set.
        CheckFailed: the guard turns down nearly everything.
    """
    device = device or torch.device("cpu")
    seeds = range(asked.first_seed, asked.first_seed + asked.num)
    asked = asked.model_copy(update={"precision": resolved(asked.precision, device)})
    label = conditioning.only if isinstance(conditioning, ClassLabels) else None
    if is_text_pipeline(pipeline):
        if amg:
            raise UserError(f"AMG is for models over pixels, and {pipeline} is text-to-image: use a guard", "amg")
        source = _text_source(pipeline, conditioning, asked, device, on_images)
    else:
        source = _image_source(pipeline, conditioning, asked, device, on_images, amg)
    about = _about(pipeline, source, seeds, asked.steps, file_format, device)
    about |= {"guard": guard.about if guard else None, "class": label, "precision": asked.precision}
    about |= {"amg": amg.about | {"strength": asked.amg_strength} if amg else None}
    _labels(pipeline, about["classes"], label, seeds[:1])  # refuses a class that there is not
    _check_size("the guard's training images", guard, source.shape)
    folder = _folder(out)
    folder.check(about)
    with folder.at_work(about) as unfinished:
        if unfinished:
            _draw_parts(folder, about, seeds, _PART * about["rows"], source, on_images, guard)
        else:
            on_images(len(seeds))
    return out


def _folder(out: Path) -> ResultFolder:
    return ResultFolder(out, "samples.json", "sample set")


@dataclass(frozen=True)
class _Source:
    """What draws images.

    Attributes:
        shape: (C, H, W) of them.
        scheduler: its noise schedule and sampler conventions.
        files: what they follow from, by name.
        about: what else they follow from.
        draw: seeds to uint8 images.
        notes: what is noted of each image, by the name of the note, given all their seeds.
    """

    shape: tuple[int, int, int]
    scheduler: Any
    files: dict[str, Path]
    about: dict[str, object]
    draw: Callable[[range], Tensor]
    notes: Callable[[Sequence[int]], dict[str, list[str]]] = lambda seeds: {}


def _image_source(
    pipeline: Path,
    conditioning: Conditioning,
    asked: SampleSettings,
    device: torch.device,
    on_images: Callable[[float], object],
    amg: TrainingImages | None,
) -> _Source:
    if isinstance(conditioning, Prompts):
        raise UserError(f"{pipeline} is no text-to-image pipeline: leave out the prompts")
    model, scheduler = load_pipeline(pipeline, device)
    shape, classes = image_shape(model), num_classes(model)
    only = conditioning.only if conditioning else None

    if amg and is_flow(scheduler):
        raise UserError(f"AMG is for models that predict noise or v, and {pipeline} learned a flow: use a guard", "amg")
    if amg:
        _check_amg(amg, shape, classes, asked.precision)

    @cache  # fit when the first part is drawn: a whole set needs none
    def guide() -> Callable[[Predict], Predict]:
        return _guide(amg, model, scheduler, asked, device) if amg else lambda predict: predict

    def draw(own: range) -> Tensor:
        labels = _labels(pipeline, classes, only, own)
        return sample(model, scheduler, own, shape, asked.steps, device, on_images, labels, asked.precision, guide())

    return _Source(shape, scheduler, {file.name: file for file in weight_files(pipeline)}, {"classes": classes}, draw)


def _check_amg(amg: TrainingImages, shape: tuple[int, int, int], classes: int | None, precision: Precision) -> None:
    _check_size("the training images of AMG", amg, shape)
    if classes is not None and amg.labels is None:
        raise UserError("AMG for a class-conditional model needs the classes of the held-out images: give a run's")
    if precision != "float32":
        raise UserError(f"AMG differentiates the model, which needs precision float32, not {precision}", "precision")


def _guide(
    amg: TrainingImages, model: Any, scheduler: Any, asked: SampleSettings, device: torch.device
) -> Callable[[Predict], Predict]:
    """AMG for a model, its thresholds fit."""
    timesteps = scheduler_of(scheduler, "ddim", asked.steps).timesteps.tolist()
    conditional = num_classes(model) is not None
    with torch.inference_mode(), phase("amg"):
        thresholds = fit_thresholds(
            amg,
            lambda images, at, labels: predict_noise(model, images, at, labels if conditional else None),
            scheduler,
            timesteps,
            rows_at_a_time(image_shape(model), device),
            device,
        )
    return lambda predict: guided(predict, scheduler, amg, thresholds, asked.amg_strength)


def _text_source(
    pipeline: Path,
    conditioning: Conditioning,
    asked: SampleSettings,
    device: torch.device,
    on_images: Callable[[float], object],
) -> _Source:
    from iet_agc.text_to_image import pipeline as text

    if not isinstance(conditioning, Prompts) or not conditioning.texts:
        raise UserError(f"{pipeline} draws by prompts: give some", "prompts")
    check_texts(conditioning.texts)
    changes = Changes(**asked.changes())
    parts = replace(text.load_text_pipeline(pipeline), cuts=conditioning.cuts)
    sampler = text_sampler(parts, asked, changes)
    parts.tokens(conditioning.texts)  # refuses those that are too long
    parts.vocabulary(changes)  # refuses a tokenizer without what they take
    parts.to(device)

    def draw(own: range) -> Tensor:
        return text.draw(
            parts,
            own,
            conditioning.of(own),
            asked.steps,
            asked.guidance,
            on_images=on_images,
            precision=asked.precision,
            sampler=sampler,
            changes=changes,
            embedding_noise=asked.embedding_noise,
        )

    def note(seeds: Sequence[int]) -> dict[str, list[str]]:
        own = conditioning.of(seeds)
        return {"prompts": own} | ({"told": text.changed_prompts(parts, seeds, own, changes)} if changes.any else {})

    files = {str(file.relative_to(pipeline)): file for file in text.text_weight_files(pipeline)}
    about: dict[str, object] = {"classes": None, "guidance": asked.guidance}
    about |= {"num_prompts": len(conditioning.texts), "prompts_sha256": digest(list(conditioning.texts))}
    about |= {"mitigations": _mitigations(changes, asked.embedding_noise), "sampler": SAMPLERS[sampler]}
    scheduler = parts.sampling_scheduler(sampler, asked.steps)
    return _Source(parts.image_shape, scheduler, files, about, draw, note)


def text_sampler(parts: "TextPipeline", asked: SampleSettings, changes: Changes) -> Sampler:
    """What draws from a text-to-image pipeline.

    Raises:
        UserError: it cannot do all that is asked for.
    """
    from iet_agc.text_to_image.families import check_single_encoder

    if changes.any:
        check_single_encoder(parts, "changing prompts")
    if asked.embedding_noise > 0:
        check_single_encoder(parts, "embedding_noise")
    parts.check_guidance(asked.guidance)
    if not is_flow(parts.scheduler):
        return asked.scheduler
    if asked.scheduler != SampleSettings().scheduler:
        raise UserError(f"{parts.NAME} is drawn along its flow, not by {asked.scheduler}: leave out the scheduler")
    return sampler_of(parts.scheduler)


def _mitigations(changes: Changes, embedding_noise: float) -> dict[str, float] | None:
    """Those that are in use, by name."""
    return asdict(changes) | {"embedding_noise": embedding_noise} if changes.any or embedding_noise > 0 else None


def _draw_parts(
    folder: ResultFolder,
    about: dict[str, Any],
    seeds: range,
    length: int,
    source: _Source,
    on_images: Callable[[float], object],
    guard: Guard | None,
) -> None:
    """Have all parts drawn, by all processes, and put together, by one."""

    def make(items: slice) -> dict[str, Tensor]:
        images = source.draw(range(seeds.start + items.start, seeds.start + items.stop))
        return {"images": images} | ({"passes": guard.passes(images)} if guard else {})

    if guard:
        chosen, images = _first_that_pass(folder.parts, seeds, length, make, on_images)
    else:
        compute_parts(folder.parts, "images", len(seeds), length, make, on_images)
        chosen, images = seeds, read_parts(folder.parts, "images", len(seeds), length)["images"]
    distributed.barrier()  # others may still be reading parts
    if distributed.rank() == 0:
        _assemble(folder, about | source.notes(chosen), chosen, images)


def _check_size(what: str, training: Guard | TrainingImages | None, shape: tuple[int, int, int]) -> None:
    if training and tuple(training.references.shape[1:]) != shape:
        sizes = [" x ".join(map(str, one)) for one in (training.references.shape[1:], shape)]
        raise UserError(f"{what} are {sizes[0]}, the model draws {sizes[1]}: sizes must agree")


def _first_that_pass(
    parts: Path,
    seeds: range,
    length: int,
    draw: Callable[[slice], dict[str, Tensor]],
    on_images: Callable[[float], object],
) -> tuple[list[int], Tensor]:
    """The first seeds whose images pass, as many as there are in `seeds`, and those images.

    Whole parts are drawn, so that a part stays the same when more seeds are needed.
    """
    num, drawn = len(seeds), 0
    found = {"passes": torch.zeros(0, dtype=torch.bool)}
    while (passed := int(found["passes"].sum())) < num:
        if drawn >= _MOST_DRAWN * num:
            raise CheckFailed(
                f"of {drawn} images only {passed} pass the guard, and {num} are needed: this model copies too much"
            )
        rate = max(passed / drawn, 1 / _MOST_DRAWN) if drawn else 1.0
        drawn += length * math.ceil((num - passed) / rate / length)
        if seeds.start + drawn > 2**32:
            raise UserError(
                f"the guard needs seeds beyond 2^32: choose a first seed lower than {seeds.start}", "first_seed"
            )
        compute_parts(parts, "images", drawn, length, draw, on_images)
        found = read_parts(parts, "images", drawn, length)
    chosen = found["passes"].nonzero()[:num, 0]
    return (seeds.start + chosen).tolist(), found["images"][chosen]


def _about(
    pipeline: Path, source: _Source, seeds: range, steps: int, file_format: str, device: torch.device
) -> dict[str, Any]:
    """What the images follow from; a set is only gone on with where all of it is the same."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "pipeline": str(pipeline.resolve()),
        "weights_sha256": {name: sha256(file) for name, file in source.files.items()},
        "first_seed": seeds.start,
        "num": len(seeds),
        "steps": steps,
        "sampler": SAMPLERS[sampler_of(source.scheduler)],
        "scheduler": described(source.scheduler),
        "device": device.type,
        "rows": rows_at_a_time(source.shape, device),
        "file_format": file_format,
        **source.about,
    }


def _labels(pipeline: Path, classes: int | None, only: int | None, seeds: Sequence[int]) -> list[int] | None:
    """The class of each seed's image, where the model is class-conditional."""
    if classes is not None:
        return labels_of(seeds, classes, only)
    if only is not None:
        raise UserError(f"{pipeline.resolve()} is not class-conditional: leave out class {only}")
    return None


def sample_run(
    source: Path,
    out: Path,
    given: Mapping[str, object] | None = None,
    *,
    file_format: Literal["npz", "png"] = "npz",
    device: str = "auto",
    on_images: Callable[[float], object] | None = None,
    guard: Guard | None = None,
    amg: TrainingImages | None = None,
    label: int | None = None,
    prompts: Sequence[str] = (),
) -> dict[str, object]:
    """Sample a run as its settings say: what `iet-agc sample` does.

    Args:
        source: a finished run, or a diffusers pipeline folder.
        out: the sample set's folder.
        given: settings of section `sample` to replace, such as {"num": 64}.
        file_format: see `draw_samples`.
        device: "auto", "cpu" or "cuda".
        on_images: see `draw_samples`; in place of the progress bar.
        guard, amg: see `draw_samples`.
        label: class of all images, of a class-conditional model.
        prompts: of a text-to-image pipeline; those of a run are, unless given, its training captions: the first of
            every image, then the second of every image that has one, and so on.

    Returns:
        A summary, JSON values only.

    Raises:
        UserError: an unfinished run, weights of a run that are not as they were exported, impossible settings, or see
            `draw_samples`.
    """
    began = time.perf_counter()
    run = is_run(source)
    settings = read_settings(source) if run else Settings()
    asked = override(settings, {f"sample.{name}": value for name, value in (given or {}).items()}).sample
    pipeline = weights_of(source, asked.weights) if run else source
    if amg is None and "amg_strength" in (given or {}):
        raise UserError("amg_strength has no effect without AMG: give the training images to keep away from", "amg")
    check_pipeline(pipeline)
    texts = is_text_pipeline(pipeline)
    if not texts:
        _check_images_alone(pipeline, asked, given or {})
    if run and texts and not prompts:
        prompts = _captions_of(source, first=settings.text.captions == "first")
    if texts and label is not None:
        raise UserError(f"{pipeline} is not class-conditional: leave out class {label}")
    conditioning: Conditioning = None if label is None else ClassLabels(label)
    if prompts:
        conditioning = Prompts(prompts, cuts=settings.text.too_long == "cut")
    where = distributed.choose_device(device)
    with (
        distributed.processes(where),
        progress_bar("sample", asked.num, unit="image", shown=on_images is None and distributed.rank() == 0) as bar,
    ):
        draw_samples(
            pipeline,
            out,
            asked,
            conditioning,
            file_format=file_format,
            device=where,
            on_images=on_images or bar.update,
            guard=guard,
            amg=amg,
        )
    summary: dict[str, object] = {
        "samples": str(out),
        "num": asked.num,
        "first_seed": asked.first_seed,
        "steps": asked.steps,
    }
    summary |= {} if label is None else {"class": label}
    summary |= {"prompts": len(prompts), **asked.model_dump(include={*_TOLD})} if texts else {}
    summary |= {"amg": {"strength": asked.amg_strength, "cut": amg.cut}} if amg else {}
    if guard:
        turned_down = len(_read_about(out / "samples.json").get("turned_down", []))
        summary["guard"] = {"cut": guard.cut, "turned_down": turned_down, "drawn": asked.num + turned_down}
    return summary | {"seconds": round(time.perf_counter() - began, 1)}


def _check_images_alone(pipeline: Path, asked: SampleSettings, given: Mapping[str, object]) -> None:
    """Refuse settings that only prompts have."""
    fields = SampleSettings.model_fields
    odd = [name for name in _TOLD if name in given or getattr(asked, name) != fields[name].default]
    if odd:
        name = odd[0].replace("_", " ")
        raise UserError(f"{pipeline} is no text-to-image pipeline: leave out the {name}")


def _captions_of(run: Path, first: bool) -> list[str]:
    """The training captions of a run: the first of each image, in their order, then the second ones, and so on.

    Few prompts are so of many images. Where training used first captions only, there are no others.
    """
    file = run / "captions.json"
    check_files(run, [file])
    content = read_json(file, "give prompts")
    each = content if isinstance(content, list) and all(isinstance(some, list) for some in content) else []
    captions: list[Any] = in_turn(each, first)
    if not captions or not all(isinstance(text, str) for text in captions):
        raise UserError(f"{file} holds no captions: give prompts", "prompts")
    return captions


def read_prompts(file: Path) -> list[str]:
    """The prompts in a text file, one per line.

    Raises:
        UserError: it cannot be read, is not UTF-8, or a line is empty.
    """
    lines = read_text(file).splitlines()
    if not lines:
        raise UserError(f"{file} holds no prompts: write one per line")
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise UserError(f"{file} has no prompt in line {empty[0]}: write one in every line")
    return lines


def load_samples(
    folder: Path,
    shape: tuple[int, int, int] | None = None,
    on_images: Callable[[int], object] = lambda count: None,
    resize: Resize = "bicubic",
    mending: Mending | None = Mending(),  # noqa: B008 (frozen)
) -> tuple[ImageSet, list[int] | None]:
    """The images of a sample set, with their classes if it has any, and their seeds; of other images, None.

    Args:
        folder: of the sample set, or what else `load_images` reads.
        shape, on_images, resize: see `load_images`.
        mending: see `load_images`; a sample set of ours needs none.

    Raises:
        UserError: an unfinished set, or what `load_images` refuses.
    """
    _check_finished(folder)
    if not (folder / "samples.json").is_file():
        return load_images(folder, shape, on_images, resize=resize, mending=mending), None
    about = _read_about(folder / "samples.json", check_images=True)
    place = folder / ("samples.npz" if about["file_format"] == "npz" else "images")
    images = load_images(place, shape, on_images, resize=resize, mending=None)
    if len(images) != about["num"]:
        raise UserError(f"{folder} holds {len(images)} images, its samples.json says {about['num']}: sample again")
    turned_down = {*about.get("turned_down", [])}
    if (labels := about.get("labels")) is not None:
        images = replace(images, labels=torch.tensor(labels))
    if (prompts := about.get("prompts")) is not None:
        images = replace(images, captions=tuple((prompt,) for prompt in prompts))
    seeds = (seed for seed in itertools.count(about["first_seed"]) if seed not in turned_down)
    return images, list(itertools.islice(seeds, about["num"]))


def read_origin(folder: Path) -> dict[str, str] | None:
    """The files that a sample set was drawn from, name -> SHA-256; None of images that are no sample set.

    Raises:
        UserError: an unfinished set, or samples.json is damaged.
    """
    _check_finished(folder)
    if not (folder / "samples.json").is_file():
        return None
    origin = _read_about(folder / "samples.json").get("weights_sha256")
    if not isinstance(origin, dict) or not origin or not all(isinstance(digest, str) for digest in origin.values()):
        raise UserError(f"{folder / 'samples.json'} does not say which weights drew the images: sample again")
    return origin


def _check_finished(folder: Path) -> None:
    if _folder(folder).is_claimed and not _folder(folder).is_whole:
        raise UserError(f"{folder} is an unfinished sample set: run the same 'iet-agc sample' again to finish it")


def _read_about(file: Path, check_images: bool = False) -> dict[str, Any]:
    """The content of samples.json, and whether its images are as they were drawn if that is asked for."""
    about = read_object(file, "sample again")
    kind = (about.get("format"), about.get("version"))
    if kind[0] is None:
        raise UserError(f"{file} is damaged, it does not say of what format it is: sample again")
    odd = _odd(about) if kind == (_FORMAT, _VERSION) else None
    if kind != (_FORMAT, _VERSION):
        raise UserError(f"{file} is {kind[0]!r} version {kind[1]}, not {_FORMAT!r} version {_VERSION}: sample again")
    if odd:
        raise UserError(f"{file} is damaged, {odd} is {str(about.get(odd))[:60]!r}: sample again")
    return unsealed(file, about, "sample again", None if check_images else ())


def _odd(about: Mapping[str, object]) -> str | None:
    """The first note of a sample set that cannot be, if any."""

    def listed(name: str, kind: type, count: int | None = None) -> bool:
        values = about.get(name)
        if values is None:
            return True
        return isinstance(values, list) and count in (None, len(values)) and all(type(each) is kind for each in values)

    num, first = about.get("num"), about.get("first_seed")
    total = num if isinstance(num, int) else None
    fine = {
        "num": type(num) is int and num > 0,
        "first_seed": type(first) is int and first >= 0,
        "file_format": about.get("file_format") in ("npz", "png"),
        "labels": listed("labels", int, total),
        "prompts": listed("prompts", str, total),
        "turned_down": listed("turned_down", int),
    }
    return next((name for name, good in fine.items() if not good), None)


def _assemble(folder: ResultFolder, about: dict[str, Any], seeds: Sequence[int], images: Tensor) -> None:
    out, labels = folder.place, _labels(Path(about["pipeline"]), about["classes"], about["class"], seeds)
    known = {} if labels is None else {"labels": labels}
    if about["file_format"] == "npz":
        arrays: dict[str, Any] = {"images": images.numpy(), "seeds": np.array(seeds)}
        arrays |= {name: np.array(values) for name, values in known.items()}
        with replacing(out / "samples.npz") as unfinished, unfinished.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
        files = ["samples.npz"]
    else:
        (out / "images").mkdir(exist_ok=True)
        files = [f"images/{seed:010d}.png" for seed in seeds]
        for name, image in zip(files, images, strict=True):
            save_image(image, out / name)
    in_turn = labels and about["class"] is None and about["classes"] <= _MOST_COLUMNS
    save_image(image_grid(images, columns=about["classes"] if in_turn else None), out / "grid.png")
    turned_down = sorted({*range(about["first_seed"], seeds[-1] + 1)} - {*seeds})
    folder.finish(about | {"turned_down": turned_down} | known, [*files, "grid.png"])
