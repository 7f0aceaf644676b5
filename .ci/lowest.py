"""Prints the lowest version of every dependency that pyproject.toml promises, as constraints for pip."""

import re
import tomllib
from pathlib import Path


def lowest(project: dict) -> list[str]:
    """ "torch>=2.8" of the dependencies and of all extras but `dev`, as "torch==2.8"."""
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(one for extra, those in extras.items() if extra != "dev" for one in those)]
    return [re.sub(">=", "==", one) for one in wanted]


if __name__ == "__main__":
    content = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    print("\n".join(lowest(content["project"])))
