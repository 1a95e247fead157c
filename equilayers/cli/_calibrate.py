r"""The command `equilayers calibrate`: which algorithm is fastest here, measured and kept for `algorithm="auto"`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from equilayers.cli._arguments import device_of, number, whole
from equilayers.cli._words import bad, clean, said
from equilayers.functional.calibration import calibrate, costs_file, device_name


def run_calibrate(args: argparse.Namespace) -> int:
    r"""Measure, keep, and say where."""
    device, seconds = device_of(args.device), max(1e-3, number("--seconds", args.seconds, "90"))
    if device.type not in ("cpu", "cuda"):
        bad("--device to be cpu or cuda", repr(args.device), "Other devices are not timed yet.")
    counts = _threads(args.threads) if device.type == "cpu" else [torch.get_num_threads()]
    path = _writable(device)
    print(clean(f"{device_name(device)}, torch {torch.__version__}"))
    for count in counts:
        what = f"{count} thread{'s' * (count > 1)}" if device.type == "cpu" else "its own threads"
        with torch.random.fork_rng(devices=[]), _progress(what) as progress:
            found = calibrate(device, count, seconds / len(counts), progress)
        print(f"  {what}: {found.timings} timings, half of them within {100 * found.error:.0f} % of the model")
    print(clean(f"Kept in {path}. EQUILAYERS_COSTS=off ignores it."))
    return 0


def _threads(given: list[str] | None) -> list[int]:
    r"""Those that were asked for, otherwise one, and as many as torch takes."""
    most = os.cpu_count() or 1
    counts = [whole("--threads", text, 1) for text in given or ()]
    for count in counts:
        if count > most:
            bad(f"--threads to be at most the {most} processors here", repr(str(count)), f"Pass {most}, for example.")
    return sorted(set(counts or [1, torch.get_num_threads()]))


def _writable(device: torch.device) -> object:
    r"""The file, before anything is measured."""
    try:
        path = costs_file(device)
        if path is None:
            bad("calibrations to be kept", "EQUILAYERS_COSTS=off", "Unset it, or set it to a folder.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise PermissionError(f"{path} cannot be written to")
    except (OSError, RuntimeError, ImportError) as error:
        bad("a folder to keep calibrations in", said(error), "Set EQUILAYERS_COSTS to one that can be written to.")
    return path


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[float], Any]]:
    r"""A bar on a terminal where rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda _: None
        return
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)
