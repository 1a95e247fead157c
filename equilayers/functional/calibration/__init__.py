r"""The constants of the cost model, measured on this machine: `_cases` has what is timed, `_fit` what comes of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from equilayers.functional._convolution.dispatch import choose_algorithm
from equilayers.functional._costs_file import costs_path, full_name, write_costs
from equilayers.functional._machine import Machine, machine_of
from equilayers.functional.calibration._cases import Case
from equilayers.functional.calibration._fit import Sample, cases, errors, fit, samples, timings
from equilayers.functional.cost import forget_choices

SEED = 1

__all__ = ["Calibrated", "Case", "calibrate", "cases", "costs_file", "device_name", "is_calibrated", "timings"]


class Calibrated(NamedTuple):
    r"""What came of a calibration: timings taken, their median error by the model, and where it is kept."""

    timings: int
    error: float
    path: Path


def calibrate(
    device: torch.device, threads: int, seconds: float, progress: Callable[[float], object], seed: int = SEED
) -> Calibrated:
    r"""Measure a device for so many seconds, with so many threads of torch, and keep what came of it.

    Raises:
        OSError: the folder cannot be written to, or calibrations are off.
    """
    before, measured = torch.get_num_threads(), list[Sample]()
    try:
        torch.set_num_threads(threads)
        name, count = _machine(device)
        for gone, found in samples(device, seconds, seed):
            measured += found
            progress(gone)
    finally:
        torch.set_num_threads(before)
    constants = fit(measured)
    path = write_costs(name, {count: constants})
    forget_choices()
    choose_algorithm.cache_clear()
    return Calibrated(len(measured), statistics.median(errors(measured, constants)), path)


def _machine(device: torch.device) -> tuple[str, int]:
    machine = machine_of(torch.empty(0, device=device))
    return machine.device, machine.threads


def is_calibrated(threads: int) -> bool:
    r"""Whether there is a calibration of the processor with so many threads."""
    return Machine(threads=threads).measured


def device_name(device: torch.device) -> str:
    r"""The name that calibrations of a device are kept under."""
    return full_name(_machine(device)[0])


def costs_file(device: torch.device) -> Path | None:
    r"""Where the calibration of a device is kept; None where calibrations are off."""
    return costs_path(_machine(device)[0])
