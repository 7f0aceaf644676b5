"""How good generated images are: Fréchet distance, KID, inception score, precision, recall and MiFID.

All from the features of an `Extractor`, in float64, by torch-fidelity's own functions (MiFID by ours). With the pool
features of its Inception network the Fréchet distance is FID. Tiny images mean nothing to such a network;
there the features are the pixels themselves.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from iet_agc.metrics.features import Extractor, Features, nearest_features
from iet_agc.metrics.records import (
    EqualSets,
    FewImages,
    LacksRank,
    Measured,
    NoQuality,
    NotFinite,
    NotMeasured,
    Quality,
    QualityWarning,
    Spread,
    StandsIn,
    WholeSubsets,
)
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown

__all__ = ["frechet_distance", "memorization_distance", "mifid", "no_quality", "precision_recall", "quality"]

#: Seed and sizes are torch-fidelity's defaults.
_SEED, _KID_SUBSETS, _KID_SUBSET_SIZE, _SPLITS, _NEIGHBORHOOD = 2020, 100, 1000, 10, 3

#: Precision and recall look at so many images of each set, MiFID at so many samples: pairs of more take hours.
_MOST_IN_PAIRS = 10_000

#: MiFID divides where the memorization distance is below the first; the second guards against 0.
_MIFID_CUT, _MIFID_EPSILON = 0.1, 1e-14

#: A Fréchet distance below this part of both traces is 0 for MiFID: of equal sets, rounding leaves up to 2e-7 of them.
_EQUAL = 1e-6

#: From here on, a network's Fréchet distance is commonly reported.
_ENOUGH_FOR_NETWORKS = 2048

#: Sets by the names that warnings have for them, and the sets of real images by those of numbers.
_Sets = Mapping[Literal["sample", "training", "held-out"], Tensor]
_Real = Literal["train", "held_out"]

_CONVENTIONS = {
    "arithmetic": "all in float64 from the extractor's features, by torch-fidelity's functions; MiFID by our own",
    "frechet": "|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), covariances by n - 1; FID where the features are "
    "Inception's (Heusel et al., 2017); biased upward by about 1 / n, so compare at equal numbers of images only; "
    "lower is better",
    "kid": f"kernel (x y / dimensions + 1)^3, unbiased; mean and deviation over {_KID_SUBSETS} subsets of "
    f"{_KID_SUBSET_SIZE:,} images, or of all images of the smaller set where it has fewer, seed {_SEED} "
    "(Binkowski et al., 2018); may fall below 0; lower is better",
    "inception_score": "exp of the mean KL divergence of an image's class scores from their mean; mean and deviation "
    f"over {_SPLITS} parts, shuffled with seed {_SEED} (Salimans et al., 2016); the extractor's own classes; "
    "higher is better",
    "precision_recall": "share of samples (precision) or of real images (recall) that lie no farther from some image "
    f"of the other set than that one's neighbour number {_NEIGHBORHOOD} in its own set (Kynkäänniemi et al., 2019); "
    "features rounded to a grid of about 2^20 steps, on which distances and ties are exact; of "
    f"{_MOST_IN_PAIRS:,} images of each set at most, drawn with seed {_SEED}; higher is better, but copies raise both",
    "mifid": f"Fréchet distance / (s + {_MIFID_EPSILON}) where s < {_MIFID_CUT}, otherwise Fréchet distance; s is the "
    f"mean over samples, {_MOST_IN_PAIRS:,} of them at most, of the smallest 1 - |cos| to the other set, features of "
    f"length 0 left out (Bai et al., 2021); null where the Fréchet distance is 0 up to {_EQUAL} of both covariances' "
    "traces, as of samples that equal the set: torchmetrics has 0 there, the best value; copies of some images raise "
    "it much, near copies of all of them may lower it; lower is better",
}


def quality(
    samples: Features,
    train: Features,
    held_out: Features | None,
    extractor: Extractor,
    memory: int = 2 * 1024**3,
    near_copies: int = 0,
) -> Quality:
    """The "quality" entry of audit.json.

    Args:
        samples, train, held_out: what `extractor` makes of the generated images, of the unique training images
            and, if there are any, of the held-out images.
        extractor: the extractor.
        memory: bytes of working memory for pairs of images. Changes no result.
        near_copies: how many held-out images were left out; kept in the record.

    Returns:
        Numbers, or None where a set is too small or a number is not finite, which a warning says.

    Raises:
        ValueError: features that are not finite, or have other dimensions in another set.
    """
    sets: _Sets = {"sample": samples.features, "training": train.features}
    sets |= {"held-out": held_out.features} if held_out else {}
    _check_sets(sets)
    sets = {name: rows.double() for name, rows in sets.items()}
    mine, theirs, held = sets["sample"], sets["training"], sets.get("held-out")
    stands_in = (StandsIn(extractor=shown(extractor.name)),) if extractor.stands_in else ()
    warnings = [*stands_in, *_size_warnings(sets, extractor)]
    measured = {
        **_against("train", mine, theirs, memory, warnings),
        **_against("held_out", mine, held, memory, warnings),
        "frechet_train_to_held_out": None
        if held is None
        else _frechet("frechet_train_to_held_out", theirs, held, warnings),
        "inception_score": None if samples.logits is None else _inception_score(samples.logits, warnings),
    }
    return Quality.model_validate(
        {
            "extractor": shown(extractor.name),
            "sha256": extractor.sha256,
            "dimensions": mine.shape[1],
            **measured,
            "few_images": min(map(len, sets.values())) <= mine.shape[1],
            "warnings": tuple(warnings),
            "conventions": {"features": extractor.convention, **_CONVENTIONS},
            "num_held_out": 0 if held is None else len(held),
            "num_near_copies": near_copies,
        }
    )


def no_quality(asked: bool, shape: tuple[int, int, int]) -> Quality:
    """The "quality" entry of an audit that measures none: the same keys, and why.

    Args:
        asked: whether that was asked for; or else there is no extractor for images of `shape`.
        shape: (C, H, W).
    """
    return Quality.model_validate(
        {
            **dict.fromkeys(Quality.model_fields),
            **{"dimensions": 0, "few_images": False, "conventions": {}, "num_held_out": 0, "num_near_copies": 0},
            "warnings": (NoQuality(asked=asked, shape=shape),),
        }
    )


def _check_sets(sets: _Sets) -> None:
    if len({rows.shape[1] for rows in sets.values()}) > 1:
        sizes = ", ".join(f"{name} {rows.shape[1]}" for name, rows in sets.items())
        raise ValueError(f"the sets have features of several extractors: {sizes} dimensions")
    for name, rows in sets.items():
        if not rows.isfinite().all():
            raise UserError(f"the {name} set has features that are not finite")


def _size_warnings(sets: _Sets, extractor: Extractor) -> list[QualityWarning]:
    """What the sizes of the sets make of the numbers."""
    warnings: list[QualityWarning] = []
    for name, rows in sets.items():
        if len(rows) <= rows.shape[1]:
            warnings.append(LacksRank(images=name, num_images=len(rows), num_features=rows.shape[1]))
        elif extractor.name != "pixels" and len(rows) < _ENOUGH_FOR_NETWORKS:
            warnings.append(FewImages(images=name, num_images=len(rows), num_usual=_ENOUGH_FOR_NETWORKS))
    return warnings


def _against(
    part: _Real, mine: Tensor, others: Tensor | None, memory: int, warnings: list[QualityWarning]
) -> dict[str, float | Spread | None]:
    """The numbers of the samples against one set of real images; without one, none."""
    if others is None:
        return dict.fromkeys(f"{name}_{part}" for name in ("frechet", "kid", "precision", "recall", "mifid"))
    fewest = min(len(mine), len(others))
    frechet = _frechet(f"frechet_{part}", mine, others, warnings)
    kid = _attempt((f"kid_{part}",), 2, fewest, lambda: _kid(mine, others), warnings)
    if kid and fewest <= _KID_SUBSET_SIZE:
        warnings.append(WholeSubsets(measures=(f"kid_{part}",), num_images=fewest))
    both, some = (f"precision_{part}", f"recall_{part}"), _some(mine)
    shares = _attempt(both, _NEIGHBORHOOD + 1, fewest, lambda: precision_recall(some, _some(others), memory), warnings)
    return {
        f"frechet_{part}": frechet,
        f"kid_{part}": None if kid is None else Spread(**kid),
        f"precision_{part}": None if shares is None else shares["precision"],
        f"recall_{part}": None if shares is None else shares["recall"],
        f"mifid_{part}": None if frechet is None else _mifid(f"mifid_{part}", frechet, mine, others, memory, warnings),
    }


def _mifid(
    name: Measured, frechet: float, mine: Tensor, others: Tensor, memory: int, warnings: list[QualityWarning]
) -> float | None:
    """MiFID, or None and a warning where the sets are equal as a whole: then it would be 0, the best value."""
    if frechet <= _EQUAL * float(mine.var(0).sum() + others.var(0).sum()):
        warnings.append(EqualSets(measures=(name,)))
        return None
    distance = memorization_distance(_some(mine), others, memory)
    fewest = min(len(mine), len(others))
    found = _attempt((name,), 2, fewest, lambda: {"mifid": mifid(frechet, distance)}, warnings)
    return None if found is None else found["mifid"]


def _some(rows: Tensor) -> Tensor:
    """At most 10,000 rows, drawn at random with a fixed seed, for what would take pairs of all."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SEED))
    return rows if len(rows) <= _MOST_IN_PAIRS else rows[order[:_MOST_IN_PAIRS].sort().values]


