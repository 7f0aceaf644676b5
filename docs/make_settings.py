"""Writes docs/reference/settings.md from the settings' own descriptions: python docs/make_settings.py."""

from itertools import groupby
from pathlib import Path

from iet_agc.config.settings import Settings, documented

PAGE = Path(__file__).parent / "reference" / "settings.md"
HEAD = """# Settings

Written by `python docs/make_settings.py` from the descriptions in `iet_agc.config`: edit those.

Each has a name. In a TOML file it stands in the table of its section; on the command line it is `--section.name VALUE`.
After the name: its value where nothing sets it. `iet-agc train PRESET --help` shows those of a preset.
"""


def page() -> str:
    """The whole page."""
    settings = documented(Settings())  # pyright: ignore[reportCallIssue]
    parts = [HEAD]
    for section, rows in groupby(settings, key=lambda row: row[0].rpartition(".")[0]):
        lines = [f"- **`{name}`** = `{_shown(value)}`: {meaning}" for name, value, meaning in rows]
        parts.append("\n".join([f"## {section}\n" if section else "", *lines, ""]))
    return "\n".join(parts)


def _shown(value: object) -> str:
    """A value as a person writes it in TOML, or "none"."""
    match value:
        case None | "":
            return "none"
        case bool():
            return f"{value}".lower()
        case list() | tuple():
            return f"[{', '.join(map(_shown, value))}]"
        case _:
            return f"{value}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
