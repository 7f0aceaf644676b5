"""What the audit detects, on sample sets whose copies are known because they were planted.

Samples of each kind are made from real training images: exact, mirrored, noised, shifted, compressed and so on.
Unrelated ones are real images, neither trained on nor used to calibrate: what is detected among them is false
alarm. For each kind: the share below ratio 0.15, below d1/d2 1/3, below the calibrated cut and below the cut on the
distance to the nearest training image ("near"; both cuts at most 1 % false alarms), AuthPct, C_T, and how often the
nearest training image is the one that was copied. "transformed", by groups, counts those below the one cut of all ways
of being a copy, as `audit --groups --transformed` does. There, unrelated images that are transformed copies of training
images beyond doubt, by the audit's own rule (`is_copy`), are no false alarms: they are counted apart. Then the same of
sets with a known share of copies.

    python benchmarks/detection.py [--data digits fashion-mnist] [--seeds 0 1 2] [--spaces pixels transformed EXTRACTOR]
        [--false-alarms 20]

Tables go to stderr as Markdown, all numbers to stdout as JSON. Each seed splits, plants and draws anew. Data that are
not on this machine are named and left out. --false-alarms plants nothing, and counts unrelated images only, over so
many seeds from 100 on.

Sets are digits, Fashion-MNIST, emoji, and "photograph-crops": crops of scikit-learn's two photographs, of which
training and held-out ones come from different blocks of 64 x 64 pixels, so that no two of them show the same place.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as change

from iet_agc.auditing.copies import Scores, joined
from iet_agc.config.settings import validate
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.duplicates import plant_duplicates
from iet_agc.data.image_set import ImageSet, unique_images
from iet_agc.metrics.calibration import NEIGHBORS, Neighbors
from iet_agc.metrics.duplicates import duplicate_groups
from iet_agc.metrics.features import load_extractor, nearest_features
from iet_agc.metrics.groups import labels_of, nearest_groups, representatives_of
from iet_agc.metrics.intervals import share
from iet_agc.metrics.memorization import (
    CUTS,
    calibrated_cut,
    cells,
    distance_ratio,
    held_out_statistics,
    is_near_copy,
    share_below,
    statistics,
)
from iet_agc.metrics.neighbors import mirror, nearest
from iet_agc.metrics.transformed import TrainingIndex, is_copy
from iet_agc.runtime.seeds import generator


@dataclass(frozen=True)
class Sizes:
    """How many images to train on, how many held-out ones to calibrate by and to count false alarms among, and how
    many samples of each kind."""

    train: int
    calibrate: int
    unrelated: int
    samples: int


SIZES = {
    "digits": Sizes(900, 399, 498, 400),
    "fashion-mnist": Sizes(10_000, 4_999, 5_001, 1_000),
    "emoji": Sizes(850, 399, 401, 100),
    "photograph-crops": Sizes(1_500, 499, 501, 100),
}

#: Blocks of photographs, a side in pixels, of which so many in ten are trained on; crops are of 24 pixels up to all of
#: a block, at `SIDE` pixels.
BLOCK, IN_TRAIN, SMALLEST, SIDE = 64, 6, 24, 32

#: Seeds by which false alarms are counted: none that rows are of.
FIRST_SEED = 100

#: Of the training images, one in so many stands there `COPIES` times, and as many again have near copies.
ONE_IN, COPIES = 500, 50

#: At most so many cells of C_T, and so many samples of a kind for each.
CELLS, PER_CELL = 10, 100

#: What is shown of the first space besides.
RULES = ("below 0.15", "d1/d2", "authentic", "c_t", "near")

#: Planted shares of copies, and the kind that is planted.
SHARES, PLANTED = (0.0, 0.01, 0.05, 0.20, 1.0), "noise, sd 10"

Search = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


# What is planted --------------------------------------------------------------------------------------------


def noised(images: Tensor, deviation: float, rng: torch.Generator) -> Tensor:
    """Normal noise of so many grey levels, rounded and clipped to 0 .. 255."""
    noise = torch.randn(images.shape, generator=rng) * deviation
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def one_level(images: Tensor, rng: torch.Generator) -> Tensor:
    """One random pixel of each image moved by one grey level."""
    flat = images.flatten(1).clone()
    places = torch.randint(flat.shape[1], (len(flat), 1), generator=rng)
    return flat.scatter(1, places, flat.gather(1, places).bitwise_xor(1)).reshape(images.shape)


def shifted(images: Tensor, pixels: int) -> Tensor:
    """Moved to the right; the left edge is repeated."""
    return change.pad(images, [pixels, 0, 0, 0], padding_mode="edge")[..., : images.shape[-1]]


def cropped(images: Tensor, keep: float) -> Tensor:
    """The middle, enlarged to the old size."""
    height, width = images.shape[-2:]
    middle = change.center_crop(images, [round(keep * height), round(keep * width)])
    return change.resize(middle, [height, width], InterpolationMode.BILINEAR, antialias=True)


def compressed(images: Tensor, quality: int) -> Tensor:
    """Through JPEG, as Pillow writes and reads it."""
    result = []
    for image in images:
        file = BytesIO()
        change.to_pil_image(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as read:
            result.append(change.pil_to_tensor(read))
    return torch.stack(result)


def half(images: Tensor, others: Tensor) -> Tensor:
    """The left half of an image beside the right half of another."""
    middle = images.shape[-1] // 2
    return torch.cat([images[..., :middle], others[..., middle:]], dim=-1)


def blended(images: Tensor, others: Tensor, weight: float) -> Tensor:
    return (weight * images + (1 - weight) * others).round().to(torch.uint8)


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        train: unique training images, near copies among them; uint8 (U, C, H, W).
        owner: which of them each one is, or is a near copy of; int64 (U,).
        single: places of the ordinary ones, (S,); repeated: of those that stood there `COPIES` times; nearly: of those
            that have `COPIES` - 1 near copies.
        calibrate, unrelated: held-out images, uint8.
    """

    train: Tensor
    owner: Tensor
    single: Tensor
    repeated: Tensor
    nearly: Tensor
    calibrate: Tensor
    unrelated: Tensor


