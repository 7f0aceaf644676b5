"""The average of a constant, buffers, and the ends of the decay."""

import pytest
import torch
from torch import nn

from iet_agc.method.ema import ExponentialMovingAverage


class _Module(nn.Module):
    running: torch.Tensor
    count: torch.Tensor

    def __init__(self, value: float = 0.0, count: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), value))
        self.register_buffer("running", torch.full((2,), value))
        self.register_buffer("count", torch.tensor(count))


def test_toward_a_constant_the_rest_shrinks_as_decay_to_the_n() -> None:
    ema = ExponentialMovingAverage(_Module(1.0), decay=0.9)
    target = _Module(0.0)
    for n in range(1, 30):
        ema.update(target)
        torch.testing.assert_close(ema.module.weight.detach(), torch.full((3,), 0.9**n), rtol=1e-5, atol=0)


def test_the_decay_is_constant_from_the_first_step() -> None:
    """diffusers' EMAModel would start at a decay near 0.1."""
    ema = ExponentialMovingAverage(_Module(0.0), decay=0.9999)
    ema.update(_Module(1.0))
    assert ema.module.weight[0].item() == pytest.approx(1e-4, rel=1e-3)


def test_sequence_by_hand() -> None:
    ema = ExponentialMovingAverage(_Module(8.0), decay=0.5)
    for value in (4.0, 2.0, 0.0):  # 8 -> 6 -> 4 -> 2
        ema.update(_Module(value))
    assert ema.module.weight.tolist() == [2, 2, 2]


def test_float_buffers_are_averaged_and_integer_buffers_copied() -> None:
    ema = ExponentialMovingAverage(_Module(0.0, count=1), decay=0.75)
    ema.update(_Module(4.0, count=9))
    assert ema.module.running.tolist() == [1, 1]
    assert ema.module.count.item() == 9


def test_decay_zero_follows_and_decay_one_stays_bitwise() -> None:
    start, target = _Module(0.1), _Module(0.7, count=3)
    for decay, expected in ((0.0, target), (1.0, start)):
        ema = ExponentialMovingAverage(start, decay)
        ema.update(target)
        assert torch.equal(ema.module.weight, expected.weight)
        assert torch.equal(ema.module.running, expected.running)


def test_the_average_is_a_copy_that_needs_no_gradient() -> None:
    module = _Module(1.0).train()
    ema = ExponentialMovingAverage(module, decay=0.5)
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert not ema.module.training
    assert all(p.requires_grad for p in module.parameters())
    assert module.training
    with torch.no_grad():
        module.weight.add_(1)
    assert ema.module.weight.tolist() == [1, 1, 1]
    ema.update(module)
    assert ema.module.weight.grad_fn is None
    assert module.weight.tolist() == [2, 2, 2]


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match=r"EMA decay must be in \[0, 1\], not"):
        ExponentialMovingAverage(_Module(), decay)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        ExponentialMovingAverage(nn.Linear(2, 2), 0.5).update(nn.Linear(2, 2, bias=False))


def test_kept_shares_of_k_to_k_plus_1_make_the_mean() -> None:
    ema = ExponentialMovingAverage(_Module(7.0), decay=0.9)
    for k, value in enumerate((1.0, 2.0, 6.0)):
        ema.update(_Module(value), decay=k / (k + 1))
    assert ema.module.weight.tolist() == pytest.approx([3.0] * 3)
    assert ema.module.running.tolist() == pytest.approx([3.0] * 2)
    ema.update(_Module(0.0))
    assert ema.module.weight.tolist() == pytest.approx([2.7] * 3)  # and back to its own
