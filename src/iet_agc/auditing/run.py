"""Audits on disk: from sources to an audit's folder, shared by processes; a kill loses little.

audit.json              the numbers; written last, with it the folder is whole
samples.csv             ratio and nearest training image of every sample; by feature space, the most similar one
training-images.csv     how often every training image was copied, by which samples; seen and skipped how often
training-images.json    the same
mending.csv             files of the sets that were mended or left out, where there are any
pictures.npz            the images that a report shows
scores.npz              what was measured of each image: all that the numbers were counted from
curves.json             the training curves of an audited run
.inputs.json            what it was made from, told without reading it: the same command again is over at once
.parts                  while it is at work
.decoded                meanwhile, pixels that are not held in memory
.written, .whole        a new audit's files, while they are written, and while they take the place of the one before
"""

import csv
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from iet_agc.auditing.compute import AuditResult, audit, check_sets, choose_networks
from iet_agc.auditing.copies import ALTERATIONS
from iet_agc.auditing.finished import FILES, INPUTS, SCORES, WATCH, Asked, files_of, inputs_of, remember
from iet_agc.auditing.prompt_following import check_prompts
from iet_agc.auditing.schema import FLAT, AuditRecord, AuditWarning, Mended, Names, Provenance
from iet_agc.auditing.scores import as_arrays
from iet_agc.auditing.sources import Part, load_part, read_record, resize_of, trained_with_flips
from iet_agc.auditing.work import Arrays, Kept, Maker, Work
from iet_agc.data.arrays import may_be_mapped
from iet_agc.data.copy_tables import Pairs, read_pairs
from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import LIST_NAME, Mending, TreatedFile, counts, in_short, write_list
from iet_agc.data.pixel_store import PixelStore
from iet_agc.metrics.clip import Clip, load_clip
from iet_agc.metrics.features import Extractor, load_extractor
from iet_agc.metrics.groups import group_sizes
from iet_agc.metrics.intervals import Record
from iet_agc.metrics.records import NoQuality, StandsIn
from iet_agc.runtime import distributed, torchrun
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.exposure import TrainingRecord
from iet_agc.runtime.files import WriteError, check_ours, digest, flush, replace_text, replacing, shown
from iet_agc.runtime.kept_tensors import KeptTensors
from iet_agc.runtime.parts import compute_parts, read_parts
from iet_agc.runtime.progress import progress_bar, say
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import is_sealed, unsealed, write_sealed
from iet_agc.runtime.stamps import stamps

__all__ = ["audit_sources", "fingerprints", "save_audit", "settle_audit"]

#: Where files of a new audit are written; it is renamed when all are whole, and emptied file by file into the folder.
_WRITTEN, _WHOLE = ".written", ".whole"

#: Where pixels of large sets are kept while they are audited.
_DECODED = ".decoded"

#: What an audit is made of, in words.
_SETS = ("train", "samples", "held_out")
_WORDS = {"train": "training images", "samples": "samples", "held_out": "held-out images", "clip": "CLIP models"}

#: Work is cut into so many parts at least, for processes to share, and into parts of so many items at most and at
#: least. A kill loses a part of each process.
_LEAST_PARTS, _LONGEST_PART, _SHORTEST_PART = 16, 2048, 64

#: Raised whenever parts of the same name come to hold something else, so that an audit does not go on from old ones.
_CONTENT = 4


