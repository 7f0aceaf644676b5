"""Which checkpoint does `MemorizationWatch` keep, with default settings, on 24 small sets of images? By what right?

    python benchmarks/small_sets.py FOLDER [--seed 0] [--only digits-3 ...] [--table]

Sets of 20 to 300 images: digits and Fashion-MNIST by class, emoji by kind, crops of two photographs. Each trains a
small U-Net in a plain loop, which calls the watch after every step and says how many there will be. What the watch
picks is then measured by more than it saw: 512 images of 20 denoising steps against the training set, the cut set by
real images that neither the training nor the watch has seen (by the training set against itself where these are fewer
than 99), and the loss of all real images that were not trained on. So are checkpoints at 12 steps, on a logarithmic
scale, and at all points of the watch: the best in hindsight is the one with the lowest loss of those that copy no more
than chance.

One JSON file per set is left in FOLDER; the same command goes on with the sets that have none. The same seed gives the
same sets and the same training; the watch's points depend on the machine, as they are taken by time: here by that of
the processor, so that other load does not move them.
"""

import argparse
import functools
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor

from iet_agc import MemorizationWatch
from iet_agc.api.memorization_watch import LossBatch
from iet_agc.config.data_settings import EmojiData, FashionMnistData
from iet_agc.data.conversion import convert
from iet_agc.data.datasets.emoji import read_emoji
from iet_agc.data.datasets.fashion_mnist import read_fashion_mnist
from iet_agc.data.image_set import unique_images
from iet_agc.metrics.curve import Measured
from iet_agc.metrics.watch import Watch
from iet_agc.runtime.files import replace_text
from iet_agc.runtime.pace import Pace
from iet_agc.runtime.progress import say
from iet_agc.runtime.seeds import generator, seeded

#: Training: steps, images of a batch, learning rate; the same for all sets, as of somebody who has not tuned them.
STEPS, BATCH, RATE = 1000, 64, 2e-3

#: Denoising steps of what the watch draws, and of what judges it; images and losses of the judgement.
DRAWN, JUDGED, SAMPLES, LOSSES = 10, 20, 512, 1024

#: Checkpoints of the hindsight, beside the watch's points.
GRID = sorted({round(20 * (STEPS / 20) ** (place / 11)) for place in range(12)})

#: At most so many images judge.
MOST_JUDGES = 400

#: Training images of each set, by name.
SIZES = {
    **dict(zip((f"digits-{kind}" for kind in range(6)), (20, 30, 40, 50, 60, 110), strict=True)),
    **dict(zip((f"fashion-{kind}" for kind in range(6)), (20, 50, 100, 150, 200, 300), strict=True)),
    **{"emoji-face": 60, "emoji-flag": 150, "emoji-person": 90, "emoji-symbol": 100, "emoji-animal": 30},
    "emoji-hand": 20,
    **{"photo-china-32": 100, "photo-china-24": 200, "photo-china-64": 24, "photo-flower-32": 150},
    **{"photo-flower-40": 60, "photo-both-32": 300},
}

#: Kinds of emoji, by words of their names.
EMOJI = {
    "face": r"\bface\b",
    "flag": r"\bflag\b",
    "person": r"\b(person|people|man|woman)\b",
    "symbol": r"\b(square|circle|button|sign|symbol|mark)\b",
    "animal": r"(animal|cat|dog|bird|fish)",
    "hand": r"\bhand",
}


# The sets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmallSet:
    """A small set of images, uint8 (N, C, H, W): trained on, held out, and seen by nobody before the judgement."""

    train: Tensor
    held_out: Tensor
    judges: Tensor


def make_sets(seed: int) -> dict[str, SmallSet]:
    """All sets, by name."""
    kinds = ((name, images[unique_images(images)[0]]) for name, images in _kinds())
    return {name: _split(images, SIZES[name], name, seed) for name, images in kinds}


