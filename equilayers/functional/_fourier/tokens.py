r"""Token-wise correlations: the group Fourier transform of features at many positions, and products in its basis.

Features are planes (|G|, R, C), all positions of all samples below each other; their coefficients are planes as well,

    analysis(x) = Q x,    synthesis(x) = Q^T x,

one product with the small matrix Q of `IrrepBasis`. Between them stand the products of each irrep. Nothing here keeps
the last bit.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from equilayers._checks import in_autocast, widened
from equilayers._matmul import matmul_into
from equilayers._tables import table
from equilayers._torch_compat import constant_when_compiled, is_tracing
from equilayers.functional._fourier.autograd import Correlate
from equilayers.functional._fourier.basis import Array, IrrepBlock, irrep_basis
from equilayers.functional._index_tables import to_tensor
from equilayers.functional._weight_cache import is_plain
from equilayers.groups import Group

Operators = tuple[Tensor, ...]  # (w, w, O, C) for each irrep; (2, O, C), c and d, for a pair


def planes_of(f: Tensor) -> Tensor:
    r"""Regular feature (B, C, |G|, *S) to planes (|G|, R, C)."""
    return f.permute(2, 0, *range(3, f.ndim), 1).flatten(1, -2)


def feature_of(planes: Tensor, f: Tensor) -> Tensor:
    r"""Planes (|G|, R, O) to a regular feature (B, O, |G|, *S) with C innermost in memory, the fiber next.

    B and S are those of f.
    """
    y = planes.transpose(0, 1).contiguous().view(f.shape[0], *f.shape[3:], len(planes), planes.shape[2])
    return y.permute(0, -1, -2, *range(1, f.ndim - 2))


def analysis(x: Tensor, group: Group) -> Tensor:
    r"""The coefficients of planes x (|G|, R, C)."""
    return _mixed(_matrix(group, "matrix", x), x)


def synthesis(x: Tensor, group: Group) -> Tensor:
    r"""The planes of coefficients x (|G|, R, C)."""
    return _mixed(_matrix(group, "matrix", x).mT, x)


def fiber_analysis(x: Tensor, group: Group) -> Tensor:
    r"""The coefficients (|G|, R, C) of numbers (R, C·|G|), the fiber innermost: transposed by the product itself."""
    fibers = x.reshape(-1, group.order)
    with _in_own_precision(x):
        return (_matrix(group, "matrix", x) @ fibers.mT).view(group.order, len(x), x.shape[1] // group.order)


def fiber_synthesis(x: Tensor, group: Group) -> Tensor:
    r"""Numbers (R, C·|G|), the fiber innermost, of coefficients (|G|, R, C)."""
    with _in_own_precision(x):
        return (x.flatten(1).mT @ _matrix(group, "matrix", x)).view(x.shape[1], x.shape[2] * group.order)


def _mixed(matrix: Tensor, x: Tensor) -> Tensor:
    with _in_own_precision(x):
        return (matrix @ x.flatten(1)).view(x.shape)


def _in_own_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    r"""As sums of planes a transform is no affair of autocast."""
    return torch.autocast(x.device.type, enabled=False) if in_autocast(x) else contextlib.nullcontext()


def operators_of(weight: Tensor, group: Group) -> Operators:
    r"""The products of each irrep for a weight (O, C, |G|); differentiable."""
    features, channels, n = weight.shape
    entries = (_matrix(group, "images", weight) @ weight.reshape(-1, n).mT).view(-1, features, channels)
    blocks = blocks_of(group)
    parts = entries.split([_entries(b) for b in blocks])
    return tuple(
        part if b.pair else part.unflatten(0, (b.width, b.width)) for b, part in zip(blocks, parts, strict=True)
    )


def bias_of(bias: Tensor, group: Group) -> Tensor:
    r"""The coefficient of the trivial irrep of what is the bias (O,) on the whole group."""
    return bias * group.order**0.5


def product(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    r"""Coefficients (|G|, R, C) and a weight (O, C, |G|) to coefficients (|G|, R, O); differentiable."""
    graph = torch.compiler.is_compiling() or is_tracing()  # a graph is wanted
    if not graph and is_plain(x, weight):
        return Correlate.apply(x, weight, bias, CoefficientKernel(group))
    # In plain operations, which compilers, exporters and functional transforms know.
    made = []
    for b, entries in zip(blocks_of(group), operators_of(weight, group), strict=True):
        c, d = entries[0], entries[-1]
        operator = torch.stack((torch.stack((c, -d)), torch.stack((d, c)))) if b.pair else entries
        part = x[b.slice].unflatten(0, (b.width, b.copies)).permute(1, 2, 0, 3).flatten(2)
        y = part @ operator.permute(0, 2, 1, 3).flatten(2).flatten(0, 1).mT
        made.append(y.unflatten(2, (b.width, -1)).permute(2, 0, 1, 3).flatten(0, 1))
    if bias is not None:
        made[0] = made[0] + bias_of(bias, group)
    return torch.cat(made)


@dataclass(frozen=True)
class CoefficientKernel:
    r"""The `Kernel` of coefficients x (|G|, R, C), weight (O, C, |G|) and y (|G|, R, O)."""

    group: Group

    def correlate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.apply(x.contiguous(), operators_of(weight, self.group), bias, weight.shape[0])

    def apply(self, x: Tensor, operators: Operators, bias: Tensor | None, features: int) -> Tensor:
        r"""The output for prepared operators."""
        y = self._apply(x, operators, features)
        if bias is not None:
            y[0].add_(bias_of(bias, self.group))
        return y

    def input_adjoint(self, v: Tensor, weight: Tensor) -> Tensor:
        operators = operators_of(weight, self.group)
        adjoint = [
            torch.stack((op[0].mT, -op[1].mT)) if b.pair else op.transpose(0, 1).mT
            for b, op in zip(blocks_of(self.group), operators, strict=True)
        ]
        return self._apply(v.contiguous(), tuple(adjoint), weight.shape[1])

    def weight_gradient(self, v: Tensor, x: Tensor) -> Tensor:
        v, x = v.contiguous(), x.contiguous()
        sizes = [_entries(b) for b in blocks_of(self.group)]
        entries = v.new_empty(sum(sizes), v.shape[2], x.shape[2])
        places = entries.split(sizes)
        for b, place in zip(blocks_of(self.group), places, strict=True):
            _weight_gradient(_by_width(v, b), _by_width(x, b), place, pair=b.pair)
        made = _matrix(self.group, "images", v).mT @ entries.flatten(1)
        return made.mT.reshape(v.shape[2], x.shape[2], -1)

    def bias_gradient(self, v: Tensor) -> Tensor:
        return bias_of(v[0].sum(0), self.group)

    def _apply(self, x: Tensor, operators: Operators, features: int) -> Tensor:
        y = x.new_empty(*x.shape[:2], features)
        for b, operator in zip(blocks_of(self.group), operators, strict=True):
            _product(_by_width(x, b), operator, _by_width(y, b), pair=b.pair)
        return y


def normalised(x: Tensor, eps: float, *, centred: bool) -> Tensor:
    r"""Coefficients (|G|, R, C) over the root of the mean square, or of the variance if `centred`, of each token.

    The mean itself stays in them.
    """
    wide = widened(x)
    if wide is x and is_plain(x) and not torch.compiler.is_compiling():
        made: Tensor = _Normalise.apply(x, eps, centred)[0]
        return made
    return (wide * _inverse_deviation(wide, eps, centred)).to(x.dtype)


def _inverse_deviation(x: Tensor, eps: float, centred: bool) -> Tensor:
    r"""`1 / sqrt(v + eps)` of each token, (R, 1)."""
    square = torch.linalg.vector_norm(x, dim=2).square().sum(0) / (len(x) * x.shape[2])
    if centred:  # the coefficient of the trivial irrep is the mean over the group times the root of |G|
        square = square - x[0].mean(1).square() / len(x)
    return torch.rsqrt(square.clamp(min=0) + eps)[:, None]


class _Normalise(Function):
    r"""`y = r x` and `r`, (R, 1), of which the backward pass is made: x is not kept.

    With `v = sum x^2 / N - mean^2` of the N numbers of a token, `dr/dv = -r^3 / 2` and `dv/dx = 2 (x - mean) / N`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
        r = _inverse_deviation(x, eps, centred)
        return x * r, r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.centred = inputs[-1]
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dr: Tensor) -> tuple[Tensor, None, None]:
        y, r = ctx.saved_tensors
        change = r * (r * dr + torch.linalg.vecdot(dy, y).sum(0)[:, None]) / (len(y) * y.shape[2])
        dx = (dy * r).addcmul_(y, change, value=-1)
        if ctx.centred:
            dx[0] += change * y[0].mean(1, keepdim=True)
        return dx, None, None


