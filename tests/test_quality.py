"""Fréchet distance in closed form; extractors and their errors."""

import pytest
import torch
from torch import Tensor

from iet_agc.metrics import quality
from iet_agc.metrics.quality import EXTRACTORS, default_extractor, features, frechet_distance


def _gaussian(count: int, mean: list[float], deviation: list[float], seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, len(mean), dtype=torch.float64, generator=rng)
    return noise * torch.tensor(deviation, dtype=torch.float64) + torch.tensor(mean, dtype=torch.float64)


def _exact(first: Tensor) -> Tensor:
    """The same rows with mean 0 and covariance 1, both exactly (up to rounding)."""
    centred = first - first.mean(0)
    factor = torch.linalg.cholesky(torch.cov(centred.T))
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).T


def test_closed_form_for_diagonal_covariances() -> None:
    # |mu_1 - mu_2|^2 + sum_j (s_1j - s_2j)^2
    base = _exact(_gaussian(500, [0] * 3, [1] * 3, 0))
    mu, one, two = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, -2.0, 0.5], [1.0, 2.0, 0.5], [3.0, 2.0, 1.0]))
    expected = float(mu.square().sum() + (one - two).square().sum())  # 5.25 + 4.25
    assert expected == 9.5
    assert frechet_distance(base * one, base * two + mu) == pytest.approx(expected, rel=1e-9)


def test_large_samples_come_near_the_closed_form() -> None:
    first = _gaussian(20_000, [0, 1, 2, 3], [1, 1, 2, 2], 0)
    second = _gaussian(20_000, [0, 0, 2, 5], [1, 2, 2, 1], 1)
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 1 + 1, rel=0.03)


def test_rotations_change_nothing() -> None:
    rng = torch.Generator().manual_seed(2)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=rng)).Q
    first, second = _gaussian(300, [0] * 4, [1, 2, 3, 4], 0), _gaussian(200, [1] * 4, [2, 1, 1, 2], 1)
    assert frechet_distance(first @ rotation, second @ rotation) == pytest.approx(
        frechet_distance(first, second), rel=1e-9
    )


def test_zero_on_itself_and_symmetric() -> None:
    first, second = _gaussian(300, [0] * 4, [1, 2, 3, 4], 0), _gaussian(200, [1] * 4, [2, 1, 1, 2], 1)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, second) == pytest.approx(frechet_distance(second, first), rel=1e-9)
    assert frechet_distance(first, second) > 1


def test_fewer_images_than_features() -> None:
    """Covariances without full rank, as with 28 x 28 pixels and a hundred images."""
    first = torch.rand(30, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-4)
    assert frechet_distance(first, first + 1) == pytest.approx(64, rel=1e-5)


@pytest.mark.parametrize(("first", "second"), [(1, 5), (5, 1), (0, 5)])
def test_fewer_than_two_images(first: int, second: int) -> None:
    with pytest.raises(ValueError, match=f"needs 2 images on each side, not {first} and {second}"):
        frechet_distance(torch.rand(first, 3), torch.rand(second, 3))


def test_pixel_features_are_the_pixels() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(2, 2, 8, 8)
    done: list[int] = []
    rows = features(images, "pixels", on_images=done.append)
    assert rows.dtype == torch.float64
    assert rows.tolist() == [[v / 255 for v in range(128)], [v / 255 for v in range(128, 256)]]
    assert sum(done) == 2


@pytest.mark.parametrize(
    ("shape", "extractor"),
    [
        ((1, 8, 8), "pixels"),
        ((1, 28, 28), "pixels"),
        ((1, 32, 32), "pixels"),
        ((1, 1, 1025), "inception-v3-compat"),
        ((3, 32, 32), "inception-v3-compat"),
        ((3, 64, 64), "inception-v3-compat"),
    ],
)
def test_default_extractor(shape: tuple[int, int, int], extractor: str) -> None:
    assert default_extractor(shape) == extractor


def test_an_unknown_extractor_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown extractor 'resnet': use one of pixels, inception-v3-compat, vgg16"):
        features(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "resnet")


@pytest.mark.parametrize("reason", ["no network\nsecond line", ""])
def test_missing_weights_are_one_line(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError(reason)

    monkeypatch.setattr(quality, "create_feature_extractor", offline)
    with pytest.raises(ValueError, match=r"weights of extractor 'inception-v3-compat' .* choose 'pixels'") as error:
        features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "inception-v3-compat")
    assert "\n" not in str(error.value)
    assert (reason.split("\n")[0] or "OSError") in str(error.value)


def test_networks_see_batches_of_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str], tuple[int, ...]]] = []

    def create(name: str, layers: list[str], **_: object):
        def network(batch: Tensor) -> tuple[Tensor]:
            assert batch.dtype == torch.uint8
            seen.append((name, layers, tuple(batch.shape)))
            return (batch.float().mean((2, 3)),)

        return network

    monkeypatch.setattr(quality, "create_feature_extractor", create)
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 8, 8)
    for extractor, layer in EXTRACTORS.items():
        if extractor == "pixels":
            continue
        seen.clear()
        rows = features(images, extractor, batch_size=2)
        assert rows.tolist() == [[float(i)] * 3 for i in range(5)]
        assert rows.dtype == torch.float64
        assert seen == [(extractor, [layer], (n, 3, 8, 8)) for n in (2, 2, 1)]


def test_extractors_and_layers_are_torch_fidelitys() -> None:
    """A misspelt name or layer would show only where there is a network."""
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    for extractor, layer in EXTRACTORS.items():
        if extractor != "pixels":
            assert layer in FEATURE_EXTRACTORS_REGISTRY[extractor].get_provided_features_list()
