r"""Programs of sums: what computes the patches of a `Basis` in a workspace, as views of it and torch's additions."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from equilayers._checks import Pair
from equilayers.functional._convolution.patterns import Along, Basis, Pattern, Term

MAP = 16
Ints = tuple[int, ...]
Sum = tuple[int, Tensor, Tensor, Tensor | None]


class View(NamedTuple):
    r"""A view of the workspace."""

    offset: int
    strides: Ints


class Step(NamedTuple):
    r"""`out = a + sign · b` on views of one size; without b a copy."""

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
    stride: Pair
    dilation: Pair


class Program(NamedTuple):
    r"""The steps, and where things lie in the workspace.

    entries: how long the workspace is. planes: the size (planes, samples, H, W, C) of the maps at its beginning, into
    which the input goes. shared: the steps for all blocks. blocks: for each block of the basis its steps, and offset
    and size (positions, terms · C) of each of its rows; all blocks have the same places, one after another.
    """

    entries: int
    planes: Ints
    shared: tuple[Step, ...]
    blocks: tuple[tuple[tuple[Step, ...], tuple[tuple[int, Pair], ...]], ...]


@functools.lru_cache(maxsize=256)
def program(basis: Basis, reach: Pair, window: Window) -> Program:
    r"""The program for kernels that reach so many pixels (height, width)."""
    return _Writer(basis, reach, window).program()


@functools.lru_cache(maxsize=256)
def steps_and_numbers(basis: Basis, kernel: Pair) -> tuple[int, float]:
    r"""Of a program for maps of usual size: its additions, and numbers that they read or write for each output."""
    made = program(basis, kernel, Window(1, 1, (MAP, MAP), (1, 1), (1, 1)))
    steps = [*made.shared, *(step for own, _ in made.blocks for step in own)]
    return len(steps), sum(math.prod(step.size) * len(step.views) for step in steps) / MAP**2


class _Writer:
    r"""Assigns places of the workspace, one after another, and writes the steps."""

    def __init__(self, basis: Basis, reach: Pair, window: Window) -> None:
        self.basis, self.window = basis, window
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
        n, height, width, c = self.size
        positions = n * height * width
        longest = max(map(len, rows)) * positions * c
        places = [self._place(longest) for _ in range(max(map(len, self.basis.blocks)))]
        blocks = []
        for block in self.basis.blocks:
            steps = [
                self._emitted(term, View(start + number * c, self._strides(self.size, len(row) * c)))
                for start, row in zip(places, block, strict=False)
                for number, term in enumerate(row)
            ]
            sizes = [(start, (positions, len(row) * c)) for start, row in zip(places, block, strict=False)]
            blocks.append((tuple(_merged(sorted(steps, key=_kind))), tuple(sizes)))
        flat = (self.map,)
        fiber = [
            Step(-1 if s.minus else 1, flat, *(View(place * self.map, (1,)) for place in (s.out, s.a, s.b)))
            for s in self.basis.fiber
        ]
        stages = fiber, sorted(self.sums, key=_kind), sorted(self.temporary, key=_kind)
        shared = tuple(step for stage in stages for step in _merged(stage))
        return Program(self.end, (self.basis.planes, n, *self.padded, c), shared, tuple(blocks))

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


def _kind(step: Step) -> tuple[object, ...]:
    r"""What steps of one loop have in common, then their order."""
    return step.sign, step.b is None, *(view.strides for view in step.views), step.out.offset


def _merged(steps: Iterable[Step]) -> list[Step]:
    r"""The steps, runs of those that differ by constant distances made one with one more axis."""
    runs: list[list[Step]] = []
    for step in steps:
        if runs and _follows(runs[-1], step):
            runs[-1].append(step)
        else:
            runs.append([step])
    return [_loop(run) for run in runs]


def _distances(a: Step, b: Step) -> Ints:
    return tuple(v.offset - u.offset for u, v in zip(a.views, b.views, strict=True))


def _follows(run: list[Step], step: Step) -> bool:
    last = run[-1]
    if _kind(last)[:-1] != _kind(step)[:-1] or last.size != step.size:
        return False
    distances = _distances(last, step)
    outermost = min(distances) >= 0 and distances[0] >= last.out.strides[0]  # a new axis inside would break up rows
    return outermost and (len(run) == 1 or distances == _distances(run[-2], last))


def _loop(run: list[Step]) -> Step:
    first = run[0]
    if len(run) == 1:
        return first
    views = [View(v.offset, (d, *v.strides)) for v, d in zip(first.views, _distances(run[0], run[1]), strict=True)]
    return Step(first.sign, (len(run), *first.size), views[0], views[1], views[2] if len(views) > 2 else None)


class Machine:
    r"""A program and its workspace."""

    def __init__(self, program: Program, memory: Tensor) -> None:
        self.planes = memory[: math.prod(program.planes)].view(program.planes)
        self._shared = _sums(program.shared, memory)
        self._blocks = [
            (_sums(steps, memory), [memory[start : start + math.prod(size)].view(size) for start, size in rows])
            for steps, rows in program.blocks
        ]

    def run(self) -> Iterator[list[Tensor]]:
        r"""For the input that lies in the first planes, the rows (positions, terms · C) of one block after another."""
        _compute(self._shared)
        for steps, rows in self._blocks:
            _compute(steps)
            yield rows


def _sums(steps: Iterable[Step], memory: Tensor) -> list[Sum]:
    view = lambda v, size: memory.as_strided(size, v.strides, v.offset)  # noqa: E731
    return [(s.sign, view(s.out, s.size), view(s.a, s.size), None if s.b is None else view(s.b, s.size)) for s in steps]


def _compute(sums: Iterable[Sum]) -> None:
    for sign, out, a, b in sums:
        if b is None:
            out.copy_(a)
        elif sign > 0:
            torch.add(a, b, out=out)
        else:
            torch.sub(a, b, out=out)
