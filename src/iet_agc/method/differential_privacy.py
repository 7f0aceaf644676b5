"""DP-SGD: gradients that tell little of any one example, and how little, as (epsilon, delta).

Each example has a gradient of its own, g_i, scaled down to a norm of C at most. A step takes

    (sum_i g_i min(1, C / |g_i|) + sigma C N(0, I)) / B

where each of n examples is drawn by itself with probability q = B / n (Poisson sampling), so that B are expected. What
T such steps leave is (epsilon, delta)-differentially private: with one example added or removed, no set of outcomes
gets more than e^epsilon times as probable, plus delta. EMA, learning rates and averages of steps follow from it and
change nothing.

Of a diffusion model g_i is the gradient of the mean over K draws of (timestep, noise) of the loss of image i (noise
multiplicity): it varies less, and as one example it is clipped once, so K costs no privacy.

Sources: Abadi et al., 2016 (arXiv 1607.00133); Dockhorn et al., "Differentially Private Diffusion Models", TMLR 2023
(arXiv 2210.09929). epsilon is Renyi accounting (Mironov et al., 2019, arXiv 1908.10530) by opacus, an upper bound.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from iet_agc.runtime.extras import require

__all__ = ["Loss", "epsilon_of", "private_gradients"]

#: Of one example: (parameters by name, its part of each tensor) -> its loss, (), and what else is of interest.
Loss: TypeAlias = Callable[..., tuple[Tensor, Tensor]]

#: Examples whose gradients are held at a time.
_AT_ONCE = 32

#: Renyi orders, with more at both ends than opacus looks at, for little and for much noise.
_ORDERS = [
    *(1 + x / 100 for x in range(1, 10)),
    *(1 + x / 10 for x in range(1, 100)),
    *range(12, 64),
    *(2**x for x in range(6, 12)),
]


def private_gradients(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    examples: tuple[Tensor, ...],
    *,
    clip: float,
    noise: float,
    expected: int,
    rng: torch.Generator,
) -> tuple[dict[str, Tensor], Tensor]:
    """The gradient of a step of DP-SGD.

    Args:
        loss: differentiated for each example by itself, by `torch.func`; it may not draw random numbers.
        parameters: what it is differentiated in, by name.
        examples: tensors with a row for each example that was drawn, (b, ...); b may be 0.
        clip: C, largest norm of the gradient of an example, over all parameters.
        noise: sigma.
        expected: B.
        rng: draws the noise, on the device of the parameters, parameter by parameter in their order.

    Returns:
        The gradient, by name; and what else `loss` returned, a row for each example. A gradient that is not finite
        makes the whole not finite.
    """
    total = {name: torch.zeros_like(each) for name, each in parameters.items()}
    others: list[Tensor] = []
    of_each = vmap(grad(loss, has_aux=True), in_dims=(None, *(0 for _ in examples)))
    for rows in torch.arange(len(examples[0]), device=examples[0].device).split(_AT_ONCE):
        if len(rows) == 0:  # `split` hands out an empty part of nothing
            continue
        with sdpa_kernel(SDPBackend.MATH):  # the one that can be differentiated for each example
            gradients, other = of_each(dict(parameters), *(each[rows] for each in examples))
        others.append(other)
        norms = torch.stack([each.flatten(1).square().sum(1) for each in gradients.values()]).sum(0).sqrt()
        scale = (clip / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1)
        for name, each in gradients.items():
            total[name] += torch.einsum("i,i...->...", scale, each)
    for each in total.values():
        lots = torch.randn(each.shape, generator=rng, device=each.device, dtype=each.dtype)
        each.add_(lots, alpha=noise * clip).div_(expected)
    return total, torch.cat(others) if others else torch.zeros(0)


def epsilon_of(noise: float, rate: float, steps: int, delta: float) -> float:
    """epsilon of so many steps, by opacus' Renyi accountant.

    Args:
        noise: sigma, above 0.
        rate: q, in (0, 1].
        steps: T.
        delta: in (0, 1).

    Raises:
        UserError: opacus is not installed.
    """
    require("opacus", "dp", "DP-SGD")
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    return float(accountant.get_epsilon(delta, alphas=_ORDERS))
