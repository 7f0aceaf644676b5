"""Pareto sets, hypervolumes and differences over seeds: cases by hand, and laws that hold of any."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iet_agc.metrics.frontier import (
    Difference,
    Noise,
    hypervolume,
    noise,
    paired_difference,
    pareto_set,
    share_difference,
)

NUMBERS = st.floats(0, 2, allow_subnormal=False)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12)


def test_the_set_of_four_points_by_hand() -> None:
    assert pareto_set({"low": (0, 3), "both": (1, 1), "beaten": (1, 2), "good": (3, 0)}) == ["low", "both", "good"]


def test_equal_points_are_all_in_the_set() -> None:
    assert pareto_set({"a": (1, 1), "b": (1, 1), "c": (2, 2)}) == ["a", "b"]


@given(POINTS)
def test_every_point_is_in_the_set_or_beaten_by_one_of_it(points: list[tuple[float, float]]) -> None:
    named = dict(enumerate(points))
    best = pareto_set(named)
    for name, (x, y) in named.items():
        beaten = any(named[b][0] <= x and named[b][1] <= y and named[b] != (x, y) for b in best)
        assert beaten != (name in best)


def test_hypervolume_of_two_steps_by_hand() -> None:
    """Up to (4, 2): right of 1 a strip of 3 x 1, and right of 3 one more of 1 x 0.5; of 8 in all."""
    assert hypervolume([(1, 1), (3, 0.5)], (4, 2)) == pytest.approx(3.5 / 8)


def test_hypervolume_of_corners() -> None:
    assert hypervolume([], (1, 1)) == 0
    assert hypervolume([(0, 0)], (3, 5)) == 1
    assert hypervolume([(1, 0)], (1, 1)) == 0  # on the edge
    assert hypervolume([(2, 0.1)], (1, 1)) == 0  # beyond it


@pytest.mark.parametrize(("points", "reference"), [([], (0, 1)), ([(-0.1, 1)], (1, 1))])
def test_hypervolume_refuses_what_has_no_rectangle(
    points: list[tuple[float, float]], reference: tuple[float, float]
) -> None:
    with pytest.raises(ValueError, match="no share of the rectangle"):
        hypervolume(points, reference)


@given(POINTS, st.tuples(NUMBERS, NUMBERS))
def test_hypervolume_grows_with_points_and_is_that_of_the_pareto_set(
    points: list[tuple[float, float]], another: tuple[float, float]
) -> None:
    reference = (1.5, 1.0)
    found, more = hypervolume(points, reference), hypervolume([*points, another], reference)
    named = dict(enumerate(points))
    assert 0 <= found <= more + 1e-12
    assert more <= 1 + 1e-12
    assert hypervolume([named[n] for n in pareto_set(named)], reference) == pytest.approx(found, abs=1e-12)
    assert hypervolume(points[::-1], reference) == found


@given(POINTS)
def test_hypervolume_is_what_a_grid_counts(points: list[tuple[float, float]]) -> None:
    steps = 60
    places = [(n + 0.5) / steps for n in range(steps)]
    inside = sum(any(x <= a and y <= b for x, y in points) for a in places for b in places)
    assert hypervolume(points, (1, 1)) == pytest.approx(inside / steps**2, abs=0.05)


def test_a_paired_difference_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), and Student's 4.3027 at two degrees of freedom."""
    found = paired_difference([2, 4, 6], [1, 2, 3])
    assert found.mean == 2
    assert found.ci95 is not None
    assert found.ci95[1] - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert not found.is_sure


def test_what_seeds_do_not_tell_has_no_interval() -> None:
    assert paired_difference([3.0], [1.0]) == Difference(mean=2.0, ci95=None)
    assert paired_difference([0.3, 0.4], [0.1, 0.2]).ci95 is None  # the same twice, but for rounding
    assert not Difference(mean=2.0, ci95=None).is_sure


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=6))
def test_a_paired_difference_turned_round_has_the_other_sign(pairs: list[tuple[float, float]]) -> None:
    first, second = ([*side] for side in zip(*pairs, strict=True))
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert one.mean == pytest.approx(-other.mean)
    assert (one.ci95 is None) == (other.ci95 is None)
    if one.ci95 and other.ci95:
        assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]))


def test_nothing_copied_twice_over_is_no_sure_difference_and_has_width() -> None:
    none = share_difference([(0, 100)] * 3, [(0, 100)] * 3)
    assert none.mean == 0
    assert none.ci95 is not None
    assert none.ci95[0] < 0 < none.ci95[1]
    assert share_difference([(50, 100)] * 3, [(0, 100)] * 3).is_sure


def test_noise_is_the_deviation_between_seeds_and_hides_what_is_smaller() -> None:
    assert noise([1.0, 2.0, 3.0]) == Noise(deviation=1.0)
    assert noise([1.0]) == Noise(deviation=None)
    assert noise([1.0, 2.0, 3.0]).hides(Difference(mean=-0.5, ci95=(-0.6, -0.4)))
    assert not noise([1.0, 2.0, 3.0]).hides(Difference(mean=-1.5, ci95=(-1.6, -1.4)))
    assert not noise([1.0]).hides(Difference(mean=0.0, ci95=None))
