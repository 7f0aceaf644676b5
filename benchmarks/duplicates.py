"""What `iet-agc duplicates` finds, on sets whose copies are known because they were planted; and how long it takes.

Into a set of real images go changed copies of some of them, one of each, as many for every kind of change, all at
once. For each kind: the share of copies that end up in the group of their original. Beside it, images that were
linked to others without being planted: real near duplicates of the data among them, so they are drawn into a picture
(`--pictures FOLDER`) to be looked at. `--time` measures 50,000 images of 3 x 32 x 32 instead.

    python benchmarks/duplicates.py [--data digits fashion-mnist emoji FOLDER] [--seeds 0 1 2] [--images 2500]
        [--copies 30] [--pictures FOLDER]
    python benchmarks/duplicates.py --time [--images 50000] [--threads 2]

Tables go to stderr as Markdown, all numbers to stdout as JSON. A FOLDER is one of photographs, brought to 3 x 64 x 64.
Data that are not on this machine are named and left out.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.transforms.v2 import functional as change
from torchvision.utils import make_grid, save_image

from iet_agc.auditing.sources import load_part
from iet_agc.metrics.duplicates import Group, duplicate_groups, representatives
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import generator

#: What folders of photographs are brought to.
SHAPE = (3, 64, 64)


def compressed(images: Tensor, quality: int) -> Tensor:
    """Through JPEG, as Pillow writes and reads it."""
    result = []
    for image in images:
        file = BytesIO()
        change.to_pil_image(image).save(file, "JPEG", quality=quality)
        with Image.open(file) as read:
            result.append(change.pil_to_tensor(read))
    return torch.stack(result)


def resized(images: Tensor, scale: float) -> Tensor:
    """Down and up again, bilinear with antialiasing."""
    size = list(images.shape[-2:])
    return change.resize(change.resize(images, [max(1, round(side * scale)) for side in size]), size)


def noised(images: Tensor, deviation: float, rng: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=rng) * deviation
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


def cropped(images: Tensor, keep: float, rng: torch.Generator) -> Tensor:
    """A part anywhere in the image, enlarged to the old size."""
    height, width = images.shape[-2:]
    rows, columns = round(keep * height), round(keep * width)
    result = []
    for image in images:
        top, left = (int(torch.randint(most + 1, (1,), generator=rng)) for most in (height - rows, width - columns))
        result.append(change.resize(image[:, top : top + rows, left : left + columns], [height, width]))
    return torch.stack(result)


def shifted(images: Tensor, pixels: int) -> Tensor:
    """Moved to the right; the left edge is repeated."""
    return change.pad(images, [pixels, 0, 0, 0], padding_mode="edge")[..., : images.shape[-1]]


def brighter(images: Tensor, gain: float) -> Tensor:
    return (images * gain).round().clamp(0, 255).to(torch.uint8)


KINDS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "exact": lambda images, rng: images.clone(),
    "mirrored": lambda images, rng: images.flip(-1),
    "JPEG 90": lambda images, rng: compressed(images, 90),
    "JPEG 50": lambda images, rng: compressed(images, 50),
    "JPEG 20": lambda images, rng: compressed(images, 20),
    "mirrored, JPEG 50": lambda images, rng: compressed(images.flip(-1), 50),
    "resized to 75 %": lambda images, rng: resized(images, 0.75),
    "resized to 50 %": lambda images, rng: resized(images, 0.5),
    "noise, sd 5": lambda images, rng: noised(images, 5, rng),
    "noise, sd 10": lambda images, rng: noised(images, 10, rng),
    "cropped to 95 %": lambda images, rng: cropped(images, 0.95, rng),
    "cropped to 90 %": lambda images, rng: cropped(images, 0.9, rng),
    "cropped to 80 %": lambda images, rng: cropped(images, 0.8, rng),
    "shifted by 1 pixel": lambda images, rng: shifted(images, 1),
    "shifted by 2 pixels": lambda images, rng: shifted(images, 2),
    "shifted by 4 pixels": lambda images, rng: shifted(images, 4),
    "brighter by 10 %": lambda images, rng: brighter(images, 1.1),
    "darker by 10 %": lambda images, rng: brighter(images, 0.9),
}


def read(name: str) -> Tensor:
    """Images of a named set or a folder, each there once."""
    images = load_part(name, "train", SHAPE if Path(name).is_dir() else None)[0].images
    return images[representatives(duplicate_groups(images, near=False, flips=False), len(images))]


def planted(images: Tensor, count: int, copies: int, seed: int) -> tuple[Tensor, Tensor]:
    """Real images, then changed ones; and which original each of these comes from."""
    rng = generator("duplicates", seed)
    chosen = images[torch.randperm(len(images), generator=rng)[:count]]
    copies = min(copies, len(chosen) // len(KINDS))
    origin = torch.arange(copies * len(KINDS))
    changed = [kind(chosen[some], rng) for kind, some in zip(KINDS.values(), origin.split(copies), strict=True)]
    return torch.cat([chosen, *changed]), origin


def found(groups: Sequence[Group], origin: Tensor, real: int) -> tuple[dict[str, float], list[list[int]]]:
    """The share of copies of each kind that stand in their original's group; and groups of several real images."""
    of = {member.image: number for number, group in enumerate(groups) for member in group.members}
    hits = [of.get(real + at, -1) == of.get(first, -2) for at, first in enumerate(origin.tolist())]
    each = len(hits) // len(KINDS)
    shares = {kind: mean(hits[at * each : (at + 1) * each]) for at, kind in enumerate(KINDS)}
    real_ones = [[member.image for member in group.members if member.image < real] for group in groups]
    return shares, [several for several in real_ones if len(several) > 1]


