r"""The group correlation `y(h) = sum_k W(h^-1 k) x(k)` by the group Fourier transform, and its two adjoints.

All functions on the group are planes: x (B, |G|, M), W (O, |G|, M), y (B, |G|, O). The batch is worked through in
blocks that stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equilayers.functional._fourier.canonical import canonical_start, roll_back, roll_to_start
from equilayers.functional._fourier.irreps import Fourier, Rows

BLOCK_BYTES = 1_500_000  # of planes per block: what comes in and goes out should stay in a core's second-level cache
# With fewer samples than these a matrix product costs more than the cache gains; blocks of many bytes make do with 32.
BLOCK_ROWS, FEWEST_ROWS, MOST_BYTES = 256, 32, 32_000_000


def operators_of(weight: Tensor, fourier: Fourier, *, adjoint: bool = False) -> list[Tensor]:
    r"""The matrix of each block: the Fourier transform of the weight (O, |G|, M), scaled."""
    coefficients = zip(fourier.analysis(weight), fourier.scales, strict=True)
    scaled = [tuple(row * scale for row in rows) for rows, scale in coefficients]
    make = [block.adjoint if adjoint else block.operator for block in fourier.blocks]
    return [matrix(rows) for matrix, rows in zip(make, scaled, strict=True)]


def transform(
    x: Tensor, operators: Sequence[Tensor], bias: Tensor | None, fourier: Fourier, out: Tensor | None = None
) -> Tensor:
    r"""Planes (R, |G|, M) to planes (R, |G|, O): analysis, one product per block, synthesis."""
    # A compiler reorders sums as it likes: there is nothing bitwise left that a canonical start could save.
    start = None if not fourier.canonical or torch.compiler.is_compiling() else canonical_start(x)
    rows = fourier.analysis(x if start is None else roll_to_start(x, start))
    results = [block.product(row, op) for block, row, op in zip(fourier.blocks, rows, operators, strict=True)]
    if bias is not None:
        results[0] = (results[0][0] + bias,)  # the trivial irrep reaches every plane alike
    if start is None:
        return torch.stack(fourier.synthesis(results), 1, out=out)
    return roll_back(torch.stack(fourier.synthesis(results), 1), start, out)


def transform_blocks(
    x: Tensor, operators: Sequence[Tensor], bias: Tensor | None, fourier: Fourier, features: int
) -> Tensor:
    r"""`transform` in blocks of samples; not differentiable."""
    out = x.new_empty(*x.shape[:2], features)
    rows = _block_rows(x, out)
    for block, place in zip(x.split(rows), out.split(rows), strict=True):
        transform(block, operators, bias, fourier, place)
    return out


def weight_planes_of(pairs: Iterable[tuple[Tensor, Tensor]], fourier: Fourier) -> Tensor:
    r"""The W-gradient (O, |G|, M) of <v, W * x>, summed over pairs of planes v (R, |G|, O) and x (R, |G|, M)."""
    total: list[Rows] = []
    for v, x in pairs:
        both = zip(fourier.blocks, fourier.analysis(v), fourier.analysis(x), strict=True)
        part = [block.correlate(y, u) for block, y, u in both]
        for sums, rows in zip(total, part, strict=True) if total else ():
            for one, other in zip(sums, rows, strict=True):
                one.add_(other)
        total = total or part
    scaled = [tuple(row * s for row in rows) for rows, s in zip(total, fourier.scales, strict=True)]
    return torch.stack(fourier.synthesis(scaled), 1)


def _block_rows(x: Tensor, y: Tensor) -> int:
    per_sample = x.element_size() * max(x[:1].numel(), y[:1].numel(), 1)
    wanted = max(BLOCK_BYTES, min(BLOCK_ROWS * per_sample, MOST_BYTES)) // per_sample
    return max(FEWEST_ROWS, 1 << max(0, wanted.bit_length() - 1))


@dataclass(frozen=True)
class PlaneKernel:
    r"""The `Kernel` of planes: x (B, |G|, M), weight (O, |G|, M), y (B, |G|, O)."""

    fourier: Fourier

    def correlate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        operators = operators_of(weight, self.fourier)
        return transform_blocks(x.contiguous(), operators, bias, self.fourier, weight.shape[0])

    def input_adjoint(self, v: Tensor, weight: Tensor) -> Tensor:
        operators = operators_of(weight, self.fourier, adjoint=True)
        return transform_blocks(v.contiguous(), operators, None, self.fourier, weight.shape[2])

    def weight_gradient(self, v: Tensor, x: Tensor) -> Tensor:
        rows = _block_rows(x, v)
        return weight_planes_of(zip(v.split(rows), x.split(rows), strict=True), self.fourier)

    def bias_gradient(self, v: Tensor) -> Tensor:
        return v.sum((0, 1))
