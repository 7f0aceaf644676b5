"""Distances to the last bit, and an order that is the same however the work is cut."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from iet_agc.metrics import nearest, neighbors
from iet_agc.metrics.neighbors import mirror
from iet_agc.runtime.torch_internals import cpu_has

integer_products = neighbors._has_integer_products(torch.device("cpu"))


def _images(count: int, channels: int = 1, size: int = 8, seed: int = 0, high: int = 256) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(high, (count, channels, size, size), generator=rng, dtype=torch.uint8)


def _literal(
    queries: Tensor, references: Tensor, k: int, flips: bool = False
) -> tuple[list[list[float]], list[list[int]]]:
    """One pair after another, in whole numbers."""
    distances, indices = [], []
    for query in queries.long():
        pairs = []
        for index, reference in enumerate(references.long()):
            squared = int((query - reference).square().sum())
            if flips:
                squared = min(squared, int((query - reference.flip(-1)).square().sum()))
            pairs.append((squared, index))
        best = sorted(pairs)[:k]
        distances.append([squared / 255**2 for squared, _ in best])
        indices.append([index for _, index in best])
    return distances, indices


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_literal_loop_to_the_last_bit(channels: int, flips: bool) -> None:
    queries, references = _images(5, channels), _images(40, channels, seed=1)
    distances, indices = nearest(queries, references, k=7, flips=flips)
    assert (distances.tolist(), indices.tolist()) == _literal(queries, references, 7, flips)
    assert distances.dtype == torch.float64
    assert indices.dtype == torch.int64


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    high=st.integers(1, 4),
    count=st.integers(3, 25),
    flips=st.booleans(),
    memory=st.sampled_from([1, 4000, 2**20]),
)
def test_few_pixel_values_make_many_ties(seed: int, high: int, count: int, flips: bool, memory: int) -> None:
    queries, references = _images(4, 1, 2, seed, high), _images(count, 1, 2, seed + 1, high)
    distances, indices = nearest(queries, references, k=3, flips=flips, memory=memory)
    assert (distances.tolist(), indices.tolist()) == _literal(queries, references, 3, flips)


def test_ties_go_to_the_lowest_index() -> None:
    image = _images(1)
    references = torch.cat([_images(3, seed=1), image, _images(2, seed=2), image, image])
    distances, indices = nearest(image, references, k=3)
    assert distances.tolist() == [[0, 0, 0]]
    assert indices.tolist() == [[3, 6, 7]]


def test_flips_find_mirrored_copies_and_count_a_reference_once() -> None:
    references = _images(6, 3)
    queries = torch.cat([references[2:3], mirror(references[4:5])])
    distances, indices = nearest(queries, references, k=6, flips=True)
    assert distances[:, 0].tolist() == [0, 0]
    assert indices[:, 0].tolist() == [2, 4]
    assert indices.sort(1).values.tolist() == [list(range(6))] * 2
    plain, _ = nearest(queries, references, k=6)
    assert plain[0, 0] == 0
    assert plain[1, 0] > 0  # the blind spot that flips close
    assert (distances <= plain).all()


def test_mirror_is_left_to_right() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4)
    assert mirror(image)[0, 0].tolist() == [[3, 2, 1, 0], [7, 6, 5, 4], [11, 10, 9, 8]]


@pytest.mark.parametrize("flips", [False, True])
def test_memory_changes_no_bit(flips: bool) -> None:
    queries, references = _images(9, high=3), _images(70, seed=1, high=3)
    expected = nearest(queries, references, k=50, flips=flips)
    for memory in (1, 10_000, 100_000, 1_000_000):
        blocks: list[int] = []
        got = nearest(queries, references, k=50, flips=flips, memory=memory, on_queries=blocks.append)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])
        assert sum(blocks) == 9
        if memory == 1:
            assert len(blocks) == 9  # the condition under test: the work was cut


def test_near_copies_are_exact_where_float32_products_are_not() -> None:
    original = _images(60, 3, 32)
    copies = original.clone()
    copies[:, 0, 0, 0] = torch.where(original[:, 0, 0, 0] < 255, original[:, 0, 0, 0] + 1, 254)  # one value, off by one
    distances, indices = nearest(copies, original, k=2)
    assert distances[:, 0].tolist() == [1 / 255**2] * 60
    assert indices[:, 0].tolist() == list(range(60))
    a, b = copies.flatten(1).float() / 255, original.flatten(1).float() / 255
    expanded = (a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2 * a @ b.T).diagonal()
    relative = (expanded.double() * 255**2 - 1).abs()
    assert relative.max() > 1  # wrong by more than the distance itself


def test_far_images_are_exact_too() -> None:
    black, white = torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    greyish = white.clone()
    greyish[0, 0, 0, 0] = 254
    squared = 255**2 * (3 * 64 * 64 - 1) + 254**2
    assert int(torch.tensor(float(squared), dtype=torch.float32)) != squared  # float32 would round it
    distances, indices = nearest(black, torch.cat([white, greyish]), k=2)
    assert distances.tolist() == [[squared / 255**2, 3 * 64 * 64]]
    assert indices.tolist() == [[1, 0]]


@pytest.fixture
def float_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take the path of a device without integer products; lists the features of each product."""
    seen: list[int] = []

    def product(rows: Tensor, columns: Tensor) -> Tensor:
        seen.append(rows.shape[1])
        return float_product(rows, columns)

    float_product = neighbors._float_product
    monkeypatch.setattr(neighbors, "_has_integer_products", lambda device: False)
    monkeypatch.setattr(neighbors, "_float_product", product)
    return seen


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("size", [8, 40])
def test_float_products_give_the_same_bits(float_products: list[int], size: int, flips: bool) -> None:
    queries, references = _images(3, 3, size), _images(20, 3, size, seed=1)
    queries[0], references[:2] = 255, torch.tensor([0, 255])[:, None, None, None]  # the largest sums that there are
    distances, indices = nearest(queries, references, k=4, flips=flips)
    assert (distances.tolist(), indices.tolist()) == _literal(queries, references, 4, flips)
    assert max(float_products) <= 1024  # the condition under which float32 is exact
    assert sum(float_products) % (3 * size * size) == 0


