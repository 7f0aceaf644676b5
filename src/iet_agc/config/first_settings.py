"""First settings for a folder of images: size, network, method and length, from what the folder holds. No torch.

Pure functions of numbers. The rules are rules of thumb: they give a run that fits images and machine, not the best one.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from iet_agc.config.settings import Settings, validate
from iet_agc.runtime.errors import UserError

__all__ = [
    "ENOUGH_HELD_OUT",
    "LEAST_IMAGES",
    "Choice",
    "Found",
    "Machine",
    "Method",
    "as_settings",
    "as_toml",
    "choose_size",
    "first_settings",
    "num_held_out",
]

Method = Literal["agc", "iet-agc", "iet", "default"]

#: Where AGC skips: alone, where it copied least at the best distance on our own board (docs/what-to-train-with.md);
#: with an ensemble, as the paper does.
_SKIP_BELOW: dict[Method, tuple[float, str]] = {
    "agc": (0.8, "samples whose loss is below 0.8 of the usual one are skipped; 0 skips none"),
    "iet-agc": (0.5, "samples whose loss is below half of the usual one are skipped"),
}

#: Of fewer images nothing can be learnt, and held-out images say nothing.
LEAST_IMAGES = 8

#: Held-out images that a calibrated cut needs, see `iet_agc.metrics.memorization`.
ENOUGH_HELD_OUT = 99

#: Sides that images are brought to, in pixels, and the largest that is chosen unasked, by device.
_SIZES, _LARGEST = (8, 16, 32, 64, 128, 256), {"cpu": 32, "cuda": 128}

#: Width and depth of the network, by device.
_CHANNELS, _BLOCKS = {"cpu": 32, "cuda": 64}, {"cpu": 1, "cuda": 2}

#: Widths of the levels as multiples of the first, by number of levels.
_MULTIPLIERS = {1: (1,), 2: (1, 2), 3: (1, 2, 2), 4: (1, 2, 2, 4), 5: (1, 1, 2, 2, 4), 6: (1, 1, 2, 2, 4, 4)}

#: A level of at least this height is halved once more; attention stands at the first level of at most the other.
_HALVED_FROM, _ATTENTION_TO = 14, 16

#: Images seen in training, unless that is more or fewer epochs than these. A network needs thousands of steps to draw,
#: of however few images; whether it copies them by then is what the watch is for, so often in a run.
_SEEN, _EPOCHS, _POINTS = 200_000, (50, 1000), 10

#: Ensembles: members by the least number of training images, so that each takes more than a thousand steps. The paper
#: has 10 of 4,739 and of 50,000 images, and trains them for longer.
_MEMBERS = ((20_000, 10), (1000, 4), (40, 2))

#: Images per step, at most: few, so that small sets get many steps; and from so many training images on, more.
_BATCH, _BATCH_OF_MANY, _MANY = 32, 64, 4000

#: EMA decay by the steps of a member below which it holds: of the first weights little may be left.
_EMA_DECAY = ((5_000, 0.995), (20_000, 0.999), (sys.maxsize, 0.9999))

#: Rounds, unless they come out shorter than so many steps.
_ROUNDS, _LEAST_STEPS = 10, 20

#: Bytes that a residual block keeps for the gradient, by pixel and channel; the share of memory that a step may take.
_KEPT, _SHARE = 60, 1 / 2


@dataclass(frozen=True)
class Found:
    """What a folder holds, as far as settings follow from it.

    Attributes:
        root: the folder, an absolute path.
        images: how many can be used, and are no copies of others where these are left out.
        channels: 1 or 3.
        size: pixels of a side that all are brought to.
        as_they_are: whether all have that size and need no conversion.
        held_out: folder of held-out images, an absolute path, or None.
        deduplicate: "exact" or "near" where there are such copies.
        mending: options of section data that mend files, with why each is needed.
        captions: setting of data.captions that fits, or None.
        classes: number of subfolders that hold images, where all of them stand in some.
    """

    root: str
    images: int
    channels: int
    size: int
    as_they_are: bool = False
    held_out: str | None = None
    deduplicate: Literal["exact", "near"] | None = None
    mending: Sequence[tuple[str, object, str]] = ()
    captions: str | None = None
    classes: int = 0


@dataclass(frozen=True)
class Machine:
    """Where training will take place: the kind of device, and the bytes of memory that it has."""

    device: Literal["cpu", "cuda"]
    memory: int


@dataclass(frozen=True)
class Choice:
    """A setting, and why it is so; one that is only proposed stands in the file as a comment."""

    section: str
    name: str
    value: object
    why: str
    proposed: bool = False


def choose_size(sides: Sequence[int], equal: bool, device: Literal["cpu", "cuda"], wanted: int | None = None) -> int:
    """The side, in pixels, that images are brought to.

    Args:
        sides: the shorter side of each image.
        equal: whether all images are squares of one size.
        device: where training takes place.
        wanted: what a person asks for.

    Raises:
        UserError: a size that no network halves, or images of less than 8 pixels.
    """
    median = sorted(sides)[len(sides) // 2]
    if wanted is not None:
        if not _SIZES[0] <= wanted <= _SIZES[-1] or wanted % 8:
            raise UserError(f"size {wanted}: give a multiple of 8 from {_SIZES[0]} to {_SIZES[-1]}", "size")
        return wanted
    if median < _SIZES[0]:
        raise UserError(
            f"half of the images have a side of at most {median} pixels, training needs {_SIZES[0]}: give larger ones"
        )
    most = _LARGEST[device]
    if equal and median <= most and median % 4 == 0:
        return median
    return max(size for size in _SIZES if size <= min(median, most))


def num_held_out(images: int) -> int:
    """How many images of a folder are held out: a tenth, but 120 at least, for the audit's cut needs 99, and at most a
    third; of a folder too small for 120, a fifth."""
    return max(120, images // 10) if images >= 360 else max(2, images // 5)


def first_settings(found: Found, machine: Machine, method: Method = "agc") -> list[Choice]:
    """The settings of a first run, by section.

    Raises:
        UserError: too few images, or an unknown method.
    """
    if method not in get_args(Method):
        raise UserError(f"method {method!r}: give one of {', '.join(get_args(Method))}", "method")
    if found.images < LEAST_IMAGES:
        raise UserError(
            f"{found.root} holds {found.images} images that differ and can be used, and training needs "
            f"{LEAST_IMAGES} at the very least, some hundreds to learn from: give more"
        )
    num_train = found.images if found.held_out else found.images - num_held_out(found.images)
    members = next((count for least, count in _MEMBERS if num_train >= least), 1) if "iet" in method else 1
    return [
        Choice("", "description", f"{method} on {Path(found.root).name}: {num_train} images of {_shape(found)}", ""),
        *_data(found, num_train),
        *_model(found, machine),
        *_method(method, members, num_train),
        *_length(found, machine, members, num_train),
        Choice("sample", "weights", "ema", "an average over the last steps; weights as trained are noisier"),
        Choice("sample", "num", 1024, "images that 'iet-agc sample' draws; an audit's intervals narrow with more"),
        Choice("run", "save_every", 200, "steps between bundles: a kill loses no more"),
        Choice("run", "log_every", 20, "steps between points of the curves"),
        Choice("run", "preview_images", 16, "drawn after each round"),
    ]


def _shape(found: Found) -> str:
    return f"{found.channels}x{found.size}x{found.size}"


def _data(found: Found, num_train: int) -> list[Choice]:
    choices = [Choice("data", "name", "folder", ""), Choice("data", "root", found.root, "")]
    if not found.as_they_are:
        grey = "grey" if found.channels == 1 else "colour"
        choices.append(Choice("data", "convert_to", _shape(found), f"{grey}; the largest centred square, resized"))
    choices += [Choice("data", *mended) for mended in found.mending]
    if found.deduplicate:
        why = "one image of each group of copies is trained on; copies are what models memorize first"
        choices.append(Choice("data", "deduplicate", found.deduplicate, why))
    if found.held_out:
        choices.append(Choice("data", "held_out", found.held_out, "never trained on; audits compare with them"))
    else:
        left = found.images - num_train
        why = f"of {found.images}, drawn by data.seed; the other {left} are held out, and audits compare with them"
        choices.append(Choice("data", "num_train", num_train, why))
    choices.append(
        Choice("data", "flips", True, "mirrors images at random, where left and right do not matter", proposed=True)
    )
    if found.captions:
        why = "there are captions; they take model.kind text-to-image and a pipeline as init.model"
        choices.append(Choice("data", "captions", found.captions, why, proposed=True))
    if found.classes > 1:
        why = f"a class per subfolder; with model.classes = {found.classes}, a class-conditional model"
        choices.append(Choice("data", "classes", "folders", why, proposed=True))
    return choices


def _heights(size: int) -> list[int]:
    """Of the network's levels, in pixels."""
    heights = [size]
    while heights[-1] >= _HALVED_FROM and heights[-1] % 2 == 0 and len(heights) < len(_MULTIPLIERS):
        heights.append(heights[-1] // 2)
    return heights if len(heights) > 1 or size % 2 else [size, size // 2]


def _model(found: Found, machine: Machine) -> list[Choice]:
    heights = _heights(found.size)
    attention = [height for height in heights if height <= _ATTENTION_TO][:1] if len(heights) > 2 else []
    levels = ", ".join(map(str, heights))
    return [
        Choice("model", "channels", _CHANNELS[machine.device], "of the first level; more is slower, and may be finer"),
        Choice("model", "multipliers", list(_MULTIPLIERS[len(heights)]), f"levels of {levels} pixels"),
        Choice("model", "blocks", _BLOCKS[machine.device], "residual blocks per level"),
        Choice("model", "attention", attention, "heights at which pixels attend to each other"),
        Choice("model", "dropout", 0.1, ""),
        Choice("model", "groups", 8, ""),
    ]


def _method(method: Method, members: int, num_train: int) -> list[Choice]:
    shards = f"{members} members, each with {num_train // members} images of its own"
    if "iet" in method and members == 1:
        shards = f"{num_train} images are too few to be shared among members"
    choices = [Choice("method", "members", members, shards if "iet" in method else "one model, no ensemble")]
    if method in _SKIP_BELOW:
        choices += [
            Choice("method", "skip_below", *_SKIP_BELOW[method]),
            Choice("method", "decay", 0.8, "of the usual loss, per sample"),
        ]
    return choices


def _length(found: Found, machine: Machine, members: int, num_train: int) -> list[Choice]:
    fewest, most = _EPOCHS
    epochs = min(most, max(fewest, _SEEN // num_train))
    batch = _batch(found.size, machine, num_train // members, _BATCH if num_train < _MANY else _BATCH_OF_MANY)
    total = -(-epochs * num_train // (members * batch))  # steps of a member
    rounds = min(_ROUNDS, max(1, total // _LEAST_STEPS)) if members > 1 else 1
    steps = -(-total // rounds)
    seen = members * rounds * steps * batch
    return [
        Choice(
            "method",
            "rounds",
            rounds,
            "after each, the members are averaged; while previews are noise, raise it: training goes on"
            if members > 1
            else "",
        ),
        Choice("train", "steps", steps, f"per member and round; images seen: {seen:,}, about {epochs} epochs"),
        Choice("train", "batch_size", batch, "fits the memory"),
        Choice("train", "learning_rate", 1e-3 if _CHANNELS[machine.device] <= 32 else 2e-4, ""),
        Choice("train", "warmup_steps", min(500, max(1, total // 20)), "over which the learning rate rises"),
        Choice("train", "ema_decay", next(decay for most, decay in _EMA_DECAY if total < most), ""),
        Choice("run", "watch_every", steps if rounds > 1 else -(-total // _POINTS), "steps between looks for copies"),
        Choice("run", "stop_when_copying", True, "ends training where copies are found; the model before them stays"),
    ]


def _batch(size: int, machine: Machine, shard: int, most: int) -> int:
    """The largest power of two up to `most` whose activations fit, and that is no larger than a shard."""
    heights, channels, blocks = _heights(size), _CHANNELS[machine.device], _BLOCKS[machine.device]
    pixels = sum(width * height**2 for width, height in zip(_MULTIPLIERS[len(heights)], heights, strict=True))
    image = _KEPT * channels * pixels * (2 * blocks + 1)
    return next((b for b in (64, 32, 16, 8, 4, 2) if b * image <= _SHARE * machine.memory and b <= min(shard, most)), 1)


def as_settings(choices: Sequence[Choice], name: str) -> Settings:
    """The settings that the choices make, as `load_preset` reads them from `as_toml`."""
    content: dict[str, object] = {"name": name}
    for section, entries in groupby(_by_section(choices), lambda choice: choice.section):
        chosen = {each.name: each.value for each in entries if not each.proposed}
        content |= {section: chosen} if section else chosen
    return validate(content)


def as_toml(choices: Sequence[Choice], heading: Sequence[str]) -> str:
    """A file of settings, each with its reason.

    Args:
        choices: what it says.
        heading: lines of the comment at its top.
    """
    lines = [f"# {line}".rstrip() for line in heading]
    for section, entries in groupby(_by_section(choices), lambda choice: choice.section):
        lines += ["", *([f"[{section}]"] if section else [])]
        for each in entries:
            line = f"{'# ' * each.proposed}{each.name} = {json.dumps(each.value, ensure_ascii=False)}"
            lines.append(f"{line:<28} # {each.why}" if each.why else line)
    return "\n".join(lines) + "\n"


def _by_section(choices: Sequence[Choice]) -> list[Choice]:
    """The choices in the order of the settings' sections."""
    order = ["", *Settings.model_fields]
    return sorted(choices, key=lambda choice: order.index(choice.section))
