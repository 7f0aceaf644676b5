"""Image files in parquet tables in Hugging Face's layout, read some rows at a time.

A table has a column of structs {bytes, path}, as `datasets` writes images, or of bytes.
"""

import importlib
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from iet_agc.data.conversion import IN_FLIGHT
from iet_agc.data.decoding import Opener, UnfitError
from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.extras import require
from iet_agc.runtime.files import shown
from iet_agc.runtime.reading import check_regular

__all__ = ["rows_of"]

#: Rows that are read together, and bytes of a column that are read ahead.
_TOGETHER, _AHEAD = 16, 2**20

#: So many groups of rows stay for threads that are behind; items are taken nearly in order.
_KEPT = 2 * IN_FLIGHT // _TOGETHER + 2

#: The group of rows that comes next where nothing is being read: none is that near.
_IDLE = -(2**62)


def rows_of(table: Path) -> list[Opener]:
    """What opens the image of each row.

    Raises:
        UserError: `pyarrow` is not installed, it is no such table, or which column holds images is not clear.
    """
    check_regular(table)
    parquet = _library()
    try:
        with parquet.ParquetFile(table) as file:
            column = _image_column(table, file.schema_arrow)
            lengths = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    except UserError:
        raise
    except Exception as error:  # damaged files make readers raise nearly anything
        raise UserError(f"{shown(table)} cannot be read as a parquet table: {in_words(error)}") from error
    rows = _Rows(table, column, lengths)
    return [partial(rows.open, row) for row in range(sum(lengths))]


def _library() -> Any:
    require("pyarrow", "parquet", "a parquet table")
    return importlib.import_module("pyarrow.parquet")


def _image_column(table: Path, schema: Any) -> str:
    """The column of images, as parquet calls it: "image", or the only one that may be."""
    found = {field.name: column for field in schema if (column := _bytes_in(field.name, field.type))}
    if len(found) != 1 and "image" not in found:
        there = ", ".join(map(repr, found)) or "none"
        raise UserError(
            f"{shown(table)} has not one column of images ({{bytes, path}} or bytes), but {there}: name it 'image'"
        )
    return found["image"] if "image" in found else next(iter(found.values()))


def _bytes_in(name: str, kind: Any) -> str | None:
    """Where a column has bytes; None where it has none."""
    from pyarrow import types

    def are_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    if are_bytes(kind):
        return name
    is_image = types.is_struct(kind) and any(field.name == "bytes" and are_bytes(field.type) for field in kind)
    return f"{name}.bytes" if is_image else None


class _Rows:
    """The rows of a table, read in order; whoever asks for one that is long gone has its group read again.

    Args:
        table: the file.
        column: of bytes.
        lengths: rows of each row group.
    """

    def __init__(self, table: Path, column: str, lengths: list[int]) -> None:
        self._table, self._column, self._lengths = table, column, lengths
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, list[bytes | None]] = OrderedDict()
        self._next, self._stream = _IDLE, iter(())

    def open(self, row: int) -> BinaryIO:
        """The image file of a row."""
        with self._lock:
            content = self._together(row // _TOGETHER)[row % _TOGETHER]
        if content is None:
            raise UnfitError("holds no bytes of an image: leave the row out", "missing")
        return io.BytesIO(content)

    def _together(self, number: int) -> list[bytes | None]:
        if number not in self._kept and not self._next <= number < self._next + _KEPT:
            self._stream, self._next = self._from(number * _TOGETHER), number
        while number not in self._kept:
            try:
                self._kept[self._next] = list(islice(self._stream, _TOGETHER))
            except Exception as error:  # damaged files make readers raise nearly anything
                self._stream, self._next = iter(()), _IDLE
                raise UnfitError(f"cannot be read from its table, {in_words(error)}: copy it again") from error
            self._next += 1
            if self._next * _TOGETHER >= sum(self._lengths):
                self._stream, self._next = iter(()), _IDLE  # closes the file
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return self._kept[number]

    def _from(self, row: int) -> Iterator[bytes | None]:
        """The rows from one on, from the beginning of its row group."""
        group, before = 0, 0
        while row >= before + self._lengths[group]:
            group, before = group + 1, before + self._lengths[group]
        return islice(self._values(range(group, len(self._lengths))), row - before, None)

    def _values(self, groups: range) -> Iterator[bytes | None]:
        parquet = _library()
        with parquet.ParquetFile(self._table, buffer_size=_AHEAD) as file:
            read = file.iter_batches(_TOGETHER, [*groups], [self._column], use_threads=False)
            for batch in read:
                values = (value.as_py() for value in batch.column(0))
                yield from (value["bytes"] if isinstance(value, dict) else value for value in values)