def _attempt(
    names: tuple[Measured, ...],
    least: int,
    fewest: int,
    measure: Callable[[], dict[str, float]],
    warnings: list[QualityWarning],
) -> dict[str, float] | None:
    """The numbers, or None and a warning where they say nothing."""
    if fewest < least:
        warnings.append(NotMeasured(measures=names, num_needed=least, num_images=fewest))
        return None
    numbers = measure()
    if not all(math.isfinite(value) for value in numbers.values()):
        warnings.append(NotFinite(measures=names))
        return None
    return numbers


def _frechet(name: Measured, first: Tensor, second: Tensor, warnings: list[QualityWarning]) -> float | None:
    fewest = min(len(first), len(second))
    found = _attempt((name,), 2, fewest, lambda: {"frechet": frechet_distance(first, second)}, warnings)
    return None if found is None else found["frechet"]


def _kid(mine: Tensor, others: Tensor) -> dict[str, float]:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    found = kid_features_to_metric(
        mine,
        others,
        kid_subsets=_KID_SUBSETS,
        kid_subset_size=min(_KID_SUBSET_SIZE, len(mine), len(others)),
        rng_seed=_SEED,
        verbose=False,
    )
    return {"mean": found[KEY_METRIC_KID_MEAN], "std": found[KEY_METRIC_KID_STD]}


