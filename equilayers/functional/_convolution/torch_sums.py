r"""Programs of sums run by torch, every step on all of a block."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from equilayers._checks import Pair
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._convolution.patterns import Basis
from equilayers.functional._convolution.programs import (
    Ints,
    Program,
    Step,
    View,
    Window,
    kind,
    matrix,
    patch_program,
    program,
)
from equilayers.functional._fourier.irreps import Rows
from equilayers.functional._fourier.transforms import Butterflies

MAP = 16
Sum = tuple[int, Tensor, Tensor, Tensor | None]


class TorchPatches:
    r"""The rows of the patches of x, block by block, in one workspace."""

    def __init__(self, x: Tensor, spec: ConvSpec) -> None:
        self._x, self._spec = x, spec
        self._memory: Tensor | None = None
        self._sums: TorchSums | None = None
        self._size: Pair | None = None

    def rows(self, samples: slice, lines: slice) -> Iterator[list[Tensor]]:
        r"""The rows (positions, terms · C) of one block of the basis after another, for these outputs."""
        spec, size = self._spec, (samples.stop - samples.start, lines.stop - lines.start)
        height, width = spec.out_size((self._x.shape[-2], self._x.shape[-1]))
        made = patch_program(spec, Window(size[0], self._x.shape[1], (size[1], width), spec.stride, spec.dilation))
        if self._memory is None:  # the first block is the largest
            self._memory = self._x.new_empty(made.entries)
        if self._sums is None or self._size != size:
            self._sums = TorchSums(made, self._memory)
        if self._size != size or size[1] < height:
            self._sums.planes.zero_()
        self._size = size
        self._fill(self._sums.planes, self._x[samples], lines.start)
        return self._sums.run()

    def _fill(self, planes: Tensor, x: Tensor, top: int) -> None:
        r"""Write x, channels last, into the first planes, from output line `top` on."""
        target, source = planes[: x.shape[2]], x.permute(2, 0, 3, 4, 1)
        starts = top * self._spec.stride[0] - self._spec.padding[0], -self._spec.padding[1]
        for axis, start in zip((2, 3), starts, strict=True):
            low, high = max(start, 0), min(start + target.shape[axis], source.shape[axis])
            if low >= high:  # lines of padding alone
                return
            source = source.narrow(axis, low, high - low)
            target = target.narrow(axis, low - start, high - low)
        target.copy_(source)


class TorchFields:
    r"""The coefficients of a regular feature v (B, O, |G|, H, W) at every position, block by block."""

    def __init__(self, v: Tensor, fourier: Butterflies) -> None:
        self._planes, self._fourier = v.permute(0, 3, 4, 2, 1), fourier

    def rows(self, samples: slice, lines: slice) -> list[Rows]:
        r"""Of these samples and lines the rows (positions, O) of each irrep."""
        return self._fourier.analysis(self._planes[samples, lines].flatten(0, 2))


class TorchOutputs:
    r"""The outputs of a convolution, written block by block."""

    def __init__(self, out: Tensor, fourier: Butterflies, bias: Tensor | None) -> None:
        self._planes, self._fourier, self._bias = out.permute(2, 0, 3, 4, 1), fourier, bias

    def write(self, samples: slice, lines: slice, rows: Iterable[list[Tensor]], operators: Iterable[Tensor]) -> None:
        r"""The planes of these samples and lines, of the patches and the operators of each irrep."""
        both = zip(self._fourier.blocks, rows, operators, strict=True)
        results = [block.product(tuple(own), operator) for block, own, operator in both]
        if self._bias is not None:
            results[0] = (results[0][0].add_(self._bias),)  # the trivial irrep reaches every plane alike
        self._fourier.synthesis_into(results, self._planes[:, samples, lines])


class TorchSums:
    r"""A program and its workspace."""

    def __init__(self, program: Program, memory: Tensor) -> None:
        self.planes = memory[: math.prod(program.planes)].view(program.planes)
        shared, blocks = merged(program)
        self._shared = _sums(shared, memory)
        self._blocks = [
            (_sums(steps, memory), [matrix(memory, place) for place in rows])
            for steps, (_, rows) in zip(blocks, program.blocks, strict=True)
        ]

    def run(self) -> Iterator[list[Tensor]]:
        r"""For the input that lies in the first planes, the rows (positions, terms · C) of one block after another."""
        _compute(self._shared)
        for steps, rows in self._blocks:
            _compute(steps)
            yield rows


@functools.lru_cache(maxsize=256)
def merged(program: Program) -> tuple[list[Step], list[list[Step]]]:
    r"""The steps for all blocks, and those of each; those at constant distances are one with one more axis."""
    return _merged(program.inputs) + _merged(program.shared), [_merged(steps) for steps, _ in program.blocks]


@functools.lru_cache(maxsize=256)
def steps_and_numbers(basis: Basis, kernel: Pair) -> tuple[int, float]:
    r"""Of a program for maps of usual size: its additions, and numbers that they read or write for each output."""
    shared, blocks = merged(program(basis, kernel, Window(1, 1, (MAP, MAP), (1, 1), (1, 1))))
    steps = [*shared, *(step for own in blocks for step in own)]
    return len(steps), sum(math.prod(step.size) * len(step.views) for step in steps) / MAP**2


def _merged(steps: Iterable[Step]) -> list[Step]:
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
    if kind(last)[:-1] != kind(step)[:-1] or last.size != step.size:
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
