"""CLIP score: how well images fit their texts, by a network that embeds both.

    score = 100 max(cos(v, t), 0)          v: embedding of an image, t: of its text

Hessel et al., EMNLP 2021 (arXiv 2104.08718), write w max(cos, 0) with w = 2.5 and put "A photo depicts " before each
text; text-to-image work has 100 in the place of w and the text as it is, and so do we: divide by 40 for their scale.
The network is Radford et al.'s (ICML 2021, arXiv 2103.00020), of any size; scores of two networks do not compare.
"""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iet_agc.metrics.intervals import Mean, mean
from iet_agc.metrics.neighbors import check_images
from iet_agc.metrics.records import ClipScore
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.extras import require
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.progress import without_bars
from iet_agc.runtime.seeds import kept_generators

__all__ = ["Clip", "clip_score", "load_clip", "other_prompts"]

#: A network always sees so many images or texts; see `fixed_rows`.
_ROWS = 16


@dataclass(frozen=True)
class Clip:
    """A network that embeds images and texts. Made by `load_clip`.

    Attributes:
        name: as given to `load_clip`.
        sha256: of its weights.
    """

    name: str
    sha256: str
    _model: Any
    _processor: Any

    @property
    def length(self) -> int:
        """Tokens that a text may have, marks included."""
        return self._model.config.text_config.max_position_embeddings

    def is_cut_off(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text has more tokens than the network takes; it sees the first ones only."""
        return [len(ids) > self.length for ids in self._processor.tokenizer([*texts], verbose=False).input_ids]

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """One row of length 1 per text, float32 (N, D), on the CPU."""
        told = self._processor.tokenizer(
            [*texts], padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        rows = torch.stack([told.input_ids, told.attention_mask], dim=1)
        return self._in_rows(lambda some: self._model.get_text_features(some[:, 0], some[:, 1]), rows)

    @torch.inference_mode()
    def embed_images(self, images: Tensor, on_images: Callable[[int], object] = lambda count: None) -> Tensor:
        """One row of length 1 per image, float32 (N, D), on the CPU.

        Args:
            images: uint8 (N, C, H, W), grey or RGB.
            on_images: called with a number of finished images, for progress.

        Raises:
            ValueError: not such images.
        """
        check_images("images", images)

        def embed(some: Tensor) -> Any:
            pixels = self._processor.image_processor([*some.expand(-1, 3, -1, -1)], return_tensors="pt").pixel_values
            return self._model.get_image_features(pixels.to(self._model.device))

        return self._in_rows(embed, images, on_images)

    def _in_rows(
        self, embed: Callable[[Tensor], Any], inputs: Tensor, on_rows: Callable[[int], object] = lambda count: None
    ) -> Tensor:
        results = []
        for places, count in fixed_rows(len(inputs), _ROWS):
            found = embed(inputs[places].to(self._model.device))
            rows = (found if isinstance(found, Tensor) else found.pooler_output)[:count]
            results.append(F.normalize(rows.double().cpu(), dim=1).float())
            on_rows(count)
        return torch.cat(results)


def load_clip(name: str, device: torch.device | str = "cpu") -> Clip:
    """Get a CLIP model ready. Weights are read from safetensors only.

    Args:
        name: a folder that transformers' CLIPModel and CLIPProcessor were saved into, or a hub id such as
            openai/clip-vit-base-patch32.
        device: where the network runs.

    Raises:
        ValueError: `transformers` is not installed, or there is no such model, or one without all of its parts.
    """
    require("transformers", "text", "the CLIP score")
    from transformers import CLIPModel, CLIPProcessor

    if not Path(name).is_dir() and (Path(name).exists() or name.startswith((".", "/")) or name.count("/") > 1):
        raise UserError(f"there is no folder {name}: give that of a CLIP model, or a hub id")
    try:
        with without_bars(), kept_generators():
            loaded: Any = CLIPModel.from_pretrained(name, use_safetensors=True, output_loading_info=True)
            processor = CLIPProcessor.from_pretrained(name)
    except Exception as error:
        raise UserError(
            f"{name} is no usable CLIP model, {in_words(error)}: give a folder with a model in safetensors and its "
            "processor"
        ) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{name} is no usable CLIP model (it lacks {missing[0]}): give a whole one")
    model = model.float().eval().requires_grad_(False).to(device)
    return Clip(name, _digest(model), model, processor)


def _digest(model: Any) -> str:
    """SHA-256 of the weights, by name."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def clip_score(images: Tensor, texts: Tensor, prompts: Sequence[Hashable] | None = None) -> ClipScore:
    """Mean CLIP score of images and their texts.

    Args:
        images, texts: embeddings of length 1, (N, D) each.
        prompts: the texts themselves, or their numbers; None where all are different.

    Returns:
        On a scale to 100, Student's t over images, by text where texts repeat (see `iet_agc.metrics.intervals.mean`).
    """
    scores = 100 * (images.double() * texts.double()).sum(1).clamp(min=0)
    return ClipScore(**dict(mean(scores.tolist(), prompts)))


def other_prompts(images: Tensor, texts: Tensor, own: Tensor) -> Mean | None:
    """What chance looks like: the mean score of each image with all texts but its own.

    Args:
        images: embeddings (N, D).
        texts: embeddings of the distinct texts, (P, D).
        own: which of them is each image's, int64 (N,).

    Returns:
        As `clip_score`; None where there is one text only.
    """
    if len(texts) < 2:
        return None
    means = []
    for part, its in zip(images.split(1024), own.split(1024), strict=True):
        scores = 100 * (part.double() @ texts.double().T).clamp(min=0)
        means += ((scores.sum(1) - scores.gather(1, its[:, None])[:, 0]) / (len(texts) - 1)).tolist()
    return mean(means, own.tolist())
