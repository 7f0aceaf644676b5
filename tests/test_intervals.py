"""Wilson's and Newcombe's intervals as published; over runs and by prompt they hold as often as they say."""

import math

import numpy as np
import pytest

from iet_agc.metrics.intervals import (
    calibration_rank,
    clustered_share,
    difference,
    mean,
    share,
    share_over_runs,
    wilson,
)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_published(count: int, total: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), pp. 857-872, table I, method 3."""
    found = share(count, total)
    assert (found.count, found.share) == (count, count / total)
    assert found.ci95 == pytest.approx([low, high], abs=5e-5)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_newcombes_interval_as_published(counts: tuple[int, int, int, int], low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), pp. 873-890, table II, method 10."""
    both = share(*counts[:2]), share(*counts[2:])
    apart, limits = difference(*((found.share, found.ci95) for found in both))
    assert apart == pytest.approx(counts[0] / counts[1] - counts[2] / counts[3])
    assert limits == pytest.approx([low, high], abs=5e-5)


def test_a_difference_turned_around_changes_its_sign() -> None:
    both = [(found.share, found.ci95) for found in (share(30, 200), share(11, 90))]
    (one, limits), (other, turned) = difference(*both), difference(*both[::-1])
    assert other == -one
    assert turned == pytest.approx([-limit for limit in reversed(limits)])


