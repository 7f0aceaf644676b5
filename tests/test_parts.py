"""Work in parts: the same rows whoever computed them, and nothing twice."""

import pytest
import torch

from iet_agc.runtime.parts import compute_parts, read_parts
from tests.processes import in_processes


def squares(items: slice) -> dict[str, torch.Tensor]:
    numbers = torch.arange(items.start, items.stop)
    return {"square": numbers**2, "pair": torch.stack([numbers, -numbers], 1).double()}


@pytest.mark.parametrize(("total", "length"), [(10, 3), (9, 3), (2, 5), (1, 1)])
def test_parts_join_to_the_whole(tmp_path, total, length):
    compute_parts(tmp_path, "work", total, length, squares)
    whole = read_parts(tmp_path, "work", total, length)
    assert all(torch.equal(whole[key], value) for key, value in squares(slice(0, total)).items())
    assert whole["pair"].dtype == torch.float64
    assert len(list(tmp_path.iterdir())) == -(-total // length)


def test_finished_parts_are_not_computed_again(tmp_path):
    calls, done = [], []

    def work(items):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(items)
        return squares(items)

    with pytest.raises(KeyboardInterrupt):
        compute_parts(tmp_path, "work", 10, 3, work)
    assert calls == [slice(0, 3), slice(3, 6)]
    compute_parts(tmp_path, "work", 10, 3, lambda items: calls.append(items) or squares(items), done.append)
    assert calls[2:] == [slice(6, 9), slice(9, 10)]
    assert done == [3, 3]
    assert read_parts(tmp_path, "work", 10, 3)["square"].tolist() == [number**2 for number in range(10)]


def test_two_kinds_of_work_share_a_folder(tmp_path):
    compute_parts(tmp_path, "one", 3, 2, squares)
    compute_parts(tmp_path, "two", 5, 2, squares)
    assert len(read_parts(tmp_path, "one", 3, 2)["square"]) == 3
    assert len(read_parts(tmp_path, "two", 5, 2)["square"]) == 5


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_parts(tmp_path, count):
    def share():
        calls, done = [], []
        compute_parts(tmp_path, "work", 10, 3, lambda items: calls.append(items) or squares(items), done.append)
        assert len(calls) in {4 // count, -(-4 // count)}
        assert sum(items.stop - items.start for items in calls) + sum(done) == 10
        assert read_parts(tmp_path, "work", 10, 3)["square"].tolist() == [number**2 for number in range(10)]

    in_processes(count, share)
