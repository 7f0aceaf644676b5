"""Continuous times: which bin every edge falls in, what lies outside, and that bins are all that differs."""

import math

import pytest
import torch
from torch import Tensor

from iet_agc import AntiGradientControl

#: Uniform t, EDM's sigma, and quantiles of a logit-normal, a U-shaped and a log-normal draw.
GENERATOR = torch.Generator().manual_seed(0)
NORMAL, UNIFORM = torch.randn(20_000, generator=GENERATOR), torch.rand(20_000, generator=GENERATOR)
DRAWS = {
    "logit-normal": NORMAL.sigmoid(),
    "U-shaped": torch.cat([UNIFORM**3, 1 - UNIFORM**3]),
    "log-normal": (1.2 * NORMAL - 1.2).exp(),
}
EDGES = {
    "uniform": torch.linspace(0, 1, 101),
    "log sigma": torch.logspace(math.log10(0.002), math.log10(80), 41),
} | {name: draws.quantile(torch.linspace(0, 1, 51)) for name, draws in DRAWS.items()}


@pytest.mark.parametrize("name", EDGES)
def test_every_edge_is_the_start_of_its_bin_and_the_last_one_the_end_of_the_last(name: str) -> None:
    edges = EDGES[name]
    count = len(edges) - 1
    agc = AntiGradientControl.for_times(edges)
    assert agc.mean_loss.shape == (count,)
    expected = [*range(count), count - 1]
    assert agc.bins(edges).tolist() == expected
    below = torch.nextafter(edges, torch.full_like(edges, -torch.inf))
    assert agc.bins(below).tolist() == [0, *range(count)]
    assert agc.bins((edges[1:] + edges[:-1]) / 2).tolist() == expected[:-1]


def test_what_lies_outside_falls_into_the_outer_bins() -> None:
    agc = AntiGradientControl.for_times(EDGES["log sigma"])
    outside = torch.tensor([0.0, -1.0, -torch.inf, 81.0, torch.inf, torch.nan])
    assert agc.bins(outside).tolist() == [0, 0, 0, 39, 39, 39]
    one = AntiGradientControl.for_times(torch.tensor([0.2, 0.3]))
    assert one.bins(outside).tolist() == [0] * 6


@pytest.mark.parametrize("name", DRAWS)
def test_bins_between_quantiles_fill_alike_and_equal_ones_do_not(name: str) -> None:
    counts = AntiGradientControl.for_times(EDGES[name]).bins(DRAWS[name]).bincount(minlength=50)
    assert (counts.float() / len(DRAWS[name]) - 1 / 50).abs().max() < 1e-3
    even = torch.linspace(float(DRAWS[name].min()), float(DRAWS[name].max()), 51)
    assert AntiGradientControl.for_times(even).bins(DRAWS[name]).bincount(minlength=50).min() < 0.8 * counts.min()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_times_of_any_number_type(dtype: torch.dtype) -> None:
    """Integers as well: a thousand timesteps in ten bins, for a short run."""
    agc = AntiGradientControl.for_times(torch.linspace(0, 1000, 11))
    times = torch.tensor([0, 96, 100, 104, 999, 1000]).to(dtype)
    assert agc.bins(times).tolist() == [0, 0, 1, 1, 9, 9]
    agc(torch.ones(6), times)
    assert (agc.mean_loss > 0).nonzero().flatten().tolist() == [0, 1, 9]


def test_bins_are_all_that_differs() -> None:
    times, losses = torch.rand(200, generator=GENERATOR), torch.rand(200, generator=GENERATOR)
    binned, plain = AntiGradientControl.for_times(torch.linspace(0, 1, 11), 0.9), AntiGradientControl(10, 0.9)
    for part in torch.arange(200).split(50):
        bins = (times[part] * 10).long().clamp(max=9)
        assert torch.equal(binned.bins(times[part]), bins)
        assert torch.equal(binned.keep(losses[part], times[part]), plain.keep(losses[part], bins))
        assert torch.equal(binned(losses[part], times[part]), plain(losses[part], bins))
        binned.accumulate(losses[part], times[part])
        binned.finish([])
        plain.update(losses[part], bins)
        assert torch.equal(binned.mean_loss, plain.mean_loss)
    assert not plain.keep(losses, (times * 10).long()).all()


def test_the_state_holds_the_edges_for_a_bank_means_nothing_without() -> None:
    agc = AntiGradientControl.for_times(EDGES["logit-normal"])
    agc(torch.ones(4), torch.rand(4))
    assert [*agc.state_dict()] == ["mean_loss", "edges"]
    other = AntiGradientControl.for_times(torch.linspace(0, 1, 51))
    other.load_state_dict(agc.state_dict())
    assert torch.equal(other.edges, agc.edges)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RuntimeError, match="size mismatch for mean_loss"):
        AntiGradientControl.for_times(torch.linspace(0, 1, 11)).load_state_dict(agc.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*edges"):
        AntiGradientControl(50).load_state_dict(agc.state_dict())


def test_a_change_of_the_given_edges_changes_no_bins() -> None:
    edges = torch.linspace(0, 1, 11)
    agc = AntiGradientControl.for_times(edges)
    edges.zero_()
    assert agc.bins(torch.tensor([0.55])).tolist() == [5]


def test_bins_take_no_values_from_the_device() -> None:
    agc = AntiGradientControl.for_times(torch.linspace(0, 1, 11)).to("meta")
    assert agc.bins(torch.empty(5, device="meta")).shape == (5,)
    graph = torch.compile(AntiGradientControl.for_times(torch.linspace(0, 1, 11)), backend="eager", fullgraph=True)
    assert graph(torch.ones(5), torch.rand(5)) == 1


@pytest.mark.parametrize(
    "edges",
    [
        torch.tensor(1.0),
        torch.tensor([1.0]),
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([0.0, 1.0, 1.0]),
        torch.tensor([1.0, 0.0]),
        torch.tensor([0.0, torch.inf]),
        torch.tensor([0.0, torch.nan]),
        torch.tensor([0, 1, 1 + 1e-12], dtype=torch.float64),
    ],
)
def test_edges_that_are_none_are_refused(edges: Tensor) -> None:
    with pytest.raises(ValueError, match="edges must be finite, ascending and at least two"):
        AntiGradientControl.for_times(edges)