def audit_sources(
    asked: Asked,
    *,
    fail_above: float | None = None,
    memory: int = 2 * 1024**3,
    download: bool = False,
    cache: Path | None = None,
    on_done: Callable[[float], object] | None = None,
    given: Mapping[Part, ImageSet] = MappingProxyType({}),
) -> AuditRecord:
    """Audit what lies on disk and write the audit's folder: what `iet-agc audit` does.

    The same call again goes on where a killed one stopped; under `torchrun` all processes share the work.

    Args:
        asked: of what, and how.
        fail_above: see `audit`.
        memory: bytes, see `Work`.
        download: see `load_extractor`.
        cache: folder in which the features of training and held-out images are kept, by their pixels and the network's
            weights, so that another audit against them computes those of its samples only.
        on_done: see `Work`; in place of the progress bar.
        given: sets that are in memory, which are not read; their names are those of what they are then, or the run that
            was trained on them.

    Returns:
        The content of audit.json.

    Raises:
        UserError: see `load_part`, `audit` and `read_record`; the folder holds another audit, finished or not, or
            something else, or another process is at work in it.
    """
    inputs, mapped = inputs_of(asked, fingerprints(given)), _mapped(asked)
    folder = ResultFolder(asked.out, "audit.json", "audit", "made_of", _WORDS, {_WRITTEN, _WHOLE, INPUTS, _DECODED})
    folder.check({})
    where, shown_bar = distributed.choose_device(asked.device), on_done is None and torchrun.is_first()
    networks_for = _networks_for(asked, where, download)
    judge = load_clip(asked.clip, where) if asked.clip else None
    store = PixelStore(asked.out / _DECODED)
    with _until_done(store):
        with progress_bar("read", None, unit="image", shown=shown_bar) as bar:
            read = _read(asked, networks_for, judge, bar.update, given, store)
        made_of = _inputs(asked, read)
        folder.check(made_of)
        with (
            distributed.processes(where),
            folder.at_work(made_of | _surroundings(read.networks, where), anew=True),
            progress_bar("audit", 100, unit="", shown=shown_bar) as bar,
        ):
            if distributed.rank() == 0:
                settle_audit(asked.out)
            parts = _Parts(folder.parts, bar.name_phase, KeptTensors(cache) if cache else None)
            on_done = on_done or (lambda share: bar.update(100 * share))
            with _unless_refused(folder.parts):
                work = Work(parts.compute, parts.once, memory, where, on_done, store.rows)
                result = _audited(asked, read, made_of, fail_above, work)
                if _mapped(asked) != mapped:
                    raise UserError("a file of images changed while it was audited: audit it again when it is written")
            distributed.barrier()  # others may still be reading parts
            bar.name_phase("audit: files")
            if distributed.rank() == 0:
                names = {"train": asked.train, "samples": asked.samples, "held_out": asked.held_out or ""}
                save_audit(result, asked.out, names, treated=read.treated)
                remember(asked.out, inputs)
                folder.drop_parts()
    if torchrun.is_first():
        _say_treated(read, asked.out)
    return result.numbers


def _audited(
    asked: Asked, read: "_Read", made_of: Mapping[str, object], fail_above: float | None, work: Work
) -> AuditResult:
    """The audit of sets that were read, with what only who reads them knows."""
    result = audit(
        read.train,
        read.samples,
        read.held_out,
        flips=read.flips,
        extractors=read.networks,
        seeds=read.seeds,
        record=read.record,
        fail_above=fail_above,
        clip=read.judge,
        measure_quality=asked.measure_quality,
        groups=read.groups,
        transformed=asked.transformed,
        work=work,
    )
    return replace(result, numbers=_described(result.numbers, asked, read, made_of, work.device))


@dataclass(frozen=True)
class _Read:
    """What is audited, read from disk.

    Attributes:
        train, samples, held_out: the sets.
        seeds: of the samples, where they are known.
        networks: in whose features they are compared.
        judge: what scores how samples follow their prompts.
        record: what the training of a run tells of each image.
        groups: see `audit`.
        flips: whether mirrored copies count.
        warnings: came up on the way.
    """

    train: ImageSet
    samples: ImageSet
    held_out: ImageSet | None
    seeds: Sequence[int] | None
    networks: Sequence[Extractor]
    judge: Clip | None
    record: TrainingRecord | None
    groups: bool | Pairs
    flips: bool
    warnings: Sequence[AuditWarning]

    @property
    def sets(self) -> dict[str, ImageSet]:
        """Those that there are, by name."""
        return {"train": self.train, "samples": self.samples} | ({"held_out": self.held_out} if self.held_out else {})

    @property
    def treated(self) -> dict[str, Sequence[TreatedFile]]:
        """The files that were mended or left out, of sets with such files."""
        return {name: images.treated for name, images in self.sets.items() if images.treated}


def fingerprints(given: Mapping[Part, ImageSet]) -> dict[str, str]:
    """What tells sets in memory from others, for `inputs_of`: pixels and captions."""
    return {part: digest([images.fingerprint, images.captions]) for part, images in given.items()}


def _mapped(asked: Asked) -> list[tuple[str, int, int]]:
    """What tells files of images that are read while they are audited from others, see `array_images`."""
    sources = asked.train, asked.samples, asked.held_out
    return stamps([path for path in map(Path, filter(None, sources)) if may_be_mapped(path)])


