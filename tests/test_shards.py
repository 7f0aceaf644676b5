"""Shards are disjoint, covering and balanced, whatever the numbers."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iet_agc import partition
from iet_agc.method.sharding import STRATEGIES

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
    assert sorted(torch.cat([*shards]).tolist()) == list(range(len(labels)))  # each index once
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
    assert torch.cat([*contiguous]).tolist() == list(range(103))
    for strategy in ("random", "stratified"):
        for shard in partition(103, 4, strategy):
            first = int(shard[0])
            assert not torch.equal(shard, torch.arange(first, first + len(shard)))


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


# -- groups that stay together


@st.composite
def _grouped(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    groups = draw(st.lists(st.integers(-9, 9), min_size=1, max_size=60))
    labels = draw(st.lists(st.integers(0, 3), min_size=len(groups), max_size=len(groups)))
    return labels, groups, draw(st.integers(1, len(set(groups))))


def _holders(shards: list[torch.LongTensor], groups: list[int]) -> dict[int, set[int]]:
    return {
        group: {number for number, shard in enumerate(shards) for image in shard.tolist() if groups[image] == group}
        for group in set(groups)
    }


@_few
@given(case=_grouped(), strategy=st.sampled_from(("stratified", "random")), seed=st.integers(0, 10**9))
def test_groups_stay_together_and_nothing_is_lost(
    case: tuple[list[int], list[int], int], strategy: str, seed: int
) -> None:
    labels, groups, num_shards = case
    shards = partition(labels, num_shards, strategy, seed, groups=groups)
    assert len(shards) == num_shards
    assert sorted(torch.cat([*shards]).tolist()) == list(range(len(labels)))  # each index once
    assert all(len(holders) == 1 for holders in _holders(shards, groups).values())
    for shard in shards:
        assert len(shard) > 0
        assert shard.dtype == torch.int64
        assert shard.tolist() == sorted(shard.tolist())


@_few
@given(case=_grouped(), seed=st.integers(0, 10**9))
def test_random_shards_differ_by_at_most_the_largest_group(case: tuple[list[int], list[int], int], seed: int) -> None:
    labels, groups, num_shards = case
    shards = partition(labels, num_shards, "random", seed, groups=groups)
    assert _spread([len(shard) for shard in shards]) <= max(Counter(groups).values())


@_few
@given(case=_grouped(), seed=st.integers(0, 10**9))
def test_classes_of_shards_differ_by_at_most_their_largest_group(
    case: tuple[list[int], list[int], int], seed: int
) -> None:
    labels, groups, num_shards = case
    shards = partition(labels, num_shards, "stratified", seed, groups=groups)
    told = [labels[groups.index(group)] for group in groups]  # of a group's first image
    for label in set(told):
        largest = max(Counter(group for group, of in zip(groups, told, strict=True) if of == label).values())
        assert _spread([sum(told[image] == label for image in shard.tolist()) for shard in shards]) <= largest


@_few
@given(case=_labels_and_shards(), strategy=st.sampled_from(("stratified", "random")), seed=st.integers(0, 10**9))
def test_groups_of_one_are_balanced_as_single_images_are(case: tuple[list[int], int], strategy: str, seed: int) -> None:
    labels, num_shards = case
    shards = partition(labels, num_shards, strategy, seed, groups=range(len(labels)))
    assert _spread([len(shard) for shard in shards]) <= 1
    if strategy == "stratified":
        for label in set(labels):
            assert _spread([sum(labels[i] == label for i in shard) for shard in shards]) <= 1


def test_single_images_even_out_what_groups_leave() -> None:
    """Two groups of 40 and 130 single images into 4: 52 or 53 each, as they would be without groups."""
    groups = [0] * 40 + [1] * 40 + list(range(2, 132))
    for strategy in ("stratified", "random"):
        shards = partition(210, 4, strategy, groups=groups)
        assert sorted(len(shard) for shard in shards) == [52, 52, 53, 53]


def test_the_seed_decides_where_groups_go_and_their_names_do_not() -> None:
    groups = torch.arange(100) // 3
    same, again, other = (partition(100, 4, "random", seed, groups=groups) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(same, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(same, other, strict=True))
    named = partition(100, 4, "random", 3, groups=(1000 + 7 * groups).tolist())
    assert all(torch.equal(a, b) for a, b in zip(same, named, strict=True))


@pytest.mark.parametrize(
    ("arguments", "groups", "message"),
    [
        ((3, 2), [0, 1], r"groups must be one number per image, \(3,\), not \(2,\)"),
        ((3, 2), [0, 0, 0], "cannot cut 1 groups into 2 shards: use 1 to 1"),
        ((4, 2, "contiguous"), [0, 1, 0, 1], "contiguous shards leave the order as it is and cannot keep groups"),
    ],
)
def test_impossible_groups(arguments: tuple[Any, ...], groups: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partition(*arguments, groups=groups)


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
def test_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partition(*arguments)