def _by_width(x: Tensor, block: IrrepBlock) -> Tensor:
    r"""The coefficients of an irrep, (w, copies·R, C)."""
    return x[block.slice].view(block.width, -1, x.shape[2])


def _product(x: Tensor, operator: Tensor, out: Tensor, *, pair: bool) -> None:
    r"""`out_a = sum_b x_b operator[a, b]^T`.

    Of a pair `(x_0, x_1) -> (x_0 c - x_1 d, x_0 d + x_1 c)`, in three products, for both hold `(x_0 + x_1) c`: Knuth,
    The Art of Computer Programming 2, section 4.6.4.
    """
    if pair:
        c, d = operator
        matmul_into(x[0] + x[1], c.mT, out[0])
        out[1].copy_(out[0])
        matmul_into(x[1], -(c + d).mT, out[0], add=True)
        matmul_into(x[0], (d - c).mT, out[1], add=True)
        return
    for row, target in zip(operator, out, strict=True):
        for i, (matrix, source) in enumerate(zip(row, x, strict=True)):
            matmul_into(source, matrix.mT, target, add=i > 0)


def _weight_gradient(v: Tensor, x: Tensor, out: Tensor, *, pair: bool) -> None:
    r"""The gradient of `<v, y>` in the operator of `_product`, (w·w, O, C); of a pair in (c, d).

    `c: v_0^T x_0 + v_1^T x_1`, `d: v_1^T x_0 - v_0^T x_1`; both hold `(v_0 - v_1)^T x_0`.
    """
    if pair:
        matmul_into((v[0] - v[1]).mT, x[0], out[0])
        torch.neg(out[0], out=out[1])
        matmul_into(v[1].mT, x[0] + x[1], out[0], add=True)
        matmul_into(v[0].mT, x[0] - x[1], out[1], add=True)
        return
    for target, (left, right) in zip(out, ((left, right) for left in v for right in x), strict=True):
        matmul_into(left.mT, right, target)


