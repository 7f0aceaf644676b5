"""`skip_below="auto"`: the rule equation by equation, what it skips of losses of known spread, and in a run."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iet_agc import AntiGradientControl
from iet_agc.config.fingerprint import fingerprint
from iet_agc.config.overrides import override
from iet_agc.reporting.model_card import method_in_words
from iet_agc.training.loop import train
from tests.processes import killed_after
from tests.tiny_runs import CPU, assert_ends_like, images, settings, weights

NUM_TIMESTEPS = 5


def _auto(decay: float = 0.8) -> AntiGradientControl:
    return AntiGradientControl(NUM_TIMESTEPS, "auto", decay)


def _log_normal(deviation: float, size: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    losses = (deviation * torch.randn(size, generator=rng)).exp()
    return losses, torch.randint(NUM_TIMESTEPS, (size,), generator=rng)


def _seen(deviation: float, batches: int = 400, scale: float = 1.0) -> AntiGradientControl:
    """A control that has seen ordinary losses of some spread, and low ones, a fifth of all, times `scale`."""
    agc = _auto(decay=0.98)
    for seed in range(batches):
        losses, timesteps = _log_normal(deviation, 50, seed)
        losses[::5] *= scale
        agc.update(losses, timesteps)
    return agc


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_the_spread_is_that_of_the_literal_loop(decay: float) -> None:
    """Of losses above the bank as it was before the batch, one after another, at half the rate of the bank."""
    agc, spread = _auto(decay), [1.0] * NUM_TIMESTEPS
    kept, skipped = 1 - (1 - decay) / 2, 0
    for seed in range(30):
        losses, timesteps = _log_normal(0.5, 40, seed)
        losses[0] = torch.nan
        bank = agc.mean_loss.tolist()
        below = [bank[t] * math.exp(-math.sqrt(spread[t]) / 4) for t in timesteps.tolist()]
        expected = [not loss < limit for loss, limit in zip(losses.tolist(), below, strict=True)]
        assert agc.keep(losses, timesteps).tolist() == expected
        skipped += expected.count(False)
        agc.update(losses, timesteps)
        for loss, t in zip(losses.tolist(), timesteps.tolist(), strict=True):
            if bank[t] > 0 and loss > bank[t]:
                spread[t] = kept * spread[t] + (1 - kept) * math.log(loss / bank[t]) ** 2
        assert agc.spread is not None
        torch.testing.assert_close(agc.spread, torch.tensor(spread), rtol=1e-5, atol=0)
    assert skipped > 0


def test_the_bank_is_that_of_a_fixed_value() -> None:
    auto, fixed = _auto(), AntiGradientControl(NUM_TIMESTEPS, 0.5)
    for seed in range(3):
        for agc in (auto, fixed):
            agc.update(*_log_normal(0.5, 40, seed))
    assert torch.equal(auto.mean_loss, fixed.mean_loss)


def test_as_long_as_nothing_is_known_the_line_lies_lower() -> None:
    agc, timesteps = _auto(), torch.arange(NUM_TIMESTEPS)
    assert agc.keep(torch.full((5,), 1e-30), timesteps).all()
    agc.mean_loss.fill_(1.0)
    limit = math.exp(-1 / 4)
    assert agc.keep(torch.full((5,), limit * 1.001), timesteps).all()
    assert not agc.keep(torch.full((5,), limit * 0.999), timesteps).any()


@pytest.mark.parametrize("deviation", [0.1, 0.2, 0.4])
def test_of_ordinary_losses_as_many_are_skipped_whatever_their_spread(deviation: float) -> None:
    """By the normal law 40 %; the bank is a mean, above the median, and both are estimates: 37 to 50 %."""
    losses, timesteps = _log_normal(deviation, 20_000, 10**6)
    skipped = 1 - _seen(deviation).keep(losses, timesteps).float().mean().item()
    assert 0.37 < skipped < 0.5


def test_low_losses_hardly_move_it_and_are_skipped_where_half_the_bank_would_keep_them() -> None:
    """A fifth of the losses is at 0.6 of the others: memorized images."""
    agc = _seen(0.1, scale=0.6)
    losses, timesteps = _log_normal(0.1, 20_000, 10**6)
    assert (~agc.keep(0.6 * losses, timesteps)).float().mean() > 0.99
    assert agc.keep(losses, timesteps).float().mean() > 0.8
    fixed = AntiGradientControl(NUM_TIMESTEPS, 0.5)
    fixed.mean_loss.copy_(agc.mean_loss)
    assert (~fixed.keep(0.6 * losses, timesteps)).float().mean() < 0.2


def test_the_state_holds_the_spread_and_that_of_a_fixed_value_is_as_it_was() -> None:
    agc = _seen(0.2, 3)
    assert [*agc.state_dict()] == ["mean_loss", "spread"]
    other = _auto()
    other.load_state_dict(agc.state_dict())
    assert torch.equal(other.spread, agc.spread)  # pyright: ignore[reportArgumentType]
    fixed = AntiGradientControl(NUM_TIMESTEPS, 0.5)
    assert [*fixed.state_dict()] == ["mean_loss"]
    with pytest.raises(RuntimeError, match=r"Missing key.*spread"):
        _auto().load_state_dict(fixed.state_dict())


# -- in a run


def test_a_run_of_it_is_killed_and_goes_on_bitwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run so short would skip nothing: it starts with a spread that is known to be next to none."""
    monkeypatch.setattr("iet_agc.method.agc._UNKNOWN_SPREAD", 1e-6)
    chosen = settings(method__skip_below="auto", method__decay=0.0)
    train(chosen, images(), tmp_path / "whole", CPU)
    out = tmp_path / "run"
    killed_after(20, lambda counts: train(chosen, images(), out, CPU, counts))
    train(chosen, images(), out, CPU)
    assert_ends_like(tmp_path / "whole", out)
    train(override(chosen, {"method.skip_below": "0"}), images(), tmp_path / "none", CPU)
    none, auto = weights(tmp_path / "none"), weights(out)
    assert any(not torch.equal(none[name], auto[name]) for name in none)  # the condition under test: some are skipped


def test_it_is_a_setting_of_its_own() -> None:
    fixed, auto = settings(), settings(method__skip_below="auto")
    assert override(fixed, {"method.skip_below": "auto"}) == auto
    assert override(auto, {"method.skip_below": "0.5"}) == fixed
    assert fingerprint(auto) != fingerprint(fixed)
    assert "a quarter of a standard deviation of the log losses below" in method_in_words(auto)


@pytest.mark.parametrize("value", ["often", "-0.1", "inf", "nan", "true", "none"])
def test_other_values_are_refused_in_one_line(value: str) -> None:
    with pytest.raises(ValueError, match=r"^setting method.skip_below: give a number of at least 0, or auto \(it is "):
        override(settings(), {"method.skip_below": value})