def test_integer_products_are_used_where_they_are_fast() -> None:
    assert integer_products == cpu_has("avx512_vnni")


def test_without_integer_products_in_torch_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, references = _images(3, 3, 8), _images(20, 3, 8, seed=1)
    monkeypatch.delattr(torch, "_int_mm")
    monkeypatch.setattr(neighbors, "cpu_has", lambda instructions: True)
    neighbors._has_integer_products.cache_clear()
    distances, indices = nearest(queries, references, k=4, flips=True)
    neighbors._has_integer_products.cache_clear()
    assert (distances.tolist(), indices.tolist()) == _literal(queries, references, 4, True)


@pytest.mark.parametrize("by_integers", [False, True])
@pytest.mark.parametrize("size", [121, 150])  # 43,923 features need 64-bit scores, 67,500 more than one product
def test_large_images(size: int, by_integers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_integers and not integer_products:
        pytest.skip("no fast integer products here")
    monkeypatch.setattr(neighbors, "_has_integer_products", lambda device: by_integers)
    queries, references = _images(2, 3, size), _images(5, 3, size, seed=1)
    queries[0], references[0], references[1] = 255, 0, 255
    references[2], references[2, 0, 0, 0] = 255, 254
    assert queries[0].numel() > neighbors._SHORT
    distances, indices = nearest(queries, references, k=5, flips=True)
    assert (distances.tolist(), indices.tolist()) == _literal(queries, references, 5, flips=True)
    assert distances[0, [0, 1, 4]].tolist() == [0, 1 / 255**2, 3 * size * size]


@pytest.mark.parametrize("features", [1, 43_690])
def test_scores_fit_their_type(features: int) -> None:
    assert features <= neighbors._SHORT
    most = features * (128**2 + 2 * 128 * 128)  # |b|^2 - 2 ab with b = -128, a = 128, one more than there is
    assert most <= neighbors._MOST * features < 2**31 - 1
    assert neighbors._MOST * (neighbors._SHORT + 1) + 1 > 2**31 - 1


def test_many_groups_and_a_border_between_equal_distances() -> None:
    """100 equal references around the border of what is taken: the lowest indices win."""
    image = _images(1)
    references = _images(1000, seed=1)
    equal = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:100].sort().values
    references[equal] = image
    distances, indices = nearest(image, references, k=60)
    assert distances.eq(0).all()
    assert indices[0].tolist() == equal[:60].tolist()


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no way to measure the peak here")
@pytest.mark.parametrize("by_integers", [False, True])
def test_working_memory_is_bounded(by_integers: bool) -> None:
    """2,000 x 20,000 scores take 160 MB at once; 24 MB are allowed, and the process grows by no more."""
    measure = f"""
import re, torch
from pathlib import Path
from iet_agc.metrics import nearest, neighbors
def status(key): return 1024 * int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
images = torch.randint(256, (22_000, 1, 16, 16), dtype=torch.uint8)
if not {by_integers}: neighbors._has_integer_products = lambda device: False
nearest(images[:40], images[:400], k=50, flips=True, memory=2**20)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
nearest(images[:2000], images[2000:], k=50, flips=True, memory=24 * 2**20)
result = 2000 * 50 * 8 * 5  # the best so far, its copies, distances and indices
print(status("VmHWM") - before - result)
"""
    out = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True)
    assert 0 < int(out.stdout) < 24 * 2**20


