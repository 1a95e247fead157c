r"""The measures of `python -m baselines shift` as tables and in words."""

from __future__ import annotations

import statistics
from typing import Any

from rich.table import Table

from baselines.common.runner import Result
from baselines.common.tables import markdown_table, mean_cell, rich_table
from baselines.shift.models import TASKS
from baselines.shift.scenes import MOTIONS
from baselines.shift.toy_signal import toy_markdown

SECONDS = "training s"
ROUNDING = 1e-5  # of float32 through a few layers; what is above is no rounding

#: For each task the columns: title, where it stands in a run's result, unit factor, format.
COLUMNS: dict[str, list[tuple[str, tuple[str, ...], float, str]]] = {
    "detector": [
        ("accuracy %, circular", ("circular", "accuracy"), 100, ".1f"),
        ("cropped", ("cropped", "accuracy"), 100, ".1f"),
        ("same class %, circular", ("consistency", "circular"), 100, ".1f"),
        ("cropped", ("consistency", "cropped"), 100, ".1f"),
        ("largest wobble, circular", ("circular", "largest_wobble"), 1, ".2g"),
        ("cropped", ("cropped", "largest_wobble"), 1, ".2g"),
        ("untrained, circular", ("largest_wobble_at_initialisation", "circular"), 1, ".1g"),
    ],
    "segmentor": [
        ("digit pixels right %", ("circular", "digit_pixel_accuracy"), 100, ".1f"),
        ("all pixels", ("circular", "pixel_accuracy"), 100, ".1f"),
        ("changed digit pixels %, circular", ("circular", "changed_digit_pixels"), 100, ".1f"),
        ("cropped", ("cropped", "changed_digit_pixels"), 100, ".1f"),
        ("relative error, circular", ("circular", "mean_error"), 1, ".2g"),
        ("cropped", ("cropped", "mean_error"), 1, ".2g"),
        ("untrained, circular", ("largest_error_at_initialisation", "circular"), 1, ".1g"),
    ],
}


def grouped(results: list[Result], task: str) -> dict[str, list[Result]]:
    r"""The runs of a task by their kind of pooling, over seeds."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        if result["task"] == task:
            rows.setdefault(result["kind"], []).append(result)
    return rows


def cell(runs: list[Result], path: tuple[str, ...], factor: float, form: str) -> str:
    r"""The mean of a measure, and its standard deviation over more than one seed."""
    return mean_cell([reach(run, path) for run in runs], form, factor)


def reach(result: Result, path: tuple[str, ...]) -> float:
    r"""The number at a path of keys."""
    value: Any = result
    for key in path:
        value = value[key]
    return float(value)


def measures_of(results: list[Result], task: str) -> list[list[str]]:
    r"""One row for each kind of pooling, without titles."""
    return [
        [kind, *(cell(runs, *column[1:]) for column in COLUMNS[task])] for kind, runs in grouped(results, task).items()
    ]


def rows_of(results: list[Result], task: str) -> list[list[str]]:
    r"""The same with the seconds of training."""
    kinds = grouped(results, task).values()
    return [
        [*row, cell(runs, ("training_seconds",), 1, ".0f")]
        for row, runs in zip(measures_of(results, task), kinds, strict=True)
    ]


def titles(task: str) -> list[str]:
    r"""The titles of `measures_of`."""
    return [task, *(column[0] for column in COLUMNS[task])]


def rich_tables(results: list[Result]) -> list[Table]:
    r"""The tables for the terminal."""
    return [rich_table([*titles(task), SECONDS], rows_of(results, task)) for task in TASKS]


def verdict(results: list[Result]) -> list[str]:
    r"""What the numbers say, in words computed from them."""
    lines = []
    for kind, runs in grouped(results, "detector").items():
        before, after = (
            [run[key]["circular"] for run in runs] for key in ("consistency_at_initialisation", "consistency")
        )
        wobble = max(run["circular"]["largest_wobble"] for run in runs)
        cropped = statistics.fmean(run["consistency"]["cropped"] for run in runs)
        shares = (
            f"{100 * statistics.fmean(before):.1f} % before and {100 * statistics.fmean(after):.1f} % after training"
        )
        word = "always the same class" if min(before + after) == 1 else "not always the same class"
        small = f"{wobble:.2g}, which is rounding" if wobble < ROUNDING else f"{wobble:.2g}"
        lines.append(
            f"detector, {kind}: under circular shifts {word} ({shares}), its probability wobbles by up to {small}; "
            f"cropped from a larger canvas {100 * cropped:.1f} %"
        )
        if kind == "polyphase" and min(before + after) < 1:
            lines.append(
                "detector, polyphase: expected 100.0 % under circular shifts: the law of the pooling is broken"
            )
    for kind, runs in grouped(results, "segmentor").items():
        errors = {motion: max(run[motion]["largest_error"] for run in runs) for motion in MOTIONS}
        words = {motion: equivariance(error) for motion, error in errors.items()}
        lines.append(
            f"segmentor, {kind}: {words['circular']} under circular shifts, {words['cropped']} under cropped ones"
        )
    return lines


def equivariance(error: float) -> str:
    r"""The largest relative error in words."""
    if error == 0:
        return "exactly equivariant"
    return f"equivariant to rounding ({error:.1g})" if error < ROUNDING else f"off by up to {error:.2g}"


def markdown(summary: dict[str, Any]) -> str:
    r"""Everything as Markdown: the toy signal, a table for each task, the words, and how it was run."""
    results = summary["runs"]
    parts = [toy_markdown()]
    parts += [markdown_table([*titles(task), SECONDS], rows_of(results, task)) for task in TASKS]
    parts.append("\n".join(f"- {line}" for line in verdict(results)))
    parts.append(_footer(summary))
    return "\n\n".join(parts) + "\n"


def _footer(summary: dict[str, Any]) -> str:
    first, machine = summary["runs"][0], summary["machine"]
    layout, protocol = first["protocol"]["layout"], first["protocol"]
    epochs = ", ".join(f"{task} {next(iter(grouped(summary['runs'], task).values()))[0]['epochs']}" for task in TASKS)
    seeds = len({run["seed"] for run in summary["runs"]})
    return (
        f"Data: {first['data']}, digits of {layout['digit']} pixels in windows of {layout['window']}; "
        f"{protocol['splits'][0]} training scenes; epochs: {epochs}; {seeds} seed(s). "
        f"Every shift of 0 to {layout['shifts'] - 1} pixels each way, with {protocol['detector_grid']} test scenes "
        f"(segmentor {protocol['segmentor_grid']}); same class: {first['consistency_samples']} scenes, two random "
        f"shifts each. Wall time {summary['wall_seconds']:.0f} s on one core ({machine['processor']}), Python "
        f"{machine['python']}, torch {machine['torch']}."
    )
