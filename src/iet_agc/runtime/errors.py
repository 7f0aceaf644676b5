"""Errors that are told in one line, and what a program exits with. Any other error is ours, and keeps its traceback."""

import difflib
import json
import re
from collections.abc import Sequence

__all__ = ["CheckFailed", "UserError", "did_you_mean", "in_words", "one_line"]

#: A message has at most so many characters, and an unbroken word in it: paths are told whole, values need not be.
_LONGEST_MESSAGE, _LONGEST_WORD = 800, 240


class UserError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and how to mend it. Exit status 2.

    A plain `ValueError` is a broken contract between functions, so a mistake in a program: ours, or that of who calls
    the library.

    Attributes:
        field: the argument or setting to change, such as "held_out" or "data.num_train", where it is one; the command
            line names its option.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class CheckFailed(ArithmeticError):  # noqa: N818 (what happened, not what was raised)
    """The work was done as asked, and what came out is not acceptable, such as losses that are not finite. Status 1."""


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """The end of a message about an unknown name: the known one that may be meant, or nothing."""
    misplaced = [known for known in names if known.split(".")[-1] == name.split(".")[-1]]
    close = misplaced or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def one_line(message: str) -> str:
    """A message on one printable line; values that make it long are told by their beginning and their end."""
    words = (_shortened(word, _LONGEST_WORD) for word in message.split())
    return _shortened("".join(map(_printable, " ".join(words))), _LONGEST_MESSAGE)


def in_words(error: BaseException) -> str:
    """What an error of any library says about a file, without its last full stop, and without Python's own words."""
    match error:
        case UnicodeDecodeError():
            return f"it is not UTF-8, at byte {error.start}"
        case json.JSONDecodeError():
            return f"it is not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        case RecursionError():
            return "it is nested too deeply"
        case MemoryError():
            return "it needs more memory than there is"
        case KeyError():
            return f"it lacks {error.args[0]!r}" if error.args else "it lacks an entry"
        case TypeError() | AttributeError() | LookupError():
            return "it holds a value of the wrong kind"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    plain = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", lines[0]) if lines else "it is damaged"
    return one_line(plain).rstrip(".")


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else ascii(letter)[1:-1]


def _shortened(text: str, most: int) -> str:
    """A text, or its beginning and its end."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]}…{text[1 - most // 3 :]}"
