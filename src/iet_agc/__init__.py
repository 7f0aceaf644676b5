"""Train image diffusion models that do not reproduce their training images, and prove it.

The pieces that other programs use, loaded when asked for:

    from iet_agc import AntiGradientControl, mean_of_kept, partition, average_states
    from iet_agc.metrics import nearest, distance_ratio, memorization_quantity
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iet_agc.method.agc import AntiGradientControl, mean_of_kept
    from iet_agc.method.averaging import average_states
    from iet_agc.method.sharding import partition

__all__ = ["AntiGradientControl", "__version__", "average_states", "mean_of_kept", "partition"]

#: The one place where the version stands: pyproject.toml reads it here.
__version__ = "0.1.0"

_HOMES = {
    "AntiGradientControl": "method.agc",
    "average_states": "method.averaging",
    "mean_of_kept": "method.agc",
    "partition": "method.sharding",
}


def __getattr__(name: str) -> Any:  # torch takes seconds to import; `iet-agc --help` must not wait for it
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
