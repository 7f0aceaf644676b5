"""Shards are disjoint, covering and balanced, whatever the numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iet_agc import partition
from iet_agc.shards import STRATEGIES

_few = settings(deadline=None, max_examples=40)


@st.composite
def _labels_and_shards(draw: st.DrawFn) -> tuple[list[int], int]:
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=60))
    return labels, draw(st.integers(1, len(labels)))


def _spread(counts: list[int]) -> int:
    return max(counts) - min(counts)


@_few
@given(case=_labels_and_shards(), strategy=st.sampled_from(STRATEGIES), seed=st.integers(0, 10**9))
def test_disjoint_covering_balanced(case: tuple[list[int], int], strategy: str, seed: int) -> None:
    labels, num_shards = case
    shards = partition(labels, num_shards, strategy, seed)
    assert len(shards) == num_shards
    assert sorted(torch.cat(shards).tolist()) == list(range(len(labels)))  # each index once
    assert _spread([len(shard) for shard in shards]) <= 1
    for shard in shards:
        assert shard.dtype == torch.int64
        assert shard.tolist() == sorted(shard.tolist())


@_few
@given(case=_labels_and_shards(), seed=st.integers(0, 10**9))
def test_stratified_balances_every_class(case: tuple[list[int], int], seed: int) -> None:
    labels, num_shards = case
    shards = partition(labels, num_shards, "stratified", seed)
    for label in set(labels):
        assert _spread([sum(labels[i] == label for i in shard) for shard in shards]) <= 1


def test_random_does_not_balance_classes() -> None:
    labels = torch.arange(100) % 2
    shards = partition(labels, 5, "random")
    assert _spread([int(labels[shard].sum()) for shard in shards]) > 1


@pytest.mark.parametrize("strategy", ["stratified", "random"])
def test_the_seed_decides(strategy: str) -> None:
    same, again, other = (partition(100, 4, strategy, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(same, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(same, other, strict=True))


def test_the_global_generator_neither_decides_nor_moves() -> None:
    torch.manual_seed(1)
    first, drawn = partition(100, 4), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(a, b) for a, b in zip(first, partition(100, 4), strict=True))


def test_contiguous_is_contiguous_and_random_is_not() -> None:
    contiguous = partition(103, 4, "contiguous")
    assert torch.cat(contiguous).tolist() == list(range(103))
    for strategy in ("random", "stratified"):
        for shard in partition(103, 4, strategy):
            assert not torch.equal(shard, torch.arange(shard[0], shard[0] + len(shard)))


def test_stratified_mixes_within_a_class() -> None:
    """Sorted classes dealt out without a shuffle would give every K-th image of the order."""
    labels = [0] * 50 + [1] * 50
    assert not torch.equal(partition(labels, 5)[0], torch.arange(0, 100, 5))


def test_labels_as_list_tensor_or_number() -> None:
    labels = [i % 3 for i in range(30)]
    for given_labels in (labels, tuple(labels), torch.tensor(labels), torch.tensor(labels, dtype=torch.uint8)):
        assert all(torch.equal(a, b) for a, b in zip(partition(labels, 4), partition(given_labels, 4), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(partition(30, 4), partition([0] * 30, 4), strict=True))


def test_one_shard_is_everything() -> None:
    for strategy in STRATEGIES:
        assert partition(17, 1, strategy)[0].tolist() == list(range(17))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0), "cannot cut 10 images into 0 shards: use 1 to 10"),
        ((10, -1), "into -1 shards"),
        ((3, 4), "cannot cut 3 images into 4 shards: use 1 to 3"),
        (([], 1), "cannot cut 0 images"),
        ((10, 2, "striped"), "unknown sharding strategy 'striped': use one of stratified, random, contiguous"),
        ((torch.zeros(4, 2), 2), r"labels must be \(N,\), not \(4, 2\)"),
    ],
)
def test_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partition(*arguments)
