"""Images that members hand on: the rule by hand, a run trained by hand, telemetry, kills, and several processes."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from iet_agc.config.overrides import override
from iet_agc.config.settings import validate
from iet_agc.diffusion.process import make_scheduler
from iet_agc.diffusion.unet import build_unet
from iet_agc.method.averaging import average_states
from iet_agc.method.exchange import exchanged
from iet_agc.method.sharding import partition
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import key_of
from iet_agc.training.loop import train
from iet_agc.training.member import Member
from iet_agc.training.pixels import Pixels
from tests.processes import killed_after
from tests.tiny_runs import CPU, assert_ends_like, assert_same, ends, images, settings, train_in, uninterrupted, weights

#: Two members, three rounds of six steps; after rounds 1 and 3 a quarter goes on. Ten timesteps, so that many samples
#: meet a loss bank that has something to compare with.
FEW = {"train__timesteps": "gap", "train__gap_low": 0, "train__gap_high": 989, "train__gap_density": 0.0}
CHOSEN = settings(method__rounds=3, method__skip_below=0.95, method__decay=0.0, method__exchange=0.25, **FEW)


def test_the_most_skipped_go_to_the_next_and_the_last_hands_to_the_first() -> None:
    shards = [torch.tensor([0, 3, 6, 9]), torch.tensor([1, 4, 7, 10]), torch.tensor([2, 5, 8])]
    skipped = [torch.tensor([1, 0, 5, 2]), torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1, 7])]
    found = [shard.tolist() for shard in exchanged(shards, skipped, 0.5)]
    # of member 0 images 6 and 9, of member 1 the first two, of member 2 (half of three, rounded down) image 8
    assert found == [[0, 3, 8], [6, 7, 9, 10], [1, 2, 4, 5]]
    assert exchanged(shards, skipped, 0.0)[2].tolist() == [2, 5, 8]


def literal_shards(shards: list[list[int]], skipped: dict[int, int]) -> list[list[int]]:
    handed = []
    for shard in shards:
        most = sorted(shard, key=lambda image: (-skipped[image], image))
        handed.append(most[: len(shard) // 4])
    return [sorted(set(shard) - set(handed[m]) | set(handed[(m - 1) % len(shards)])) for m, shard in enumerate(shards)]


class ByHand:
    """The run trained member by member, with counts per image kept in plain dicts."""

    def __init__(self) -> None:
        self.data = images()
        assert self.data.labels is not None
        torch.manual_seed(key_of("weights", 0))
        initial = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
        self.shards = [shard.tolist() for shard in partition(self.data.labels, 2, "stratified", 0)]
        self.members = [Member(m, initial, self.examples(m), CHOSEN.train, CHOSEN.method, CPU) for m in range(2)]
        self.seen, self.skipped = dict.fromkeys(range(40), 0), dict.fromkeys(range(40), 0)
        self.history = [self.shards]

    def examples(self, member: int) -> Pixels:
        return Pixels(self.data.images[self.shards[member]])

    def round(self, number: int) -> None:
        for m, member in enumerate(self.members):
            member.seen, member.skipped = (torch.zeros(len(self.shards[m]), dtype=torch.int64) for _ in range(2))
            for _ in member.train((number + 1) * 6, make_scheduler()):
                pass
            for image, seen, skipped in zip(self.shards[m], member.seen.tolist(), member.skipped.tolist(), strict=True):
                self.seen[image] += seen
                self.skipped[image] += skipped
        mean = average_states([m.shared() for m in self.members], [len(shard) for shard in self.shards])
        for member in self.members:
            member.load_shared(mean)

    def exchange(self, skipped: dict[int, int]) -> None:
        self.shards = literal_shards(self.shards, skipped)
        self.history.append(self.shards)
        for m, member in enumerate(self.members):
            member.examples = self.examples(m)

    def weights(self) -> dict[str, Tensor]:
        return self.members[0].model.state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uninterrupted(CHOSEN, tmp_path_factory.mktemp("whole"))


def test_a_run_is_that_trained_by_hand_and_counts_stay_with_the_image(whole: Path) -> None:
    hand = ByHand()
    hand.round(0)
    hand.exchange(hand.skipped)
    before = dict(hand.skipped)
    hand.round(1)
    hand.round(2)
    assert_same(weights(whole), hand.weights())
    hand.exchange({image: hand.skipped[image] - before[image] for image in before})
    rows = list(csv.DictReader((whole / "telemetry.csv").open()))
    assert [int(row["seen"]) for row in rows] == list(hand.seen.values())
    assert [int(row["skipped"]) for row in rows] == list(hand.skipped.values())
    assert sum(hand.seen.values()) == 2 * 18 * 8
    assert sum(hand.skipped.values()) > 20  # the condition under test: there is something to choose by
    members = [[image for image in range(40) if rows[image]["member"] == str(m)] for m in range(2)]
    assert members == hand.history[-1]
    assert hand.history[0] != hand.history[1] != hand.history[2]


@pytest.mark.parametrize("count", [5, 12, 16, 24, 35])
def test_killed_it_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path, count: int) -> None:
    killed_after(count, lambda counts: train(CHOSEN, images(), tmp_path / "run", CPU, counts))
    train(CHOSEN, images(), tmp_path / "run", CPU)
    assert_ends_like(whole, tmp_path / "run")


def test_a_run_that_ended_with_an_exchange_goes_on_as_the_longer_one(tmp_path: Path) -> None:
    for rounds in (3, 4):
        train(override(CHOSEN, {"method.rounds": rounds}), images(), tmp_path / "run", CPU)
    train(override(CHOSEN, {"method.rounds": 4}), images(), tmp_path / "whole", CPU)
    assert_ends_like(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_exchange_as_one(whole: Path, tmp_path: Path, count: int) -> None:
    """Members on processes of their own, and one of them on two."""
    train_in(count, CHOSEN, tmp_path / "run")
    assert (tmp_path / "run" / "telemetry.csv").read_text() == (whole / "telemetry.csv").read_text()
    if count == 2:  # replicas are equal up to rounding
        assert_ends_like(whole, tmp_path / "run")
    assert sorted(ends(tmp_path / "run", "raw")) == [0, 1]


@pytest.mark.parametrize("without", [{"members": 1}, {"rounds": 1}, {"skip_below": 0}])
def test_an_exchange_of_nothing_is_refused(without: dict[str, float]) -> None:
    content = {"members": 2, "rounds": 2, "skip_below": 0.5, "exchange": 0.25} | without
    with pytest.raises(UserError, match="exchange has no effect without members and rounds above 1 and skip_below"):
        validate({"method": content})