@pytest.mark.parametrize(("count", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_of_nothing_is_refused(count: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"no share of {count} in {total} images"):
        share(count, total)


@pytest.mark.parametrize(
    ("false_alarm", "held_out", "rank"), [(0.01, 98, 0), (0.01, 99, 1), (0.01, 198, 1), (0.01, 199, 2), (0.1, 29, 3)]
)
def test_the_rank_of_a_cut(false_alarm: float, held_out: int, rank: int) -> None:
    """0.1 x 30 is 3.0000000000000004 in floating point, and 0.01 x 100 is 1 only by luck: decimals are exact."""
    assert calibration_rank(false_alarm, held_out) == rank


@pytest.mark.parametrize("false_alarm", [0.0, 1.0, -0.1])
def test_a_false_alarm_rate_is_a_share(false_alarm: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        calibration_rank(false_alarm, 500)


# Over runs ------------------------------------------------------------------------------------------------


def test_wilsons_interval_of_an_effective_number_is_wilsons():
    assert wilson(81 / 263, 263, math.inf) == pytest.approx(share(81, 263).ci95, abs=1e-12)
    assert wilson(0, 20, math.inf) == (0, pytest.approx(0.1611, abs=5e-5))
    assert wilson(1, 20, math.inf) == (pytest.approx(1 - 0.1611, abs=5e-5), 1)


def test_runs_that_agree_have_the_samples_of_all_and_the_doubt_of_three_runs():
    """0 of 3,072 with t(0.975, 2) = 4.302653: t^2 / (3072 + t^2); Wilson's of all, 0.12 %, knows nothing of seeds."""
    assert share_over_runs([0, 0, 0], [1024] * 3) == (0, pytest.approx(4.302653**2 / (3072 + 4.302653**2)))
    assert share(0, 3072).ci95[1] < 0.0013
    assert share_over_runs([7, 7, 7], [1024] * 3) == wilson(7 / 1024, 3072, 2)


def test_runs_that_differ_have_fewer_samples():
    """100, 200, 600 of 1,000: of shares the variance is 0.07, of log odds 1.7 x 0.21^2 = 0.0749, the larger."""
    counts, log_odds = (100, 200, 600), [math.log((x + 0.5) / (1000.5 - x)) for x in (100, 200, 600)]
    variance = float(np.var(log_odds, ddof=1)) * (0.3 * 0.7) ** 2 / 3
    assert variance > 0.07 / 3 > 0.3 * 0.7 / 3000
    assert share_over_runs(counts, [1000] * 3) == pytest.approx(wilson(0.3, 0.3 * 0.7 / variance, 2))
    rows = [share_over_runs([0, 0, x], [1000] * 3) for x in (0, 1, 10, 100, 1000)]
    assert [high for _, high in rows] == sorted(high for _, high in rows)
    assert rows[-1] == pytest.approx([0.02, 0.95], abs=0.05)  # three runs that disagree wildly tell nothing


def test_of_one_run_the_spread_is_that_of_others():
    assert share_over_runs([0], [1000], ([3, 3], [1000, 1000])) == wilson(0, 1000, 1)
    low, high = share_over_runs([200], [1000], ([100, 200, 600], [1000] * 3))
    assert low < share(200, 1000).ci95[0] / 2
    assert high > 2 * share(200, 1000).ci95[1]
    with pytest.raises(ValueError, match="one run does not tell how runs differ"):
        share_over_runs([200], [1000])


def test_limits_can_be():
    """Student's t reached -1.1 % here, and of a difference of all from none -100.8 points."""
    counts, totals = (0, 4, 0), [1024] * 3
    assert mean([count / 1024 for count in counts]).ci95[0] < -0.004
    low, high = share_over_runs(counts, totals)
    assert 0 < low < 4 / 3072 < high < 0.03
    none, all_of_them = ((p, share_over_runs([144 * p] * 3, [144] * 3)) for p in (0, 1))
    assert difference(none, all_of_them)[1][0] == -1
    assert difference(all_of_them, none)[1][1] == 1


@pytest.mark.parametrize(("runs", "least"), [(3, 0.95), (5, 0.93)])
def test_over_runs_it_holds_where_students_t_does_not(runs, least):
    """Shares of mean 1 %, beta, as spread as an exponential variable: of 95 % Student's t holds in 81 to 89 %."""
    random = np.random.default_rng(0)
    counts = random.binomial(1024, random.beta(1, 99, (600, runs)))
    held, students = [], []
    for row in counts.tolist():
        low, high = share_over_runs(row, [1024] * runs)
        held.append(low <= 0.01 <= high)
        interval = mean([count / 1024 for count in row]).ci95
        assert interval is not None
        low, high = interval
        students.append(low <= 0.01 <= high)
    assert np.mean(held) >= least
    assert np.mean(students) < 0.9


# By prompt ------------------------------------------------------------------------------------------------


def test_draws_of_different_clusters_are_independent():
    counted = [True] * 3 + [False] * 17
    assert clustered_share(counted, None) == clustered_share(counted, range(20)) == share(3, 20)
    assert mean([1.0, 2.0, 4.0], "abc") == mean([1.0, 2.0, 4.0])


def test_prompts_that_are_copied_as_a_whole_count_once_each():
    """8 of 24 prompts, each drawn 6 times: the design effect is 6, so it is 8 of 24 with t(0.975, 23) = 2.068658."""
    prompts = [number % 24 for number in range(144)]
    found = clustered_share([prompt < 8 for prompt in prompts], prompts)
    assert (found.count, found.share, found.clusters) == (48, 1 / 3, 24)
    assert found.design_effect == pytest.approx(6)
    assert found.ci95 == pytest.approx(wilson(1 / 3, 24, 23))


def test_none_of_24_prompts_is_not_none_of_144():
    prompts = [number % 24 for number in range(144)]
    found = clustered_share([False] * 144, prompts)
    assert list(found.ci95) == [0, pytest.approx(2.068658**2 / (24 + 2.068658**2))]
    assert share(0, 144).ci95[1] < 0.027
    one = clustered_share([number == 0 for number in range(144)], prompts)
    assert one.ci95[1] == pytest.approx(found.ci95[1], abs=0.01)
    turned = clustered_share([True] * 144, prompts)
    assert turned.ci95 == pytest.approx([1 - bound for bound in reversed(found.ci95)])


def test_copies_that_are_spread_over_prompts_are_nearly_independent():
    """Each of 300 prompts once in 2 draws: less than independent draws would vary, and never taken for more of them."""
    found = clustered_share([True, False] * 300, [number // 2 for number in range(600)])
    assert found.design_effect == 1
    assert found.ci95 == pytest.approx(share(300, 600).ci95, abs=1e-3)


def test_draws_of_one_prompt_are_about_that_prompt():
    alone = share(1, 3).model_copy(update={"clusters": 1, "design_effect": 1.0})
    assert clustered_share([True, False, False], "aaa") == alone
    assert dict(mean([1.0, 2.0], "aa")) == {"mean": 1.5, "ci95": None, "clusters": 1}


@pytest.mark.parametrize("intraclass", [0.1, 0.5, 0.9])
def test_by_prompt_it_holds_where_wilsons_of_all_draws_does_not(intraclass):
    """24 prompts, 6 draws of each; the mean of their shares is 10 %."""
    random, number = np.random.default_rng(1), 1 / intraclass - 1
    counts = random.binomial(6, random.beta(0.1 * number, 0.9 * number, (400, 24)))
    prompts, held, plain = [place // 6 for place in range(144)], [], []
    for row in counts.tolist():
        low, high = clustered_share([draw < count for count in row for draw in range(6)], prompts).ci95
        held.append(low <= 0.1 <= high)
        low, high = share(sum(row), 144).ci95
        plain.append(low <= 0.1 <= high)
    assert np.mean(held) >= 0.94
    assert np.mean(plain) < 0.93


def test_a_mean_by_prompt_varies_as_prompts_do():
    """1, 1 and 3, 3: residuals -2 and 2 by prompt, sqrt(2 / 1 x 8) / 4 = 1, t(0.975, 1) = 12.706205."""
    found = mean([1.0, 1.0, 3.0, 3.0], "aabb")
    assert dict(found) == {"mean": 2.0, "ci95": pytest.approx((2 - 12.706205, 2 + 12.706205)), "clusters": 2}
