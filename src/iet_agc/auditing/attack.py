"""Copies looked for as an adversary would: `iet_agc.metrics.attacks` of a model that lies on disk.

attack.json    how many images of both kinds each way recovers; written last, with it the folder is whole
images.csv     each image that was redrawn, those of the lowest scores first
drawings.npz   what both are counted from, and the pictures of the page
attack.html    all as a page
.parts         while it is at work
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import SerializerFunctionWrapHandler, ValidationError, model_serializer

from iet_agc.auditing.attack_ways import Attacked, Found, Model, Plan, Targets, redrawing, sampling
from iet_agc.auditing.attacked_pixels import open_pixels
from iet_agc.auditing.attacked_text import TextModel, open_text
from iet_agc.auditing.drawings import DRAWINGS, Drawings, WayDrawings, write_drawings
from iet_agc.auditing.pixel_models import Apart, load_apart, trained_pipeline
from iet_agc.auditing.sources import Part, trained_with_flips
from iet_agc.auditing.text_ways import text_about, text_plans
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.config.settings import Settings
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.redrawing import REDRAW_STEPS
from iet_agc.diffusion.samplers import described
from iet_agc.diffusion.unet import is_text_pipeline
from iet_agc.metrics.attacks import LEAST_HELD_OUT, WAYS, Attacks, Way, against_sampling, attack, halves
from iet_agc.metrics.calibration import calibrate
from iet_agc.metrics.intervals import Record
from iet_agc.reporting.attack_page import ATTACK_FILES, MOST_SHOWN, Shown, render_attack
from iet_agc.runtime import distributed
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import replace_text, sha256, shown
from iet_agc.runtime.progress import progress_bar
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import unsealed
from iet_agc.runtime.tables import table_text

__all__ = ["AttackRecord", "ImagesOf", "attack_model", "attack_page", "read_attack_record", "read_attacks"]

#: Fewer samples, or fewer training images, tell nothing.
_LEAST = 20

#: Denoising steps of a pipeline, which does not say how many it is sampled with, and at most.
_STEPS, _MOST_STEPS = 50, 500


class _Made(Record):
    """What was drawn from what; `text_to_image` is None of models over pixels, and left out."""

    format: Literal["iet-agc attack"] = "iet-agc attack"
    version: Literal[1] = 1
    pipeline: str
    weights_sha256: dict[str, str]
    scheduler: dict[str, object]
    train_sha256: str
    held_out_sha256: str
    budget: int
    steps: int
    draws: int
    flips: bool
    device: str
    rows: int
    text_to_image: dict[str, object] | None = None

    @model_serializer(mode="wrap")
    def _unless_pixels(self, plain: SerializerFunctionWrapHandler) -> dict[str, object]:
        found: dict[str, object] = plain(self)
        return {key: value for key, value in found.items() if key != "text_to_image" or value is not None}


class ImagesOf(Record):
    """SHA-256 of shape and pixels of the training and held-out images as they came, as audits tell them."""

    train: str
    held_out: str


class AttackRecord(_Made):
    """The whole of attack.json, beside its seal; attacks before 2026-11-29 do not say `images`."""

    images: ImagesOf | None = None
    found: Attacks


def attack_model(
    source: Path,
    out: Path,
    train: str | None = None,
    held_out: str | None = None,
    *,
    budget: int = 2000,
    steps: int | None = None,
    weights: Literal["raw", "ema"] | None = None,
    device: str = "auto",
    given: Mapping[Part, ImageSet] | None = None,
) -> dict[str, object]:
    """Look for copies as an adversary would, and write a folder: what `iet-agc attack` does.

    Args:
        source: a finished run, or a diffusers pipeline folder.
        out: the folder. The same call again goes on after a kill, and leaves a whole folder as it is.
        train: see `load_part`; by default what the run trained on.
        held_out: real images that were not trained on; by default what the run, or `train`, holds out.
        budget: plain samples. Every other way takes at most as many evaluations of the model, or those of one target.
        steps: of a plain sample; by default those of the run, or 50.
        weights: of a run; by default those of its sample.weights.
        device: "auto", "cpu" or "cuda".
        given: those of the two sets that are in memory, see `load_part`.

    Returns:
        A summary, JSON values only.

    Raises:
        UserError: no such model, images that do not fit it, too few of either kind, or `out` holds something else.
    """
    began = time.perf_counter()
    _check_number("budget", budget, _LEAST, None)
    _check_number("steps", _STEPS if steps is None else steps, 1, _MOST_STEPS)
    folder = trained_pipeline(source, weights, train)
    where = distributed.choose_device(device)
    steps = steps or (read_settings(source).sample.steps if is_run(source) else _STEPS)
    model = _open(source, folder, steps, where)
    apart = load_apart(train or str(source), held_out or train or str(source), _LEAST, given or {})
    model = model.fitted(apart)
    flips = trained_with_flips(str(source)) or trained_with_flips(train or str(source))
    apart, audit_cut = _without_near_copies(apart, flips)
    attacked = Attacked(model, apart, budget, flips, audit_cut)
    _make(attacked, _made(attacked, folder, steps), out)
    return _summary(out) | {"seconds": round(time.perf_counter() - began, 1)}


def _open(source: Path, folder: Path, steps: int, device: torch.device) -> Model:
    """The model of a folder; a run says how its own draws by prompts."""
    if not is_text_pipeline(folder):
        return open_pixels(folder, steps, device)
    return open_text(folder, read_settings(source) if is_run(source) else Settings(), steps, device)


def _made(attacked: Attacked, folder: Path, steps: int) -> _Made:
    model, apart = attacked.model, attacked.apart
    return _Made(
        pipeline=str(folder.resolve()),
        weights_sha256={name: sha256(file) for name, file in model.files.items()},
        scheduler=described(model.scheduler),
        train_sha256=apart.train.fingerprint,
        held_out_sha256=apart.held_out.fingerprint,
        budget=attacked.budget,
        steps=steps,
        draws=attacked.draws,
        flips=attacked.flips,
        device=model.device.type,
        rows=model.rows,
        text_to_image=text_about(model, attacked) if isinstance(model, TextModel) else None,
    )


def _check_number(name: str, value: int, least: int, most: int | None) -> None:
    if value < least or (most is not None and value > most):
        limits = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"{name} is {limits}, not {value}", name)


def _without_near_copies(apart: Apart, flips: bool) -> tuple[Apart, float]:
    """Leave near copies of training images out of the held-out ones; and the cut of an audit."""
    found = calibrate(apart.train.images, apart.inverse, apart.held_out.images, apart.in_train, flips)
    kept = found.fresh.nonzero()[:, 0]
    if len(kept) < LEAST_HELD_OUT or found.cut is None:
        raise UserError(
            f"{len(kept)} held-out images that are neither training images nor near copies of them are too few: "
            f"each half sets the cut by which the other is counted; give {LEAST_HELD_OUT} or more",
            "held_out",
        )
    fresh = replace(apart, held_out=apart.held_out.take(kept), held_out_places=apart.held_out_places[kept])
    return fresh, found.cut


def _make(attacked: Attacked, made: _Made, out: Path) -> None:
    """Draw what is not drawn yet, and write the folder."""
    words = {"train_sha256": "training images", "held_out_sha256": "held-out images"}
    words |= {"text_to_image": "captions, or settings of sampling"}
    result, about = ResultFolder(out, ATTACK_FILES["json"], "attack", words=words), made.model_dump()
    result.check(about)
    plans = _plans(attacked)
    total = sum(plan.total for plan in plans)
    with (
        distributed.processes(attacked.model.device),
        result.at_work(about) as unfinished,
        progress_bar("attack", total, unit="evaluation", shown=distributed.rank() == 0) as bar,
    ):
        if unfinished:
            found = [plan.find(result.parts, bar.update) for plan in plans]
            distributed.barrier()  # others may still be reading parts
            if distributed.rank() == 0:
                _write(result, attacked, made, found)


def _plans(attacked: Attacked) -> list[Plan]:
    """The ways to go, plain sampling first."""
    further = text_plans(attacked.model, attacked) if isinstance(attacked.model, TextModel) else ()
    return [sampling(attacked), redrawing(attacked), *further]


# What is counted and written --------------------------------------------------------------------------------


def _write(result: ResultFolder, attacked: Attacked, made: _Made, ways: Sequence[Found]) -> None:
    apart, found = attacked.apart, _counted(attacked, ways)
    by_way: dict[Way, Found] = {each.way: each for each in ways}
    replace_text(result.place / ATTACK_FILES["csv"], _table(apart, found, by_way))
    own, real = by_way["redrawing"].targets
    drawings = Drawings(
        totals=(len(apart.train), len(apart.held_out)),
        images=(_images(apart, own), _images(apart, real)),
        ways={each.way: _kept(apart, each, found) for each in ways},
    )
    write_drawings(result.place, drawings)
    images = dict(zip(("train", "held_out"), apart.whole_sha256, strict=True))
    content = AttackRecord(**made.model_dump(), images=ImagesOf(**images), found=found)
    replace_text(result.place / ATTACK_FILES["html"], attack_page(content, drawings))
    result.finish(content.model_dump(mode="json"), [ATTACK_FILES["csv"], DRAWINGS, ATTACK_FILES["html"]])


def _kept(apart: Apart, way: Found, found: Attacks) -> WayDrawings:
    own, real = (each.places.numpy() for each in way.targets)
    return WayDrawings((own, real), way.drawn, _pictures(apart, way, found), way.before)


def attack_page(record: AttackRecord, drawings: Drawings) -> str:
    """The page of an attack, from what its folder keeps."""
    pipeline, redrawn, sampled = Path(record.pipeline), drawings.ways["redrawing"].drawn, record.found.attacks[0]
    facts: dict[str, str | int] = {"model": pipeline.name, "run": pipeline.parent.name, "steps": record.steps}
    facts |= {"per_sample": sampled.evaluations // sampled.drawings}
    facts |= {"draws": record.draws, "redraw_steps": REDRAW_STEPS}
    pictures: dict[Way, list[Shown]] = {way: each.pictures for way, each in drawings.ways.items()}
    scores = redrawn[0].scores, redrawn[1].scores
    return render_attack(record.found, scores, pictures, facts, record.text_to_image)


def _images(apart: Apart, targets: Targets) -> NDArray[np.int64]:
    """Where each target stands first in the set that it comes from."""
    places = apart.places if targets.kind == "train" else apart.held_out_places
    return places[targets.places].numpy()


def _counted(attacked: Attacked, ways: Sequence[Found]) -> Attacks:
    """What each way recovers; plain sampling is the first."""
    cut, per_sample = attacked.audit_cut, attacked.model.per_sample
    counted = [
        attack(each.way, *each.drawn, cut, each.evaluations, each.seconds, per_sample, each.before) for each in ways
    ]
    return Attacks(
        num_train=len(attacked.apart.train),
        num_held_out=len(attacked.apart.held_out),
        audit_cut=cut,
        unit="GPU" if attacked.model.device.type == "cuda" else "CPU",
        attacks=(counted[0], *(against_sampling(each, counted[0]) for each in counted[1:])),
    )


def _pictures(apart: Apart, way: Found, found: Attacks) -> list[Shown]:
    """Recovered training images of the lowest scores beside what was drawn of them."""
    (recovered,) = (each.train.count for each in found.attacks if each.way == way.way)
    own, targets = way.drawn[0], way.targets[0]
    pairs = own.closest(min(MOST_SHOWN, recovered))
    drawn = way.again([drawing for _, drawing in pairs]) if pairs else ()
    return [
        Shown(
            image=int(apart.places[place]),
            multiplicity=int(apart.multiplicity[place]),
            score=float(own.ratios[drawing]),
            trained=apart.train.images[place].numpy(),
            drawn=picture.numpy(),
        )
        for (target, drawing), picture in zip(pairs, drawn, strict=True)
        for place in targets.places[target : target + 1].tolist()
    ]


def _table(apart: Apart, found: Attacks, by_way: Mapping[Way, Found]) -> str:
    """A row per image that was redrawn, the lowest score of redrawing first."""
    cuts = {each.way: each.cut for each in found.attacks}
    rows: list[dict[str, object]] = []
    for side, targets in enumerate(by_way["redrawing"].targets):
        count = len((apart.train, apart.held_out)[side])
        of_way = {way: by_way[way].scores(side, count)[targets.places.numpy()] for way in WAYS if way in by_way}
        for number, known in enumerate(_known(apart, targets)):
            scores = {way: float(each[number]) for way, each in of_way.items()}
            row = known | {f"{way}_score": score if np.isfinite(score) else None for way, score in scores.items()}
            rows.append(row | {f"{way}_recovered": score < cuts[way] for way, score in scores.items()})
    rows.sort(key=lambda row: float(str(row["redrawing_score"])))
    return table_text(rows)


def _known(apart: Apart, targets: Targets) -> list[dict[str, object]]:
    """Of each target, what is known without a model."""
    trained = targets.kind == "train"
    places = _images(apart, targets).tolist()
    copies = apart.multiplicity[targets.places].tolist() if trained else [None] * len(places)
    half = [None] * len(places) if trained else [1 if first else 2 for first in halves(len(places)).tolist()]
    files = targets.images.files or [None] * len(places)
    names = "set", "image", "file", "multiplicity", "half"
    columns = [targets.kind] * len(places), places, files, copies, half
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


# What is read -----------------------------------------------------------------------------------------------


def read_attack_record(folder: Path, files: Sequence[str] = ()) -> AttackRecord:
    """All that a folder says.

    Args:
        folder: that `attack_model` wrote.
        files: beside attack.json, which have to be as they were written, too.

    Raises:
        UserError: it is not there, or damaged.
    """
    file = folder / ATTACK_FILES["json"]
    content = unsealed(file, read_object(file, "attack again"), "attack again", files)
    try:
        return AttackRecord.model_validate_json(json.dumps(content))
    except ValidationError:
        raise UserError(f"{shown(file)} is damaged: remove it, or choose another output", "out") from None


def read_attacks(folder: Path, files: Sequence[str] = ()) -> Attacks:
    """The numbers of a folder; see `read_attack_record`."""
    return read_attack_record(folder, files).found


def _summary(out: Path) -> dict[str, object]:
    found = read_attacks(out).model_dump(mode="json", exclude={"attacks": {"__all__": {"found_after"}}})
    return {"attack": str(out), **found, "page": str(out / ATTACK_FILES["html"])}
