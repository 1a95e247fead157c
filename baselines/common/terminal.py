r"""What the commands have in common: required packages, numbers of the command line, and where they print."""

from __future__ import annotations

import argparse
import importlib.util
import platform

import torch
from rich.console import Console


def require(caller: str, *modules: str) -> None:
    r"""Check that packages of the extra are installed, before hours are spent on what needs them.

    Raises:
        ImportError: one is not.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            hint = "pip install 'equilayers[study]'."
            raise ImportError(f"{caller}: expected {module} to be installed, got none. {hint}")


def positive(text: str) -> int:
    r"""An int >= 1, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an int >= 1, got {text!r}")
    return int(text)


def console_of_output() -> Console:
    r"""The terminal, or standard output as a file, which has no edge to wrap at."""
    console = Console()
    return console if console.is_terminal else Console(width=120, soft_wrap=True)


def this_machine() -> dict[str, str]:
    r"""Processor and versions, to stand beside results."""
    return {
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
