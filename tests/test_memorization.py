"""The numbers of copying by hand, by literal references, by published examples, and where MQ is blind."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm

from iet_agc.metrics.intervals import Proportion, share
from iet_agc.metrics.memorization import (
    CUTS,
    auth_pct,
    calibrated_cut,
    calibrated_share,
    cells,
    copying_z,
    d1_d2,
    distance_ratio,
    held_out_statistics,
    memorization_quantity,
    share_below,
    statistics,
)
from iet_agc.metrics.neighbors import nearest
from iet_agc.metrics.records import Calibrated, CopyingZ, NearCopies, Statistics


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


def test_a_share_below_a_cut_is_strict_and_json() -> None:
    found = share_below(torch.tensor([0.1, 0.25, 0.5]), 0.25)
    assert (found.count, found.share) == (1, 1 / 3)
    assert Proportion.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValueError, match="no share of 0 in 0 images"):
        share_below(torch.empty(0), 0.25)


# The calibrated cut -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "rank"), [(99, 1), (198, 1), (199, 2), (398, 3), (399, 4), (2899, 29), (9999, 100)])
def test_the_calibrated_cut_is_an_order_statistic(images: int, rank: int) -> None:
    """floor((H + 1) / 100)."""
    ratios = torch.randperm(images, generator=torch.Generator().manual_seed(0)).double() + 1
    assert calibrated_cut(ratios) == rank


def test_the_share_of_false_alarms_is_taken_as_written() -> None:
    """0.29 x 100 is 28.999... in floats."""
    assert calibrated_cut(torch.arange(1.0, 100.0), 0.29) == 29


def test_too_few_held_out_images_calibrate_nothing() -> None:
    assert calibrated_cut(torch.rand(98)) is None
    assert calibrated_cut(torch.rand(19), 0.05) is not None
    assert calibrated_cut(torch.rand(18), 0.05) is None
    with pytest.raises(ValueError, match=r"false_alarm 1\.0 is not between 0 and 1"):
        calibrated_cut(torch.rand(200), 1.0)


def test_false_alarms_are_one_in_a_hundred_on_average() -> None:
    """Mean over 4,000 held-out sets of 199; the j-th of uniform numbers is their expected share itself."""
    sets = torch.rand(4000, 199, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cuts = torch.tensor([calibrated_cut(held_out) for held_out in sets], dtype=torch.float64)
    # Beta(2, 198): mean 0.01, standard deviation 0.00702
    assert cuts.mean().item() == pytest.approx(0.01, abs=4 * 0.00702 / 4000**0.5)
    assert cuts.std().item() == pytest.approx(0.00702, rel=0.1)


# d1/d2 ------------------------------------------------------------------------------------------------------


def test_d1_d2_by_hand() -> None:
    # L2 ratios 0, 1/4, 1/3 (not below), 1/2, 0/0
    squared = torch.tensor([[0, 5], [1, 16], [1, 9], [1, 4], [0, 0]], dtype=torch.float64)
    found = d1_d2(squared)
    assert (found.count, found.share) == (3, 0.6)
    assert found.ci95 == share(3, 5).ci95


def test_exactly_a_third_is_never_below_it() -> None:
    """Distances are whole numbers / 255^2, and 9 x (n / 255^2) is often rounded below 9n / 255^2."""
    whole = torch.arange(1, 20000, dtype=torch.float64)
    third = torch.stack([whole / 255**2, 9 * whole / 255**2], dim=1)
    assert (9 * third[:, 0] < third[:, 1]).any()
    assert d1_d2(third).count == 0
    below = torch.stack([whole / 255**2, (9 * whole + 1) / 255**2], dim=1)
    assert d1_d2(below).count == len(below)


# AuthPct ----------------------------------------------------------------------------------------------------


def _own_distances(train: torch.Tensor, named: torch.Tensor, flips: bool = False) -> torch.Tensor:
    return nearest(train[named], train, 2, flips)[0][:, 1]


def test_auth_pct_by_hand_ties_are_not_authentic() -> None:
    found = auth_pct(torch.tensor([3.0, 2.0, 1.0, 5.0]), torch.tensor([2.0, 2.0, 2.0, 4.0]))
    assert (found.count, found.share) == (2, 0.5)


def test_exact_copies_are_never_authentic() -> None:
    """Not even of an image whose mirror image is in the training set as well: 0 is not above 0."""
    train = torch.cat([_images(60, 0), _images(5, 0).flip(-1)])
    distances, indices = nearest(train, train, 2, flips=True)
    own = _own_distances(train, indices[:, 0], flips=True)
    assert (own == 0).sum() == 10
    assert auth_pct(distances[:, 0], own).count == 0


def test_fresh_draws_are_authentic_about_half_the_time() -> None:
    """Points of a normal distribution: that is why held-out images stand beside the samples."""
    rng = torch.Generator().manual_seed(0)
    train, fresh = (torch.randn(count, 8, generator=rng, dtype=torch.float64) for count in (1500, 1500))
    between = torch.cdist(fresh, train)
    own = torch.cdist(train, train).fill_diagonal_(torch.inf).amin(1)
    found = auth_pct(between.amin(1), own[between.argmin(1)])
    assert 0.4 < found.share < 0.75


def test_auth_pct_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"must both be \(N,\), not \(3,\) and \(2,\)"):
        auth_pct(torch.ones(3), torch.ones(2))


# C_T --------------------------------------------------------------------------------------------------------


def test_z_by_hand() -> None:
    """Samples 1, 2, 5 and held-out 3, 4: U = 2 of 6 pairs, mean 3, variance 3 x 2 x 6 / 12 = 3."""
    found = copying_z(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([3.0, 4.0]), tau=0)
    assert found is not None
    assert (found.value, found.null_sd, found.cells) == (pytest.approx((2 - 3) / 3**0.5), 1.0, 1)


@pytest.mark.parametrize("levels", [10**9, 7])
def test_z_agrees_with_scipy(levels: int) -> None:
    """With many different numbers, and with ties everywhere."""
    rng = np.random.default_rng(0)
    mine, real = rng.integers(levels, size=50), rng.integers(levels, size=40) + levels // 5
    found = copying_z(torch.from_numpy(mine).double(), torch.from_numpy(real).double())
    assert found is not None
    theirs = mannwhitneyu(mine, real, use_continuity=False, method="asymptotic")
    assert 2 * norm.sf(abs(found.value)) == pytest.approx(theirs.pvalue)
    assert np.sign(found.value) == np.sign(theirs.statistic - 50 * 40 / 2) == -1


def test_equal_distances_everywhere_say_nothing() -> None:
    found = copying_z(torch.ones(30), torch.ones(40))
    assert found is not None
    assert found.value == 0


def test_cells_are_weighted_by_held_out_share_and_small_ones_left_out() -> None:
    rng = torch.Generator().manual_seed(0)
    mine, real = torch.rand(100, generator=rng), torch.rand(60, generator=rng)
    my_cells = torch.tensor([0] * 50 + [1] * 31 + [2] * 19)  # cell 2 has fewer than 20 samples
    real_cells = torch.tensor([0] * 10 + [1] * 30 + [2] * 15 + [3] * 5)  # cell 3 has none
    found = copying_z(mine, real, (my_cells, real_cells))
    zs = [copying_z(mine[my_cells == cell], real[real_cells == cell], tau=0) for cell in (0, 1)]
    assert found.value == pytest.approx(0.25 * zs[0].value + 0.75 * zs[1].value)
    assert found.null_sd == pytest.approx((0.25**2 + 0.75**2) ** 0.5)
    assert (found.cells, found.num_held_out) == (2, 60)
    assert copying_z(mine, real, (my_cells, real_cells), tau=0.19).cells == 3
    assert copying_z(mine[:19], real) is None
    assert copying_z(mine, real, (my_cells, real_cells + 10)) is None


def _normal(count: int, rng: torch.Generator, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, 6, generator=rng) * scale + 3 * torch.randint(2, (count, 1), generator=rng)


def _c_t(train: torch.Tensor, samples: torch.Tensor, held_out: torch.Tensor) -> CopyingZ:
    found = copying_z(
        torch.cdist(samples, train).amin(1), torch.cdist(held_out, train).amin(1), cells(train, samples, held_out, 5)
    )
    assert found is not None
    return found


def test_c_t_tells_copies_from_fresh_draws_and_from_underfit() -> None:
    rng = torch.Generator().manual_seed(0)
    train, held_out = _normal(600, rng), _normal(500, rng)
    copies = train[:500] + 0.05 * torch.randn(500, 6, generator=rng)
    assert _c_t(train, copies, held_out).value < -8
    assert _c_t(train, train[:500], held_out).value < -8
    assert _c_t(train, _normal(500, rng, 1.5), held_out).value > 4


def test_c_t_of_fresh_draws_has_mean_zero_and_the_stated_deviation() -> None:
    """60 sets from the distribution of the training set; the mean of 60 has a deviation of 0.13 of one's."""
    rng = torch.Generator().manual_seed(1)
    train = _normal(400, rng)
    found = [_c_t(train, _normal(300, rng), _normal(300, rng)) for _ in range(60)]
    standard = torch.tensor([one.value / one.null_sd for one in found])
    assert abs(standard.mean().item()) < 3.5 / 60**0.5
    assert 0.7 < standard.std().item() < 1.35


