r"""The sums that make the planes of an output of the products of each irrep, as the steps of a program."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, cast

from equilayers.functional._convolution.programs import Ints, Place, Step, View, Window
from equilayers.functional._fourier.transforms import Butterflies


@dataclass(frozen=True, eq=False)
class Synthesis:
    r"""The steps, and where things lie in the workspace, which begins with the bias.

    products: the place of each. inner: the steps within the workspace. last: those that write the planes, whose
    first view is one of the output, from its first sample and line on.
    """

    entries: int
    products: tuple[Place, ...]
    inner: tuple[Step, ...]
    last: tuple[Step, ...]


@functools.lru_cache(maxsize=256)
def synthesis(fourier: Butterflies, widths: tuple[Ints, ...], window: Window, height: int) -> Synthesis:
    r"""The steps for an output (B, O, |G|, height, W') that lies in memory as (B, |G|, height, W', O).

    widths: columns of the products of each block. window: samples, O, and size (lines, W') of a block of the output.
    """
    writer = _Writer(window)
    features, width = window.channels, window.out[1]
    products = [[writer.product(columns) for columns in own] for own in widths]
    results = [list(block.combined(own)) for block, own in zip(fourier.blocks, products, strict=True)]
    bias = _Matrix(writer, View(0, (0, 0, 0, 1)), features)
    results[0][0] = results[0][0] + bias  # the trivial irrep reaches every plane alike
    pairs: list[Any] = fourier.pairs(cast(Any, results))
    plane = height * width * features
    strides = len(pairs) * plane, width * features, features, 1
    last = [writer.step(sign, View(h * plane, strides), a, b) for h, (sign, a, b) in enumerate(pairs)]
    places = tuple((m.view.offset, (writer.positions, m.width)) for m in itertools.chain(*products))
    return Synthesis(writer.end, places, tuple(writer.steps), tuple(last))


class _Writer:
    r"""Assigns places of the workspace, one after another, and keeps the steps."""

    def __init__(self, window: Window) -> None:
        self.size = window.samples, *window.out
        self.positions = math.prod(self.size)
        self.end = window.channels
        self.steps: list[Step] = []

    def product(self, columns: int) -> _Matrix:
        r"""A matrix of all positions."""
        _, height, width = self.size
        return self._matrix(columns, self.positions, (height * width * columns, width * columns, columns, 1))

    def sum(self, sign: int, a: _Matrix, b: _Matrix) -> _Matrix:
        r"""The sum or difference for one line, in a place that the next line takes again."""
        made = self._matrix(a.width, self.size[2], (0, 0, a.width, 1))
        self.steps.append(self.step(sign, made.view, a, b))
        return made

    def step(self, sign: int, out: View, a: _Matrix, b: _Matrix) -> Step:
        return Step(sign, (*self.size, a.width), out, a.view, b.view)

    def _matrix(self, columns: int, rows: int, strides: Ints) -> _Matrix:
        start, self.end = self.end, self.end + rows * columns
        return _Matrix(self, View(start, strides), columns)


class _Matrix:
    r"""A matrix (positions, width) that a program works on, which is written down as a transform adds and subtracts."""

    def __init__(self, writer: _Writer, view: View, width: int) -> None:
        self.writer, self.view, self.width = writer, view, width

    def __add__(self, other: _Matrix) -> _Matrix:
        return self.writer.sum(1, self, other)

    def __sub__(self, other: _Matrix) -> _Matrix:
        return self.writer.sum(-1, self, other)

    def chunk(self, parts: int, axis: int) -> list[_Matrix]:  # noqa: ARG002 - the last, as of a tensor
        width = self.width // parts
        views = [self.view._replace(offset=self.view.offset + k * width) for k in range(parts)]
        return [_Matrix(self.writer, view, width) for view in views]
