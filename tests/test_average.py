"""The weighted mean by pencil, its precision, and what it refuses."""

import copy

import pytest
import torch
from torch import Tensor, nn

from iet_agc import average_states


def _linear(weight: list[list[float]], bias: list[float]) -> dict[str, Tensor]:
    module = nn.Linear(2, 2)
    module.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return module.state_dict()


FIRST = _linear([[1.0, 2.0], [3.0, 4.0]], [0.0, -4.0])
SECOND = _linear([[5.0, -2.0], [3.0, 0.0]], [8.0, 4.0])

# With 3 images in the first shard and 1 in the second, the mean is 3/4 of the first and 1/4 of the second:
#   weight  (3*1 + 5)/4 = 2    (3*2 - 2)/4 = 1      bias  (3*0 + 8)/4 = 2    (3*-4 + 4)/4 = -2
#           (3*3 + 3)/4 = 3    (3*4 + 0)/4 = 3
BY_PENCIL = {"weight": torch.tensor([[2.0, 1.0], [3.0, 3.0]]), "bias": torch.tensor([2.0, -2.0])}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("weights", [[3, 1], [0.75, 0.25], [3e6, 1e6], [6e-9, 2e-9]])
def test_two_linear_modules_by_pencil(weights: list[float]) -> None:
    mean = average_states([FIRST, SECOND], weights)
    for name, expected in BY_PENCIL.items():
        torch.testing.assert_close(mean[name], expected, rtol=1e-7, atol=1e-7)
    assert mean.keys() == BY_PENCIL.keys()


def test_whole_weights_by_pencil_are_bitwise() -> None:
    assert _equal(average_states([FIRST, SECOND], [3, 1]), BY_PENCIL)


@pytest.mark.parametrize("weight", [1, 7, 49, 1300, 0.1])
def test_one_state_comes_back_bitwise(weight: float) -> None:
    state = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).state_dict()
    assert _equal(average_states([state], [weight]), dict(state))


def test_equal_states_come_back_bitwise() -> None:
    state = {"a": torch.randn(1000, generator=torch.Generator().manual_seed(0))}
    assert _equal(average_states([state] * 10, [4600, 4601, *range(1, 9)]), state)


def test_a_generator_is_read_in_order_one_at_a_time() -> None:
    live: list[int] = []

    def fetch():
        for index, state in enumerate((FIRST, SECOND)):
            live.append(index)
            yield state

    assert _equal(average_states(fetch(), [3, 1]), BY_PENCIL)
    assert live == [0, 1]
    # another order is another mean
    assert not _equal(average_states((SECOND, FIRST), [3, 1]), BY_PENCIL)


def test_sums_run_in_float64() -> None:
    # 1 + 16777216 - 16777216 in float32 loses the 1 (2^24 + 1 is no float32); the mean is 1/3.
    states = [{"a": torch.tensor([value])} for value in (1.0, 16777216.0, -16777216.0)]
    in_float32 = sum((state["a"] for state in states), torch.zeros(1)) / 3
    assert in_float32.item() == 0  # the condition under test
    assert average_states(states, [1, 1, 1])["a"].item() == pytest.approx(1 / 3, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_stay(dtype: torch.dtype) -> None:
    mean = average_states(
        [{"a": torch.tensor([1.0, 2.0], dtype=dtype)}, {"a": torch.tensor([3.0, 5.0], dtype=dtype)}], [1, 1]
    )
    assert mean["a"].dtype == dtype
    assert mean["a"].tolist() == [2, 3.5]


def test_half_precision_does_not_overflow_on_the_way() -> None:
    state = {"a": torch.tensor([60000.0], dtype=torch.float16)}
    assert average_states([state, state], [50000, 50000])["a"].item() == state["a"].item()


def test_equal_integer_buffers_are_copied() -> None:
    count = torch.tensor(2**60 + 1)  # no float64: it must not go through a mean
    state = {"count": count, "mask": torch.tensor([True, False])}
    mean = average_states([state, copy.deepcopy(state)], [1, 3])
    assert _equal(mean, state)
    assert mean["count"].dtype == torch.int64
    mean["count"] += 1
    assert count.item() == 2**60 + 1


@pytest.mark.parametrize("other", [torch.tensor(8), torch.tensor([7])])
def test_unequal_integer_buffers_are_named(other: Tensor) -> None:
    first, second = {"a": torch.ones(1), "norm.count": torch.tensor(7)}, {"a": torch.ones(1), "norm.count": other}
    with pytest.raises(ValueError, match=r"'norm\.count'.*state 1.*state 0"):
        average_states([first, second], [1, 1])


def test_a_missing_or_further_entry_is_named() -> None:
    less = {"weight": FIRST["weight"]}
    for pair in ([FIRST, less], [less, FIRST]):
        with pytest.raises(ValueError, match=r"state 1 and state 0 .*'bias' is in one of them only"):
            average_states(pair, [1, 1])


def test_a_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"'bias' is \(3,\) in state 1, \(2,\) in state 0"):
        average_states([FIRST, FIRST | {"bias": torch.zeros(3)}], [1, 1])


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1]])
def test_weights_must_be_positive(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights must be positive numbers"):
        average_states([FIRST, SECOND], weights)


def test_a_weight_for_every_state() -> None:
    with pytest.raises(ValueError, match="3 weights, but 2 states"):
        average_states([FIRST, SECOND], [1, 1, 1])
    with pytest.raises(ValueError, match="1 weights, but more states"):
        average_states([FIRST, SECOND], [1])
    with pytest.raises(ValueError, match="1 weights, but 0 states"):
        average_states([], [1])


def test_inputs_stay_as_they_are_and_share_nothing() -> None:
    states = [copy.deepcopy(FIRST), copy.deepcopy(SECOND)]
    mean = average_states(states, [1, 2])
    for tensor in mean.values():
        tensor.fill_(99)
    assert _equal(states[0], FIRST)
    assert _equal(states[1], SECOND)


def test_parameters_with_a_graph_are_averaged_without_one() -> None:
    module = nn.Linear(2, 2)
    mean = average_states([dict(module.named_parameters())] * 2, [1, 1])
    assert not any(tensor.requires_grad for tensor in mean.values())
