"""What `method.skip_below auto` does beside fixed values: copied share, distance to held-out images, samples skipped.

    python benchmarks/auto_skip.py --out runs/auto-skip [--preset digits-agc] [--values 0.5 auto] [--seeds 0 1 2]

Each run takes as long as its preset says. The same command again goes on after a stop, and does nothing twice. Also
said is the share of the loss bank at which "auto" skips in the end, over timesteps: the 5th, 50th and 95th percentile.
"""

import argparse
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from iet_agc.api.whole_run import whole_run
from iet_agc.auditing.schema import AuditRecord
from iet_agc.config.overrides import override
from iet_agc.config.presets import load_preset
from iet_agc.runtime.exposure import read_telemetry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="digits-agc")
    parser.add_argument("--values", nargs="+", default=["0.5", "auto"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="other settings of all runs")
    asked = parser.parse_args()
    others = dict(each.split("=", 1) for each in asked.set)
    for seed in asked.seeds:
        for value in asked.values:
            settings = override(
                load_preset(asked.preset), others | {"method.skip_below": value, "train.seed": str(seed)}
            )
            run = asked.out / f"{asked.preset}-{value}-{seed}"
            print(json.dumps({"skip_below": value, "seed": seed, **_told(whole_run(settings, run), run)}), flush=True)


def _told(audit: AuditRecord, run: Path) -> dict[str, object]:
    seen, skipped = read_telemetry(run / "telemetry.csv")
    newest = max(run.rglob("member-0000.safetensors"))
    spread: Tensor | None = safetensors.torch.load_file(newest).get("agc.spread")
    percentiles = None
    if spread is not None:
        shares = (-2 * spread.sqrt()).exp().quantile(torch.tensor([0.05, 0.5, 0.95]))
        percentiles = [round(share, 3) for share in shares.tolist()]
    return {
        "ratio < 0.15": round(audit.mq["0.15"].share, 4),
        "frechet_held_out": audit.quality.frechet_held_out,
        "skipped": round(float(skipped.sum() / seen.sum()), 4),
        "skips_below": percentiles,
    }


if __name__ == "__main__":
    main()
