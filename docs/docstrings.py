r"""Reads the docstrings of this project as mkdocstrings wants them: a griffe extension.

Griffe knows Args, Returns and Raises. `Law:` and `Source:` become paragraphs, `a, b: text` under Args, Attributes and
Raises becomes an entry for each, `equilayers.part.name` in backticks and arXiv numbers become links.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

PARAGRAPHS = re.compile(r"^(Law|Source): (.*(?:\n    .*)*)$", re.MULTILINE)
SEVERAL = re.compile(r"^    (\w+(?:, \w+)+): (.*(?:\n        .*)*)$", re.MULTILINE)
SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?:    .*\n?|\n(?=    ))+)", re.MULTILINE)
ARXIV = re.compile(r"\barXiv:(\d+\.\d+)")
LINK = re.compile(r"`(equilayers(?:\.[A-Za-z]\w*){2,})`")


class Docstrings(Extension):
    r"""Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        r"""Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    r"""The docstring in Google style alone."""
    text = SECTION.sub(lambda section: f"{section[1]}:\n{SEVERAL.sub(_each, section[2])}", text)
    text = PARAGRAPHS.sub(lambda found: f"**{found[1]}.** {' '.join(found[2].split())}", text)
    text = ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return LINK.sub(r"[`\1`][\1]", text)


def _each(several: re.Match[str]) -> str:
    return "\n".join(f"    {name}: {several[2]}" for name in several[1].split(", "))