def images_of(data: str, seed: int, sizes: Sizes) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images of a set."""
    if data == "photograph-crops":
        return photograph_crops(seed, sizes)
    return load_dataset(validate({"data": {"name": data, "num_train": sizes.train, "seed": seed}}).data)


def photograph_crops(seed: int, sizes: Sizes) -> tuple[ImageSet, ImageSet]:
    """Square crops at random places and scales, each within a block; blocks of the one set are none of the other."""
    from sklearn.datasets import load_sample_images

    rng, photographs = np.random.default_rng(seed), [Image.fromarray(each) for each in load_sample_images().images]
    blocks = [
        (photograph, left, top)
        for photograph in photographs
        for top in range(0, photograph.height - BLOCK + 1, BLOCK)
        for left in range(0, photograph.width - BLOCK + 1, BLOCK)
    ]
    order = rng.permutation(len(blocks))
    cut = len(blocks) * IN_TRAIN // 10

    def taken(which: np.ndarray, count: int) -> ImageSet:
        crops = []
        for number in range(count):
            photograph, left, top = blocks[which[number % len(which)]]
            side = round(np.exp(rng.uniform(np.log(SMALLEST), np.log(BLOCK))))
            x, y = left + int(rng.integers(BLOCK - side + 1)), top + int(rng.integers(BLOCK - side + 1))
            box = (x, y, x + side, y + side)
            crops.append(np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)))
        return ImageSet(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous(), "photograph-crops")

    return taken(order[:cut], sizes.train), taken(order[cut:], sizes.calibrate + sizes.unrelated)


def split(data: str, seed: int, sizes: Sizes) -> Split:
    real, held_out = images_of(data, seed, sizes)
    rng = generator("detection", seed)
    real = real.take(unique_images(real.images)[0])
    groups = max(1, len(real) // ONE_IN)
    nearly = torch.arange(groups, 2 * groups)
    copied = nearly.repeat(COPIES - 1)
    near_copies = noised(real.images[copied], 2, rng)
    planted = plant_duplicates(ImageSet(torch.cat([real.images, near_copies]), data), groups, COPIES)
    train = planted.images[unique_images(planted.images)[0]]
    owner = torch.cat([torch.arange(len(real)), copied])
    assert len(train) == len(owner), "a near copy equals another image: choose another seed"
    fresh = held_out.images[torch.randperm(len(held_out), generator=rng)]
    single = torch.arange(2 * groups, len(real))
    calibrate, unrelated, *_ = fresh.split(
        [sizes.calibrate, sizes.unrelated, len(fresh) - sizes.calibrate - sizes.unrelated]
    )
    return Split(train, owner, single, torch.arange(groups), nearly, calibrate, unrelated)


def planted(where: Split, count: int, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Samples of every kind.

    Yields:
        kind: its name.
        samples: uint8 (N, C, H, W).
        originals: the images that each was made from, places in the training set, int64 (N, 1) or (N, 2).
    """
    rng = generator("planted", seed)
    own = where.single[torch.randperm(len(where.single), generator=rng)[:count]]
    others = own.roll(1)
    images, other_images = where.train[own], where.train[others]
    strangers = where.unrelated[torch.arange(len(own)) % len(where.unrelated)]
    ways: dict[str, Callable[[], Tensor]] = {
        "exact": lambda: images,
        "mirrored": lambda: mirror(images),
        "one pixel by one level": lambda: one_level(images, rng),
        **{f"noise, sd {sd}": lambda sd=sd: noised(images, sd, rng) for sd in (1, 2, 5, 10, 20, 40, 80)},
        **{f"JPEG, quality {quality}": lambda quality=quality: compressed(images, quality) for quality in (90, 50, 20)},
        "brightness x 0.8": lambda: change.adjust_brightness(images, 0.8),
        "32 levels brighter": lambda: images.clamp(max=223) + 32,
        "contrast halved": lambda: change.adjust_contrast(images, 0.5),
        **{f"shifted by {pixels} px": lambda pixels=pixels: shifted(images, pixels) for pixels in (1, 2, 4)},
        **{f"cropped to {keep} %": lambda keep=keep: cropped(images, keep / 100) for keep in (90, 75)},
        "half of an image": lambda: half(images, strangers),
    }
    for kind, make in ways.items():
        yield kind, make(), own[:, None]
    pairs = torch.stack([own, others], dim=1)
    yield "blend 80 : 20 of two", blended(images, other_images, 0.8), pairs
    yield "blend 50 : 50 of two", blended(images, other_images, 0.5), pairs
    for kind, group in ((f"stands {COPIES} times", where.repeated), (f"has {COPIES - 1} near copies", where.nearly)):
        again = group[torch.arange(count) % len(group)]
        yield f"{kind}; noise, sd 5", noised(where.train[again], 5, rng), again[:, None]


