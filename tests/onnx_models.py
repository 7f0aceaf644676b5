"""Small ONNX files made by hand, field by field as onnx.proto has them, so that no package is needed to make them."""

import struct
from collections.abc import Sequence
from pathlib import Path

#: Numbers of fields, by message.
FLOAT, INT64 = 1, 7


def varint(value: int) -> bytes:
    """A number of seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: "int | str | bytes") -> bytes:
    """A field: a number, a text, or a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, shape: Sequence[int], values: Sequence[float], external: bool = False) -> bytes:
    """An initializer of floats."""
    out = b"".join(field(1, size) for size in shape) + field(2, FLOAT) + field(8, name)
    if external:
        return out + field(13, field(1, "location") + field(2, "weights.bin")) + field(14, 1)
    return out + field(9, struct.pack(f"<{len(values)}f", *values))


def node(op: str, inputs: Sequence[str], output: str, domain: str = "") -> bytes:
    """A node of one output."""
    parts = [field(1, name) for name in inputs]
    return b"".join([*parts, field(2, output), field(4, op), field(7, domain) if domain else b""])


def port(name: str, shape: "Sequence[int | str]", kind: int = FLOAT) -> bytes:
    """An input or output; sizes that are texts are free."""
    dims = b"".join(field(1, field(1 if isinstance(size, int) else 2, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))


def model(
    nodes: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    tensors: Sequence[bytes] = (),
    functions: Sequence[bytes] = (),
) -> bytes:
    """A whole file."""
    graph = b"".join(field(1, each) for each in nodes) + field(2, "graph")
    for number, parts in ((5, tensors), (11, inputs), (12, outputs)):
        graph += b"".join(field(number, each) for each in parts)
    opset = field(8, field(1, "") + field(2, 13))
    return field(1, 8) + field(7, graph) + opset + b"".join(field(25, each) for each in functions)


def descriptor(
    shape: "Sequence[int | str]" = ("n", 3, "height", "width"), external: bool = False, domain: str = ""
) -> bytes:
    """A network: the mean of each channel, and three weighted sums of these."""
    weights = [1.0, 0.0, 0.0, 0.5, 0.0, 1.0, 0.0, 0.5, 0.0, 0.0, 1.0, -0.5]
    nodes = [
        node("GlobalAveragePool", ["images"], "pooled", domain),
        node("Flatten", ["pooled"], "means"),
        node("MatMul", ["means", "weights"], "rows"),
    ]
    ports = [port("images", shape)], [port("rows", (shape[0], 4))]
    return model(nodes, *ports, [tensor("weights", (3, 4), weights, external)])


def saved(folder: Path, content: bytes, name: str = "net.onnx") -> str:
    """The path of a file with this content."""
    (folder / name).write_bytes(content)
    return str(folder / name)
