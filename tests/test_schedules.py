"""What changes over the length of a run: the learning rate that falls, and the average of the last weights."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from iet_agc.config.fingerprint import fingerprint, goes_on
from iet_agc.config.overrides import override
from iet_agc.config.settings import Settings
from iet_agc.diffusion.process import make_scheduler, per_sample_loss, to_float
from iet_agc.diffusion.unet import build_unet
from iet_agc.method.sharding import partition
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.seeds import key_of
from iet_agc.training.batches import draw_batch
from iet_agc.training.loop import train
from iet_agc.training.member import learning_rate
from tests.processes import killed_after
from tests.tiny_runs import CPU, assert_ends_like, assert_same, curve, images, settings, uninterrupted, weights

#: Two members, two rounds of six steps; over the last half the rate falls, and a quarter is averaged.
CHOSEN = settings(train__learning_rate_fall=0.5, train__average_last=0.25)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uninterrupted(CHOSEN, tmp_path_factory.mktemp("whole"))


def rates(**changes: float) -> list[float]:
    train = settings(train__learning_rate=1.0, train__warmup_steps=0, **changes).train
    return [learning_rate(step, 8, train) for step in range(8)]


def test_the_rate_falls_linearly_to_what_would_be_zero_one_step_later() -> None:
    assert rates() == [1.0] * 8
    assert rates(train__learning_rate_fall=0.5) == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert rates(train__learning_rate_fall=1.0) == [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]


def test_warm_up_and_fall_multiply() -> None:
    train = settings(train__learning_rate=1.0, train__warmup_steps=4, train__learning_rate_fall=1.0).train
    assert [learning_rate(step, 4, train) for step in range(4)] == [0, 1 / 4 * 3 / 4, 2 / 4 * 2 / 4, 3 / 4 * 1 / 4]


class Literal:
    """One member by hand: AdamW at the rate of each step, and every set of weights that it had."""

    def __init__(self, number: int, pixels: Tensor) -> None:
        torch.manual_seed(key_of("weights", 0))
        self.number, self.pixels = number, pixels
        self.model: nn.Module = build_unet(8, 1, 8, (1, 2), 1, (), 0.0, 4)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)

    def step(self, step: int) -> dict[str, Tensor]:
        batch = draw_batch(0, self.number, step, len(self.pixels), 8, (1, 8, 8), CPU)
        x = to_float(self.pixels[batch.positions])
        per_sample_loss(self.model, make_scheduler(), x, batch.timesteps, batch.noise).mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        fall = 1.0 if step < 6 else (12 - step) / 6
        self.optimizer.param_groups[0]["lr"] = 1e-3 * min(step / 3, 1) * fall
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def test_two_members_in_two_rounds_are_those_trained_by_hand(tmp_path: Path) -> None:
    """Of 12 steps the last 6 fall, and the weights of the last 3 are averaged, over steps and over members."""
    data = images()
    train(override(CHOSEN, {"method.skip_below": "0"}), data, tmp_path / "run", CPU)
    assert data.labels is not None
    shards = partition(data.labels, 2, "stratified", 0)
    members = [Literal(number, data.images[shard]) for number, shard in enumerate(shards)]
    had: list[list[dict[str, Tensor]]] = [[], []]
    for end in (6, 12):
        for member in members:
            had[member.number] += [member.step(step) for step in range(end - 6, end)]
        ends = [had[number][-1] for number in range(2)]
        mean = {name: ((ends[0][name].double() + ends[1][name].double()) / 2).float() for name in ends[0]}
        for member in members:
            member.model.load_state_dict(mean)
    assert_same(weights(tmp_path / "run"), mean)
    for name, value in weights(tmp_path / "run", "ema").items():
        last = torch.stack([each[name] for some in had for each in some[-3:]]).mean(0)
        torch.testing.assert_close(value, last, rtol=1e-5, atol=1e-7)


def test_the_curve_tells_the_rate(whole: Path) -> None:
    told = {point["step"]: point["learning_rate"] for point in curve(whole, "member-0000")}
    assert told[6] == pytest.approx(1e-3)
    assert [told[step] for step in (8, 10, 12)] == pytest.approx([5e-3 / 6, 3e-3 / 6, 1e-3 / 6])


@pytest.mark.parametrize("count", [3, 17, 21, 23])
def test_killed_it_ends_as_if_it_had_not_been(whole: Path, tmp_path: Path, count: int) -> None:
    killed_after(count, lambda counts: train(CHOSEN, images(), tmp_path / "run", CPU, counts))
    train(CHOSEN, images(), tmp_path / "run", CPU)
    assert_ends_like(whole, tmp_path / "run")


@pytest.mark.parametrize("name", ["learning_rate_fall", "average_last"])
def test_a_longer_run_is_another_one(tmp_path: Path, name: str) -> None:
    short: Settings = settings(**{f"train__{name}": 0.5})
    longer = override(short, {"method.rounds": "3"})
    assert goes_on(settings(), override(settings(), {"method.rounds": "3"}))
    assert not goes_on(short, longer)
    assert fingerprint(short) != fingerprint(settings())
    train(short, images(), tmp_path, CPU)
    with pytest.raises(UserError, match=r"method.rounds 2 is now 3.*of which none can be raised, since"):
        train(longer, images(), tmp_path, CPU)
