"""Numbers about generated images; needs no model and no run.

The names are loaded when asked for, so that pages can use `iet_agc.metrics.intervals` without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iet_agc.metrics.memorization import CUTS, distance_ratio, memorization_quantity
    from iet_agc.metrics.neighbors import nearest

__all__ = ["CUTS", "distance_ratio", "memorization_quantity", "nearest"]

_HOMES = dict.fromkeys(("CUTS", "distance_ratio", "memorization_quantity"), "memorization") | {"nearest": "neighbors"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
