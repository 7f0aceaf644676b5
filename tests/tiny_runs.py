"""Runs on noise that take a second, and what is compared of them."""

import json

import pytest
import safetensors.torch
import torch

from iet_agc.config.settings import validate
from iet_agc.data.image_set import ImageSet
from iet_agc.runtime import distributed
from iet_agc.training import loop
from tests.processes import in_processes

CPU = torch.device("cpu")


def images(count=40, channels=1, size=8, seed=0):
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, channels, size, size), generator=rng, dtype=torch.uint8)
    return ImageSet(pixels, "noise", torch.arange(count) % 4)


def settings(**changes):
    """A tiny run: 2 members, 2 rounds of 6 steps; changes as {"train.steps": 3} with __ for the dot."""
    content = {
        "model": {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "dropout": 0.0, "groups": 4},
        "method": {"members": 2, "rounds": 2, "skip_below": 0.5},
        "train": {"steps": 6, "batch_size": 8, "warmup_steps": 3, "learning_rate": 1e-3, "ema_decay": 0.9},
        "sample": {"steps": 2},
        "run": {"log_every": 2, "save_every": 4, "preview_images": 0},
    }
    return with_changes(content, changes)


def with_changes(content, changes):
    """Settings of this content, with changes as above."""
    for name, value in changes.items():
        section, field = name.split("__")
        content.setdefault(section, {})[field] = value
    return validate(content)


def uninterrupted(chosen, folder):
    """A run that nothing stopped, for the tests of a file, which is why threads are set here."""
    torch.set_num_threads(1)
    loop.train(chosen, images(), folder / "run", CPU)
    return folder / "run"


def killed_after(count, settings, data, out):
    """Train until this many steps were told of, and die there."""
    steps = []

    def dies(step):
        steps.append(step)
        if len(steps) == count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.train(settings, data, out, CPU, dies)


def weights(out, kind="raw"):
    (file,) = (out / kind).rglob("*.safetensors")
    return safetensors.torch.load_file(file)


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def assert_ends_like(whole, out):
    for kind in ("raw", "ema"):
        assert_same(weights(out, kind), weights(whole, kind))
    assert (out / "telemetry.csv").read_text() == (whole / "telemetry.csv").read_text()
    for member in ("member-0000", "member-0001"):
        assert curve(out, member) == curve(whole, member)


def curve(out, member):
    """The points of a curve, without the one column that is never the same twice."""
    points = [json.loads(line) for line in (out / "curves" / f"{member}.jsonl").read_text().splitlines()]
    return [{name: value for name, value in point.items() if name != "images_per_second"} for point in points]


def train_in(count, chosen, out, data=None, held_out=None):
    """Train in `count` processes, and leave what each of them ends with in ranks, beside out."""

    def action():
        run = loop._prepared(chosen, data or images(), out, CPU, lambda steps: None, held_out=held_out)
        run.resume()
        run.to_the_end()
        ranks = out.parent / "ranks"
        ranks.mkdir(exist_ok=True)
        for member in run.members:
            safetensors.torch.save_file(
                {**member.own(), **member.shared()}, ranks / f"{distributed.rank()}-{member.index}.safetensors"
            )

    in_processes(count, action)


def ends(out, kind):
    """What the processes of a run ended with: {member: [state of each replica]}, entries of one kind only."""
    found = {}
    for file in sorted((out.parent / "ranks").glob("*.safetensors")):
        state = safetensors.torch.load_file(file)
        member = int(file.stem.split("-")[1])
        found.setdefault(member, []).append({name: tensor for name, tensor in state.items() if name.startswith(kind)})
    return found