def test_no_queries() -> None:
    distances, indices = nearest(_images(0), _images(5), k=2)
    assert distances.shape == indices.shape == (0, 2)
    assert distances.dtype == torch.float64
    assert indices.dtype == torch.int64


@pytest.mark.parametrize(
    ("queries", "references", "k", "message"),
    [
        (torch.rand(2, 1, 8, 8), _images(5), 1, r"queries must be uint8 \(N, C, H, W\), not torch.float32"),
        (_images(2), _images(5)[0], 1, r"references must be uint8 \(N, C, H, W\), not torch.uint8 \(1, 8, 8\)"),
        (_images(2), _images(5, 3), 1, r"queries are \(1, 8, 8\), references \(3, 8, 8\): sizes must agree"),
        (
            _images(2, 4),
            _images(5, 4),
            1,
            r"references must have 1 or 3 channels, not the 4 of .*\(5, 4, 8, 8\): leave",
        ),
        (_images(2), _images(5), 6, "cannot take the 6 nearest of 5 references"),
        (_images(2), _images(5), 0, "cannot take the 0 nearest of 5 references"),
        (_images(2), _images(0), 1, "cannot take the 1 nearest of 0 references"),
    ],
)
def test_errors(queries: Tensor, references: Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(queries, references, k)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_that_come_last_are_refused_and_the_mend_works(channels: int) -> None:
    """With flips, rows and columns of such tensors are taken for channels and rows: mirrored copies were missed."""
    references = _images(5, channels)
    queries = mirror(references)
    last = queries.permute(0, 2, 3, 1)
    for pair in ((last, references.permute(0, 2, 3, 1)), (last, references)):
        with pytest.raises(ValueError, match=r"\(N, H, W, C\).*: give (queries|references)\.permute\(0, 3, 1, 2\)$"):
            nearest(*pair, k=1, flips=True)
    distances, indices = nearest(last.permute(0, 3, 1, 2), references, k=1, flips=True)
    assert distances.tolist() == [[0]] * 5
    assert indices.tolist() == [[number] for number in range(5)]


def test_fifty_is_the_default() -> None:
    assert nearest(_images(2), _images(51))[0].shape == (2, 50)
    with pytest.raises(ValueError, match="50 nearest of 49"):
        nearest(_images(2), _images(49))
