r"""Convolutions as group correlations of patches in the basis of `patterns`, where the last bit need not be kept.

The products are those of `patches`. What it saves are sums and copies: a patch of a 3x3 kernel under D4 takes 96 sums
for 72 numbers instead of 216, none is gathered, and outputs are written where they belong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import Pair
from equilayers._tables import table
from equilayers.functional._convolution.filters import expand, reversed_weight
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._convolution.patterns import Basis, basis_of
from equilayers.functional._convolution.programs import Machine, Program, Window, program
from equilayers.functional._fourier.transforms import Butterflies
from equilayers.groups import Group

# Patches of one block: positions enough to keep a matrix product busy, bytes that the caches of a core hold.
BLOCK_BYTES, BLOCK_POSITIONS, MOST_BYTES = 6_000_000, 640, 12_000_000


@dataclass(frozen=True)
class PatternKernel:
    r"""The `Kernel` of a group convolution with zero padding: x (B, C, |G|, H, W), y (B, O, |G|, H', W').

    y lies in memory as (B, |G|, H', W', O), which the next layer reads as it is.
    """

    spec: ConvSpec
    fourier: Butterflies
    size: Pair

    def correlate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.apply(x, self.operators(weight), bias, len(weight))

    def bias_gradient(self, v: Tensor) -> Tensor:
        return v.sum((0, 2, 3, 4))

    def operators(self, weight: Tensor) -> list[Tensor]:
        r"""The matrix of each irrep, from coefficients to coefficients."""
        made = weight.flatten(2) @ coefficients(self.spec.group, self.spec.kernel_size, weight.device, weight.dtype).mT
        parts = iter(made.split(self._terms, 2))
        dense = lambda w: w.transpose(1, 2).flatten(1).contiguous()  # noqa: E731 - of one term it were a view with gaps
        rows = [tuple(dense(next(parts)) for _ in block) for block in self._basis.blocks]
        return [block.operator(w) for block, w in zip(self.fourier.blocks, rows, strict=True)]

    def apply(self, x: Tensor, operators: list[Tensor], bias: Tensor | None, features: int) -> Tensor:
        r"""The output for x and prepared operators."""
        size = len(x), features, self.spec.group.order, *self.spec.out_size(self.size)
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        planes = out.permute(2, 0, 3, 4, 1)
        for samples, lines, blocks in self._blocks(x):
            both = zip(self.fourier.blocks, blocks, operators, strict=True)
            results = [block.product(tuple(rows), operator) for block, rows, operator in both]
            if bias is not None:
                results[0] = (results[0][0].add_(bias),)  # the trivial irrep reaches every plane alike
            self.fourier.synthesis_into(results, planes[:, samples, lines])
        return out

    def input_adjoint(self, v: Tensor, weight: Tensor) -> Tensor:
        spec, out = self.spec, self.spec.out_size(self.size)
        if spec.stride == (1, 1):  # a group convolution of the same kind
            padding = spec.spans[0] - spec.padding[0], spec.spans[1] - spec.padding[1]
            back = replace(self, spec=replace(spec, padding=padding), size=out)
            return back.correlate(v, reversed_weight(weight, spec.group), None)
        rest = [span % stride for span, stride in zip(spec.sampling_span(self.size), spec.stride, strict=True)]
        filters = expand(weight, spec.group)
        x = F.conv_transpose2d(v.flatten(1, 2), filters, None, spec.stride, spec.padding, rest, 1, spec.dilation)
        return x.unflatten(1, (-1, spec.group.order))

    def weight_gradient(self, v: Tensor, x: Tensor) -> Tensor:
        n, channels, features = self.spec.group.order, x.shape[1], v.shape[1]
        if len(x) == 0:
            return x.new_zeros(features, channels, n, *self.spec.kernel_size)
        planes = v.permute(0, 3, 4, 2, 1)
        total: list[Tensor] = []
        for samples, lines, blocks in self._blocks(x):
            upstream = self.fourier.analysis(planes[samples, lines].reshape(-1, n, features))
            both = zip(self.fourier.blocks, upstream, blocks, strict=True)
            part = [row for block, y, rows in both for row in block.correlate(y, tuple(rows))]
            total = [one.add_(other) for one, other in zip(total, part, strict=True)] if total else part
        made = torch.cat([row.unflatten(1, (-1, channels)).transpose(1, 2) for row in total], 2)
        table = coefficients(self.spec.group, self.spec.kernel_size, x.device, x.dtype)
        return (made @ table).unflatten(2, (n, *self.spec.kernel_size))

    @property
    def _basis(self) -> Basis:
        return basis_of(self.spec.group, self.spec.kernel_size)

    @property
    def _terms(self) -> list[int]:
        return [len(row) for block in self._basis.blocks for row in block]

    def _blocks(self, x: Tensor) -> Iterator[tuple[slice, slice, Iterator[list[Tensor]]]]:
        r"""Samples, lines of the outputs, and the rows of their patches irrep by irrep; all share one workspace."""
        batch, channels = x.shape[:2]
        height, width = self.spec.out_size(self.size)
        count, most = self._shares(batch, sum(self._terms) * channels * x.element_size())
        memory: Tensor | None = None
        machine, before = None, None
        for first in range(0, batch, count):
            for top in range(0, height, most):
                size = min(count, batch - first), min(most, height - top)
                made = self._program(channels, size[0], (size[1], width))
                if memory is None:  # the first block is the largest
                    memory = x.new_empty(made.entries)
                if machine is None or before != size:
                    machine = Machine(made, memory)
                samples = slice(first, first + size[0])
                self._fill(machine.planes, x[samples], top, clear=before != size or most < height)
                before = size
                yield samples, slice(top, top + size[1]), machine.run()

    def _shares(self, batch: int, bytes_of_one: int) -> Pair:
        r"""How many samples, and how many lines of their outputs, make a block."""
        height, width = self.spec.out_size(self.size)
        wanted = block_positions(bytes_of_one)
        if height * width <= 1.5 * wanted:
            samples = max(1, round(wanted / (height * width)))
            return -(-batch // -(-batch // samples)) if batch else 1, height
        lines = max(1, wanted // width)
        return 1, -(-height // -(-height // lines))

    def _program(self, channels: int, samples: int, out: Pair) -> Program:
        spec = self.spec
        reach = spec.spans[0] + 1, spec.spans[1] + 1
        return program(self._basis, reach, Window(samples, channels, out, spec.stride, spec.dilation))

    def _fill(self, planes: Tensor, x: Tensor, top: int, *, clear: bool) -> None:
        r"""Write x, channels last, into the first planes, from output line `top` on, with zeros around it."""
        target, source = planes[: x.shape[2]], x.permute(2, 0, 3, 4, 1)
        if clear:
            target.zero_()
        starts = top * self.spec.stride[0] - self.spec.padding[0], -self.spec.padding[1]
        for axis, start in zip((2, 3), starts, strict=True):
            low, high = max(start, 0), min(start + target.shape[axis], source.shape[axis])
            if low >= high:  # lines of padding alone
                return
            source = source.narrow(axis, low, high - low)
            target = target.narrow(axis, low - start, high - low)
        target.copy_(source)


def block_positions(bytes_of_one: int) -> int:
    r"""How many positions make a block, by the bytes of a patch."""
    return max(BLOCK_BYTES // bytes_of_one, min(BLOCK_POSITIONS, MOST_BYTES // bytes_of_one), 1)


@table
def coefficients(group: Group, kernel: Pair, device: torch.device, dtype: torch.dtype) -> Tensor:
    r"""The coefficients of every unit patch (u, t), over their squares: (terms of all rows, |G|·kh·kw)."""
    units = torch.eye(group.order * math.prod(kernel), dtype=torch.float64, device="cpu")
    made = program(basis_of(group, kernel), kernel, Window(1, len(units), (1, 1), (1, 1), (1, 1)))
    machine = Machine(made, units.new_empty(made.entries))
    machine.planes[: group.order, 0] = units.view(group.order, *kernel, -1)
    rows = torch.cat([row.view(-1, len(units)).clone() for rows in machine.run() for row in rows])
    return (rows / rows.square().sum(1, keepdim=True)).to(device, dtype)
