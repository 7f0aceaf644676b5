"""Weighted average of state dicts, the synchronisation step of Iterative Ensemble Training."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["average_states"]


def average_states(states: Iterable[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The mean of several state dicts, entry by entry.

        mean[name] = sum_k weights[k] * states[k][name] / sum_k weights[k]

    Sums run in float64 in the order given, so the result does not depend on where the states live:
    a generator that fetches them from other processes gives the same bits as a list.

    Args:
        states: state dicts of the same names and shapes; read one at a time.
        weights: one positive number per state, such as the sizes of the shards. Any scale.

    Returns:
        A new dict with the dtypes of the first state. Integer and bool entries, which have no mean,
        must be equal and are copied.

    Raises:
        ValueError: no states, a weight that is not positive, names or shapes that differ, as many
            weights as states not given, or integer entries that differ; the message names the entry.

    Examples:
        >>> average_states([{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}], weights=[1, 3])
        {'w': tensor([3.])}
    """
    if len(weights) == 0 or not all(0 < weight < float("inf") for weight in weights):
        raise ValueError(f"weights must be positive numbers, at least one, not {list(weights)}")
    sums: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    count = 0
    for count, state in enumerate(states, start=1):
        if count > len(weights):
            raise ValueError(f"{len(weights)} weights, but more states than that")
        if count == 1:
            sums = {
                name: torch.zeros_like(t, dtype=torch.float64) for name, t in state.items() if t.is_floating_point()
            }
            # of what has a sum, no values: a model more in memory
            first = {name: t.detach().to("meta") if name in sums else t.detach().clone() for name, t in state.items()}
        _accumulate(sums, first, state, weights[count - 1], count - 1)
    if count != len(weights):
        raise ValueError(f"{len(weights)} weights, but {count} states")
    total = float(sum(weights))
    return {name: sums.pop(name).div_(total).to(t.dtype) if name in sums else t for name, t in first.items()}


def _accumulate(
    sums: dict[str, Tensor], first: dict[str, Tensor], state: Mapping[str, Tensor], weight: float, index: int
) -> None:
    if state.keys() != first.keys():
        odd = sorted(state.keys() ^ first.keys())[0]
        raise ValueError(f"state {index} and state 0 do not hold the same entries: {odd!r} is in one of them only")
    for name, tensor in state.items():
        if tensor.shape != first[name].shape:
            raise ValueError(
                f"{name!r} is {tuple(tensor.shape)} in state {index}, {tuple(first[name].shape)} in state 0"
            )
        if name in sums:
            sums[name].add_(tensor.detach().double(), alpha=weight)
        elif not torch.equal(tensor, first[name]):
            raise ValueError(f"{name!r} is not floating point and differs between state {index} and state 0")
