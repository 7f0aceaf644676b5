"""What a run is, in RUN/identity.json: the settings and images that it was trained with, and the weights that it left.

settings     what its weights follow from, as `settings.essence` says
train        name, number and hashes of the training images, and how many of the files that they were read from were
             mended or left out, if any were; held_out the same, or null where they were not known
given        true where the images were given from Python, and are none that the settings are known to read
privacy      of a run of DP-SGD, epsilon and delta of its weights, and what they follow from
stopped      of a run that ended early, as it copies: its step, and that whose weights it left
earlier      fingerprints of the settings that it had before its rounds or steps were raised, where they were
weights      of RUN/raw and RUN/ema, the SHA-256 of every file that was exported; null until then
former       the same, of what was exported before they were raised, while there is nothing newer
seal         of this file, and of telemetry.csv, captions.json and the curves when the weights were exported

Whoever takes a run for what it says (audit, sample, guard, training further) compares first. Version 1 has no seal, and
runs of older versions have no such file; of them the bundles know the training images, and nothing the weights.
"""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from iet_agc.config.fingerprint import essence, fingerprint
from iet_agc.config.run_folder import is_run, read_settings
from iet_agc.config.settings import Settings
from iet_agc.data.image_set import ImageSet
from iet_agc.data.mending import counts
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import digest, sha256
from iet_agc.runtime.progress import say
from iet_agc.runtime.reading import read_object
from iet_agc.runtime.seal import damaged, unsealed, write_sealed
from iet_agc.training import checkpoint

__all__ = [
    "are_its_samples",
    "check_files",
    "check_images",
    "check_pipeline",
    "check_samples",
    "damaged_exports",
    "earlier_fingerprints",
    "exported_files",
    "given_images",
    "labels_sha256",
    "privacy",
    "is_going_on",
    "read_identity",
    "record_continuation",
    "record_going_on",
    "record_training",
    "record_weights",
    "stopped",
    "weights_of",
]

_NAME, _FORMAT, _VERSION = "identity.json", "iet-agc run", 2

#: What an export writes beside the pipelines, and what training leaves; each where there is such a file.
_EXPORTED, _CURVES, _WATCH = ("telemetry.csv", "captions.json"), "curves/*.jsonl", "watch.jsonl"

_RESTORE = "restore it from a copy"
_FINISH = "run the same 'iet-agc train' again to finish it"
_AGAIN = "run the same 'iet-agc train' again, which exports it from the run's bundles"


def record_training(
    run: Path, settings: Settings, train: ImageSet, held_out: ImageSet | None, given: bool = False
) -> None:
    """Write down with what a run begins.

    Args:
        run: its folder.
        settings: of the run.
        train: the images that it is trained on.
        held_out: those that its settings hold out, if they are known.
        given: whether the training images may be others than those that its settings read.
    """
    real = _about(held_out) if held_out is not None and len(held_out) > 0 else None
    content = {"settings": essence(settings), "train": _about(train), "held_out": real, "weights": None}
    content |= {"earlier": earlier} if (earlier := earlier_fingerprints(run)) else {}
    _write(run, content | ({"given": True} if given else {}))


def record_continuation(run: Path, settings: Settings, earlier: Settings, train: ImageSet) -> None:
    """Write down that a run goes on, with more rounds or steps than it had; before its config.json says so.

    Its pipelines are from now on those of the run before, and stay until there are others.

    Args:
        run: its folder.
        settings: of the run from now on.
        earlier: those that it had so far.
        train: see `record_training`.
    """
    known = read_identity(run) or {"train": _about(train), "held_out": None, "weights": None}
    fingerprints = dict.fromkeys([*known.get("earlier", []), fingerprint(earlier)])
    now = {"settings": essence(settings), "earlier": [*fingerprints], "weights": None}
    former = known["weights"] or known.get("former")
    _write(run, known | now | ({"former": former} if former else {}))


def record_going_on(run: Path) -> None:
    """Write down that a run which ended early goes on after all; its pipelines are those of before until then."""
    known = read_identity(run) or {}
    if known.pop("stopped", None):
        _write(run, known | {"weights": None, "former": known["weights"] or known.get("former")})


def stopped(run: Path) -> dict[str, int] | None:
    """Of a run that ended early, its "step", and that whose weights it left, "weights_of_step"; None of others."""
    return (read_identity(run) or {}).get("stopped")


def privacy(run: Path) -> dict[str, Any] | None:
    """What the weights that a run of DP-SGD left guarantee, see `training.private.Privacy`; None of others."""
    return (read_identity(run) or {}).get("privacy")


def record_weights(
    run: Path,
    weights: Mapping[str, Mapping[str, str]],
    stopped: Mapping[str, int] | None = None,
    privacy: Mapping[str, object] | None = None,
) -> None:
    """Write down what was exported.

    Args:
        run: its folder; what else is written down is read from there.
        weights: {"raw": {path below it: SHA-256}, "ema": ...}.
        stopped, privacy: see `stopped` and `privacy`.
    """
    left = (*(run / name for name in (*_EXPORTED, _WATCH)), *sorted(run.glob(_CURVES)))
    files = [file for file in left if file.is_file()]
    content = (read_identity(run) or {}) | {"weights": {name: dict(files) for name, files in weights.items()}}
    content.pop("former", None)
    content |= {"stopped": dict(stopped)} if stopped else {}
    content |= {"privacy": dict(privacy)} if privacy else {}
    _write(run, content, [str(file.relative_to(run)) for file in files])


