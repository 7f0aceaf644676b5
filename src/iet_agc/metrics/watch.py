"""A watch on copying: what any training loop calls with some images that its model draws now.

    watch = Watch(training_images, held_out_images)     # once
    found = watch.measure(images)                       # at each point

The copied share is that below the cut which an audit would set, by distance ratios in pixels. Without held-out images,
or with too few, the training images set it, each against the others: a model that copies nothing draws images that are
no nearer to them than they are to each other. Quality is the cheapest distance there is, in pixels. All are numbers of
tensors: nothing here knows files, models or processes.
"""

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from iet_agc.metrics.calibration import NEIGHBORS, Nearest, calibrate, without_itself
from iet_agc.metrics.curve import Agreement, ClosePair, Distance, Losses, Measured, Source, is_above_chance
from iet_agc.metrics.duplicates import digests
from iet_agc.metrics.intervals import calibration_rank
from iet_agc.metrics.memorization import FALSE_ALARM, calibrated_cut, distance_ratio, is_near_copy, share_below
from iet_agc.metrics.neighbors import References, check_images
from iet_agc.metrics.quality import frechet_distance
from iet_agc.metrics.records import Calibrated
from iet_agc.metrics.soundness import MOST_TRAINED, Unsound
from iet_agc.runtime.curves import BANDS
from iet_agc.runtime.errors import UserError

__all__ = ["Watch", "agreement", "losses_by_band"]

#: Images of more values are averaged over blocks, down to this side, before the Fréchet distance.
_MOST_VALUES, _SIDE = 4096, 32

#: A cut is set by training images of at least so many: each needs two others.
_LEAST_TRAINED = 3

#: Bytes of working memory of a search.
_MEMORY = 2**30


class Watch:
    """Measures images against a training set; see this module.

    Args:
        train: the training set, duplicates included, uint8 (M, C, H, W), grey or RGB.
        held_out: real images of the same kind that are not trained on, uint8 (H, C, H, W). Those that stand in the
            training set are left out, and repeated ones count once.
        flips: mirrored copies count.
        device: where to search. Changes no result.

    Attributes:
        cut: a distance ratio below it counts as a copy.
        false_alarm: the share of real images below it, by its making: 1 %, or, where fewer than 99 images set it, the
            smallest share that they can tell.
        num: how many images set it.
        source: which.
        reasons: why held-out images may set no cut, see `iet_agc.metrics.soundness`; empty where they may.

    Raises:
        ValueError: not such images, or shapes that differ.
        UserError: fewer than 3 training images that differ.
    """

    def __init__(
        self,
        train: Tensor,
        held_out: Tensor | None = None,
        flips: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        check_images("training images", train)
        self.flips = flips
        self.first, place = _unique(train)
        self.train = train[self.first]
        if len(self.train) < _LEAST_TRAINED:
            raise UserError(f"a watch needs {_LEAST_TRAINED} training images that differ, not {len(self.train)}")
        most = min(NEIGHBORS + 1, len(self.train))
        self._references = References(self.train, most, _MEMORY, torch.device(device))
        self.source: Source = "training images, each against the others"
        self.reasons: tuple[Unsound, ...] = ()
        self._real = self.train
        if not self._set_by_held_out(held_out, place):
            self._set_by_train()

    def _set_by_held_out(self, held_out: Tensor | None, place: Tensor) -> bool:
        """Whether held-out images are enough to set the cut; those that are fresh are what quality is measured by."""
        if held_out is None or not len(held_out):
            return False
        check_images("held-out images", held_out)
        inside = self._nearest(held_out)[0][:, 0] == 0
        outside = held_out[~inside]
        if not len(outside):
            return False
        outside = outside[_unique(outside)[0]]
        found = calibrate(self.train, place, outside, int(inside.sum()), self.flips)
        if found.fresh.any():
            self._real = outside[found.fresh]
        if found.cut is None:
            return False
        self.source, self.reasons = "held-out images", found.reasons
        self.cut, self.false_alarm, self.num = found.cut, FALSE_ALARM, int(found.fresh.sum())
        return True

    def _set_by_train(self) -> None:
        """The cut by training images, each among the others, but for near copies of these; 2,000 at most."""
        drawn = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:MOST_TRAINED]
        found = Nearest(*self._references.nearest(self.train[drawn], self.flips))
        distances = without_itself(found, drawn).distances
        apart = ~is_near_copy(distances) if distances.shape[1] > 1 else torch.ones(len(distances), dtype=torch.bool)
        ratios = distance_ratio(distances[apart] if apart.any() else distances)
        self.num = len(ratios)
        self.false_alarm = _least_false_alarm(self.num)
        self.cut = cast("float", calibrated_cut(ratios, self.false_alarm))

    def _nearest(self, images: Tensor) -> tuple[Tensor, Tensor]:
        distances, indices = self._references.nearest(images, self.flips)
        return distances[:, :NEIGHBORS], indices[:, :NEIGHBORS]

    def ratios(self, images: Tensor) -> Tensor:
        """Distance ratios of images, uint8 (N, C, H, W): float64 (N,); those below `cut` count as copies."""
        return distance_ratio(self._nearest(images)[0])

    def measure(self, images: Tensor, pairs: int = 8) -> Measured:
        """How much of some images is copied, and how good they are.

        Args:
            images: that the model draws, uint8 (N, C, H, W), N >= 1. Of the same seeds at each point, so that points
                differ by the model alone.
            pairs: how many of the closest ones to name.
        """
        check_images("images", images)
        distances, indices = self._nearest(images)
        ratios = distance_ratio(distances)
        found = share_below(ratios, self.cut)
        copied = Calibrated(**dict(found), false_alarm=self.false_alarm, cut=self.cut, num_held_out=self.num)
        closest = ratios.argsort(stable=True)[:pairs].tolist()
        return Measured.model_validate(
            {
                "copied": copied,
                "source": self.source,
                **is_above_chance(copied),
                "distance": self._distance(images) if len(images) > 1 else None,
                "pairs": tuple(
                    ClosePair(
                        sample=place,
                        image=int(self.first[indices[place, 0]]),
                        ratio=float(ratios[place]),
                        distance=float(distances[place, 0]),
                    )
                    for place in closest
                ),
                "reasons": self.reasons,
            }
        )

    def _distance(self, images: Tensor) -> Distance:
        values = math.prod(images.shape[1:])
        pooled = f"pixels / 255, averaged to {_SIDE} x {_SIDE}"
        return Distance(
            value=frechet_distance(_pixels(images), _pixels(self._real)),
            to="training images" if self._real is self.train else "held-out images",
            features="pixels / 255" if values <= _MOST_VALUES else pooled,
            num_real=len(self._real),
        )


