r"""What the site computes when it is built: the table of exactness, that of cost, notebooks.

`python docs/hooks.py` writes the table of cost into the README.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn as torch_nn

from equilayers import nn
from equilayers.groups import CyclicRotation

MARK = "<!-- exactness -->"
COST_MARK = "<!-- cost -->"
PROCESSORS = "Intel Xeon", "AMD EPYC"
# Rows of the table of cost: its name, the page and the row that it is read from, and the column of each processor,
# counted from the end, or None where it was not measured there.
COST: list[tuple[str, str, str, tuple[int | None, ...]]] = [
    *(
        (f"transformer block, {case}", "transformer", f"{case} | 1 | forward", (-5, -1))
        for case in ("D4, 384 wide", "D4, 768 wide", "D4, 1024 wide", "C4, 768 wide")
    ),
    *(
        (f"3x3 convolution, {case}", "benchmarks-conv", f"{row}, batch 8, 3x3, forward, 1 thread", (-3, None))
        for case, row in (
            ("D4, 128 fields, 9x9", "D4 128 fields 9x9"),
            ("C4, 128 fields, 18x18", "C4 128 fields 18x18"),
            ("C4, 64 fields, 18x18", "C4 64 fields 18x18"),
            ("C4, 4 fields, 36x36", "C4 4 fields 36x36"),
        )
    ),
]
NOTEBOOKS = ("tutorial.md", "convert.md", "test.md", "profile.md")  # pages that can be downloaded as notebooks
GROUP = CyclicRotation(4)
LINEAR = ("bitwise", "orbit", "fourier", "auto", "dense")
CONVOLUTION = ("bitwise", "orbit", "fourier", "auto", "dense")
BLUR = "a symmetric grid; taps of equal weight are added in pairs that the group exchanges"
DENSE_BLUR = "the same grid, through one depthwise convolution, which adds in an order of its own"
FIXED = "off centre where the parity of taps and map do not agree"
PRODUCTS = "what the group permutes goes through products of one shape, on equally aligned memory"
EXCHANGED = "rotating the input exchanges whole computations, each the same numbers in the same places"
EXPANDED = "one product with the expanded weight, which adds in another order when the input is rotated"
ANGLES = "filters are steered on the pixel grid; rotations by 90 degrees are at rounding level"
SORTED = "terms are sorted before they are added"


class Row(NamedTuple):
    r"""One setting of a layer: who it is, how it is made, and why it is as exact as it says."""

    layer: str
    setting: str
    make: Callable[[], torch_nn.Module]
    why: str

    @property
    def level(self) -> str:
        r"""What the layer itself says: "bitwise", "rounding" or "approximate"."""
        return str(self.make().exactness)


def rows() -> list[Row]:
    r"""Every layer in every setting that its exactness depends on."""
    found = []
    for kind, size in ((nn.LiftingLinear, ((1, 8, 8), 3)), (nn.GroupLinear, (2, 3))):
        for algorithm in LINEAR:
            why = {"auto": "may take any", "dense": EXPANDED}.get(algorithm, PRODUCTS)
            found.append(_row(kind, f'algorithm="{algorithm}"', why, GROUP, *size, algorithm=algorithm))
    for kind in (nn.LiftingConv2d, nn.GroupConv2d):
        for algorithm in CONVOLUTION:
            why = {"auto": "may take the expanded filter", "dense": EXPANDED}.get(algorithm, EXCHANGED)
            settings: dict[str, Any] = {"padding": 1, "algorithm": algorithm}
            found.append(_row(kind, f'algorithm="{algorithm}"', why, GROUP, 2, 3, 3, **settings))
    found += _enlarging()
    for reduction in ("max", "mean", "norm", "logsumexp"):
        why = "a sum of exponentials, in the order of the fiber" if reduction == "logsumexp" else SORTED
        found.append(_row(nn.OrbitPool, f'"{reduction}"', why, reduction))
    found += _of_vectors()
    once = "each number is added to one, and those that the group exchanges are the same"
    found.append(_row(nn.GroupPositionEmbedding, "", once, GROUP, 2, (8, 8)))
    found.append(_row(nn.GroupRelativePositionBias, "", once, GROUP, 2, 8))
    angles = "exact positions: the tables of the planes are one table, moved"
    found.append(_row(nn.GroupRotaryEmbedding, "", angles, GROUP, 2))
    found.append(_row(nn.GroupTokens, "", "constant over the fiber", 2))
    over = "sums over channels and fiber, in the order of the fiber"
    found.append(_row(nn.GroupLayerNorm, "", over, 2))
    found.append(_row(nn.GroupRMSNorm, "", over, 2))
    mixed = "sums over channels, fiber and positions, in their order"
    found.append(_row(nn.GroupMultiheadAttention, "", mixed, GROUP, 2, 1))
    found.append(_row(nn.GroupFeedForward, "", over, GROUP, 2, 4))
    found.append(_row(nn.GroupTransformerEncoderLayer, "", mixed, GROUP, 2, 1))
    layer = nn.GroupTransformerEncoderLayer(GROUP, 2, 1)
    found.append(_row(nn.GroupTransformerEncoder, "", mixed, layer, 2))
    found.append(_row(nn.GroupAttentionPool, "", mixed, GROUP, 2, 1))
    found.append(_row(nn.InvariantHead, "", "a mean of tokens in their order; bitwise of maps", 2, 3))
    tree = "a summation tree that rotations and reflections preserve"
    found.append(_row(nn.InvariantAvgPool2d, "", tree))
    for kind in (nn.BlurPool2d, nn.MaxBlurPool2d, nn.AvgBlurPool2d):
        found.append(_row(kind, 'taps="auto"', BLUR))
        found.append(_row(kind, 'taps="auto", algorithm="dense"', DENSE_BLUR, algorithm="dense"))
        found.append(_row(kind, "taps=3, exact=True", f"{BLUR}; other sizes are refused", taps=3, exact=True))
        found.append(_row(kind, "taps=3", FIXED, taps=3))
    tied: dict[str, Any] = {"padding": 1, "conv_padding_mode": "zeros"}
    found.append(_row(nn.BlurConv2d, 'a group, taps="auto"', "a convolution at rounding level", GROUP, 2, 3, 3, **tied))
    found.append(_row(nn.BlurConv2d, "a group, taps=3", FIXED, GROUP, 2, 3, 3, taps=3, **tied))
    ready = "a convolution at rounding level, of pixels or means of two, whose middle is that of the grid"
    setting = 'a group, order="symmetric-stride"'
    found.append(_row(nn.BlurConv2d, setting, ready, GROUP, 2, 3, 3, order="symmetric-stride", **tied))
    norms = "norms are compared as sums of whole numbers, exact in any order; every cyclic shift as well"
    found.append(_row(nn.PolyphasePool2d, "", norms))
    uneven = "where the stride does not divide the map"
    found.append(_row(nn.PolyphasePool2d, "exact=False", uneven, exact=False))
    for kind in (nn.LiftingConv2d, nn.GroupConv2d, nn.VectorLiftingConv2d):
        found.append(_row(kind, "C8", ANGLES, CyclicRotation(8, interpolation="bilinear"), 2, 3, 3, padding=1))
    found.append(_row(nn.HarmonicConv2d, "", ANGLES, 2, 3, 5, padding=2))
    phases = "phases rotate by any angle, and each output reads its own pixel only"
    found.append(_row(nn.HarmonicNonlinearity, "", phases, 2, 1))
    found.append(_row(nn.HarmonicBatchNorm, "", phases, 2, 1))
    found.append(_row(nn.HarmonicMagnitude, "", phases))
    return found


def _enlarging() -> list[Row]:
    r"""The layers that enlarge maps."""
    found = []
    rotated = "a transposed convolution of every rotation of the input, on memory of its own"
    for algorithm in ("bitwise", "orbit", "auto", "dense"):
        why, setting = rotated if algorithm in ("bitwise", "orbit") else EXPANDED, f'algorithm="{algorithm}"'
        found.append(_row(nn.GroupConvTranspose2d, setting, why, GROUP, 2, 3, 4, algorithm=algorithm))
    found.append(_row(nn.GroupUpsample, "", "pixels are repeated, equally often", scale_factor=2))
    pairs = "taps that a mirror exchanges are added first, with mirrored weights; rows and columns in both orders"
    both = {"bitwise": pairs, "auto": "places follow from both sizes; sums in an order of their own"}
    for algorithm, why in both.items():
        settings: dict[str, Any] = {"scale_factor": 1.5, "mode": "bilinear", "algorithm": algorithm}
        found.append(_row(nn.GroupUpsample, f'mode="bilinear", algorithm="{algorithm}"', why, **settings))
    found.append(_row(nn.PolyphaseUnpool2d, "", "samples are put back where the pool found them"))
    return found


def _of_vectors() -> list[Row]:
    found: list[Row] = []
    signs = f"{EXCHANGED}; components are swapped and negated"
    cosets = "a sum over cosets, whose branches are exchanged; components are swapped and negated"
    for kind, size, exact in (
        (nn.VectorLiftingLinear, (2, 3), signs),
        (nn.VectorLiftingConv2d, (2, 3, 3), signs),
        (nn.VectorHead, (2, 3), cosets),
    ):
        for algorithm in ("bitwise", "orbit", "auto", "dense"):
            why = EXPANDED if algorithm in ("auto", "dense") else exact
            found.append(_row(kind, f'algorithm="{algorithm}"', why, GROUP, *size, algorithm=algorithm))
    found.append(_row(nn.AngleHead, "", "the arc tangent rounds", GROUP, 2))
    return found


def _row(kind: type[torch_nn.Module], setting: str, why: str, *args: Any, **kwargs: Any) -> Row:
    return Row(kind.__name__, setting, lambda: kind(*args, **kwargs), why)


def table() -> str:
    r"""The rows as Markdown, with a link to each layer; what is alike stands in one line."""
    lines = ["| layer | setting | level | why |", "|---|---|---|---|"]
    for layers, settings, (level, why) in _alike():
        links = ", ".join(f"[`{layer}`][equilayers.nn.{layer}]" for layer in layers)
        lines.append(f"| {links} | {settings} | **{level}** | {why} |")
    return "\n".join(lines)


def _alike() -> list[tuple[list[str], str, tuple[str, str]]]:
    r"""Layers with the same settings, level and reason: their names, and the three; in the order of the rows."""
    settings: dict[tuple[str, tuple[str, str]], list[str]] = {}
    for row in rows():
        settings.setdefault((row.layer, (row.level, row.why)), []).append(_code(row.setting))
    layers: dict[tuple[str, tuple[str, str]], list[str]] = {}
    for (layer, found), given in settings.items():
        layers.setdefault(("; ".join(given), found), []).append(layer)
    return [(names, given, found) for (given, found), names in layers.items()]


def cost() -> str:
    r"""How many times as fast as torch's the layers are, from the pages of all cases: a row, and the step below it."""
    head = [f"{name}: {what}" for name in PROCESSORS for what in ("forward", "training step")]
    lines = [f"| | {' | '.join(head)} |", "|---" * (1 + len(head)) + "|"]
    for name, page, row, columns in COST:
        text = (Path(__file__).parent / f"{page}.md").read_text(encoding="utf-8").splitlines()
        at = next(i for i, line in enumerate(text) if line.startswith(f"| {row} |"))
        cells = [
            "" if column is None else line.split("|")[column - 1].strip()
            for column in columns
            for line in text[at : at + 2]
        ]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def with_cost(readme: str) -> str:
    r"""The README with the table of cost as it is now."""
    before, _table, after = re.split(rf"(?<={COST_MARK}\n)(.*?)(?=\n\n)", readme, maxsplit=1, flags=re.DOTALL)
    return before + cost() + after


