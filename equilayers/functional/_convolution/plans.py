r"""What a convolution of given sizes does block by block, as tables for `numba_loops`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from equilayers._checks import Pair
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._convolution.programs import Ints, Place, Step, Window, corners, matrix, patch_program
from equilayers.functional._convolution.synthesis import synthesis
from equilayers.functional._fourier.transforms import Butterflies

Tables = tuple[np.ndarray, np.ndarray, np.ndarray]


class Layout(NamedTuple):
    r"""How a regular feature lies in memory."""

    shape: Ints
    strides: Ints


@dataclass(frozen=True, eq=False)
class Gathering:
    r"""How patches of one block come into a workspace.

    entries: its length. tables: what `numba_loops.gather` takes last. rows: of each irrep the places of its rows.
    """

    entries: int
    tables: Tables
    rows: tuple[tuple[Place, ...], ...]


@dataclass(frozen=True, eq=False)
class Part:
    r"""The blocks of one size of a convolution.

    starts: of each block where it begins in x, its line of x, and where it begins in the output. sources: the irrep of
    each product, and the offset of its matrix among the operators of that. products: a row for `numba_loops`, with
    no address yet. entries: length of the workspace of the results, which starts with the bias. scattering: samples and
    lines, and the steps to the planes.
    """

    starts: np.ndarray
    gathering: Gathering
    sources: tuple[Pair, ...]
    products: np.ndarray
    entries: int
    scattering: Tables


@dataclass(frozen=True, eq=False)
class SlopePart:
    r"""The same of a weight gradient.

    starts: of each block where it begins in v and in x, each with its line. gatherings: of v and of x. totals: sizes of
    the sums of products of each irrep, one after another in memory.
    """

    starts: np.ndarray
    gatherings: tuple[Gathering, Gathering]
    products: np.ndarray
    totals: tuple[tuple[Pair, ...], ...]


@functools.lru_cache(maxsize=256)
def convolution_plan(
    fourier: Butterflies, spec: ConvSpec, x: Layout, operators: tuple[Ints, ...], share: Pair
) -> tuple[Part, ...]:
    r"""The parts; operators: the shapes of the operators. share: samples and lines of a block."""
    n, out = spec.group.order, spec.out_size((x.shape[-2], x.shape[-1]))
    parts = []
    for size, firsts in _blocks(x.shape[0], out[0], share):
        gathering = _gathering(spec, x, size)
        matrices = [torch.empty(shape, device="meta") for shape in operators]
        both = zip(fourier.blocks, _rows(gathering), matrices, strict=True)
        factors = [block.factors(rows, operator) for block, rows, operator in both]
        widths = tuple(tuple(b.shape[1] for _, b in pairs) for pairs in factors)
        features = widths[0][0]
        made = synthesis(fourier, widths, Window(size[0], features, (size[1], out[1])), out[0])
        pairs = [(k, a, b) for k, own in enumerate(factors) for a, b in own]
        products = [
            (a.storage_offset(), 0, *a.shape, b.shape[1], place)
            for (_, a, b), (place, _) in zip(pairs, made.products, strict=True)
        ]
        line = out[1] * features
        starts = [(i * x.strides[0], _top(spec, y), (i * n * out[0] + y) * line) for i, y in firsts]
        scattering = _array(size), table(made.inner), table(made.last)
        sources = tuple((k, int(b.storage_offset())) for k, _, b in pairs)
        parts.append(Part(_array(starts), gathering, sources, _array(products), made.entries, scattering))
    return tuple(parts)


@functools.lru_cache(maxsize=256)
def slope_plan(fourier: Butterflies, spec: ConvSpec, v: Layout, x: Layout, share: Pair) -> tuple[SlopePart, ...]:
    r"""The parts of the weight gradient, for an output gradient v."""
    pixel = replace(spec, kernel_size=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    parts = []
    for size, firsts in _blocks(x.shape[0], v.shape[-2], share):
        gatherings = _gathering(pixel, v, size, difference=True), _gathering(spec, x, size)
        both = zip(fourier.blocks, *map(_rows, gatherings), strict=True)
        products, totals, end = [], [], 0
        for sums in (block.slopes(a, b) for block, a, b in both):
            sizes = [(own[0][0].shape[1], own[0][1].shape[1]) for own in sums]
            for own, (rows, columns) in zip(sums, sizes, strict=True):
                products += [(a.storage_offset(), b.storage_offset(), rows, len(a), columns, end) for a, b in own]
                end += rows * columns
            totals.append(tuple(sizes))
        starts = [(i * v.strides[0], y, i * x.strides[0], _top(spec, y)) for i, y in firsts]
        parts.append(SlopePart(_array(starts), gatherings, _array(products), tuple(totals)))
    return tuple(parts)


def _blocks(batch: int, height: int, share: Pair) -> list[tuple[Pair, list[Pair]]]:
    r"""The sizes of blocks, the largest first, and the first sample and line of each block of that size."""
    found: dict[Pair, list[Pair]] = {}
    for samples, lines in corners(batch, height, share):
        size = samples.stop - samples.start, lines.stop - lines.start
        found.setdefault(size, []).append((samples.start, lines.start))
    return list(found.items())


def _top(spec: ConvSpec, line: int) -> int:
    r"""The first line of x that a line of the output reads; before 0 there are zeros."""
    return line * spec.stride[0] - spec.padding[0]


def _gathering(spec: ConvSpec, x: Layout, size: Pair, *, difference: bool = False) -> Gathering:
    _, channels, n, height, width = x.shape
    window = Window(size[0], channels, (size[1], spec.out_size((height, width))[1]), spec.stride, spec.dilation)
    made = patch_program(spec, window, difference=difference)
    _, samples, padded_height, padded_width, _ = made.planes
    maps = n, samples * padded_height * padded_width * channels, padded_height, padded_width, spec.padding[1]
    layout = *size, spec.stride[0], spec.spans[0] + 1, *maps, channels, height, width, *x.strides
    steps = *made.shared, *(step for own, _ in made.blocks for step in own)
    tables = _array(layout), table(made.inputs), table(steps)
    return Gathering(made.entries, tables, tuple(rows for _, rows in made.blocks))


def _rows(gathering: Gathering) -> list[tuple[Tensor, ...]]:
    r"""The rows as tensors that know their places alone."""
    memory = torch.empty(gathering.entries, device="meta")
    return [tuple(matrix(memory, place) for place in own) for own in gathering.rows]


def table(steps: Iterable[Step]) -> np.ndarray:
    r"""A row of numbers for each step, see `numba_loops`."""
    rows = []
    for step in steps:
        _, _, runs, length = step.size
        if all(view.strides[2] == length for view in step.views):  # the line is one run
            runs, length = 1, runs * length
        views = step.out, step.a, step.b or step.a
        places = [number for view in views for number in (view.offset, *view.strides[:3])]
        rows.append([0 if step.b is None else step.sign, runs, length, *places])
    return _array(rows).reshape(len(rows), 15)


def _array(numbers: object) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)
