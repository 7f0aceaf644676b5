"""Audits on disk: from sources to an audit's folder.

audit.json              the numbers; written last, with it the folder is whole
samples.csv             ratio and nearest training image of every sample
training-images.csv     how often every training image was copied, and seen and skipped
pictures.npz            the images that a report shows
curves.json             the training curves of an audited run
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iet_agc.audit import AuditResult, audit
from iet_agc.config import is_run, read_settings
from iet_agc.files import holds_others, replace_text, replacing
from iet_agc.log import progress_bar
from iet_agc.sources import load_part, read_record

__all__ = ["audit_sources", "save_audit"]

#: What an audit's folder holds; a kill may have left a part of it.
_FILES = {"audit.json", "samples.csv", "training-images.csv", "pictures.npz", "curves.json", "report.html"}


def audit_sources(
    train: str,
    samples: str,
    held_out: str | None,
    out: Path,
    flips: bool = False,
    extractor: str | None = None,
    on_images: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Audit what lies on disk and write the audit's folder: what `iet-agc audit` does.

    Args:
        train, held_out: see `load_part`. A run brings its telemetry and curves along.
        samples: the generated images.
        out: folder of the audit.
        flips: see `audit`; a run that trained with flips is audited with them in any case.
        extractor, on_images: see `audit`; `on_images` in place of the progress bar.

    Returns:
        The content of audit.json.
    """
    _check_out(out)
    training, _ = load_part(train, "train")
    images, seeds = load_part(samples, "samples")
    real = load_part(held_out, "held-out")[0] if held_out else None
    total = len(images) + (len(real) if real else 0)
    run = Path(train)
    flips = flips or (is_run(run) and read_settings(run).data.flips)
    with progress_bar("audit", total, unit="image", shown=on_images is None) as bar:
        result = audit(
            training,
            images,
            real,
            flips=flips,
            extractor=extractor,
            seeds=seeds,
            record=read_record(run),
            on_images=on_images or bar.update,
        )
    save_audit(result, out, {"train": train, "samples": samples, "held_out": held_out or ""})
    return result.numbers


def save_audit(result: AuditResult, out: Path, names: Mapping[str, str] | None = None, most: int = 24) -> Path:
    """Write an audit's folder: audit.json, two tables, and the images that a report shows.

    Args:
        result: the audit.
        out: folder; an earlier audit in it is replaced, anything else refused.
        names: what was audited, as the person who asked for it wrote it: "train", "samples", "held_out".
        most: how many pairs and training images to keep pictures of.
    """
    _check_out(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.json").unlink(missing_ok=True)  # it comes last: with it, the folder is whole
    names = names or {"train": result.train.name, "samples": result.samples.name, "held_out": ""}
    table = _per_unique_image(result)
    worst = result.ratios.argsort(stable=True)[:most]
    top = result.unique[table["copied"].argsort(descending=True, stable=True)[:most]]
    skipped = top[:0]
    if result.record:
        skipped = result.unique[_surely_skipped(table).argsort(descending=True, stable=True)[:most]]
    rows = zip(*(column.tolist() for column in table.values()), strict=True)
    _write_table(out / "samples.csv", _sample_rows(result))
    _write_table(out / "training-images.csv", [dict(zip(table, row, strict=True)) for row in rows])
    pictures = {
        "worst": worst,
        "worst_samples": result.samples.images[worst],
        "worst_originals": result.train.images[result.nearest[worst]],
        "top": top,
        "top_images": result.train.images[top],
        "skipped": skipped,
        "skipped_images": result.train.images[skipped],
        "held_out_ratios": torch.empty(0) if result.held_out_ratios is None else result.held_out_ratios,
    }
    with replacing(out / "pictures.npz") as unfinished, unfinished.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **{name: tensor.numpy() for name, tensor in pictures.items()})
    replace_text(out / "curves.json", json.dumps(result.record.curves if result.record else {}))
    replace_text(out / "audit.json", json.dumps(result.numbers | {"names": dict(names)}, indent=1) + "\n")
    return out


def _check_out(out: Path) -> None:
    if not (out / "audit.json").exists() and holds_others(out, _FILES):
        raise ValueError(f"{out} is not empty and holds no audit: choose another --out")


def _per_unique_image(result: AuditResult) -> dict[str, Tensor]:
    """The table of training images, int64 (U,) each; the places of a repeated image count together."""
    copies = result.place[result.nearest[result.ratios < result.cut]]
    table = {
        "image": result.unique,
        "multiplicity": torch.bincount(result.place),
        "copied": torch.bincount(copies, minlength=len(result.unique)),
    }
    if result.record:
        zeros = torch.zeros_like(result.unique)
        table["seen"] = zeros.index_add(0, result.place, result.record.seen)
        table["skipped"] = zeros.index_add(0, result.place, result.record.skipped)
    return table


def _surely_skipped(table: Mapping[str, Tensor]) -> Tensor:
    """Lower Wilson limit of each image's skipped share: one that was hardly seen does not lead the ranking."""
    n, p, z = table["seen"].clamp(min=1).double(), table["skipped"] / table["seen"].clamp(min=1), 1.96
    return (p + z**2 / (2 * n) - z * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()) / (1 + z**2 / n)


def _sample_rows(result: AuditResult) -> list[Mapping[str, Any]]:
    columns = (result.ratios, result.nearest, result.distances, result.mirrored)
    return [
        {
            "sample": number,
            "seed": result.seeds[number] if result.seeds else "",
            "ratio": repr(ratio),
            "nearest": index,
            "distance": repr(distance),
            "mirrored": int(mirrored),
        }
        for number, (ratio, index, distance, mirrored) in enumerate(zip(*(c.tolist() for c in columns), strict=True))
    ]


def _write_table(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with replacing(file) as unfinished, unfinished.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
