"""What becomes of results and words where nobody reads them, a disk is full or a stream is closed: real processes."""

import json
import os
import subprocess
import sys

import pytest

from iet_agc.runtime import streams

PRESETS = f"{sys.executable} -m iet_agc presets"
TRAIN_HELP = f"{sys.executable} -m iet_agc train digits-iet-agc --help"
MISTAKE = f"{sys.executable} -m iet_agc audit --train digits --samples nowhere --out a --memory 0"
FULL = "iet-agc: the result cannot be written to standard output: No space left on device\n"

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


def shell(command: str, **environment: str) -> tuple[int, str, str]:
    """Exit status of the first program of a pipe, stdout and stderr."""
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def code(status: int, result: str = "'x' * 200_000") -> str:
    """A program that prints a result as a verb does, with the status of the verb, and words before and after it."""
    body = (
        "import sys; from iet_agc.runtime.streams import kept_apart, put\n"
        "with kept_apart():\n"
        "    print('before', file=sys.stderr)\n"
        f"    status = put({result}, {status})\n"
        "    print('after', file=sys.stderr)\n"
        "    sys.exit(status)"
    )
    return f'{sys.executable} -c "{body}"'


@pytest.mark.parametrize("status", [0, 1])
def test_a_reader_that_goes_changes_no_status(status: int) -> None:
    assert shell(f"{code(status)} | true") == (status, "", "before\nafter\n")
    assert shell(f"{code(status, repr('short'))} | true") == (status, "", "before\nafter\n")


@needs_full
@pytest.mark.parametrize(("status", "found"), [(0, 2), (1, 1)])
@pytest.mark.parametrize("result", ["'short'", "'x' * 200_000"])
def test_a_full_disk_is_an_error_that_hides_no_failed_check(status: int, found: int, result: str) -> None:
    assert shell(f"{code(status, result)} > /dev/full") == (found, "", f"before\n{FULL}after\n")


@pytest.mark.parametrize("status", [0, 1])
def test_what_is_closed_gets_nothing_and_the_other_stream_no_more(status: int) -> None:
    assert shell(f"{code(status, repr('result'))} >&-") == (status, "", "before\nafter\n")
    assert shell(f"{code(status, repr('result'))} 2>&-") == (status, "result\n", "")
    assert shell(f"{code(status, repr('result'))} 0>&- >&- 2>&-") == (status, "", "")


def test_words_that_cannot_be_written_stop_nothing() -> None:
    for nowhere in ("2> >(true)", "2> /dev/full"):
        assert shell(f"{code(1, repr('result'))} {nowhere}")[:2] == (1, "result\n")


def test_the_command_line_prints_so() -> None:
    """Verbs, their help, and help on settings: a status of 120 or a traceback is what Python does by itself."""
    for command in (PRESETS, TRAIN_HELP, f"{sys.executable} -m iet_agc --help"):
        assert shell(f"{command} | true") == (0, "", "")
        if os.path.exists("/dev/full"):
            assert shell(f"{command} > /dev/full") == (2, "", FULL)


def test_mistakes_are_told_on_stderr_or_not_at_all() -> None:
    status, out, err = shell(MISTAKE)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert shell(f"{MISTAKE} 2>&-") == (2, "", "")
    assert shell(f"{sys.executable} -m iet_agc report nowhere 2>&-") == (2, "", "")


def test_a_locale_that_knows_ascii_only_prints_all() -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, out, err = shell(PRESETS, **plain)
    assert (status, err) == (0, "")
    assert json.loads(out) == json.loads(shell(PRESETS)[1])
    assert shell(TRAIN_HELP, **plain)[0] == 0
    assert shell(code(0, ascii("Fr\u00e9chet")), **plain)[1] == "Fr\\xe9chet\n"


def test_nothing_stays_behind_in_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with streams.kept_apart():
        assert sys.stderr.isatty() == before[1].isatty()
        assert streams.put("r\u00e9sum\u00e9", 1) == 1
        print("word", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("r\u00e9sum\u00e9\n", "word\n")
