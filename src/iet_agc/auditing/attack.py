"""Copies looked for as an adversary would: `iet_agc.metrics.attacks` of a model that lies on disk.

attack.json    how many images of both kinds each way recovers; written last, with it the folder is whole
images.csv     each image that was redrawn, those of the lowest scores first
drawings.npz   what both are counted from, and the pictures of the page
attack.html    all as a page
.parts         while it is at work

An adversary who has candidates redraws each of them. The draws are the same for training and held-out images, and all
targets are given the same noise, so a difference is one of images.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from iet_agc.auditing.drawings import DRAWINGS, Drawings, WayDrawings, write_drawings
from iet_agc.auditing.pixel_models import Apart, check_fit, load_apart, pixel_pipeline, some_places
from iet_agc.auditing.sources import Part, trained_with_flips
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import Scheduler
from iet_agc.diffusion.redrawing import REDRAW_STEPS, redraw
from iet_agc.diffusion.samplers import described, labels_of, rows_at_a_time, sample
from iet_agc.diffusion.unet import Network, image_shape, load_pipeline, num_classes, weight_files
from iet_agc.metrics.attacks import LEAST_HELD_OUT, WAYS, Attack, Attacks, Drawn, Way, against_sampling, attack, halves
from iet_agc.metrics.calibration import NEIGHBORS, calibrate
from iet_agc.metrics.intervals import Record
from iet_agc.metrics.neighbors import References
from iet_agc.metrics.target_ratios import nearest_of, target_ratios
from iet_agc.reporting.attack_page import ATTACK_FILES, MOST_SHOWN, Shown, render_attack
from iet_agc.runtime import distributed
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import replace_text, sha256, shown
from iet_agc.runtime.parts import compute_parts, read_parts
from iet_agc.runtime.progress import progress_bar
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import unsealed
from iet_agc.runtime.seeds import generator
from iet_agc.runtime.tables import table_text

__all__ = ["AttackRecord", "ImagesOf", "attack_model", "attack_page", "read_attack_record", "read_attacks"]

#: A part on disk holds so many batches.
_PART = 8

#: Fewer samples, or fewer training images, tell nothing.
_LEAST = 20

#: Of each target at most so many drawings: further ones find little.
_MOST_DRAWS = 8

#: Denoising steps of a pipeline, which does not say how many it is sampled with, and at most.
_STEPS, _MOST_STEPS = 50, 500

#: Working memory of a search, bytes.
_MEMORY = 2 * 1024**3


class _Made(Record):
    """What was drawn from what."""

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


class ImagesOf(Record):
    """SHA-256 of shape and pixels of the training and held-out images as they came, as audits tell them."""

    train: str
    held_out: str


class AttackRecord(_Made):
    """The whole of attack.json, beside its seal; attacks before 2026-11-29 do not say `images`."""

    images: ImagesOf | None = None
    found: Attacks


@dataclass(frozen=True)
class _Targets:
    """Images of one kind that are redrawn.

    Attributes:
        kind: of them.
        images: these.
        places: which of all unique images of the kind each is, int64 (N,), ascending.
    """

    kind: Literal["train", "held_out"]
    images: ImageSet
    places: Tensor

    @property
    def own(self) -> Tensor:
        """Which unique training image each is, int64 (N,); -1 of held-out images."""
        return self.places if self.kind == "train" else torch.full_like(self.places, -1)


@dataclass(frozen=True)
class _Attacked:
    """A model, and the images that are looked for in it.

    Attributes:
        apart: all images; the held-out ones are no near copies of training images.
        train, held_out: those that are redrawn.
        audit_cut: the distance ratio below which an audit calls an image a copy.
    """

    model: Network
    scheduler: Scheduler
    made: _Made
    apart: Apart
    train: _Targets
    held_out: _Targets
    audit_cut: float

    @cached_property
    def references(self) -> References:
        """The unique training images, laid out for searches."""
        images = self.apart.train.images
        return References(images, min(NEIGHBORS, len(images)), _MEMORY, torch.device("cpu"))

    @cached_property
    def others(self) -> References:
        """The held-out images, laid out to find the nearest."""
        return References(self.apart.held_out.images, 1, _MEMORY, torch.device("cpu"))

    def sampled(self, seeds: Sequence[int], on_images: Callable[[float], object] = lambda count: None) -> Tensor:
        """Plain samples, uint8 (N, C, H, W)."""
        classes = num_classes(self.model)
        labels = None if classes is None else labels_of(seeds, classes)
        shape, device = image_shape(self.model), self.made.device
        steps = self.made.steps
        return sample(self.model, self.scheduler, seeds, shape, steps, device, on_images, labels)  # pyright: ignore[reportArgumentType]

    def redrawn(
        self, images: ImageSet, draws: Sequence[int], on_images: Callable[[float], object] = lambda count: None
    ) -> Tensor:
        """Images drawn again, each from the noise of a draw, uint8 (N, C, H, W)."""
        noise = {draw: torch.randn(images.shape, generator=generator("attack", draw)) for draw in {*draws}}
        labels = None if num_classes(self.model) is None else images.labels
        each = torch.stack([noise[draw] for draw in draws])
        return redraw(self.model, self.scheduler, images.images, each, labels, on_images)  # pyright: ignore[reportArgumentType]


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
        source: a finished run, or a diffusers pipeline folder of a model over pixels.
        out: the folder. The same call again goes on after a kill, and leaves a whole folder as it is.
        train: see `load_part`; by default what the run trained on.
        held_out: real images that were not trained on; by default what the run, or `train`, holds out.
        budget: plain samples. Targets are redrawn with at most as many evaluations of the model.
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
    folder = pixel_pipeline(source, weights, "attacks are on", train)
    where = distributed.choose_device(device)
    model, scheduler = load_pipeline(folder, where)
    apart = load_apart(train or str(source), held_out or train or str(source), _LEAST, given or {})
    check_fit(model, apart.train, apart.held_out)
    flips = trained_with_flips(str(source)) or trained_with_flips(train or str(source))
    apart, audit_cut = _without_near_copies(apart, flips)
    steps = steps or (read_settings(source).sample.steps if is_run(source) else _STEPS)
    evaluations = budget * steps
    made = _Made(
        pipeline=str(folder.resolve()),
        weights_sha256={file.name: sha256(file) for file in weight_files(folder)},
        scheduler=described(scheduler),
        train_sha256=apart.train.fingerprint,
        held_out_sha256=apart.held_out.fingerprint,
        budget=budget,
        steps=steps,
        draws=_draws(evaluations, len(apart.train)),
        flips=flips,
        device=where.type,
        rows=rows_at_a_time(image_shape(model), where),
    )
    own, real = _targets(apart, evaluations, made.draws)
    attacked = _Attacked(model, scheduler, made, apart, own, real, audit_cut)
    _make(attacked, out)
    return _summary(out) | {"seconds": round(time.perf_counter() - began, 1)}


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


def _draws(evaluations: int, num_train: int) -> int:
    """How often each target is redrawn: what the budget allows, once at least."""
    return min(_MOST_DRAWS, max(1, evaluations // (REDRAW_STEPS * num_train)))


def _targets(apart: Apart, evaluations: int, draws: int) -> tuple[_Targets, _Targets]:
    """At most as many of either kind as the budget allows, drawn at random; of held-out images as many as needed."""
    most = max(1, evaluations // (REDRAW_STEPS * draws))
    own = some_places(len(apart.train), most, "attack", "train")
    real = some_places(len(apart.held_out), max(most, LEAST_HELD_OUT), "attack", "held-out")
    return _Targets("train", apart.train.take(own), own), _Targets("held_out", apart.held_out.take(real), real)


def _make(attacked: _Attacked, out: Path) -> None:
    """Draw what is not drawn yet, and write the folder."""
    made = attacked.made
    words = {"train_sha256": "training images", "held_out_sha256": "held-out images"}
    result, about = ResultFolder(out, ATTACK_FILES["json"], "attack", words=words), made.model_dump()
    result.check(about)
    total = made.budget + made.draws * (len(attacked.train.places) + len(attacked.held_out.places))
    with (
        distributed.processes(torch.device(made.device)),
        result.at_work(about) as unfinished,
        progress_bar("attack", total, unit="image", shown=distributed.rank() == 0) as bar,
    ):
        if unfinished:
            plain = _sampling(attacked, result.parts, bar.update)
            own = _redrawing(attacked, attacked.train, "redrawn-train", result.parts, bar.update)
            real = _redrawing(attacked, attacked.held_out, "redrawn-held-out", result.parts, bar.update)
            distributed.barrier()  # others may still be reading parts
            if distributed.rank() == 0:
                _write(result, attacked, plain, own, real)


# What is drawn ----------------------------------------------------------------------------------------------

#: Numbers of each drawn image, in their order.
_Rows = Mapping[str, Tensor]


def _clock(attacked: _Attacked) -> float:
    """Seconds of all threads of this process; of a GPU, seconds."""
    return time.perf_counter() if attacked.made.device == "cuda" else time.process_time()


def _timed(attacked: _Attacked, draw: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What is drawn, and the seconds of each image, float64 (N,)."""
    began = _clock(attacked)
    drawn = draw()
    return drawn, torch.full((len(drawn),), (_clock(attacked) - began) / len(drawn), dtype=torch.float64)


