r"""What to change first, by what was measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

from equilayers.profiling._words import in_bytes, line_of, seconds

if TYPE_CHECKING:
    from equilayers.profiling._rows import Figures, Row

WORTH = 0.02  # share of the time from which a change is worth its line
FASTER, SLOWER = 0.9, 1.1  # of what ran, and of the match: less is noise
LOOSE = ("auto", "dense")  # algorithms that may be exact to rounding only
Ranked = list[tuple[float, str]]


def advice(profile: Figures) -> list[str]:
    r"""At most three: other algorithms, then what is slower than its match, then where time and memory go."""
    whole = profile.total or 1.0
    found: Ranked = [*_algorithms(profile, whole), *_matches(profile, whole)]
    lines = [line for share, line in sorted(found, reverse=True) if share >= WORTH]
    return [*lines, *_heaviest(profile, whole)][:3]


def _name(row: Row) -> str:
    return f"{line_of(row.path) or '(model)'} ({line_of(row.kind)})"


def _algorithms(profile: Figures, whole: float) -> Ranked:
    found: Ranked = []
    for row in profile.rows:
        ran = row.alternatives.get(row.algorithm.partition(" ")[0])
        if ran is None:
            continue
        best = min(row.alternatives, key=lambda name: row.alternatives[name])
        gain, same = (ran - row.alternatives[best]) * row.calls, row.algorithm.endswith(f"-> {best}")
        if row.alternatives[best] < FASTER * ran and not same:  # what auto ran, by its name, is no faster
            took = f'{seconds(row.alternatives[best])} a call for {seconds(ran)} by "{row.algorithm}"'
            exact = ", exact to rounding" if best in LOOSE and row.algorithm.startswith("bitwise") else ""
            found.append((gain / whole, f'{_name(row)}: set algorithm="{best}": {took}{exact}.'))
    return found


def _matches(profile: Figures, whole: float) -> Ranked:
    r"""Rows slower than their match, both without the rows below that have a match of their own."""
    if profile.compared is None:
        return []
    mine, theirs = defaultdict[int, float](float), defaultdict[int, float](float)
    above: list[int | None] = []  # for each depth the nearest row there or higher that has a match
    for i, row in enumerate(profile.rows):
        parent = above[row.depth - 1] if row.depth else None
        above[row.depth :] = [parent if row.match is None else i]
        if row.match is None:
            continue
        other = profile.compared.rows[row.match].total
        mine[i], theirs[i] = mine[i] + row.total, theirs[i] + other
        if parent is not None:
            mine[parent], theirs[parent] = mine[parent] - row.total, theirs[parent] - other
    found: Ranked = []
    for i, took in mine.items():
        row, least = profile.rows[i], max(theirs[i], 0.0)
        if took > SLOWER * least and row.match is not None:
            match = profile.compared.rows[row.match]
            itself = " beside what it calls" if row.total > SLOWER * took else ""
            words = f"{_name(row)}: takes {seconds(took)}{itself}, its match {_name(match)} {seconds(least)}."
            found.append(((took - least) / whole, words))
    return found


def _heaviest(profile: Figures, whole: float) -> list[str]:
    r"""The kinds of modules that take most of the time, and after the first that which keeps most of the memory."""
    kinds: defaultdict[str, list[Row]] = defaultdict(list)
    for row in profile.rows:
        kinds[row.kind].append(row)
    slow = sorted(kinds.values(), key=lambda rows: -sum(row.own for row in rows))
    times = [_together(rows, "takes", lambda row: row.own, whole, "of the time itself", seconds) for rows in slow]
    large = max(kinds.values(), key=lambda rows: sum(row.own_kept for row in rows))
    all_kept = sum(row.own_kept for row in profile.rows)
    if not all_kept:
        return times
    tail = "of what is kept for the backward pass"
    return [times[0], _together(large, "keeps", lambda row: row.own_kept, all_kept, tail, in_bytes), *times[1:]]


def _together(
    rows: list[Row],
    verb: str,
    value: Callable[[Row], float],
    whole: float,
    tail: str,
    show: Callable[[float], str],
) -> str:
    most, total = max(rows, key=value), sum(map(value, rows))
    if len(rows) == 1:
        return f"{_name(most)}: {verb} {total / whole:.0%} {tail}, {show(total)}."
    first = f"most {line_of(most.path) or '(model)'}, {show(value(most))}"
    return f"{len(rows)} {line_of(most.kind)}: {verb} {total / whole:.0%} {tail}, {show(total)}; {first}."
