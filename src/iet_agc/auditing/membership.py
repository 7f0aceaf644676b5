"""Membership inference on a trained model: `iet_agc.metrics.membership` of what lies on disk.

membership.json    how well losses tell training images from others; written last, with it the folder is whole
images.csv         each image that was looked at, the most exposed first
membership.html    both as a page
.parts             while it is at work

Every image is given the same noise at the same timesteps, so a difference of losses is one of images.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from iet_agc.auditing.pixel_models import check_fit, load_apart, pixel_pipeline, some_places
from iet_agc.auditing.sources import Part, read_record
from iet_agc.data.image_set import ImageSet
from iet_agc.diffusion.process import NUM_TIMESTEPS, per_sample_loss, to_float
from iet_agc.diffusion.samplers import described, rows_at_a_time
from iet_agc.diffusion.unet import image_shape, load_pipeline, num_classes, weight_files
from iet_agc.metrics.intervals import Record
from iet_agc.metrics.membership import Correlation, Membership, attacked, correlation, membership, scores
from iet_agc.reporting.membership_page import MEMBERSHIP_FILES, render_membership
from iet_agc.runtime import distributed
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import replace_text, sha256, shown
from iet_agc.runtime.fixed_rows import fixed_rows
from iet_agc.runtime.parts import compute_parts, read_parts
from iet_agc.runtime.progress import progress_bar
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import unsealed
from iet_agc.runtime.seeds import generator
from iet_agc.runtime.tables import table_text

__all__ = ["infer_members", "losses_of"]

#: A part on disk holds so many batches.
_PART = 8

#: Fewer images of either kind tell nothing.
_LEAST = 20


@torch.inference_mode()
def losses_of(
    model: Any,
    scheduler: Any,
    images: Tensor,
    draws: int,
    labels: Tensor | None = None,
    on_images: Callable[[float], object] = lambda count: None,
) -> Tensor:
    """The losses of images at draws that are the same for all of them.

    Args:
        model, scheduler: see `per_sample_loss`.
        images: uint8 (N, C, H, W), on the CPU.
        draws: T; timesteps lie evenly, see `timesteps_of`.
        labels: class of each, int64 (N,), of a class-conditional model.
        on_images: called with finished fractions of images, for progress.

    Returns:
        float32 (N, T), on the CPU.
    """
    shape, device = images.shape[1:], next(model.parameters()).device
    timesteps = timesteps_of(draws)
    noise = torch.stack([torch.randn(shape, generator=generator("membership", draw)) for draw in range(draws)])
    found = [torch.empty(0, draws)]
    rows = rows_at_a_time((shape[0], shape[1], shape[2]), device)
    for places, count in fixed_rows(len(images), rows):
        clean = to_float(images[places]).to(device)
        classes = None if labels is None else labels[places].to(device)
        columns = []
        for at, each in zip(timesteps, noise, strict=True):
            same = each.to(device).expand_as(clean)
            columns.append(per_sample_loss(model, scheduler, clean, at.expand(rows).to(device), same, classes))
            on_images(count / draws)
        found.append(torch.stack(columns, dim=1)[:count].cpu())
    return torch.cat(found)


def timesteps_of(draws: int) -> Tensor:
    """The timestep of each draw, int64 (T,): in the middles of T equal parts of the noise schedule."""
    return (torch.arange(draws) * NUM_TIMESTEPS + NUM_TIMESTEPS // 2) // draws


# On disk ----------------------------------------------------------------------------------------------------


class _Made(Record):
    """What losses were made from."""

    format: Literal["iet-agc membership"] = "iet-agc membership"
    version: Literal[1] = 1
    pipeline: str
    weights_sha256: dict[str, str]
    scheduler: dict[str, object]
    train_sha256: str
    held_out_sha256: str
    draws: int
    device: str
    rows: int


class _Content(_Made):
    """The whole of membership.json, beside its seal."""

    membership: Membership
    skips: Correlation | None


@dataclass(frozen=True)
class _Sets:
    """What is compared: unique training images, and images that are not among them.

    Attributes:
        places, held_out_places: where each stands in the set that it was taken from, of equal ones the first.
        multiplicity: how often each training image stands in the training set, (N,).
        seen, skipped: how often it was drawn in training, and left out by AGC, (N,); None where that is not known.
    """

    train: ImageSet
    held_out: ImageSet
    places: Sequence[int]
    held_out_places: Sequence[int]
    multiplicity: Sequence[int]
    seen: Sequence[int] | None
    skipped: Sequence[int] | None

    @property
    def skip_shares(self) -> list[float] | None:
        """Of the times that each was drawn; None where that is not known, or none was skipped."""
        if self.seen is None or self.skipped is None or not any(self.skipped):
            return None
        return [skipped / max(1, seen) for seen, skipped in zip(self.seen, self.skipped, strict=True)]


def infer_members(
    source: Path,
    out: Path,
    train: str | None = None,
    held_out: str | None = None,
    *,
    num_images: int = 1000,
    draws: int = 100,
    weights: Literal["raw", "ema"] | None = None,
    device: str = "auto",
    given: Mapping[Part, ImageSet] | None = None,
) -> dict[str, object]:
    """Tell training images from others by their losses, and write a folder: what `iet-agc membership` does.

    Args:
        source: a finished run, or a diffusers pipeline folder of a model over pixels.
        out: the folder. The same call again goes on after a kill, and leaves a whole folder as it is.
        train: see `load_part`; by default what the run trained on.
        held_out: real images that were not trained on; by default what the run, or `train`, holds out.
        num_images: at most so many of either kind, drawn at random by a fixed seed.
        draws: losses of each image.
        weights: of a run; by default those of its sample.weights.
        device: "auto", "cpu" or "cuda".
        given: those of the two sets that are in memory, see `load_part`.

    Returns:
        A summary, JSON values only.

    Raises:
        UserError: no such model, images that do not fit it, fewer than 20 of either kind, or `out` holds something
            else.
    """
    began = time.perf_counter()
    _check_number("num_images", num_images, _LEAST)
    _check_number("draws", draws, 1)
    folder = pixel_pipeline(source, weights, "membership is inferred of", train)
    where = distributed.choose_device(device)
    model, scheduler = load_pipeline(folder, where)
    sets = _sets(train or str(source), held_out or train or str(source), num_images, given or {})
    check_fit(model, sets.train, sets.held_out)
    made = _made(folder, scheduler, sets, draws, where, rows_at_a_time(image_shape(model), where))
    words = {"train_sha256": "training images", "held_out_sha256": "held-out images"}
    result, about = ResultFolder(out, MEMBERSHIP_FILES["json"], "membership inference", words=words), made.model_dump()
    result.check(about)
    total = len(sets.train) + len(sets.held_out)
    with (
        distributed.processes(where),
        result.at_work(about) as unfinished,
        progress_bar("membership", total, unit="image", shown=distributed.rank() == 0) as bar,
    ):
        if unfinished:
            losses = _losses(result.parts, made, model, scheduler, sets, bar.update)
            distributed.barrier()  # others may still be reading parts
            if distributed.rank() == 0:
                _write(result, made, sets, losses)
    return _summary(out) | {"seconds": round(time.perf_counter() - began, 1)}


def _check_number(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} is {least} or more, not {value}", name)


def _sets(train: str, held_out: str, most: int, given: Mapping[Part, ImageSet]) -> _Sets:
    apart = load_apart(train, held_out, _LEAST, given)
    chosen = some_places(len(apart.train), most, "membership", "train")
    others = some_places(len(apart.held_out), most, "membership", "held-out")
    record = read_record(train, len(apart.inverse))
    return _Sets(
        train=apart.train.take(chosen),
        held_out=apart.held_out.take(others),
        places=apart.places[chosen].tolist(),
        held_out_places=apart.held_out_places[others].tolist(),
        multiplicity=apart.multiplicity[chosen].tolist(),
        seen=None if record is None else _sums(record.seen, apart.inverse)[chosen].tolist(),
        skipped=None if record is None else _sums(record.skipped, apart.inverse)[chosen].tolist(),
    )


def _sums(counts: Tensor, place: Tensor) -> Tensor:
    """Of each unique image, the sum over its copies, int64 (U,)."""
    return torch.zeros(int(place.max()) + 1, dtype=torch.int64).index_add_(0, place, counts)


def _made(folder: Path, scheduler: Any, sets: _Sets, draws: int, where: torch.device, rows: int) -> _Made:
    return _Made(
        pipeline=str(folder.resolve()),
        weights_sha256={file.name: sha256(file) for file in weight_files(folder)},
        scheduler=described(scheduler),
        train_sha256=sets.train.fingerprint,
        held_out_sha256=sets.held_out.fingerprint,
        draws=draws,
        device=where.type,
        rows=rows,
    )


def _losses(
    parts: Path, made: _Made, model: Any, scheduler: Any, sets: _Sets, on_images: Callable[[float], object]
) -> Tensor:
    """Of training images, then of held-out images, over all processes, float32 (N + M, T)."""
    both, conditional = torch.cat([sets.train.images, sets.held_out.images]), num_classes(model) is not None
    known = [each.labels for each in (sets.train, sets.held_out) if each.labels is not None]
    labels = torch.cat(known) if conditional else None

    def make(items: slice) -> dict[str, Tensor]:
        own = None if labels is None else labels[items]
        return {"losses": losses_of(model, scheduler, both[items], made.draws, own, on_images)}

    length = _PART * made.rows
    compute_parts(parts, "losses", len(both), length, make, on_images)
    return read_parts(parts, "losses", len(both), length)["losses"]


def _write(result: ResultFolder, made: _Made, sets: _Sets, losses: Tensor) -> None:
    if not losses.isfinite().all():
        raise UserError(f"{made.pipeline} has losses that are not finite: its weights are broken")
    own, others = losses.numpy()[: len(sets.train)], losses.numpy()[len(sets.train) :]
    timesteps = timesteps_of(made.draws).tolist()
    counted = attacked(timesteps, NUM_TIMESTEPS)
    mine, real = scores(own[:, counted], others[:, counted])
    shares = sets.skip_shares
    found = _Content(
        **made.model_dump(),
        membership=membership(own, others, timesteps, NUM_TIMESTEPS),
        skips=None if shares is None else correlation(mine.tolist(), shares),
    )
    replace_text(result.place / MEMBERSHIP_FILES["csv"], _table(sets, mine.tolist(), real.tolist()))
    facts = {"model": Path(made.pipeline).name, "run": Path(made.pipeline).parent.name}
    page = render_membership(found.membership, found.skips, mine, real, facts)
    replace_text(result.place / MEMBERSHIP_FILES["html"], page)
    result.finish(found.model_dump(mode="json"), [MEMBERSHIP_FILES["csv"], MEMBERSHIP_FILES["html"]])


def _table(sets: _Sets, mine: Sequence[float], real: Sequence[float]) -> str:
    """A row per image, the highest score first."""
    of_train = (sets.train, "train", sets.places, mine, sets.multiplicity, sets.seen, sets.skipped)
    of_others = (sets.held_out, "held_out", sets.held_out_places, real, None, None, None)
    rows: list[dict[str, object]] = []
    for images, what, places, found, *known in (of_train, of_others):
        for number, score in enumerate(found):
            row: dict[str, object] = {"set": what, "image": places[number], "score": score}
            row["exposure"] = sum(other < score for other in real) / len(real)
            row["file"] = images.files[number] if images.files else ""
            counts = ("" if each is None else each[number] for each in known)
            rows.append(row | dict(zip(("multiplicity", "seen", "skipped"), counts, strict=True)))
    rows.sort(key=lambda row: -float(str(row["score"])))
    return table_text(rows)


def read_membership(folder: Path, files: Sequence[str] = ()) -> tuple[Membership, Correlation | None]:
    """What a folder says.

    Args:
        folder: that `infer_members` wrote.
        files: beside membership.json, which have to be as they were written, too.

    Returns:
        How well losses tell training images from others; the correlation of scores with the shares that AGC skipped.

    Raises:
        UserError: it is not there, or damaged.
    """
    found = _read(folder, files)
    return found.membership, found.skips


def _read(folder: Path, files: Sequence[str] = ()) -> _Content:
    file = folder / MEMBERSHIP_FILES["json"]
    content = unsealed(file, read_object(file, "infer again"), "infer again", files)
    try:
        return _Content.model_validate_json(json.dumps(content))
    except ValidationError:
        raise UserError(f"{shown(file)} is damaged: remove it, or choose another output", "out") from None


def _summary(out: Path) -> dict[str, object]:
    found = _read(out)
    told = found.model_dump(mode="json", include={"membership", "skips"})
    return {
        "membership": str(out),
        **told["membership"],
        "skips": told["skips"],
        "page": str(out / MEMBERSHIP_FILES["html"]),
    }