def _entries(block: IrrepBlock) -> int:
    r"""The number of free entries of the irrep's matrices."""
    return 2 if block.pair else block.width**2


@constant_when_compiled
def blocks_of(group: Group) -> tuple[IrrepBlock, ...]:
    r"""The irreps of the group, see `IrrepBasis`."""
    return irrep_basis(group).blocks


def _matrix(group: Group, which: str, like: Tensor) -> Tensor:
    r"""The basis Q, (|G|, |G|), or the "images", free entries of the matrices of all irreps below each other."""
    if torch.compiler.is_compiling():  # a compiler takes no tensor from a cache and must leave none there
        return torch.tensor(_numbers(group, which), dtype=like.dtype, device=like.device).view(-1, group.order)
    return _kept(group, which, like.dtype, like.device)


@table
def _kept(group: Group, which: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return to_tensor(_array(group, which), device, dtype)


@constant_when_compiled
def _numbers(group: Group, which: str) -> tuple[float, ...]:
    return tuple(_array(group, which).ravel().tolist())


def _array(group: Group, which: str) -> Array:
    basis = irrep_basis(group)
    if which == "matrix":
        return basis.matrix
    pairs = zip(basis.blocks, basis.images, strict=True)
    return np.concatenate([t[:, 0] if b.pair else t.reshape(-1, basis.order) for b, t in pairs])