# What is found ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Neighbours of samples.

    Attributes:
        distances, places: squared distances to the nearest training images, and their places; (N, k).
        own: from the nearest of them to its nearest other one, (N,).
        cells: of C_T, (N,).
        statistics: of transformed copies, and the training image by each, (N, 4); empty where these are not looked for.
        left: see `metrics.transformed.Compared`, (N,); of all 1 where these are not looked for.
    """

    distances: Tensor
    places: Tensor
    own: Tensor
    cells: Tensor
    statistics: Tensor
    references: Tensor
    left: Tensor

    @property
    def copies(self) -> Tensor:
        """Which images are transformed copies beyond doubt, bool (N,)."""
        return is_copy(self.statistics, self.left) if self.statistics.shape[1] else torch.zeros_like(self.left).bool()

    def of(self, rows: slice | Tensor) -> "Found":
        return Found(**{name: values[rows] for name, values in vars(self).items()})

    def joined(self, other: "Found") -> "Found":
        return Found(**{name: torch.cat([values, vars(other)[name]]) for name, values in vars(self).items()})


def search_in(space: str, train: Tensor) -> Search:
    """Searches pixels, pixels with mirrored references ("flips"), groups of copies ("groups"), or the features of an
    extractor."""
    if space in {"pixels", "flips"}:
        return lambda queries, references, k: nearest(queries, references, k, flips=space == "flips")
    if space in {"groups", "transformed"}:
        labels = groups_in(train)
        return lambda queries, references, k: nearest_groups(
            lambda rows, most: nearest(queries[rows], references, most), len(queries), labels, k
        )
    extractor = load_extractor(space)

    @cache
    def features(images: Tensor) -> Tensor:
        return extractor.extract(images).features

    return lambda queries, references, k: nearest_features(features(queries), features(references), k)


@cache
def groups_in(train: Tensor) -> Tensor:
    """The group of copies of each training image, see `labels_of`."""
    copies = [group.members for group in duplicate_groups(train, flips=False)]
    return labels_of(len(train), [(members[0].image, other.image) for members in copies for other in members[1:]])


def look(data: str, seed: int, space: str, sizes: Sizes) -> dict[str, Any]:
    """All numbers of one seed in one space."""
    where = split(data, seed, sizes)
    kinds = list(planted(where, sizes.samples, seed))
    parts = [where.calibrate, where.unrelated, *(samples for _, samples, _ in kinds)]
    calibrate, unrelated, *found = find(where, space, parts, min(CELLS, sizes.samples // PER_CELL))
    calibrate, unrelated, apart = without_copies(calibrate, unrelated)
    cut = calibrated_cut(distance_ratio(calibrate.distances)[~is_near_copy(calibrate.distances)])
    assert cut is not None, "too few held-out images"
    rows = [
        {
            "kind": kind,
            **counts(each, cut, calibrate),
            "named": int(named(each, calibrate, originals, where.owner).sum()),
        }
        for (kind, _, originals), each in zip(kinds, found, strict=True)
    ]
    rows.append({"kind": "unrelated", **counts(unrelated, cut, calibrate), "named": None})
    copies = next(each for (kind, _, _), each in zip(kinds, found, strict=True) if kind == PLANTED)
    return {
        "data": data,
        "seed": seed,
        "space": space,
        "images": {
            "train": len(where.train),
            "calibrate": len(calibrate.own),
            "transformed copies among them": int(calibrate.copies.sum()),
            "unrelated": len(unrelated.own),
            "transformed copies, counted apart": apart,
        },
        "cut": cut,
        "kinds": rows,
        "held_out": held_out_statistics(calibrate.distances, calibrate.own).model_dump(),
        "mixtures": [
            {"planted": planted_share, **counts(mixed(planted_share, copies, unrelated), cut, calibrate)}
            for planted_share in SHARES
        ],
    }


def false_alarms(data: str, seed: int, space: str, sizes: Sizes) -> dict[str, int]:
    """How many of the unrelated images of one seed are called copies, by each cut."""
    where = split(data, seed, sizes)
    calibrate, unrelated = find(where, space, [where.calibrate, where.unrelated], 1)
    calibrate, unrelated, apart = without_copies(calibrate, unrelated)
    ratios = distance_ratio(calibrate.distances)
    cut = calibrated_cut(ratios[~is_near_copy(calibrate.distances)])
    assert cut is not None, "too few held-out images"
    found = counts(unrelated, cut, calibrate)
    counted = {name: found[name] for name in ("samples", "calibrated", "transformed") if name in found}
    result = {"seed": seed, **counted, "apart": apart, "set no cut": int(calibrate.copies.sum())}
    print(f"{data}, {space}: {json.dumps(result)}", file=sys.stderr, flush=True)
    return result


def without_copies(calibrate: Found, unrelated: Found) -> tuple[Found, Found, int]:
    """Both without exact copies of training images; the latter without transformed ones, and how many these were."""
    calibrate, unrelated = (each.of(each.distances[:, 0] > 0) for each in (calibrate, unrelated))
    copies = unrelated.copies
    return calibrate, unrelated.of(~copies), int(copies.sum())


def find(where: Split, space: str, parts: Sequence[Tensor], num_cells: int) -> Iterator[Found]:
    """Neighbours of several sets of images, in one search."""
    search, images = search_in(space, where.train), torch.cat(list(parts))
    distances, places = search(images, where.train, NEIGHBORS)
    own = search(where.train, where.train, 2)[0][:, 1]
    cell_of, _ = cells(where.train, images, images[:1], num_cells)
    statistics, references, left = places[:, :0], places[:, :0], torch.ones(len(places), dtype=torch.float64)
    if space == "transformed":
        among = representatives_of(groups_in(where.train))
        compared = TrainingIndex(where.train[among]).compare(images)
        statistics, references, left = compared.statistics, among[compared.references], compared.left
    everything = Found(distances, places, own[places[:, 0]], cell_of, statistics, references, left)
    start = 0
    for part in parts:
        yield everything.of(slice(start, start + len(part)))
        start += len(part)


def counts(found: Found, cut: float, calibrate: Found) -> dict[str, Any]:
    """How many samples each rule of the audit detects, and C_T of all of them."""
    ratios = distance_ratio(found.distances)
    fresh = ~is_near_copy(calibrate.distances)
    joint = joined(scores_of(found, calibrate))
    entry = statistics(found.distances, found.own, calibrate.distances, (found.cells, calibrate.cells[fresh]), fresh)
    return {
        "samples": len(ratios),
        **({"transformed": int((joint.samples < joint.cut).sum())} if joint else {}),
        "calibrated": share_below(ratios, cut).count,
        "below 0.15": share_below(ratios, CUTS[0]).count,
        "d1/d2": entry.d1_d2.count,
        "authentic": entry.auth_pct.count,
        "near": entry.near.count if entry.near else None,
        "c_t": entry.c_t and {name: getattr(entry.c_t, name) for name in ("value", "null_sd", "cells")},
    }


def scores_of(found: Found, calibrate: Found) -> Scores:
    """As an audit counts them."""
    near = Neighbors(found.distances, found.places, found.own, calibrate.distances, calibrate.own)
    if not found.statistics.shape[1]:
        return Scores(found=near)
    return Scores(
        found=near,
        transformed=found.statistics,
        transformed_held_out=calibrate.statistics,
        transformed_left=calibrate.left,
    )


def named(found: Found, calibrate: Found, originals: Tensor, owner: Tensor) -> Tensor:
    """Whether the training image that is found is one that the sample was made from, or a near copy of it; (N,)."""
    nearest, joint = found.places[:, :1], joined(scores_of(found, calibrate))
    if joint:
        nearest = torch.cat([nearest, found.references], dim=1).gather(1, joint.by[:, None])
    return (owner[nearest] == owner[originals]).any(dim=1)


def mixed(planted_share: float, copies: Found, unrelated: Found) -> Found:
    """A set of as many samples as there are copies, of which a known share are copies."""
    count = min(len(copies.own), len(unrelated.own))
    number = round(planted_share * count)
    return copies.of(slice(number)).joined(unrelated.of(slice(count - number)))


# What is shown ----------------------------------------------------------------------------------------------


def pooled(results: Sequence[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """The seeds together: counts as shares with intervals, the mean of C_T, and each seed's calibrated share."""
    rows = []
    for same in zip(*(result[part] for result in results), strict=True):
        total = sum(row["samples"] for row in same)
        rules = [rule for rule, count in same[0].items() if rule != "samples" and isinstance(count, int)]
        rows.append(
            {
                **{key: same[0][key] for key in ("kind", "planted") if key in same[0]},
                "samples": total,
                **{rule: share(sum(row[rule] for row in same), total).model_dump(mode="json") for rule in rules},
                "c_t": mean(row["c_t"]["value"] for row in same) if all(row["c_t"] for row in same) else None,
                "calibrated of each seed": [row["calibrated"] / row["samples"] for row in same],
            }
        )
    return rows


