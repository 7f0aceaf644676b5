"""The mean of several LoRAs: of their factors, or exactly.

A LoRA adds scale B A to a weight, A (rank, in), B (out, rank), scale = alpha / rank. The mean of K of them is

    sum_k w_k scale_k B_k A_k = [w_1 scale_1 B_1, ..., w_K scale_K B_K] [A_1; ...; A_K]        sum_k w_k = 1

a LoRA of K times the rank, whose scale is 1. The means of A and of B keep the rank, and are not that: the mean of B
times the mean of A is not the mean of B A, and is near it only where members are near each other.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import parse_json
from iet_agc.runtime.tensor_files import Layout, TensorFile

__all__ = ["ADAPTER", "ExactMean", "is_lora"]

#: Where diffusers says rank and alpha of each part.
ADAPTER = "lora_adapter_metadata"

#: What the factors of a weight are called: by peft, kohya-ss and diffusers.
_FACTOR = re.compile(
    r"(?P<of>.+)\.(?P<which>lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?P<end>(\.\w+)?\.weight)"
)
_DOWN = {"lora_A": "lora_B", "lora_down": "lora_up", "lora.down": "lora.up"}

#: What changes the formula above, in diffusers' words.
_OTHER_FORMULAS = ("use_dora", "use_rslora", "lora_bias", "rank_pattern", "alpha_pattern")


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors are those of a LoRA, by their names."""
    return any(_FACTOR.fullmatch(name) for name in names)


@dataclass(frozen=True)
class _Weight:
    """The names of what is added to one weight."""

    down: str
    up: str
    alpha: str


class ExactMean:
    """The exact mean of LoRAs of one layout, factor by factor.

    Args:
        files: K of them.
        weights: one positive number each.

    Raises:
        UserError: tensors that are no factor of a LoRA, or LoRAs of another formula.
    """

    def __init__(self, files: Sequence[TensorFile], weights: Sequence[float]) -> None:
        self._files, self._shares = files, [weight / sum(weights) for weight in weights]
        self._weights = _weights(files[0])
        self._by_name = {name: each for each in self._weights for name in (each.down, each.up, each.alpha)}
        self._scales = [_scales(file, self._weights) for file in files]

    def layouts(self) -> dict[str, Layout]:
        """Of the tensors of the mean: those of the files, with K times the rank."""
        count, found = len(self._files), dict(self._files[0].layouts)
        for each in self._weights:
            down, up = found[each.down], found[each.up]
            found[each.down] = Layout(down.dtype, (count * down.shape[0], *down.shape[1:]))
            found[each.up] = Layout(up.dtype, (up.shape[0], count * up.shape[1], *up.shape[2:]))
            if each.alpha in found:
                found[each.alpha] = Layout(torch.float32, ())  # which holds any rank
        return found

    def read(self, name: str) -> Tensor:
        """A tensor of the mean."""
        each = self._by_name[name]
        if name == each.alpha:
            return torch.tensor(float(self.layouts()[each.down].shape[0]))
        parts = [file.read(name) for file in self._files]
        if name == each.down:
            return torch.cat(parts)
        factors = [share * scales[name] for share, scales in zip(self._shares, self._scales, strict=True)]
        scaled = [factor * part.double() for factor, part in zip(factors, parts, strict=True)]
        return torch.cat(scaled, dim=1).to(parts[0].dtype)


def _weights(file: TensorFile) -> list[_Weight]:
    found: list[_Weight] = []
    for name in file.layouts:
        match = _FACTOR.fullmatch(name)
        if match and match["which"] in _DOWN:
            up = f"{match['of']}.{_DOWN[match['which']]}{match['end']}"
            found.append(_Weight(name, up, f"{match['of']}.alpha"))
    known = {name for each in found for name in (each.down, each.up, each.alpha)}
    missing = [each.up for each in found if each.up not in file.layouts]
    if odd := [*missing, *(file.layouts.keys() - known)]:
        what = "is not there, and its other factor is" if missing else "is no factor of a LoRA and no alpha"
        raise UserError(f"{shown(file.file)}: {odd[0]} {what}: average the factors", "lora")
    return found


def _scales(file: TensorFile, weights: Sequence[_Weight]) -> dict[str, float]:
    """alpha / rank of each weight, by the name of its B."""
    told, found = _adapter(file), dict[str, float]()
    for each in weights:
        part, rank = each.down.split(".")[0], file.layouts[each.down].shape[0]
        if each.alpha in file.layouts:
            found[each.up] = float(file.read(each.alpha)) / rank
        else:  # readers take the rank for alpha where nothing is said
            found[each.up] = told.get(f"{part}.lora_alpha", rank) / told.get(f"{part}.r", rank)
    return found


def _adapter(file: TensorFile) -> Mapping[str, Any]:
    """What diffusers says of rank and alpha, as "PART.lora_alpha"; nothing where it says nothing."""
    if ADAPTER not in file.metadata:
        return {}
    content = parse_json(file.metadata[ADAPTER].encode(), f"{shown(file.file)}, {ADAPTER}")
    told = content if isinstance(content, dict) else {}
    if odd := next((key for key, value in told.items() if key.split(".")[-1] in _OTHER_FORMULAS and value), None):
        raise UserError(f"{shown(file.file)} has {odd} {json.dumps(told[odd])}: average the factors", "lora")
    return told
