"""Wilson's and Newcombe's intervals as published."""

import pytest

from iet_agc.intervals import calibration_rank, difference_of_shares, share


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_published(count: int, total: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), pp. 857-872, table I, method 3."""
    found = share(count, total)
    assert (found["count"], found["share"]) == (count, count / total)
    assert found["ci95"] == pytest.approx([low, high], abs=5e-5)


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
    found = difference_of_shares(*counts)
    assert found["difference"] == pytest.approx(counts[0] / counts[1] - counts[2] / counts[3])
    assert found["ci95"] == pytest.approx([low, high], abs=5e-5)


def test_a_difference_turned_around_changes_its_sign() -> None:
    one, other = difference_of_shares(30, 200, 11, 90), difference_of_shares(11, 90, 30, 200)
    assert other["difference"] == -one["difference"]
    assert other["ci95"] == pytest.approx([-limit for limit in reversed(one["ci95"])])


@pytest.mark.parametrize(("count", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_a_share_of_nothing_is_refused(count: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"no share of {count} in {total} images"):
        share(count, total)
    with pytest.raises(ValueError, match="no share"):
        difference_of_shares(1, 2, count, total)


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
