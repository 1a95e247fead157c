r"""Figures as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equilayers.profiling._rows import Figures, Row

# The columns and which of them are numbers; those in which no row has anything are left out.
HEAD = {
    **{"module": False, "class": False, "calls": True, "share": True, "forward": True, "own forward": True},
    **{"backward": True, "own backward": True, "ratio": True, "peak": True, "kept": True, "parameters": True},
    **{"FLOPs": True, "ran": False, "each algorithm, a call": False},
}


def seconds(value: float) -> str:
    r"""A time in milliseconds or microseconds."""
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def count(value: float, unit: str = "") -> str:
    r"""A number with a letter for its thousands."""
    thousands = sum(abs(value) >= 1000**i for i in range(1, 5))
    return f"{value / 1000**thousands:.3g} {' kMGT'[thousands].strip()}{unit}".strip()


def in_bytes(value: float) -> str:
    r"""A number of bytes."""
    return count(value, "B")


def line_of(text: object) -> str:
    r"""Names from outside in one line of characters that print."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def said(error: Exception) -> str:
    r"""An exception in one line."""
    return f"{type(error).__name__}: {line_of(' '.join(str(error).split()))[:300]}".rstrip(": .")


def short_names(rows: list[Row]) -> list[str]:
    r"""Paths without that of the module that calls."""
    above: list[str] = []
    found = []
    for row in rows:
        above[row.depth :] = [row.path]
        before = f"{above[-2]}." if row.depth and above[-2] else ""
        found.append(line_of(row.path.removeprefix(before)) or "(model)")
    return found


def table_of(profile: Figures, *, several: bool = True) -> tuple[list[list[str]], list[int]]:
    r"""The lines of the table, names indented by their depth, its head first; and the columns that are numbers.

    several: whether there are columns for what layers ran and what each of their algorithms takes.
    """
    names = short_names(profile.rows)
    lines = [_cells(profile, row, "  " * row.depth + name) for row, name in zip(profile.rows, names, strict=True)]
    heads = list(HEAD)
    shown = len(heads) if several else len(heads) - 2
    used = [i for i, column in enumerate(zip(*lines, strict=True)) if any(column) and i < shown]
    numbers = [at for at, i in enumerate(used) if HEAD[heads[i]]]
    return [[line[i] for i in used] for line in [heads, *lines]], numbers


def _cells(profile: Figures, row: Row, name: str) -> list[str]:
    others = ", ".join(f"{name} {seconds(took)}" for name, took in row.alternatives.items())
    back = profile.backward > 0
    return [
        name,
        line_of(row.kind),
        str(row.calls),
        f"{row.own / (profile.total or 1):.1%}",
        *(seconds(value) for value in (row.forward, row.own_forward)),
        *(seconds(value) if back else "" for value in (row.backward, row.own_backward)),
        _ratio(profile, row),
        count(row.peak, "B") if profile.peak else "",
        count(row.kept, "B") if profile.rows[0].kept else "",
        str(row.parameters),
        count(row.flops) if profile.rows[0].flops else "",
        row.algorithm,
        others,
    ]


def _ratio(profile: Figures, row: Row) -> str:
    r"""With the name of the match where it is another."""
    if row.ratio is None or row.match is None or profile.compared is None:
        return ""
    path = profile.compared.rows[row.match].path
    return f"{row.ratio:.2f}" if path == row.path else f"{line_of(path) or '(model)'} {row.ratio:.2f}"


def totals(profile: Figures) -> list[tuple[str, str]]:
    r"""Those that were measured, by name."""
    found = [("forward", f"{seconds(profile.forward)}, median of {profile.repeats} runs")]
    if profile.backward:
        found.append(("backward", seconds(profile.backward)))
    if profile.peak:
        found.append(("peak memory", in_bytes(profile.peak)))
    if profile.rows[0].kept:
        found.append(("kept for backward", in_bytes(profile.rows[0].kept)))
    if profile.rows[0].flops:
        found.append(("operations", f"{count(profile.rows[0].flops)} FLOPs"))
    found.append(("parameters", str(profile.rows[0].parameters)))
    if profile.compared is not None and profile.compared.total:
        ratio = f"{profile.total / profile.compared.total:.2f} times {seconds(profile.compared.total)}"
        found.append(("compared", f"{ratio} of {line_of(profile.compared.rows[0].kind)}"))
    return found


def summary(profile: Figures) -> str:
    r"""The totals in one line."""
    return "; ".join(f"{name} {value}" for name, value in totals(profile))
