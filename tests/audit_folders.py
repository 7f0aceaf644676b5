"""Audit folders made to order, as audit.json's description says: every part, or only what old audits have."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iet_agc.metrics.intervals import share

CUTS = (0.15, 0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80, 0.90)
FALSE_ALARM = 0.01
SHA = "0123456789abcdef" * 4

WARNINGS = ("the sample set has 32 images for 64 features: biased upward", "kid_train: every subset holds all images")

#: What an audit says of itself: that its held-out images do not do, and that no cut could be set.
NEAR_COPIES = "3 of 300 held-out images are near copies of training images: the calibrated cut is not to be trusted."
NO_CUT = "no cut could be calibrated: 3 of 300 held-out images lie at distance 0"

#: How many training images a set has two times and more often, and how much more often.
REPEATED, TIMES = 2, 4

WORDS: dict[str, dict[str, str]] = {
    "d1_d2": {
        "direction": "lower is less copied",
        "convention": "L2, not squared, to the nearest / to the second nearest unique training image < 1/3; 0/0 counts",
        "source": "Yoon et al., 2023; Gu et al., 2023",
    },
    "auth_pct": {
        "direction": "higher is less copied",
        "convention": "authentic: farther from its nearest training image than that one is from its nearest other",
        "source": "Alaa et al., ICML 2022, arXiv 2102.08921",
    },
    "near": {
        "direction": "lower is less copied",
        "convention": "squared L2 to the nearest unique training image below the 3rd smallest of 300 held-out images",
        "source": "the authors of this audit",
    },
    "c_t": {
        "direction": "far below 0 is copied, near 0 is ideal, far above 0 is underfit",
        "convention": "Mann-Whitney z of distances to the nearest unique training image, in k-means cells",
        "source": "Meehan, Chaudhuri, Dasgupta, AISTATS 2020, arXiv 2004.05675",
    },
}


@dataclass
class Folder:
    """A folder, and what went into it."""

    path: Path
    train: NDArray[np.uint8]
    samples: NDArray[np.uint8]
    ratios: NDArray[np.float64]
    mirrored: NDArray[np.bool_]

    @property
    def numbers(self) -> dict[str, Any]:
        return json.loads((self.path / "audit.json").read_text())

    def edit(self, **changes: Any) -> None:
        (self.path / "audit.json").write_text(json.dumps(self.numbers | changes))


def noise(count: int, shape: tuple[int, int, int], seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def points(member: int, skip_rate: float = 0.1) -> list[dict[str, Any]]:
    """A curve as the engine writes it."""
    same = {"round": 0, "learning_rate": 2e-4, "images_per_second": 9.0, "skip_rate": skip_rate}
    bands = [None, *[skip_rate] * 9]
    return [
        {"step": s, "images_seen": 8 * s, "loss": 1 / (s + member), "skip_rate_bands": bands, **same} for s in (1, 2, 3)
    ]


def write_audit(
    folder: Path,
    shape: tuple[int, int, int] = (1, 8, 8),
    *,
    samples: int = 32,
    copies: int = 8,
    train: NDArray[np.uint8] | int = 70,
    held_out: int = 300,
    spaces: Sequence[str] = ("efficientnet-lite0",),
    record: bool = True,
    old: bool = False,
    curves: dict[str, list[dict[str, Any]]] | None = None,
    names: dict[str, str] | None = None,
    convert_to: str | None = None,
    extractor: str = "pixels",
    pictures: int = 24,
    exact: bool = True,
    files: str | None = None,
    warned: bool = False,
) -> Folder:
    """Sample i < copies is training image i, or i less all of them, some levels brighter; the first is mirrored.

    The first is an exact copy, or not quite. Sample 3 was read from the file "s/3.png" after `files`, training image 3
    from "t/3.png"; None is of sets without files. `warned`: it warns of its held-out images, and no cut could be
    calibrated in feature spaces.
    """
    trained = noise(train, shape, 0) if isinstance(train, int) else train
    images = noise(samples, trained.shape[1:], 1)  # pyright: ignore[reportArgumentType]
    nearest = np.arange(samples) % len(trained)
    for number in range(copies):
        brighter = trained[nearest[number]].astype(int) + number % 20
        images[number] = trained[0, :, :, ::-1] if number == 0 else brighter.clip(max=255)
    if not exact:
        images[0, 0, 0, 0] ^= 1
    mirrored = np.arange(samples) == (0 if copies else -1)
    below = 0.1 * np.arange(copies) / max(copies, 1)
    ratios = np.concatenate([below, np.linspace(0.2, 0.95, samples - copies) if samples > copies else []])
    real = np.linspace(0.11, 0.97, held_out)
    cut = _calibrated_cut(real)
    numbers: dict[str, Any] = {"version": 1, "num_samples": samples, "num_train_unique": len(trained)}
    numbers |= {"num_train": len(trained) + REPEATED * (TIMES - 1)}
    numbers |= {"num_held_out": held_out, "num_held_out_in_train": 3 if held_out else 0}
    numbers |= {} if old else {"num_held_out_repeated": 2 if held_out else 0}
    numbers |= {} if old else {"warnings": [NEAR_COPIES] if warned else []}
    numbers |= {"sha256": {"train": SHA, "samples": SHA[::-1], "held_out": SHA if held_out else None}}
    numbers |= {"conventions": _conventions(convert_to)} | _copies(ratios, real, cut, old)
    numbers |= {"quality": _quality(extractor, bool(held_out), old)}
    numbers |= {} if old else {"feature_spaces": {name: _space(name, ratios, real, warned) for name in spaces}}
    given = {"train": "photos/my train", "samples": "samples", "held_out": "held" if held_out else ""}
    numbers |= {"names": names or given}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(numbers, indent=1))
    rows = _sample_rows(ratios, nearest, mirrored, mirrored & exact)
    _write_table(folder / "samples.csv", rows if old else [row | _sample_files(row, files) for row in rows])
    limit = cut if cut is not None else CUTS[0]
    table = _training_rows(len(trained), nearest[ratios < limit], record, old)
    named = [row | {"file": _file("t", row["image"], files)} for row in table]
    _write_table(folder / "training-images.csv", table if old else named)
    _write_pictures(folder / "pictures.npz", trained, images, ratios, nearest, table, real, pictures)
    drawn = curves if curves is not None else {f"member-{m:04d}": points(m) for m in (1, 2)}
    (folder / "curves.json").write_text(json.dumps(drawn if record else {}))
    return Folder(folder, trained, images, ratios, mirrored)


def _calibrated_cut(real: NDArray[np.float64]) -> float | None:
    rank = (len(real) + 1) // 100
    return float(np.sort(real)[rank - 1]) if rank else None


def _conventions(convert_to: str | None) -> dict[str, Any]:
    return {
        "distance": "squared L2 on [0, 1] pixels, exact",
        "ratio": "nearest distance / mean of the k nearest, the nearest included",
        "k": 50,
        "references": "unique training images",
        "flips": True,
        "below": "ratio < cut",
        "interval": "Wilson, 95 %",
        "convert_to": convert_to,
        "resize": convert_to and "bicubic",
    }


def _mq(ratios: NDArray[np.float64]) -> dict[str, Any]:
    return {f"{cut:.2f}": share(int((ratios < cut).sum()), len(ratios)) for cut in CUTS}


def _copies(ratios: NDArray[np.float64], real: NDArray[np.float64], cut: float | None, old: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "mq": _mq(ratios),
        "held_out": {"mq": _mq(real)} if len(real) else None,
        "calibrated": None,
    }
    if cut is not None:
        found["calibrated"] = {"false_alarm": FALSE_ALARM, "cut": cut, **share(int((ratios < cut).sum()), len(ratios))}
    if old:
        return found
    if len(real):
        found["held_out"]["statistics"] = _shares(real, "held-out images")
    c_t = {"value": -12.345, "null_sd": 0.5, "cells": 3, "unit": "standard deviations"} | WORDS["c_t"]
    closer = share(int((ratios < 0.12).sum()), len(ratios)) | WORDS["near"]
    of_held_out = {"near": closer, "c_t": c_t} if len(real) else {"near": None, "c_t": None}
    return found | {"statistics": _shares(ratios, "samples") | of_held_out}


def _shares(ratios: NDArray[np.float64], what: str) -> dict[str, Any]:
    near = share(int((ratios < 0.16).sum()), len(ratios))
    far = share(len(ratios) - near["count"], len(ratios))
    return {
        "d1_d2": near | {"unit": f"share of {what}"} | WORDS["d1_d2"],
        "auth_pct": far | {"percent": 100 * far["share"], "unit": f"percent of {what}"} | WORDS["auth_pct"],
    }


def _quality(extractor: str, held_out: bool, old: bool) -> dict[str, Any]:
    real = {"frechet_held_out": 12.25, "frechet_train_to_held_out": 3.5}
    quality = {"extractor": extractor, "dimensions": 64, "few_images": True, "frechet_train": 7.125}
    quality |= real if held_out else dict.fromkeys(real)
    if old:
        return quality
    also = {"kid_held_out": {"mean": 0.0321, "std": 0.0012}, "precision_held_out": 0.625, "recall_held_out": 0.375}
    also |= {"mifid_held_out": 77.5}
    return (
        quality
        | {
            "sha256": None if extractor == "pixels" else SHA,
            "kid_train": {"mean": -0.0004, "std": 0.0009},
            "inception_score": None if extractor == "pixels" else {"mean": 4.321, "std": 0.123},
            "precision_train": 0.75,
            "recall_train": 0.5,
            "mifid_train": 55.5,
            "warnings": list(WARNINGS),
            "conventions": {
                "features": "pixels / 255" if extractor == "pixels" else "scaled to 224 pixels",
                "kid": "100 subsets of 32 images, polynomial kernel of degree 3",
                "precision_recall": "k = 3",
                "arithmetic": "float64",
            },
        }
        | (also if held_out else dict.fromkeys(also))
    )


def _space(name: str, ratios: NDArray[np.float64], real: NDArray[np.float64], warned: bool) -> dict[str, Any]:
    halved = real / 2
    about = {"sha256": SHA, "dimensions": 1280, "quality": _quality(name, bool(len(real)), False)}
    about |= {"warnings": [NO_CUT] if warned else []}
    return about | _copies(ratios / 2, halved, None if warned else _calibrated_cut(halved), False)


def _sample_rows(ratios: NDArray[np.float64], *columns: NDArray[Any]) -> list[dict[str, Any]]:
    rows = zip(ratios.tolist(), *(column.tolist() for column in columns), strict=True)
    return [
        {"sample": n, "seed": 1000 + n, "ratio": repr(ratio), "nearest": nearest}
        | {"distance": 0.0 if equal else 0.5, "mirrored": int(mirrored)}
        for n, (ratio, nearest, mirrored, equal) in enumerate(rows)
    ]


def _sample_files(row: dict[str, Any], files: str | None) -> dict[str, str]:
    return {"file": _file("s", row["sample"], files), "nearest_file": _file("t", row["nearest"], files)}


def _file(folder: str, number: object, files: str | None) -> str:
    return "" if files is None else f"{files}{folder}/{number}.png"


def _training_rows(count: int, copied: NDArray[np.int64], record: bool, old: bool) -> list[dict[str, int | str]]:
    by_image = [np.flatnonzero(copied == image).tolist() for image in range(count)]
    rows: list[dict[str, int | str]] = []
    for image, samples in enumerate(by_image):
        row: dict[str, int | str] = {"image": image, "multiplicity": TIMES if image < REPEATED else 1}
        row |= {"copied": len(samples)} | ({"seen": 10, "skipped": image % 5} if record else {})
        rows.append(row | ({} if old else {"samples": " ".join(map(str, samples))}))
    return rows


def _write_table(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_pictures(
    file: Path,
    train: NDArray[np.uint8],
    images: NDArray[np.uint8],
    ratios: NDArray[np.float64],
    nearest: NDArray[np.int64],
    table: Sequence[dict[str, Any]],
    real: NDArray[np.float64],
    most: int,
) -> None:
    worst = ratios.argsort(kind="stable")[:most]
    top = np.argsort([-row["copied"] for row in table], kind="stable")[:most]
    skipped = np.argsort([-row.get("skipped", math.inf) for row in table], kind="stable")[:most]
    skipped = skipped if "skipped" in table[0] else top[:0]
    parts = {"worst": worst, "worst_samples": images[worst], "worst_originals": train[nearest[worst]], "top": top}
    parts |= {"top_images": train[top], "skipped": skipped, "skipped_images": train[skipped], "held_out_ratios": real}
    np.savez_compressed(file, allow_pickle=False, **parts)