def test_cells_do_not_depend_on_threads_or_on_who_else_is_asked() -> None:
    images = _images(3000, 0)
    train, mine, real = images[:1000], images[1000:2500], images[2500:]
    found = cells(train, mine, real, 4, seed=3)
    assert [part.shape for part in found] == [(1500,), (500,)]
    assert set(found[0].tolist()) == {0, 1, 2, 3}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = cells(train.flatten(1), mine[:700], real, 4, seed=3)
    torch.set_num_threads(threads)
    assert torch.equal(again[0], found[0][:700])
    assert torch.equal(again[1], found[1])


def test_how_many_cells() -> None:
    def number(samples: int, held_out: int, train: int = 50) -> int:
        found = cells(_images(train, train), _images(samples, samples), _images(held_out, held_out))
        return int(torch.cat(found).max()) + 1

    assert number(99, 5000) == 1
    assert number(350, 5000) == 3
    assert number(3000, 3000) == 10
    assert number(3000, 3000, train=2) == 2


def test_wrong_arguments_of_c_t() -> None:
    with pytest.raises(ValueError, match=r"distances of held-out images must be \(N,\), N >= 1, not \(0,\)"):
        copying_z(torch.ones(30), torch.empty(0))
    with pytest.raises(ValueError, match="3 and 5 cell numbers, 30 and 5 distances"):
        copying_z(torch.ones(30), torch.ones(5), (torch.zeros(3), torch.zeros(5)))


