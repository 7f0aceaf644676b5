"""A result on standard output: lines for people on a terminal, JSON in UTF-8 anywhere else or where it is asked for."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

from iet_agc.cli import summary, terminal

__all__ = ["for_people", "presented"]


def for_people(arguments: Namespace) -> bool:
    """Whether a verb's result is told to people."""
    return terminal.is_terminal() and not arguments.json


def presented(arguments: Namespace, result: object) -> str:
    """What to print.

    Args:
        arguments: of the verb.
        result: of the verb, JSON values.
    """
    if not for_people(arguments):
        is_unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
        return json.dumps(result, indent=1, ensure_ascii=not is_unicode)
    lines = _LINES[arguments.verb](arguments, result)
    return "\n".join(terminal.coloured(lines) if terminal.has_colour() else lines)


def _sample(arguments: Namespace, result: Any) -> list[str]:
    from iet_agc.config.run_folder import is_run
    from iet_agc.training.identity import read_identity

    held_out = bool((read_identity(arguments.source) or {}).get("held_out")) if is_run(arguments.source) else None
    return summary.sample(result, str(arguments.source), held_out)


def _audit(arguments: Namespace, result: Any) -> list[str]:
    from iet_agc.reporting.audit_page import verdict

    return summary.audit(result, str(arguments.out), verdict(arguments.out))


def _check(arguments: Namespace, result: Any) -> list[str]:
    from iet_agc.metrics.gate import Gate

    found = Gate.model_validate_json(json.dumps(result))
    reasons = [f"{check.way}: {reason.sentence}" for check in found.checks for reason in check.reasons]
    return summary.check(result, str(arguments.audit), [*found.without_cut, *reasons])


def _presets(_: Namespace, result: dict[str, str]) -> list[str]:
    from iet_agc.config.presets import load_preset

    return summary.presets([_row(name, load_preset(name), result) for name in result], terminal.width())


def _row(name: str, settings: Any, presets: Iterable[str]) -> tuple[str, str, str, str, str]:
    """A preset's method is what its name says more than those that it stands beside, each of which has a default."""
    data, seen = settings.data.name, settings.total_steps * settings.train.batch_size
    begins = (each.removesuffix("default") for each in presets if each.endswith("-default"))
    method = name.removeprefix(max((each for each in begins if name.startswith(each)), key=len))
    return data, name, method, _short(seen), settings.description


def _short(count: int) -> str:
    """A count in three digits."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


_LINES: dict[str, Callable[[Namespace, Any], list[str]]] = {
    "demo": lambda _, result: summary.demo(result, terminal.width()),
    "init": lambda _, result: summary.init(result, terminal.width()),
    "pipeline": lambda given, result: summary.pipeline(result, str(given.out), given.preset),
    "train": lambda _, result: summary.train(result),
    "sample": _sample,
    "audit": _audit,
    "check": _check,
    "curve": lambda _, result: summary.curve(result),
    "card": lambda _, result: summary.card(result),
    "detect": lambda _, result: summary.detect(result, terminal.width()),
    "membership": lambda _, result: summary.membership(result),
    "attack": lambda _, result: summary.attack(result),
    "duplicates": lambda given, result: summary.duplicates(result, str(given.out)),
    "report": lambda _, result: summary.report(result),
    "compare": lambda _, result: summary.compare(result, terminal.width()),
    "bench": lambda _, result: summary.bench(result, terminal.width()),
    "pack": lambda _, result: summary.pack(result),
    "verify": lambda _, result: summary.verification(result),
    "shards": lambda _, result: summary.shards(result),
    "average": lambda _, result: summary.average(result),
    "presets": _presets,
}
