r"""What the command says: no to bad input, and nothing from outside as it came."""

from __future__ import annotations

from contextvars import ContextVar
from typing import NoReturn

from equilayers._checks import refuse

CALLER = "equilayers check"
COMMAND = ContextVar("COMMAND", default=CALLER)  # the one that runs
EXTRA = "pip install 'equilayers[check]'"
LONGEST = 400  # characters of a message from outside


class BadInputError(Exception):
    r"""What was asked for cannot be checked; one line says why."""


def bad(expected: str, got: object, hint: str) -> NoReturn:
    r"""Raise `BadInputError` in the form of every message of this library."""
    refuse(COMMAND.get(), expected, got, hint, BadInputError)


def printable(text: str) -> str:
    r"""Words from outside as characters that a terminal does nothing but print.

    What is not printable (control and formatting characters, such as those that change colours or directions) is
    written as an escape, such as \x1b.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def clean(text: object) -> str:
    r"""Words from outside, printable and in one line."""
    return printable(" ".join(str(text).split()))


def said(error: BaseException) -> str:
    r"""An exception in one line."""
    try:
        words = " ".join(str(error).split()).rstrip(".")
    except Exception:  # it comes from outside, and so does its __str__
        words = ""
    words = words if len(words) <= LONGEST else f"{words[:LONGEST]} ..."
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
