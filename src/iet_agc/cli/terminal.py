"""What a terminal can show: its width, colours, tables. Four escape codes and two loops need no library.

rich was weighed: one dependency more, and 0.06 s of imports where a wrong path is told in 0.1 s in all.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence

__all__ = ["coloured", "fitted", "is_terminal", "table", "width", "wrapped"]

#: Columns that are set at least, and at most: longer lines are hard to read.
_NARROWEST, _WIDEST = 60, 120

#: What a line is told by, and how it is shown.
_STYLES = {"next: ": "\x1b[36m", "warning": "\x1b[33m", "check failed": "\x1b[31m"}
_BOLD, _RED, _PLAIN = "\x1b[1m", "\x1b[1;31m", "\x1b[0m"


def is_terminal() -> bool:
    """Whether a person reads standard output."""
    return sys.stdout.isatty()


def has_colour() -> bool:
    """Whether to colour it: on a terminal, unless NO_COLOR is set to anything (no-color.org) or it is a dumb one."""
    return is_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Columns to fill; 80 where nobody knows how many there are."""
    return min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)


def coloured(lines: Sequence[str]) -> list[str]:
    """Lines for people in colour: the first one, which says how it went, and those that ask for something."""
    return [_styled(line, _BOLD if number == 0 else "") for number, line in enumerate(lines)]


def _styled(line: str, style: str) -> str:
    if style and line.lower().startswith(("copies found", "check failed")):
        style = _RED
    style = style or next((code for start, code in _STYLES.items() if line.lstrip().startswith(start)), "")
    return f"{style}{line}{_PLAIN}" if style and line else line


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> list[str]:
    """Rows under titles, columns two spaces apart; the last column is cut to `most` columns in all.

    Columns whose entries all begin with a digit, or are "-", stand to the right.
    """
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles))]
    right = [bool(rows) and all(_is_figure(row[column]) for row in rows) for column in range(len(titles))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.rjust(size) if to_the_right else cell.ljust(size)
            for cell, size, to_the_right in zip(row, widths, right, strict=True)
        ]
        return fitted("  ".join(cells).rstrip(), most)

    return [line(titles), *map(line, rows)]


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell == "-"


def fitted(text: str, most: int) -> str:
    """A text on at most so many columns, with an ellipsis where it was cut."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def wrapped(text: str, indent: int, most: int) -> str:
    """A text in lines of at most `most` columns, each after `indent` spaces."""
    space = " " * indent
    return textwrap.fill(
        text, most, initial_indent=space, subsequent_indent=space, break_long_words=False, break_on_hyphens=False
    )