def read_identity(run: Path) -> dict[str, Any] | None:
    """What was written down about a run; None of older runs, which have nothing of the kind.

    Raises:
        UserError: the file is damaged; the message names it.
    """
    content = _read(run)
    return content if content is None or "seal" not in content else unsealed(run / _NAME, content, _RESTORE)


def _read(run: Path) -> dict[str, Any] | None:
    """The same, with its seal."""
    file = run / _NAME
    if not file.exists():
        return None
    content = read_object(file)
    try:
        kind, weights = (content["format"], content["version"]), content["weights"] or content.get("former") or {}
        parts = [content["train"], *([content["held_out"]] if content["held_out"] else [])]
        hashes = [digest for files in weights.values() for digest in files.values()]
        usable = all(isinstance(part["sha256"], str) for part in parts) and all(map(_is_hash, hashes))
        usable = usable and all(isinstance(section, dict) for section in content["settings"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged, {in_words(error)}: {_RESTORE}") from None
    known = kind == (_FORMAT, 1) or (kind == (_FORMAT, _VERSION) and "seal" in content)
    if not known or not usable:
        raise UserError(f"{file} is {kind[0]!r} version {kind[1]}, not a whole {_FORMAT!r} version {_VERSION}")
    return content


def labels_sha256(images: ImageSet) -> str:
    """What shards and classes depend on beside the pixels."""
    return "none" if images.labels is None else hashlib.sha256(images.labels.contiguous().numpy().data).hexdigest()


def check_images(run: Path, part: Literal["train", "held-out"], images: ImageSet) -> bool:
    """Compare the images that a run's settings read now with those of its training.

    Args:
        run: its folder.
        part: which images these are.
        images: what its config.json reads now.

    Returns:
        Whether there was something to compare with.

    Raises:
        UserError: they differ, or its settings do, or its weights or bundles are those of another run.
    """
    bundles = _from_bundles(run)
    known = bundles | (read_identity(run) or {})
    if changed := _changed_settings(run, known):
        raise UserError(f"{run / 'config.json'} is not as the run was trained ({'; '.join(changed)}): put it back")
    if bundles and bundles["train"]["sha256"] != known["train"]["sha256"]:
        raise UserError(f"{run / 'bundles'} holds bundles of a run of other images: put its own back, or remove it")
    if part == "train":
        _check_weights(run)
    if (then := known.get(part.replace("-", "_"))) is None:
        return False
    now = _about(images)
    if any(then.get(name, now[name]) != now[name] for name in ("sha256", "labels", "captions")):
        if given := given_images(run):
            raise UserError(
                f"{run} was trained on {given}, not on what its settings read ({images.name}): give those images "
                "themselves, not the run"
            )
        what, which = ("trained on", "training images") if part == "train" else ("begun with", "held-out images")
        raise UserError(
            f"the {which} that {run} reads now ({images.name}) are not those that it was {what}: put them back, or "
            "give the original images themselves, not the run"
        )
    return True


def exported_files(run: Path, name: str) -> dict[str, str]:
    """The files of a pipeline that a run left, path below it -> SHA-256; none where nothing was written down.

    Of a run that goes on they are those that it left before.
    """
    known = read_identity(run) or {}
    return (known.get("weights") or known.get("former") or {}).get(name, {})


def earlier_fingerprints(run: Path) -> list[str]:
    """Of the settings that a run had before its rounds or steps were raised; its bundles may still be of these."""
    return (read_identity(run) or {}).get("earlier", [])


def given_images(run: Path) -> str | None:
    """What a run was trained on, in words, where that was given from Python; None of other runs, and of older ones."""
    known = read_identity(run) or {}
    if not known.get("given"):
        return None
    return f"images given from Python ({known['train']['name']}, {known['train']['num']} of them)"


def is_going_on(run: Path) -> bool:
    """Whether a run's pipelines and counts are those of before its rounds or steps were raised."""
    return "former" in (read_identity(run) or {})


def damaged_exports(run: Path) -> list[Path] | None:
    """The exported files of a run that are not as they were exported; None where no hashes were written down."""
    known = _read(run) or {}
    if (weights := known.get("weights")) is None:
        return None
    odd = [file for name in weights for file in _damaged(run / name, weights[name])]
    return [*odd, *damaged(run / _NAME, known, _EXPORTED)]


def check_files(run: Path, files: Collection[Path]) -> None:
    """Refuse files of a run, beside its weights, that are not as they were left. Of older runs nothing is known.

    Raises:
        UserError: the first that is not.
    """
    names = [str(file.relative_to(run)) for file in files]
    if odd := next(damaged(run / _NAME, _read(run) or {}, names), None):
        mend = _AGAIN if odd.name in _EXPORTED else f"{_RESTORE}, or remove it"
        raise UserError(f"{odd} is not as the run left it: {mend}")


def _check_weights(run: Path) -> None:
    """Refuse a run of whose exported files one is there and is another."""
    for name in ("raw", "ema"):
        if odd := [file for file in _damaged(run / name, exported_files(run, name)) if file.exists()]:
            raise UserError(f"{odd[0]} is not as it was exported: {_AGAIN}")


def weights_of(run: Path, weights: str) -> Path:
    """The pipeline of a run.

    Args:
        run: its folder.
        weights: "raw" or "ema".

    Raises:
        UserError: it is not finished.
    """
    if not (run / weights).exists():
        raise UserError(f"{run} is not finished: run the same 'iet-agc train' again to finish it")
    return run / weights


def check_pipeline(folder: Path) -> None:
    """Refuse a pipeline of a run that is not as it was exported. Of other pipelines nothing is known.

    Raises:
        UserError: the first file that is damaged.
    """
    run = folder.absolute().parent
    if is_run(run) and (odd := _damaged(folder, exported_files(run, folder.absolute().name))):
        raise UserError(f"{odd[0]} is not as it was exported: {_AGAIN}")
    if is_run(run) and is_going_on(run):
        say(f"warning: {run} goes on with more rounds or steps, and {folder} is what it was before: {_FINISH}")


def check_samples(run: Path, drawn_from: Mapping[str, str]) -> bool:
    """Compare what a sample set in a run's folder was drawn from with the weights of the run.

    Args:
        run: its folder.
        drawn_from: names of files and their SHA-256, as samples.json has them.

    Returns:
        Whether there was something to compare with.

    Raises:
        UserError: they are those of neither RUN/raw nor RUN/ema, or these are not as they were exported.
    """
    were_drawn = are_its_samples(run, drawn_from)
    if were_drawn is None:
        return False
    if is_going_on(run):
        raise UserError(
            f"{run / 'samples'} was drawn before the rounds or steps of {run} were raised: {_FINISH}, or give the "
            "samples from another place"
        )
    if not were_drawn:
        raise UserError(
            f"{run / 'samples'} was not drawn from the weights of {run}: sample it again into an empty folder, or give "
            "the samples from another place"
        )
    _check_weights(run)
    return True


def are_its_samples(run: Path, drawn_from: Mapping[str, str]) -> bool | None:
    """Whether samples, wherever they are, were drawn from RUN/raw or RUN/ema; None where there are no weights.

    Args:
        run: its folder.
        drawn_from: names of files and their SHA-256, as samples.json has them.
    """
    known = [exported_files(run, name) or _hashes(run / name, drawn_from) for name in ("raw", "ema")]
    return any(files and _all_among(drawn_from, files) for files in known) if any(known) else None


def _about(images: ImageSet) -> dict[str, Any]:
    return {
        "name": images.name,
        "num": len(images),
        "sha256": images.fingerprint,
        "labels": labels_sha256(images),
        "captions": "none" if images.captions is None else digest(images.captions),
        **({"mending": counts(images.treated)} if images.treated else {}),
    }


def _from_bundles(run: Path) -> dict[str, Any]:
    """What the newest bundle of a run says of its training images, if there is one."""
    about = checkpoint.newest_about(run / "bundles", "round-????")
    if not about or not all(isinstance(about.get(name), str) for name in ("settings", "images", "labels")):
        return {}
    return {"fingerprint": about["settings"], "train": {"sha256": about["images"], "labels": about["labels"]}}


def _changed_settings(run: Path, known: Mapping[str, Any]) -> list[str]:
    """Settings that the weights follow from that config.json says otherwise; those of other versions do not count."""
    settings = read_settings(run)
    now = essence(settings)
    changed = [
        f"{section}.{name} was {value} and is now {now[section][name]}"
        for section, values in known.get("settings", {}).items()
        for name, value in values.items()
        if name in now.get(section, {}) and now[section][name] != value
    ]
    if not changed and known.get("fingerprint") not in (None, fingerprint(settings), *known.get("earlier", [])):
        return ["its bundles are of other settings"]
    return changed


def _damaged(folder: Path, files: Mapping[str, str]) -> list[Path]:
    return [folder / name for name, digest in files.items() if not _is_whole(folder / name, digest)]


def _is_whole(file: Path, digest: str) -> bool:
    return file.is_file() and sha256(file) == digest


def _hashes(folder: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Of a pipeline of an older run, the hashes of the files that are asked for."""
    found = [file for name in names for file in folder.rglob(Path(name).name) if file.is_file()]
    return {str(file.relative_to(folder)): sha256(file) for file in found}


def _all_among(drawn_from: Mapping[str, str], files: Mapping[str, str]) -> bool:
    return all(
        any(f"/{path}".endswith(f"/{name}") and known == digest for path, known in files.items())
        for name, digest in drawn_from.items()
    )


def _is_hash(digest: Any) -> bool:
    return isinstance(digest, str) and len(digest) == 64


def _write(run: Path, content: Mapping[str, Any], files: Collection[str] = ()) -> None:
    write_sealed(run / _NAME, {**content, "format": _FORMAT, "version": _VERSION}, files)
