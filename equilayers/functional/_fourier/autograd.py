r"""Autograd functions of a bilinear map and its two adjoints, which are each other's derivatives.

A weight-tied layer is bilinear, y = W * x. Its map and the two adjoints are the partial derivatives of one trilinear
form <v, W * x>, so that each one's backward is made of the other two and gradients of any order come for free:

    Correlate(x, W) -> y        InputAdjoint(v, W) -> x        WeightGradient(v, x) -> W

A `Kernel` computes the three; nothing but the inputs is kept for the backward pass.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function


class Kernel(Protocol):
    r"""A bilinear map and its adjoints on plain tensors, none of them differentiable by itself."""

    def correlate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        r"""The output, y = W * x + bias."""

    def input_adjoint(self, v: Tensor, weight: Tensor) -> Tensor:
        r"""The x-gradient of <v, W * x>."""

    def weight_gradient(self, v: Tensor, x: Tensor) -> Tensor:
        r"""The W-gradient of <v, W * x>."""

    def bias_gradient(self, v: Tensor) -> Tensor:
        r"""The bias-gradient of <v, y>; differentiable."""


class _BilinearMap(Function):
    r"""The part that the three maps share; each takes two tensors first and the kernel last."""

    folds_rows = True  # whether rows of the first argument are independent of each other

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.kernel = inputs[-1]
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @classmethod
    def jvp(cls, ctx: Any, ta: Tensor | None, tb: Tensor | None, *rest: Tensor | None) -> Tensor:
        r"""Each map is linear in either of its tensors, and in the bias, whose tangent goes along with the first."""
        a, b = ctx.saved_tensors
        bias, none = rest[:-1], [None] * (len(rest) - 1)
        first: Tensor = cls.apply(torch.zeros_like(a) if ta is None else ta, b, *bias, ctx.kernel)
        return first if tb is None else first + cls.apply(a, tb, *none, ctx.kernel)

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        r"""A vmap over the rows alone becomes a longer batch; over weights as well it becomes a loop."""
        if cls.folds_rows and in_dims[0] is not None and all(d is None for d in in_dims[1:]):
            rows = args[0].movedim(in_dims[0], 0)
            return cls.apply(rows.flatten(0, 1), *args[1:]).unflatten(0, rows.shape[:2]), 0
        pick = lambda a, d, i: a if d is None else a.select(d, i)  # noqa: E731
        return torch.stack([cls.apply(*map(pick, args, in_dims, [i] * len(args))) for i in range(info.batch_size)]), 0


class Correlate(_BilinearMap):
    r"""The output y of x, weight and bias or None."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Kernel) -> Tensor:
        return kernel.correlate(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        gx = InputAdjoint.apply(v, weight, ctx.kernel) if needs_x else None
        gw = WeightGradient.apply(v, x, ctx.kernel) if needs_weight else None
        return gx, gw, ctx.kernel.bias_gradient(v) if needs_bias else None, None


class InputAdjoint(_BilinearMap):
    r"""The x-gradient of <v, Correlate(x, W)>."""

    @staticmethod
    def forward(v: Tensor, weight: Tensor, kernel: Kernel) -> Tensor:
        return kernel.input_adjoint(v, weight)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        v, weight = ctx.saved_tensors
        needs_v, needs_weight, _ = ctx.needs_input_grad
        gv = Correlate.apply(u, weight, None, ctx.kernel) if needs_v else None
        gw = WeightGradient.apply(v, u, ctx.kernel) if needs_weight else None
        return gv, gw, None


class WeightGradient(_BilinearMap):
    r"""The W-gradient of <v, Correlate(x, W)>."""

    folds_rows = False

    @staticmethod
    def forward(v: Tensor, x: Tensor, kernel: Kernel) -> Tensor:
        return kernel.weight_gradient(v, x)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        v, x = ctx.saved_tensors
        needs_v, needs_x, _ = ctx.needs_input_grad
        gv = Correlate.apply(x, u, None, ctx.kernel) if needs_v else None
        gx = InputAdjoint.apply(v, u, ctx.kernel) if needs_x else None
        return gv, gx, None
