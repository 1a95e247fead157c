r"""What was measured, as a table, a page, or JSON."""

from __future__ import annotations

import json
import os
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from equilayers._files import strict, write_text
from equilayers.profiling._advice import advice
from equilayers.profiling._page import in_notebook, whole_page
from equilayers.profiling._rows import Figures, Row
from equilayers.profiling._words import summary, table_of


@dataclass
class Profile(Figures):
    r"""What a model costs: rows in the order of calls, the model first, and its totals.

    Attributes:
        rows: one for each module where it is called, a module before those that it calls.
        forward, backward: seconds of the model when nothing is watched, medians.
        peak: highest memory in bytes that a run allocates.
        repeats: number of runs.
        notes: what could not be measured, and why.
        compared: the profile of the model compared with.
    """

    @property
    def advice(self) -> list[str]:
        r"""At most three things to change first, by the time or memory that they concern."""
        return advice(self)

    def against(self, other: Profile) -> Profile:
        r"""This profile with the ratio of every row to its match in another one."""
        rows = []
        for row, match in zip(self.rows, _matches(self.rows, other.rows), strict=True):
            theirs = 0.0 if match is None else other.rows[match].total
            rows.append(replace(row, match=match, ratio=row.total / theirs if theirs else None))
        notes = [*self.notes, *(f"Compared with: {note}" for note in other.notes if note not in self.notes)]
        return replace(self, rows=rows, compared=other, notes=notes)

    def __str__(self) -> str:
        lines, numbers = table_of(self)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        todo = [f"{i}. {line}" for i, line in enumerate(self.advice, 1)]
        return "\n".join([summary(self), "", *(line.rstrip() for line in table), "", *self.notes, *todo])

    def _repr_html_(self) -> str:
        return in_notebook(self)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        r"""Write it as one page that needs no network."""
        write_text(Path(path), whole_page(self))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        r"""Write it as JSON; the file is whole or not there."""
        write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")

    def as_dict(self) -> dict[str, object]:
        r"""All figures in lists, dictionaries, strings and numbers."""
        return _as_dict(self)


def _as_dict(profile: Figures) -> dict[str, object]:
    rows = [{k: strict(v) if isinstance(v, float) else v for k, v in asdict(row).items()} for row in profile.rows]
    compared = _as_dict(profile.compared) if profile.compared else None
    totals = {
        "forward": profile.forward,
        "backward": profile.backward,
        "peak": profile.peak,
        "repeats": profile.repeats,
    }
    return {**totals, "advice": advice(profile), "notes": profile.notes, "rows": rows, "compared": compared}


def _matches(rows: list[Row], others: list[Row]) -> list[int | None]:
    r"""For each row that of the same path (and turn, where it is called in several places), or of the same width."""
    found: list[int | None] = _paired([row.path for row in rows], [row.path for row in others])
    taken = set(found)
    widths = _paired(
        [
            None if match is not None else (row.width, row.parameters > 0)
            for row, match in zip(rows, found, strict=True)
        ],
        [None if i in taken else (row.width, row.parameters > 0) for i, row in enumerate(others)],
    )
    return [first if first is not None else second for first, second in zip(found, widths, strict=True)]


def _paired(keys: Sequence[object], others: Sequence[object]) -> list[int | None]:
    r"""For each key the place of an equal one among the others, each place once, in order; None has no equal."""
    places: dict[object, deque[int]] = defaultdict(deque)
    for i, key in enumerate(others):
        places[key].append(i)
    return [places[key].popleft() if key is not None and places[key] else None for key in keys]
