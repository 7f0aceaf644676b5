"""What is told in one line, and what keeps its traceback."""

import pytest

from iet_agc import cli
from iet_agc.runtime.errors import CheckFailed, UserError, in_words
from tests.commands import call


def raising(monkeypatch, error):
    def run(arguments):
        raise error

    monkeypatch.setattr(cli, "_presets", run)


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("sets\nto mend"), 2), (OSError("disk"), 2), (CheckFailed("nan"), 1)]
)
def test_what_a_user_can_mend_is_one_line(capsys, monkeypatch, error, status):
    raising(monkeypatch, error)
    assert call(capsys, "presets") == (status, "", f"iet-agc: {' '.join(str(error).split())}\n")


@pytest.mark.parametrize("error", [ValueError("shapes"), ZeroDivisionError(), KeyError("count"), RecursionError()])
def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch, error):
    raising(monkeypatch, error)
    with pytest.raises(type(error)):
        cli.main(["presets"])


def test_callers_of_the_library_may_catch_what_they_did_before():
    assert issubclass(UserError, ValueError)
    assert issubclass(CheckFailed, ArithmeticError)


def test_classes_are_told_by_their_names_alone() -> None:
    error = NotImplementedError("<script> is not implemented for <class 'some.where.DDIMScheduler'>.")
    assert in_words(error) == "<script> is not implemented for DDIMScheduler"