def table(by_space: dict[str, list[dict[str, Any]]]) -> str:
    """One row per kind or planted share, as Markdown; percent but for C_T. Of the first space all rules."""
    first, *others = by_space
    columns = [(first, rule) for rule in (*RULES, "calibrated", "transformed", "named")]
    columns += [(space, rule) for space in others for rule in ("calibrated", "transformed", "named")]
    columns = [(space, rule) for space, rule in columns if rule in by_space[space][0]]
    lines = [["", *(f"{space}: {rule}" for space, rule in columns)], ["---"] * (len(columns) + 1)]
    for number, row in enumerate(by_space[first]):
        name = row["kind"] if "kind" in row else f"{100 * row['planted']:.0f} % planted"
        lines.append([name, *(_shown(by_space[space][number], rule) for space, rule in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _shown(row: dict[str, Any], rule: str) -> str:
    if rule == "c_t":
        return "" if row["c_t"] is None else f"{row['c_t']:.1f}"
    if rule not in row:
        return ""
    low, high = row[rule]["ci95"]
    interval = f" [{100 * low:.1f}, {100 * high:.1f}]" if rule in {"calibrated", "transformed"} else ""
    return f"{100 * row[rule]['share']:.1f}{interval}"


def alarms(rows: Sequence[dict[str, int]]) -> dict[str, Any]:
    """False alarms over seeds: mean and standard deviation of their shares, and all together."""
    apart = {name: sum(row[name] for row in rows) for name in ("apart", "set no cut")}
    rules = [rule for rule in rows[0] if rule not in {"seed", "samples", *apart}]
    total = sum(row["samples"] for row in rows)
    return apart | {
        rule: {
            "mean": mean(row[rule] / row["samples"] for row in rows),
            "sd": stdev(row[rule] / row["samples"] for row in rows),
            "all": share(sum(row[rule] for row in rows), total).model_dump(mode="json"),
        }
        for rule in rules
    }


def there(data: str) -> bool:
    """Whether an image set can be loaded; if not, one line says why."""
    if data == "photograph-crops":
        return True
    try:
        load_dataset(validate({"data": {"name": data}}).data)
    except ValueError as error:
        print(f"{data} is left out: {error}", file=sys.stderr)
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--spaces", nargs="+", default=["pixels", "flips"], help="pixels, flips, groups, transformed, or extractors"
    )
    parser.add_argument("--sizes", nargs=4, type=int, metavar=("TRAIN", "CALIBRATE", "UNRELATED", "SAMPLES"))
    parser.add_argument("--false-alarms", type=int, metavar="SEEDS", help="plant nothing; two seeds or more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began, results, tables = time.perf_counter(), [], {}
    for data in filter(there, arguments.data):
        sizes = Sizes(*arguments.sizes) if arguments.sizes else SIZES[data]
        if arguments.false_alarms:
            seeds = range(FIRST_SEED, FIRST_SEED + arguments.false_alarms)
            by_space = {space: [false_alarms(data, seed, space, sizes) for seed in seeds] for space in arguments.spaces}
            tables[data] = {space: alarms(rows) for space, rows in by_space.items()}
            results += [{"data": data, "space": space, "seeds": rows} for space, rows in by_space.items()]
            print(f"{data}, seeds {seeds}: {json.dumps(tables[data])}", file=sys.stderr, flush=True)
            continue
        found = {space: [look(data, seed, space, sizes) for seed in arguments.seeds] for space in arguments.spaces}
        results += [result for each in found.values() for result in each]
        tables[data] = {
            part: {space: pooled(each, part) for space, each in found.items()} for part in ("kinds", "mixtures")
        }
        apart = {space: [result["images"] for result in each] for space, each in found.items()}
        print(f"{data}, seeds {arguments.seeds}, images: {json.dumps(apart)}", file=sys.stderr, flush=True)
        for part, by_space in tables[data].items():
            print(f"{data}, seeds {arguments.seeds}, {part}\n\n{table(by_space)}", file=sys.stderr, flush=True)
    about = {"torch": torch.__version__, "machine": platform.machine(), "seconds": time.perf_counter() - began}
    print(json.dumps({**about, "pooled": tables, "results": results}, indent=1))


if __name__ == "__main__":
    main()