def _inception_score(logits: Tensor, warnings: list[QualityWarning]) -> Spread | None:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    def measure() -> dict[str, float]:
        found = isc_features_to_metric(logits, splits=_SPLITS, shuffle=True, rng_seed=_SEED)
        return {"mean": found[KEY_METRIC_ISC_MEAN], "std": found[KEY_METRIC_ISC_STD]}

    found = _attempt(("inception_score",), 2 * _SPLITS, len(logits), measure, warnings)
    return None if found is None else Spread(**found)


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two normal distributions fitted to two sets of features.

    Args:
        first: float64 (N, D), N >= 2.
        second: float64 (M, D), M >= 2.

    Returns:
        At least 0, up to rounding; in squared units of the features. Low is good. It is biased upward
        for small sets, so compare only at equal sizes.

    With A and B the centred sets over sqrt(n - 1), tr (S_1 S_2)^(1/2) is the sum of the singular values of A B^T. Where
    a set has fewer images than dimensions, that N x M matrix is the smaller one: of 3,072 pixels and 1,000 images
    seconds in place of minutes. Otherwise torch-fidelity's D x D.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    if min(len(first), len(second)) < 2:
        raise UserError(f"a Fréchet distance needs 2 images on each side, not {len(first)} and {len(second)}")
    if min(len(first), len(second)) < first.shape[1]:
        return _frechet_of_few(first, second)
    if first.shape[1] == 1:  # torch-fidelity wants a matrix of covariances; a constant dimension adds nothing
        first, second = F.pad(first, (0, 1)), F.pad(second, (0, 1))
    one, two = fid_features_to_statistics(first), fid_features_to_statistics(second)
    return fid_statistics_to_metric(one, two, verbose=False)[KEY_METRIC_FID]


