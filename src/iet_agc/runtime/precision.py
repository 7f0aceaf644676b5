"""Precision: in which numbers a network computes. Weights, losses, moments and averages are float32 in any case."""

from typing import Literal

import torch

from iet_agc.runtime.torch_internals import cpu_has

__all__ = ["Precision", "autocast", "resolved"]

#: "auto" is a wish; the others are what is computed in.
Precision = Literal["auto", "float32", "bfloat16"]


def resolved(precision: Precision, device: torch.device) -> Precision:
    """The same, or for "auto" bfloat16 where the device has instructions for it, and float32 where it has none.

    Such instructions are tensor cores from compute capability 8.0 on, and AVX512-BF16 or AMX of CPUs: without them
    bfloat16 is slower than float32.
    """
    if precision != "auto":
        return precision
    if device.type == "cpu":
        fast = cpu_has("avx512_bf16") or cpu_has("amx_tile")
    else:
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if fast else "float32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which convolutions and matrix products take this precision; one of "auto" must be resolved."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
