"""The loss bank against a literal loop, the decision, the masked mean, and what a GPU needs of them."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from iet_agc import AntiGradientControl
from iet_agc.method.agc import mean_of_kept


def _batch(size: int, num_timesteps: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(size, generator=rng), torch.randint(num_timesteps, (size,), generator=rng)


def _literal_update(bank: list[float], losses: Tensor, timesteps: Tensor, decay: float) -> list[float]:
    """Equation by equation: one sample after another, in batch order."""
    bank = list(bank)
    for loss, t in zip(losses.tolist(), timesteps.tolist(), strict=True):
        bank[t] = decay * bank[t] + (1 - decay) * loss
    return bank


def _trained(num_timesteps: int = 7, **kwargs: Any) -> AntiGradientControl:
    agc = AntiGradientControl(num_timesteps, **kwargs)
    agc.update(*_batch(64, num_timesteps, seed=9))
    return agc


class _NoHostSync(TorchDispatchMode):
    """Raises on operations that make the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_):
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])  # counts what is true
        if waits:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


# -- the bank


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("num_timesteps", [7, 1000])
def test_update_equals_the_literal_loop(num_timesteps: int, decay: float) -> None:
    agc = AntiGradientControl(num_timesteps, decay=decay)
    literal = [0.0] * num_timesteps
    for seed in range(5):
        losses, timesteps = _batch(128, num_timesteps, seed)
        assert len(timesteps.unique()) < 128  # the condition under test: timesteps that repeat
        agc.update(losses, timesteps)
        literal = _literal_update(literal, losses, timesteps, decay)
    torch.testing.assert_close(agc.mean_loss.double(), torch.tensor(literal).double(), rtol=1e-6, atol=1e-12)


def test_indexed_assignment_would_lose_repeated_timesteps() -> None:
    losses, timesteps = torch.tensor([1.0, 3.0]), torch.tensor([4, 4])
    agc = AntiGradientControl(10, decay=0.8)
    agc.update(losses, timesteps)
    # 0.8 * (0.2 * 1) + 0.2 * 3 = 0.76; bank[t] = 0.8 * bank[t] + 0.2 * losses would be 0.6 or 0.2
    assert agc.mean_loss[4].item() == pytest.approx(0.76, rel=1e-6)