def _sampling(attacked: _Attacked, parts: Path, on_images: Callable[[float], object]) -> _Rows:
    """Plain samples: the nearest image of either kind, its ratio, and the seconds."""
    made, own, real = attacked.made, attacked.apart.train.images, attacked.apart.held_out.images

    def make(items: slice) -> dict[str, Tensor]:
        drawn, seconds = _timed(attacked, lambda: attacked.sampled(range(items.start, items.stop), on_images))
        near = nearest_of(drawn, attacked.references, made.flips)
        other = nearest_of(drawn, attacked.others, made.flips)
        none = torch.full_like(other, -1)
        return {
            "train": near,
            "train_ratio": target_ratios(drawn, own[near], near, attacked.references, made.flips),
            "held_out": other,
            "held_out_ratio": target_ratios(drawn, real[other], none, attacked.references, made.flips),
            "seconds": seconds,
        }

    return _in_parts(parts, "sampled", made.budget, made.rows, make, on_images)


def _redrawing(
    attacked: _Attacked, targets: _Targets, name: str, parts: Path, on_images: Callable[[float], object]
) -> _Rows:
    """Every target at the first draw, then at the second, and so on: its ratio, and the seconds."""
    made, count, own = attacked.made, len(targets.places), targets.own

    def make(items: slice) -> dict[str, Tensor]:
        places = torch.arange(items.start, items.stop)
        which, draws = places % count, (places // count).tolist()
        images = targets.images.take(which)
        drawn, seconds = _timed(attacked, lambda: attacked.redrawn(images, draws, on_images))
        ratios = target_ratios(drawn, images.images, own[which], attacked.references, made.flips)
        return {"ratio": ratios, "seconds": seconds}

    return _in_parts(parts, name, made.draws * count, made.rows, make, on_images)


def _in_parts(
    parts: Path,
    name: str,
    total: int,
    rows: int,
    make: Callable[[slice], dict[str, Tensor]],
    on_images: Callable[[float], object],
) -> _Rows:
    compute_parts(parts, name, total, _PART * rows, make, on_images)
    return read_parts(parts, name, total, _PART * rows)


# What is counted and written --------------------------------------------------------------------------------


def _write(result: ResultFolder, attacked: _Attacked, plain: _Rows, own: _Rows, real: _Rows) -> None:
    made, apart = attacked.made, attacked.apart
    by_way: dict[Way, tuple[Drawn, Drawn]] = {
        "sampling": (
            _drawn(plain["train"], plain["train_ratio"], len(apart.train)),
            _drawn(plain["held_out"], plain["held_out_ratio"], len(apart.held_out)),
        ),
        "redrawing": (_of_each(own, attacked.train), _of_each(real, attacked.held_out)),
    }
    sampling = _counted(attacked, "sampling", by_way, made.steps, plain)
    redrawing = against_sampling(_counted(attacked, "redrawing", by_way, REDRAW_STEPS, own), sampling)
    found = Attacks(
        num_train=len(apart.train),
        num_held_out=len(apart.held_out),
        audit_cut=attacked.audit_cut,
        unit="GPU" if made.device == "cuda" else "CPU",
        attacks=(sampling, redrawing),
    )
    replace_text(result.place / ATTACK_FILES["csv"], _table(attacked, found, by_way))
    pictures, everything = _pictures(attacked, found, by_way), (len(apart.train), len(apart.held_out))
    places: dict[Way, tuple[NDArray[np.int64], NDArray[np.int64]]] = {
        "sampling": (np.arange(everything[0]), np.arange(everything[1])),
        "redrawing": (attacked.train.places.numpy(), attacked.held_out.places.numpy()),
    }
    drawings = Drawings(
        totals=everything,
        images=(_images(apart, attacked.train), _images(apart, attacked.held_out)),
        ways={way: WayDrawings(places[way], drawn, pictures[way]) for way, drawn in by_way.items()},
    )
    write_drawings(result.place, drawings)
    images = dict(zip(("train", "held_out"), apart.whole_sha256, strict=True))
    content = AttackRecord(**made.model_dump(), images=ImagesOf(**images), found=found)
    replace_text(result.place / ATTACK_FILES["html"], attack_page(content, drawings))
    result.finish(content.model_dump(mode="json"), [ATTACK_FILES["csv"], DRAWINGS, ATTACK_FILES["html"]])


def attack_page(record: AttackRecord, drawings: Drawings) -> str:
    """The page of an attack, from what its folder keeps."""
    pipeline, redrawn = Path(record.pipeline), drawings.ways["redrawing"].drawn
    facts = {"model": pipeline.name, "run": pipeline.parent.name, "steps": record.steps}
    scores = redrawn[0].scores, redrawn[1].scores
    facts |= {"draws": record.draws, "redraw_steps": REDRAW_STEPS}
    pictures = {way: each.pictures for way, each in drawings.ways.items()}
    return render_attack(record.found, scores, pictures, facts)


def _images(apart: Apart, targets: _Targets) -> NDArray[np.int64]:
    """Where each target stands first in the set that it comes from."""
    places = apart.places if targets.kind == "train" else apart.held_out_places
    return places[targets.places].numpy()


def _drawn(targets: Tensor, ratios: Tensor, count: int) -> Drawn:
    return Drawn(targets.numpy(), ratios.numpy(), count)


def _of_each(rows: _Rows, targets: _Targets) -> Drawn:
    """Of redrawn targets, in the order of `_redrawing`."""
    ratios, count = rows["ratio"], len(targets.places)
    return _drawn(torch.arange(len(ratios)) % count, ratios, count)


def _counted(
    attacked: _Attacked, way: Way, by_way: Mapping[Way, tuple[Drawn, Drawn]], steps: int, rows: _Rows
) -> Attack:
    own, real = by_way[way]
    evaluations, seconds = steps * len(own.ratios), float(rows["seconds"].sum())
    return attack(way, own, real, attacked.audit_cut, evaluations, seconds, attacked.made.steps)


def _pictures(attacked: _Attacked, found: Attacks, by_way: Mapping[Way, tuple[Drawn, Drawn]]) -> dict[Way, list[Shown]]:
    """Of each way, recovered training images of the lowest scores beside what was drawn of them."""
    apart, pictures = attacked.apart, dict[Way, list[Shown]]()
    for each in found.attacks:
        own = by_way[each.way][0]
        pairs = own.closest(min(MOST_SHOWN, each.train.count))
        targets = torch.tensor([target for target, _ in pairs], dtype=torch.int64)
        unique = targets if each.way == "sampling" else attacked.train.places[targets]
        drawn = _drawn_again(attacked, each.way, targets, [drawing for _, drawing in pairs])
        pictures[each.way] = [
            Shown(
                image=int(apart.places[place]),
                multiplicity=int(apart.multiplicity[place]),
                score=float(own.ratios[drawing]),
                trained=apart.train.images[place].numpy(),
                drawn=picture.numpy(),
            )
            for (_, drawing), place, picture in zip(pairs, unique.tolist(), drawn, strict=True)
        ]
    return pictures


def _drawn_again(attacked: _Attacked, way: Way, targets: Tensor, drawings: Sequence[int]) -> Tensor:
    """What a way drew, by its number, uint8 (N, C, H, W)."""
    if not drawings:
        return attacked.train.images.images[:0]
    if way == "sampling":
        return attacked.sampled(drawings)
    draws = [drawing // len(attacked.train.places) for drawing in drawings]
    return attacked.redrawn(attacked.train.images.take(targets), draws)


def _table(attacked: _Attacked, found: Attacks, by_way: Mapping[Way, tuple[Drawn, Drawn]]) -> str:
    """A row per image that was redrawn, the lowest score of redrawing first."""
    cuts = {each.way: each.cut for each in found.attacks}
    rows: list[dict[str, object]] = []
    for side, targets in enumerate((attacked.train, attacked.held_out)):
        of_way = {way: by_way[way][side].scores for way in WAYS}
        of_way["sampling"] = of_way["sampling"][targets.places.numpy()]
        for number, known in enumerate(_known(attacked.apart, targets)):
            scores = {way: float(of_way[way][number]) for way in WAYS}
            row = known | {f"{way}_score": score if np.isfinite(score) else None for way, score in scores.items()}
            rows.append(row | {f"{way}_recovered": score < cuts[way] for way, score in scores.items()})
    rows.sort(key=lambda row: float(str(row["redrawing_score"])))
    return table_text(rows)


def _known(apart: Apart, targets: _Targets) -> list[dict[str, object]]:
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
