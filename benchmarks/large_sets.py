"""An audit against more training images than its working memory holds: time by part, and what the process took.

    python benchmarks/large_sets.py [FOLDER] [--train 100000] [--samples 1000] [--size 32] [--memory 1] [--seed 0]
    python benchmarks/large_sets.py --train 1000000 --samples 10000
    python benchmarks/large_sets.py --train 20000 --samples 2000 --size 256 --memory 1.4

Training images are crops of two photographs (scikit-learn's) at random places and scales, in an .npy file that is
mapped, not read. Half of the samples are such crops with noise, so copies; the others and the held-out images are crops
of their own. The audit is a process of its own, `iet-agc audit --no-quality`. What it takes is read off the kernel:
resident memory that is its own (anonymous), and all of it; pages of the mapped file, which the machine takes back
whenever it needs them, count in the second number only.

The files stay in FOLDER: the same command measures again. Numbers go to stdout as JSON.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.nn.functional import interpolate

#: Seconds between looks at the process.
EVERY = 0.05

#: Images that are made at a time, and how many are held out.
AT_ONCE, HELD_OUT = 1000, 1000


@cache
def photographs() -> list[Tensor]:
    """scikit-learn's two, uint8 (3, H, W)."""
    return [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]


def crops(count: int, size: int, rng: torch.Generator) -> Tensor:
    """Square parts of the photographs, 1 to 4 times as large as they become, uint8 (count, 3, size, size)."""
    largest = min(min(image.shape[1:]) for image in photographs())
    out = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for group in range(8):  # of one scale and photograph each
        mine = range(group, count, 8)
        image = photographs()[group % 2]
        edge = min(largest, round(size * (1 + 3 * (group // 2) / 3)))
        small = interpolate(image[None].float(), scale_factor=size / edge, mode="bilinear", antialias=True)[0]
        parts = small.round().to(torch.int16).unfold(1, size, 1).unfold(2, size, 1)
        rows = torch.randint(parts.shape[1], (len(mine),), generator=rng)
        columns = torch.randint(parts.shape[2], (len(mine),), generator=rng)
        grain = torch.randint(-6, 7, (len(mine), 3, size, size), generator=rng, dtype=torch.int16)
        out[group::8] = grain.add_(parts[:, rows, columns].transpose(0, 1)).clamp_(0, 255).to(torch.uint8)
    return out


def make(folder: Path, num_train: int, num_samples: int, size: int, seed: int) -> None:
    """The three sets, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "done").exists():
        return
    rng = torch.Generator().manual_seed(seed)
    file = np.lib.format.open_memmap(folder / "train.npy", "w+", np.uint8, (num_train, 3, size, size))
    originals = []
    for start in range(0, num_train, AT_ONCE):
        some = crops(min(AT_ONCE, num_train - start), size, rng)
        file[start : start + len(some)] = some.numpy()
        originals.append(some[: -(-num_samples * AT_ONCE // (2 * num_train))])
    file.flush()
    copied = torch.cat(originals)[: num_samples // 2].float()
    copies = (copied + 3 * torch.randn(copied.shape, generator=rng)).round().clamp(0, 255).to(torch.uint8)
    samples = torch.cat([copies, crops(num_samples - len(copies), size, rng)])
    np.save(folder / "samples.npy", samples.numpy())
    np.save(folder / "held-out.npy", crops(HELD_OUT, size, rng).numpy())
    (folder / "done").touch()


def measured(command: list[str]) -> tuple[float, float, dict[str, float]]:
    """Seconds, those of the processor, and the most GiB that the process held."""
    began, most = time.perf_counter(), {"own": 0.0, "all": 0.0}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            for name, key in (("own", "RssAnon"), ("all", "VmRSS")):
                if found := re.search(rf"{key}:\s+(\d+) kB", text):
                    most[name] = max(most[name], int(found[1]) / 2**20)
            time.sleep(EVERY)
        if process.returncode:
            raise SystemExit(process.returncode)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, spent.ru_utime + spent.ru_stime, most


def machine() -> str:
    """The processor, by its own name where the kernel tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"model name\s*: (.+)", text)
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/large-sets"))
    parser.add_argument("--train", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--memory", type=float, default=1.0, help="GiB")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = asked.folder / f"{asked.train}-{asked.samples}-{asked.size}-{asked.seed}"
    make(folder, asked.train, asked.samples, asked.size, asked.seed)
    out = folder / "audit"
    shutil.rmtree(out, ignore_errors=True)
    sets = [f"--{name}={folder / name}.npy" for name in ("train", "samples", "held-out")]
    command = [sys.executable, "-m", "iet_agc", "audit", *sets, "--out", str(out), "--no-quality"]
    seconds, of_processor, most = measured([*command, "--memory", f"{asked.memory:g}"])
    record = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    found = {
        "train": asked.train,
        "samples": asked.samples,
        "shape": [3, asked.size, asked.size],
        "memory_gib": asked.memory,
        "seconds": round(seconds, 1),
        "processor_seconds": round(of_processor, 1),
        "most_gib": {name: round(value, 2) for name, value in most.items()},
        "copied": record["calibrated"]["share"],
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
