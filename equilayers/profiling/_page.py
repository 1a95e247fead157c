r"""The page of a profile: an icicle picture, the table, what to change first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from equilayers._files import Html, html_page, pairs, table, tag
from equilayers.profiling._advice import advice
from equilayers.profiling._words import line_of, seconds, short_names, table_of, totals

if TYPE_CHECKING:
    from equilayers.profiling._rows import Figures, Row

WIDTH, HEIGHT, LETTER, THINNEST = 1000, 26, 6.6, 0.5  # of the picture, a bar, a letter, and the least bar, in pixels
# What the style of a page says to it, for a notebook, which has colours of its own.
NOTEBOOK = "--page: transparent; --ink: currentColor; --soft: currentColor; --line: #8886; --tint: transparent"
WIDE = "width: 100%; min-width: 640px; height: auto; font: 12px system-ui, sans-serif"
LEGEND = (
    "Each bar is a module below the one that calls it, as wide as its time, forward and backward; the darker, the more "
    "of the whole time it takes itself."
)


def whole_page(profile: Figures) -> str:
    r"""A page, one file."""
    return html_page(f"equilayers profile: {line_of(profile.rows[0].kind)}", *_body(profile))


def in_notebook(profile: Figures) -> str:
    r"""The same inside of a page of others."""
    return tag("div", *_body(profile), style=NOTEBOOK)


def _body(profile: Figures) -> list[Html]:
    lines, numbers = table_of(profile, several=False)
    rows = [[_indented(cells[0]), *cells[1:]] for cells in lines[1:]]
    title = f"{line_of(profile.rows[0].kind)}: {seconds(profile.total)}"
    return [
        tag("section", tag("h1", title), pairs(totals(profile)), class_="verdict"),
        *(tag("p", note, class_="note") for note in profile.notes),
        tag("h2", "Change first"),
        tag("ol", *(tag("li", line) for line in advice(profile))),
        tag("h2", "Where the time goes"),
        tag("p", LEGEND, class_="note"),
        tag("div", _icicle(profile), class_="scroll", style="overflow-x: auto; width: 100%"),
        tag("h2", "Modules"),
        table(rows, lines[0], numbers=numbers),
        *_algorithms(profile),
    ]


def _algorithms(profile: Figures) -> list[Html]:
    r"""What the layers of this library ran, and what each of their algorithms takes."""
    layers = [row for row in profile.rows if row.alternatives]
    if not layers:
        return []
    names = list(dict.fromkeys(name for row in layers for name in row.alternatives))
    rows = [
        [line_of(row.path) or "(model)", line_of(row.kind), tag("span", row.algorithm, style="white-space: nowrap")]
        + [seconds(row.alternatives[name]) if name in row.alternatives else "-" for name in names]
        for row in layers
    ]
    note = tag("p", "Of one call, by each algorithm that the layer has, in turn on the same input.", class_="note")
    head = ("module", "class", "ran", *names)
    return [tag("h2", "Algorithms"), note, table(rows, head, numbers=range(3, len(head)))]


def _indented(name: str) -> Html:
    deep = (len(name) - len(name.lstrip())) / 2
    return tag("span", name.lstrip(), style=f"padding-left: {deep:.0f}em; white-space: nowrap")


def _icicle(profile: Figures) -> Html:
    r"""Modules as bars below the one that calls them, as wide as their time."""
    whole = profile.total or 1.0
    ends: dict[int, float] = {}
    bars = []
    for row, name in zip(profile.rows, short_names(profile.rows), strict=True):
        x = ends.get(row.depth, 0.0)
        wide = row.total / whole * WIDTH
        ends[row.depth], ends[row.depth + 1] = x + wide, x
        if wide >= THINNEST:
            bars.append(_bar(row, name, x, wide, row.own / whole))
    deep = max(row.depth for row in profile.rows) + 1
    view = f"0 0 {WIDTH} {deep * HEIGHT}"
    return tag("svg", *bars, viewBox=view, role="img", aria_label="time of each module", style=WIDE)


def _bar(row: Row, name: str, x: float, wide: float, share: float) -> Html:
    room = int((wide - 8) / LETTER)
    full = f"{name}  {line_of(row.kind)}"
    short = full if len(full) <= room else name if len(name) <= room else f"{name[: room - 1]}…" if room > 3 else ""
    where = line_of(row.path) or "(model)"
    about = f"{where} ({line_of(row.kind)}): {seconds(row.total)}, itself {seconds(row.own)} ({share:.1%})"
    y = row.depth * HEIGHT
    box = tag("rect", x=f"{x:.2f}", y=y, width=f"{wide:.2f}", height=HEIGHT - 1, fill="#d9822b", stroke="var(--line)",
              fill_opacity=f"{min(0.12 + 1.6 * share, 0.75):.2f}")  # fmt: skip
    text = tag("text", short, x=f"{x + 4:.2f}", y=y + 17, style="fill: var(--ink)")
    return tag("g", tag("title", about), box, text)
