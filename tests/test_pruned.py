"""Bounds change no bit of a search, and step aside where they would cost time."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iet_agc.metrics import neighbors, pruned
from iet_agc.metrics.neighbors import References, _Bounds, mirror
from iet_agc.metrics.pruned import Projection

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs the extra 'fast'")
MEMORY = 2 * 1024**3


def _noise(count: int, size: int = 16, seed: int = 0, high: int = 256, channels: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(high, (count, channels, size, size), generator=rng, dtype=torch.uint8)


def _smooth(count: int, size: int = 16, seed: int = 0, channels: int = 1) -> Tensor:
    """Few coarse pixels, enlarged, with grain."""
    coarse = torch.nn.functional.interpolate(_noise(count, 4, seed, 250, channels).float(), size, mode="bilinear")
    return (coarse + _noise(count, size, seed + 1, 6, channels)).to(torch.uint8)


def _equal(queries: Tensor, references: Tensor, k: int, flips: bool = False) -> None:
    brute = References(references, k, MEMORY, torch.device("cpu"))._by_brute_force(queries, flips, lambda count: None)
    turns = [queries, mirror(queries)] if flips else [queries]
    for at_once in (len(references), len(references) // 3 + 1):
        done: list[int] = []
        keys = _Bounds(references, k, Projection.of(references), at_once).keys(turns, done.append)
        assert torch.equal(keys.sort(1).values, brute.sort(1).values)
        assert sum(done) == len(queries)


@needs_numba
@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("make", [_noise, _smooth])
def test_every_bit_is_that_of_brute_force(make: Callable[..., Tensor], flips: bool) -> None:
    _equal(make(150, seed=5), make(3001), 50, flips)


@needs_numba
def test_more_neighbours_than_the_first_tiles_hold() -> None:
    _equal(_noise(3, seed=5), _noise(1801), 600)


@needs_numba
@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(5, 300),
    high=st.integers(1, 3),
    copies=st.integers(0, 200),
    flips=st.booleans(),
    size=st.sampled_from([16, 17, 21]),
)
def test_ties_copies_and_constant_images(seed: int, count: int, high: int, copies: int, flips: bool, size: int) -> None:
    references = torch.cat([_noise(count, size, seed, high), _smooth(count, size, seed)])
    references[:copies] = references[-1]
    queries = torch.cat([references[:2], mirror(references[-2:]), torch.full_like(references[:1], 255)])
    _equal(queries, references, 5, flips)


@needs_numba
def test_the_smallest_differences_of_large_sums() -> None:
    """Copies that differ by one level of one pixel, far from everything else: the slack covers what rounding loses."""
    base = _noise(1, 48, channels=3)
    places = torch.randint(base.numel(), (400,), generator=torch.Generator().manual_seed(1))
    near = base.flatten(1).repeat(400, 1)
    near[torch.arange(400), places] ^= torch.arange(400).remainder(4).add(1).to(torch.uint8)
    references = torch.cat([near.view(-1, 3, 48, 48), _noise(400, 48, 3, channels=3), torch.zeros_like(base)])
    _equal(torch.cat([base, 255 - base]), references, 100, True)


@needs_numba
@pytest.mark.parametrize(("size", "square"), [(32, 2), (48, 4), (40, 4), (36, 2), (33, 1)])
def test_large_images_are_averaged_first(size: int, square: int) -> None:
    references = _smooth(300, size, channels=3)
    assert Projection.of(references).square == square
    _equal(_smooth(3, size, 9, 3), references, 7)


def test_coordinates_are_off_by_less_than_is_said() -> None:
    references = _smooth(600, 32, channels=3)
    references[0] = Projection.of(references).mean.to(torch.uint8)
    project = Projection.of(references)
    coordinates, off = project(references)
    averaged = pruned._averaged(references.double() - project.mean, project.square)
    orthonormal, _ = torch.linalg.qr(project.components.double())
    signs = (orthonormal * project.components).sum(0).sign()
    true = averaged @ (orthonormal * signs)
    rest = ((references.double() - project.mean).flatten(1).square().sum(1) - true.square().sum(1)).clamp(min=0).sqrt()
    both = torch.cat([true, rest[:, None]], 1)
    error = (pruned._last(coordinates).double() - both).norm(dim=1).max()
    assert 0 < error < off < 0.02 * both.norm(dim=1).max()
    assert project.defect < 1e-5


@pytest.mark.parametrize("level", [pruned._coarse, lambda rows: rows[:, :64], pruned._last])
def test_distances_of_coordinates_are_no_longer_than_those_of_images(level: Callable[[Tensor], Tensor]) -> None:
    images = torch.cat([_smooth(300), _noise(100)])
    coordinates, off = Projection.of(images)(images)
    distances = torch.cdist(images.double().flatten(1), images.double().flatten(1))
    bounds = torch.cdist(level(coordinates).double(), level(coordinates).double())
    assert (bounds <= distances + 2 * off).all()
    assert bounds[:300, :300].sum() > 0.5 * distances[:300, :300].sum()  # they say something


def _decided(monkeypatch: pytest.MonkeyPatch, images: Tensor, memory: int = MEMORY) -> References:
    monkeypatch.setattr(pruned, "_LEAST_NANOSECONDS", 0)
    monkeypatch.setattr(pruned, "LEAST_QUERIES", 100)
    monkeypatch.setattr(neighbors, "LEAST_QUERIES", 100)
    monkeypatch.setattr(neighbors, "_has_integer_products", lambda device: False)
    return References(images[:-200], 5, memory, torch.device("cpu"))


@needs_numba
def test_what_was_asked_in_parts_counts_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _smooth(3400, 20, channels=3)
    laid_out = _decided(monkeypatch, images)
    first = laid_out.nearest(images[-90:])
    assert laid_out._bounds is None
    again = laid_out.nearest(images[-90:])
    assert laid_out._bounds is not None
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_noise_is_searched_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _noise(3400)
    laid_out = _decided(monkeypatch, images)
    project = Projection.of(images)
    assert not project.pays(images[:-200], images[-200:], 5, False)
    assert Projection.of(_smooth(3400, 20, channels=3)).pays(
        _smooth(3400, 20, channels=3), _smooth(9, 20, 3, 3), 5, False
    )
    laid_out.nearest(images[-200:])
    assert laid_out._bounds is None


def test_little_memory_or_few_features_leave_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _smooth(3400, 20, channels=3)
    assert pruned.most_at_once(images, 5, MEMORY) == 3400
    assert not pruned.most_at_once(images, 5, 10 * 2**20)
    assert not pruned.most_at_once(images, 200, MEMORY)
    assert not pruned.most_at_once(_noise(3400, 15), 5, MEMORY)
    laid_out = _decided(monkeypatch, images, memory=10 * 2**20)
    laid_out.nearest(images[-200:])
    assert laid_out._bounds is None


@pytest.mark.parametrize(
    ("count", "queries", "enough"), [(60_000, 2048, True), (60_000, 100, False), (100, 10**4, False)]
)
def test_little_work_is_not_worth_the_layout(count: int, queries: int, enough: bool) -> None:
    assert pruned.is_enough(_noise(1, 28).expand(count, -1, -1, -1), queries, False) == enough


def test_without_numba_there_is_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not pruned.most_at_once(_smooth(3400, 20, channels=3), 5, MEMORY)


@needs_numba
def test_more_than_fits_is_laid_out_in_blocks_for_each_search(monkeypatch: pytest.MonkeyPatch) -> None:
    images = _smooth(7000, 16)
    memory = 2 * 3500 * 3000 + 4 * 2**20  # about 3,500 of them
    monkeypatch.setattr(pruned, "_PIXELS", 2**16)
    assert 3072 <= pruned.most_at_once(images[:-200], 5, memory) <= 3500
    laid_out = _decided(monkeypatch, images, memory)
    queries = _smooth(200, 16, 77)
    found = laid_out.nearest(queries)
    assert laid_out._bounds is not None
    assert laid_out._bounds._all is None
    expected = References(images[:-200], 5, MEMORY, torch.device("cpu")).nearest(queries)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not laid_out._bounds.are_worth(99)
    assert all(torch.equal(a[:9], b) for a, b in zip(expected, laid_out.nearest(queries[:9]), strict=True))