def draw(images: Tensor, linked: Sequence[Sequence[int]], file: Path) -> None:
    """The first two of each group side by side, ten groups a row."""
    if linked:
        pairs = images[torch.tensor([several[:2] for several in linked]).flatten()].float() / 255
        large = interpolate(pairs, scale_factor=max(1, 64 // images.shape[-1]))
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(make_grid(large, nrow=20, pad_value=0.5), file)


def measure(name: str, seeds: Sequence[int], count: int, copies: int, pictures: Path | None) -> dict[str, Any]:
    images, by_seed, beyond, total = read(name), [], 0, 0
    for seed in seeds:
        together, origin = planted(images, count, copies, seed)
        real = len(together) - len(origin)
        shares, linked = found(duplicate_groups(together), origin, real)
        by_seed.append(shares)
        beyond, total = beyond + sum(len(several) - 1 for several in linked), total + real
        if pictures:
            draw(together, linked, pictures / f"{Path(name).name}-{seed}.png")
    return {
        "images": total // len(seeds),
        "found": {kind: [shares[kind] for shares in by_seed] for kind in KINDS},
        "linked_unplanted": beyond,
        "linked_unplanted_per_10000": 1e4 * beyond / total,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    lines = [f"| copy | {' | '.join(results)} |", "|---" * (len(results) + 1) + "|"]
    for kind in KINDS:
        cells = [f"{100 * mean(result['found'][kind]):.0f} %" for result in results.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    unplanted = [f"{result['linked_unplanted_per_10000']:.0f}" for result in results.values()]
    return "\n".join([*lines, f"| images linked that were not planted, per 10,000 | {' | '.join(unplanted)} |"])


def timed(count: int) -> dict[str, Any]:
    """Seconds for Fashion-MNIST's images in random colours, 3 x 32 x 32, a tenth of them noisy copies of others."""
    rng = generator("duplicates", 0)
    grey = load_part("fashion-mnist", "train")[0].images[: count - count // 10]
    colours = 0.4 + 0.6 * torch.rand(len(grey), 3, 1, 1, generator=rng)
    images = (pad(grey, (2, 2, 2, 2)) * colours).round().to(torch.uint8)
    images = torch.cat([images, noised(images[: count // 10], 5, rng)])
    began, worked = time.perf_counter(), time.process_time()
    groups = duplicate_groups(images)
    return {
        "images": count,
        "seconds": round(time.perf_counter() - began, 1),
        "processor_seconds": round(time.process_time() - worked, 1),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "groups": len(groups),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits", "fashion-mnist", "emoji"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int)
    parser.add_argument("--copies", type=int, default=30)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {}
    if arguments.time:
        results["time"] = timed(arguments.images or 50_000)
    else:
        for name in arguments.data:
            try:
                given = (arguments.seeds, arguments.images or 2500, arguments.copies, arguments.pictures)
                results[Path(name).name] = measure(name, *given)
            except UserError as error:
                print(f"left out: {error}", file=sys.stderr)
        print(table(results), file=sys.stderr)
    machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
    print(json.dumps(machine | results, indent=1))


if __name__ == "__main__":
    main()
