"""Runs with made-up audits, to be compared."""

import json
from typing import Any

from iet_agc.auditing.schema import CUTS, Conventions, Copies, HeldOut
from iet_agc.config.overrides import override
from iet_agc.config.run_folder import claim_folder
from iet_agc.config.settings import Settings
from iet_agc.metrics.intervals import share
from iet_agc.metrics.records import (
    Authentic,
    Calibrated,
    CopyingZ,
    NearCopies,
    Nearness,
    Statistics,
    StatisticsOfReal,
)

SAMPLES, HELD_OUT = 1000, 500
CONVENTIONS = Conventions(k=50, flips=False, interval="Wilson").model_dump()


def copies(copied, calibrated=True, held_out=True):
    """What an audit says of copies in one space, where so many of 1,000 samples are copied."""
    part, real = share(copied, SAMPLES), share(7, HELD_OUT)
    cut: dict[str, Any] = {"false_alarm": 0.01, "cut": 0.1, "num_held_out": HELD_OUT}
    others = StatisticsOfReal(
        d1_d2=NearCopies(**dict(share(40, SAMPLES)), unit="share"),
        auth_pct=Authentic(**dict(share(480, SAMPLES)), percent=48.0, unit="percent"),
    )
    of_real = StatisticsOfReal(
        d1_d2=NearCopies(**dict(real), unit="share"), auth_pct=Authentic(**dict(real), percent=1.4, unit="percent")
    )
    near = Nearness(**dict(share(30, SAMPLES)), **cut) if held_out else None
    c_t = CopyingZ(value=-3.5, null_sd=0.5, cells=4, num_held_out=HELD_OUT) if held_out else None
    return Copies(
        mq=dict.fromkeys(CUTS, part),
        held_out=HeldOut(mq=dict.fromkeys(CUTS, real), statistics=of_real) if held_out else None,
        calibrated=Calibrated(**dict(share(copied // 2, SAMPLES)), **cut) if calibrated else None,
        warnings=(),
        statistics=Statistics(**dict(others), near=near, c_t=c_t),
    )


def quality(distance=1.0, held_out=True):
    real = {"frechet_held_out": distance, "frechet_train_to_held_out": 0.5, "mifid_held_out": 2.5}
    real |= {"kid_held_out": {"mean": 0.002, "std": 0.001}, "precision_held_out": 0.7, "recall_held_out": 0.6}
    found = {"extractor": "pixels", "sha256": None, "dimensions": 64, "frechet_train": distance / 2, "kid_train": None}
    found |= {"inception_score": None, "precision_train": None, "recall_train": None, "mifid_train": 2.0}
    found |= {"few_images": False, "warnings": [], "conventions": {"kid_subset": "100"}}
    return found | {"num_held_out": 0, "num_near_copies": 0} | (real if held_out else dict.fromkeys(real))


def numbers(copied=100, distance=1.0, calibrated=True, held_out=True, sha="a", **changes):
    """The content of an audit.json in which so many of 1,000 samples are copied."""
    content: dict[str, Any] = {
        "version": 2,
        "num_samples": SAMPLES,
        "num_train": 300,
        "num_train_unique": 200,
        "num_held_out": HELD_OUT if held_out else 0,
        "num_held_out_in_train": 0,
        "num_held_out_repeated": 0,
        "sha256": {"train": sha * 64, "samples": "b" * 64, "held_out": "c" * 64 if held_out else None},
        "conventions": CONVENTIONS,
        **copies(copied, calibrated, held_out).model_dump(mode="json"),
        "quality": quality(distance, held_out),
        "feature_spaces": {},
        "names": {"train": "photos", "samples": "samples", "held_out": "real" if held_out else ""},
    }
    return content | changes


def other_samples(count, copied, calibrated):
    """Changes of `numbers`, such that all shares are of so many samples."""
    content = numbers(copied)
    found: dict[str, Any] = {"num_samples": count, "mq": dict.fromkeys(CUTS, plain(share(copied, count)))}
    found["calibrated"] = content["calibrated"] | plain(share(calibrated, count))
    found["statistics"] = {
        key: entry if key == "c_t" else entry | plain(share(1, count)) for key, entry in content["statistics"].items()
    }
    return found


def plain(found):
    return found.model_dump(mode="json")


def write(folder, content):
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps(content))
    return folder


def run(folder, preset, content, **changes):
    """A run of a preset with settings changed, `train__seed="1"`, and its audit."""
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    claim_folder(override(Settings(), {"name": preset, **changes}), folder)
    write(folder / "audit", content)
    return folder


def seeds(folder, preset, copied, distances, first=0):
    """Runs of consecutive seeds."""
    each = enumerate(zip(copied, distances, strict=True), first)
    return [run(folder / f"{preset}-{s}", preset, numbers(*values), train__seed=str(s)) for s, values in each]
