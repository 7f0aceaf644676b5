"""The audit's search against the literal formulation and faiss, at one tenth of the paper's size.

Three ways to the 50 nearest of 5,000 training images for 6,554 samples of 3 x 32 x 32, measured in turns in one run:
iet_agc.metrics.nearest (exact), the literal formulation (expand, subtract, square, sum and sort, in chunks of
128 x 64) and faiss.IndexFlatL2. Half of the samples are near copies of training images, which is where rounding shows.
Where faiss is not installed, its row is left out, and a line says so. `--full` runs `nearest` at the paper's size
instead, 65,536 x 50,000, with and without flips.

    pip install 'iet-agc[faiss]'
    python benchmarks/neighbors.py [--samples 6554] [--train 5000] [--repeats 5] [--threads 2] [--device cpu] [--full]
"""

import argparse
import importlib
import importlib.util
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from iet_agc.metrics import nearest


def images(num_samples: int, num_train: int) -> tuple[Tensor, Tensor]:
    """Samples, half of them near copies, and training images; uint8 (N, 3, 32, 32)."""
    rng = torch.Generator().manual_seed(0)
    train = torch.randint(256, (num_train, 3, 32, 32), dtype=torch.uint8, generator=rng)
    samples = torch.randint(256, (num_samples, 3, 32, 32), dtype=torch.uint8, generator=rng)
    copies = train[torch.arange(0, num_samples, 2) % num_train].clone()
    copies[:, 0, 0, 0] ^= 1
    samples[::2] = copies
    return samples, train


def literal(samples: Tensor, train: Tensor, k: int = 50) -> Tensor:
    """Squared L2 to the k nearest, float32 (N, k): every difference formed, every row sorted."""
    rows = []
    for queries in (samples.float() / 255).split(128):
        parts = [
            (queries[:, None] - references[None]).square().sum((2, 3, 4))
            for references in (train.float() / 255).split(64)
        ]
        rows.append(torch.cat(parts, dim=1).sort(dim=1).values[:, :k])
    return torch.cat(rows)


def faiss_search(samples: Tensor, train: Tensor, k: int = 50) -> Tensor:
    faiss = importlib.import_module("faiss")
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(train[0].numel())
    index.add((train.flatten(1).float() / 255).numpy())
    return torch.from_numpy(index.search((samples.flatten(1).float() / 255).numpy(), k)[0])


def timed(search: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = search()
    return time.perf_counter() - began, result


def compare(samples: Tensor, train: Tensor, repeats: int, device: str) -> dict[str, Any]:
    ways = {
        "nearest": lambda: nearest(samples, train, device=device)[0],
        "nearest_flips": lambda: nearest(samples, train, flips=True, device=device)[0],
    }
    if importlib.util.find_spec("faiss"):
        ways["faiss"] = lambda: faiss_search(samples, train)
    else:
        print("faiss is not installed, its row is left out: pip install 'iet-agc[faiss]'", file=sys.stderr)
    for way in ways.values():
        way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Tensor] = {}
    for _ in range(repeats):
        for name, way in ways.items():
            took, found[name] = timed(way)
            seconds[name].append(took)
    took, found["literal"] = timed(lambda: literal(samples, train))
    medians = {name: statistics.median(times) for name, times in seconds.items()} | {"literal": took}
    exact = found["nearest"][::2, 0] * 255**2
    return {
        "seconds": medians,
        "ratio_literal_to_nearest": took / medians["nearest"],
        "ratio_faiss_to_nearest": medians["faiss"] / medians["nearest"] if "faiss" in medians else None,
        "ratio_flips_to_plain": medians["nearest_flips"] / medians["nearest"],
        "near_copies_all_at_1": bool((exact.round() == 1).all()),
        "largest_relative_error_of_near_copies": {
            name: float((found[name][::2, 0].double() * 255**2 - 1).abs().max())
            for name in ("nearest", "faiss", "literal")
            if name in found
        },
    }


def full(samples: Tensor, train: Tensor, device: str) -> dict[str, Any]:
    plain, _ = timed(lambda: nearest(samples, train, device=device))
    flips, _ = timed(lambda: nearest(samples, train, flips=True, device=device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    return {"seconds": {"nearest": plain, "nearest_flips": flips}, "peak_memory_of_process_GiB": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=6554)
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count = (65_536, 50_000) if arguments.full else (arguments.samples, arguments.train)
    samples, train = images(*count)
    measured = (
        full(samples, train, arguments.device)
        if arguments.full
        else compare(samples, train, arguments.repeats, arguments.device)
    )
    about = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "device": arguments.device,
        "threads": arguments.threads,
        "samples": count[0],
        "train": count[1],
    }
    print(json.dumps(about | measured, indent=1))


if __name__ == "__main__":
    main()
