"""Runs with made-up audits, to be compared."""

import json

from iet_agc.config.overrides import override
from iet_agc.config.run_folder import claim_folder
from iet_agc.config.settings import Settings
from iet_agc.metrics.intervals import share
from tests.audit_folders import CUTS, WORDS

SAMPLES, HELD_OUT = 1000, 500
CONVENTIONS = {"k": 50, "flips": False}


def numbers(copied=100, distance=1.0, calibrated=True, held_out=True, **changes):
    """The content of an audit.json of an earlier version, in which so many of 1,000 samples are copied."""
    part, real = share(copied, SAMPLES), share(7, HELD_OUT)
    content = {
        "version": 1,
        "num_samples": SAMPLES,
        "num_train": 300,
        "num_train_unique": 200,
        "num_held_out": HELD_OUT if held_out else 0,
        "conventions": CONVENTIONS,
        "names": {"train": "photos", "samples": "samples", "held_out": "real" if held_out else ""},
        "mq": {f"{cut:.2f}": part for cut in CUTS},
        "held_out": {"mq": {f"{cut:.2f}": real for cut in CUTS}} if held_out else None,
        "calibrated": {"false_alarm": 0.01, "cut": 0.1, **share(copied // 2, SAMPLES)} if calibrated else None,
        "quality": {
            "extractor": "pixels",
            "few_images": False,
            "frechet_train": distance / 2,
            "frechet_held_out": distance if held_out else None,
        },
    }
    return content | changes


def newer(copied=100, distance=1.0, sha="a", **changes):
    """The same as this version writes it."""
    content = numbers(copied, distance)
    content["sha256"] = {"train": sha * 64, "samples": "b" * 64, "held_out": "c" * 64}
    content["statistics"] = {
        "d1_d2": share(40, SAMPLES) | WORDS["d1_d2"],
        "auth_pct": share(480, SAMPLES) | {"percent": 48.0} | WORDS["auth_pct"],
        "near": share(30, SAMPLES) | WORDS["near"],
        "c_t": {"value": -3.5, "cells": 4} | WORDS["c_t"],
    }
    content["quality"] |= {
        "sha256": None,
        "kid_held_out": {"mean": 0.002, "std": 0.001},
        "precision_held_out": 0.7,
        "recall_held_out": 0.6,
        "mifid_held_out": 2.5,
        "mifid_train": 2.0,
        "conventions": {"kid_subset": 100},
    }
    return content | changes


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
