"""The audit's search against the literal formulation and faiss, at one tenth of the paper's size.

Three ways to the 50 nearest of 5,000 training images for 6,554 samples of 3 x 32 x 32, measured in turns in one run:
iet_agc.metrics.nearest (exact), the literal formulation (expand, subtract, square, sum and sort, in chunks of
128 x 64) and faiss.IndexFlatL2. Half of the samples are near copies of training images, which is where rounding shows.
Where faiss is not installed, its row is left out, and a line says so. `--full` runs `nearest` at the paper's size
instead, 65,536 x 50,000, with and without flips.

`--real` compares on real images instead (faiss is needed): all of Fashion-MNIST, emoji moved and faded, crops of
photographs at 32 and 64 pixels, and noise, of which bounds say nothing. Each way lays its references out and searches,
then searches once more.

`--growth` shows how the cost grows with references, dimensions, k, and with how many pairs the bounds leave: seconds of
one core, so that other work on the machine counts little. What it would be for more references is computed from that.

    pip install 'iet-agc[faiss,fast]'
    python benchmarks/neighbors.py [--samples 6554] [--train 5000] [--repeats 5] [--threads 2] [--full | --real |
    --growth]
"""

import argparse
import gzip
import importlib
import importlib.util
import json
import math
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from iet_agc.config.data_settings import EmojiData
from iet_agc.data.datasets.emoji import read_emoji
from iet_agc.metrics import nearest
from iet_agc.metrics.neighbors import References
from iet_agc.metrics.pruned import Projection, Pruned


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


def crops(count: int, side: int) -> Tensor:
    """Square crops of scikit-learn's two photographs, of 3/4 of `side` up to 400 pixels, at that side."""
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(side)
    taken = np.empty((count, side, side, 3), np.uint8)
    for number in range(count):
        photograph = photographs[number % 2]
        edge = int(np.exp(rng.uniform(np.log(0.75 * side), np.log(400))))
        left, top = (int(rng.integers(0, room - edge + 1)) for room in photograph.size)
        box = (left, top, left + edge, top + edge)
        taken[number] = np.asarray(photograph.resize((side, side), Image.Resampling.BILINEAR, box))
    return torch.from_numpy(taken).permute(0, 3, 1, 2).contiguous()


def emoji(count: int) -> Tensor:
    """Emoji of 3 x 32 x 32, each several times: moved by up to 3 pixels, each colour faded by up to 40 %."""
    pictures = read_emoji(EmojiData())[0].images
    rng = np.random.default_rng(0)
    taken = torch.empty(count, 3, 32, 32, dtype=torch.uint8)
    for number in range(count):
        left, top = rng.integers(0, 7, 2)
        wide = pad(pictures[number % len(pictures)], (3, 3, 3, 3), value=255)[:, top : top + 32, left : left + 32]
        faded = 255 - (255 - wide.float()) * torch.from_numpy(rng.uniform(0.6, 1, (3, 1, 1)))
        taken[number] = faded.round().to(torch.uint8)
    return taken


def fashion(part: str) -> Tensor:
    place = f"/usr/share/datasets/fashion-mnist/{part}-images-idx3-ubyte.gz"
    return torch.frombuffer(bytearray(gzip.open(place).read()[16:]), dtype=torch.uint8).view(-1, 1, 28, 28)


