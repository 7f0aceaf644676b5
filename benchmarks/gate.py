"""How often `iet-agc audit --fail-above` fails: what copies nothing, and what does.

Drawn are the cut, whose rate of false alarms over H held-out images is Beta(j, H + 1 - j), j = floor((H + 1) / 100),
and the samples below it, of which a share is copied and always below. The plain rule fails where the share below the
cut is above what is allowed; the gate fails where its lower limit is (see
`iet_agc.metrics.intervals.least_calibrated_share`).

    python benchmarks/gate.py [--fail-above 0.02] [--samples 1024] [--draws 200000]

The table goes to stderr as Markdown, all numbers to stdout as JSON. Seconds on one core; no data, no network.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from iet_agc.metrics.intervals import calibration_rank, surely_above

_FALSE_ALARM, _RISK, _SEED = 0.01, 0.025, 0
_HELD_OUT, _COPIED = (99, 400, 497, 5000), (0.0, 0.03, 0.05, 0.1)


def simulated(held_out: int, copied: float, samples: int, fail_above: float, draws: int) -> dict[str, Any]:
    """How often either rule fails, of so many draws of held-out images and samples."""
    rng, rank = np.random.default_rng(_SEED), calibration_rank(_FALSE_ALARM, held_out)
    rates = rng.beta(rank, held_out + 1 - rank, draws)
    counts = rng.binomial(samples, copied + (1 - copied) * rates)
    enough, harmless = surely_above(fail_above, samples, _FALSE_ALARM, held_out, _RISK)
    return {
        "held_out": held_out,
        "copied": copied,
        "plain": float((counts > fail_above * samples).mean()),
        "gate": float((counts >= enough).mean()),
        "fails_from": enough,
        "printed": harmless,
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """A row per number of held-out images; in each cell the plain rule's rate, then the gate's."""
    head = [
        "held-out images",
        "fails from",
        "risk printed, nothing copied",
        *(f"{100 * c:g} % copied" for c in _COPIED),
    ]
    lines = [head, ["---"] * len(head)]
    for held_out in _HELD_OUT:
        row = [each for each in found if each["held_out"] == held_out]
        cells = [f"{_percent(each['plain'])} -> {_percent(each['gate'])}" for each in row]
        lines.append([f"{held_out:,}", f"{row[0]['fails_from']}", _percent(row[0]["printed"]), *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _percent(rate: float) -> str:
    return "< 0.01 %" if 0 < rate < 1e-4 else f"{100 * rate:.3g} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fail-above", type=float, default=0.02)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--draws", type=int, default=200_000)
    given = parser.parse_args()
    found = [
        simulated(held_out, copied, given.samples, given.fail_above, given.draws)
        for held_out in _HELD_OUT
        for copied in _COPIED
    ]
    print(table(found), file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
