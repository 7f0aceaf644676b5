"""Writes docs/api.md from signatures and docstrings: python docs/make_api.py."""

import importlib
import inspect
import re
import textwrap
from pathlib import Path

PAGE = Path(__file__).with_name("api.md")
HEAD = """# Public names

Written by `python docs/make_api.py` from the docstrings, whose examples are run as tests: edit those.
What else the modules hold may change without notice.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(_module(name) for name in ("iet_agc", "iet_agc.metrics"))])


def _module(name: str) -> str:
    module = importlib.import_module(name)
    public = [each for each in module.__all__ if not each.startswith("__")]
    return "\n".join([f"## `{name}`\n", *(_entry(each, getattr(module, each)) for each in public)])


def _entry(name: str, value: object) -> str:
    if not callable(value):
        return f"### `{name} = {value!r}`\n"
    text = [f"### `{name}`\n", _code(f"{name}{_signature(value)}", "python"), _code(_told(value), "text")]
    for method, function in vars(value).items() if inspect.isclass(value) else ():
        if isinstance(function, property) and not method.startswith("_"):
            text += [f"#### `{name}.{method}`\n", _code(_told(function), "text")]
        if not method.startswith("_") and inspect.isfunction(function) and method != "extra_repr":
            text += [f"#### `{name}.{method}`\n", _code(f"{method}{_signature(function)}", "python")]
            text += [_code(_told(function), "text")]
    return "\n".join(text)


def _signature(value: object) -> str:
    """Annotations as a reader would write them; defaults that are functions by their names only."""
    assert callable(value)
    if inspect.isclass(value) and issubclass(value, Exception):
        return "(message)"
    found = str(inspect.signature(value))
    for long, short in (("torch.Tensor", "Tensor"), ("collections.abc.", ""), ("torch._tensor.", "")):
        found = found.replace(long, short)
    found = re.sub(r"(?<=: )'([^']+)'|(?<=-> )'([^']+)'", r"\1\2", found)  # annotations that are not evaluated
    return re.sub(r"<function .*? at 0x\w+>", "...", found)


def _told(value: object) -> str:
    return inspect.getdoc(value) or ""


def _code(text: str, language: str) -> str:
    return f"```{language}\n{textwrap.dedent(text)}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