def test_how_many_samples_share_a_timestep() -> None:
    """The two figures of docs/method.md: by their formulas, and counted in 4,000 batches."""
    size, num_timesteps = 128, 1000
    rare = 1 - 1 / num_timesteps
    sharing, lost = size * (1 - rare ** (size - 1)), size - num_timesteps * (1 - rare**size)
    assert (round(sharing, 1), round(lost, 1)) == (15.3, 7.8)
    drawn = torch.randint(num_timesteps, (4000, size), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(len(drawn), num_timesteps).scatter_add_(1, drawn, torch.ones(drawn.shape))
    shared = (counts * (counts > 1)).sum(1)  # all of these; all but one of each timestep are lost
    again = (counts - 1).clamp(min=0).sum(1)
    assert shared.mean().item() == pytest.approx(sharing, abs=0.3)
    assert again.mean().item() == pytest.approx(lost, abs=0.2)


def test_unvisited_timesteps_stay_bitwise() -> None:
    agc = _trained(100)
    before = agc.mean_loss.clone()
    agc.update(torch.tensor([0.3, 0.4]), torch.tensor([5, 5]))
    assert torch.equal(agc.mean_loss[6:], before[6:])
    assert agc.mean_loss[5] != before[5]


ODD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("odd", ODD)
def test_a_loss_that_is_not_finite_leaves_the_bank_as_if_it_were_not_there(odd: float) -> None:
    """Wherever it stands among those of its timestep; its neighbours still fold in one after another."""
    losses, timesteps = torch.tensor([1.0, 2.0, 4.0, 0.5]), torch.tensor([1, 1, 2, 1])
    expected = _trained()
    expected.update(losses, timesteps)
    for place in range(5):
        agc = _trained()
        with_odd = torch.cat([losses[:place], torch.tensor([odd]), losses[place:]])
        agc.update(with_odd, torch.cat([timesteps[:place], torch.tensor([1]), timesteps[place:]]))
        assert torch.equal(agc.mean_loss, expected.mean_loss)
    alone = _trained()
    alone.update(torch.tensor([odd, odd]), torch.tensor([3, 3]))
    assert torch.equal(alone.mean_loss, _trained().mean_loss)


@pytest.mark.parametrize("odd", ODD)
def test_a_loss_that_is_not_finite_shows_and_the_next_batch_is_as_if_it_had_not_been(odd: float) -> None:
    """One bad loss once spoiled its timestep for good: all later losses there were skipped."""
    agc, plain = _trained(), _trained()
    losses = torch.tensor([0.5, odd, 0.25], requires_grad=True)
    timesteps = torch.tensor([2, 2, 3])
    assert agc.keep(losses, timesteps).tolist() == [True, True, plain.keep(losses[2:], timesteps[2:]).item()]
    shown = agc(losses, timesteps)
    shown.backward()
    torch.testing.assert_close(shown, losses.mean(), equal_nan=True)
    assert not shown.isfinite()
    assert losses.grad is not None
    assert losses.grad[1] != 0  # so what is wrong reaches the weights' gradients, as with losses.mean()
    plain.update(losses[[0, 2]].detach(), timesteps[[0, 2]])
    assert torch.equal(agc.mean_loss, plain.mean_loss)
    assert agc.keep(torch.full((500,), 0.5), torch.full((500,), 2)).all()


def test_a_loss_that_only_float64_holds_leaves_the_bank_finite() -> None:
    agc = AntiGradientControl(2)
    losses, timesteps = torch.tensor([1e300, 1.0], dtype=torch.float64), torch.tensor([0, 0])
    assert agc.keep(losses, timesteps).all()
    assert agc(losses, timesteps).item() == 5e299
    assert agc.mean_loss.tolist() == pytest.approx([0.2, 0], rel=1e-6)


def test_decay_zero_keeps_the_last_loss() -> None:
    agc = AntiGradientControl(3, decay=0.0)
    agc.update(torch.tensor([0.5, 0.25, 0.75]), torch.tensor([1, 1, 2]))
    assert agc.mean_loss.tolist() == [0.0, 0.25, 0.75]


@settings(deadline=None, max_examples=30)
@given(data=st.data(), size=st.integers(1, 40), num_timesteps=st.integers(1, 6), decay=st.floats(0, 0.99))
def test_a_batch_in_two_parts_is_the_same_batch(
    data: st.DataObject, size: int, num_timesteps: int, decay: float
) -> None:
    cut = data.draw(st.integers(0, size))
    losses, timesteps = _batch(size, num_timesteps, seed=size)
    whole, parts = (AntiGradientControl(num_timesteps, decay=decay) for _ in range(2))
    whole.update(losses, timesteps)
    parts.update(losses[:cut], timesteps[:cut])
    parts.update(losses[cut:], timesteps[cut:])
    torch.testing.assert_close(whole.mean_loss, parts.mean_loss, rtol=1e-6, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_order_matters_only_within_a_timestep(seed: int) -> None:
    losses, timesteps = _batch(50, 5, seed)
    order = timesteps.argsort(stable=True)
    straight, grouped = AntiGradientControl(5), AntiGradientControl(5)
    straight.update(losses, timesteps)
    grouped.update(losses[order], timesteps[order])
    torch.testing.assert_close(straight.mean_loss, grouped.mean_loss, rtol=1e-6, atol=0)
    first = timesteps == timesteps[0]
    losses[first] = losses[first].sort().values  # a change of order within one timestep is another bank
    grouped.update(losses.flip(0), timesteps.flip(0))
    assert not torch.equal(straight.mean_loss, grouped.mean_loss)


def test_bank_starts_at_zero_and_skips_nothing_on_a_first_visit() -> None:
    agc = AntiGradientControl(1000, skip_below=0.99)
    assert torch.equal(agc.mean_loss, torch.zeros(1000))
    assert agc.mean_loss.dtype == torch.float32
    losses, timesteps = torch.full((1000,), 1e-30), torch.arange(1000)
    assert agc.keep(losses, timesteps).all()
    assert agc.keep(torch.zeros(1000), timesteps).all()


def test_bank_is_a_buffer_that_survives_a_round_trip() -> None:
    agc = _trained()
    assert list(agc.state_dict()) == ["mean_loss"]
    assert list(agc.parameters()) == []
    other = AntiGradientControl(7)
    other.load_state_dict(agc.state_dict())
    assert torch.equal(other.mean_loss, agc.mean_loss)
    assert "mean_loss" in AntiGradientControl(3).state_dict()
    assert "num_timesteps=7, skip_below=0.5, decay=0.8" in repr(agc)


# -- the decision


def test_keep_follows_the_definition_and_changes_nothing() -> None:
    agc = _trained(skip_below=0.9)
    losses, timesteps = _batch(128, 7, seed=3)
    before = agc.mean_loss.clone()
    keep = agc.keep(losses, timesteps)
    expected = [bool(loss >= torch.tensor(0.9) * before[t]) for loss, t in zip(losses, timesteps.tolist(), strict=True)]
    assert keep.tolist() == expected
    assert 0 < sum(expected) < 128
    assert torch.equal(agc.mean_loss, before)


def test_forward_decides_with_the_bank_before_the_batch() -> None:
    agc = AntiGradientControl(2, skip_below=0.5, decay=0.0)
    agc.update(torch.tensor([1.0]), torch.tensor([0]))
    # Against the bank of 1 the second sample, 0.6, stays; against 4, after the first sample, it would go.
    assert agc(torch.tensor([4.0, 0.6]), torch.tensor([0, 0])).item() == pytest.approx(2.3)


def test_skipped_samples_update_the_bank_too() -> None:
    agc = AntiGradientControl(1, skip_below=0.5, decay=0.8)
    agc.update(torch.tensor([1.0]), torch.tensor([0]))
    losses, timesteps = torch.tensor([0.01]), torch.tensor([0])
    assert not agc.keep(losses, timesteps).any()
    agc(losses, timesteps)
    assert agc.mean_loss.item() == pytest.approx(0.8 * 0.2 + 0.2 * 0.01, rel=1e-6)


@pytest.mark.parametrize("skip_below", [0.5, 0.8, 1.0, 1 / 3])
def test_a_loss_on_the_boundary_is_kept(skip_below: float) -> None:
    agc = _trained(skip_below=skip_below)
    timesteps = torch.arange(7)
    boundary = skip_below * agc.mean_loss
    assert (boundary > 0).all()
    assert agc.keep(boundary, timesteps).all()
    assert not agc.keep(torch.nextafter(boundary, torch.zeros(7)), timesteps).any()


# -- the loss


def test_loss_is_the_mean_of_the_kept_and_so_is_its_gradient() -> None:
    agc = _trained(skip_below=0.9)
    losses, timesteps = _batch(128, 7, seed=4)
    losses.requires_grad_()
    keep = agc.keep(losses, timesteps)
    assert 0 < keep.sum() < 128
    loss = agc(losses, timesteps)
    loss.backward()
    assert loss.ndim == 0
    torch.testing.assert_close(loss, losses[keep].mean())
    assert losses.grad is not None
    assert torch.equal(losses.grad, torch.where(keep, 1 / keep.sum(), 0.0))


def test_nothing_kept_is_an_exact_zero_with_a_zero_gradient() -> None:
    agc = AntiGradientControl(3, skip_below=0.5)
    agc.update(torch.full((3,), 1e6), torch.arange(3))
    weight = torch.ones(3, requires_grad=True)
    loss = agc(weight * 1e-3, torch.arange(3))
    loss.backward()
    assert loss.item() == 0
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 0, 0]


def test_a_skipped_loss_that_is_not_finite_stays_out_of_value_and_gradient() -> None:
    losses = torch.tensor([2.0, float("nan"), float("inf")], requires_grad=True)
    loss = mean_of_kept(losses, torch.tensor([True, False, False]))
    loss.backward()
    assert loss.item() == 2
    assert losses.grad is not None
    assert losses.grad.tolist() == [1, 0, 0]


def test_skip_below_zero_is_the_plain_mean_bitwise() -> None:
    agc = _trained(1000, skip_below=0.0)
    for seed in range(20):
        mine, plain = (_batch(128, 1000, seed)[0].requires_grad_() for _ in range(2))
        timesteps = _batch(128, 1000, seed)[1]
        assert agc.keep(mine, timesteps).all()
        loss, expected = agc(mine, timesteps), plain.mean()
        loss.backward()
        expected.backward()
        assert torch.equal(loss, expected)
        assert mine.grad is not None
        assert plain.grad is not None
        assert torch.equal(mine.grad, plain.grad)


def test_parts_of_a_batch_add_up_to_its_loss() -> None:
    losses, keep = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([True, False, True, True])
    parts = [mean_of_kept(losses[rows], keep[rows], keep.sum()) for rows in (slice(0, 2), slice(2, 4))]
    assert float(parts[0] + parts[1]) == pytest.approx(float(mean_of_kept(losses, keep)))
    assert float(mean_of_kept(losses, keep)) == pytest.approx(13 / 3)


def test_replicas_add_up_to_the_batch_and_have_its_bank() -> None:
    losses, timesteps = _batch(10, 5)
    one, alone = _trained(5), losses.clone().requires_grad_()
    expected = one(alone, timesteps)
    expected.backward()
    total, gradients = 0.0, []
    for rows in (slice(0, 3), slice(3, 10)):
        mine, replica = losses[rows].clone().requires_grad_(), _trained(5)
        part = replica(mine, timesteps, whole=losses, rows=rows)
        part.backward()
        total += part.item()
        gradients.append(mine.grad)
        assert torch.equal(replica.mean_loss, one.mean_loss)
    assert total == pytest.approx(expected.item())
    assert torch.equal(torch.cat(gradients), alone.grad)  # pyright: ignore[reportArgumentType]


def test_a_decision_that_is_given_is_taken_and_the_bank_still_learns_of_all() -> None:
    losses, timesteps, keep = torch.tensor([1.0, 5.0]), torch.tensor([0, 2]), torch.tensor([True, False])
    agc = AntiGradientControl(3)
    assert agc(losses, timesteps, keep=keep).item() == 1
    assert agc.mean_loss.tolist() == pytest.approx([0.2, 0, 1])


@pytest.mark.parametrize("rows", [slice(0, 1), slice(1, 4), slice(None)])
def test_losses_of_other_rows_are_refused(rows: slice) -> None:
    agc, whole = AntiGradientControl(3), torch.ones(4)
    with pytest.raises(ValueError, match=r"losses are \(2,\), but rows of the batch"):
        agc(torch.ones(2), torch.zeros(4, dtype=torch.int64), whole=whole, rows=rows)
    assert agc.mean_loss.tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_of_the_loss(dtype: torch.dtype) -> None:
    agc = AntiGradientControl(3)
    loss = agc(torch.tensor([0.5, 1.5], dtype=dtype), torch.tensor([0, 2]))
    assert loss.dtype == dtype
    assert loss.item() == 1
    assert agc.mean_loss.dtype == torch.float32
    assert agc.mean_loss.tolist() == pytest.approx([0.1, 0, 0.3], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    """128 losses of 30,000 add up to more than float16 holds, their mean does not."""
    agc = AntiGradientControl(1000)
    losses = (6e4 * _batch(128, 1)[0]).to(dtype).requires_grad_()
    mean = agc(losses, torch.arange(128))
    mean.backward()
    assert torch.equal(mean, losses.float().mean().to(dtype))
    assert mean.isfinite()
    assert losses.grad is not None
    assert losses.grad.tolist() == [1 / 128] * 128


def test_the_mean_of_float32_losses_is_bitwise_sum_over_count() -> None:
    for seed in range(20):
        losses, keep = _batch(127, 9, seed)[0], _batch(127, 2, seed)[1] > 0
        assert torch.equal(mean_of_kept(losses, keep), torch.where(keep, losses, 0).sum() / keep.sum())


# -- devices


def _calls(agc: AntiGradientControl, losses: Tensor, timesteps: Tensor) -> Iterator[Tensor]:
    yield agc.keep(losses, timesteps)
    agc.update(losses, timesteps)
    yield agc(losses, timesteps)
    yield agc.accumulate(losses, timesteps)
    agc.finish([])


@pytest.mark.parametrize("skip_below", [0.5, "auto"])
def test_no_call_waits_for_the_device(skip_below: float | Literal["auto"]) -> None:
    agc = _trained(1000, skip_below=skip_below)
    losses, timesteps = _batch(128, 1000)
    losses.requires_grad_()
    with _NoHostSync():
        for result in _calls(agc, losses, timesteps):
            assert result is not None
        agc(losses, timesteps).backward()
    with _NoHostSync(), pytest.raises(AssertionError, match="waits for the device"):  # the check can fail
        losses.sum().item()
    with _NoHostSync(), pytest.raises(AssertionError, match="waits for the device"):
        losses[losses > 0.5]


def test_no_call_needs_the_values() -> None:
    agc = AntiGradientControl(1000).to("meta")
    results = list(_calls(agc, torch.empty(128, device="meta"), torch.empty(128, dtype=torch.int64, device="meta")))
    assert [tuple(result.shape) for result in results] == [(128,), (), ()]


@pytest.mark.parametrize("skip_below", [0.9, "auto"])
def test_compiled_it_is_one_graph_and_the_same_bits(skip_below: float | Literal["auto"]) -> None:
    made = [_trained(skip_below=skip_below) for _ in range(2)]
    compiled = torch.compile(made[1], backend="aot_eager", fullgraph=True)
    for seed in range(3):
        losses, timesteps = _batch(64, 7, seed)
        given = [losses.clone().requires_grad_() for _ in made]
        results = [call(mine, timesteps) for call, mine in zip((made[0], compiled), given, strict=True)]
        for loss in results:
            loss.backward()
        assert torch.equal(*results)
        assert torch.equal(given[0].grad, given[1].grad)  # pyright: ignore[reportArgumentType]
        assert not made[0].keep(losses, timesteps).all()  # the condition under test: some are skipped
        assert torch.equal(made[0].mean_loss, made[1].mean_loss)


# -- weights of losses


def test_a_weight_of_the_timestep_changes_no_decision_and_scales_its_bank() -> None:
    """Such as min-SNR's, or those between epsilon- and v-prediction. Powers of two, so that products are exact."""
    weights = 2.0 ** torch.arange(-3, 4)
    plain, weighted = AntiGradientControl(7, 0.9), AntiGradientControl(7, 0.9)
    skipped = 0
    for seed in range(6):
        losses, timesteps = _batch(64, 7, seed)
        scale = weights[timesteps]
        keep = plain.keep(losses, timesteps)
        assert torch.equal(weighted.keep(losses * scale, timesteps), keep)
        skipped += int((~keep).sum())
        weight_after = mean_of_kept(losses * scale, keep)  # AGC on the plain loss, the weight behind it
        assert torch.equal(weighted(losses * scale, timesteps), weight_after)
        plain.update(losses, timesteps)
        assert torch.equal(weighted.mean_loss, plain.mean_loss * weights)
    assert skipped > 50


# -- micro-batches


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_micro_batches_are_one_batch(scale: float) -> None:
    """Bitwise the same bank; gradients but for the order of sums, also where a gradient scaler multiplied them."""
    losses, timesteps = _batch(60, 7, 5)
    whole, parts = (_trained(skip_below=0.9) for _ in range(2))
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    features = torch.rand(60, 3, generator=torch.Generator().manual_seed(1))
    assert 0 < whole.keep(losses, timesteps).sum() < 60
    expected = whole(losses * (features @ weights[0]), timesteps)
    expected.backward()
    for rows in (slice(0, 20), slice(20, 27), slice(27, 60)):
        (scale * parts.accumulate(losses[rows] * (features[rows] @ weights[1]), timesteps[rows])).backward()
    unused = torch.nn.Parameter(torch.ones(1))
    parts.finish([weights[1], unused])
    assert unused.grad is None
    assert weights[0].grad is not None
    torch.testing.assert_close(weights[1].grad, scale * weights[0].grad, rtol=1e-6, atol=0)
    assert torch.equal(parts.mean_loss, whole.mean_loss)
    with pytest.raises(ValueError, match="nothing was accumulated: call accumulate for each micro-batch first"):
        parts.finish([weights[1]])


def test_micro_batches_of_which_nothing_is_kept_leave_a_zero_gradient() -> None:
    agc, weight = AntiGradientControl(1), torch.nn.Parameter(torch.ones(()))
    agc.update(torch.tensor([1e6]), torch.tensor([0]))
    for _ in range(2):
        agc.accumulate(weight[None], torch.tensor([0])).backward()
    agc.finish([weight])
    assert weight.grad == 0


def test_half_precision_is_accumulated_in_float32() -> None:
    agc, losses = AntiGradientControl(2), torch.full((4,), 6e4, dtype=torch.float16)
    total = agc.accumulate(losses, torch.tensor([0, 0, 1, 1]))
    assert (total.dtype, total.item()) == (torch.float32, 4 * losses[0].item())


# -- errors


@pytest.mark.parametrize(
    ("losses", "timesteps"),
    [((4, 3, 8, 8), (4,)), ((), ()), ((4,), (3,)), ((4, 1), (4, 1))],
)
def test_wrong_shapes_are_named(losses: tuple[int, ...], timesteps: tuple[int, ...]) -> None:
    agc = AntiGradientControl(10)
    given = torch.zeros(losses), torch.zeros(timesteps, dtype=torch.int64)
    for call in (agc.keep, agc.update, agc):
        with pytest.raises(ValueError, match=r"must both be \(B,\).*one loss per sample"):
            call(*given)
    assert torch.equal(agc.mean_loss, torch.zeros(10))


def test_times_that_are_continuous_are_refused_where_there_are_no_bins() -> None:
    agc = AntiGradientControl(10)
    for call in (agc.keep, agc.update, agc.accumulate, agc):
        with pytest.raises(ValueError, match=r"integers, not torch\.float32: .*\.for_times\(edges\)"):
            call(torch.zeros(3), torch.rand(3))
    assert torch.equal(agc.mean_loss, torch.zeros(10))


@pytest.mark.parametrize("wrong", [-1, 10, 999])
def test_timesteps_that_have_no_entry_are_refused(wrong: int) -> None:
    agc = AntiGradientControl(10)
    for call in (agc.keep, agc.update, agc.accumulate, agc):
        with pytest.raises(ValueError, match=rf"timestep {wrong} is not in \[0, 10\): give num_timesteps"):
            call(torch.ones(3), torch.tensor([0, wrong, 9]))
    assert torch.equal(agc.mean_loss, torch.zeros(10))


def test_the_bank_learns_in_eval_and_without_gradients_unless_only_asked() -> None:
    agc = _trained().eval()
    before = agc.mean_loss.clone()
    losses, timesteps = _batch(16, 7)
    mean_of_kept(losses, agc.keep(losses, timesteps))
    assert torch.equal(agc.mean_loss, before)
    with torch.no_grad():
        agc(losses, timesteps)
    assert not torch.equal(agc.mean_loss, before)


def test_momentum_moves_when_all_is_skipped() -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer, agc = torch.optim.SGD([weight], lr=0.1, momentum=0.9), AntiGradientControl(1)
    for scale in (1.0, 1e-6):  # the second loss is far under the bank
        before = weight.detach().clone()
        loss = agc(scale * weight[None], torch.tensor([0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() == 0
    assert weight.grad == 0
    assert weight != before


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_timesteps": 0}, "num_timesteps must be at least 1, not 0"),
        ({"skip_below": -0.1}, "skip_below .* not -0.1"),
        ({"skip_below": float("nan")}, "skip_below"),
        ({"skip_below": float("inf")}, "skip_below"),
        ({"skip_below": "Auto"}, "skip_below .*, or 'auto', not 'Auto'"),
        ({"rows_per_rank": 0}, "rows_per_rank must be at least 1, or None, not 0"),
        ({"decay": 1.0}, r"decay must be in \[0, 1\), not 1.0"),
        ({"decay": -0.1}, "decay"),
        ({"decay": float("nan")}, "decay"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AntiGradientControl(**kwargs)  # pyright: ignore[reportArgumentType]
