"""The examples, as modules."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(file):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location("example", file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
