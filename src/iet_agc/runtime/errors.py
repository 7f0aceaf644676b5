"""Errors that are told in one line, and what a program exits with. Any other error is ours, and keeps its traceback."""

__all__ = ["CheckFailed", "UserError"]


class UserError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and how to mend it. Exit status 2.

    A plain `ValueError` is a broken contract between functions, so a mistake in a program: ours, or that of who calls
    the library.
    """


class CheckFailed(ArithmeticError):  # noqa: N818 (what happened, not what was raised)
    """The work was done as asked, and what came out is not acceptable, such as losses that are not finite. Status 1."""
