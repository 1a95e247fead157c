r"""What the commands have in common: options, required packages, and where they print."""

import argparse
import importlib.util
import platform
from pathlib import Path

import torch
from rich.console import Console

from baselines.common.data import DATASETS


def add_training_arguments(
    parser: argparse.ArgumentParser, command: str, *, epochs: str | None = "the protocol's", data: bool = True
) -> None:
    r"""Add the options of commands that train: `--data`, `--data-dir`, `--epochs`, `--out` and `--resume`."""
    if data:
        parser.add_argument("--data", choices=DATASETS, default="digits", help="data set (default: digits, built in)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the idx files; else EQUILAYERS_DATA")
    if epochs is not None:
        parser.add_argument("--epochs", type=positive, help=f"passes over the training split (default: {epochs})")
    parser.add_argument("--out", type=Path, default=Path("runs", command), help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="keep what is finished in --out")


def require(caller: str, *modules: str) -> None:
    r"""ImportError where a package of the extra is not installed, before hours are spent on what needs it."""
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
    return {"processor": processor(), "python": platform.python_version(), "torch": torch.__version__}


def processor() -> str:
    r"""The model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
