r"""What was found as text: tables with colours on a terminal, plain columns elsewhere, and JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from equilayers._files import strict
from equilayers.cli._arguments import version
from equilayers.cli._measure import Measure, Report
from equilayers.cli._words import clean
from equilayers.testing import LayerError

Rows = Sequence[Sequence[str]]
COLOURS = {0: "bold green", 1: "bold red", 3: "bold yellow"}
LAYER_HEAD = ("layer", "type", "in", "out", "parameters", "follows as", "error", "")
RIGHT = (4, 6)  # the columns of numbers
LOST = "lost here"
MOST = 8  # places besides the first; the table of layers has all


def number(value: float) -> str:
    r"""Three digits."""
    return f"{value:.3g}"


def shape_of(shape: Sequence[int]) -> str:
    r"""A shape as people write it."""
    return "×".join(map(str, shape)) if shape else "-"


def measure_row(measure: Measure) -> tuple[str, str, str]:
    r"""Name, value, and what it means or why it is missing."""
    if measure.missing:
        return measure.name, "-", f"not measured: {clean(measure.missing)}"
    return measure.name, number(measure.value), clean(measure.meaning)


def layer_row(layer: LayerError) -> tuple[str, ...]:
    r"""A row of the table of layers."""
    return (
        clean(layer.path or "(the model)"),
        clean(layer.name),
        shape_of(layer.input_shape),
        shape_of(layer.output_shape),
        str(layer.parameters or "-"),
        clean(layer.action or "-"),
        number(layer.error),
        LOST if layer.lost else "",
    )


def reasons(report: Report) -> list[tuple[str, str]]:
    r"""Why it failed and what to do, where that is known."""
    check, found = report.check, []
    if check.diagnosis:
        found.append(("diagnosis", clean(check.diagnosis)))
    if check.location is not None:
        found += [("why", clean(check.location.why)), ("what to do", clean(check.location.suggestion))]
        found += [("also lost at", clean(line)) for line in check.others(MOST)]
    return found


def looked_at(report: Report) -> str:
    r"""Which inputs the numbers are of."""
    settings = report.settings
    shapes = ", ".join(f"{name}: {shape_of(shape)}" for name, shape in settings.shapes.items())
    each = shape_of(settings.shape) if len(settings.shapes) == 1 else f"({shapes})"
    if settings.data is not None:
        return clean(f"the first {report.shape[0]} of {settings.data}, each {each}")
    return f"{settings.samples} random inputs {each}, seed {settings.seed}"


def layers_words(report: Report) -> str:
    r"""What stands above the layers."""
    if report.layers_missing:
        return f"layers: not measured: {clean(report.layers_missing)}"
    return "layers, in the order they are called; error: how far from following the group, by the largest output"


def text(report: Report) -> str:
    r"""Plain text: the verdict first, then measures, then layers."""
    lines = [clean(report.verdict), *(f"  {name}: {words}" for name, words in reasons(report)), ""]
    lines.append(f"measures ({looked_at(report)})")
    lines += _columns([measure_row(measure) for measure in report.measures], right=(1,))
    lines += ["", layers_words(report)]
    if report.layers:
        lines += _columns([LAYER_HEAD, *map(layer_row, report.layers)], right=RIGHT)
    return "\n".join(lines) + "\n"


def _columns(rows: Rows, right: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return f"  {'  '.join(cells)}".rstrip()

    return [line(row) for row in rows]


def show(report: Report) -> None:
    r"""Print it: with colours on a terminal where rich is installed, otherwise as plain text."""
    if not (sys.stdout.isatty() and _show_rich(report)):
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        sys.stdout.write(text(report).encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()


def _show_rich(report: Report) -> bool:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False

    def table(rows: Rows, head: Sequence[str], right: Sequence[int]) -> Table:
        made = Table(box=box.SIMPLE_HEAD, show_header=bool(head), pad_edge=False)
        for i in range(len(rows[0])):
            made.add_column(head[i] if head else "", justify="right" if i in right else "left", overflow="fold")
        for row in rows:
            made.add_row(*map(Text, row), style="bold red" if row[-1] == LOST else "")
        return made

    console = Console(highlight=False, markup=False, emoji=False)
    console.print(Text(clean(report.verdict), style=COLOURS[report.code]))
    for name, words in reasons(report):
        console.print(Text(f"  {name}: ", style="bold").append(words, style="not bold"))
    console.print(Text(f"\nmeasures ({looked_at(report)})"))
    console.print(table([measure_row(measure) for measure in report.measures], (), (1,)))
    console.print(Text(layers_words(report)))
    if report.layers:
        console.print(table(list(map(layer_row, report.layers)), LAYER_HEAD, RIGHT))
    return True


def settings_rows(report: Report) -> list[tuple[str, str]]:
    r"""What was checked, how, and with which versions."""
    settings, check = report.settings, report.check
    rows = {
        "target": settings.target,
        "group": repr(settings.group),
        "inputs": looked_at(report),
        "weights": settings.weights or "the model's own",
        "output": f"{shape_of(report.shape)}, {report.output}",
        "tolerance": f"{number(check.tolerance)}, of a largest output of {number(check.scale)}",
        "device": settings.device,
        "versions": f"{version()}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    return [(name, clean(value)) for name, value in rows.items()]


def as_json(report: Report) -> str:
    r"""Everything that was found; numbers that JSON does not have in words."""
    check = report.check
    found: dict[str, Any] = {
        "verdict": report.verdict,
        "exit_code": report.code,
        "passed": check.passed,
        "error": check.error,
        "relative_error": check.relative_error,
        "tolerance": check.tolerance,
        "diagnosis": check.diagnosis,
        "lost_at": None if check.location is None else asdict(check.location),
        "also_lost_at": [asdict(location) for location in check.locations[1:]],
        "measures": {m.name: {"value": None if m.missing else m.value, "missing": m.missing} for m in report.measures},
        "layers": [asdict(layer) for layer in report.layers],
        "settings": dict(settings_rows(report)),
    }
    return json.dumps(_strict(found), indent=2) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return strict(value) if isinstance(value, float) else value
