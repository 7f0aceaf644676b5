"""How often do 95 % intervals hold? Simulated: shares over training seeds, their differences, shares by prompt.

    python benchmarks/intervals.py [--draws 4000] [--seed 0]

Seeds: each of K runs has a share of its own, drawn with a mean and a spread (coefficient of variation of its odds), as
a logit-normal or a beta variable; of n samples a binomial number is copied. Student's t stands beside
`share_over_runs`; where runs agree to the last sample, the samples of all runs put together speak in its place
(Wilson, Newcombe). Differences: two methods, the log odds of which go with those of the other by seed, or do not.
Prompts: each of M prompts has a share of its own (beta, by its intraclass correlation), and is drawn from as often as
the others.

Tables of coverage in percent, with median widths in points, go to stderr as Markdown, all numbers to stdout as JSON.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from iet_agc.metrics.intervals import clustered_share, difference, share, share_over_runs
from iet_agc.metrics.intervals import mean as mean_over_runs

Floats = NDArray[np.float64]

MEANS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5)
SPREADS = ((0.0, "none"), (0.5, "logit-normal"), (0.5, "beta"), (1.0, "logit-normal"), (1.0, "beta"))
#: Beyond what three or five runs can tell: most runs copy next to nothing, a few much.
HEAVY, HEAVY_MEANS = ((2.0, "beta"),), (0.001, 0.003, 0.01, 0.03, 0.1)
RUNS, SAMPLES = (3, 5), (1024, 512)
PAIRS = ((0.01, 0.01), (0.16, 0.003), (0.16, 0.03), (0.3, 0.25))
CORRELATIONS = (-0.5, 0.0, 0.8)
PROMPTS, DRAWS_OF_EACH = (8, 24, 72), 6
PROMPT_MEANS, INTRACLASS = (0.01, 0.02, 0.05, 0.1, 0.3, 0.5), (0.0, 0.1, 0.5, 0.9)


# What is drawn --------------------------------------------------------------------------------------------


def shares_of_runs(random: np.random.Generator, mean: float, spread: float, kind: str, size: tuple[int, ...]) -> Floats:
    """A share of each run, whose mean over all runs that could be is `mean`."""
    if spread == 0:
        return np.full(size, mean)
    if kind == "logit-normal":
        return of_log_odds(random.normal(size=size), mean, spread)
    return beta(random, mean, (spread * mean * (1 - mean)) ** 2, size)


def beta(random: np.random.Generator, mean: float, variance: float, size: tuple[int, ...]) -> Floats:
    number = mean * (1 - mean) / variance - 1
    return random.beta(mean * number, (1 - mean) * number, size)


def of_log_odds(normal: Floats, mean: float, spread: float) -> Floats:
    """Shares whose log odds are normal, and whose odds have a coefficient of variation of `spread`."""
    deviation = math.sqrt(math.log1p(spread**2))
    return expit(centre(mean, deviation) + deviation * normal)


@cache
def centre(mean: float, deviation: float) -> float:
    """The mean of log odds with which the mean of shares is `mean`, by bisection."""
    grid = deviation * norm.ppf((np.arange(10_000) + 0.5) / 10_000)
    low, high = -40.0, 40.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + grid).mean() < mean else (low, middle)
    return low


# Intervals ------------------------------------------------------------------------------------------------


@cache
def over_runs(counts: tuple[int, ...], total: int) -> tuple[float, float]:
    low, high = share_over_runs(counts, [total] * len(counts))
    return low, high


@cache
def students(counts: tuple[int, ...], total: int) -> tuple[float, float]:
    found = mean_over_runs([count / total for count in counts]).ci95
    if found is None or len(set(counts)) == 1:
        return share(sum(counts), total * len(counts)).ci95
    return found


def difference_over_runs(mine: tuple[int, ...], theirs: tuple[int, ...], total: int) -> tuple[float, float]:
    both = [(sum(x) / total / len(x), over_runs(tuple(sorted(x)), total)) for x in (mine, theirs)]
    return difference(*both)[1]


def students_difference(mine: tuple[int, ...], theirs: tuple[int, ...], total: int) -> tuple[float, float]:
    apart = [(x - y) / total for x, y in zip(mine, theirs, strict=True)]
    found = mean_over_runs(apart).ci95
    if found is None or len(set(apart)) == 1:
        both = (share(sum(counts), total * len(counts)) for counts in (mine, theirs))
        return difference(*((each.share, each.ci95) for each in both))[1]
    return found


def by_prompt(counts: tuple[int, ...], each: int) -> tuple[float, float]:
    counted = [draw < count for count in counts for draw in range(each)]
    low, high = clustered_share(counted, [prompt for prompt in range(len(counts)) for _ in range(each)]).ci95
    return low, high


def as_if_independent(counts: tuple[int, ...], each: int) -> tuple[float, float]:
    low, high = share(sum(counts), each * len(counts)).ci95
    return low, high


def judged(intervals: Sequence[tuple[float, float]], truth: float) -> dict[str, float]:
    """How many hold, and how wide they are, both in percent."""
    low, high = np.array(intervals).T
    return {
        "holds": round(100 * float(((low <= truth) & (truth <= high)).mean()), 1),
        "width": float(f"{100 * np.median(high - low):.3g}"),
    }


# Simulations ----------------------------------------------------------------------------------------------


def simulate_runs(
    random: np.random.Generator, draws: int, spreads: Sequence[tuple[float, str]], means: Sequence[float]
) -> list[dict[str, Any]]:
    found = []
    for runs, total, (spread, kind), mean in product(RUNS, SAMPLES, spreads, means):
        counts = random.binomial(total, shares_of_runs(random, mean, spread, kind, (draws, runs)))
        rows = [tuple(sorted(row)) for row in counts.tolist()]
        about = {"runs": runs, "samples": total, "spread": spread, "kind": kind, "mean": mean}
        ways: dict[str, Callable[..., tuple[float, float]]] = {"student": students, "chosen": over_runs}
        found.append(about | {name: judged([way(row, total) for row in rows], mean) for name, way in ways.items()})
    return found


def simulate_differences(random: np.random.Generator, draws: int, total: int = 1024) -> list[dict[str, Any]]:
    """By seed, the log odds of the two methods are correlated."""
    found = []
    for runs, spread, correlation, means in product(RUNS, (0.5, 1.0), CORRELATIONS, PAIRS):
        one, other = random.normal(size=(2, draws, runs))
        other = correlation * one + math.sqrt(1 - correlation**2) * other
        shares = [of_log_odds(normal, mean, spread) for normal, mean in zip((one, other), means, strict=True)]
        mine, theirs = ([tuple(row) for row in random.binomial(total, each).tolist()] for each in shares)
        about: dict[str, Any] = {"runs": runs, "spread": spread, "correlation": correlation, "means": means}
        for name, way in (("student", students_difference), ("chosen", difference_over_runs)):
            limits = [way(*pair, total) for pair in zip(mine, theirs, strict=True)]
            about[name] = judged(limits, means[0] - means[1])
        found.append(about)
    return found


def simulate_prompts(random: np.random.Generator, draws: int) -> list[dict[str, Any]]:
    found = []
    for prompts, intraclass, mean in product(PROMPTS, INTRACLASS, PROMPT_MEANS):
        size = (draws, prompts)
        each = beta(random, mean, intraclass * mean * (1 - mean), size) if intraclass else np.full(size, mean)
        rows = [tuple(sorted(row)) for row in random.binomial(DRAWS_OF_EACH, each).tolist()]
        about: dict[str, Any] = {"prompts": prompts, "intraclass": intraclass, "mean": mean}
        for name, way in (("independent", as_if_independent), ("chosen", by_prompt)):
            about[name] = judged([way(row, DRAWS_OF_EACH) for row in rows], mean)
        found.append(about)
    return found


# Tables ---------------------------------------------------------------------------------------------------


def table(found: Sequence[dict[str, Any]], rows: Sequence[str], column: str, ways: Sequence[str]) -> str:
    """Coverage of two ways, with the median width of each: "91.4 (0.7), 99.7 (1.5)"."""
    heads = list(dict.fromkeys(one[column] for one in found))
    cells: dict[tuple[Any, ...], dict[Any, str]] = {}
    for one in found:
        said = ", ".join(f"{one[way]['holds']:.1f} ({one[way]['width']:g})" for way in ways)
        cells.setdefault(tuple(one[row] for row in rows), {})[one[column]] = said
    lines = [" | ".join(["|", *rows, *map(str, heads)]) + " |", "|---" * (len(rows) + len(heads)) + "|"]
    lines += [" | ".join(["|", *map(str, key), *(row[head] for head in heads)]) + " |" for key, row in cells.items()]
    return "\n".join(line.replace("| | ", "| ", 1) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=4000, help="of each row and column")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    runs = simulate_runs(random, arguments.draws, SPREADS, MEANS)
    apart = simulate_differences(random, arguments.draws)
    prompts = simulate_prompts(random, max(1, arguments.draws // 4))
    heavy = simulate_runs(random, arguments.draws, HEAVY, HEAVY_MEANS)
    by = ("runs", "samples", "spread", "kind")
    for title, text in {
        "Shares over runs: Student's t, chosen": table(runs, by, "mean", ("student", "chosen")),
        "The same with a few runs that copy much": table(heavy, by, "mean", ("student", "chosen")),
        "Differences over runs, 1,024 samples: Student's t, chosen": table(
            apart, ("runs", "spread", "correlation"), "means", ("student", "chosen")
        ),
        f"Shares of prompts, {DRAWS_OF_EACH} draws of each: independent, chosen": table(
            prompts, ("prompts", "intraclass"), "mean", ("independent", "chosen")
        ),
    }.items():
        print(f"{title}\n\n{text}\n", file=sys.stderr)
    print(json.dumps({"runs": runs, "differences": apart, "prompts": prompts, "heavy": heavy}))


if __name__ == "__main__":
    main()
