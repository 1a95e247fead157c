r"""The group correlation `y(h) = sum_k W(h^-1 k) x(k)` by the group Fourier transform, and its two adjoints.

The three maps are the partial derivatives of one trilinear form <v, W * x>, so that each one's backward is made of the
other two and gradients of any order come for free:

    correlate(x, W) -> y        spread(v, W) -> x        compare(v, x) -> W

The batch is worked through in blocks that stay in the cache; nothing but the inputs is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from equilayers.functional._cyclic import canonical_start, turn_back, turn_to
from equilayers.functional._fourier import Fourier
from equilayers.functional._tables import OrbitTable

BLOCK_BYTES = 1_500_000  # of planes per block: what comes in and goes out should stay in a core's second-level cache


def _block_rows(entries: int, itemsize: int) -> int:
    fitting = BLOCK_BYTES // max(1, entries * itemsize)
    return max(32, 1 << max(0, fitting.bit_length() - 1))


def _to_planes(x: Tensor, table: OrbitTable | None, order: int) -> Tensor:
    # One memory order for all: a product of operands in another order may end in other bits.
    return x.transpose(1, 2).contiguous() if table is None else table.planes(x, order)


def operators_of(
    weight: Tensor, table: OrbitTable | None, fourier: Fourier, order: int, *, adjoint: bool = False
) -> list[Tensor]:
    r"""The matrix of each block: the Fourier transform of the weight, scaled."""
    planes = weight.transpose(1, 2).contiguous() if table is None else table.weight_planes(weight, order)
    scaled = (tuple(row * s for row in rows) for rows, s in zip(fourier.analysis(planes), fourier.scales, strict=True))
    make = (block.adjoint if adjoint else block.operator for block in fourier.blocks)
    return [matrix(rows) for matrix, rows in zip(make, scaled, strict=True)]


def _transform(
    planes: Tensor, operators: Sequence[Tensor], bias: Tensor | None, fourier: Fourier, out: Tensor | None = None
) -> Tensor:
    r"""Planes (R, |G|, M) to planes (R, |G|, O): analysis, one product per block, synthesis."""
    # A compiler reorders sums as it likes: there is nothing bitwise left that a canonical start could save.
    start = None if fourier.exact or torch.compiler.is_compiling() else canonical_start(planes)
    rows = fourier.analysis(planes if start is None else turn_to(planes, start))
    results = [block.product(row, op) for block, row, op in zip(fourier.blocks, rows, operators, strict=True)]
    if bias is not None:
        results[0] = (results[0][0] + bias,)  # the trivial irrep reaches every plane alike
    if start is None:
        return torch.stack(fourier.synthesis(results), 1, out=out)
    return turn_back(torch.stack(fourier.synthesis(results), 1), start, out)


def _in_blocks(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, out: Tensor, rows: int) -> Tensor:
    for block, place in zip(x.split(rows), out.split(rows), strict=True):
        run(block, place)
    return out


def correlate_whole(
    x: Tensor, weight: Tensor, bias: Tensor | None, fourier: Fourier, table: OrbitTable | None, order: int
) -> Tensor:
    r"""`correlate` as one differentiable composition without blocks, for compilers."""
    operators = operators_of(weight, table, fourier, order)
    return _transform(_to_planes(x, table, order), operators, bias, fourier).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Operators:
    r"""The matrices of a weight, in one piece that autograd and vmap do not look into."""

    matrices: list[Tensor]


class Correlate(Function):
    r"""y (B, O, |G|) of x (B, N), or (B, C, |G|) without a table, and weight (O, N) or (O, C, |G|).

    The operators of the weight are made anew when they are None.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        fourier: Fourier,
        table: OrbitTable | None,
        order: int,
        operators: Operators | None = None,
    ) -> Tensor:
        matrices = operators_of(weight, table, fourier, order) if operators is None else operators.matrices
        size = _block_rows(max(weight[0].numel(), order * weight.shape[0]), x.element_size())
        out = x.new_empty(x.shape[0], order, weight.shape[0])
        run = lambda part, place: _transform(_to_planes(part, table, order), matrices, bias, fourier, place)  # noqa: E731
        return _in_blocks(run, x, out, size).transpose(1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, weight, _, *rest = inputs
        ctx.rest = rest[:3]
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        gx = Spread.apply(v, weight, *ctx.rest) if needs_x else None
        gw = Compare.apply(v, x, *ctx.rest) if needs_weight else None
        gb = v.sum((0, 2)) if needs_bias else None
        return gx, gw, gb, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _fold_or_loop(Correlate, info.batch_size, in_dims, args)


class Spread(Function):
    r"""The x-gradient of <v, correlate(x, W)>: v (B, O, |G|) and weight to the shape of x."""

    @staticmethod
    def forward(v: Tensor, weight: Tensor, fourier: Fourier, table: OrbitTable | None, order: int) -> Tensor:
        matrices = operators_of(weight, table, fourier, order, adjoint=True)
        size = _block_rows(max(weight[0].numel(), order * weight.shape[0]), v.element_size())
        run = lambda part, place=None: _transform(part.transpose(1, 2).contiguous(), matrices, None, fourier, place)  # noqa: E731
        if table is None:
            out = v.new_empty(v.shape[0], order, weight.shape[1])
            return _in_blocks(run, v, out, size).transpose(1, 2)
        # Entries that stand in an orbit more than once got their share of the weight at each place, hence `flat`'s sum.
        out = v.new_empty(v.shape[0], weight.shape[1])
        return _in_blocks(lambda part, place: place.copy_(table.flat(run(part))), v, out, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        v, weight, *ctx.rest = inputs
        ctx.save_for_backward(v, weight)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        v, weight = ctx.saved_tensors
        needs_v, needs_weight, *_ = ctx.needs_input_grad
        gv = Correlate.apply(u, weight, None, *ctx.rest) if needs_v else None
        gw = Compare.apply(v, u, *ctx.rest) if needs_weight else None
        return gv, gw, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _fold_or_loop(Spread, info.batch_size, in_dims, args)


class Compare(Function):
    r"""The W-gradient of <v, correlate(x, W)>: v (B, O, |G|) and x to the shape of the weight."""

    @staticmethod
    def forward(v: Tensor, x: Tensor, fourier: Fourier, table: OrbitTable | None, order: int) -> Tensor:
        size = _block_rows(max(x[:1].numel(), v[:1].numel()), x.element_size())
        total: list[tuple[Tensor, ...]] = []
        for left, right in zip(v.split(size), x.split(size), strict=True):
            ys = fourier.analysis(left.transpose(1, 2).contiguous())
            xs = fourier.analysis(_to_planes(right, table, order))
            part = [block.correlate(y, u) for block, y, u in zip(fourier.blocks, ys, xs, strict=True)]
            total = [tuple(map(torch.add, *pair)) for pair in zip(total, part, strict=True)] if total else part
        scaled = [tuple(row * s for row in rows) for rows, s in zip(total, fourier.scales, strict=True)]
        planes = torch.stack(fourier.synthesis(scaled), 1)
        if table is None:
            return planes.transpose(1, 2)
        return planes.flatten(1).index_select(1, table.first)  # each place got an equal share of an equal gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        v, x, *ctx.rest = inputs
        ctx.save_for_backward(v, x)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        v, x = ctx.saved_tensors
        needs_v, needs_x, *_ = ctx.needs_input_grad
        gv = Correlate.apply(x, u, None, *ctx.rest) if needs_v else None
        gx = Spread.apply(v, u, *ctx.rest) if needs_x else None
        return gv, gx, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _loop(Compare, info.batch_size, in_dims, args), 0


def _fold_or_loop(
    function: type[Function], size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[Tensor, int]:
    r"""A vmap over the rows alone becomes a longer batch; over weights as well it becomes a loop."""
    if in_dims[0] is None or any(d is not None for d in in_dims[1:]):
        return _loop(function, size, in_dims, args), 0
    rows = args[0].movedim(in_dims[0], 0)
    out = function.apply(rows.flatten(0, 1), *args[1:])
    return out.unflatten(0, rows.shape[:2]), 0


def _loop(function: type[Function], size: int, in_dims: tuple[Any, ...], args: tuple[Any, ...]) -> Tensor:
    pick = lambda a, d, i: a if d is None else a.select(d, i)  # noqa: E731
    return torch.stack([function.apply(*map(pick, args, in_dims, [i] * len(args))) for i in range(size)])
