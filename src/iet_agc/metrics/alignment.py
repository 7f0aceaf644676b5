"""Alignment by retrieval: is a sample more like the image that its prompt is about than like other images?

No network that reads texts is needed where prompts are captions of known images. Of a sample and its prompt, an image
is right if the prompt is among its captions. The rank of the right image among all, by cosine similarity of features:

    rank = 1 + number of other images that are more similar (one that is as similar counts a half)
    percentile = (G - m - (rank - 1)) / (G - m)      share of other images that are less similar; 1 is best

Images of the same captions are one here, as similar as the most similar of them: of G such, m are right, and the best
of these counts. A sample at random beats m / (m + 1) of the others on average: a half, where one is right. It is
caption-to-image retrieval with a sample in the place of the text; recall at 1 and 10 and the mean reciprocal rank are
the customary numbers of retrieval (Manning, Raghavan, Schütze, Introduction to Information Retrieval, 2008, chapter 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from iet_agc.metrics.intervals import clustered_share, mean
from iet_agc.metrics.records import Chance, Retrieval

__all__ = ["Captions", "alignment", "group", "ranks"]

#: Similarities that are no farther apart are equal: products round differently by place.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Captions:
    """Images by their captions.

    Attributes:
        group: which group of images with the same captions each image belongs to, int64 (M,).
        of: the groups that have a caption, by caption.
    """

    group: Tensor
    of: dict[str, list[int]]

    @property
    def count(self) -> int:
        """How many groups there are."""
        return int(self.group.max()) + 1


def group(captions: Sequence[frozenset[str]]) -> Captions:
    """Put images of the same captions together.

    Args:
        captions: of each image.
    """
    numbers: dict[frozenset[str], int] = {}
    members = torch.tensor([numbers.setdefault(some, len(numbers)) for some in captions])
    of: dict[str, list[int]] = {}
    for some, number in numbers.items():
        for caption in some:
            of.setdefault(caption, []).append(number)
    return Captions(members, of)


def ranks(samples: Tensor, references: Tensor, prompts: Sequence[str], captions: Captions) -> Tensor:
    """The rank of the right image of each sample.

    Args:
        samples: directions of features, float (N, D).
        references: those of the images that have the captions, (M, D).
        prompts: of the samples; each is some image's caption.
        captions: of the images.

    Returns:
        float64 (N,), from 1; halves where images are equally similar.
    """
    similarity = samples.double() @ references.double().T
    grouped = torch.full((len(samples), captions.count), -torch.inf, dtype=torch.float64)
    grouped.scatter_reduce_(1, captions.group.expand(len(samples), -1), similarity, "amax")
    right = torch.zeros(grouped.shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        right[row, captions.of[prompt]] = True
    best = grouped.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    nearer, as_near = grouped > best + _ROUNDING, (grouped - best).abs() <= _ROUNDING
    return 1 + (nearer & ~right).sum(1).double() + (as_near & ~right).sum(1).double() / 2


def alignment(found: Tensor, prompts: Sequence[str], captions: Captions) -> Retrieval | None:
    """An entry of "alignment" of a feature space.

    Args:
        found: what `ranks` returned.
        prompts, captions: see there.

    Returns:
        None where no sample has one of the captions as its prompt, or every image is right.
    """
    total = captions.count
    right = np.array([len(captions.of[prompt]) for prompt in prompts])
    if not len(right) or right.max() == total:
        return None
    from scipy.stats import hypergeom

    others = total - right
    beaten = (others - (found.numpy() - 1)) / others

    def by_chance(most: int) -> float:
        return float(hypergeom.sf(0, total, right, min(most, total)).mean())

    return Retrieval(
        num_samples=len(found),
        num_captions=total,
        percentile=mean(beaten.tolist(), prompts),
        reciprocal_rank=mean((1 / found).tolist(), prompts),
        top1=clustered_share((found <= 1).tolist(), prompts),
        top10=clustered_share((found <= 10).tolist(), prompts),
        chance=Chance(percentile=float((right / (right + 1)).mean()), top1=by_chance(1), top10=by_chance(10)),
    )
