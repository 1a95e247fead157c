r"""The page of a profile: an icicle picture, the table, what to change first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from equilayers._files import Html, html_page, table, tag
from equilayers.profiling._words import HEAD, cells, line_of, seconds, summary

if TYPE_CHECKING:
    from equilayers.profiling._result import Profile, Row

WIDTH, HEIGHT, LETTER, THINNEST = 960, 26, 7.0, 0.5  # of the picture, a bar, a letter, and the least bar, in pixels


def whole_page(profile: Profile) -> str:
    r"""A page, one file."""
    return html_page(f"equilayers profile: {line_of(profile.rows[0].kind)}", *body(profile))


def body(profile: Profile) -> list[Html]:
    r"""What a notebook shows, and a page."""
    title = tag("h1", f"{line_of(profile.rows[0].kind)}: {summary(profile)}")
    numbers = (*range(2, 12), 14)
    rows = [[Html("&emsp;" * row.depth + tag("span", cells(profile, row)[0].strip())), *cells(profile, row)[1:]]
            for row in profile.rows]  # fmt: skip
    return [
        tag("section", title, class_="verdict"),
        *(tag("p", note, class_="note") for note in profile.notes),
        tag("h2", "Change first"),
        tag("ol", *(tag("li", line) for line in profile.advice)),
        tag("h2", "Where the time goes"),
        tag("p", "Width: forward and backward time, with what is called below. Colour: the share of a module itself.",
            class_="note"),
        icicle(profile),
        tag("h2", "Modules"),
        table(rows, HEAD, numbers=numbers),
    ]  # fmt: skip


def icicle(profile: Profile) -> Html:
    r"""Modules as bars below the one that calls them, as wide as their time."""
    whole = profile.total or 1.0
    ends: dict[int, float] = {}
    bars = []
    for row in profile.rows:
        x = ends.get(row.depth, 0.0)
        wide = row.total / whole * WIDTH
        ends[row.depth], ends[row.depth + 1] = x + wide, x
        if wide >= THINNEST:
            bars.append(_bar(row, x, wide, row.own / whole))
    deep = max(row.depth for row in profile.rows) + 1
    return tag("svg", *bars, viewBox=f"0 0 {WIDTH} {deep * HEIGHT}", role="img", aria_label="time of each module")


def _bar(row: Row, x: float, wide: float, share: float) -> Html:
    name = line_of(row.path) or line_of(row.kind)
    room = int((wide - 8) / LETTER)
    short = name if len(name) <= room else f"{name[: room - 1]}…" if room > 3 else ""
    about = f"{name} ({line_of(row.kind)}): {seconds(row.total)}, itself {seconds(row.own)} ({share:.1%})"
    y = row.depth * HEIGHT
    box = tag("rect", x=f"{x:.2f}", y=y, width=f"{wide:.2f}", height=HEIGHT - 1, fill="#d9822b", stroke="var(--page)",
              fill_opacity=f"{min(0.12 + 1.6 * share, 0.75):.2f}")  # fmt: skip
    text = tag("text", short, x=f"{x + 4:.2f}", y=y + 17, style="fill: var(--ink)")
    return tag("g", tag("title", about), box, text)
