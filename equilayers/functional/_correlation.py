r"""The group correlation `y(h) = sum_k W(h^-1 k) x(k)` by the group Fourier transform, and its two adjoints.

All functions on the group are planes: x (B, |G|, M), W (O, |G|, M), y (B, |G|, O). The three maps are the partial
derivatives of one trilinear form <v, W * x>, so that each one's backward is made of the other two and gradients of any
order come for free:

    Correlate(x, W) -> y        Spread(v, W) -> x        Compare(v, x) -> W

The batch is worked through in blocks that stay in the cache; nothing but the inputs is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from equilayers.functional._cyclic import canonical_start, turn_back, turn_to
from equilayers.functional._fourier import Fourier

BLOCK_BYTES = 1_500_000  # of planes per block: what comes in and goes out should stay in a core's second-level cache


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
    start = None if fourier.exact or torch.compiler.is_compiling() else canonical_start(x)
    rows = fourier.analysis(x if start is None else turn_to(x, start))
    results = [block.product(row, op) for block, row, op in zip(fourier.blocks, rows, operators, strict=True)]
    if bias is not None:
        results[0] = (results[0][0] + bias,)  # the trivial irrep reaches every plane alike
    if start is None:
        return torch.stack(fourier.synthesis(results), 1, out=out)
    return turn_back(torch.stack(fourier.synthesis(results), 1), start, out)


def transform_blocks(
    x: Tensor, operators: Sequence[Tensor], bias: Tensor | None, fourier: Fourier, features: int
) -> Tensor:
    r"""`transform` in blocks of samples; not differentiable."""
    out = x.new_empty(*x.shape[:2], features)
    rows = _block_rows(x, out)
    for block, place in zip(x.split(rows), out.split(rows), strict=True):
        transform(block, operators, bias, fourier, place)
    return out


def _block_rows(x: Tensor, y: Tensor) -> int:
    per_sample = x.element_size() * max(x[:1].numel(), y[:1].numel(), 1)
    return max(32, 1 << max(0, (BLOCK_BYTES // per_sample).bit_length() - 1))


class Correlate(Function):
    r"""Planes y (B, |G|, O) of x (B, |G|, M), weight (O, |G|, M) and bias (O,) or None."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, fourier: Fourier) -> Tensor:
        return transform_blocks(x, operators_of(weight, fourier), bias, fourier, weight.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, weight, _, ctx.fourier = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        gx = Spread.apply(v, weight, ctx.fourier) if needs_x else None
        gw = Compare.apply(v, x, ctx.fourier) if needs_weight else None
        return gx, gw, v.sum((0, 1)) if needs_bias else None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _fold_or_loop(Correlate, info.batch_size, in_dims, args)


class Spread(Function):
    r"""The x-gradient of <v, Correlate(x, W)>: v (B, |G|, O) and weight (O, |G|, M) to (B, |G|, M)."""

    @staticmethod
    def forward(v: Tensor, weight: Tensor, fourier: Fourier) -> Tensor:
        operators = operators_of(weight, fourier, adjoint=True)
        return transform_blocks(v.contiguous(), operators, None, fourier, weight.shape[2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        v, weight, ctx.fourier = inputs
        ctx.save_for_backward(v, weight)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        v, weight = ctx.saved_tensors
        needs_v, needs_weight, _ = ctx.needs_input_grad
        gv = Correlate.apply(u.contiguous(), weight, None, ctx.fourier) if needs_v else None
        gw = Compare.apply(v, u, ctx.fourier) if needs_weight else None
        return gv, gw, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        return _fold_or_loop(Spread, info.batch_size, in_dims, args)


class Compare(Function):
    r"""The W-gradient of <v, Correlate(x, W)>: v (B, |G|, O) and x (B, |G|, M) to (O, |G|, M)."""

    @staticmethod
    def forward(v: Tensor, x: Tensor, fourier: Fourier) -> Tensor:
        rows = _block_rows(x, v)
        total: list[tuple[Tensor, ...]] = []
        for left, right in zip(v.split(rows), x.split(rows), strict=True):
            pairs = zip(fourier.blocks, fourier.analysis(left), fourier.analysis(right), strict=True)
            part = [block.correlate(y, u) for block, y, u in pairs]
            total = [tuple(map(torch.add, *both)) for both in zip(total, part, strict=True)] if total else part
        scaled = [tuple(row * s for row in rows) for rows, s in zip(total, fourier.scales, strict=True)]
        return torch.stack(fourier.synthesis(scaled), 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        v, x, ctx.fourier = inputs
        ctx.save_for_backward(v, x)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        v, x = ctx.saved_tensors
        needs_v, needs_x, _ = ctx.needs_input_grad
        gv = Correlate.apply(x, u, None, ctx.fourier) if needs_v else None
        gx = Spread.apply(v, u, ctx.fourier) if needs_x else None
        return gv, gx, None

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
