"""Files of tensors, safetensors: what stands in one without its values, and writing one tensor at a time.

The library writes a file from all of its tensors at once. The format is plain enough to be written as tensors come: the
length of a header (8 bytes, little-endian), the header (JSON: type, shape and place of each tensor), the values. See
https://github.com/huggingface/safetensors#format.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import check_regular

__all__ = ["Layout", "TensorFile", "data_sha256", "open_tensors", "write_tensors"]

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {kind: name for name, kind in _TYPES.items()}

#: Bytes that the length of a header takes, and that a header is a multiple of.
_WORD = 8


@dataclass(frozen=True)
class Layout:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"

    @property
    def bytes(self) -> int:
        """How many its values take."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True)
class TensorFile:
    """An open file of tensors, of which values are read when they are asked for.

    Attributes:
        file: it.
        layouts: of each tensor, by name.
        metadata: texts by name.
    """

    file: Path
    layouts: Mapping[str, Layout]
    metadata: Mapping[str, str]
    _handle: Any

    def read(self, name: str) -> Tensor:
        """A tensor, on the CPU."""
        return self._handle.get_tensor(name)


def open_tensors(file: Path) -> TensorFile:
    """Open a file of tensors.

    Raises:
        UserError: it is not there, damaged, or of types that are not known.
    """
    check_regular(file)
    try:
        handle: Any = safe_open(file, "pt")  # pyright: ignore[reportNoOverloadImplementation]
        found = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{shown(file)} is no whole safetensors file, {in_words(error)}: restore it from a copy"
        ) from None
    if odd := next((name for name, part in found.items() if part.get_dtype() not in _TYPES), None):
        raise UserError(f"{shown(file)}: {odd} is of type {found[odd].get_dtype()}, of which no mean is known")
    layouts = {name: Layout(_TYPES[part.get_dtype()], tuple(part.get_shape())) for name, part in found.items()}
    return TensorFile(file, layouts, handle.metadata() or {}, handle)


def write_tensors(
    place: Path,
    layouts: Mapping[str, Layout],
    tensor_of: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    seal: str | None = None,
) -> None:
    """Write a file of tensors, of which only one is in memory at a time.

    Args:
        place: the file; it does not appear in one step, see `files.replacing`.
        layouts: of each tensor, by name.
        tensor_of: name -> values, of that layout, on any device; called once for each.
        metadata: texts by name.
        seal: the name of one more text, the SHA-256 of all values as they stand in the file.
    """
    order = sorted(layouts, key=lambda name: (-layouts[name].dtype.itemsize, name))  # so every value is aligned
    hashed = hashlib.sha256()
    with place.open("wb") as stream:
        stream.write(_header(order, layouts, dict(metadata), seal, hashed.hexdigest()))
        for name in order:
            tensor = tensor_of(name)
            assert (tensor.dtype, tuple(tensor.shape)) == (layouts[name].dtype, layouts[name].shape)
            values = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            hashed.update(values)
            stream.write(values)
        stream.seek(0)
        stream.write(_header(order, layouts, dict(metadata), seal, hashed.hexdigest()))


def _header(
    order: list[str], layouts: Mapping[str, Layout], metadata: dict[str, str], seal: str | None, found: str
) -> bytes:
    """The beginning of a file; of one length, whatever the digest."""
    texts = metadata | ({} if seal is None else {seal: found})
    entries: dict[str, Any] = {"__metadata__": texts} if texts else {}
    end = 0
    for name in order:
        begin, end = end, end + layouts[name].bytes
        entries[name] = {
            "dtype": _NAMES[layouts[name].dtype],
            "shape": layouts[name].shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _WORD)
    return len(text).to_bytes(_WORD, "little") + text


def data_sha256(file: Path) -> str:
    """SHA-256 of all values of a file of tensors, as they stand in it; hexadecimal."""
    check_regular(file)
    with file.open("rb") as stream:
        stream.seek(_WORD + int.from_bytes(stream.read(_WORD), "little"))
        return hashlib.file_digest(stream, "sha256").hexdigest()
