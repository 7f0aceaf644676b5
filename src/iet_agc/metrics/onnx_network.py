"""Networks of ONNX files, such as descriptors that were made to find copies: one input of images, one output (N, D).

A file is named by its path, with options if need be:

    FILE.onnx?size=224x224&mean=0.5,0.5,0.5&std=0.5,0.5,0.5

size is HEIGHTxWIDTH, by default what the file says; where it says none, the short side becomes 288, as for SSCD. mean
and std are of RGB in [0, 1], by default ImageNet's.

Before onnxruntime sees a file it is walked through as protobuf. What would read other files (external data), or needs
operators that are not ONNX's own or defined in the file, is refused. What is left computes on its input only.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
import torch.nn.functional as F
from torch import Tensor

from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.extras import require
from iet_agc.runtime.paths import network_file, network_options
from iet_agc.runtime.reading import read_bytes

__all__ = ["SHORT_SIDE", "OnnxNetwork"]

#: The short side of images where neither file nor options say a size, as SSCD takes them.
SHORT_SIDE = 288

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: A protobuf message has at most 2 GiB.
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class _Options:
    """How images are brought to a network; `size` (H, W), None for a short side of 288."""

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = _MEAN
    deviation: tuple[float, ...] = _DEVIATION

    @property
    def words(self) -> str:
        """The convention, for people."""
        resized = "short side resized to 288" if self.size is None else "resized to {} x {}".format(*self.size)
        if (self.mean, self.deviation) == (_MEAN, _DEVIATION):
            values = "ImageNet mean and deviation"
        else:
            mean, deviation = (", ".join(f"{each:g}" for each in part) for part in (self.mean, self.deviation))
            values = f"mean {mean}, deviation {deviation}"
        return f"RGB, {resized} (bilinear, antialiased), {values}; scaled to length 1"

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) as the network takes them, float32."""
        sizes = self.size or tuple(side * SHORT_SIDE // min(images.shape[2:]) for side in images.shape[2:])
        pixels = F.interpolate(images.float(), sizes, mode="bilinear", antialias=True).clamp(0, 255) / 255
        mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (self.mean, self.deviation))
        return (pixels - mean) / deviation


class OnnxNetwork:
    """A network of an ONNX file, on the CPU.

    Args:
        name: the path, with its options.

    Raises:
        UserError: no such file, one that is refused, or no onnxruntime; one line.
    """

    def __init__(self, name: str) -> None:
        self.name, self.file = name, network_file(name)
        if not self.file.is_file():
            raise UserError(f"there is no file {self.file}: give the path of an ONNX file", "extractor")
        content = read_bytes(self.file, _LARGEST)
        options = _options(name)
        _check_model(self.file, content)
        self._session = _session(self.file, content)
        self._input, self._one, size = self._input_of()
        if size and options.get("size") not in (None, size):
            raise UserError(f"{name}: the file takes images of {size[0]} x {size[1]} only: leave size out", "extractor")
        self.options = _Options(**({**options, "size": size} if size else options))

    @property
    def convention(self) -> str:
        """What happens to an image, in words."""
        return self.options.words

    def _input_of(self) -> tuple[str, bool, tuple[int, int] | None]:
        """Name of the input, whether it takes one image at a time, and the size if it is fixed."""
        inputs = self._session.get_inputs()
        shape = list(inputs[0].shape) if len(inputs) == 1 else []
        fixed = [each if isinstance(each, int) and each > 0 else None for each in shape]
        usable = len(fixed) == 4 and fixed[0] in (None, 1) and fixed[1] in (None, 3)
        if not usable or inputs[0].type != "tensor(float)" or (fixed[2] is None) != (fixed[3] is None):
            told = "; ".join(f"{each.type} {list(each.shape)}" for each in inputs)
            raise UserError(
                f"{self.file} takes {told or 'nothing'}: an extractor takes one input of RGB images, tensor(float) "
                "[N, 3, height, width]",
                "extractor",
            )
        size = (fixed[2], fixed[3]) if fixed[2] and fixed[3] else None
        return inputs[0].name, fixed[0] == 1, size

    def __call__(self, images: Tensor) -> tuple[Tensor, None]:
        """Descriptors of length 1, (N, D), of uint8 RGB (N, 3, H, W); no class scores."""
        batch = self.options.prepare(images.cpu())
        parts = batch.split(1) if self._one else (batch,)
        return F.normalize(torch.cat([self._run(part) for part in parts]), dim=1).to(images.device), None

    def _run(self, batch: Tensor) -> Tensor:
        try:
            rows = self._session.run(None, {self._input: batch.numpy()})
        except Exception as error:
            reason = in_words(error).split("\n")[0]
            raise UserError(f"{self.file} fails on RGB images {tuple(batch.shape)}: {reason}", "extractor") from None
        shapes = [tuple(getattr(each, "shape", ())) for each in rows]
        descriptors = [each for each, shape in zip(rows, shapes, strict=True) if len(shape) == 2]
        if len(descriptors) != 1 or descriptors[0].dtype.kind != "f" or len(descriptors[0]) != len(batch):
            told = ", ".join(map(str, shapes))
            raise UserError(f"{self.file} gives {told}: an extractor gives floats ({len(batch)}, D) once", "extractor")
        return torch.from_numpy(descriptors[0].copy()).float()


