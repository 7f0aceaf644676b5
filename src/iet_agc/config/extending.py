"""`extends` at the top of a settings file or a board: what it leaves out is taken from another one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from iet_agc.runtime.errors import UserError
from iet_agc.runtime.reading import read_toml

__all__ = ["merged", "read_base"]


def read_base(
    base: object, files: Sequence[Path], packaged: Callable[[str], dict[str, Any]]
) -> tuple[dict[str, Any], list[Path]]:
    """What is extended, as it stands there.

    Args:
        base: the value of `extends`: a name of the package's, or, in a file, the path of another one relative to it.
        files: where it stands, and which files came to it by extending one another, the first one first; none of what
            comes with the package, which extends by name only.
        packaged: the content of a name.

    Returns:
        The content, and `files` for what that extends in turn.

    Raises:
        UserError: a file that is not there, or that extends itself by a detour; and whatever `packaged` raises.
    """
    if not (files and isinstance(base, str) and base.endswith(".toml")):
        return packaged(str(base)), []
    file = files[-1].parent / base
    if any(file.resolve() == one.resolve() for one in files):
        raise UserError(f"extends {base!r}, and so, by that, itself: leave out one of the two")
    try:
        return read_toml(file), [*files, file]
    except UserError as error:
        raise UserError(f"extends {base!r}: {error}") from None


def merged(below: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Content on top of what it extends: tables are merged, at any depth, and everything else is replaced."""
    tables = {
        name: merged(below[name], value)
        for name, value in content.items()
        if isinstance(value, dict) and isinstance(below.get(name), dict)
    }
    return below | content | tables
