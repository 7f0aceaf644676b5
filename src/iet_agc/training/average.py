"""Averages of models that other programs trained, file by file: the end of a round for trainers that know none.

average.json    in the folder of the mean: SHA-256 of the models, their weights, and of all files there. Of a mean that
                is one file the same stands in its metadata, as iet_agc_average and iet_agc_sha256

A file of tensors becomes the mean of those of its name. All others must be equal, and are copied; so are files of
tensors that are. One tensor of each model is in memory at a time, and its sum in float64.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from iet_agc.method.averaging import average_states
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import (
    digest,
    hashes_below,
    only_one,
    put_back,
    replacing,
    replacing_folder,
    sha256,
    shown,
    writing,
)
from iet_agc.runtime.progress import progress_bar, say
from iet_agc.runtime.reading import parse_json, read_object
from iet_agc.runtime.result_folder import ResultFolder
from iet_agc.runtime.seal import damaged, is_sealed, unsealed, write_sealed
from iet_agc.runtime.tensor_files import TensorFile, data_sha256, open_tensors, write_tensors
from iet_agc.training.lora_factors import ADAPTER, ExactMean, is_lora
from iet_agc.training.saved_model import SavedModel, check_alike, find_model

__all__ = ["LoraMean", "average_models"]

#: How LoRAs are averaged: see `lora_factors`.
LoraMean = Literal["factors", "exact"]

_MARK, _VERSION = "average.json", 1
_RECORD, _SEAL = "iet_agc_average", "iet_agc_sha256"

#: Texts of a file of tensors that say how its tensors are to be read.
_BINDING = ("format", ADAPTER)


def average_models(
    places: Sequence[Path], out: Path, weights: Sequence[float] | None = None, lora: LoraMean = "factors"
) -> dict[str, Any]:
    """Write the weighted mean of models, whole or not at all; one that is there already is left as it is.

    Args:
        places: of the models, all of one kind, see `saved_model`.
        out: of the mean: a folder, or of files a .safetensors file.
        weights: one positive number per model, such as the sizes of shards; None: all alike.
        lora: of LoRA files: the means of A and of B, or the exact mean of the products, of K times the rank.

    Returns:
        What average.json says, without its seal.

    Raises:
        UserError: models that do not match, weights that are not finite, pickles, or `out` holds anything else.
    """
    weights = [1.0] * len(places) if weights is None else [float(weight) for weight in weights]
    _check_numbers(places, out, weights)
    models = [find_model(place) for place in places]
    with progress_bar("read", sum(len(model.files) for model in models), unit="file") as bar:
        hashes = [_hashes(model, bar.update) for model in models]
    check_alike(models, hashes)
    about = {"models_sha256": [digest(each) for each in hashes], "weights": weights, "lora": _lora(models[0], lora)}
    mean = _Mean(models, hashes, weights, lora, about)
    if models[0].kind == "file":
        return _write_file(mean, out)
    return _write_folder(mean, out)


def _check_numbers(places: Sequence[Path], out: Path, weights: Sequence[float]) -> None:
    if not places:
        raise UserError("an average needs at least one model")
    if len(weights) != len(places):
        raise UserError(f"{len(places)} models, and {len(weights)} weights: give as many, in the same order", "weights")
    if odd := [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]:
        raise UserError(f"weight {odd[0]:g} is not a finite number above 0", "weights")
    if not math.isfinite(sum(weights)):
        raise UserError("the sum of weights is beyond float64: give smaller ones, of any scale", "weights")
    real = [os.path.realpath(place) for place in places]
    if again := next((place for at, place in enumerate(places) if real[at] in real[:at]), None):
        raise UserError(f"{shown(again)} stands there twice: give each model once, with the sum of its weights")
    if os.path.realpath(out) in real:
        raise UserError(f"{shown(out)} is one of the models: choose another output", "out")


def _hashes(model: SavedModel, on_file: Callable[[], object]) -> dict[str, str]:
    found = {}
    for name, file in model.files.items():
        found[name] = sha256(file)
        on_file()
    return found


def _lora(model: SavedModel, lora: LoraMean) -> str | None:
    """How the LoRA is averaged; None of what is none."""
    found = any(is_lora(open_tensors(model.files[name]).layouts) for name in model.weights)
    if lora == "exact" and not (found and model.kind == "file"):
        raise UserError(f"{shown(model.place)} is no LoRA file, of which products could be averaged", "lora")
    return lora if found else None


@dataclass(frozen=True)
class _Mean:
    """What is to be written.

    Attributes:
        models: of which it is the mean; `hashes` of their files, and `weights`.
        lora: see `average_models`.
        about: what tells it from other averages.
    """

    models: Sequence[SavedModel]
    hashes: Sequence[Mapping[str, str]]
    weights: Sequence[float]
    lora: LoraMean
    about: Mapping[str, Any]

    def record(self, tensors: int, equal: int) -> dict[str, Any]:
        """What is kept about it.

        Args:
            tensors: how many were averaged.
            equal: how many files are those of all models.
        """
        names = [shown(model.place) for model in self.models]
        content = {"version": _VERSION, "kind": self.models[0].kind, "models": names, "tensors": tensors}
        return {**self.about, **content, "equal_files": equal}

    def is_equal(self, name: str) -> bool:
        """Whether a file is one and the same in all models."""
        return len({each[name] for each in self.hashes}) == 1

    def check(self) -> None:
        """Refuse files of tensors that do not match, before anything is written."""
        for name in self.models[0].weights:
            if not self.is_equal(name):
                _check_layouts([open_tensors(model.files[name]) for model in self.models], self.lora)

    def write(self, name: str, place: Path, record: Mapping[str, Any] | None = None) -> int:
        """Write a file of tensors; how many there are.

        Args:
            name: of the file.
            place: to write it to.
            record: kept in its metadata, with a seal.
        """
        files = [open_tensors(model.files[name]) for model in self.models]
        metadata = _common_metadata(files)
        exact = ExactMean(files, self.weights) if self.lora == "exact" else None
        if exact:
            metadata.pop(ADAPTER, None)
        metadata |= {_RECORD: json.dumps(record)} if record else {}
        layouts = exact.layouts() if exact else files[0].layouts
        read = exact.read if exact else lambda tensor: _mean(files, self.weights, tensor)
        with progress_bar("average", len(layouts), unit="tensor") as bar:

            def told(tensor: str) -> Tensor:
                bar.update()
                return _finite(read(tensor), files, tensor)

            write_tensors(place, layouts, told, metadata, _SEAL if record else None)
        return len(layouts)


# Folders and files -----------------------------------------------------------------------------------------


def _write_folder(mean: _Mean, out: Path) -> dict[str, Any]:
    with writing(out):
        put_back(out)
    folder = ResultFolder(out, _MARK, "average", words={"models_sha256": "models"})
    folder.check(mean.about)
    if folder.is_whole and (record := _finished(out / _MARK)):
        return record
    mean.check()
    first = mean.models[0]
    equal = [name for name in first.files if name not in first.weights or mean.is_equal(name)]
    with writing(out), only_one(out), replacing_folder(out) as unfinished:
        tensors = 0
        for name, file in first.files.items():
            place = unfinished / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if name in equal:
                shutil.copyfile(file, place)
            else:
                tensors += mean.write(name, place)
        record = mean.record(tensors, len(equal))
        write_sealed(unfinished / _MARK, record, hashes_below(unfinished))
    return record


def _finished(mark: Path) -> dict[str, Any] | None:
    """What a folder that is there says of itself; None where it is not as it was written."""
    content = read_object(mark, "remove it")
    odd = next(damaged(mark, content, None), None)
    if odd or not is_sealed(content):
        say(f"{shown(odd or mark)} is not as it was written: the average is made again")
        return None
    return unsealed(mark, content, "remove it")


def _write_file(mean: _Mean, out: Path) -> dict[str, Any]:
    if record := _finished_file(out, mean.about):
        return record
    mean.check()
    (file,) = mean.models[0].files
    layouts = open_tensors(mean.models[0].place).layouts
    record = mean.record(len(layouts), 0)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as unfinished:
            mean.write(file, unfinished, record)
    return record


def _finished_file(out: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a file that is there says of itself; None where it is to be written.

    Raises:
        UserError: another average, or anything else.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{shown(out)}: the mean of files is a file, name it .safetensors", "out")
    if not os.path.lexists(out):
        return None
    if not out.is_file():
        raise UserError(f"{shown(out)} is there and is no regular file: choose another output", "out")
    metadata = open_tensors(out).metadata
    if _RECORD not in metadata:
        raise UserError(f"{shown(out)} is there and is no average of ours: choose another output, or remove it", "out")
    content = parse_json(metadata[_RECORD].encode(), f"{shown(out)}, {_RECORD}", "remove it")
    record = content if isinstance(content, dict) else {}
    if odd := next((name for name in about if record.get(name) != about[name]), None):
        change = "of other models" if odd == "models_sha256" else f"{odd} is {record.get(odd)}, not {about[odd]}"
        raise UserError(f"{shown(out)} holds another average ({change}): choose another output", "out")
    if metadata.get(_SEAL) != data_sha256(out):
        say(f"{shown(out)} is not as it was written: the average is made again")
        return None
    return record


# Tensors ---------------------------------------------------------------------------------------------------


def _check_layouts(files: Sequence[TensorFile], lora: LoraMean) -> None:
    """Refuse files whose tensors differ in name, type or shape, or mean different things."""
    first = files[0]
    for other in files[1:]:
        both = f"{shown(first.file)} and {shown(other.file)}"
        if odd := sorted(first.layouts.keys() ^ other.layouts.keys()):
            raise UserError(f"{both} do not match: {odd[0]} is in one of them only")
        for name, layout in first.layouts.items():
            if layout != other.layouts[name]:
                raise UserError(
                    f"{both} do not match: {name} is {layout} in the first, {other.layouts[name]} in the other"
                )
        for name in _BINDING:
            if first.metadata.get(name) != other.metadata.get(name) and (name, lora) != (ADAPTER, "exact"):
                raise UserError(f"{both} do not match: their metadata differ in {name}")


def _common_metadata(files: Sequence[TensorFile]) -> dict[str, str]:
    """What all files say; of training runs each says something else, which is not true of the mean."""
    texts = {name: text for name, text in files[0].metadata.items() if name not in (_RECORD, _SEAL)}
    return {name: text for name, text in texts.items() if all(file.metadata.get(name) == text for file in files)}


def _mean(files: Sequence[TensorFile], weights: Sequence[float], name: str) -> Tensor:
    """The mean of a tensor; of whole numbers, and of the alpha of a LoRA, what all have."""
    if name.endswith(".alpha") or not files[0].layouts[name].dtype.is_floating_point:
        value = files[0].read(name)
        for other in files[1:]:
            if not torch.equal(value, other.read(name)):
                raise UserError(
                    f"{shown(files[0].file)} and {shown(other.file)} do not match: {name} differs, and has no mean"
                )
        return value
    return average_states(({name: file.read(name)} for file in files), weights)[name]


def _finite(mean: Tensor, files: Sequence[TensorFile], name: str) -> Tensor:
    """The mean, if it is a number.

    Raises:
        UserError: it is not; it names the file that it comes from.
    """
    if mean.is_floating_point() and not _is_finite(mean):
        odd = next((file for file in files if not _is_finite(file.read(name))), files[0])
        raise UserError(f"{shown(odd.file)}: {name} is not finite, so its training broke: leave the model out")
    return mean


def _is_finite(tensor: Tensor) -> bool:
    wide = tensor if tensor.dtype.itemsize > 2 else tensor.float()  # of 8 bits torch cannot tell
    return bool(wide.isfinite().all())