def _frechet_of_few(first: Tensor, second: Tensor) -> float:
    means = first.mean(0), second.mean(0)
    one, two = ((rows - mean) / math.sqrt(len(rows) - 1) for rows, mean in zip((first, second), means, strict=True))
    traces = float(one.square().sum() + two.square().sum())
    common = float(torch.linalg.svdvals(one @ two.T).sum())
    return float((means[0] - means[1]).square().sum()) + traces - 2 * common


def precision_recall(samples: Tensor, real: Tensor, memory: int = 2 * 1024**3) -> dict[str, float]:
    """Improved precision and recall (Kynkäänniemi et al., NeurIPS 2019), k = 3.

    An image is covered by the other set where it lies no farther from some image of it than that one's third neighbour
    in its own set. torch-fidelity takes distances from rounded matrix products, which decides ties by chance. On a
    grid its products are exact, and a set of equal images covers itself.

    Args:
        samples: float64 (N, D), N >= 4.
        real: float64 (M, D), M >= 4.
        memory: bytes of working memory. Changes no result.

    Returns:
        {"precision": share of samples covered by the real images, "recall": the reverse}, each in [0, 1].
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    step = _grid_step(samples, real)
    found = prc_features_to_metric(
        (samples / step).round(),
        (real / step).round(),
        prc_neighborhood=_NEIGHBORHOOD,
        prc_batch_size=max(1, min(10_000, memory // (48 * max(len(samples), len(real))))),
        save_cpu_ram=True,
        verbose=False,
    )
    return {"precision": found[KEY_METRIC_PRECISION], "recall": found[KEY_METRIC_RECALL]}


def _grid_step(samples: Tensor, real: Tensor) -> float:
    """The finest step at which squared distances are whole numbers below 2^53, with all sums on the way to them."""
    bits = (51 - math.ceil(math.log2(samples.shape[1]))) // 2
    largest = max(float(samples.abs().max()), float(real.abs().max()))
    return largest / 2**bits or 1.0


def memorization_distance(samples: Tensor, references: Tensor, memory: int = 2 * 1024**3) -> float:
    """How near samples come to a training set: mean over samples of the smallest 1 - |cos| to a reference.

    Source: Bai et al., KDD 2021 (arXiv 2106.03062), section 3. torchmetrics takes the mean over references instead.

    Args:
        samples: float64 (N, D). Rows of length 0 have no direction and are left out, as in torchmetrics.
        references: float64 (M, D), likewise.
        memory: bytes of working memory. Changes no result.

    Returns:
        In [0, 1]; 0 where each sample is a multiple of a reference; NaN where nothing is left. Lower is more copied.
    """
    mine, theirs = (rows / lengths for rows, lengths in map(_with_lengths, (samples, references)))
    if len(mine) == 0 or len(theirs) == 0:
        return math.nan
    signs = (1, -1) if min(mine.min(), theirs.min()) < 0 else (1,)
    squares = [nearest_features(sign * mine, theirs, 1, memory)[0] for sign in signs]  # 2 - 2 cos, without cancellation
    return float(torch.cat(squares, dim=1).amin(1).mean() / 2)


def _with_lengths(rows: Tensor) -> tuple[Tensor, Tensor]:
    lengths = rows.norm(dim=1, keepdim=True)
    keep = lengths[:, 0] > 0
    return rows[keep], lengths[keep]


def mifid(frechet: float, distance: float) -> float:
    """Memorization-informed Fréchet distance (Bai et al., KDD 2021): quality, divided by closeness to the training set.

    Args:
        frechet: Fréchet distance to the training set.
        distance: `memorization_distance` to it.

    Returns:
        frechet / (distance + 1e-14) where the distance is below 0.1, otherwise frechet; NaN where frechet is not above
        0, or the distance is NaN: torchmetrics returns 0 there, the best value, though the samples equal the training
        set. Lower is better; copies of some training images make it huge.
    """
    if math.isnan(distance) or frechet <= 0:
        return math.nan
    return frechet / (distance + _MIFID_EPSILON) if distance < _MIFID_CUT else frechet
