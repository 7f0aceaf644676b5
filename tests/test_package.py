"""The wheel works away from the checkout: presets and template are in it, and it says what it needs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from iet_agc.config import preset_names

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of the built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
    ]
    subprocess.run([*build, CHECKOUT], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_the_command_line_runs_from_the_wheel(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    where = subprocess.run(
        [sys.executable, "-c", "import iet_agc; print(iet_agc.__file__)"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.strip() == str(installed / "iet_agc" / "__init__.py")
    listed = subprocess.run(
        [sys.executable, "-m", "iet_agc", "presets"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(json.loads(listed.stdout)) == preset_names()


def test_nothing_is_left_out(installed):
    def content(root):
        return {
            str(file.relative_to(root)) for file in root.rglob("*") if file.suffix in {".py", ".toml", ".j2", ".typed"}
        }

    assert content(installed / "iet_agc") == content(CHECKOUT / "src" / "iet_agc")
    assert len([name for name in content(installed / "iet_agc") if name.endswith(".j2")]) == 2


def test_the_licence_comes_along(installed):
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))
