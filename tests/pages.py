"""The code blocks of the documentation: found, run in order, and compared with the output printed below them.

What follows a fence decides: `python` runs, all of a page in one namespace; `text` below it is what it prints, numbers
to the digits shown, or any numbers if its title says "one run"; `sh` holds commands, see `commands.py`.
"""

import contextlib
import importlib.util
import io
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ONE_RUN = "one run"
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the rest of that line, its text, and the line it begins at."""

    language: str
    title: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page."""
    found = re.finditer(r"^```(\w*) ?([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(m[1], m[2], m[3], text.count("\n", 0, m.start()) + 1) for m in found]


def run(text: str, name: str, without: tuple[str, ...] = ()) -> dict[str, object]:
    """Run the python blocks of a page in order, those that mention `without` aside; what they defined.

    Raises what a block raises, AssertionError where it prints something else than the page says.
    """
    names: dict[str, object] = {"__name__": "page"}
    for block, below in _with_output(blocks(text)):
        if block.language != "python" or any(word in block.text for word in without):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Line numbers are those of the page, so that a traceback leads there.
            exec(compile("\n" * block.line + block.text, name, "exec"), names)
        if below is not None:
            require_output(below, printed.getvalue(), name)
    return names


def _with_output(found: list[Block]) -> Iterator[tuple[Block, Block | None]]:
    for block, following in zip_longest(found, found[1:]):
        yield block, following if following is not None and following.language == "text" else None


def require_output(block: Block, printed: str, name: str) -> None:
    """Words are to be the same, wherever lines break; numbers as far as they are shown, or not at all in one run."""
    wanted, got = (" ".join(text.split()) for text in (block.text, printed))
    same = NUMBER.sub("#", wanted) == NUMBER.sub("#", got)
    if same and ONE_RUN not in block.title:
        same = all(map(_agree, NUMBER.findall(wanted), NUMBER.findall(got)))
    if not same:
        raise AssertionError(f"{name}:{block.line}: the page says\n{block.text}\nand the code printed\n{printed}")


def _agree(wanted: str, got: str) -> bool:
    """Whether a number is the one shown, but for two units of its last digit: rounding differs between machines."""
    mantissa, _, exponent = wanted.partition("e")
    digits = len(mantissa.partition(".")[2])
    exact = not digits and not exponent
    return wanted == got if exact else abs(float(wanted) - float(got)) <= 2.01 * 10.0 ** (int(exponent or 0) - digits)


def module_of_docs(name: str) -> types.ModuleType:
    """What mkdocs runs: docs/hooks.py or docs/docstrings.py."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
