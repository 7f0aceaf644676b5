"""Models that other programs saved: which files make one, and whether several are of one kind.

pipeline    a folder with model_index.json: that file, and all files of the parts that it names
model       a folder with config.json (or peft's adapter_config.json): that file, *.safetensors and their index
file        one .safetensors file: a LoRA, a checkpoint
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import check_regular, read_json, read_object

__all__ = ["SavedModel", "check_alike", "find_model"]

_INDEX, _CONFIGS = "model_index.json", ("config.json", "adapter_config.json")
_LORA = "pytorch_lora_weights.safetensors"
_WEIGHTS = ".safetensors"

#: Endings of files that are unpickled, which runs what is in them.
_PICKLES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}

#: Says where a model comes from, not what it is.
_ORIGIN = {"_name_or_path", "_diffusers_version", "transformers_version"}

_CONVERT = (
    "a pickle, which can run code: load it where you trust it, and save it as safetensors "
    "(save_pretrained with safe_serialization=True, or safetensors.torch.save_file)"
)


@dataclass(frozen=True)
class SavedModel:
    """A model on disk.

    Attributes:
        place: the folder or the file.
        kind: see this module.
        files: those that make it, by their paths below the folder; a file by the empty name.
    """

    place: Path
    kind: Literal["pipeline", "model", "file"]
    files: Mapping[str, Path]

    @property
    def weights(self) -> list[str]:
        """Names of the files of tensors."""
        return [name for name, file in self.files.items() if file.suffix == _WEIGHTS]


def find_model(place: Path) -> SavedModel:
    """What lies at a place.

    Raises:
        UserError: nothing, no model, a model without a part, or with weights that are no safetensors.
    """
    if not place.is_dir():
        check_regular(place)
        _check_pickle(place)
        if place.suffix != _WEIGHTS:
            raise UserError(f"{shown(place)} is no folder of a model, and no {_WEIGHTS} file")
        return SavedModel(place, "file", {"": place})
    is_pipeline = (place / _INDEX).is_file()
    found = _pipeline_files(place) if is_pipeline else _model_files(place)
    for file in found:
        _check_pickle(file)
    model = SavedModel(
        place, "pipeline" if is_pipeline else "model", {file.relative_to(place).as_posix(): file for file in found}
    )
    if not model.weights:
        raise UserError(f"{shown(place)} has no weights in safetensors: give a folder that save_pretrained wrote")
    return model


def _check_pickle(file: Path) -> None:
    if file.suffix in _PICKLES:
        raise UserError(f"{shown(file)} is {_CONVERT}")


def _pipeline_files(place: Path) -> list[Path]:
    index = read_object(place / _INDEX)
    parts = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    if missing := next((name for name in parts if not (place / name).is_dir()), None):
        raise UserError(f"{shown(place)} names {missing} in {_INDEX}, but has no such folder: save it again")
    return [place / _INDEX, *(file for name in sorted(parts) for file in _files_below(place / name))]


def _files_below(folder: Path) -> list[Path]:
    return sorted(Path(here, name) for here, _, names in os.walk(folder) for name in names)


def _model_files(place: Path) -> list[Path]:
    entries = sorted(entry for entry in place.iterdir() if entry.is_file())
    if not any(entry.name in _CONFIGS for entry in entries):
        lora = next((entry for entry in entries if entry.name == _LORA), None)
        mend = f"give {shown(lora)}" if lora else "give a pipeline, a model's folder, or a .safetensors file"
        raise UserError(f"{shown(place)} is no model, it has neither {_INDEX} nor {_CONFIGS[0]}: {mend}")
    known = _WEIGHTS, f"{_WEIGHTS}.index.json", *_CONFIGS, *_PICKLES
    return [entry for entry in entries if entry.name.endswith(known)]


def check_alike(models: Sequence[SavedModel], hashes: Sequence[Mapping[str, str]]) -> None:
    """Refuse models of which no mean can be taken, as far as files tell without their tensors.

    What is no file of tensors must be equal, byte by byte; JSON, but for what it says of where the model comes from.

    Args:
        models: two or more.
        hashes: SHA-256 of the files of each.

    Raises:
        UserError: it names two of them, and the file or the entry that differs.
    """
    first = models[0]
    for other, theirs in zip(models[1:], hashes[1:], strict=True):
        both = f"{shown(first.place)} and {shown(other.place)}"
        if first.kind != other.kind:
            kinds = {"pipeline": "a pipeline", "model": "a model's folder", "file": "a file"}
            raise UserError(f"{both} do not match: the first is {kinds[first.kind]}, the other {kinds[other.kind]}")
        if odd := sorted(first.files.keys() ^ other.files.keys()):
            holder = first if odd[0] in first.files else other
            raise UserError(f"{both} do not match: only {shown(holder.place)} has {odd[0]}; save both in one way")
        for name, file in first.files.items():
            if name not in first.weights and hashes[0][name] != theirs[name]:
                _check_same(both, name, file, other.files[name])


def _check_same(both: str, name: str, file: Path, other: Path) -> None:
    """Refuse two files that are not equal, unless they are JSON and differ in the origin only."""
    problem = f"{both} do not match: {name} differs"
    if file.suffix != ".json":
        raise UserError(problem)
    try:
        one, another = (read_json(each, finite=False) for each in (file, other))
    except UserError:  # such as a tokenizer's limit of 10^30 tokens
        raise UserError(problem) from None
    if found := _difference(one, another):
        key, values = found
        raise UserError(f"{problem} in {key}, {values}" if key else problem)


def _difference(one: object, other: object, key: str = "") -> tuple[str, str] | None:
    """The first entry that differs, as a dotted name, and both values in short."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other} - _ORIGIN):
            if found := _difference(one.get(name), other.get(name), f"{key}.{name}" if key else name):
                return found
        return None
    return None if one == other else (key, f"{str(one)[:60]} and {str(other)[:60]}")