def _session(file: Path, content: bytes) -> Any:
    """A session of onnxruntime, from bytes, so that what was looked at is what is run."""
    require("onnxruntime", "onnx", "an ONNX file", "extractor")
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is told below
    options.intra_op_num_threads = torch.get_num_threads()
    options.use_deterministic_compute = True
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{file} cannot be run: {in_words(error)}", "extractor") from None


# Options ----------------------------------------------------------------------------------------------------


def _options(name: str) -> dict[str, Any]:
    """What stands behind the path, by the names of `_Options`."""
    readers = {"size": ("size", _size), "mean": ("mean", _three), "std": ("deviation", _three)}
    found: dict[str, Any] = {}
    for key, text in parse_qsl(network_options(name), keep_blank_values=True):
        if key not in readers or readers[key][0] in found:
            raise UserError(f"{name}: {key!r:.40} is no option, or twice: give size, mean or std, once", "extractor")
        field, read = readers[key]
        found[field] = read(name, text)
    if "deviation" in found and min(found["deviation"]) <= 0:
        raise UserError(f"{name}: std is not above 0", "extractor")
    return found


def _size(name: str, text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not all(each.isascii() and each.isdecimal() and 0 < int(each[:5]) <= 4096 for each in (height, width)):
        raise UserError(f"{name}: size {text!r:.40} is not HEIGHTxWIDTH, such as 288x288, of at most 4096", "extractor")
    return int(height), int(width)


def _three(name: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(each) for each in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or not all(abs(each) < 1000 for each in values):  # neither infinite nor nan
        raise UserError(f"{name}: {text!r:.40} is not three numbers, such as 0.5,0.5,0.5", "extractor")
    return values


# The file ---------------------------------------------------------------------------------------------------

#: Which fields of which messages hold further messages, by onnx.proto; others are not looked into.
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}

#: Fields: where a node's operators come from, and a function's; where a tensor's data are, and that they are elsewhere.
_NODE_DOMAIN, _FUNCTION_DOMAIN, _EXTERNAL_DATA, _DATA_LOCATION = 7, 10, 13, 14

#: Domains of ONNX's own operators; and how those begin in which onnxruntime has further ones. A function that a file
#: defines there would let these through.
_OWN, _RESERVED = {"", "ai.onnx", "ai.onnx.ml"}, ("ai.onnx.", "com.microsoft", "com.ms.")

#: Messages in messages, deeper than any model has them.
_DEEPEST = 100


def _check_model(file: Path, content: bytes) -> None:
    """Refuse a model that would read other files, or that needs other operators than ONNX's and its own."""
    used, defined, external = set[str](), set[str](), False
    try:
        for kind, field, value in _fields(memoryview(content), "Model", 0):
            external |= kind == "Tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value == 1))
            if isinstance(value, memoryview) and (kind, field) in (
                ("Node", _NODE_DOMAIN),
                ("Function", _FUNCTION_DOMAIN),
            ):
                (used if kind == "Node" else defined).add(bytes(value).decode())
    except (ValueError, IndexError):
        raise UserError(f"{file} is no ONNX model: it is damaged, or something else", "extractor") from None
    if external:
        raise UserError(f"{file} has weights in other files: save it as one file, without external data", "extractor")
    if foreign := used - {domain for domain in defined if not domain.startswith(_RESERVED)} - _OWN:
        raise UserError(f"{file} needs operators of {min(foreign)!r:.60}: only ONNX's own are run", "extractor")


def _fields(message: memoryview, kind: str, depth: int) -> Iterator[tuple[str, int, "int | memoryview"]]:
    """All fields of a message and of those in it: the kind of message, the field's number, and its value.

    Raises:
        ValueError, IndexError: it is no such message.
    """
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        value: int | memoryview
        if wire == 0:
            value, at = _varint(message, at)
        elif wire in (1, 5):
            value, at = 0, at + (8 if wire == 1 else 4)
        elif wire == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(message) or field == 0:
            raise ValueError("cut off")
        yield kind, field, value
        if isinstance(value, memoryview) and (inside := _INSIDE.get(kind, {}).get(field)):
            yield from _fields(value, inside, depth + 1)


def _varint(message: Sequence[int], at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has more than ten bytes")