# Entries of audit.json --------------------------------------------------------------------------------------


def test_the_entries_say_what_they_are() -> None:
    train, samples, held_out = _images(80, 0), _images(40, 1), _images(120, 2)
    samples[:10] = train[:10]
    mine, real = nearest(samples, train, 5), nearest(held_out, train, 5)
    own, real_own = _own_distances(train, mine[1][:, 0]), _own_distances(train, real[1][:, 0])
    found = statistics(mine[0], own, real[0], cells(train, samples, held_out))
    assert Statistics.model_validate_json(found.model_dump_json()) == found
    assert list(dict(found)) == ["d1_d2", "auth_pct", "near", "c_t"]
    assert all({"unit", "direction", "convention", "source"} <= set(dict(entry)) for _, entry in found)
    assert found.d1_d2.count == 10
    assert found.auth_pct.count <= 30
    assert found.auth_pct.unit == "percent of samples"
    assert found.c_t.value == copying_z(mine[0][:, 0], real[0][:, 0]).value < 0
    assert statistics(mine[0], own).c_t is None
    assert statistics(mine[0][:19], own[:19], real[0]).c_t is None
    beside = held_out_statistics(real[0], real_own)
    assert list(dict(beside)) == ["d1_d2", "auth_pct"]
    assert beside.d1_d2 == NearCopies(**dict(d1_d2(real[0])), unit="share of held-out images")
    assert beside.auth_pct.percent == 100 * beside.auth_pct.share


def test_one_unique_training_image_has_no_second_nearest() -> None:
    with pytest.raises(ValueError, match=r"distances must be \(N, k\) with k >= 2, not \(4, 1\)"):
        statistics(torch.ones(4, 1), torch.ones(4))


def test_nearness_sees_the_copy_that_a_ratio_is_blind_to() -> None:
    """50 neighbours at distance 1 or so give ratio 1; real images are at 10, 20, .. 1,990."""
    held_out = torch.arange(1, 200).double() * 10
    distances = torch.cat([torch.ones(3, 50), torch.full((7, 50), 500.0)]).double()
    assert distance_ratio(distances).tolist() == [1.0] * 10
    found = calibrated_share(distances[:, 0], held_out)
    told: dict[str, Any] = {"false_alarm": 0.01, "cut": 20.0, "num_held_out": 199}
    assert found == Calibrated(**dict(share_below(distances[:, 0], 20.0)), **told)  # the 2nd of 199
    assert found.count == 3
    assert calibrated_share(distances[:, 0], held_out[:98]) is None
    entry = statistics(distances, torch.ones(10).double(), torch.stack([held_out] * 2, dim=1))
    assert entry.near is not None
    assert entry.near.count == 3
    fresh = held_out > 10
    without = statistics(distances, torch.ones(10).double(), torch.stack([held_out] * 2, dim=1), fresh=fresh)
    assert (without.near.cut, without.near.num_held_out) == (20.0, 198)
    assert {"unit", "direction", "convention", "source"} <= set(dict(entry.near))
