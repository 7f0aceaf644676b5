"""What prompts allow to measure: are samples like the images that their prompts are about, and like the prompts?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iet_agc.auditing.schema import Coverage
from iet_agc.auditing.work import Arrays, Work
from iet_agc.data.image_set import ImageSet
from iet_agc.metrics.alignment import Captions, alignment, group, ranks
from iet_agc.metrics.clip import Clip, clip_score, other_prompts
from iet_agc.metrics.records import AboutPrompts, Alignment, Retrieval
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown

__all__ = ["Told", "aligned", "check_prompts", "coverage", "read_told", "score_prompts"]


@dataclass(frozen=True)
class Told:
    """What is said of images.

    Attributes:
        prompts: of each sample; empty where there are none.
        train: captions of the unique training images, those of all the places of an image; None where there are none.
        held_out: captions of the held-out images, or None.
    """

    prompts: tuple[str, ...] = ()
    train: Captions | None = None
    held_out: Captions | None = None


def read_told(samples: ImageSet, train: ImageSet, place: Tensor, held_out: ImageSet | None) -> Told:
    """Prompts and captions of image sets.

    Args:
        samples, train, held_out: the sets.
        place: which unique training image each training image is, int64 (M,).
    """
    if samples.captions is None:
        return Told()
    unique = None
    if train.captions is not None:
        said: list[set[str]] = [set() for _ in range(int(place.max()) + 1)]
        for own, captions in zip(place.tolist(), train.captions, strict=True):
            said[own].update(captions)
        unique = group([frozenset(some) for some in said])
    real = group([*map(frozenset, held_out.captions)]) if held_out and held_out.captions else None
    return Told(tuple(captions[0] for captions in samples.captions), unique, real)


def coverage(told: Told) -> Coverage | None:
    """How many training images the prompts are about.

    Args:
        told: what is said of the images.

    Returns:
        None where samples have no prompts or training images no captions.
    """
    if not told.prompts or told.train is None:
        return None
    prompts = set(told.prompts)
    groups = {group for prompt in prompts for group in told.train.of.get(prompt, ())}
    covered = sum(one in groups for one in told.train.group.tolist())
    return Coverage(num_prompts=len(prompts), num_train_images=covered, share=covered / len(told.train.group))


def check_prompts(samples: ImageSet) -> None:
    """Refuse samples without prompts.

    Raises:
        UserError: there are none.
    """
    if samples.captions is None:
        raise UserError(
            f"the CLIP score compares samples with their prompts, and {samples.name} has none: give a sample set that "
            "was drawn by prompts, or leave out the CLIP score",
            "clip",
        )


def aligned(
    name: str, told: Told, samples: Tensor, train: Tensor, held_out: Tensor | None, work: Work
) -> Alignment | None:
    """The alignment in a feature space; see `iet_agc.metrics.alignment`.

    Args:
        name: of the feature space.
        told: what is said of the images.
        samples, train, held_out: directions of their features, (N, D), (U, D) and (H, D).
        work: how ranks are found.

    Returns:
        None where no sample was told a caption of either set.
    """
    mine = _ranked(f"{name}-aligned-train", told.prompts, told.train, samples, train, work)
    real = None
    if held_out is not None:
        real = _ranked(f"{name}-aligned-held-out", told.prompts, told.held_out, samples, held_out, work)
    return Alignment(train=mine, held_out=real) if mine or real else None


def _ranked(
    name: str, prompts: Sequence[str], captions: Captions | None, samples: Tensor, references: Tensor, work: Work
) -> Retrieval | None:
    if captions is None:
        return None
    known = [row for row, prompt in enumerate(prompts) if prompt in captions.of]
    told, rows = [prompts[row] for row in known], samples[known]
    at_once = max(1, work.memory // (64 * len(references)))

    def rank(items: slice) -> Arrays:
        starts = range(items.start, items.stop, at_once)
        pieces = [slice(start, min(start + at_once, items.stop)) for start in starts]
        return {"ranks": torch.cat([ranks(rows[each], references, told[each], captions) for each in pieces])}

    found = work.compute(name, len(known), rank, lambda count: None)["ranks"] if known else torch.empty(0)
    return alignment(found, told, captions)


def score_prompts(clip: Clip, samples: ImageSet, prompts: Sequence[str], work: Work) -> AboutPrompts:
    """How samples fit their prompts; see `iet_agc.metrics.clip`.

    Args:
        clip: the network.
        samples, prompts: images, and the prompt of each.
        work: how embeddings are made.
    """
    texts = [*dict.fromkeys(prompts)]
    places = {text: place for place, text in enumerate(texts)}
    said = work.compute(
        "clip-texts", len(texts), lambda items: {"rows": clip.embed_texts(texts[items])}, lambda count: None
    )["rows"]
    seen = work.compute(
        "clip-images",
        len(samples),
        lambda items: {"rows": clip.embed_images(samples.images[items], work.on_done)},
        work.on_done,
    )["rows"]
    own, cut_off = torch.tensor([places[prompt] for prompt in prompts]), torch.tensor(clip.is_cut_off(texts))
    return AboutPrompts(
        model=shown(clip.name),
        sha256=clip.sha256,
        num_prompts=len(texts),
        num_cut_off=int(cut_off[own].sum()),
        score=clip_score(seen, said[own], prompts),
        other_prompts=other_prompts(seen, said, own),
    )
