r"""Files that are whole or not there, numbers as JSON has them, and HTML pages that need no network."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path

STYLE = """
  :root { color-scheme: light dark; --page: #fff; --lost: #fff1f2; --ink: #1b1f24;
          --soft: #57606a; --line: #d8dee4; --tint: #f6f8fa;
          --good: #116329; --bad: #a40e26; --so-so: #7d4e00; }
  @media (prefers-color-scheme: dark) {
    :root { --page: #0d1117; --lost: #3a1418; --ink: #e6edf3; --soft: #9da7b1; --line: #30363d; --tint: #161b22;
            --good: #4ac26b; --bad: #ff7b86; --so-so: #d9a53a; } }
  * { box-sizing: border-box; }
  body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 66rem; background: var(--page); color: var(--ink);
         font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
  h1 { font-size: 1.3rem; line-height: 1.4; margin: 0; font-weight: 600; overflow-wrap: anywhere; }
  h2 { font-size: 1.15rem; margin: 2.6rem 0 .3rem; }
  .verdict { padding: 1.1rem 1.3rem; border: 1px solid var(--line); border-left: 6px solid var(--so-so);
             border-radius: 6px; background: var(--tint); }
  .verdict.passed { border-left-color: var(--good); } .verdict.failed { border-left-color: var(--bad); }
  .badge { font-size: .8rem; font-weight: 700; letter-spacing: .06em; text-transform: uppercase; color: var(--so-so); }
  .passed .badge { color: var(--good); } .failed .badge { color: var(--bad); }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; margin: .9rem 0 0; }
  dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
  .note { color: var(--soft); font-size: .9rem; margin: 0 0 .8rem; font-weight: 400; }
  .scroll { overflow-x: auto; width: max-content; min-width: 100%; max-width: min(96rem, 100vw - 2.5rem);
            position: relative; left: 50%; transform: translateX(-50%);  /* tables may be wider than the text */
            background: linear-gradient(to right, var(--page), transparent) left / 2rem 100% no-repeat local,
                        linear-gradient(to left, var(--page), transparent) right / 2rem 100% no-repeat local,
                        linear-gradient(to right, var(--line), transparent) left / .6rem 100% no-repeat,
                        linear-gradient(to left, var(--line), transparent) right / .6rem 100% no-repeat; }
  table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100%; }
  th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
  th { font-weight: 600; white-space: nowrap; }
  .number { text-align: right; white-space: nowrap; }
  tr.marked td { background: var(--lost); color: var(--bad); font-weight: 600; }
  svg { width: 100%; height: auto; display: block; margin: .6rem 0 1rem; font: 12px system-ui, sans-serif; }
  svg text { fill: var(--soft); } svg text.lost { fill: var(--bad); font-weight: 600; }
  .orbit { display: flex; gap: .7rem; flex-wrap: wrap; margin: .4rem 0 1.4rem; }
  figure { margin: 0; width: 7.2rem; }
  figure img { width: 100%; display: block; image-rendering: pixelated; border: 1px solid var(--line); }
  figure img + img { margin-top: .35rem; }
  figcaption { font-size: .8rem; color: var(--soft); text-align: center; margin-top: .2rem; }
  @media print { body { max-width: none; padding: 0; font-size: 10pt; } .scroll { overflow: visible; background: none; }
                 figure, tr { break-inside: avoid; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_text(path: Path, text: str) -> None:
    r"""Write a file beside its place and rename it: whole, or the old one stays.

    Links are followed, and what is no regular file, such as a pipe or /dev/stdout, is written to and stays.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def strict(number: float) -> float | str:
    r"""A number that JSON has; others in words."""
    return number if math.isfinite(number) else str(number)


class Html(str):
    r"""Text that is HTML already; any other string is escaped."""

    __slots__ = ()


def tag(name: str, *inside: object, **attributes: object) -> Html:
    r"""An element with its attributes, `class_` for class and `_` for `-`; text inside is escaped unless it is Html."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>{''.join(map(_escaped, inside))}</{name}>\n")


def _escaped(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))


def pairs(items: Sequence[tuple[object, object]]) -> Html:
    r"""A list of names and what belongs to each."""
    return tag("dl", *(cell for name, value in items for cell in (tag("dt", name), tag("dd", value))))


def table(
    rows: Sequence[Sequence[object]],
    head: Sequence[object] = (),
    *,
    numbers: Collection[int] = (),
    marked: Sequence[object] = (),
) -> Html:
    r"""A table; numbers: the columns that are aligned to the right. marked: for each row, whether it stands out."""

    def line(cell: str, row: Sequence[object], stands_out: object = False) -> Html:
        cells = (tag(cell, value, class_="number" if i in numbers else None) for i, value in enumerate(row))
        return tag("tr", *cells, class_="marked" if stands_out else None)

    lines = [line("th", head)] if head else []
    lines += [line("td", row, mark) for row, mark in zip(rows, marked or [False] * len(rows), strict=True)]
    return tag("div", tag("table", *lines), class_="scroll")


def html_page(title: str, *body: object) -> str:
    r"""A whole page, one file."""
    head = (
        Html('<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return f"<!DOCTYPE html>\n{tag('html', tag('head', *head), tag('body', *body), lang='en')}"
