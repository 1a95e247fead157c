r"""The measures of `python -m baselines shift` as tables and in words."""

import statistics
from collections.abc import Iterator
from typing import Any

from baselines.common.runner import Result
from baselines.common.tables import markdown_table, mean_cell
from baselines.shift.models import TASKS
from baselines.shift.scenes import MOTIONS
from baselines.shift.toy_signal import toy_markdown

Column = tuple[str, tuple[str, ...], float, str]  # title, keys of the number in a run's result, unit factor, format
SECONDS: Column = ("training s", ("training_seconds",), 1, ".0f")
ROUNDING = 1e-5  # of float32 through a few layers; what is above is no rounding


def _both(title: str, factor: float, form: str, *keys: str) -> list[Column]:
    r"""A column for each motion, which stands where the keys have an empty one."""
    heads = zip((f"{title}, circular", "cropped"), MOTIONS, strict=True)
    return [(head, tuple(key or motion for key in keys), factor, form) for head, motion in heads]


COLUMNS: dict[str, list[Column]] = {
    "detector": [
        *_both("accuracy %", 100, ".1f", "", "accuracy"),
        *_both("same class %", 100, ".1f", "consistency", ""),
        *_both("largest wobble", 1, ".2g", "", "largest_wobble"),
        ("untrained, circular", ("largest_wobble_at_initialisation", "circular"), 1, ".1g"),
    ],
    "segmentor": [
        ("digit pixels right %", ("circular", "digit_pixel_accuracy"), 100, ".1f"),
        ("all pixels", ("circular", "pixel_accuracy"), 100, ".1f"),
        *_both("changed digit pixels %", 100, ".1f", "", "changed_digit_pixels"),
        *_both("relative error", 1, ".2g", "", "mean_error"),
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


def rows_of(results: list[Result], task: str, *more: Column) -> list[list[str]]:
    r"""One row for each kind of pooling: the means of COLUMNS and of more columns, and their deviations over seeds."""
    columns = [*COLUMNS[task], *more]
    return [
        [kind, *(mean_cell([_number(run, keys) for run in runs], form, factor) for _, keys, factor, form in columns)]
        for kind, runs in grouped(results, task).items()
    ]


def _number(value: Any, keys: tuple[str, ...]) -> float:
    for key in keys:
        value = value[key]
    return float(value)


def titles(task: str, *more: Column) -> list[str]:
    r"""The titles of `rows_of`."""
    return [task, *(column[0] for column in (*COLUMNS[task], *more))]


def tables(results: list[Result]) -> Iterator[tuple[list[str], list[list[str]]]]:
    r"""Head and rows for each task, with the seconds of training."""
    return ((titles(task, SECONDS), rows_of(results, task, SECONDS)) for task in TASKS)


def verdict(results: list[Result]) -> list[str]:
    r"""What the numbers say, in words computed from them."""
    lines = []
    for kind, runs in grouped(results, "detector").items():
        before, after = (
            [run[key]["circular"] for run in runs] for key in ("consistency_at_initialisation", "consistency")
        )
        wobble = max(run["circular"]["largest_wobble"] for run in runs)
        cropped = statistics.fmean(run["consistency"]["cropped"] for run in runs)
        first, last = (f"{100 * statistics.fmean(shares):.1f} %" for shares in (before, after))
        word = "always the same class" if min(before + after) == 1 else "not always the same class"
        small = f"{wobble:.2g}, which is rounding" if wobble < ROUNDING else f"{wobble:.2g}"
        lines.append(
            f"detector, {kind}: under circular shifts {word} ({first} before and {last} after training), its "
            f"probability wobbles by up to {small}; cropped from a larger canvas {100 * cropped:.1f} %"
        )
        if kind == "polyphase" and min(before + after) < 1:
            broken = "expected 100.0 % under circular shifts: the law of the pooling is broken"
            lines.append(f"detector, polyphase: {broken}")
    for kind, runs in grouped(results, "segmentor").items():
        rolled, cut = (equivariance(max(run[motion]["largest_error"] for run in runs)) for motion in MOTIONS)
        lines.append(f"segmentor, {kind}: {rolled} under circular shifts, {cut} under cropped ones")
    return lines


def equivariance(error: float) -> str:
    r"""The largest relative error in words."""
    if error == 0:
        return "exactly equivariant"
    return f"equivariant to rounding ({error:.1g})" if error < ROUNDING else f"off by up to {error:.2g}"


def markdown(summary: dict[str, Any]) -> str:
    r"""Everything as Markdown: the toy signal, a table for each task, the words, and how it was run."""
    results = summary["runs"]
    words = "\n".join(f"- {line}" for line in verdict(results))
    parts = [toy_markdown(), *(markdown_table(*table) for table in tables(results)), words, _footer(summary)]
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