def _networks_for(
    asked: Asked, device: torch.device, download: bool
) -> Callable[[tuple[int, int, int]], Sequence[Extractor]]:
    """Load what is asked for; by the shape of images, the networks in whose features the audit measures."""
    given = [load_extractor(name, device, download) for name in asked.extractors]

    def networks_for(shape: tuple[int, int, int]) -> Sequence[Extractor]:
        networks = choose_networks(given, shape, asked.measure_quality, device, download)
        if asked.measure_quality and not given and torchrun.is_first():
            if not networks:
                say(f"note: {NoQuality(asked=False, shape=shape).sentence}")
            elif networks[0].stands_in:
                say(f"note: {StandsIn(extractor=networks[0].name).sentence}")
        return networks

    return networks_for


def _described(
    numbers: AuditRecord, asked: Asked, read: _Read, made_of: Mapping[str, object], device: torch.device
) -> AuditRecord:
    """The record, with what it was made of and how, as far as only who reads the sets knows it."""
    size = asked.convert_to and "x".join(map(str, asked.convert_to))
    told = {"convert_to": size, "resize": asked.convert_to and resize_of(asked.train)}
    return numbers.model_copy(
        update={
            "conventions": numbers.conventions.model_copy(update=told),
            "mending": _mended(read, asked.mending),
            "made_of": made_of,
            "provenance": _provenance(device),
            "warnings": (*numbers.warnings, *read.warnings),
        }
    )


def _say_treated(read: _Read, out: Path) -> None:
    lines = (in_short(read.sets[name].name, files, out / LIST_NAME) for name, files in read.treated.items())
    for line in dict.fromkeys(lines):  # what a run trains on and holds out was read as one
        say(line)


def _mended(read: _Read, mending: Mending) -> Mended | None:
    """What audit.json says of it."""
    if not mending.asked and not read.treated:
        return None
    sets = {name: counts(files) for name, files in read.treated.items()}
    return Mended.model_validate({**asdict(mending), "sets": sets})


def _read(
    asked: Asked,
    networks_for: Callable[[tuple[int, int, int]], Sequence[Extractor]],
    judge: Clip | None,
    on_images: Callable[[int], object],
    given: Mapping[Part, ImageSet],
    store: PixelStore,
) -> _Read:
    """Read what is audited; networks for images of a shape, which may be refused, before samples are read."""
    warn = _Warnings()

    def load(source: str, part: Part) -> tuple[ImageSet, list[int] | None]:
        how = asked.convert_to, on_images, resize_of(asked.train), warn, asked.mending, given.get(part), store
        return load_part(source, part, *how)

    train, _ = load(asked.train, "train")
    networks = networks_for(train.shape)
    samples, seeds = load(asked.samples, "samples")
    held_out = load(asked.held_out, "held-out")[0] if asked.held_out else None
    check_sets(train, samples, held_out)
    if judge:
        check_prompts(samples)
    record = read_record(asked.train, len(train))
    groups = read_pairs(Path(asked.groups), train) if isinstance(asked.groups, str) else asked.groups
    flips = asked.flips or trained_with_flips(asked.train)
    return _Read(train, samples, held_out, seeds, networks, judge, record, groups, flips, warn.all)


def _inputs(asked: Asked, read: _Read) -> dict[str, Any]:
    """What an audit is made of: another one in its place would be another audit."""
    sets, groups = read.sets, read.groups
    return {
        **{name: sets[name].fingerprint if name in sets else None for name in _SETS},
        "captions": {name: digest(images.captions) for name, images in sets.items() if images.captions},
        "flips": read.flips,
        "extractors": [[shown(one.name), one.sha256] for one in read.networks],
        "clip": read.judge.sha256 if read.judge else None,
        **({} if asked.measure_quality else {"quality": False}),
        **({} if groups is False else {"groups": groups if groups is True else digest(groups)}),
        **({"transformed": True} if asked.transformed else {}),
    }


def _provenance(device: torch.device) -> Provenance:
    """When and with what; where SOURCE_DATE_EPOCH is set, seconds since 1970, the date is that one.

    See https://reproducible-builds.org/specs/source-date-epoch: with it the same audit has the same bytes.
    """
    seconds = os.environ.get("SOURCE_DATE_EPOCH", "")
    when = datetime.fromtimestamp(int(seconds), UTC) if seconds.isdecimal() else datetime.now(UTC)
    return Provenance(
        date=f"{when:%Y-%m-%dT%H:%M:%SZ}",
        device=device.type,
        versions={"iet-agc": version("iet-agc"), "torch": torch.__version__},
    )


