"""Descriptors as ONNX files: what they give, what may stand behind the path, and what is refused in one line."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import iet_agc
from iet_agc.metrics.features import load_extractor
from iet_agc.metrics.onnx_network import OnnxNetwork
from iet_agc.runtime.errors import UserError
from iet_agc.runtime.files import sha256
from tests.onnx_models import descriptor, field, model, node, port, saved

needs_onnxruntime = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed: pip install 'iet-agc[onnx]'"
)

MEAN, DEVIATION = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def flat(*colours: tuple[int, int, int]) -> Tensor:
    """Images of one colour each, which resizing does not change, uint8 (N, 3, 20, 30)."""
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 20, 30)


def expected(images: Tensor, mean: Tensor = MEAN, deviation: Tensor = DEVIATION) -> Tensor:
    """What `descriptor` gives for images of one colour."""
    means = (images[:, :, 0, 0] / 255 - mean) / deviation
    rows = torch.cat([means, 0.5 * (means[:, :1] + means[:, 1:2] - means[:, 2:])], dim=1)
    return rows / rows.norm(dim=1, keepdim=True)


@needs_onnxruntime
@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), ("n", 3, 32, 32), (1, 3, 32, 48), (1, 3, "h", "w")], ids=str)
def test_a_descriptor_is_its_networks_output_at_length_one(tmp_path: Path, shape: Any) -> None:
    name = saved(tmp_path, descriptor(shape))
    extractor = load_extractor(name)
    images = flat((255, 0, 0), (10, 200, 30), (90, 90, 91))
    found = extractor.extract(images)
    assert torch.allclose(found.features, expected(images), atol=1e-3)
    assert found.logits is None
    assert (extractor.dimensions, extractor.copy_detection) == (4, True)
    assert extractor.sha256 == sha256(Path(name))
    size = "short side resized to 288" if shape[2] == "h" else f"resized to {shape[2]} x {shape[3]}"
    assert extractor.convention == (
        f"RGB, {size} (bilinear, antialiased), ImageNet mean and deviation; scaled to length 1"
    )


@needs_onnxruntime
def test_rows_do_not_depend_on_other_images(tmp_path: Path) -> None:
    extractor = load_extractor(saved(tmp_path, descriptor()))
    images = torch.randint(0, 256, (20, 1, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(extractor.extract(images[7:8]).features, extractor.extract(images).features[7:8])


@needs_onnxruntime
def test_options_stand_behind_the_path(tmp_path: Path) -> None:
    name = saved(tmp_path, descriptor())
    network = OnnxNetwork(f"{name}?size=16x24&mean=0.5,0.5,0.5&std=0.25,0.5,1")
    assert network.convention == (
        "RGB, resized to 16 x 24 (bilinear, antialiased), mean 0.5, 0.5, 0.5, deviation 0.25, 0.5, 1; "
        "scaled to length 1"
    )
    assert network.options.prepare(flat((0, 0, 0))).shape == (1, 3, 16, 24)
    images = flat((255, 0, 0), (10, 200, 30))
    wanted = expected(images, torch.full((3,), 0.5), torch.tensor((0.25, 0.5, 1.0)))
    assert torch.allclose(network(images)[0], wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("side=3", "'side' is no option"),
        ("size=3x3&size=4x4", "'size' is no option, or twice"),
        ("size=9", "is not HEIGHTxWIDTH"),
        ("size=0x9", "is not HEIGHTxWIDTH"),
        ("size=99999999x9", "is not HEIGHTxWIDTH"),
        ("mean=1,2", "is not three numbers"),
        ("mean=nan,0,0", "is not three numbers"),
        ("std=1,0,1", "std is not above 0"),
    ],
)
def test_other_options_are_refused(tmp_path: Path, options: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        load_extractor(f"{saved(tmp_path, descriptor())}?{options}")


@needs_onnxruntime
def test_a_size_that_the_file_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes images of 32 x 32 only: leave size out"):
        load_extractor(f"{saved(tmp_path, descriptor(('n', 3, 32, 32)))}?size=16x16")


GRAPH = descriptor()

#: The runtime's own operator, in a file that defines another one under the same name of operators.
BESIDE_A_FUNCTION = model(
    [node("Tokenizer", ["images"], "rows", "com.microsoft")], [], [],
    functions=[field(1, "Same") + field(10, "com.microsoft")],
)  # fmt: skip


def nested(depth: int) -> bytes:
    """A graph in an attribute of a node of a graph, and so on."""
    return field(1, field(5, field(6, nested(depth - 1)))) if depth else b""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (descriptor(external=True), "has weights in other files"),
        (descriptor(domain="com.example"), "needs operators of 'com.example'"),
        (descriptor(domain="com.microsoft"), "needs operators of 'com.microsoft'"),
        (BESIDE_A_FUNCTION, "needs operators of 'com.microsoft'"),
        (field(7, nested(200)), "is no ONNX model"),
        (GRAPH[:-9], "is no ONNX model"),
        (GRAPH[:40], "is no ONNX model"),
        (b"\x80" * 30, "is no ONNX model"),
        (b"PK\x03\x04 a zip", "is no ONNX model"),
    ],
    ids=["external", "custom", "microsoft", "behind a function", "nested", "cut", "short", "varint", "zip"],
)
def test_hostile_and_damaged_files_are_refused_before_they_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, why: str
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=why) as refused:
        load_extractor(saved(tmp_path, content))
    assert "\n" not in str(refused.value)


def test_external_data_is_found_wherever_it_hides(tmp_path: Path) -> None:
    hidden = field(8, "w") + field(14, 1)
    inner = field(1, field(5, field(5, hidden)))  # in an attribute of a node
    nested = field(1, field(5, field(6, inner)))  # in a graph of an attribute
    sparse = field(15, field(1, hidden))
    in_function = field(25, field(7, field(5, field(10, hidden))))
    for content in (field(7, inner), field(7, nested), field(7, sparse), in_function):
        with pytest.raises(UserError, match="has weights in other files"):
            load_extractor(saved(tmp_path, content))


def test_operators_that_the_file_defines_are_its_own(tmp_path: Path) -> None:
    function = field(1, "Same") + field(10, "mine")
    content = model([node("Same", ["images"], "rows", "mine")], [], [], functions=[function])
    if importlib.util.find_spec("onnxruntime") is None:
        why = "ONNX files need the package onnxruntime: pip install 'iet-agc"
    else:
        why = "cannot be run"  # it has no inputs
    with pytest.raises(UserError, match=why):
        load_extractor(saved(tmp_path, content))


def test_a_path_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load_extractor(str(tmp_path / "net.onnx?size=3x3"))


def unknown_operator() -> bytes:
    return model([node("NoSuch", ["images"], "rows")], [port("images", ("n", 3, "h", "w"))], [port("rows", ("n", 4))])


def two_inputs() -> bytes:
    ports = [port(name, ("n", 3, "h", "w")) for name in ("images", "others")]
    return model([node("Add", ["images", "others"], "rows")], ports, [port("rows", ("n", 3, "h", "w"))])


def of_four_axes() -> bytes:
    return model(
        [node("Relu", ["images"], "rows")], [port("images", ("n", 3, "h", "w"))], [port("rows", ("n", 3, "h", "w"))]
    )


@needs_onnxruntime
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (unknown_operator, "cannot be run"),
        (two_inputs, r"an extractor takes one input of RGB images"),
        (of_four_axes, r"gives \(2, 3, 288, 288\): an extractor gives floats \(2, D\) once"),
        (lambda: descriptor(("n", 5, 32, 32)), "an extractor takes one input of RGB images|cannot be run"),
        (lambda: descriptor((7, 3, 32, 32)), "an extractor takes one input of RGB images"),
        (lambda: b"", "an extractor takes one input|cannot be run"),
    ],
)
def test_networks_of_another_kind_are_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[], bytes], why: str
) -> None:
    with pytest.raises(UserError, match=why) as refused:
        load_extractor(saved(tmp_path, make()))
    assert "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


@needs_onnxruntime
def test_an_audit_in_its_features_is_calibrated_and_can_be_checked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sets = {name: rng.integers(0, 256, (count, 24, 24, 3), dtype=np.uint8) for name, count in (("t", 150), ("h", 120))}
    sets["s"] = sets["t"][:12]
    for name, images in sets.items():
        np.savez(tmp_path / f"{name}.npz", images=images)
    parts = [str(tmp_path / f"{name}.npz") for name in ("t", "s", "h")]
    name = f"{saved(tmp_path, descriptor())}?size=24x24"
    audit = iet_agc.audit(*parts, out=tmp_path / "audit", extractors=[name], quiet=True)
    similar = audit.record.feature_spaces[name].similarity
    assert similar.copy_detection
    assert similar.calibrated is not None
    assert similar.calibrated.count == 12
    assert similar.threshold == 0.5
    page = iet_agc.report(audit).read_text()
    assert "of another descriptor, go by the calibrated cut" in page
    iet_agc.pack(audit, out=tmp_path / "pack")
    found = iet_agc.verify(tmp_path / "pack", *parts, extractors=[tmp_path / "net.onnx"], quiet=True)
    assert found.sound, found
    assert not [each for each in found.notes if "only pixels" in each]