def real_sets(queries: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, queries and references of each set."""
    yield "Fashion-MNIST", fashion("t10k")[:queries], fashion("train")
    mixed: dict[str, Callable[[int], Tensor]] = {
        "emoji 32": lambda count: emoji(20_000 + count),
        "photographs 32": lambda count: crops(30_000 + count, 32),
        "photographs 64": lambda count: crops(10_000 + count, 64),
        "noise 32": lambda count: torch.randint(256, (10_000 + count, 3, 32, 32), dtype=torch.uint8),
    }
    for name, make in mixed.items():
        images = make(queries)
        yield name, images[-queries:], images[:-queries]


class FaissFlat:
    def __init__(self, train: Tensor) -> None:
        self.faiss = importlib.import_module("faiss")
        self.faiss.omp_set_num_threads(torch.get_num_threads())
        self.index = self.faiss.IndexFlatL2(train[0].numel())
        self.index.add(train.flatten(1).float().numpy())

    def nearest(self, samples: Tensor) -> object:
        return self.index.search(samples.flatten(1).float().numpy(), 50)


class BruteForce(References):
    """`nearest` without bounds."""

    def _decided(self, queries: Tensor) -> None:
        del queries


def real(queries: int, repeats: int) -> dict[str, Any]:
    """For each set the best of `repeats` in turns, in seconds: layout and search together, then a second search."""
    device = torch.device("cpu")
    ways: dict[str, Callable[[Tensor], Any]] = {
        "faiss": FaissFlat,
        "brute_force": lambda train: BruteForce(train, 50, 4 * 1024**3, device),
        "nearest": lambda train: References(train, 50, 4 * 1024**3, device),
    }
    rows: dict[str, Any] = {}
    for name, samples, train in real_sets(queries):
        whole, again = dict.fromkeys(ways, math.inf), dict.fromkeys(ways, math.inf)
        for _ in range(repeats):
            for way, lay_out in ways.items():
                first, laid_out = timed(partial(_laid_out, lay_out, train, samples))
                second, _ = timed(partial(laid_out.nearest, samples))
                whole[way], again[way] = min(whole[way], first), min(again[way], second)
        rows[name] = {"queries": len(samples), "references": len(train), "seconds": whole, "seconds_laid_out": again}
        for key, times in (("ratio_faiss", whole), ("ratio_faiss_laid_out", again)):
            rows[name][key] = times["faiss"] / times["nearest"]
        rows[name]["ratio_to_brute_force"] = whole["nearest"] / whole["brute_force"]
        print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
    return rows


def _laid_out(lay_out: Callable[[Tensor], Any], train: Tensor, samples: Tensor) -> Any:
    """Laid out, and searched once."""
    laid_out = lay_out(train)
    laid_out.nearest(samples)
    return laid_out


#: Queries whose search is measured, and references, sides and numbers of neighbours for which it is.
GROWTH_QUERIES, GROWTH_REFERENCES = 512, (5000, 10_000, 20_000, 40_000)
GROWTH_SIDES, GROWTH_K = (16, 32, 64), (1, 50, 200)

#: References and samples for which the cost is computed.
LARGER, ASKED = (10**6, 10**7, 10**8), 10_000


def growth() -> dict[str, Any]:
    """A row for each size, and the cost of more references."""
    torch.set_num_threads(1)
    pixels = crops(max(GROWTH_REFERENCES) + GROWTH_QUERIES, 32)
    _measure(pixels[:4000], 50)  # compiles
    usual = 10_000
    some = pixels[: usual + GROWTH_QUERIES]
    rows = {f"{count:,} references": _measure(pixels[: count + GROWTH_QUERIES], 50) for count in GROWTH_REFERENCES}
    for side in GROWTH_SIDES:
        rows[f"3 x {side} x {side}"] = _measure(crops(usual + GROWTH_QUERIES, side), 50)
    rows |= {f"k = {k}": _measure(some, k) for k in GROWTH_K}
    grain = torch.Generator().manual_seed(0)
    for most in (8, 32, 128):
        noise = torch.randint(-most, most + 1, some.shape, generator=grain)
        rows[f"grain of {most} levels"] = _measure((some + noise).clamp(0, 255).to(torch.uint8), 50)
    largest = rows[f"{max(GROWTH_REFERENCES):,} references"]
    larger = {f"{count:,}": _hours(largest, count) for count in LARGER}
    return {"sizes": rows, "hours_of_one_core": larger}


def _measure(images: Tensor, k: int) -> dict[str, float]:
    """Microseconds to lay a reference out; nanoseconds of a pair; the share of pairs that bounds leave."""
    queries, references = images[-GROWTH_QUERIES:], images[:-GROWTH_QUERIES]
    pairs = len(queries) * len(references)
    began = time.process_time()
    project = Projection.of(references)
    laid_out = Pruned(references, k, project)
    ready = time.process_time()
    keys = torch.full((len(queries), k), torch.iinfo(torch.int64).max)
    laid_out.update(keys, [queries], lambda count: None)
    done = time.process_time()
    BruteForce(references, k, 2 * 1024**3, references.device).nearest(queries)
    end = time.process_time()
    radius = (keys.amax(1) // len(references)).double().sqrt()[:, None]
    (mine, off), (theirs, also_off) = project(queries), project(references)
    last = torch.cat([torch.arange(63), torch.arange(64, mine.shape[1])])
    left = torch.cdist(mine[:, last].double(), theirs[:, last].double()) <= radius + off + also_off
    return {
        "references": len(references),
        "dimensions": references[0].numel(),
        "k": k,
        "layout_us": 1e6 * (ready - began) / len(references),
        "pair_ns": 1e9 * (done - ready) / pairs,
        "pair_by_brute_force_ns": 1e9 * (end - done) / pairs,
        "left": float(left.double().mean()),
    }


def _hours(row: dict[str, float], count: int) -> dict[str, float]:
    """Hours of one core for `ASKED` samples: references laid out, and searched; by brute force."""
    pairs = ASKED * count / 3600e9
    return {
        "layout": row["layout_us"] * count / 3600e6,
        "search": row["pair_ns"] * pairs,
        "brute_force": row["pair_by_brute_force_ns"] * pairs,
    }


def growth_table(measured: dict[str, Any]) -> str:
    lines = [
        "| | layout, us a reference | ns a pair | by brute force | pairs left |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in measured["sizes"].items():
        times = f"{row['layout_us']:.0f} | {row['pair_ns']:.1f} | {row['pair_by_brute_force_ns']:.0f}"
        lines.append(f"| {name} | {times} | {100 * row['left']:.2f} % |")
    lines += ["", "| references | layout, hours | search, hours | by brute force, hours |", "| --- " * 4 + "|"]
    for name, hours in measured["hours_of_one_core"].items():
        cells = (f"{hours[key]:,.2f}" for key in ("layout", "search", "brute_force"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=6554)
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--growth", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.growth:
        measured = growth()
        print(growth_table(measured), file=sys.stderr)
        print(json.dumps({"processor": platform.processor(), "torch": torch.__version__} | measured, indent=1))
        return
    if arguments.real:
        rows = real(min(arguments.samples, 10_000), arguments.repeats)
        print(json.dumps({"processor": platform.processor(), "torch": torch.__version__, "sets": rows}, indent=1))
        return
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
