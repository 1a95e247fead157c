r"""Tables for the terminal and in Markdown, and their cells."""

import re
import statistics
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

BAR, ESCAPED = re.compile(r"(?<!\\)[|]"), r"\\|"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""The lines of a Markdown table, without a newline at the end."""
    return "\n".join([head_lines(head), *map(row_line, rows)])


def head_lines(head: Sequence[str]) -> str:
    r"""The two lines that a Markdown table begins with."""
    return f"{row_line(head)}\n|{'---|' * len(head)}"


def row_line(cells: Sequence[str]) -> str:
    r"""One line of a Markdown table; bars within its cells are escaped."""
    return f"| {' | '.join(BAR.sub(ESCAPED, cell) for cell in cells)} |"


def rich_table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    r"""The same for the terminal."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in head:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def mean_cell(values: Sequence[float], form: str, factor: float = 1) -> str:
    r"""The mean of the values, and their standard deviation where there are several that differ."""
    spread = factor * statistics.stdev(values) if len(values) > 1 else 0.0
    small = f"{spread:.1g}" if form.endswith("g") else f"{spread:{form}}"
    small = f"{float(small):.0f}" if "e+" in small else small  # 20, and not 2e+01
    return f"{factor * statistics.fmean(values):{form}}" + (f" ± {small}" if spread else "")
