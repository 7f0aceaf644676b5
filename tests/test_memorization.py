"""The distance ratio and MQ by hand, by a literal reference, and where MQ is blind."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iet_agc.metrics import CUTS, distance_ratio, memorization_quantity, nearest


def test_cuts_are_the_papers_nine() -> None:
    assert CUTS == (0.15, 0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.80, 0.90)


def test_ratio_by_hand() -> None:
    # 1 / ((1 + 2 + 3) / 3) = 0.5;  2 / 2 = 1;  0 / mean = 0
    distances = torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [0.0, 1.0, 5.0]], dtype=torch.float64)
    assert distance_ratio(distances).tolist() == [0.5, 1, 0]


def test_a_copy_of_all_neighbours_at_once_has_ratio_zero() -> None:
    assert distance_ratio(torch.zeros(2, 50)).tolist() == [0, 0]


def test_the_ratio_does_not_depend_on_the_scale() -> None:
    distances = torch.rand(20, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort(1).values
    assert torch.equal(distance_ratio(distances), distance_ratio(distances * 4))


def test_cuts_are_strict() -> None:
    ratios = torch.tensor([0.15, 0.5, 0.25], dtype=torch.float64)
    assert memorization_quantity(ratios, (0.15, 0.25, 0.5, 0.51)) == {0.15: 0, 0.25: 1, 0.5: 2, 0.51: 3}
    assert memorization_quantity(ratios.float(), (0.25, 0.5)) == {0.25: 1, 0.5: 2}


def test_counts_are_plain_integers_per_cut() -> None:
    counts = memorization_quantity(torch.tensor([0.1, 0.35, 0.95]))
    assert list(counts) == list(CUTS)
    assert list(counts.values()) == [1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert all(type(count) is int for count in counts.values())
    assert set(memorization_quantity(torch.empty(0)).values()) == {0}


def _literal_mq(distances: list[list[float]], cut: float) -> int:
    """Section 4.1 of the paper, one sample after another, with 50 neighbours or as many as there are."""
    count = 0
    for row in distances:
        mean = sum(row) / len(row)
        ratio = min(row) / mean if mean > 0 else 0.0
        count += ratio < cut
    return count


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(0, 100), min_size=4, max_size=4), min_size=1, max_size=20))
def test_equals_the_literal_reference(rows: list[list[int]]) -> None:
    # Quarters are exact in binary, so no rounding decides a strict comparison.
    distances = torch.tensor(rows, dtype=torch.float64).sort(1).values
    counts = memorization_quantity(distance_ratio(distances), (0.25, 0.5, 0.75, 1.0))
    assert counts == {cut: _literal_mq([[float(d) for d in row] for row in rows], cut) for cut in counts}
    assert list(counts.values()) == sorted(counts.values())


def _images(count: int, seed: int) -> torch.Tensor:
    return torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_a_near_copy_is_found_among_unique_images_and_missed_among_fifty_copies() -> None:
    """The documented blind spot: an image that stands 50 times in the training set."""
    unique = _images(60, 0)
    sample = unique[:1].clone()
    sample[0, 0, 0, 0] ^= 1  # a copy but for one bit
    found = distance_ratio(nearest(sample, unique)[0])
    assert found.item() < 0.001
    repeated = torch.cat([unique, unique[:1].repeat(49, 1, 1, 1)])
    missed = distance_ratio(nearest(sample, repeated)[0])
    assert missed.item() == pytest.approx(1, abs=1e-12)
    assert memorization_quantity(missed)[0.90] == 0


@pytest.mark.parametrize("shape", [(5,), (5, 0), (2, 5, 3)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"distances must be \(N, k\), not"):
        distance_ratio(torch.ones(shape))
