"""Every verb that writes, killed at random moments and without room on the disk: the same command ends as it should.

    python -m tests.faults --kills 100 --seed 0 --verbs train sample

Half of the kills come before a random change of the disk, half after a random time. What is there after the same
command again is byte for byte what a run without faults leaves, but for times: points of curves per second, and what
TensorBoard writes.
"""

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image

from iet_agc import cli
from tests.faulty import Outcome, contents, forked
from tests.miniature import captioned, save_captioned, save_miniature
from tests.watch_points import write_watch

TINY = {
    "data.num_train": "120",
    "data.planted_images": "2",
    "data.planted_copies": "3",
    "model.channels": "8",
    "model.groups": "4",
    "method.members": "2",
    "method.rounds": "2",
    "train.steps": "4",
    "train.batch_size": "8",
    "sample.num": "24",
    "sample.steps": "2",
    "run.save_every": "2",
    "run.log_every": "2",
    "run.preview_images": "4",
    "run.threads": "1",
    "run.device": "cpu",
}

#: What a shell would be given for each verb; "{}" is the folder of inputs, OUT what the verb writes.
COMMANDS = {
    "train": ["train", "digits-iet-agc", "--out", "OUT", *(f"--{name}={value}" for name, value in TINY.items())],
    "pipeline": [
        *("pipeline", "sd21-laion10k-default", "--out", "OUT", "--steps", "2", "--data.root", "{}/laion"),
        *("--data.convert_to", "3x16x16", "--data.cache", "none"),
    ],
    "sample": ["sample", "{}/run", "--out", "OUT", "--device", "cpu"],
    "sample-png": ["sample", "{}/run", "--out", "OUT", "--device", "cpu", "--format", "png"],
    "audit": ["audit", "--train", "{}/run", "--samples", "{}/samples", "--out", "OUT", "--device", "cpu"],
    "detect": [
        *("detect", "{}/miniature", "--prompts", "{}/prompts.txt", "--memorized", "{}/memorized.txt", "--out", "OUT"),
        *("--steps", "2", "--device", "cpu"),
    ],
    "report": ["report", "{}/audit", "--out", "OUT/page.html"],
    "compare": ["compare", "{}/audit", "--out", "OUT"],
    "curve": ["curve", "{}/watch", "--out", "OUT"],
    "report-watch": ["report", "{}/watch", "--out", "OUT/page.html"],
    "duplicates": ["duplicates", "{}/pictures", "--out", "OUT", "--keep-list", "OUT/kept.txt"],
    "shards": ["shards", "{}/pictures", "--members", "2", "--keep-together", "near", "--out", "OUT"],
    "average": ["average", "{}/run/raw", "{}/run/ema", "--out", "OUT"],
    "pack": ["pack", "{}/audit", "--out", "OUT"],
    "membership": [
        *("membership", "{}/run", "--out", "OUT", "--num", "20", "--draws", "2", "--device", "cpu"),
    ],
    "attack": [*("attack", "{}/run", "--out", "OUT", "--budget", "20", "--steps", "2", "--device", "cpu")],
    "card": ["card", "{}/run", "--audit", "{}/audit", "--out", "OUT/card.md"],
}

_UNFINISHED = re.compile(r"\.(unfinished|replaced)$")
_UNTIMED = re.compile(rb'"images_per_second": [^,}]+')


def prepare(inputs: Path) -> None:
    """Make what the verbs read: a run, its samples, their audit, a watch, captioned images, and a small pipeline."""
    for verb, out in (("train", "run"), ("sample", "samples"), ("audit", "audit")):
        done = forked(lambda verb=verb, out=out: cli.main(words_of(verb, inputs, inputs / out)))
        assert done.status == 0, done.said
    write_watch(inputs / "watch")
    save_pictures(inputs / "pictures")
    save_miniature(inputs / "miniature")
    save_captioned(inputs / "laion", captioned())
    (inputs / "prompts.txt").write_text("a red dog\na blue cat\na green bird\na house\n")
    (inputs / "memorized.txt").write_text("a red dog\n")


