"""LoRA: of a frozen projection W only a difference of low rank is trained (Hu et al., 2022, arXiv 2106.09685).

W x + (alpha / rank) B A x          A (rank, in) is Gaussian at the start, B (out, rank) is zero

by peft, on the projections of attention, W itself once for all members. What a round averages are the factors. Their
mean is not that of the differences, mean(B) mean(A) != mean(B A): members must stay close, as they must for weights.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from iet_agc.runtime.extras import require
from iet_agc.runtime.seeds import seeded

M = TypeVar("M", bound=nn.Module)

__all__ = ["FILE_NAME", "add_lora", "factors", "merged"]

#: The file of factors that diffusers writes and reads.
FILE_NAME = "pytorch_lora_weights.safetensors"


def add_lora(model: nn.Module, projections: Sequence[str], rank: int, alpha: float, seed: int) -> None:
    """Freeze a model, and give some of its projections factors that are trained; equal for equal seeds.

    Args:
        model: changed in place.
        projections: the ends of the names of what gets factors.
        rank, alpha: see above.
        seed: of the factors.

    Raises:
        UserError: `peft` is not installed.
    """
    require("peft", "text", "lora.rank")
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    scaled: Any = alpha  # peft's annotation says int; it divides
    config = LoraConfig(r=rank, lora_alpha=scaled, target_modules=[*projections], init_lora_weights="gaussian")
    with seeded("lora", seed):
        inject_adapter_in_model(config, model)


def factors(model: nn.Module) -> dict[str, Tensor]:
    """A and (alpha / rank) B of every projection, by peft's names; none, if the model has no LoRA.

    With that factor in B they mean the same to every reader, whatever alpha it takes for the rank.
    """
    found = {}
    for name, layer in _layers(model):
        found[f"{name}.lora_A.weight"] = layer.lora_A["default"].weight.detach()
        found[f"{name}.lora_B.weight"] = layer.lora_B["default"].weight.detach() * layer.scaling["default"]
    return found


def merged(model: M) -> M:
    """A copy with the products added to the projections, of the class and names that it had before LoRA.

    A model without LoRA is returned as it is.
    """
    if not any(_layers(model)):
        return model
    plain = copy.deepcopy(model)
    for name, layer in list(_layers(plain)):
        layer.merge()
        plain.set_submodule(name, layer.get_base_layer())
    return plain


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Projections with factors, by name; known by what they have, since peft may not be installed."""
    return ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))
