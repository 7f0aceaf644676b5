"""Same identity, same numbers; another identity, others."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iet_agc.runtime.seeds import generator, key_of


def _draw(*identity: str | int) -> torch.Tensor:
    return torch.randn(8, generator=generator(*identity))


def test_same_identity_same_numbers() -> None:
    assert torch.equal(_draw("step", 0, 2, 7), _draw("step", 0, 2, 7))


def test_every_part_counts_and_so_does_its_type_and_place() -> None:
    identities = [
        ("step", 0, 2, 7),
        ("epoch", 0, 2, 7),
        ("step", 1, 2, 7),
        ("step", 0, 3, 7),
        ("step", 0, 2, 8),
        ("step", 0, 7, 2),
        ("step", 0, 2),
        ("step", 0, 27),
        ("step", 0, 2, "7"),
        ("step", 0, 2, -7),
    ]
    drawn = [_draw(*identity) for identity in identities]
    for i, first in enumerate(drawn):
        for second in drawn[i + 1 :]:
            assert not torch.equal(first, second)
    assert key_of("1") != key_of(1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(), st.integers()), min_size=2, max_size=20, unique=True))
def test_keys_of_numbers_do_not_collide(pairs: list[tuple[int, int]]) -> None:
    keys = [key_of("step", *pair) for pair in pairs]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)


def test_a_generator_is_fresh_each_time() -> None:
    first = generator("step", 0, 0, 0)
    drawn = torch.randn(8, generator=first)
    assert not torch.equal(drawn, torch.randn(8, generator=first))  # one generator moves on
    assert torch.equal(drawn, torch.randn(8, generator=generator("step", 0, 0, 0)))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    _draw("step", 0)
    assert torch.equal(torch.rand(1), expected)


def test_pinned_keys() -> None:
    """Runs of earlier releases can be resumed only while these stay."""
    assert key_of("step", 0, 1, 2) == 6727115132212232481
    assert key_of("shards", 0) == 3205275628629857433
