r"""Convolutions as group correlations of patches in the basis of `patterns`, where the last bit need not be kept.

The products are those of `patches`. What it saves are sums and copies: a patch of a 3x3 kernel under D4 takes 96 sums
for 72 numbers instead of 216, none is gathered, and outputs are written where they belong. numba does the work where it
is installed, otherwise torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import Pair
from equilayers._tables import table
from equilayers.functional._convolution import numba_sums
from equilayers.functional._convolution.filters import expand, reversed_weight
from equilayers.functional._convolution.geometry import ConvSpec, empty_output
from equilayers.functional._convolution.numba_sums import calls_blas, serves
from equilayers.functional._convolution.patterns import Basis, basis_of
from equilayers.functional._convolution.programs import Window, corners, program
from equilayers.functional._convolution.torch_sums import TorchFields, TorchOutputs, TorchPatches, TorchSums
from equilayers.functional._fourier.transforms import Butterflies
from equilayers.groups import Group


class Block(NamedTuple):
    r"""How large a block is: patches of so many bytes, for the caches, but of so many positions, for the products.

    most: bytes that it may have for that.
    """

    bytes: int
    positions: int
    most: int

    def positions_of(self, bytes_of_one: int) -> int:
        r"""How many positions make a block, by the bytes of a patch."""
        return max(self.bytes // bytes_of_one, min(self.positions, self.most // bytes_of_one), 1)


BLOCK = Block(6_000_000, 640, 12_000_000)
BLAS_BLOCK = Block(2_000_000, 320, 6_000_000)


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
        if serves(x, *operators):
            return numba_sums.convolve(self.fourier, self.spec, x, operators, bias, self._share(x))
        out = empty_output(self.spec, x, features)
        patches, outputs = TorchPatches(x, self.spec), TorchOutputs(out, self.fourier, bias)
        for samples, lines in self._blocks(x):
            outputs.write(samples, lines, patches.rows(samples, lines), operators)
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
        total = self._slopes(v, x)
        made = torch.cat([row.unflatten(1, (-1, channels)).transpose(1, 2) for row in total], 2)
        table = coefficients(self.spec.group, self.spec.kernel_size, x.device, x.dtype)
        return (made @ table).unflatten(2, (n, *self.spec.kernel_size))

    def _slopes(self, v: Tensor, x: Tensor) -> list[Tensor]:
        r"""The gradients of the matrices of each irrep, row by row."""
        if serves(v, x):
            found = numba_sums.correlate(self.fourier, self.spec, v, x, self._share(x))
            return list(itertools.chain(*found))
        total: list[Tensor] = []
        patches, upstream = TorchPatches(x, self.spec), TorchFields(v, self.fourier)
        for samples, lines in self._blocks(x):
            both = zip(self.fourier.blocks, upstream.rows(samples, lines), patches.rows(samples, lines), strict=True)
            part = [row for block, y, rows in both for row in block.correlate(tuple(y), tuple(rows))]
            total = [one.add_(other) for one, other in zip(total, part, strict=True)] if total else part
        return total

    @property
    def _basis(self) -> Basis:
        return basis_of(self.spec.group, self.spec.kernel_size)

    @property
    def _terms(self) -> list[int]:
        return [len(row) for block in self._basis.blocks for row in block]

    def _blocks(self, x: Tensor) -> Iterator[tuple[slice, slice]]:
        r"""Samples, and lines of their outputs."""
        return corners(len(x), self.spec.out_size(self.size)[0], self._share(x, BLOCK))

    def _share(self, x: Tensor, block: Block | None = None) -> Pair:
        r"""How many samples, and how many lines of their outputs, make a block; without one given that of numba."""
        batch, (height, width) = len(x), self.spec.out_size(self.size)
        block = (BLAS_BLOCK if calls_blas(x) else BLOCK) if block is None else block
        wanted = block.positions_of(sum(self._terms) * x.shape[1] * x.element_size())
        if block is BLAS_BLOCK:  # a share for each thread
            wanted = min(wanted, -(-batch * height * width // torch.get_num_threads()))
        if height * width <= 1.5 * wanted:
            samples = max(1, round(wanted / (height * width)))
            return -(-batch // -(-batch // samples)) if batch else 1, height
        lines = max(1, wanted // width)
        return 1, -(-height // -(-height // lines))


@table
def coefficients(group: Group, kernel: Pair, device: torch.device, dtype: torch.dtype) -> Tensor:
    r"""The coefficients of every unit patch (u, t), over their squares: (terms of all rows, |G|·kh·kw)."""
    units = torch.eye(group.order * math.prod(kernel), dtype=torch.float64, device="cpu")
    basis = basis_of(group, kernel)
    made = program(basis, kernel, Window(1, len(units), (1, 1)))
    machine = TorchSums(made, units.new_empty(made.entries))
    machine.planes[: group.order, 0] = units.view(group.order, *kernel, -1)
    both = zip(basis.blocks, machine.run(), strict=True)
    terms = [row.view(-1, len(units)).clone() for block, rows in both for row in rows[: len(block)]]
    rows = torch.cat(terms)
    return (rows / rows.square().sum(1, keepdim=True)).to(device, dtype)
