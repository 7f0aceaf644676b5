"""Captioned images as training examples: latents and captions, encoded once where they do not change."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from iet_agc.config.settings import TextSettings
from iet_agc.diffusion.process import Scheduler, per_sample_loss
from iet_agc.runtime.progress import say
from iet_agc.runtime.seeds import generator
from iet_agc.text_to_image.caption_augmentation import Changes, change
from iet_agc.text_to_image.conditions import Conditions
from iet_agc.text_to_image.family import TextPipeline
from iet_agc.training.batches import Batch

__all__ = ["Captioned"]


class Captioned:
    """Images with captions, as `batches.Examples`: latents and embeddings are computed when first needed, and kept.

    Args:
        pipeline: its frozen parts encode.
        images: uint8 (n, C, H, W).
        captions: one or more texts about each; a step takes one of them at random.
        flips: mirror those that the batch says.
        text: what every step does about the captions. The noise on embedded captions and the changes of captions are
            mitigations (Somepalli et al., 2023, arXiv 2305.20086), and changed ones have to be embedded in each step;
            so have all where the encoder is trained, and the model is a `UNetAndEncoder`. In place of a caption that is
            dropped stands the empty text, whatever changes would make of it (Ho and Salimans, 2022, algorithm 1).
    """

    def __init__(
        self,
        pipeline: TextPipeline,
        images: Tensor,
        captions: Sequence[Sequence[str]],
        text: TextSettings,
        *,
        flips: bool = False,
    ) -> None:
        self.pipeline, self.images, self.text, self.flips = pipeline, images, text, flips
        self.changes = Changes(**text.changes())
        self.vocabulary = pipeline.vocabulary(self.changes)
        texts = [*sorted({text for some in captions for text in some}), ""]
        place = {text: number for number, text in enumerate(texts)}
        self.tokens = pipeline.tokens(texts)  # the last is none
        self.counts = torch.tensor([len(some) for some in captions])
        rows = [torch.tensor([place[text] for text in some]) for some in captions]
        self.choices = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        self.moments: Tensor | None = None
        self.embeddings: Conditions | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, h, w) of the latents."""
        factor = self.pipeline.factor
        height, width = self.images.shape[2:]
        return self.pipeline.latent_shape[0], height // factor, width // factor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Captioned":
        """Itself, moved; what is encoded is encoded there."""
        if self.moments is None:
            self._encode(device)
        assert self.moments is not None
        self.moments = self.moments.to(device)
        self.embeddings = None if self.embeddings is None else self.embeddings.to(device)
        self.tokens, self.choices, self.counts = (each.to(device) for each in (self.tokens, self.choices, self.counts))
        if self.vocabulary is not None:
            self.vocabulary = self.vocabulary.to(device)
            if not self.text.train_encoder:  # captions change, so that they are encoded in each step
                self.pipeline.encoders_to(device)
        return self

    def _encode(self, device: torch.device) -> None:
        """Every orientation of every image, and every text that stays as it is, once."""
        keeps = not self.text.train_encoder and self.vocabulary is None
        captions = f" and {len(self.tokens) - 1} captions of them" if keeps else ""
        say(f"encoding {len(self.images)} images{captions}")
        self.pipeline.vae.to(device)  # pyright: ignore[reportArgumentType]
        orientations = [self.images, self.images.flip(-1)] if self.flips else [self.images]
        self.moments = torch.stack([self.pipeline.moments(images) for images in orientations])
        self.pipeline.vae.to("cpu")  # pyright: ignore[reportArgumentType]
        if keeps:
            self.pipeline.encoders_to(device)
            embedded = self.pipeline.embed(self.tokens)
            self.embeddings = Conditions.cat([embedded[:-1], self.pipeline.unconditional(embedded[-1:])])
            self.pipeline.encoders_to("cpu")

    def losses(self, model: Any, scheduler: Scheduler, batch: Batch, rows: slice) -> Tensor:
        """See `diffusion.per_sample_loss`; of latents drawn from the VAE's distribution, and a caption of each."""
        if self.moments is None:
            self.to(batch.noise.device)
        assert self.moments is not None
        posterior, chosen, dropped, rng = self._draw(batch)
        positions = batch.positions[rows]
        mirrored = batch.flips[rows].long() if self.flips else torch.zeros_like(positions)
        mean, deviation = self.moments[mirrored, positions].unbind(1)
        latents = self.pipeline.scaled(mean + deviation * posterior[rows])
        conditions = self._embedded(model, chosen, dropped, rng, rows)
        if self.text.embedding_noise > 0:
            shape, device = (len(chosen), *conditions.embeds.shape[1:]), conditions.embeds.device
            noise = self.text.embedding_noise * torch.randn(shape, generator=rng, device=device)[rows]
            conditions = replace(conditions, embeds=conditions.embeds + noise)
        denoiser = self.pipeline.predictor(model, conditions)
        return per_sample_loss(denoiser, scheduler, latents, batch.timesteps[rows], batch.noise[rows])

    def _embedded(self, model: Any, chosen: Tensor, dropped: Tensor, rng: torch.Generator, rows: slice) -> Conditions:
        """The captions of these rows, embedded."""
        if self.embeddings is not None:
            return self.embeddings[torch.where(dropped, len(self.tokens) - 1, chosen)[rows]]
        tokens = self.tokens[chosen]
        if self.vocabulary is not None:
            tokens = change(tokens, self.changes, self.vocabulary, rng)
        tokens = torch.where(dropped[:, None], self.tokens[-1], tokens)
        if self.text.train_encoder:
            return Conditions(model.text_encoder(tokens[rows])[0])
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):  # as captions that do not change
            return self.pipeline.encode(tokens[rows])

    def _draw(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, torch.Generator]:
        """Noise of the latents, as `batch.noise`; the text of each, int64 (B,); which are dropped; and what drew."""
        device = batch.noise.device
        rng = generator("text", *batch.identity, device=device)
        noise = torch.randn(batch.noise.shape, generator=rng, device=device)
        lots, others = torch.rand(2, len(noise), generator=rng, device=device, dtype=torch.float64)
        chosen = self.choices[batch.positions, (lots * self.counts[batch.positions]).long()]
        return noise, chosen, others < self.text.drop_caption, rng
