r"""What was measured, as a table, a page, or JSON."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from equilayers._files import Html, strict, write_text
from equilayers.profiling._advice import advice
from equilayers.profiling._page import body, whole_page
from equilayers.profiling._words import HEAD, cells, summary


@dataclass
class Row:
    r"""One module where it is called; times in seconds, memory in bytes, and all of one run of the model.

    Attributes:
        path: of the module in the model, "" for the model.
        kind: its class.
        depth: how many modules call it, the model included.
        forward, backward: with what it calls; own_forward, own_backward: without.
        kept: memory that is kept for the backward pass, with what it calls; own_kept: without.
        peak: highest memory while it runs forward, of all that the run has allocated until then.
        flops: floating-point operations of products and convolutions that were executed, both directions.
        width: number of entries of its output.
        algorithm: what a layer of this library ran; alternatives: seconds forward of each algorithm on the same input.
        ratio: time over that of its match in the model compared with; match: the path there.
    """

    path: str
    kind: str
    depth: int
    forward: float
    backward: float
    own_forward: float
    own_backward: float
    flops: int
    kept: int
    own_kept: int
    parameters: int
    width: int
    calls: int = 1
    peak: int = 0
    algorithm: str = ""
    alternatives: dict[str, float] = field(default_factory=dict)
    ratio: float | None = None
    match: str | None = None

    @property
    def total(self) -> float:
        r"""Seconds forward and backward, with what it calls."""
        return self.forward + self.backward

    @property
    def own(self) -> float:
        r"""Seconds forward and backward, without what it calls."""
        return self.own_forward + self.own_backward


@dataclass
class Profile:
    r"""What a model costs: rows in the order of calls, the model first, and its totals.

    Attributes:
        rows: one for each module where it is called, a module before those that it calls.
        forward, backward: seconds of the model when nothing is watched, medians.
        peak: highest memory in bytes that a run allocates.
        repeats: number of runs.
        notes: what could not be measured, and why.
        compared: the profile of the model compared with.
    """

    rows: list[Row]
    forward: float
    backward: float
    peak: int
    repeats: int
    notes: list[str] = field(default_factory=list)
    compared: Profile | None = None

    @property
    def total(self) -> float:
        r"""Seconds forward and backward."""
        return self.forward + self.backward

    @property
    def advice(self) -> list[str]:
        r"""At most three things to change first, by the time or memory that they concern."""
        return advice(self)

    def against(self, other: Profile) -> Profile:
        r"""This profile with the ratio of every row to its match in another one."""
        matches = _matches(self.rows, other.rows)
        rows = [
            replace(row, match=m.path, ratio=row.total / m.total if m.total else None) if m else row
            for row, m in zip(self.rows, matches, strict=True)
        ]
        return replace(self, rows=rows, compared=other)

    def __str__(self) -> str:
        lines = [[*HEAD], *(cells(self, row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in lines
        ]
        todo = [f"{i}. {line}" for i, line in enumerate(self.advice, 1)]
        return "\n".join([summary(self), "", *(line.rstrip() for line in table), "", *self.notes, *todo])

    def _repr_html_(self) -> str:
        return Html("".join(body(self)))

    def to_html(self, path: str | os.PathLike[str]) -> None:
        r"""Write it as one page that needs no network."""
        write_text(Path(path), whole_page(self))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        r"""Write it as JSON; the file is whole or not there."""
        write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")

    def as_dict(self) -> dict[str, object]:
        r"""All figures in lists, dictionaries, strings and numbers."""
        rows = [{k: strict(v) if isinstance(v, float) else v for k, v in asdict(row).items()} for row in self.rows]
        compared = self.compared.as_dict() if self.compared else None
        totals = {"forward": self.forward, "backward": self.backward, "peak": self.peak, "repeats": self.repeats}
        return {**totals, "advice": self.advice, "notes": self.notes, "rows": rows, "compared": compared}


def _matches(rows: list[Row], others: list[Row]) -> list[Row | None]:
    r"""For each row that of the same path (and turn, where it is called in several places), or of the same width."""
    by_path: dict[str, list[Row]] = defaultdict(list)
    for other in others:
        by_path[other.path].append(other)
    found = [by_path[row.path].pop(0) if by_path[row.path] else None for row in rows]
    left: dict[tuple[int, bool], list[Row]] = defaultdict(list)
    for rest in (o for o in others if any(o is r for r in by_path[o.path])):
        left[rest.width, rest.parameters > 0].append(rest)
    for i, row in enumerate(rows):
        if found[i] is None and left[row.width, row.parameters > 0]:
            found[i] = left[row.width, row.parameters > 0].pop(0)
    return found
