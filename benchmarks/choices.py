r"""How near the choices of `algorithm="auto"` are to the fastest over random layers, before and after a calibration."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from baselines.common.files import writable_folder, write_text
from baselines.common.tables import markdown_table, rich_table
from baselines.common.terminal import console_of_output
from benchmarks.timing import machine, thread_count, threads
from equilayers.functional.calibration import Case, cases, is_calibrated, timings

SEED = 2026  # not that of a calibration
NEAR = (1.05, 1.15, 1.25)
DENSE = 1.10
WORST = 10
HEAD = "model", *(f"within {near}" for near in NEAR), "worst", f"over {DENSE:.2f} of dense"
WORST_HEAD = "layer", "taken", "over the fastest", "ms"
ROOFLINE, CALIBRATION = "roofline", "calibration"


class Measured(NamedTuple):
    r"""A layer, the number of threads, and milliseconds of each of its algorithms."""

    case: Case
    threads: int
    ms: Mapping[str, float]

    def taken(self, model: str) -> str:
        r"""What `auto` takes by a model."""
        costs = self.case.costs(self.threads, roofline=model == ROOFLINE)
        return min(costs, key=costs.__getitem__)

    def ratio(self, model: str) -> float:
        r"""How many times as long that takes as the fastest."""
        return self.ms[self.taken(model)] / min(self.ms.values())

    def __str__(self) -> str:
        c = self.case
        how = f"{'training step' if c.training else 'forward'}, {thread_count(self.threads)}"
        taps = f", {c.kernel}x{c.kernel}" if c.convolves else ""
        return f"{c.group} {c.kind} {c.channels} -> {c.features}, {c.size}x{c.size}{taps}, batch {c.batch}, {how}"


def layers(count: int, seed: int) -> list[tuple[Case, int]]:
    r"""Layers that `auto` chooses for, with one and two threads in turn."""
    found = [case for case in cases(seed, 2 * count) if not case.exact][:count]
    return [(case, 1 + number % min(2, os.cpu_count() or 1)) for number, case in enumerate(found)]


def measure(count: int, seed: int, seconds: float, file: Path, progress: Callable[[int], object]) -> list[Measured]:
    r"""Timings of so many layers; what stands in the file, a line of JSON each, is not measured again."""
    known = dict(_read(file))
    made = []
    with file.open("a", encoding="utf-8") as lines:
        for number, (case, count_of_threads) in enumerate(layers(count, seed)):
            key = json.dumps([machine(), *case, count_of_threads])
            if key not in known:
                with threads(count_of_threads):
                    known[key] = {k: 1e-6 * t for k, t in timings(case, torch.device("cpu"), seconds).items()}
                lines.write("\n" + json.dumps({"case": key, "ms": known[key]}))  # behind a line that was cut off
                lines.flush()
            made.append(Measured(case, count_of_threads, known[key]))
            progress(number + 1)
    return made


def _read(file: Path) -> Iterator[tuple[str, dict[str, float]]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            content = json.loads(line)
            yield content["case"], content["ms"]
        except (ValueError, KeyError, TypeError):  # cut off
            continue


def summary(measured: Sequence[Measured], models: Sequence[str]) -> list[list[str]]:
    r"""For each model the shares that are near the fastest, the worst, and how many are slower than "dense"."""
    rows = []
    for model in models:
        ratios = [one.ratio(model) for one in measured]
        shares = (f"{100 * statistics.fmean(r <= near for r in ratios):.1f} %" for near in NEAR)
        slow = sum(one.ms[one.taken(model)] > DENSE * one.ms["dense"] for one in measured)
        rows.append([model, *shares, f"{max(ratios):.2f}", str(slow)])
    return rows


def worst(measured: Sequence[Measured], model: str) -> list[list[str]]:
    r"""The layers whose algorithm is furthest from the fastest."""
    rows = []
    for one in sorted(measured, key=lambda one: -one.ratio(model))[:WORST]:
        each = ", ".join(f"{name} {ms:.3g}" for name, ms in sorted(one.ms.items(), key=lambda pair: pair[1]))
        rows.append([str(one), one.taken(model), f"{one.ratio(model):.2f}", each])
    return rows


def run(seconds: float, count: int, seed: int, out: Path, markdown: Path | None = None) -> None:
    r"""Measure, and print how near the choices are; into a file as well."""
    file, console = writable_folder(out) / f"choices-{seed}.jsonl", console_of_output()
    if markdown is not None:
        writable_folder(markdown.parent, "choices", "the folder of --markdown")
    with Console(stderr=True).status("") as status:
        measured = measure(count, seed, seconds, file, lambda done: status.update(f"layer {done} of {count}"))
    models = [ROOFLINE] + [CALIBRATION] * all(is_calibrated(one.threads) for one in measured)
    lines = [f"{count} random layers, seed {seed}. Machine: {machine()}."]
    if CALIBRATION not in models:
        lines[0] += " It is not calibrated: run `equilayers calibrate`."
    console.print(lines[0], markup=False)
    tables = {
        "What auto takes, over the fastest": (HEAD, summary(measured, models)),
        f"Furthest from the fastest by the {models[-1]}": (WORST_HEAD, worst(measured, models[-1])),
    }
    for title, table in tables.items():
        console.print(rich_table(*table, title=title))
        lines += ["", f"## {title}", "", markdown_table(*table)]
    if markdown is not None:
        write_text(markdown, "\n".join(lines) + "\n")