def _unique(images: Tensor) -> tuple[Tensor, Tensor]:
    """Where each unique image stands first, int64 (U,), ascending, and which of these each image is, int64 (N,)."""
    places: dict[bytes, int] = {}
    inverse = torch.tensor([places.setdefault(each, len(places)) for each in digests(images)])
    first = torch.full((len(places),), len(inverse)).scatter_reduce(0, inverse, torch.arange(len(inverse)), "amin")
    return first, inverse


def _least_false_alarm(num: int) -> float:
    """1 %, or the smallest rate of false alarms for which so many images set a cut."""
    if calibration_rank(FALSE_ALARM, num):
        return FALSE_ALARM
    return math.ceil(1e6 / (num + 1)) / 1e6


def _pixels(images: Tensor) -> Tensor:
    """float64 (N, D), in [0, 1]."""
    rows = images.double() / 255
    if rows[0].numel() > _MOST_VALUES:
        rows = adaptive_avg_pool2d(rows, (min(_SIDE, rows.shape[2]), min(_SIDE, rows.shape[3])))
    return rows.flatten(1)


def losses_by_band(train: Tensor, held_out: Tensor, timesteps: Tensor | None = None, num_timesteps: int = 1) -> Losses:
    """Losses of training images beside those of held-out images.

    Args:
        train, held_out: loss of each, float (N,), N >= 1, at the same noise and timesteps in the same order.
        timesteps: in [0, num_timesteps), (N,); None where they are not known, and there are no bands.
        num_timesteps: of the noise schedule; 1 for continuous times in [0, 1).
    """
    if not len(train) == len(held_out) > 0 or (timesteps is not None and len(timesteps) != len(train)):
        at = "" if timesteps is None else f" at {len(timesteps)} timesteps"
        raise ValueError(f"{len(train)} and {len(held_out)} losses{at}: give as many of each")
    train, held_out = train.double().cpu(), held_out.double().cpu()
    own, held = float(train.mean()), float(held_out.mean())
    band = None if timesteps is None else (timesteps.cpu() * BANDS / num_timesteps).long().clamp(0, BANDS - 1)
    return Losses(
        train=own,
        held_out=held,
        gap=held - own,
        train_bands=_band_means(train, band),
        held_out_bands=_band_means(held_out, band),
        num_images=len(train),
    )


def _band_means(losses: Tensor, band: Tensor | None) -> tuple[float | None, ...]:
    if band is None:
        return ()
    inside = [losses[band == number] for number in range(BANDS)]
    return tuple(float(each.mean()) if len(each) else None for each in inside)


def agreement(images: Tensor) -> Agreement:
    """How far models draw the same images from the same seeds, see `iet_agc.metrics.curve.Agreement`.

    Args:
        images: uint8 (K, N, C, H, W): of K >= 2 models, N >= 2 seeds each.

    Raises:
        ValueError: fewer of either.
    """
    members, seeds = images.shape[:2]
    if members < 2 or seeds < 2:
        raise ValueError(f"agreement is one of 2 models and 2 seeds or more, not {members} and {seeds}")
    rows = images.flatten(2).double() / 255
    pairs = [(rows[one], rows[other]) for one in range(members) for other in range(one + 1, members)]
    mine = torch.stack([(one - other).square().mean() for one, other in pairs])
    # Of N^2 pairs of seeds: sum |a_i - b_j|^2 = N sum |a_i|^2 + N sum |b_j|^2 - 2 (sum a_i) (sum b_j)
    every = torch.stack(
        [one.square().sum() + other.square().sum() - 2 * one.mean(0) @ other.sum(0) for one, other in pairs]
    ) / (seeds * rows.shape[2])
    same = float(mine.mean())
    different = float((every.mean() - mine.mean() / seeds) * seeds / (seeds - 1))
    value = 1 - same / different if different > 0 else 1.0
    return Agreement(value=value, same=same, different=different, members=members, seeds=seeds)
