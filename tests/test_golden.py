"""The command line's help and the page of public names, as they were last approved. `make golden` writes them again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loaded_files import load

CHECKOUT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
VERBS = (
    "demo",
    "init",
    "pipeline",
    "train",
    "curve",
    "sample",
    "audit",
    "check",
    "detect",
    "membership",
    "attack",
    "duplicates",
    "report",
    "compare",
    "bench",
    "card",
    "pack",
    "verify",
    "shards",
    "average",
    "presets",
    "completion",
)


def approved(file: Path, text: str) -> str:
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    return file.read_text(encoding="utf-8")


def words(text: str) -> list[str]:
    """Pythons differ in where they break lines, and, from 3.13 on, say the value of two spellings once."""
    return re.sub(r"(--[\w-]+) (\w+), (--[\w-]+ \2)", r"\1, \3", " ".join(text.split())).split()


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help(verb: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "iet_agc", *verb.split(), "--help"],
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert words(done.stdout) == words(approved(GOLDEN / f"{verb or 'iet-agc'}.txt", done.stdout))


def test_every_verb_has_its_golden_help() -> None:
    listed = re.search(r"^  VERB\n((?:    .*\n)+)", (GOLDEN / "iet-agc.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed is not None
    assert tuple(re.findall(r"^    (\w+)", listed[1], re.MULTILINE)) == VERBS


def test_words_are_the_same_of_every_python_and_differ_where_they_should() -> None:
    assert words("--a-b N, --a N  how\n many") == words("--a-b, --a N  how many")
    assert words("--a N  how many") != words("--a N  how few")


@pytest.mark.parametrize("maker", ["make_api", "make_settings"])
def test_pages_that_are_made_of_docstrings_and_descriptions_are_of_these(maker: str) -> None:
    module = load(CHECKOUT / "docs" / f"{maker}.py")
    assert module.page() == approved(module.PAGE, module.page())


def test_the_page_of_verbs_quotes_the_help_of_each() -> None:
    quoted = re.findall(
        r'^--8<-- "(.+)\.txt"$', (CHECKOUT / "docs/reference/command-line.md").read_text(), re.MULTILINE
    )
    assert quoted == ["iet-agc", *VERBS]


@pytest.mark.slow
def test_the_site_is_built_and_no_link_is_broken(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "site/guides/folder/index.html").exists()
