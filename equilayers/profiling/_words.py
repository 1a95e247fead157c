r"""Figures as people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from equilayers.profiling._result import Profile, Row

HEAD = (
    *("module", "class", "calls", "forward", "own", "backward", "own", "share", "peak", "kept", "parameters", "FLOPs"),
    *("ran", "others, forward", "ratio"),
)


def seconds(value: float) -> str:
    r"""A time in milliseconds or microseconds."""
    return f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} us"


def count(value: float, unit: str = "") -> str:
    r"""A number with a letter for its thousands."""
    for letter in ("", "k", "M", "G", "T"):
        if abs(value) < 1000:
            break
        value /= 1000
    return f"{value:.3g} {letter}{unit}".strip()


def line_of(text: object) -> str:
    r"""Names from outside in one line of characters that print."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def cells(profile: Profile, row: Row) -> list[str]:
    r"""A row of the table."""
    others = ", ".join(f"{name} {seconds(took)}" for name, took in row.alternatives.items())
    return [
        "  " * row.depth + (line_of(row.path) or "(model)"),
        line_of(row.kind),
        str(row.calls),
        *(seconds(value) for value in (row.forward, row.own_forward, row.backward, row.own_backward)),
        f"{row.own / (profile.total or 1):.1%}",
        count(row.peak, "B"),
        count(row.kept, "B"),
        str(row.parameters),
        count(row.flops),
        row.algorithm,
        others,
        "" if row.ratio is None else f"{row.ratio:.2f}",
    ]


def summary(profile: Profile) -> str:
    r"""The totals in one line."""
    line = (
        f"forward {seconds(profile.forward)}, backward {seconds(profile.backward)}, medians of {profile.repeats} runs"
    )
    line += f"; peak memory {count(profile.peak, 'B')}, kept for backward {count(profile.rows[0].kept, 'B')}"
    if profile.compared is not None:
        line += f"; {profile.total / profile.compared.total:.2f} times the model compared with"
    return line
