"""Packages that come with an extra, such as `pip install 'iet-agc[text]'`."""

import importlib.util

from iet_agc.runtime.errors import UserError

__all__ = ["require"]


def require(package: str, extra: str, purpose: str, field: str | None = None) -> None:
    """Refuse to go on without a package; nothing is loaded.

    Args:
        package: as Python imports it.
        extra: of ours, by which pip installs it.
        purpose: what needs it, such as "the CLIP score".
        field: the argument or setting that asked for it.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{purpose} needs the package {package}: pip install 'iet-agc[{extra}]'", field)
