"""What torch has under private names only, in one place, each with another way where a version lacks it.

Results are the same by either way; only time and memory differ.
"""

from functools import cache

import torch
from torch import Tensor

__all__ = ["cpu_has", "has_integer_product", "integer_product", "step_unless"]

#: Before torch 2.11 the processor's instructions were asked for one by one.
_OLDER_NAMES = {
    "avx512_vnni": "_is_vnni_supported",
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx_tile": "_is_amx_tile_supported",
}


@cache
def cpu_has(instructions: str) -> bool:
    """Whether the processor has instructions: "avx512_vnni", "avx512_bf16" or "amx_tile". Not known is no."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get(instructions, False))
    older = getattr(torch.cpu, _OLDER_NAMES[instructions], None)
    return older is not None and bool(older())


def has_integer_product() -> bool:
    """Whether `integer_product` can be called."""
    return hasattr(torch, "_int_mm")


def integer_product(rows: Tensor, columns: Tensor, out: Tensor | None = None) -> Tensor:
    """Inner products of int8 (N, D) and (M, D), int32 (N, M), exact up to 2^16 dimensions.

    Args:
        rows, columns: on one device; CUDA wants more than 16 rows, and D and M that are multiples of 8.
        out: where to leave the result.
    """
    product = torch._int_mm  # pyright: ignore[reportPrivateUsage]
    return product(rows, columns.T) if out is None else product(rows, columns.T, out=out)


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """Take a step, unless `bad`, float (), is above 0: then weights and moments stay. No device is waited for.

    A fused optimizer looks at the flag itself, as it does for `torch.amp.GradScaler`. Of any other, weights and moments
    are copied before the step, and put back.
    """
    if _looks_at_flag(type(optimizer), bad.device) and all(group.get("fused") for group in optimizer.param_groups):
        optimizer.found_inf = bad  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        return
    parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    weights = [each.detach().clone() for each in parameters]
    moments = [{name: t.clone() for name, t in optimizer.state[each].items()} for each in parameters]
    optimizer.step()
    with torch.no_grad():
        for parameter, weight, before in zip(parameters, weights, moments, strict=True):
            parameter.copy_(torch.where(bad > 0, weight, parameter))
            for name, tensor in optimizer.state[parameter].items():
                held = before.get(name, torch.zeros_like(tensor))  # before the first step all are zero
                tensor.copy_(torch.where(bad.to(tensor.device) > 0, held, tensor))


@cache
def _looks_at_flag(kind: type[torch.optim.Optimizer], device: torch.device) -> bool:
    """Whether a fused optimizer of this kind takes no step where it is told so; tried out on one weight."""
    weight = torch.nn.Parameter(torch.ones(1, device=device))
    weight.grad = torch.ones_like(weight)
    optimizer = kind([weight], fused=True)  # pyright: ignore[reportCallIssue]
    optimizer.found_inf = torch.ones((), device=device)  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    return weight.item() == 1
