r"""Programs of sums: what computes the patches of a `Basis`, or the outputs of their products, in a workspace.

A program is a list of sums of views; `torch_sums` and `numba_sums` run it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from equilayers._checks import Pair
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._convolution.patterns import Along, Basis, Pattern, Term, basis_of

Ints = tuple[int, ...]
Place = tuple[int, Pair]  # offset and size of a matrix in a workspace


class View(NamedTuple):
    r"""A view of the workspace."""

    offset: int
    strides: Ints


class Step(NamedTuple):
    r"""`out = a + sign · b` on views of size (samples, lines, positions, channels); without b a copy."""

    sign: int
    size: Ints
    out: View
    a: View
    b: View | None

    @property
    def views(self) -> list[View]:
        r"""All of them."""
        return [self.out, self.a] + ([] if self.b is None else [self.b])


class Window(NamedTuple):
    r"""What one run of a program works on: so many samples, channels and output positions (height, width).

    stride, dilation: of the convolution.
    """

    samples: int
    channels: int
    out: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)


@dataclass(frozen=True, eq=False)
class Program:
    r"""The steps, and where things lie in the workspace.

    entries: how long the workspace is. planes: the size (planes, samples, H, W, C) of the maps at its beginning, into
    which the input goes. inputs: the steps on lines of the input. shared: those on lines of the output for all blocks.
    blocks: for each block of the basis its steps, and the places of its rows (positions, terms · C).
    """

    entries: int
    planes: Ints
    inputs: tuple[Step, ...]
    shared: tuple[Step, ...]
    blocks: tuple[tuple[tuple[Step, ...], tuple[Place, ...]], ...]


@functools.lru_cache(maxsize=256)
def program(basis: Basis, reach: Pair, window: Window, *, difference: bool = False) -> Program:
    r"""The program for kernels that reach so many pixels (height, width).

    Of a complex pair (c, d) there is a third row, c + d, and on demand a fourth, their difference.
    """
    return _Writer(basis, reach, window, (1, -1)[: 1 + difference] if basis.pair else ()).program()


def patch_program(spec: ConvSpec, window: Window, *, difference: bool = False) -> Program:
    r"""The program for the patches of a convolution."""
    reach = spec.spans[0] + 1, spec.spans[1] + 1
    return program(basis_of(spec.group, spec.kernel_size), reach, window, difference=difference)


def matrix(memory: Tensor, place: Place) -> Tensor:
    r"""The matrix that has this place in a workspace."""
    start, size = place
    return memory[start : start + math.prod(size)].view(size)


def corners(batch: int, height: int, share: Pair) -> Iterator[tuple[slice, slice]]:
    r"""Samples and lines of the blocks of an output; share: how many of each make a block."""
    for i in range(0, batch, share[0]):
        for y in range(0, height, share[1]):
            yield slice(i, min(i + share[0], batch)), slice(y, min(y + share[1], height))


class _Writer:
    r"""Assigns places of the workspace, one after another, and writes the steps."""

    def __init__(self, basis: Basis, reach: Pair, window: Window, more: Ints) -> None:
        self.basis, self.window, self.more = basis, window, more  # signs of the rows that a pair has beside its own
        (height, width), (sh, sw) = window.out, window.stride
        n, c = window.samples, window.channels
        self.padded = sh * (height - 1) + reach[0], sw * (width - 1) + reach[1]
        self.map = n * self.padded[0] * self.padded[1] * c  # entries of a padded map
        self.size = n, height, width, c
        self.end = basis.planes * self.map
        self.columns: dict[tuple[int, Along], int] = {}  # sums along x of all rows: (samples, H, width, C)
        self.kept: dict[Pattern, View] = {}
        self.sums: list[Step] = []
        self.temporary: list[Step] = []

    def program(self) -> Program:
        rows = [row for block in self.basis.blocks for row in block]
        for pattern in (p for row in rows for term in row for p in (term.left, term.right) if p is not None):
            if not pattern.x.single and (pattern.plane, pattern.x) not in self.columns:
                self._column(pattern.plane, pattern.x)
        blocks = tuple(map(self._block, self.basis.blocks))
        n, _, _, c = self.size
        maps = n, *self.padded, c
        place = lambda plane: View(plane * self.map, self._strides(maps, c))  # noqa: E731
        fiber = [Step(-1 if s.minus else 1, maps, place(s.out), place(s.a), place(s.b)) for s in self.basis.fiber]
        inputs = *fiber, *sorted(self.sums, key=kind)
        shared = tuple(sorted(self.temporary, key=kind))
        return Program(self.end, (self.basis.planes, *maps), inputs, shared, blocks)

    def _block(self, block: tuple[tuple[Term, ...], ...]) -> tuple[tuple[Step, ...], tuple[Place, ...]]:
        n, height, width, c = self.size
        positions = n * height * width
        places = [(self._place(positions * len(row) * c), (positions, len(row) * c)) for row in block]
        steps = [
            self._emitted(term, View(start + number * c, self._strides(self.size, len(row) * c)))
            for (start, _), row in zip(places, block, strict=True)
            for number, term in enumerate(row)
        ]
        steps.sort(key=kind)
        for sign in self.more if block is self.basis.blocks[-1] else ():
            entries = len(block[0]) * c
            places.append((self._place(positions * entries), (positions, entries)))
            strides = self._strides(self.size, entries)
            out, a, b = (View(places[k][0], strides) for k in (-1, 0, 1))
            steps.append(Step(sign, (n, height, width, entries), out, a, b))
        return tuple(steps), tuple(places)

    def _emitted(self, term: Term, out: View) -> Step:
        a, b, minus = self._pattern(term.left)
        if term.right is not None:
            a, b, minus = self._value(term.left), self._value(term.right), term.minus
        return Step(-1 if minus else 1, self.size, out, a, b)

    def _place(self, entries: int) -> int:
        start, self.end = self.end, self.end + entries
        return start

    @staticmethod
    def _strides(size: Ints, pixel: int) -> Ints:
        _, height, width, _ = size
        return height * width * pixel, width * pixel, pixel, 1

    def _column(self, plane: int, x: Along) -> None:
        (n, _, width, c), (height, padded), (_, sw) = self.size, self.padded, self.window.stride
        size = n, height, width, c
        place = self.columns[plane, x] = self._place(n * height * width * c)
        strides = height * padded * c, padded * c, sw * c, 1
        a, b = (View(plane * self.map + self.window.dilation[1] * i * c, strides) for i in (x.first, x.last))
        self.sums.append(Step(-1 if x.odd else 1, size, View(place, self._strides(size, c)), a, b))

    def _shifted(self, pattern: Pattern, tap: int) -> View:
        r"""What stands so many taps further down, of the map or of its sums along x."""
        (height, padded), (sh, sw), (dh, dw), c = self.padded, self.window.stride, self.window.dilation, self.size[3]
        if pattern.x.single:
            row, pixel = padded * c, sw * c
            place = pattern.plane * self.map + dw * pattern.x.first * c
        else:
            row, pixel = self.size[2] * c, c
            place = self.columns[pattern.plane, pattern.x]
        return View(place + dh * tap * row, (height * row, sh * row, pixel, 1))

    def _pattern(self, pattern: Pattern) -> tuple[View, View | None, bool]:
        r"""The two views whose sum, or difference, it is; or one."""
        first, y = self._shifted(pattern, pattern.y.first), pattern.y
        return first, None if y.single else self._shifted(pattern, y.last), y.odd

    def _value(self, pattern: Pattern) -> View:
        r"""One view of it, computed where it is a sum."""
        a, b, minus = self._pattern(pattern)
        if b is None:
            return a
        if pattern not in self.kept:
            c = self.size[3]
            place = self._place(self.size[0] * self.size[1] * self.size[2] * c)
            self.kept[pattern] = View(place, self._strides(self.size, c))
            self.temporary.append(Step(-1 if minus else 1, self.size, self.kept[pattern], a, b))
        return self.kept[pattern]


def kind(step: Step) -> tuple[object, ...]:
    r"""What steps of one loop have in common, then their order."""
    return step.sign, step.b is None, *(view.strides for view in step.views), step.out.offset
