r"""What to change first, by what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from equilayers.profiling._words import count, line_of, seconds

if TYPE_CHECKING:
    from equilayers.profiling._result import Profile, Row

WORTH = 0.02  # share of the time from which a change is worth its line
FASTER = 0.9  # another algorithm is faster when it takes less than this of what ran
Ranked = list[tuple[float, str]]


def advice(profile: Profile) -> list[str]:
    r"""At most three: other algorithms, then what is slower than its match, then where time and memory go."""
    whole = profile.total or 1.0
    found: Ranked = [*_algorithms(profile, whole), *_matches(profile, whole)]
    lines = [line for share, line in sorted(found, reverse=True) if share >= WORTH]
    return [*lines, *_heaviest(profile, whole)][:3]


def _name(row: Row) -> str:
    return f"{line_of(row.path) or '(model)'} ({line_of(row.kind)})"


def _algorithms(profile: Profile, whole: float) -> Ranked:
    found: Ranked = []
    for row in profile.rows:
        ran = row.alternatives.get(row.algorithm.partition(" ")[0])
        if ran is None:
            continue
        best = min(row.alternatives, key=lambda name: row.alternatives[name])
        gain = (ran - row.alternatives[best]) * row.calls
        if row.alternatives[best] < FASTER * ran:
            took = f"{best} takes {seconds(row.alternatives[best])} forward on this input"
            line = f'{_name(row)}: set algorithm="{best}": {took}, "{row.algorithm}" {seconds(ran)}.'
            found.append((gain / whole, line))
    return found


def _matches(profile: Profile, whole: float) -> Ranked:
    r"""Rows whose own time is above that of their match."""
    theirs = {row.path: row.own for row in profile.compared.rows} if profile.compared else {}
    found: Ranked = []
    for row in profile.rows:
        if row.match is None or row.own <= 1.1 * theirs[row.match]:
            continue
        other = f"its match {line_of(row.match) or '(model)'} {seconds(theirs[row.match])}"
        found.append(((row.own - theirs[row.match]) / whole, f"{_name(row)}: {seconds(row.own)} itself, {other}."))
    return found


def _heaviest(profile: Profile, whole: float) -> list[str]:
    first = max(profile.rows, key=lambda row: row.own)
    lines = [f"{_name(first)}: takes {first.own / whole:.0%} of the time itself, {seconds(first.own)}."]
    kept = max(profile.rows, key=lambda row: row.own_kept)
    if kept.own_kept:
        part = kept.own_kept / profile.rows[0].kept
        lines.append(f"{_name(kept)}: keeps {count(kept.own_kept, 'B')} for the backward pass, {part:.0%} of all.")
    for row in sorted(profile.rows, key=lambda row: row.own, reverse=True)[1:3]:
        lines.append(f"{_name(row)}: takes {row.own / whole:.0%} of the time itself, {seconds(row.own)}.")
    return lines
