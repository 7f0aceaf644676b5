"""Which held-out sets the audit trusts, and which it finds out: sets whose fault is known, since it was made.

Of each data set a sound split, set apart at random, and faulty ones: held-out images that are altered copies of
training images, crops of the same pictures, of another domain, or so alike that pixels cannot tell a copy. Samples are
30 squeezed and re-encoded copies of training images and 270 real images of the sound split. For each: the cut, how
often a held-out image is nearer to the training set than a training image (by distance, by ratio), the least share of
planted near copies below the cut, copies found, the verdict, whether `fail_above` 0.05 fails, and the verdict on
samples of which none is a copy: the 270 real ones.

    python benchmarks/held_out.py [--data digits fashion-mnist emoji stamps FOLDER] [--seeds 0 1 2] [--extractor NAME]

The table goes to stderr as Markdown, all numbers to stdout as JSON. Each seed splits and draws anew. Data that are not
on this machine are named and left out.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iet_agc.auditing.compute import audit
from iet_agc.config.settings import validate
from iet_agc.data.datasets.registry import load_dataset
from iet_agc.data.image_set import ImageSet
from iet_agc.runtime.errors import UserError

#: So many images to train on and to hold out, at most; half of the rest, where there are fewer.
_TRAIN, _HELD_OUT = 1500, 500
_COPIES, _SAMPLES = 30, 300
_STAMPS = Path("/usr/share/tuxpaint/stamps")
_SIDE = 32

#: What makes a held-out set of (training images, sound held-out images).
Fault = Callable[[Tensor, Tensor], Tensor]


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Each image as JPEG leaves it."""

    def change(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each(images, change)


def squeezed(images: Tensor, to: float) -> Tensor:
    """Squeezed to a share of the width, and back."""
    return _each(images, lambda image: image.resize((int(image.width * to), image.height), 3).resize(image.size, 3))


def cropped(images: Tensor, to: float) -> Tensor:
    """The middle of each image, of so much of its sides, at the old size."""

    def change(image: Image.Image) -> Image.Image:
        edge = image.width * (1 - to) / 2
        return image.resize(image.size, 3, (edge, edge, image.width - edge, image.height - edge))

    return _each(images, change)


def noised(images: Tensor, deviation: float) -> Tensor:
    """With Gaussian noise, in 255ths."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images.float() + deviation * noise).round().clamp(0, 255).to(torch.uint8)


def enlarged(images: Tensor, to: float) -> Tensor:
    """Reduced to a share of their sides, and back, as images from smaller ones are."""
    return _each(images, lambda image: image.resize([int(side * to) for side in image.size]).resize(image.size, 3))


def darker(images: Tensor, to: float) -> Tensor:
    """With so much of their brightness."""
    return (images.float() * to).round().to(torch.uint8)


def _all_real(made: Callable[[Tensor], Tensor]) -> "Fault":
    """Sound held-out images, all of them altered."""
    return lambda train, real: made(real)


def _each(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    rows, grey = images.permute(0, 2, 3, 1).numpy(), images.shape[1] == 1
    changed = np.stack([np.asarray(change(Image.fromarray(row[:, :, 0] if grey else row))) for row in rows])
    return torch.from_numpy(changed)[:, None] if grey else torch.from_numpy(changed).permute(0, 3, 1, 2).contiguous()


def _mixed(made: Callable[[Tensor], Tensor], share: float) -> Fault:
    """Sound held-out images, of which a share is replaced by what is made of training images."""

    def fault(train: Tensor, real: Tensor) -> Tensor:
        count = int(share * len(real))
        return torch.cat([made(train[:count]), real[count:]])

    return fault


FAULTS: Mapping[str, Fault | None] = {
    "sound": None,
    "sound, 3 % near copies": _mixed(lambda images: jpeg(images, 75), 0.03),
    "training images, noise 20": _mixed(lambda images: noised(images, 20), 1),
    "training images, JPEG 30": _mixed(lambda images: jpeg(images, 30), 1),
    "training images, squeezed to 75 %": _mixed(lambda images: squeezed(images, 0.75), 1),
    "training images, crops of 90 %": _mixed(lambda images: cropped(images, 0.9), 1),
    "training images, shifted by 1 pixel": _mixed(lambda images: torch.roll(images, 1, 3), 1),
    "half of them JPEG 30": _mixed(lambda images: jpeg(images, 30), 0.5),
    "a tenth of them squeezed to 90 %": _mixed(lambda images: squeezed(images, 0.9), 0.1),
    "a tenth of them JPEG 30": _mixed(lambda images: jpeg(images, 30), 0.1),
    "a tenth of them noise 12": _mixed(lambda images: noised(images, 12), 0.1),
    "a tenth of them crops of 90 %": _mixed(lambda images: cropped(images, 0.9), 0.1),
    "5 % of them squeezed, JPEG 85": _mixed(lambda images: jpeg(squeezed(images, 0.9), 85), 0.05),
    "5 % of them noise 12": _mixed(lambda images: noised(images, 12), 0.05),
    "2 % of them squeezed, JPEG 85": _mixed(lambda images: jpeg(squeezed(images, 0.9), 85), 0.02),
    "2 % of them noise 12": _mixed(lambda images: noised(images, 12), 0.02),
    "a tenth of them mirrored": _mixed(lambda images: images.flip(3), 0.1),
    "a third of them training images": _mixed(lambda images: images, 1 / 3),
    "99 of them, one squeezed": lambda train, real: torch.cat([jpeg(squeezed(train[:1], 0.9), 85), real[:98]]),
    "the same ones thrice": lambda train, real: torch.cat([real[: len(real) // 3]] * 3),
    "half of them black": lambda train, real: torch.cat([real[: len(real) // 2], torch.zeros_like(real)]),
    "negatives": _all_real(lambda images: 255 - images),
    "darker by half": _all_real(lambda images: darker(images, 0.5)),
    "enlarged from half the size": _all_real(lambda images: enlarged(images, 0.5)),
    "shifted by 1 pixel": _all_real(lambda images: torch.roll(images, 1, 3)),
    "noise": _all_real(lambda images: torch.randint_like(images, 256)),
}


def _pictures(files: Sequence[Path]) -> list[Image.Image]:
    found = []
    for file in files:
        image = Image.open(file).convert("RGBA")
        found.append(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))
    return found


def _crops(pictures: Sequence[Image.Image], each: int, sides: tuple[float, float], seed: int) -> tuple[Tensor, Tensor]:
    """Crops of each picture at random, and which picture each is of."""
    rng, crops = np.random.default_rng(seed), []
    for picture in pictures:
        for _ in range(each):
            width, height = (max(1, int(side * rng.uniform(*sides))) for side in picture.size)
            left = int(rng.integers(0, picture.width - width + 1))
            top = int(rng.integers(0, picture.height - height + 1))
            crops.append(np.asarray(picture.resize((_SIDE, _SIDE), 3, (left, top, left + width, top + height))))
    of = torch.arange(len(pictures)).repeat_interleave(each)
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous(), of


def _images(data: str) -> Tensor:
    """All images of a data set by its name, or of a folder."""
    if Path(data).is_dir():
        files = sorted(Path(data).rglob("*.png"))
        return _crops(_pictures(files), 1, (1, 1), 0)[0]
    train, held_out = load_dataset(validate({"data": {"name": data}}).data)
    return torch.cat([train.images, held_out.images])


def _cases(data: str, seed: int) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Name of the case, training images, held-out images, and real images that are neither."""
    order = torch.Generator().manual_seed(seed)
    if data == "stamps":
        yield from _stamps(seed)
        return
    images = _images(data)
    images = images[torch.randperm(len(images), generator=order)]
    train, real, rest = images.split([_sizes(len(images))[0], _sizes(len(images))[1], _sizes(len(images))[2]])
    for name, fault in FAULTS.items():
        yield name, train, real if fault is None else fault(train, real), rest


def _sizes(total: int) -> tuple[int, int, int]:
    held_out, rest = min(_HELD_OUT, total // 4), min(_SAMPLES, total // 6)
    train = min(_TRAIN, total - held_out - rest)
    return train, held_out, total - train - held_out


def _stamps(seed: int) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Pictures in crops: the same photographs on both sides, or not."""
    pictures = _pictures(sorted(_STAMPS.rglob("*.png")))
    crops, of = _crops(pictures, 4, (0.8, 1), seed)
    generator = torch.Generator().manual_seed(seed)
    order, which = torch.randperm(len(crops), generator=generator), torch.randperm(len(pictures), generator=generator)
    part = which[of] % 5
    yield "crops, split by photograph", crops[part < 3], crops[part == 3], crops[part == 4]
    a, b, c = order.split([len(order) * 3 // 5, len(order) // 5, len(order) - len(order) * 3 // 5 - len(order) // 5])
    yield "crops, split at random", crops[a], crops[b], crops[c]
    whole, _ = _crops(pictures, 1, (1, 1), seed)
    train, rest = whole[which % 5 < 4], whole[which % 5 == 4]
    known = [picture for picture, one in zip(pictures, which % 5, strict=True) if one < 4]
    for low, high in ((0.95, 0.99), (0.85, 0.95), (0.6, 0.8)):
        name = f"crops of {100 * low:.0f} to {100 * high:.0f} % of the training images"
        yield name, train, _crops(known, 1, (low, high), seed)[0], rest


def run(data: str, seed: int, extractor: str | None) -> Iterator[dict[str, object]]:
    """One row per case."""
    for name, train, held_out, rest in _cases(data, seed):
        copies = jpeg(squeezed(train[-_COPIES:], 0.9), 85)
        samples = torch.cat([copies, rest[: _SAMPLES - _COPIES]])
        sets = [ImageSet(images, what) for images, what in ((train, "train"), (samples, "samples"), (held_out, "real"))]
        networks, quality = ([extractor] if extractor else []), bool(extractor)
        innocent = ImageSet(samples[_COPIES:], "innocent")
        try:
            numbers = audit(*sets, extractors=networks, measure_quality=quality, fail_above=0.05).numbers
            harmless = audit(sets[0], innocent, sets[2], measure_quality=False).numbers.verdict
        except UserError as error:
            yield {"data": data, "case": name, "seed": seed, "refused": str(error)}
            continue
        check, found, gate, verdict = numbers.held_out_check, numbers.calibrated, numbers.gate, numbers.verdict
        if not (check and found and gate and verdict and harmless):
            raise UserError(f"{name}: held-out images are too few to set a cut")
        yield {
            "data": data,
            "case": name,
            "seed": seed,
            "cut": found.cut,
            "near": check.near_copies.share,
            "left_out": check.left_out,
            "innocent": harmless.outcome,
            "nearer": {by: area.value for by, area in check.nearer.items()},
            "found": {kind: each.share for kind, each in check.found.items()},
            "copies": found.count,
            "verdict": verdict.outcome,
            "by": verdict.by,
            "reasons": {str(way): [one.code for one in each.reasons] for way, each in numbers.checks().items() if each},
            "failed": gate.failed,
        }


def _row(row: Mapping[str, object]) -> str:
    if "refused" in row:
        cells = [row["data"], row["case"], row["seed"], *["-"] * 6, "refused", "exit 2", "-"]
        return f"| {' | '.join(map(str, cells))} |"
    nearer, found, reasons = row["nearer"], row["found"], row["reasons"]
    assert isinstance(nearer, dict)
    assert isinstance(found, dict)
    assert isinstance(reasons, dict)
    why = {way: ", ".join(codes) for way, codes in reasons.items()}
    cells = [
        *(row["data"], row["case"], row["seed"], f"{row['cut']:.3f}", f"{row['near']:.3f}"),
        *(f"{nearer.get(by, float('nan')):.3f}" for by in ("distance", "ratio")),
        *(f"{min(found.values()):.2f}", row["copies"]),
        f"{row['verdict']} ({'; '.join(f'{way}: {codes}' for way, codes in why.items() if codes)})",
        "fails" if row["failed"] else "passes",
        row["innocent"],
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits", "fashion-mnist", "emoji", "stamps"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--extractor", help="features to look for copies in besides pixels; by default pixels only")
    asked = parser.parse_args()
    titles = [
        "data",
        "case",
        "seed",
        "cut",
        "near",
        "nearer d",
        "nearer r",
        "found",
        "copies",
        "verdict",
        "gate",
        "innocent",
    ]
    print(f"| {' | '.join(titles)} |\n|{' - |' * len(titles)}", file=sys.stderr, flush=True)
    rows = []
    for data in asked.data:
        for seed in asked.seeds:
            try:
                for row in run(data, seed, asked.extractor):
                    rows.append(row)
                    print(_row(row), file=sys.stderr, flush=True)
            except (UserError, OSError) as error:
                print(f"{data}: left out: {error}", file=sys.stderr)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
