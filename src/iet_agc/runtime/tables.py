"""Tables as CSV: rows with a header, lines that end alike everywhere."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from iet_agc.runtime.reading import read_text

__all__ = ["read_table", "table_text"]

#: One training image may have been copied by every sample, and a cell of a table names them all.
_LONGEST_CELL = 2**31 - 1


def table_text(rows: Sequence[Mapping[str, object]], columns: Iterable[str] | None = None) -> str:
    """Rows as CSV; floats to their last digit, nothing where a value is None.

    Args:
        rows: of the same columns.
        columns: of the header; by default those of the first row.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0] if columns is None else columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows of a table; see `read_text`.

    Raises:
        csv.Error: it is none.
    """
    csv.field_size_limit(_LONGEST_CELL)
    return list(csv.DictReader(io.StringIO(read_text(file), newline="")))