def _split(images: Tensor, count: int, name: str, seed: int) -> SmallSet:
    """A quarter as many images as are trained on, and at least 10, are held out; the rest judges."""
    order = torch.randperm(len(images), generator=generator("small set", name, seed))
    held_out = max(10, count // 4)
    parts = order[:count], order[count : count + held_out], order[count + held_out :][:MOST_JUDGES]
    return SmallSet(*(images[part] for part in parts))


def _kinds() -> Iterator[tuple[str, Tensor]]:
    """The images of each kind, without equal ones."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    digits = torch.from_numpy((pixels * (255 / 16)).round().astype(np.uint8)).view(-1, 1, 8, 8)
    yield from ((f"digits-{kind}", digits[torch.from_numpy(classes == kind)]) for kind in range(6))
    fashion, _ = read_fashion_mnist(FashionMnistData())
    assert fashion.labels is not None
    for kind in range(6):
        some = fashion.take((fashion.labels == kind).nonzero()[:1000, 0])
        yield f"fashion-{kind}", convert(some, (1, 12, 12)).images
    emoji, _ = read_emoji(EmojiData(convert_to="3x12x12"))
    assert emoji.captions is not None
    for kind, words in EMOJI.items():
        found = [place for place, names in enumerate(emoji.captions) if re.search(words, " / ".join(names))]
        yield f"emoji-{kind}", emoji.images[found]
    for name in SIZES:
        if name.startswith("photo-"):
            yield name, _crops(*name.split("-")[1:])


def _crops(photograph: str, side: str) -> Tensor:
    """Parts of a photograph, or of both, side by side and of so many pixels, brought to 8 x 8."""
    from sklearn.datasets import load_sample_image

    edge, names = int(side), ("china", "flower") if photograph == "both" else (photograph,)
    crops = []
    for name in names:
        whole = Image.fromarray(load_sample_image(f"{name}.jpg"))
        places = [
            (x, y) for y in range(0, whole.height - edge + 1, edge) for x in range(0, whole.width - edge + 1, edge)
        ]
        crops += [
            np.asarray(whole.crop((x, y, x + edge, y + edge)).resize((8, 8), Image.Resampling.BOX)) for x, y in places
        ]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


# The training -----------------------------------------------------------------------------------------------


class Loop:
    """A plain training of a small U-Net, and what it draws and loses."""

    def __init__(self, images: Tensor, seed: int) -> None:
        channels, side = images.shape[1], images.shape[2]
        self.images = images.float() / 127.5 - 1
        self.scheduler = DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2", clip_sample=True)
        with seeded("small set", "weights", seed):
            self.model = UNet2DModel(
                sample_size=side,
                in_channels=channels,
                out_channels=channels,
                block_out_channels=(16, 32),
                layers_per_block=1,
                norm_num_groups=8,
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
            )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE)
        self._rng = generator("small set", "training", seed)

    def step(self) -> None:
        """One step of training."""
        places = torch.randint(len(self.images), (BATCH,), generator=self._rng)
        timesteps = torch.randint(1000, (BATCH,), generator=self._rng)
        noise = torch.randn(BATCH, *self.images.shape[1:], generator=self._rng)
        loss = self.losses_at(self.images[places], timesteps, noise).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def losses_at(self, images: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Loss of each image, (N,)."""
        noisy: Any = self.scheduler.add_noise(images, noise, timesteps)  # pyright: ignore[reportArgumentType]
        return (self.model(noisy, timesteps).sample - noise).square().mean((1, 2, 3))

    def losses(self, batch: LossBatch) -> Tensor:
        """What the watch asks for."""
        return self.losses_at(batch.images, torch.randint(1000, (len(batch.images),)), torch.randn_like(batch.images))

    @torch.no_grad()
    def draw(self, seeds: list[int], steps: int = DRAWN) -> Tensor:
        """An image for each seed, uint8 (N, C, H, W)."""
        shape = self.images.shape[1:]
        noisy = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        self.scheduler.set_timesteps(steps)
        for timestep in self.scheduler.timesteps:
            predicted = self.model(noisy, timestep).sample
            noisy = self.scheduler.step(predicted, int(timestep), noisy).prev_sample  # pyright: ignore
        return ((noisy.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    def kept(self) -> dict[str, Tensor]:
        """A copy of the weights."""
        return {name: value.clone() for name, value in self.model.state_dict().items()}


# The judgement ----------------------------------------------------------------------------------------------


class Judge:
    """Measures checkpoints of a loop by more than the watch has seen."""

    def __init__(self, loop: Loop, images: SmallSet, kept: Mapping[int, Mapping[str, Tensor]]) -> None:
        self.loop, self.kept = loop, kept
        self.real = torch.cat([images.held_out, images.judges]).float() / 127.5 - 1
        self.watch = Watch(images.train, images.judges)
        self._measured: dict[int, Measured] = {}

    @torch.no_grad()
    def loss(self, step: int) -> float:
        """Mean loss of all real images that were not trained on, at noise that is the same for all checkpoints."""
        self.loop.model.load_state_dict(self.kept[step])
        rng = generator("small set", "judgement", 0)
        places = torch.arange(LOSSES) % len(self.real)
        timesteps = (torch.arange(LOSSES) * 1000 + 500) // LOSSES
        timesteps = timesteps[torch.randperm(LOSSES, generator=rng)]
        noise = torch.randn(LOSSES, *self.real.shape[1:], generator=rng)
        parts = zip(places.split(64), timesteps.split(64), noise.split(64), strict=True)
        return float(torch.cat([self.loop.losses_at(self.real[place], at, each) for place, at, each in parts]).mean())

    def copied(self, step: int) -> Measured:
        """How much of 512 images is copied; of seeds that the watch does not draw."""
        if step not in self._measured:
            self.loop.model.load_state_dict(self.kept[step])
            seeds = torch.arange(10_000, 10_000 + SAMPLES).split(64)
            drawn = torch.cat([self.loop.draw(some.tolist(), JUDGED) for some in seeds])
            self._measured[step] = self.watch.measure(drawn)
        return self._measured[step]

    def said(self, step: int) -> dict[str, Any]:
        """What is written of a checkpoint, JSON values only."""
        found = self.copied(step)
        return {
            "step": step,
            "loss": self.loss(step),
            "copied": found.copied.model_dump(mode="json"),
            "least": found.least,
            "above_chance": found.above_chance,
        }


def run(name: str, images: SmallSet, folder: Path, seed: int) -> dict[str, Any]:
    """Train on a set, and judge what the watch picks; JSON values only."""
    loop, place = Loop(images.train, seed), folder / f"{name}.watch"
    shutil.rmtree(place, ignore_errors=True)
    with patch("iet_agc.api.memorization_watch.Pace", functools.partial(Pace, clock=time.process_time)):
        watch = MemorizationWatch(images.train, images.held_out, out=place, steps=STEPS, quiet=True)
    kept: dict[int, dict[str, Tensor]] = {}
    for step in range(1, STEPS + 1):
        loop.step()
        point = watch(step, loop.draw, loop.losses)
        if point or step in GRID:
            kept[step] = loop.kept()
    judge = Judge(loop, images, kept)
    losses = {step: judge.loss(step) for step in kept}
    say(f"{name}: trained, {len(watch.points)} points; judging {len(kept)} checkpoints")
    by_loss = sorted(kept, key=lambda step: losses[step])
    best = next((step for step in by_loss if not judge.copied(step).above_chance), None)
    picked = None if watch.best is None else judge.said(watch.best.step)
    ratio = None if picked is None or best is None else picked["loss"] / losses[best]
    return {
        "set": name,
        "seed": seed,
        "shape": [*images.train.shape[1:]],
        "train": len(images.train),
        "held_out": len(images.held_out),
        "judges": len(images.judges),
        "cut_by": judge.watch.source,
        "picked": picked,
        "best": None if best is None else judge.said(best),
        "loss_ratio": ratio,
        "no_more_than_chance": picked is not None and not picked["above_chance"],
        "within_10_percent": ratio is not None and ratio <= 1.1,
        "last": judge.said(STEPS),
        "points": [point.step for point in watch.points],
        "above_chance_at": [point.step for point in watch.points if point.above_chance],
        "cost": watch.cost,
        "losses": {str(step): loss for step, loss in sorted(losses.items())},
    }


# The table --------------------------------------------------------------------------------------------------


def _row(found: Mapping[str, Any]) -> str:
    picked, best, last = found["picked"], found["best"], found["last"]

    def told(point: Mapping[str, Any] | None) -> str:
        if point is None:
            return "none | "
        low, high = point["copied"]["ci95"]
        mark = ", above chance" if point["above_chance"] else ""
        return f"{point['step']} | {100 * point['copied']['share']:.1f} % ({100 * low:.1f} to {100 * high:.1f}){mark}"

    ratio = "" if found["loss_ratio"] is None else f"{found['loss_ratio']:.3f}"
    chance = f"{100 * last['copied']['false_alarm']:.1f} %"
    end = f"{100 * last['copied']['share']:.0f} %"
    sizes = f"{found['train']} | {found['held_out']}"
    hindsight = "none" if best is None else best["step"]
    cost = f"{len(found['points'])} | {100 * found['cost']:.1f} %"
    return f"| {found['set']} | {sizes} | {told(picked)} | {chance} | {hindsight} | {ratio} | {end} | {cost} |"


def table(folder: Path) -> str:
    """What all sets that are done have shown, failures first, in Markdown."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    found.sort(key=lambda each: (each["no_more_than_chance"] and each["within_10_percent"], each["set"]))
    honest = sum(each["no_more_than_chance"] for each in found)
    near = sum(each["within_10_percent"] for each in found)
    ends = sum(each["last"]["above_chance"] for each in found)
    head = "set | train | held out | picked step | copied there | chance | best step | loss ratio | copied at the end"
    return "\n".join(
        [
            f"{len(found)} sets: {honest} picks copy no more than chance, {near} are within 10 % of the best loss; "
            f"{ends} sets copy at the last step",
            "",
            f"| {head} | points | cost |",
            f"|{'---|' * 11}",
            *map(_row, found),
        ]
    )


def main() -> None:
    """Run the sets that are not done, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[*SIZES], default=[*SIZES], metavar="SET")
    parser.add_argument("--table", action="store_true", help="print the table of what is done, and do nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.folder.mkdir(parents=True, exist_ok=True)
    todo = [] if asked.table else [name for name in asked.only if not (asked.folder / f"{name}.json").exists()]
    sets = make_sets(asked.seed) if todo else {}
    for name in todo:
        found = run(name, sets[name], asked.folder, asked.seed)
        replace_text(asked.folder / f"{name}.json", json.dumps(found, indent=1) + "\n")
        say(_row(found))
    print(table(asked.folder))


if __name__ == "__main__":
    main()
