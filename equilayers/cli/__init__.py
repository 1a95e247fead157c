r"""The commands `equilayers check`, of models (invariant? which layer lost it?) and of data, `profile`, `calibrate`.

Exit codes, for a CI job: 0 invariant (equivariant, for images and regular features); 1 not, or random; 2 bad input, one
line on standard error says why; 3 nothing shown: it says nearly the same of everything; 130 interrupted. Of data: 0
nothing against one of the groups or more; 1 symmetric under none.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from equilayers._files import write_text
from equilayers.cli._arguments import DataSettings, Settings, parse
from equilayers.cli._calibrate import run_calibrate
from equilayers.cli._data import inputs
from equilayers.cli._html import page
from equilayers.cli._load import importing_from_here, load_model, load_weights
from equilayers.cli._measure import BAD_INPUT, INTERRUPTED, Report, examine
from equilayers.cli._of_data import check_data
from equilayers.cli._profile import run_profile
from equilayers.cli._show import as_json, show
from equilayers.cli._subject import Subject, prepared
from equilayers.cli._words import CALLER, COMMAND, BadInputError, clean, printable, said

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    r"""Run the command with these arguments, or those of the process, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    with _clean_warnings(), importing_from_here():
        try:
            try:
                COMMAND.set(f"equilayers {arguments[0]}" if arguments[:1] in (["profile"], ["calibrate"]) else CALLER)
                settings = parse(arguments)
            except SystemExit:  # --help and --version have said what they had to
                return 0
            if isinstance(settings, DataSettings):
                return _check_data(settings)
            if isinstance(settings, Settings):
                return _check(settings)
            return run_calibrate(settings) if settings.command == "calibrate" else run_profile(settings)
        except KeyboardInterrupt:
            return INTERRUPTED
        except BaseException as error:  # whatever a model raises, sys.exit included: a CI job reads one line
            if "--traceback" in arguments:
                _complain(*traceback.format_exc().splitlines())
            _complain(clean(_why(error)))
            return BAD_INPUT


def _why(error: BaseException) -> str:
    r"""What is wrong, in the form of every message of this library."""
    if isinstance(error, BadInputError):
        return str(error)
    return f"{COMMAND.get()}: expected the command to run to its end, got {said(error)}. Add --traceback to see where."


def _check(settings: Settings) -> int:
    with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]):  # what the model prints
        torch.manual_seed(settings.seed)
        model = load_model(settings.target)
        if settings.weights is not None:
            load_weights(model, settings.weights)
        subject = prepared(settings, model, inputs(settings))
        report = examine(subject)
    with _until_read():
        show(report)
    _write(settings, report, subject)
    return report.code


def _check_data(settings: DataSettings) -> int:
    found = check_data(settings)
    with _until_read():
        print(found)
    if settings.json is not None:
        write_text(settings.json, found.json())
    return found.code


@contextlib.contextmanager
def _until_read() -> Iterator[None]:
    r"""Printing that ends quietly where whoever reads has read enough."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write(settings: Settings, report: Report, subject: Subject) -> None:
    if settings.json is not None:
        write_text(settings.json, as_json(report))
    if settings.html is not None:
        with contextlib.redirect_stdout(sys.stderr):
            write_text(settings.html, page(report, subject))


def _complain(*lines: str) -> None:
    r"""Lines on standard error, in characters that it has."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    for line in lines:
        print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr)


@contextlib.contextmanager
def _clean_warnings() -> Iterator[None]:
    r"""Warnings in one line each, without anything a terminal would act on."""

    def say(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        _complain(clean(f"{category.__name__}: {message}"))

    with warnings.catch_warnings():
        warnings.showwarning = say
        yield
