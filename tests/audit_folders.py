"""Audit folders made to order, of the records that an audit writes: every part, or without what some lack."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iet_agc.auditing.schema import (
    CUTS,
    AuditRecord,
    Conventions,
    Copies,
    Fingerprints,
    HeldOut,
    ManyNearCopies,
    Names,
    NoCut,
    Space,
)
from iet_agc.metrics.intervals import Percentile, mean, share
from iet_agc.metrics.records import (
    Authentic,
    Calibrated,
    CopyingZ,
    LacksRank,
    Likeness,
    NearCopies,
    Nearness,
    Quality,
    Similarity,
    Spread,
    Statistics,
    StatisticsOfReal,
    WholeSubsets,
)

FALSE_ALARM = 0.01
SHA = "0123456789abcdef" * 4

WARNINGS = (
    LacksRank(images="sample", num_images=32, num_features=64),
    WholeSubsets(measures=("kid_train",), num_images=32),
)

#: What an audit says of itself: that its held-out images do not do, and that no cut could be set.
NEAR_COPIES = ManyNearCopies(num_near_copies=4, num_held_out=300)
NO_CUT = NoCut(num_held_out=3, num_needed=99)

#: How many training images a set has two times and more often, and how much more often.
REPEATED, TIMES = 2, 4


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
    given = {"train": "photos/my train", "samples": "samples", "held_out": "held" if held_out else ""}
    numbers = AuditRecord(
        num_samples=samples,
        num_train=len(trained) + REPEATED * (TIMES - 1),
        num_train_unique=len(trained),
        num_held_out=held_out,
        num_held_out_in_train=3 if held_out else 0,
        num_held_out_repeated=2 if held_out else 0,
        sha256=Fingerprints(train=SHA, samples=SHA[::-1], held_out=SHA if held_out else None),
        conventions=Conventions(
            k=50, flips=True, interval="Wilson, 95 %", convert_to=convert_to, resize=convert_to and "bicubic"
        ),
        **dict(_copies(ratios, real, cut, (NEAR_COPIES,) if warned else ())),
        quality=_quality(extractor, bool(held_out)),
        feature_spaces={name: _space(name, ratios, real, len(trained), warned) for name in spaces},
        names=Names(**(names or given)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.json").write_text(json.dumps(numbers.model_dump(mode="json"), indent=1))
    rows = _sample_rows(ratios, nearest, mirrored, mirrored & exact)
    alike = [_alike_columns(number, files) for number in range(len(spaces))]
    _write_table(
        folder / "samples.csv",
        [row | _sample_files(row, files) | {k: v for each in alike for k, v in each(row).items()} for row in rows],
    )
    limit = cut if cut is not None else float(CUTS[0])
    table = _training_rows(len(trained), nearest[ratios < limit], record)
    _write_table(folder / "training-images.csv", [row | {"file": _file("t", row["image"], files)} for row in table])
    shown = _pictures(trained, images, ratios, nearest, table, real, pictures)
    for number in range(len(spaces)):
        parts = {"samples": 1 - ratios, "train": _background(len(trained)), "held_out": 1 - real}
        parts |= {"pairs": shown["worst"], "pair_samples": shown["worst_samples"]}
        parts |= {"pair_originals": shown["worst_originals"]}
        shown |= {f"similar_{number}_{part}": array for part, array in parts.items()}
    np.savez_compressed(folder / "pictures.npz", allow_pickle=False, **shown)
    drawn = curves if curves is not None else {f"member-{m:04d}": points(m) for m in (1, 2)}
    (folder / "curves.json").write_text(json.dumps(drawn if record else {}))
    return Folder(folder, trained, images, ratios, mirrored)


def _calibrated_cut(real: NDArray[np.float64]) -> float | None:
    rank = (len(real) + 1) // 100
    return float(np.sort(real)[rank - 1]) if rank else None


def _calibrated(
    values: NDArray[np.float64], cut: float | None, real: NDArray[np.float64], sign: int = 1
) -> Calibrated | None:
    if cut is None:
        return None
    found = share(int((values < cut).sum()), len(values))
    return Calibrated(**dict(found), false_alarm=FALSE_ALARM, cut=sign * cut, num_held_out=len(real))


def _copies(
    ratios: NDArray[np.float64], real: NDArray[np.float64], cut: float | None, warnings: tuple[Any, ...]
) -> Copies:
    c_t = CopyingZ(value=-12.345, null_sd=0.5, cells=3, num_held_out=len(real)) if len(real) else None
    near = _calibrated(ratios, 0.12, real) if _calibrated_cut(real) is not None else None
    return Copies(
        mq=_mq(ratios),
        held_out=HeldOut(mq=_mq(real), statistics=_shares(real, "held-out images")) if len(real) else None,
        calibrated=_calibrated(ratios, cut, real),
        warnings=warnings,
        statistics=Statistics(**dict(_shares(ratios, "samples")), near=near and Nearness(**dict(near)), c_t=c_t),
    )


def _mq(ratios: NDArray[np.float64]) -> dict[str, Any]:
    return {cut: share(int((ratios < float(cut)).sum()), len(ratios)) for cut in CUTS}


def _shares(ratios: NDArray[np.float64], what: str) -> StatisticsOfReal:
    near = share(int((ratios < 0.16).sum()), len(ratios))
    far = share(len(ratios) - near.count, len(ratios))
    return StatisticsOfReal(
        d1_d2=NearCopies(**dict(near), unit=f"share of {what}"),
        auth_pct=Authentic(**dict(far), percent=100 * far.share, unit=f"percent of {what}"),
    )


def _quality(extractor: str, held_out: bool) -> Quality:
    also = {
        "frechet_held_out": 12.25,
        "frechet_train_to_held_out": 3.5,
        "kid_held_out": Spread(mean=0.0321, std=0.0012),
    }
    also |= {"precision_held_out": 0.625, "recall_held_out": 0.375, "mifid_held_out": 77.5}
    return Quality.model_validate(
        {
            "extractor": extractor,
            "sha256": None if extractor == "pixels" else SHA,
            "dimensions": 64,
            "frechet_train": 7.125,
            "kid_train": Spread(mean=-0.0004, std=0.0009),
            "inception_score": None if extractor == "pixels" else Spread(mean=4.321, std=0.123),
            "precision_train": 0.75,
            "recall_train": 0.5,
            "mifid_train": 55.5,
            **(also if held_out else dict.fromkeys(also)),
            "few_images": True,
            "warnings": WARNINGS,
            "conventions": {
                "features": "pixels / 255" if extractor == "pixels" else "scaled to 224 pixels",
                "kid": "100 subsets of 32 images, polynomial kernel of degree 3",
                "precision_recall": "k = 3",
                "arithmetic": "float64",
            },
            "num_held_out": 300 if held_out else 0,
            "num_near_copies": 0,
        }
    )


def _space(name: str, ratios: NDArray[np.float64], real: NDArray[np.float64], train: int, warned: bool) -> Space:
    halved = real / 2
    copies = _copies(ratios / 2, halved, None if warned else _calibrated_cut(halved), (NO_CUT,) if warned else ())
    found = _calibrated(ratios - 1, _calibrated_cut(real - 1), real, -1)
    similarity = Similarity(
        copy_detection=False,
        num_calibrating=len(real),
        threshold=0.5,
        samples=_likeness(1 - ratios),
        train=_likeness(_background(train)),
        held_out=_likeness(1 - real) if len(real) else None,
        calibrated=found,
    )
    quality = _quality(name, bool(len(real)))
    return Space(sha256=SHA, dimensions=1280, **dict(copies), quality=quality, similarity=similarity, alignment=None)


def _background(count: int) -> NDArray[np.float64]:
    """Similarities of training images with each other."""
    return np.linspace(0, 0.4, count)


def _likeness(values: NDArray[np.float64]) -> Likeness:
    high = float(np.quantile(values, 0.95))
    above = share(int((values > 0.5).sum()), len(values))
    return Likeness(above=above, p95=Percentile(value=high, ci95=(high, 1.0)), mean=mean(values.tolist()))


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


def _alike_columns(number: int, files: str | None) -> Any:
    """What a row says of a feature space, in which the nearest training image is that in pixels."""
    return lambda row: {
        f"similarity_{number}": repr(1 - float(row["ratio"])),
        f"nearest_{number}": row["nearest"],
        f"nearest_file_{number}": _file("t", row["nearest"], files),
    }


def _training_rows(count: int, copied: NDArray[np.int64], record: bool) -> list[dict[str, int | str]]:
    by_image = [np.flatnonzero(copied == image).tolist() for image in range(count)]
    rows: list[dict[str, int | str]] = []
    for image, samples in enumerate(by_image):
        row: dict[str, int | str] = {"image": image, "multiplicity": TIMES if image < REPEATED else 1}
        row |= {"copied": len(samples)} | ({"seen": 10, "skipped": image % 5} if record else {})
        rows.append(row | {"samples": " ".join(map(str, samples))})
    return rows


def _write_table(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _pictures(
    train: NDArray[np.uint8],
    images: NDArray[np.uint8],
    ratios: NDArray[np.float64],
    nearest: NDArray[np.int64],
    table: Sequence[dict[str, Any]],
    real: NDArray[np.float64],
    most: int,
) -> dict[str, NDArray[Any]]:
    worst = ratios.argsort(kind="stable")[:most]
    top = np.argsort([-row["copied"] for row in table], kind="stable")[:most]
    skipped = np.argsort([-row.get("skipped", math.inf) for row in table], kind="stable")[:most]
    skipped = skipped if "skipped" in table[0] else top[:0]
    parts = {"worst": worst, "worst_samples": images[worst], "worst_originals": train[nearest[worst]], "top": top}
    parts |= {"top_images": train[top], "skipped": skipped, "skipped_images": train[skipped]}
    return parts | {"held_out_ratios": real}
