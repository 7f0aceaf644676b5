"""What a run learns to draw: the model it starts from, each member's examples, previews, and what is left of it."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from iet_agc.config.settings import LoraSettings, Settings, TextSettings
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import Scheduler, is_flow, scheduler_for
from iet_agc.diffusion.samplers import labels_of, sample, sampler_of
from iet_agc.diffusion.unet import save_pipeline
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import digest, replace_text
from iet_agc.runtime.progress import say
from iet_agc.text_to_image.caption_augmentation import Changes
from iet_agc.training.batches import Examples
from iet_agc.training.initialization import Initial, check_digest, commit_of, digest_of, folders_of, initial_weights
from iet_agc.training.pixels import Pixels, with_target

if TYPE_CHECKING:
    from iet_agc.text_to_image.family import TextPipeline

__all__ = ["ImageTask", "Task", "TextTask", "make_task"]


class Task(Protocol):
    """What the round loop asks of whatever it trains.

    Attributes:
        initial: what every member starts from.
        scheduler: the noise schedule, and what the model predicts.
        identity: what a bundle depends on beside settings, pixels and labels, by name.
    """

    initial: Initial
    scheduler: Scheduler
    identity: dict[str, str]

    def examples(self, shard: Tensor) -> Examples:
        """Those of the training images at these indices, int64 (n,)."""
        ...

    def others(self, images: ImageSet) -> Examples | None:
        """Images that are not trained on, as examples; None where they lack the classes or captions that it takes."""
        ...

    def preview(self, model: Any, device: torch.device) -> tuple[Tensor, int | None]:
        """Images of a model on a device, uint8 (N, C, H, W), and in how many columns to show them, if that matters."""
        ...

    def draw(self, model: Any, device: torch.device, seeds: Sequence[int], steps: int) -> Tensor:
        """Images of a model on a device, as a sample set of the run would have them, uint8 (N, C, H, W), on the CPU.

        Raises:
            CheckFailed: they are not finite.
        """
        ...

    def export(self, raw: Any, ema: Any, out: Path, own: Mapping[str, Collection[str]]) -> dict[str, dict[str, str]]:
        """Leave the pipelines `out`/raw and `out`/ema, and what else stands in these folders.

        Args:
            raw, ema: the models.
            out: the run's folder.
            own: for "raw" and "ema", paths that an earlier export wrote, which are replaced.

        Returns:
            What was written: "raw" and "ema" -> path below -> SHA-256.
        """
        ...


def make_task(settings: Settings, images: ImageSet) -> Task:
    """The task of a run.

    Raises:
        UserError: a model that does not fit the images, their classes or what it is to start from.
    """
    return TextTask(settings, images) if settings.model.kind == "text-to-image" else ImageTask(settings, images)


class ImageTask:
    """Images alone, or conditioned on their classes, by a network over pixels; see `Task`."""

    def __init__(self, settings: Settings, images: ImageSet) -> None:
        self.settings, self.images = settings, images
        defaults = {"text": TextSettings(), "lora": LoraSettings()}
        for section, default in defaults.items():
            if getattr(settings, section) != default:
                raise UserError(f"settings of section {section} have no effect on images alone: leave them out")
        if settings.data.planted_captions:
            raise UserError("data.planted_captions has no effect on images alone: leave it out")
        if settings.data.caption:
            raise UserError("data.caption has no effect on images alone: leave it out, or set model.kind text-to-image")
        self.classes = _classes(settings, images)
        self.initial = initial_weights(settings, images.shape)
        self.scheduler = scheduler_for(settings.model.objective)
        self.identity: dict[str, str] = {}

    def examples(self, shard: Tensor) -> Pixels:
        """See `Task`."""
        labels = None if self.classes is None else self.classes[shard]
        examples = Pixels(self.images.images[shard], labels, self.settings.data.flips)
        return with_target(examples, shard, self.settings.train)

    def others(self, images: ImageSet) -> Pixels | None:
        """See `Task`."""
        if self.classes is not None and images.labels is None:
            return None
        labels = None if self.classes is None else images.labels
        return Pixels(images.images, labels, self.settings.data.flips)

    def draw(self, model: Any, device: torch.device, seeds: Sequence[int], steps: int) -> Tensor:
        """All classes in turn; see `Task`."""
        classes = self.settings.model.classes
        labels = None if classes is None else labels_of(seeds, classes)
        return sample(model, self.scheduler, seeds, self.images.shape, steps, device=device, labels=labels)

    def preview(self, model: Any, device: torch.device) -> tuple[Tensor, int | None]:
        """A class in each row; see `Task`."""
        count, steps = self.settings.run.preview_images, self.settings.sample.steps
        labels, columns = _by_class(count, self.settings.model.classes)
        seeds = range(len(labels or range(count)))
        images = sample(model, self.scheduler, seeds, self.images.shape, steps, device=device, labels=labels)
        return images, columns

    def export(self, raw: Any, ema: Any, out: Path, own: Mapping[str, Collection[str]]) -> dict[str, dict[str, str]]:
        """See `Task`."""
        models = {"raw": raw, "ema": ema}
        return {name: save_pipeline(models[name], self.scheduler, out / name, own[name]) for name in models}


class TextTask:
    """Images conditioned on their captions, by the denoiser of a text-to-image pipeline over latents; see `Task`.

    What is trained is the denoiser, or a `stable_diffusion.UNetAndEncoder`, or the factors of LoRA in either.

    Attributes:
        pipeline: the frozen parts, once for all members, and what they start from.
        captions: one or more of each training image.
    """

    def __init__(self, settings: Settings, images: ImageSet) -> None:
        from iet_agc.text_to_image.pipeline import check_size, load_text_pipeline

        if images.captions is None:
            raise UserError(
                f"{images.name} has no captions, and model.kind is text-to-image: set data.captions, or data.caption, "
                "one text for all"
            )
        said = [bool(texts) and all(map(str.strip, texts)) for texts in images.captions]
        if not all(said):
            raise UserError(f"image {said.index(False)} of {images.name} has no caption, or an empty one: give it one")
        if settings.lora.alpha is not None and settings.lora.rank == 0:
            raise UserError(f"lora.alpha {settings.lora.alpha:g} has no effect without a rank: set lora.rank")
        if settings.train.target != "noise":
            raise UserError(f"train.target {settings.train.target} is of pixels, not of latents: leave it out")
        name = settings.init.model or ""
        folders = folders_of(name, "text-to-image", settings.init.revision)
        pipelines = [load_text_pipeline(folder) for folder in folders]
        self.settings, self.images, self.captions, self.pipeline = settings, images, images.captions, pipelines[0]
        _check_possible(settings, self.pipeline)
        check_size(self.pipeline, images.shape, images.name)
        check_digest(settings, weights := digest_of(_described(pipelines)))
        if not settings.text.train_encoder and len(_encoders(pipelines)) > 1:
            raise UserError(
                f"{settings.init.model} trained its text encoder, which differs from its average: set "
                f"text.train_encoder true, or start from {folders[0]} or {folders[1]}"
            )
        models = [self._learning(pipeline) for pipeline in pipelines]
        self.initial = Initial(models[0], models[-1], weights, commit_of(name, folders[0]))
        self.scheduler: Scheduler = self.pipeline.scheduler
        self.changes = Changes(**settings.text.changes())
        self.pipeline.vocabulary(self.changes)  # refuses a tokenizer without what they take
        self.identity = {"captions": digest(self._tokens())}

    def _tokens(self) -> list[list[list[int]]]:
        """The tokens of all captions, cut off where the settings say so."""
        from iet_agc.text_to_image.family import TextTooLongError

        if self.settings.text.too_long == "cut":
            self.pipeline = replace(self.pipeline, cuts=True)
            texts = sorted({text for some in self.captions for text in some})
            say(f"{self.pipeline.num_too_long(texts)} of {len(texts)} captions are too long and cut off")
        try:
            return [self.pipeline.tokens(some).tolist() for some in self.captions]
        except TextTooLongError as error:
            raise UserError(f"{error}, or set text.too_long to cut") from None

    def _learning(self, pipeline: "TextPipeline") -> nn.Module:
        """What is trained of a pipeline."""
        from iet_agc.text_to_image.lora import add_lora
        from iet_agc.text_to_image.stable_diffusion import UNetAndEncoder

        pipeline.made_for(self.images.shape)
        lora, both = self.settings.lora, self.settings.text.train_encoder
        model = UNetAndEncoder(pipeline.denoiser, pipeline.text_encoder) if both else pipeline.denoiser
        model.requires_grad_(True)
        for name in pipeline.FROZEN:
            model.get_parameter(name).requires_grad_(False)
        if lora.rank:
            add_lora(model, pipeline.PROJECTIONS, lora.rank, lora.alpha or lora.rank, self.settings.train.seed)
        return model

    def examples(self, shard: Tensor) -> Examples:
        """See `Task`."""
        from iet_agc.training.captioned import Captioned

        text = self.settings.text
        captions = [self.captions[place][: 1 if text.captions == "first" else None] for place in shard.tolist()]
        images, flips = self.images.images[shard], self.settings.data.flips
        return Captioned(self.pipeline, images, captions, text, flips=flips)

    def others(self, images: ImageSet) -> Examples | None:
        """See `Task`."""
        from iet_agc.training.captioned import Captioned

        if images.captions is None or not all(images.captions):
            return None
        return Captioned(
            self.pipeline, images.images, images.captions, self.settings.text, flips=self.settings.data.flips
        )

    def draw(self, model: Any, device: torch.device, seeds: Sequence[int], steps: int) -> Tensor:
        """By the first captions of the training images, in turn; see `Task`."""
        from iet_agc.text_to_image.pipeline import draw

        prompts = [self.captions[seed % len(self.captions)][0] for seed in seeds]
        pipeline = self.pipeline.with_trained(model).to(device)
        guidance, sampler = self.settings.sample.guidance, sampler_of(pipeline.scheduler)
        images = draw(pipeline, seeds, prompts, steps, guidance, sampler=sampler)
        pipeline.to(torch.device("cpu"))
        return images

    def preview(self, model: Any, device: torch.device) -> tuple[Tensor, int | None]:
        """The first captions; see `Task`."""
        count = min(self.settings.run.preview_images, len(self.captions))
        return self.draw(model, device, range(count), self.settings.sample.steps), None

    def export(self, raw: Any, ema: Any, out: Path, own: Mapping[str, Collection[str]]) -> dict[str, dict[str, str]]:
        """The captions as well, since they are the prompts of a run; see `Task`."""
        from iet_agc.text_to_image.pipeline import save_text_pipelines

        written = save_text_pipelines(self.pipeline, {"raw": raw, "ema": ema}, out, own)
        replace_text(out / "captions.json", json.dumps(self.captions, ensure_ascii=False, indent=0) + "\n")
        return written


def _check_possible(settings: Settings, pipeline: "TextPipeline") -> None:
    """Refuse settings that not every family of pipelines has."""
    from iet_agc.text_to_image.families import check_single_encoder

    text = settings.text
    if text.too_long == "cut" and not pipeline.TOKENIZERS:
        raise UserError(f"text.too_long cut has no effect on {pipeline.NAME}, whose texts are classes: leave it out")
    if text.train_encoder:
        check_single_encoder(pipeline, "text.train_encoder")
    if text.embedding_noise > 0:
        check_single_encoder(pipeline, "text.embedding_noise")
    if Changes(**text.changes()).any:
        check_single_encoder(pipeline, "changing captions")
    if settings.train.min_snr and is_flow(pipeline.scheduler):
        raise UserError(f"train.min_snr is for models that predict noise or v, not for {pipeline.NAME}: leave it out")
    pipeline.check_guidance(settings.sample.guidance)


def _described(pipelines: Sequence["TextPipeline"]) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """What training from pipelines follows from, for `digest_of`."""
    first = pipelines[0]
    texts = [*first.encoders.values()]
    frozen = [
        (dict(first.vae.config), first.vae.state_dict()),
        *((_described_encoder(texts[0]), weights) for weights in _encoders(pipelines)),
        *((_described_encoder(other), other.state_dict()) for other in texts[1:]),
        first.about(),
    ]
    return [*((dict(pipeline.denoiser.config), pipeline.denoiser.state_dict()) for pipeline in pipelines), *frozen]


def _described_encoder(encoder: Any) -> dict[str, Any]:
    """What a text encoder makes of its weights: as CLIP's describe it, or T5's."""
    names = ("hidden_act", "num_attention_heads", "feed_forward_proj", "num_heads", "relative_attention_max_distance")
    return {name: getattr(encoder.config, name) for name in names if name in encoder.config.to_dict()}


def _encoders(pipelines: Sequence["TextPipeline"]) -> list[dict[str, Tensor]]:
    """Weights of the text encoders that differ: one, or those of a run that trained it, raw and ema; or none."""
    found: list[dict[str, Tensor]] = []
    for pipeline in (each for each in pipelines if each.encoders):
        state = pipeline.text_encoder.state_dict()
        weights = {name.removeprefix("text_model."): value for name, value in state.items()}  # as of any transformers
        if not found or any(not torch.equal(found[0][name], value) for name, value in weights.items()):
            found.append(weights)
    return found


def _classes(settings: Settings, images: ImageSet) -> Tensor | None:
    """The class of each image, int64 (N,), if the model is class-conditional."""
    classes, labels = settings.model.classes, images.labels
    if classes is None:
        return None
    if labels is None:
        raise UserError(f"{images.name} has no class labels, and model.classes is {classes}: set it to none")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise UserError(
            f"{images.name} has classes {least} to {most}, model.classes {classes} allows 0 to {classes - 1}: "
            f"set it to {most + 1}"
        )
    if empty := (labels.bincount(minlength=classes) == 0).nonzero().flatten().tolist():
        raise UserError(f"{images.name} has no image of class {empty[0]}, and model.classes is {classes}")
    return labels


def _by_class(count: int, classes: int | None) -> tuple[list[int] | None, int | None]:
    """Classes of at most `count` images, and columns of their grid, so that each row is of one class."""
    if classes is None:
        return None, None
    columns = max(1, count // classes)
    labels = [image // columns for image in range(min(count, columns * classes))]
    return labels, columns if columns > 1 else None
