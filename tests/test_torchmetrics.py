"""Metrics of torchmetrics: the numbers of an audit, however images are cut into batches or shared out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from iet_agc.auditing.compute import audit
from iet_agc.auditing.schema import AuditRecord
from iet_agc.data.image_set import ImageSet
from iet_agc.runtime import distributed
from tests.image_sets import load_named
from tests.processes import in_processes

pytest.importorskip("torchmetrics")

from torchmetrics import MetricCollection

from iet_agc.metrics.torchmetrics import AuthPct, CopiedShare


@pytest.fixture(scope="module")
def sets() -> tuple[Tensor, Tensor, Tensor]:
    """Digits: a training set with repeated images; held-out ones; samples, of which a third are noised copies."""
    digits = load_named("digits")[0].images
    train, held_out, samples = digits[:300], digits[300:500], digits[500:560].clone()
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(-6, 7, samples[:20].shape, generator=rng)
    samples[:20] = (train[:20].int() + noise).clamp(0, 255).to(torch.uint8)
    return torch.cat([train, train[:7]]), held_out, samples


def _audited(sets: tuple[Tensor, Tensor, Tensor], flips: bool) -> AuditRecord:
    train, held_out, samples = (ImageSet(images, "digits") for images in sets)
    return audit(train, samples, held_out, flips=flips, measure_quality=False).numbers


@pytest.mark.parametrize("flips", [False, True])
def test_they_are_the_audits_numbers_in_any_batches(sets: tuple[Tensor, Tensor, Tensor], flips: bool) -> None:
    train, held_out, samples = sets
    expected = _audited(sets, flips)
    assert expected.calibrated is not None
    metrics = MetricCollection(
        {
            "copied": CopiedShare(train, held_out, flips=flips),
            "below": CopiedShare(train, cut=0.15, flips=flips),
            "authentic": AuthPct(train, flips=flips),
        }
    )
    for batch in (samples[:1], samples[1:50], samples[50:]):
        metrics.update(batch)
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert metrics["copied"].cut == expected.calibrated.cut
    assert found == {
        "copied": expected.calibrated.share,
        "below": expected.mq["0.15"].share,
        "authentic": expected.statistics.auth_pct.percent,
    }
    assert 0 < found["below"] < 1
    assert 0 < found["authentic"] < 100
    metrics.reset()
    metrics.update(samples[:20])
    assert metrics.compute()["copied"] == 1


def test_processes_are_one(sets: tuple[Tensor, Tensor, Tensor], tmp_path: Path) -> None:
    train, _, samples = sets

    def of_one_rank() -> None:
        metrics, rank = (CopiedShare(train, cut=0.15), AuthPct(train)), distributed.rank()
        for metric in metrics:
            metric.update(samples[:25] if rank == 0 else samples[25:])
        torch.save(torch.stack([metric.compute() for metric in metrics]), tmp_path / f"{rank}.pt")

    in_processes(2, of_one_rank)
    alone = (CopiedShare(train, cut=0.15), AuthPct(train))
    expected = torch.stack([metric(samples) for metric in alone])
    assert all(torch.equal(torch.load(tmp_path / f"{rank}.pt"), expected) for rank in range(2))


def test_what_would_be_ignored_or_cannot_be_is_refused(sets: tuple[Tensor, Tensor, Tensor]) -> None:
    train, held_out, samples = sets
    with pytest.raises(ValueError, match="held-out images set a cut: give them or a cut, not both"):
        CopiedShare(train, held_out, cut=0.15)
    with pytest.raises(ValueError, match="AuthPct needs 2 training images that differ"):
        AuthPct(train[:1].repeat(3, 1, 1, 1))
    for metric in (CopiedShare(train, cut=0.15), AuthPct(train)):
        with pytest.raises(ValueError, match="uint8"):
            metric.update(samples / 255)
        assert metric.total == 0
