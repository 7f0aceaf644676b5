"""What a run learns to draw: the model it starts from, each member's examples, previews, and what is left of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from iet_agc.batches import Examples
from iet_agc.config import Settings, TextSettings
from iet_agc.data import ImageSet
from iet_agc.diffusion import make_scheduler
from iet_agc.files import replace_text
from iet_agc.initial import Initial, check_digest, digest_of, folders_of, initial_weights
from iet_agc.member import Pixels
from iet_agc.models import save_pipeline
from iet_agc.sampling import sample

__all__ = ["ImageTask", "Task", "TextTask", "make_task"]


class Task(Protocol):
    """What the round loop asks of whatever it trains.

    Attributes:
        initial: what every member starts from.
        scheduler: the noise schedule, and what the model predicts.
        identity: what a bundle depends on beside settings, pixels and labels, by name.
    """

    initial: Initial
    scheduler: DDIMScheduler
    identity: dict[str, str]

    def examples(self, shard: Tensor) -> Examples:
        """Those of the training images at these indices, int64 (n,)."""
        ...

    def preview(self, model: Any, device: torch.device) -> tuple[Tensor, int | None]:
        """Images of a model on a device, uint8 (N, C, H, W), and in how many columns to show them, if that matters."""
        ...

    def export(self, raw: Any, ema: Any, out: Path) -> None:
        """Leave the pipelines `out`/raw and `out`/ema."""
        ...


def make_task(settings: Settings, images: ImageSet) -> Task:
    """The task of a run.

    Raises:
        ValueError: a model that does not fit the images, their classes or what it is to start from.
    """
    return TextTask(settings, images) if settings.model.kind == "text-to-image" else ImageTask(settings, images)


class ImageTask:
    """Images alone, or told their classes, by a U-Net over pixels; see `Task`."""

    def __init__(self, settings: Settings, images: ImageSet) -> None:
        self.settings, self.images = settings, images
        if settings.text != TextSettings():  # pyright: ignore[reportCallIssue]
            raise ValueError("settings of section text have no effect on images alone: leave them out")
        self.classes = _classes(settings, images)
        self.initial = initial_weights(settings, images.shape)
        self.scheduler = make_scheduler()
        self.identity: dict[str, str] = {}

    def examples(self, shard: Tensor) -> Pixels:
        """See `Task`."""
        told = None if self.classes is None else self.classes[shard]
        return Pixels(self.images.images[shard], told, self.settings.data.flips)

    def preview(self, model: Any, device: torch.device) -> tuple[Tensor, int | None]:
        """A class in each row; see `Task`."""
        count, steps = self.settings.run.preview_images, self.settings.sample.steps
        labels, columns = _by_class(count, self.settings.model.classes)
        seeds = range(len(labels or range(count)))
        images = sample(model, self.scheduler, seeds, self.images.shape, steps, device=device, labels=labels)
        return images, columns

    def export(self, raw: Any, ema: Any, out: Path) -> None:
        """See `Task`."""
        for name, model in (("raw", raw), ("ema", ema)):
            save_pipeline(model, self.scheduler, out / name)


class TextTask:
    """Images told their captions, by the U-Net of a Stable Diffusion pipeline over latents; see `Task`.

    Attributes:
        pipeline: the frozen parts, once for all members, and the U-Net that they start from.
        captions: one or more of each training image.
    """

    def __init__(self, settings: Settings, images: ImageSet) -> None:
        from iet_agc.text import check_size, load_text_pipeline

        if images.captions is None:
            raise ValueError(f"{images.name} has no captions, and model.kind is text-to-image: use data.name laion-10k")
        said = [bool(texts) and all(map(str.strip, texts)) for texts in images.captions]
        if not all(said):
            raise ValueError(f"image {said.index(False)} of {images.name} has no caption, or an empty one: give it one")
        folders = folders_of(settings.init.model or "", "UNet2DConditionModel")
        pipelines = [load_text_pipeline(folder) for folder in folders]
        self.settings, self.images, self.captions, self.pipeline = settings, images, images.captions, pipelines[0]
        check_size(self.pipeline, images.shape, images.name)
        check_digest(settings, digest := digest_of(_described(pipelines)))
        for pipeline in pipelines:
            pipeline.made_for(images.shape)
        self.initial = Initial(pipelines[0].unet, pipelines[-1].unet, digest)
        self.scheduler = self.pipeline.scheduler
        tokens = [self.pipeline.tokens(some).tolist() for some in self.captions]
        self.identity = {"captions": hashlib.sha256(json.dumps(tokens).encode()).hexdigest()}

    def examples(self, shard: Tensor) -> Examples:
        """See `Task`."""
        from iet_agc.text import Captioned

        told = self.settings.text
        captions = [self.captions[place][: 1 if told.captions == "first" else None] for place in shard.tolist()]
        images, flips = self.images.images[shard], self.settings.data.flips
        return Captioned(self.pipeline, images, captions, flips, told.embedding_noise)

    def preview(self, model: Any, device: torch.device) -> tuple[Tensor, int | None]:
        """The first captions; see `Task`."""
        from iet_agc.text import draw

        asked = self.settings.sample
        prompts = [texts[0] for texts in self.captions[: self.settings.run.preview_images]]
        pipeline = replace(self.pipeline, unet=model).to(device)
        images = draw(pipeline, range(len(prompts)), prompts, asked.steps, asked.guidance)
        pipeline.to(torch.device("cpu"))
        return images, None

    def export(self, raw: Any, ema: Any, out: Path) -> None:
        """The captions as well, since they are the prompts of a run; see `Task`."""
        from iet_agc.text import save_text_pipelines

        save_text_pipelines(self.pipeline, {"raw": raw, "ema": ema}, out)
        replace_text(out / "captions.json", json.dumps(self.captions, ensure_ascii=False, indent=0) + "\n")


def _described(pipelines: Sequence[Any]) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    """What training from pipelines follows from, for `digest_of`."""
    first = pipelines[0]
    text = {name: getattr(first.text_encoder.config, name) for name in ("hidden_act", "num_attention_heads")}
    named = {name.removeprefix("text_model."): value for name, value in first.text_encoder.state_dict().items()}
    rest = {"predicts": first.scheduler.config.prediction_type, "unet_dropout": first.unet.config.dropout}
    frozen = [
        (dict(first.vae.config), first.vae.state_dict()),
        (text, named),  # whose names depend on the version of transformers
        (rest, {"abar": first.scheduler.alphas_cumprod}),
    ]
    return [*((dict(pipeline.unet.config), pipeline.unet.state_dict()) for pipeline in pipelines), *frozen]


def _classes(settings: Settings, images: ImageSet) -> Tensor | None:
    """The class of each image, int64 (N,), if the model is told classes."""
    classes, labels = settings.model.classes, images.labels
    if classes is None:
        return None
    if labels is None:
        raise ValueError(f"{images.name} has no class labels, and model.classes is {classes}: set it to none")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise ValueError(
            f"{images.name} has classes {least} to {most}, model.classes {classes} allows 0 to {classes - 1}: "
            f"set it to {most + 1}"
        )
    if empty := (labels.bincount(minlength=classes) == 0).nonzero().flatten().tolist():
        raise ValueError(f"{images.name} has no image of class {empty[0]}, and model.classes is {classes}")
    return labels


def _by_class(count: int, classes: int | None) -> tuple[list[int] | None, int | None]:
    """Classes of at most `count` images, and columns of their grid, so that each row is of one class."""
    if classes is None:
        return None, None
    columns = max(1, count // classes)
    labels = [image // columns for image in range(min(count, columns * classes))]
    return labels, columns if columns > 1 else None
