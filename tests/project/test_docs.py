"""What the documentation says: its code runs and prints what is shown, its commands exist, its tables are true."""

import importlib
import importlib.util
import itertools
import json
import math
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import equilayers.nn
from commands import commands, problem
from equilayers.functional import polyphase_pool2d, rotate, rotate_harmonic
from equilayers.functional.vectors import vector_norm
from equilayers.groups import CyclicRotation, Group
from equilayers.nn import GroupConv2d
from pages import PAGES, ROOT, Block, blocks, module_of_docs, require_output, run

TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
# Those with code; the README has a test of its own.
DOCS = [name for name, text in TEXTS.items() if "```python" in text and name != "README.md"]
# What a snippet may mention, and the module that it needs: a block is left out, and said to be, where there is none.
NEEDS = {"torch.onnx": "onnxscript", "strategies": "equilayers.testing.strategies"}
# escnn is imported with what it needs out of the way; see benchmarks.peers.
NEEDS_ESCNN = "docs/from-escnn.md"
PARTS = ["groups", "functional", "functional.vectors", "nn", "metrics", "losses", "testing", "convert", "interop.escnn"]


def missing() -> tuple[str, ...]:
    """The words of NEEDS whose module is not there."""
    return tuple(word for word, module in NEEDS.items() if importlib.util.find_spec(module) is None)