def _code(setting: str) -> str:
    return f"`{setting}`" if ("=" in setting and not setting.startswith("a ")) or setting.startswith('"') else setting


def on_page_markdown(markdown: str, page: Any = None, **_: Any) -> str:
    r"""Put the tables where a page asks for them, and a link to its notebook; mkdocs calls this for every page."""
    if page is not None and page.file.src_uri in NOTEBOOKS:
        name = f"{Path(page.file.src_uri).stem}.ipynb"
        title, _end, rest = markdown.partition("\n")
        markdown = f'{title}\n\n<a href="notebooks/{name}" download>This page as a notebook</a>\n{rest}'
    return _bars(markdown).replace(MARK, table()).replace(COST_MARK, cost())


def _bars(markdown: str) -> str:
    r"""The same without the backslashes before bars in the code of tables, which GitHub wants and mkdocs shows."""
    code = lambda found: found[0].replace(r"\|", "|")  # noqa: E731
    lines = markdown.split("\n")
    return "\n".join(re.sub(r"`[^`]*`", code, line) if line.startswith("|") else line for line in lines)


def on_post_build(config: Any, **_: Any) -> None:
    r"""Write the notebooks beside the pages; mkdocs calls this at the end."""
    folder = Path(config["site_dir"]) / "notebooks"
    folder.mkdir(exist_ok=True)
    for name in NOTEBOOKS:
        text = (Path(config["docs_dir"]) / name).read_text(encoding="utf-8")
        (folder / f"{Path(name).stem}.ipynb").write_text(notebook(text), encoding="utf-8")


def notebook(markdown: str) -> str:
    r"""A page as a notebook: its python blocks are the cells of code, all else is text."""
    cells: list[dict[str, Any]] = []
    for i, part in enumerate(re.split(r"^```python[^\n]*\n(.*?)^```$", markdown, flags=re.DOTALL | re.MULTILINE)):
        code = i % 2 == 1
        if part.strip():
            kind: dict[str, Any] = {"cell_type": "code", "execution_count": None, "outputs": []}
            kind = kind if code else {"cell_type": "markdown"}
            source = part.strip("\n").splitlines(keepends=True)
            cells.append({**kind, "id": f"cell-{i}", "metadata": {}, "source": source})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    README = Path(__file__).parent.parent / "README.md"
    README.write_text(with_cost(README.read_text(encoding="utf-8")), encoding="utf-8")
