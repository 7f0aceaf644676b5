"""Always as many rows, every place once, and nobody's scheduler moved."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.samplers import SAMPLERS, sample, scheduler_of
from iet_agc.runtime.fixed_rows import fixed_rows


@given(st.integers(0, 60), st.integers(1, 20))
def test_every_place_is_new_once_and_batches_are_of_one_size(total: int, rows: int) -> None:
    batches = list(fixed_rows(total, rows))
    assert [place for places, count in batches for place in places[:count]] == [*range(total)]
    assert all(len(places) == rows for places, _ in batches)
    assert all(set(places[count:]) <= {places[0]} for places, count in batches)


@pytest.mark.parametrize("rows", [0, -1])
def test_no_rows_are_refused(rows: int) -> None:
    with pytest.raises(ValueError, match=f"rows must be at least 1, not {rows}"):
        next(fixed_rows(3, rows))


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "flow"])
def test_a_scheduler_is_made_for_one_call(sampler) -> None:
    shared = make_scheduler()
    one, other = scheduler_of(shared, sampler, 5), scheduler_of(shared, sampler, 7)
    assert one is not shared
    assert shared.num_inference_steps is None
    assert one.num_inference_steps == 5
    assert torch.equal(one.alphas_cumprod, shared.alphas_cumprod)
    assert other.num_inference_steps == 7


def test_sampling_leaves_the_scheduler_as_others_set_it() -> None:
    shared = make_scheduler()
    shared.set_timesteps(3)

    def model(images, timesteps):
        shared.set_timesteps(2)  # another thread, with the same scheduler
        return type("Output", (), {"sample": 0.1 * images})

    expected = sample(
        lambda images, _: type("Output", (), {"sample": 0.1 * images}), make_scheduler(), [1], (1, 8, 8), 5
    )
    assert torch.equal(sample(model, shared, [1], (1, 8, 8), 5), expected)
    assert shared.num_inference_steps == 2
