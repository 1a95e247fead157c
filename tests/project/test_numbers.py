"""No figure is written by hand in two pages: others link to it or have it rendered by docs/hooks.py."""

import re
from collections.abc import Iterator
from itertools import combinations, pairwise, product

from pages import PAGES, ROOT

NUMBER = re.compile(
    r"(?<![\w.,:/^-])(?<!torch )(\d+(?:,\d{3})*(?:\.\d+)?)(?!\w|[.,]\d)(\s*(?:%|ms|nats|[GM]i?B)(?!\w))?"
)
NO_PROSE = re.compile(
    r"^```.*?^```$|<!-- cost -->\n\|.*?\n\n|`[^`\n]*`|\]\([^)]*\)|https?:\S+", re.DOTALL | re.MULTILINE
)
# By `python -m baselines report` and `python -m benchmarks models`.
GENERATED = {"docs/paper.md", "docs/paper-fashion.md", "docs/paper-shifts.md", "docs/models.md"}
BY_CHANCE = {"1.05", "69.3", "100.0"}


def figures(text: str) -> set[str]:
    """Decimals and counts of three and more significant digits; with a unit, of two."""
    found = set()
    for number, unit in NUMBER.findall(text):
        digits = number.replace(",", "").strip("0") if "." not in number else re.sub("[.,]", "", number).lstrip("0")
        if len(digits) >= (2 if unit else 3) and (unit or not number.isdigit()):
            found.add(number)
    return found - BY_CHANCE


def parts(name: str, text: str) -> Iterator[tuple[bool, set[str]]]:
    """The figures of each paragraph, and of each two rows that follow each other; whether it was written by hand.

    The tables of the pages are printed by commands; the README has none of its own.
    """
    for block in re.split(r"\n\s*\n|\n(?=- )", NO_PROSE.sub("\n\n", text)):
        rows = [line for line in block.splitlines() if line.startswith("|") and name != "README.md"]
        yield from ((False, figures(a + b)) for a, b in pairwise([*rows, ""]))
        yield True, figures("\n".join(line for line in block.splitlines() if line not in rows))


def twins(texts: dict[str, str]) -> set[str]:
    """What two pages share: one figure of two sentences, or two of a sentence and of a table."""
    pages = [(name, list(parts(name, text))) for name, text in texts.items()]
    found = set()
    for (page, ours), (other, theirs) in combinations(pages, 2):
        for (by_hand, mine), (theirs_too, its) in product(ours, theirs):
            if (by_hand or theirs_too) and len(mine & its) >= (1 if by_hand and theirs_too else 2):
                found.add(f"{page} and {other}: {', '.join(sorted(mine & its))}")
    return found


def test_no_figure_is_written_twice() -> None:
    texts = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
    assert twins({name: text for name, text in texts.items() if name not in GENERATED}) == set()


def test_a_twin_is_found() -> None:
    page, table = "It takes 1.37 times\nas long, at 94.1 %.\n", "| C4 | 1.37 | x |\n| D4 | 94.1 |\n"
    assert twins({"docs/a.md": page, "docs/b.md": "So 1.37.\n"}) == {"docs/a.md and docs/b.md: 1.37"}
    assert twins({"README.md": page, "docs/b.md": table}) == {"README.md and docs/b.md: 1.37, 94.1"}
    assert twins({"docs/a.md": "It has 233,225 weights.", "docs/b.md": "All 233,225."})
    assert not twins({"docs/a.md": page, "docs/b.md": "`1.37` of torch 2.13, 10,000 images, 1.4 and [94](1.37)\n"})
