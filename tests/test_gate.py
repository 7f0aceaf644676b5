"""The gate of a build: its limit against exact distributions and simulation, its judgement, its words. No torch."""

import numpy as np
import pytest
from scipy.stats import beta, betabinom, binom

from iet_agc.metrics.gate import PIXELS, gate, sentence
from iet_agc.metrics.intervals import _rates, _tail, least_calibrated_share, surely_above
from iet_agc.metrics.records import Calibrated


def numbers(count, total, held_out, **more):
    ci95 = (0.0, 1.0)
    told = {"false_alarm": 0.01, "cut": 0.1, "num_held_out": held_out}
    return {PIXELS: Calibrated(count=count, total=total, share=count / total, ci95=ci95, **told, **more)}


@pytest.mark.parametrize("held_out", [99, 400, 497, 4999])
def test_the_limit_of_harmless_samples_is_that_of_the_beta_binomial_distribution(held_out):
    """Where nothing is copied, the number below a cut drawn with j of H is beta-binomial: its tail is known exactly."""
    rank = (held_out + 1) // 100
    enough, harmless = surely_above(0.01, 1024, 0.01, held_out, 0.025)
    exact = betabinom.sf(np.arange(-1, 1024), 1024, rank, held_out + 1 - rank)
    assert enough == int((exact >= 0.025).sum())
    assert harmless == pytest.approx(exact[enough], rel=1e-2)
    assert least_calibrated_share(enough, 1024, 0.01, held_out, 0.025) > 0.01
    assert least_calibrated_share(enough - 1, 1024, 0.01, held_out, 0.025) <= 0.01


@pytest.mark.parametrize("held_out", [99, 497, 4999, 65_536])
@pytest.mark.parametrize("total", [1, 24, 1024, 65_536])
def test_special_functions_give_the_numbers_of_the_distributions_bit_by_bit(held_out: int, total: int) -> None:
    """scipy.stats takes as long to import as all of a check."""
    rank = (held_out + 1) // 100
    rates = beta.ppf((np.arange(4096) + 0.5) / 4096, rank, held_out + 1 - rank)
    assert np.array_equal(_rates(0.01, held_out), rates)
    for count in {0, 1, total // 50, total // 2, total, total + 1}:
        for share in (0.0, 0.005, 0.01, 0.03, 1.0):
            copied = (share - 0.01) / 0.99
            called = share / 0.01 * rates if copied < 0 else copied + (1 - copied) * rates
            assert _tail(count, total, share, 0.01, held_out) == float(binom.sf(count - 1, total, called).mean())
    found = next(iter(numbers(0, total, held_out).values()))
    assert found.most_false_alarms == float(beta.ppf(0.975, rank, held_out + 1 - rank))


def test_with_a_sure_cut_the_limit_is_clopper_pearsons():
    low = least_calibrated_share(60, 1024, 0.01, 10_000_000 - 1, 0.025)
    assert binom.sf(59, 1024, low) == pytest.approx(0.025, rel=2e-3)
    assert least_calibrated_share(0, 1024, 0.01, 99, 0.025) == 0


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05])
def test_a_gate_fails_what_is_allowed_no_more_often_than_it_says(share):
    """Of 20,000 draws of held-out images and samples; sd of a rate of 2.5 % is 0.11 %."""
    rng, held_out, total = np.random.default_rng(0), 399, 1024
    copied = (share - 0.01) / 0.99
    rates = copied + (1 - copied) * rng.beta(4, held_out - 3, 20_000)
    counts = rng.binomial(total, rates)
    enough, _ = surely_above(share, total, 0.01, held_out, 0.025)
    assert 0.01 < (counts >= enough).mean() < 0.025 + 4 * 0.0011


def test_more_held_out_images_show_less():
    least = [least_calibrated_share(80, 1024, 0.01, held_out, 0.025) for held_out in (99, 399, 4999)]
    assert least == sorted(least)
    assert 0.02 < least[0] < least[-1] < 80 / 1024


def test_a_share_above_by_chance_passes_and_a_large_one_fails():
    """25 of 1,024 are 2.4 %, above 2 %: with 99 held-out images, a harmless model has as many in every tenth audit."""
    passed, failed = (gate(numbers(count, 1024, 99), 0.02) for count in (25, 100))
    assert (passed.failed, failed.failed) == (False, True)
    assert passed.checks[0].share > 0.02 > passed.checks[0].least
    assert sentence(passed).startswith("check passed: 25 of 1,024 samples are below the calibrated cut (2.44%; ")
    assert sentence(failed).startswith("check failed: 100 of 1,024 samples are below the calibrated cut (9.77%; ")
    assert "not shown to be more than 2%; it fails in at most 2.5% of draws" in sentence(passed)


def test_samples_of_one_prompt_are_worth_fewer():
    """24 prompts of 40 samples each, copied as a whole or not: 960 samples are worth 24 draws."""
    alone = gate(numbers(80, 960, 399), 0.02)
    alike = gate(numbers(80, 960, 399, clusters=24, design_effect=40.0), 0.02)
    assert (alone.failed, alike.failed) == (True, False)
    (check,) = alike.checks
    assert check.least == least_calibrated_share(2, 24, 0.01, 399, 0.025)
    assert gate(numbers(check.fails_from, 960, 399, clusters=24, design_effect=40.0), 0.02).failed
    assert not gate(numbers(check.fails_from - 1, 960, 399, clusters=24, design_effect=40.0), 0.02).failed


def test_too_few_held_out_images_set_no_cut():
    with pytest.raises(ValueError, match=r"^98 held-out images set no cut of 0\.01 false alarms: give more"):
        least_calibrated_share(3, 24, 0.01, 98, 0.025)
