"""The help of `train`: every setting by section, with its value in a preset, what the preset changes marked."""

from collections.abc import Iterator
from itertools import groupby

from iet_agc.cli.terminal import wrapped
from iet_agc.config.section import Section
from iet_agc.config.settings import Settings, documented

__all__ = ["train_help"]

_OPTIONS = """\
Train a model; the same command again resumes. With method.rounds raised a run
goes on to more rounds, and one of one member and one round, with train.steps
raised, to more steps.

  --out RUN     folder of the run
  --init MODEL  train this model further: a run (its averaged weights go on as
                well), a diffusers pipeline folder, or a hub id such as
                google/ddpm-cifar10-32
  --json        print the result as JSON on a terminal as well
  --quiet       show no progress"""

#: Where meanings begin.
_INDENT = 6


def train_help(preset: str | None, settings: Settings, width: int) -> str:
    """The help's text.

    Args:
        preset: whose values are shown; None shows the defaults.
        settings: of it.
        width: columns to fill.
    """
    usage = f"usage: iet-agc train {preset or 'PRESET'} --out RUN [--init MODEL] [--section.name VALUE ...]"
    said = (
        f"Settings, with their values in {preset}; * marks those that it changes, with the default:"
        if preset
        else "Settings, with their defaults:"
    )
    return "\n".join([usage, "", _OPTIONS, "", said, *_sections(settings, width)])


def _sections(settings: Settings, width: int) -> Iterator[str]:
    defaults = {name: value for name, value, _ in documented(Settings())}
    of_sections = [entry for entry in documented(settings) if "." in entry[0]]
    for section, entries in groupby(of_sections, lambda entry: entry[0].partition(".")[0]):
        yield from ("", f"{section}: {_title(settings, section)}")
        for name, value, meaning in entries:
            changed = value != defaults[name]
            yield f"{'*' if changed else ' '} --{name} {_shown(value)}{f'  ({_shown(defaults[name])})' * changed}"
            yield wrapped(meaning, _INDENT, width)


def _title(settings: Settings, section: str) -> str:
    """The first line of what a section says of itself."""
    if section == "data":
        return "the images"
    part: Section = getattr(settings, section)
    first = (part.__doc__ or "").strip().splitlines()[0].rstrip(".")
    return f"{first[:1].lower()}{first[1:]}" if first[1:2].islower() else first


def _shown(value: object) -> str:
    """A value as it is written behind its option."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
