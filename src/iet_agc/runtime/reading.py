"""Text, JSON and TOML from files that anyone may have written: read with limits, or refused in one line.

Only regular files are opened (a pipe would be waited for, a device never ends). JSON is that of RFC 8259: no NaN, no
name twice in an object, numbers that 64 bits hold, text that UTF-8 can say, and no nesting that exhausts the stack of
whoever walks it.
"""

import json
import math
import os
import re
import stat
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from iet_agc.runtime.errors import UserError, in_words
from iet_agc.runtime.files import shown

__all__ = [
    "check_regular",
    "check_regular_below",
    "decoded_text",
    "open_file",
    "parse_json",
    "parse_toml",
    "read_bytes",
    "read_json",
    "read_object",
    "read_text",
    "read_toml",
]

#: Bytes of a file of text.
_LARGEST = 2**28

#: Levels of lists and objects; ours have fewer than ten.
_DEEPEST = 64

_RESTORE = "restore it from a copy"

#: Text that no file or page could take: halves of characters, and the end of C's strings.
_UNFIT = re.compile("[\0\ud800-\udfff]")
_ESCAPED_UNFIT = re.compile(r"\\u(?:0000|d[89a-f])", re.IGNORECASE)


def check_regular(file: Path) -> None:
    """Refuse what is not a file whose end comes.

    Raises:
        UserError: it is not there, or a folder, a pipe, a socket or a device.
    """
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        raise UserError(_unreadable(file, error)) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        raise UserError(f"{shown(file)} is {kind}, not a file")


def check_regular_below(folder: Path) -> None:
    """Refuse a folder, for a library that opens its files, where one of them is not a file whose end comes.

    Raises:
        UserError: see `check_regular`.
    """
    for path in folder.rglob("*"):
        if not path.is_dir():
            check_regular(path)


def open_file(file: Path) -> BinaryIO:
    """Open a regular file to read its bytes.

    Raises:
        UserError: see `check_regular`, or it cannot be opened.
    """
    check_regular(file)
    try:
        return file.open("rb")
    except OSError as error:
        raise UserError(_unreadable(file, error)) from None


def read_bytes(file: Path, most: int = _LARGEST) -> bytes:
    """The content of a regular file of at most so many bytes.

    Raises:
        UserError: see `open_file`, or it is larger.
    """
    try:
        with open_file(file) as stream:
            content = stream.read(most + 1)
    except OSError as error:
        raise UserError(_unreadable(file, error)) from None
    if len(content) > most:
        raise UserError(f"{shown(file)} is larger than {most // 2**20} MiB")
    return content


def read_text(file: Path, mend: str = "save it as UTF-8") -> str:
    """A text file in UTF-8, without the mark that some editors put before it.

    Raises:
        UserError: see `read_bytes`, or it is not UTF-8; what is to be done then.
    """
    return decoded_text(read_bytes(file), shown(file), mend)


def decoded_text(content: bytes, where: str, mend: str = "save it as UTF-8") -> str:
    """Text in UTF-8 from anywhere; see `read_text`.

    Args:
        content: all of it.
        where: it stands, for people.
        mend: what is to be done where it is not UTF-8.

    Raises:
        UserError: it is not.
    """
    return _utf8(content, where, mend).removeprefix("\ufeff")


def _utf8(content: bytes, where: str, mend: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8, at byte {error.start}: {mend}") from None


def read_json(file: Path, mend: str = _RESTORE, finite: bool = True) -> object:
    """The content of a JSON file.

    Args:
        file: a regular one.
        mend: what is to be done where it is damaged.
        finite: refuse NaN and infinity, which are no JSON; libraries write them, though.

    Raises:
        UserError: see `read_text` and `parse_json`.
    """
    return parse_json(read_bytes(file), shown(file), mend, finite)


def read_object(file: Path, mend: str = _RESTORE, finite: bool = True) -> dict[str, Any]:
    """The content of a JSON file that holds one object; see `read_json`."""
    content = read_json(file, mend, finite)
    if not isinstance(content, dict):
        raise UserError(f"{shown(file)} is damaged, it holds no JSON object: {mend}")
    return content


def parse_json(content: bytes, where: str, mend: str = _RESTORE, finite: bool = True) -> object:
    """JSON from anywhere, see the head of this file.

    Args:
        content: UTF-8; a byte order mark is passed over.
        where: it stands, for people.
        mend: what is to be done where it is damaged.
        finite: see `read_json`.

    Raises:
        UserError: it is none.
    """
    text = _utf8(content, where, mend).removeprefix("\ufeff")
    try:
        found = json.loads(
            text,
            object_pairs_hook=_once,
            parse_int=_integer,
            parse_float=_finite if finite else None,
            parse_constant=_refuse if finite else None,
        )
        _check(found, bool(_ESCAPED_UNFIT.search(text)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged, {in_words(error)}: {mend}") from None
    return found


def read_toml(file: Path, mend: str = "mend it") -> dict[str, Any]:
    """The content of a TOML file; see `parse_toml`."""
    return parse_toml(read_text(file), shown(file), mend)


def parse_toml(text: str, where: str, mend: str = "mend it") -> dict[str, Any]:
    """TOML from anywhere, with the limits of JSON.

    Raises:
        UserError: it is none; see `parse_json` for the arguments.
    """
    try:
        found = tomllib.loads(text)
        _check(found, suspect=True)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged, {in_words(error)}: {mend}") from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(content := dict(pairs)) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise UserError(f"{shown(twice)} stands there more than once")
    return content


def _refuse(constant: str) -> NoReturn:
    raise UserError(f"{constant} stands where a number belongs")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise UserError(f"{text} is no finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (number := int(text)) < 2**63:
        raise UserError(f"{text} is beyond 64 bits")
    return number


def _check(content: object, suspect: bool) -> None:
    """Refuse content that is nested too deeply; where it is `suspect`, look at every value as well."""
    level: list[Any] = [[content]]
    for _ in range(_DEEPEST):
        inner = [value for each in level for value in _values(each)]
        if suspect:
            _check_values(inner)
        level = [value for value in inner if isinstance(value, dict | list)]
        if not level:
            return
    raise RecursionError


def _values(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return [*node, *node.values()]
    return node if isinstance(node, list) else ()


def _check_values(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, str) and (odd := _UNFIT.search(value)):
            raise UserError(f"{odd[0]!a} stands in a text")
        if isinstance(value, float):
            _finite(repr(value))
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"a number of {value.bit_length()} bits is beyond 64")
        elif not isinstance(value, str | int | dict | list | None):
            raise UserError("dates and times are no values here")


def _unreadable(file: Path, error: Exception) -> str:
    match error:
        case FileNotFoundError():
            return f"{shown(file)} is not there"
        case OSError():
            return f"{shown(file)} cannot be read: {error.strerror}"
        case _:
            return f"{shown(file)} cannot be the name of a file"