# torch's exporter to ONNX warns of its own parts; escnn is filtered in pyproject.toml already.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("page", DOCS)
def test_every_block_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> None:
    text = TEXTS[page]
    if page == NEEDS_ESCNN:
        request.getfixturevalue("escnn")
    torch.set_num_threads(1)  # as `make test` has it
    monkeypatch.chdir(tmp_path)
    without = missing()
    run(text, page, without)
    left = [str(b.line) for b in blocks(text) if b.language == "python" and any(word in b.text for word in without)]
    if left:
        modules = " and ".join(NEEDS[word] for word in without)
        pytest.skip(f"the other blocks ran; those at lines {', '.join(left)} need {modules}")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("```python\nassert 1 + 1 == 3, 'wrong'\n```\n", "wrong"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "the page says"),
        ("```python\nprint('off by 0.25')\n```\n\n```text\noff by 0.21\n```\n", "the page says"),
        ('```python\nprint("a 1")\n```\n\n```text title="one run"\nb 2\n```\n', "the page says"),
    ],
    ids=["assertion", "whole number", "decimal", "words of one run"],
)
def test_a_broken_block_is_found(broken: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run(broken, "page.md")


def test_a_block_that_is_as_shown_passes() -> None:
    require_output(Block("text", "", "LI 0.12,\nat 3 places", 1), "LI 0.119 at 3 places".replace(" at", ", at"), "page")
    require_output(Block("text", 'title="one run"', "LI 12", 1), "LI 99.5", "page")
    assert run("```python\na = 1\n```\n\n```python\nb = a + 1\n```\n", "page.md")["b"] == 2
    with pytest.raises(ZeroDivisionError) as caught:  # the traceback leads to the line of the page
        run("# Title\n\n```python\na = 0\n1 / a\n```\n", "page.md")
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == ("page.md", 5)


def test_every_block_has_a_language_that_is_checked() -> None:
    found = {block.language for text in TEXTS.values() for block in blocks(text)}
    assert found <= {"python", "text", "sh", "yaml"}


def shell_lines() -> list[tuple[str, str]]:
    """Every command of every page, in shell blocks and in the `run:` steps of YAML."""
    found = []
    for page, text in TEXTS.items():
        for block in blocks(text):
            steps = {"sh": [block.text], "yaml": re.findall(r"run: (.*)", block.text)}.get(block.language, [])
            found += [(page, command) for step in steps for command in commands(step)]
    return found


def test_every_command_would_be_understood() -> None:
    found = shell_lines()
    assert len(found) > 20
    wrong = {f"{page}: {command}": why for page, command in found if (why := problem(command))}
    assert not wrong


@pytest.mark.parametrize(
    "command",
    [
        "python -m baselines study --partz all",
        "python -m baselines stady",
        "python -m benchmarks linaer",
        "pytest --invariance-raport=x",
        "make stady",
        "pip install '.[stady]'",
        "frobnicate",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    assert problem(command)


@pytest.fixture(scope="session")
def hooks() -> types.ModuleType:
    return module_of_docs("hooks")


def test_docstrings_are_rewritten() -> None:
    pytest.importorskip("griffe", reason="griffe is not installed: pip install 'equilayers[docs]'")
    text = (
        "Args:\n    a, b: both,\n        see `equilayers.nn.OrbitPool`.\n\n"
        "Law: `f == g`,\n    for all.\n\nSource: arXiv:1602.07576."
    )
    wanted = (
        "Args:\n    a: both,\n        see [`equilayers.nn.OrbitPool`][equilayers.nn.OrbitPool].\n"
        "    b: both,\n        see [`equilayers.nn.OrbitPool`][equilayers.nn.OrbitPool].\n\n"
        "**Law.** `f == g`, for all.\n\n**Source.** [arXiv:1602.07576](https://arxiv.org/abs/1602.07576)."
    )
    assert module_of_docs("docstrings").rewritten(text) == wanted


def test_the_tables_of_exactness_have_every_layer(hooks: types.ModuleType) -> None:
    layers = {name for name in equilayers.nn.__all__ if isinstance(getattr(equilayers.nn, name), type)}
    assert {row.layer for row in hooks.rows()} == layers
    assert hooks.MARK in TEXTS["docs/exactness.md"]


# Where each layer is to be seen: inputs, at sizes of both parities.
LIFTING: list[tuple[int, ...]] = [(2, 2, 8, 8), (2, 2, 9, 9)]
INPUTS: dict[str, list[tuple[int, ...]]] = {
    "LiftingLinear": [(5, 1, 8, 8)],
    "GroupLinear": [(5, 2, 4)],
    "LiftingConv2d": LIFTING,
    "GroupConv2d": [(2, 2, 4, 8, 8), (2, 2, 4, 9, 9)],
    "BlurConv2d": [(2, 2, 4, 8, 8), (2, 2, 4, 9, 9)],
    **{
        name: [(2, 2, 4, 8, 8), (2, 2, 4, 9, 9)]
        for name in equilayers.nn.__all__
        if "Norm" in name
        or "Attention" in name
        or "Transformer" in name
        or name in ("GroupFeedForward", "InvariantHead")
    },
    **{name: [(2, 2, 4, 8, 8)] for name in ("GroupPositionEmbedding", "GroupRelativePositionBias")},
    **{name: [(2, 2, 4, 8, 8), (2, 2, 4, 9, 9)] for name in ("GroupRotaryEmbedding", "GroupTokens")},
    "GroupConvTranspose2d": [(2, 2, 4, 4, 4), (2, 2, 4, 5, 5)],
    "PolyphaseUnpool2d": [(2, 2, 4, 8, 8)],
    "OrbitPool": [(2, 3, 4, 7, 7), (2, 3, 4)],
    **{key: [(2, 2, 4, 8, 8), (2, 2, 4, 9, 9)] for key in ("VectorHead", "AngleHead")},
    **{name: [(2, 2, 4, 8, 8)] for name in ("HarmonicNonlinearity", "HarmonicBatchNorm", "HarmonicMagnitude")},
}
Map = Callable[[Tensor], Tensor]


def slopes(x: Tensor) -> Tensor:
    """The gradient of a periodic image, to the right and upwards."""
    right, down = (x.roll(-1, dim) - x.roll(1, dim) for dim in (-1, -2))
    return torch.stack((right, -down), 2)


# How a layer of positions becomes one of regular features: its turned tokens as a map again, its bias in a product of
# sums and maxima, which is exact, its tokens left out.
MAPS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "GroupRotaryEmbedding": lambda layer, f: (
        layer(f.flatten(3).permute(0, 3, 2, 1), f.shape[3:]).permute(0, 3, 2, 1).unflatten(3, f.shape[3:])
    ),
    "GroupRelativePositionBias": lambda layer, f: (
        (layer()[0] + f.flatten(3).unsqueeze(3)).amax(-1).unflatten(3, f.shape[3:])
    ),
    "PolyphaseUnpool2d": lambda layer, f: layer(*polyphase_pool2d(f, layer.stride, return_choice=True)),
    "GroupTokens": lambda layer, f: layer(f)[..., 1:].unflatten(3, f.shape[3:]),
    # The gradient of an image is a field; the length of a vector and four times an angle turn no more.
    **dict.fromkeys(("VectorLiftingConv2d", "VectorLiftingLinear"), lambda layer, x: layer(slopes(x))),
    "VectorHead": lambda layer, f: vector_norm(layer(f)),
    "AngleHead": lambda layer, f: (4 * layer(f)).cos(),
}
EPS = torch.finfo(torch.float32).eps


def moved(group: Group, g: int, t: Tensor) -> Tensor:
    """An image, a regular feature, or what is invariant, moved by an element."""
    return group.act_regular(g, t) if t.ndim in (3, 5) else group.act(g, t) if t.ndim == 4 else t


def rotated(degrees: float, t: Tensor) -> Tensor:
    """An image or a harmonic feature, rotated."""
    return rotate_harmonic(t, degrees) if t.ndim == 5 else rotate(t, degrees)


def law_error(
    layer: Callable[[Tensor], Tensor], shape: tuple[int, ...], actions: Iterable[Callable[[Tensor], Tensor]]
) -> float:
    """The largest relative error of the layer's law over the actions, 0 where all bits agree."""
    x = torch.randn(shape)
    y, worst = layer(x), 0.0
    for act in actions:
        if not torch.equal(got := layer(act(x)), expected := act(y)):
            worst = max(worst, float((got - expected).abs().max() / y.abs().max()), 1e-12)
    return worst


C4, C8 = CyclicRotation(4), CyclicRotation(8, interpolation="bilinear")
BY_90 = [partial(moved, C4, g) for g in range(1, 4)]
RANGES = {"bitwise": (0.0, 0.0), "rounding": (0.0, 32 * EPS), "approximate": (1e-3, math.inf)}


@torch.no_grad()
def test_the_table_of_exactness_is_true(hooks: types.ModuleType) -> None:
    for row in hooks.rows():
        layer, (low, high) = row.make(), RANGES[row.level]
        call = partial(MAPS[row.layer], layer) if row.layer in MAPS else layer
        harmonic = row.layer.startswith("Harmonic")
        if row.why == hooks.ANGLES:
            assert row.level == "approximate"
            shape = (2, 2, 8, 9, 9) if isinstance(layer, GroupConv2d) else (2, 2, 9, 9)
            worst = law_error(call, shape, [partial(rotated, 45) if harmonic else partial(moved, C8, 1)])
        elif harmonic:
            worst = law_error(layer, INPUTS[row.layer][0], [partial(rotated, degrees) for degrees in (90, 180, 270)])
        else:
            worst = 0.0
            for shape in INPUTS.get(row.layer, LIFTING):
                try:
                    worst = max(worst, law_error(call, shape, BY_90))
                except ValueError:  # a size that exact=True refuses
                    assert getattr(layer, "exact", "exact=True" in row.setting), row
        assert low <= worst <= high, (row, worst)


@torch.no_grad()
def test_a_false_row_would_be_found() -> None:
    assert law_error(nn.Conv2d(2, 2, 3, padding=1), (2, 2, 8, 8), BY_90) > 1e-3


def test_the_names_of_escnn_are_its_names(escnn: types.ModuleType) -> None:
    table = TEXTS[NEEDS_ESCNN].split("## Names")[1].split("## ")[0]
    theirs = "".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    modules, spaces = re.findall(r"`([A-Z]\w+)", theirs), re.findall(r"`gspaces\.(\w+)", theirs)
    methods = re.findall(r"`module\.(\w+)", theirs)
    assert (len(modules), len(spaces), len(methods)) == (18, 5, 2)
    assert not [name for name in modules if not hasattr(escnn.nn, name)]
    assert not [name for name in spaces if not hasattr(escnn.gspaces, name)]
    assert not [name for name in methods if not hasattr(escnn.nn.EquivariantModule, name)]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for library in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install 'equilayers[docs]'")
    out = tmp_path_factory.mktemp("site")
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out


def public_names(part: str) -> list[str]:
    module = importlib.import_module(f"equilayers.{part}")
    ours: Callable[[Any], bool] = lambda thing: getattr(thing, "__module__", "") == module.__name__  # noqa: E731
    return getattr(module, "__all__", None) or [name for name, thing in vars(module).items() if ours(thing)]


@pytest.mark.parametrize("part", PARTS)
def test_every_public_name_is_in_the_reference(site: Path, part: str) -> None:
    page = site / "api" / f"{part.partition('.')[0]}.html"
    anchors = set(re.findall(r'id="(equilayers\.[\w.]+)"', page.read_text(encoding="utf-8")))
    names = public_names(part)
    assert names
    assert {f"equilayers.{part}.{name}" for name in names} <= anchors


def test_the_site_has_its_table_and_needs_no_network(site: Path, hooks: types.ModuleType) -> None:
    page = (site / "exactness.html").read_text(encoding="utf-8")
    assert page.count("<strong>bitwise</strong>") > 5
    fetched = re.compile(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+href="(?:https?:)?//')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert not [path.name for path in pages if fetched.search(path.read_text(encoding="utf-8"))]
    assert not list(site.rglob("*.py"))
    assert (site / "search" / "search_index.js").exists()  # what the search of a page opened from a folder reads
    assert "iframe-worker.js" in page


def test_notebooks_hold_the_code_of_their_pages(site: Path, hooks: types.ModuleType) -> None:
    """The blocks of the pages are run; the notebooks have no others, and the pages lead to them."""
    for name in hooks.NOTEBOOKS:
        stem = Path(name).stem
        made = json.loads((site / "notebooks" / f"{stem}.ipynb").read_text(encoding="utf-8"))
        cells = ["".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code"]
        wanted = [block.text.strip("\n") for block in blocks(TEXTS[f"docs/{name}"]) if block.language == "python"]
        assert cells == wanted
        assert f'href="notebooks/{stem}.ipynb"' in (site / f"{stem}.html").read_text(encoding="utf-8")
        assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])


LONG = {"tutorial"}


def too_long(texts: dict[str, str]) -> list[str]:
    return [
        name
        for name, text in texts.items()
        if "api/" not in name and Path(name).stem not in LONG and len(text.splitlines()) > 150
    ]


def test_pages_are_short() -> None:
    assert too_long(TEXTS) == []
    assert too_long({"docs/page.md": "line\n" * 151}) == ["docs/page.md"]


def torn(pages: dict[str, str]) -> list[str]:
    """Rows of tables that have more or fewer cells than the row above: a bar in a cell that is not escaped.

    The reference is read as a site alone, where code needs no escapes.
    """
    rows: list[tuple[str, str, int]] = []
    for page, text in pages.items():
        for line in [*re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).splitlines(), ""]:
            read = re.sub(r"`[^`]*`", "", line) if page.startswith("docs/api/") else line
            bars = len(re.findall(r"(?<!\\)\|", read)) if line.startswith("|") else 0
            rows.append((page, line, bars))
    pairs = itertools.pairwise(rows)
    return [f"{page}: {line}" for (_, _, above), (page, line, bars) in pairs if above and bars and above != bars]


def test_tables_are_whole() -> None:
    assert torn(TEXTS) == []
    assert torn({"page": "| a | |G| |\n|---|---|\n| 1 | 2 |\n"}) == ["page: |---|---|"]
    shown = module_of_docs("hooks").on_page_markdown("| `\\|G\\|` | \\|G\\| |")
    assert shown == "| `|G|` | \\|G\\| |"


def test_a_broken_link_is_no_site(site: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n[gone](gone.md) and [gone](#gone)\n")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    kept = settings[settings.index("validation:") : settings.index("hooks:")]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: test\nstrict: true\n{kept}")
    call = [sys.executable, "-m", "mkdocs", "build"]
    built = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode != 0
    assert "gone.md" in built.stderr
    assert "#gone" in built.stderr


def test_the_pictures_can_be_drawn_again(tmp_path: Path) -> None:
    """The untrained ones, twice to the same bytes; with HYPOTHESIS_PROFILE=thorough all of them, for minutes."""
    from benchmarks import figures

    torch.set_num_threads(1)
    untrained = ("turned-features", "lost")
    thorough = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
    first = [Path(line) for line in figures.lines(tmp_path / "a", () if thorough else untrained)]
    second = [Path(line) for line in figures.lines(tmp_path / "b", untrained)]
    assert [path.stem for path in first[:2]] == list(untrained)
    assert [path.read_bytes() for path in first[:2]] == [path.read_bytes() for path in second]
    assert all((ROOT / "docs" / "figures" / f"{name}.png").is_file() for name in figures.DRAWINGS)