def _surroundings(networks: Sequence[Extractor], device: torch.device) -> dict[str, Any]:
    """What finished parts follow from besides; they are only gone on with where all of it is the same."""
    return {
        "versions": [version("iet-agc"), torch.__version__],
        "conventions": [one.convention for one in networks],
        "device": device.type,
        "parts": [_LEAST_PARTS, _LONGEST_PART, _SHORTEST_PART, _CONTENT],
    }


@contextmanager
def _until_done(store: PixelStore) -> Generator[None]:
    """Keep pixels until the audit is made or refused; a kill, or a full disk, leaves them to the same command.

    Of several processes that are refused the others may still be reading them: there they stay.
    """
    try:
        yield
    except UserError as error:
        if not torchrun.is_one_of_several() and not isinstance(error, WriteError):
            store.remove()
        raise
    if torchrun.is_first():
        store.remove()


@contextmanager
def _unless_refused(parts: Path) -> Generator[None]:
    """Keep finished parts, unless the audit is refused: whoever mends what it was refused for has another one to make.

    Of several processes the others may still be reading them: there they stay, and on a full disk as well.
    """
    try:
        yield
    except UserError as error:
        if distributed.size() == 1 and not isinstance(error, WriteError):
            shutil.rmtree(parts)
        raise


@dataclass(frozen=True)
class _Parts:
    """Finished work in a folder, which all processes share.

    Attributes:
        folder: of the audit's parts.
        on_phase: told what comes next.
        kept: what other audits made, if it is to be used.
    """

    folder: Path
    on_phase: Callable[[str], object]
    kept: KeptTensors | None

    def compute(
        self,
        name: str,
        total: int,
        make: Maker,
        on_done: Callable[[int], object],
        *,
        together: int = 1,
        key: object = None,
    ) -> Arrays:
        """`Work.compute`."""
        self.on_phase(f"audit: {shown(name)}")
        if key is None or self.kept is None:
            return self._in_parts(name, total, make, on_done, together)
        found = self.kept.find(key)
        if all(distributed.gather(found is not None)) and found is not None:  # all processes go the same way
            on_done(total)
            return found
        rows = self._in_parts(name, total, make, on_done, together)
        if distributed.rank() == 0:
            self.kept.keep(key, rows)
        return rows

    def _in_parts(
        self, name: str, total: int, make: Maker, on_done: Callable[[int], object], together: int
    ) -> dict[str, Tensor]:
        length = _length_of_parts(total, together)
        file = f"{_file(name)}-{length}"  # with more memory parts may be shorter: those are others
        compute_parts(self.folder, file, total, length, make, on_done)
        return read_parts(self.folder, file, total, length)

    def once(self, name: str, kind: type[Kept], make: Callable[[], Kept]) -> Kept:
        """`Work.once`."""
        self.on_phase(f"audit: {shown(name)}")
        file = self.folder / f"{_file(name)}.json"
        if distributed.rank() == 0 and not _is_whole(file, kind):
            write_sealed(file, make().model_dump(mode="json"))
        distributed.barrier()
        return _record(file, kind)


