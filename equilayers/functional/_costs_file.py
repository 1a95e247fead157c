r"""Calibrations of this machine in the user's cache folder: written by `equilayers calibrate`, read when first needed.

`EQUILAYERS_COSTS` is "off", so that choices are the same everywhere, or another folder; it is read once. A file
that does not fit is ignored with one warning: nothing here may stop a layer.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from equilayers._files import write_text
from equilayers._torch_compat import constant_when_compiled

FORMAT = 2
VARIABLE, OFF = "EQUILAYERS_COSTS", "off"
Constants = dict[str, tuple[float, ...]]
Calibration = Mapping[int, Constants]  # by the number of threads


@constant_when_compiled
def read_costs(device: str, threads: int) -> Constants | None:
    r"""The constants by kind of work for a device, "cpu" or the name of another, and so many threads."""
    return calibration(device).get(threads)


@functools.lru_cache(maxsize=64)
def calibration(device: str) -> Calibration:
    r"""All of a device; empty where there is none, it does not fit, or it is not wanted."""
    try:
        path = costs_path(device)
        if path is None or not path.exists():
            return {}
        return _checked(json.loads(path.read_text(encoding="utf-8")), device)
    except Exception as error:  # whatever a folder or file may be like
        said = str(error).partition("\n")[0] or type(error).__name__
        where = costs_folder_name()
        warnings.warn(
            f"equilayers: expected a calibration of this machine in {where}, got one that is ignored ({said}). "
            f"Run `equilayers calibrate`, or set {VARIABLE}=off.",
            stacklevel=2,
        )
        return {}


def write_costs(device: str, measured: Calibration) -> Path:
    r"""Keep a calibration, beside what the file has of other numbers of threads; OSError where that is not possible."""
    path = costs_path(device)
    if path is None:
        raise OSError(f"{VARIABLE}=off: calibrations are not kept")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # what does not fit is replaced
        warnings.simplefilter("ignore")
        calibration.cache_clear()
        known = calibration(device)
    threads = {str(count): table for count, table in sorted({**known, **measured}.items())}
    content = {"format": FORMAT, "device": full_name(device), "torch": torch.__version__, "threads": threads}
    write_text(path, json.dumps(content, indent=1) + "\n")
    calibration.cache_clear()
    return path


def costs_path(device: str) -> Path | None:
    r"""The file of a device; None where calibrations are off."""
    folder = _folder()
    if folder is None:
        return None
    slug = re.sub(r"[^A-Za-z0-9]+", "-", full_name(device)).strip("-").lower()
    return folder / f"{slug}.json"


def costs_folder_name() -> str:
    r"""The folder of calibrations, for messages."""
    try:
        return str(_folder())
    except Exception as error:  # no home, no package
        return type(error).__name__


def _folder() -> Path | None:
    given = os.environ.get(VARIABLE, "")
    if given.lower() == OFF:
        return None
    if given:
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("equilayers", appauthor=False) / "costs"


@functools.cache
def full_name(device: str) -> str:
    r"""The name of a device; of the processor with what torch makes use of."""
    return device if device != "cpu" else f"{processor()}, {torch.backends.cpu.get_cpu_capability()}"


def processor() -> str:
    r"""Which processor this is, by its name, family and model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in lines)
    known = {name.strip(): value.strip() for name, _, value in pairs}
    name = known.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{key.removeprefix('cpu ')} {known[key]}" for key in ("cpu family", "model") if key in known]
    return " ".join([name, *numbers])


def _checked(content: Any, device: str) -> Calibration:
    r"""The calibration in a file; ValueError where it is of another format, device or torch."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError("of another format")
    for key, value in (("device", full_name(device)), ("torch", torch.__version__)):
        if content.get(key) != value:
            raise ValueError(f"of {key} {content.get(key)}, and this is {value}")
    return {int(count): _constants(table) for count, table in content["threads"].items()}


def _constants(table: Any) -> Constants:
    r"""A row of numbers from 0 on for each kind of work."""
    rows = {str(kind): tuple(map(float, row)) for kind, row in table.items()}
    if not rows or not all(row and all(0 <= c < math.inf for c in row) and any(row) for row in rows.values()):
        raise ValueError("with constants that are no prices")
    return rows
