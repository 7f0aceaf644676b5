"""The wheel works away from the checkout: presets and template are in it, and it says what it needs."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import iet_agc
from iet_agc.config.presets import preset_names

CHECKOUT = Path(__file__).parents[1]
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]


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
            str(file.relative_to(root))
            for file in root.rglob("*")
            if file.suffix in {".py", ".toml", ".j2", ".js", ".typed"}
        }

    assert content(installed / "iet_agc") == content(CHECKOUT / "src" / "iet_agc")
    assert {"reporting/templates/audit_page.html.j2", "reporting/templates/galleries.js"} <= content(
        installed / "iet_agc"
    )


def test_the_licence_comes_along(installed):
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))


def test_the_version_stands_in_one_place(installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    assert f"\nVersion: {iet_agc.__version__}\n" in metadata.read_text("utf-8")
    assert f"\nversion: {iet_agc.__version__}\n" in (CHECKOUT / "CITATION.cff").read_text("utf-8")
    assert f"\n## {iet_agc.__version__} " in (CHECKOUT / "CHANGELOG.md").read_text("utf-8")


def test_lowest_versions_are_those_of_every_dependency():
    done = subprocess.run([sys.executable, CHECKOUT / ".ci/lowest.py"], capture_output=True, text=True, check=True)
    extras = PROJECT["optional-dependencies"]
    wanted = {*PROJECT["dependencies"], *(one for name in extras if name != "dev" for one in extras[name])}
    assert "torch==2.8" in done.stdout.splitlines()
    assert {one.replace(">=", "==") for one in wanted} == {*done.stdout.splitlines()}
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", one) for one in done.stdout.splitlines())


def required(source):
    """Package and extra of every call of `runtime.extras.require`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require":
            package, extra, *_ = [ast.literal_eval(one) for one in node.args]
            yield package, extra


def test_the_extra_that_is_named_brings_the_package():
    extras = PROJECT["optional-dependencies"]
    sources = [file.read_text("utf-8") for file in (CHECKOUT / "src").rglob("*.py")]
    named = {one for source in sources for one in required(source)}
    assert {"datasets", "opacus", "peft", "transformers"} <= {package for package, _ in named}
    for package, extra in named:
        assert package in {re.split("[<>=]", one)[0] for one in extras[extra]}


def test_every_extra_is_explained():
    table = (CHECKOUT / "docs/index.md").read_text("utf-8").split("## Extras")[1].split("\n\n")[2]
    assert {*re.findall("`(.+?)`", "".join(row.split("|")[1] for row in table.splitlines()))} == {
        *PROJECT["optional-dependencies"]
    }


def texts_opened(source):
    """Lines on which a text file is opened, read or written; `Image.open` and the like are given something to open."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = {one.arg for one in node.keywords}
        modes = [one.value for one in node.args if isinstance(one, ast.Constant)]
        opens = name == "open" and (len(modes) == len(node.args) or isinstance(node.func, ast.Name))
        ours = name == "read_text" and isinstance(node.func, ast.Name)  # of `runtime.reading`: UTF-8
        text = (name in ("read_text", "write_text") and not ours) or (
            opens and not any("b" in str(mode) for mode in modes)
        )
        if (text or "text" in named) and "encoding" not in named:
            yield node.lineno


def test_text_files_are_opened_with_an_encoding():
    """What a person's locale says is not what is in them."""
    assert list(texts_opened("open(x)\nx.open()\nx.open('a')\nx.read_text()\nrun(y, text=True)")) == [1, 2, 3, 4, 5]
    assert not [*texts_opened("open(x, 'rb')\nx.open('wb')\nImage.open(x)\nx.read_text(encoding='utf-8')")]
    files = [file for folder in ("src", "examples", "benchmarks") for file in (CHECKOUT / folder).rglob("*.py")]
    assert len(files) > 50
    found = [f"{file.relative_to(CHECKOUT)}:{n}" for file in files for n in texts_opened(file.read_text("utf-8"))]
    assert found == []