def _length_of_parts(total: int, together: int) -> int:
    """How many items make a part; of those that are quicker `together` the parts are no shorter, and nearly equal."""
    length = max(_SHORTEST_PART, min(_LONGEST_PART, -(-total // _LEAST_PARTS)))
    return length if length >= together else -(-total // max(1, total // together))


def _is_whole(file: Path, kind: type[Record]) -> bool:
    """Whether a record was finished and is as it was written; if not, it is made again."""
    try:
        return file.exists() and bool(_record(file, kind))
    except UserError:
        return False


def _record(file: Path, kind: type[Kept]) -> Kept:
    """A record of a part.

    Raises:
        UserError: it is damaged.
    """
    again = f"remove {shown(file.parent)}"
    content = read_object(file, again)
    if not is_sealed(content):
        raise UserError(f"{shown(file)} has no digests: {again}")
    try:
        return kind.model_validate_json(json.dumps(unsealed(file, content, again)))
    except ValidationError:
        raise UserError(f"{shown(file)} holds other numbers: {again}") from None


def _file(name: str) -> str:
    """A file's name for a piece of work; no two pieces share one."""
    readable = re.sub(r"\W+", "-", name)
    return f"{readable}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:12]}"


def save_audit(
    result: AuditResult,
    out: Path,
    names: Mapping[str, str] | None = None,
    most: int = 24,
    treated: Mapping[str, Sequence[TreatedFile]] | None = None,
) -> Path:
    """Write an audit's folder: audit.json, two tables, and the images that a report shows.

    Args:
        result: the audit.
        out: folder; an earlier audit in it is replaced, anything else refused.
        names: what was audited, as the person who asked for it wrote it: "train", "samples", "held_out".
        most: how many pairs, training images and first samples to keep pictures of. A training image stands in one pair
            only, with the sample closest to it; flat samples come last.
        treated: files that were mended or left out when the sets were read, by the name of the set.
    """
    _check_folder(out)
    settle_audit(out)
    final, out = out, out / _WRITTEN
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    names = names or {"train": result.train.name, "samples": result.samples.name, "held_out": ""}
    shown_names = Names(**{part: shown(name) for part, name in names.items()})
    numbers = result.numbers.model_copy(update={"names": shown_names})
    table = _per_unique_image(result)
    _write_table(out / "samples.csv", _sample_rows(result, table))
    listed = (row | {"samples": " ".join(map(str, row["samples"]))} for row in _training_rows(result, table))
    _write_table(out / "training-images.csv", listed)
    _write_list(out / "training-images.json", _training_rows(result, table))
    with replacing(out / "pictures.npz") as unfinished, unfinished.open("wb") as stream:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in _pictures(result, table, most).items()}
        np.savez_compressed(stream, **arrays)
    with replacing(out / SCORES) as unfinished, unfinished.open("wb") as stream:
        arrays = as_arrays(result.scores)
        np.savez(stream, **arrays)  # not compressed: distances hardly are smaller so
    replace_text(out / "curves.json", json.dumps(result.record.curves if result.record else {}))
    if result.record and result.record.watch:
        replace_text(out / WATCH, json.dumps(result.record.watch, indent=1))
    if treated:
        write_list(out / LIST_NAME, treated)
    write_sealed(out / "audit.json", numbers.model_dump(mode="json"), files_of(out))
    flush(out)
    os.rename(out, final / _WHOLE)
    flush(final)
    settle_audit(final)
    return final


def _check_folder(out: Path) -> None:
    """Refuse a folder that is neither an audit's nor free, nor one in which a kill cut off `settle_audit`."""
    if not (out / _WHOLE).is_dir():
        check_ours(
            out,
            "audit.json",
            {*FILES, SCORES, WATCH, "audit.json", "report.html", LIST_NAME, ".parts", _WRITTEN, INPUTS, _DECODED},
            "audit",
        )


def settle_audit(out: Path) -> None:
    """Have an audit that is written whole take the place of the one before, and the report of that one go.

    A kill leaves no mixture of two audits: audit.json, without which there is none, goes first and comes last. What is
    left to do is done by the next call.
    """
    whole = out / _WHOLE
    if not whole.is_dir():
        return
    if (whole / "audit.json").exists():
        for old in ("audit.json", "report.html", LIST_NAME, INPUTS, WATCH):
            (out / old).unlink(missing_ok=True)
    for file in sorted(whole.iterdir(), key=lambda file: file.name == "audit.json"):
        os.replace(file, out / file.name)
    flush(out)
    whole.rmdir()


class _Warnings:
    """Says warnings, and keeps them for audit.json."""

    def __init__(self) -> None:
        self.all: list[AuditWarning] = []

    def __call__(self, warning: AuditWarning) -> None:
        self.all.append(warning)
        say(f"warning: {warning.sentence}")


def _closest_pairs(values: Tensor, nearest: Tensor) -> Tensor:
    """For each training image that is nearest to any sample, the one of lowest value; the lowest first, int64."""
    order = values.argsort(stable=True)
    _, first = np.unique(nearest[order].numpy(), return_index=True)
    return order[torch.from_numpy(np.sort(first))]


def _flat_last(pairs: Tensor, images: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The first pairs whose samples are not flat, and after them, if these are few, the first flat ones.

    A flat sample is near to any flat training image, which says little of copying.

    Args:
        pairs: numbers of samples, int64 (P,), the closest first.
        images: all samples, uint8 (N, C, H, W).
        most: how many to take.

    Returns:
        Samples, int64 (at most `most`,), and whether each is flat, bool.
    """
    flat = torch.empty(0, dtype=torch.bool)
    for part in pairs.split(256):
        deviations = images[part].float().std(dim=(2, 3), correction=0).amax(1)
        flat = torch.cat([flat, deviations <= FLAT * 255])
        if int((~flat).sum()) >= most:
            break
    order = flat.to(torch.uint8).argsort(stable=True)[:most]
    return pairs[order], flat[order]


def _pictures(result: AuditResult, table: Mapping[str, Tensor], most: int) -> dict[str, Tensor]:
    """The images that a report shows, with what tells which they are."""
    samples, train = result.samples.images, result.train.images
    worst, flat = _flat_last(_closest_pairs(result.ratios, result.nearest), samples, most)
    top = result.unique[table["copied"].argsort(descending=True, stable=True)[:most]]
    skipped = top[:0]
    if result.record:
        skipped = result.unique[_surely_skipped(table).argsort(descending=True, stable=True)[:most]]
    return {
        "first_samples": samples[:most],
        "worst": worst,
        "worst_flat": flat,
        "worst_samples": samples[worst],
        "worst_originals": train[result.nearest[worst]],
        "top": top,
        "top_images": train[top],
        "skipped": skipped,
        "skipped_images": train[skipped],
        "held_out_ratios": torch.empty(0) if result.held_out_ratios is None else result.held_out_ratios,
        **_transformed_pictures(result, most),
        **_similar_pictures(result, most),
    }


def _transformed_pictures(result: AuditResult, most: int) -> dict[str, Tensor]:
    """The closest pairs by another way than as they are, and each training image as it has to be transformed."""
    if (found := result.altered) is None:
        return {}
    samples, train = result.samples.images, result.train.images
    scores = found.scores.masked_fill(found.by == 0, torch.inf)
    closest = _closest_pairs(scores, found.nearest)
    pairs, flat = _flat_last(closest[scores[closest].isfinite()], samples, most)
    originals, seconds = train[found.nearest[pairs]], train[found.compared.second[pairs]]
    overlaid = [
        found.compared.overlaid(row, ALTERATIONS[int(found.by[row])], samples[row], first, second)
        for row, first, second in zip(pairs.tolist(), originals, seconds, strict=True)
    ]
    return {
        "transformed": pairs,
        "transformed_flat": flat,
        "transformed_samples": samples[pairs],
        "transformed_originals": originals,
        "transformed_overlaid": torch.stack(overlaid) if overlaid else originals,
    }


def _similar_pictures(result: AuditResult, most: int) -> dict[str, Tensor]:
    """Of each network, by its place among the feature spaces: similarities, and the most similar pairs."""
    found = {}
    for number, one in enumerate(result.similar.values()):
        closest = _closest_pairs(-one.samples, one.nearest)
        pairs, flat = _flat_last(closest, result.samples.images, most)
        parts = {
            "samples": one.samples,
            "train": one.train,
            "held_out": torch.empty(0) if one.held_out is None else one.held_out,
            "pairs": pairs,
            "pairs_flat": flat,
            "nearest": one.nearest[pairs],
            "pair_samples": result.samples.images[pairs],
            "pair_originals": result.train.images[one.nearest[pairs]],
        }
        found |= {f"similar_{number}_{part}": tensor for part, tensor in parts.items()}
    return found


def _per_unique_image(result: AuditResult) -> dict[str, Tensor]:
    """The table of training images, int64 (U,) each; the places of a repeated image count together."""
    copies = result.place[result.nearest[result.ratios < result.numbers.cut]]
    table = {
        "image": result.unique,
        "multiplicity": torch.bincount(result.place),
        "copied": torch.bincount(copies, minlength=len(result.unique)),
    }
    if result.groups is not None:
        table["group"] = result.unique[result.groups]
        table["group_images"] = group_sizes(result.groups, table["multiplicity"])
    if result.record:
        zeros = torch.zeros_like(result.unique)
        table["seen"] = zeros.index_add(0, result.place, result.record.seen)
        table["skipped"] = zeros.index_add(0, result.place, result.record.skipped)
    return table


def _training_rows(result: AuditResult, table: Mapping[str, Tensor]) -> Iterator[dict[str, Any]]:
    """The table by rows, with the numbers of the samples that copied each image; one at a time, as they may be many."""
    copies = (result.ratios < result.numbers.cut).nonzero()[:, 0]
    copied_by: dict[int, list[int]] = {}
    for sample, place in zip(copies.tolist(), result.place[result.nearest[copies]].tolist(), strict=True):
        copied_by.setdefault(place, []).append(sample)
    for place, row in enumerate(zip(*(column.tolist() for column in table.values()), strict=True)):
        known = dict(zip(table, row, strict=True))
        yield {**known, "file": _file_of(result.train, row[0]), "samples": copied_by.get(place, [])}


def _file_of(images: ImageSet, index: int) -> str:
    """The file that an image was read from, or nothing."""
    return images.files[index] if images.files else ""


def _surely_skipped(table: Mapping[str, Tensor]) -> Tensor:
    """Lower Wilson limit of each image's skipped share: one that was hardly seen does not lead the ranking."""
    n, p, z = table["seen"].clamp(min=1).double(), table["skipped"] / table["seen"].clamp(min=1), 1.96
    return (p + z**2 / (2 * n) - z * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()) / (1 + z**2 / n)


def _sample_rows(result: AuditResult, table: Mapping[str, Tensor]) -> list[Mapping[str, Any]]:
    columns = (result.ratios, result.nearest, result.distances, result.mirrored)
    return [
        {
            "sample": number,
            "seed": result.seeds[number] if result.seeds else "",
            "ratio": repr(ratio),
            "nearest": index,
            "distance": repr(distance),
            "mirrored": int(mirrored),
            **_group_of(result, table, index),
            "file": _file_of(result.samples, number),
            "nearest_file": _file_of(result.train, index),
            **({"prompt": result.samples.captions[number][0]} if result.samples.captions else {}),
            **_caption_of(result, number, index, "nearest_caption"),
            **_most_alike(result, number),
            **_transformed(result, number),
        }
        for number, (ratio, index, distance, mirrored) in enumerate(zip(*(c.tolist() for c in columns), strict=True))
    ]


def _group_of(result: AuditResult, table: Mapping[str, Tensor], image: int) -> dict[str, int]:
    """The group of a sample's nearest training image, and how many images it has, where neighbours are groups."""
    if result.groups is None:
        return {}
    place = int(result.place[image])
    return {name: int(table[name][place]) for name in ("group", "group_images")}


def _caption_of(result: AuditResult, sample: int, image: int, column: str) -> dict[str, str]:
    """A caption of a training image, if it has any: the sample's prompt if it is one of them, or else the first."""
    if result.train.captions is None:
        return {}
    captions, prompts = result.train.captions[image], result.samples.captions
    return {column: prompts[sample][0] if prompts and prompts[sample][0] in captions else captions[0]}


def _most_alike(result: AuditResult, sample: int) -> dict[str, Any]:
    """By each network, numbered by its place among the feature spaces, the most similar training image of a sample."""
    found: dict[str, Any] = {}
    for number, one in enumerate(result.similar.values()):
        nearest = int(one.nearest[sample])
        found |= {f"similarity_{number}": repr(float(one.samples[sample])), f"nearest_{number}": nearest}
        found |= {f"nearest_file_{number}": _file_of(result.train, nearest)}
        found |= _caption_of(result, sample, nearest, f"nearest_caption_{number}")
    return found


def _transformed(result: AuditResult, sample: int) -> dict[str, Any]:
    """By what a sample is most likely a copy, as it is or transformed, and of which training image."""
    if result.altered is None:
        return {}
    found, nearest = result.altered, int(result.altered.nearest[sample])
    return {
        "joint_score": repr(float(found.scores[sample])),
        "copied_by": ALTERATIONS[int(found.by[sample])],
        "transformed_nearest": nearest,
        "transformed_nearest_file": _file_of(result.train, nearest),
        "transformed_how": found.how[sample],
    }


def _write_table(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """CSV; there is at least one row."""
    left = iter(rows)
    first = next(left)
    with replacing(file) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerows(chain([first], left))


def _write_list(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON, as `json.dumps` writes the list of all."""
    with replacing(file) as unfinished, unfinished.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(rows):
            stream.write(f"{', ' if number else '['}{json.dumps(row)}")
        stream.write("]\n")