def save_pictures(folder: Path) -> None:
    """A dozen small images, three of them once more."""
    folder.mkdir()
    pixels = torch.randint(256, (12, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    for number in range(15):
        Image.fromarray(pixels[number % 12]).save(folder / f"{number:02}.png")


def words_of(verb: str, inputs: Path, out: Path) -> list[str]:
    """What a shell would be given for a verb, but for the name of the program."""
    return [word.replace("{}", str(inputs)).replace("OUT", str(out)) for word in COMMANDS[verb]]


def left(out: Path) -> dict[str, bytes]:
    """What a verb left, without what depends on the time it took."""
    found = {}
    for name, content in contents(out).items():
        if name.startswith("tensorboard/") or name.endswith(".lock") or name == "attack.html":
            continue
        if name == "attack.json":  # has the seconds of drawing, and its page shows them
            content = _without_seconds(content)
        if name == "identity.json":  # its seal is one of the curves, too
            content = json.dumps(json.loads(content) | {"seal": None}).encode()
        found[name] = _UNTIMED.sub(b"", content) if name.endswith(".jsonl") else content
    return found


def _without_seconds(content: bytes) -> bytes:
    """attack.json without what depends on the time that drawing took."""
    found = json.loads(content) | {"seal": None}
    for each in found["found"]["attacks"]:
        each |= {"seconds": None, "per_hour": None, "times_sampling": None}
    return json.dumps(found).encode()


class Faults:
    """One verb, and what it leaves without faults.

    Args:
        verb: a key of `COMMANDS`.
        inputs: see `prepare`.
        work: folder to write below.
    """

    def __init__(self, verb: str, inputs: Path, work: Path) -> None:
        self.verb, self.out = verb, work / verb
        words = words_of(verb, inputs, self.out)
        self.action: Callable[[], object] = lambda: cli.main(words)
        began = time.monotonic()
        done = forked(self.action)
        self.seconds, self.changes = time.monotonic() - began, done.changes
        assert done.status == 0, done.said
        self.whole = left(self.out)

    def killed(self, rng: random.Random, number: int) -> Outcome:
        """Kill it at a random moment in an empty folder, then give the same command."""
        shutil.rmtree(self.out)
        if number % 2:
            outcome = forked(self.action, seconds=rng.uniform(0, self.seconds))
        else:
            outcome = forked(self.action, before=rng.randint(1, self.changes))
        self.ends_well()
        return outcome

    def without_room(self, largest: int) -> Outcome:
        """Let no file grow beyond so many bytes in an empty folder, then give the same command with room."""
        shutil.rmtree(self.out)
        outcome = forked(self.action, largest=largest)
        check_one_line(outcome)
        unfinished = [str(path) for path in self.out.parent.rglob("*") if _UNFINISHED.search(path.name)]
        assert not unfinished, unfinished
        self.ends_well()
        return outcome

    def sizes(self) -> list[int]:
        """Of files that a full disk may cut off: none at all, and below and above half of what is written."""
        lengths = sorted(map(len, self.whole.values()))
        return sorted({0, 100, lengths[len(lengths) // 2] - 1, lengths[-1] // 2, lengths[-1] - 1})

    def ends_well(self) -> None:
        """The same command ends, and leaves what it leaves without faults."""
        done = forked(self.action)
        assert done.status == 0, done.said
        found = left(self.out)
        odd = sorted(name for name in found.keys() | self.whole.keys() if found.get(name) != self.whole.get(name))
        assert not odd, f"{self.verb} left other {odd}"
        assert not [name for name in contents(self.out.parent) if any(map(_UNFINISHED.search, name.split("/")))]


def check_one_line(outcome: Outcome) -> None:
    """Nothing failed, or it was told in one line, the last, and in nothing else that is no progress."""
    if outcome.status == 0:
        return
    lines = [line for line in re.split(r"[\r\n]+", outcome.said) if line.strip() and "%|" not in line]
    own = [line for line in lines if line.startswith("iet-agc: ")]
    assert outcome.status == 2, outcome.said
    assert lines[-1:] == own != [], outcome.said
    assert "Traceback" not in outcome.said, outcome.said


def run(verbs: list[str], kills: int, seed: int, folder: Path) -> Iterator[str]:
    """Give each verb its faults; a line about each verb.

    Raises:
        AssertionError: one did not end as it should; which verb, kill and seed is in the message.
    """
    torch.set_num_threads(1)
    (inputs := folder / "inputs").mkdir()
    prepare(inputs)
    for verb in verbs:
        faults, rng = Faults(verb, inputs, folder / "work"), random.Random(f"{seed} {verb}")
        hit = 0
        for number in range(kills):
            try:
                hit += faults.killed(rng, number).killed
            except AssertionError as error:
                raise AssertionError(f"{verb}, seed {seed}, kill {number}: {error}") from None
        refused = [faults.without_room(size).status for size in faults.sizes()].count(2)
        yield f"{verb}: {hit} of {kills} kills hit it, {refused} of {len(faults.sizes())} times without room"


def main() -> None:
    """See the top."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of each verb (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    arguments = parser.parse_args()
    os.environ["SOURCE_DATE_EPOCH"] = "1767225600"  # results are compared by their bytes, dates included
    with tempfile.TemporaryDirectory() as folder:
        for line in run(arguments.verbs, arguments.kills, arguments.seed, Path(folder)):
            print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
