r"""Token-wise correlations: the group Fourier transform of features at many positions, and products in its basis.

Features are planes (|G|, R, C), all positions of all samples below each other, in any order in memory. Their
coefficients are a tuple of tensors, one (m, R, w·C) per irrep of `IrrepBasis`: m rows of w coefficients each.

    Analysis(planes) -> coefficients      Synthesis(coefficients) -> planes, its transpose

are each other's derivatives, and between them stands one matrix product per irrep. Nothing here keeps the last bit.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from equilayers._checks import constant_when_compiled, in_autocast
from equilayers._matmul import differentiable_matmul
from equilayers._tables import table
from equilayers.functional._fourier.basis import Array, IrrepBlock, irrep_basis
from equilayers.functional._fourier.transforms import fourier_of
from equilayers.functional._index_tables import to_tensor
from equilayers.groups import Group

Coefficients = tuple[Tensor, ...]


def planes_of(f: Tensor) -> Tensor:
    r"""Regular feature (B, C, |G|, *S) to planes (|G|, R, C): a view where C is innermost in memory, the fiber next."""
    return f.permute(2, 0, *range(3, f.ndim), 1).reshape(f.shape[2], -1, f.shape[1])


def feature_of(planes: Tensor, f: Tensor) -> Tensor:
    r"""Planes (|G|, R, O) to a regular feature (B, O, |G|, *S), a view; B and S are those of f."""
    y = planes.transpose(0, 1).reshape(f.shape[0], *f.shape[3:], len(planes), planes.shape[2])
    return y.permute(0, -1, -2, *range(1, f.ndim - 2))


class Analysis(Function):
    r"""Planes (|G|, R, C) to coefficients, `Q x / sqrt(scale)`."""

    @staticmethod
    def forward(x: Tensor, group: Group, as_tokens: bool) -> Coefficients:  # noqa: ARG004
        return _analysis(x, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Coefficients) -> None:  # noqa: ARG004
        ctx.others = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor, None, None]:
        return Synthesis.apply(*ctx.others, *v), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Coefficients:
        return Analysis.apply(tangent, *ctx.others)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, group: Group, as_tokens: bool) -> tuple[Any, Any]:
        rows = x.movedim(in_dims[0], 1)
        made = Analysis.apply(rows.flatten(1, 2), group, as_tokens)
        return tuple(c.unflatten(1, (info.batch_size, -1)) for c in made), (1,) * len(made)


class Synthesis(Function):
    r"""Coefficients to planes (|G|, R, C), the transpose of `Analysis`; in memory as tokens if so wanted."""

    @staticmethod
    def forward(group: Group, as_tokens: bool, *x: Tensor) -> Tensor:
        return _synthesis(x, group, as_tokens)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.others = inputs[:2]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        return None, None, *Analysis.apply(v, *ctx.others)

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, *tangents: Tensor) -> Tensor:
        return Synthesis.apply(*ctx.others, *tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], group: Group, as_tokens: bool, *x: Tensor) -> tuple[Tensor, int]:
        pairs = zip(x, in_dims[2:], strict=True)
        rows = [c.expand(info.batch_size, *c.shape) if d is None else c.movedim(d, 0) for c, d in pairs]
        made = Synthesis.apply(group, as_tokens, *(c.transpose(0, 1).flatten(1, 2) for c in rows))
        return made.unflatten(1, (info.batch_size, -1)), 1


def analysis(x: Tensor, group: Group, *, as_tokens: bool) -> Coefficients:
    r"""The coefficients of planes x (|G|, R, C); as_tokens: whether its gradient lies in memory as tokens."""
    if torch.compiler.is_compiling() or not has_fast_transform(group):
        return _analysis(x, group)
    return Analysis.apply(x, group, as_tokens)


def synthesis(x: Coefficients, group: Group, *, as_tokens: bool) -> Tensor:
    r"""The planes (|G|, R, C) of coefficients; as_tokens: in memory (R, |G|, C)."""
    if torch.compiler.is_compiling() or not has_fast_transform(group):
        return _synthesis(x, group, as_tokens)
    return Synthesis.apply(group, as_tokens, *x)


def _analysis(x: Tensor, group: Group) -> Coefficients:
    n, rows, channels = x.shape
    blocks, fast = blocks_of(group), fourier_of(group)
    if fast is None or not has_fast_transform(group):
        mixed = _exact_matmul(matrix_of(group, x.dtype, x.device), x.reshape(n, -1)).view(n, rows, channels)
        parts = (mixed[b.slice].unflatten(0, (b.rows, b.width)) for b in blocks)
        return tuple(part.transpose(1, 2).flatten(2) for part in parts)
    if torch.compiler.is_compiling():  # it fuses plain sums by itself, and cannot differentiate `out=`
        made = zip(fast.analysis(x.transpose(0, 1)), blocks, strict=True)
        return tuple(torch.cat(part, -1).unflatten(1, (b.rows, -1)).transpose(0, 1) for part, b in made)
    if n == 2:
        return x[:1] + x[1:], x[:1] - x[1:]
    if n == 4 and len(blocks) == 4:  # D2, element r + 2m
        pairs = x.unflatten(0, (2, 2))
        (s, u), (t, v) = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        return tuple(part[None] for part in (s + u, s - u, t + v, t - v))
    if n == 4:
        even, odd = x[:2] + x[2:], x.new_empty(1, rows, 2, channels)
        torch.sub(x[:2], x[2:], out=odd[0].transpose(0, 1))
        return even[:1] + even[1:], even[:1] - even[1:], odd.flatten(2)
    half_turns = x.unflatten(0, (2, 2, 2))  # D4, element r + 4m, by m, half turns and quarter turns
    even, odd = half_turns[:, 0] + half_turns[:, 1], half_turns[:, 0] - half_turns[:, 1]
    (p, q), (r, s) = even[:, 0] + even[:, 1], even[:, 0] - even[:, 1]
    (c0, d0), (c1, d1) = odd
    plane = x.new_empty(2, rows, 2, channels)
    torch.add(c0, c1, out=plane[0, :, 0])
    torch.sub(d1, d0, out=plane[0, :, 1])
    torch.add(d0, d1, out=plane[1, :, 0])
    torch.sub(c0, c1, out=plane[1, :, 1])
    return (p + q)[None], (p - q)[None], (r + s)[None], (r - s)[None], plane.flatten(2)


def _synthesis(x: Coefficients, group: Group, as_tokens: bool) -> Tensor:
    n, blocks, fast = group.order, blocks_of(group), fourier_of(group)
    if fast is None or not has_fast_transform(group):
        parts = (c.unflatten(2, (b.width, -1)) for c, b in zip(x, blocks, strict=True))
        below = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in parts])
        return _exact_matmul(matrix_of(group, below.dtype, below.device).mT, below.flatten(1)).view(below.shape)
    if torch.compiler.is_compiling():
        split = [c.unbind(0) if b.rows == b.width else c[0].chunk(2, -1) for c, b in zip(x, blocks, strict=True)]
        return torch.stack(fast.synthesis(split))
    rows, channels = x[0].shape[1:]
    out = x[0].new_empty(rows, n, channels).transpose(0, 1) if as_tokens else x[0].new_empty(n, rows, channels)
    if n == 2:
        torch.add(x[0][0], x[1][0], out=out[0])
        torch.sub(x[0][0], x[1][0], out=out[1])
    elif len(x) == 4:  # D2
        (p,), (q,), (r,), (t,) = x
        for m, (s, v) in enumerate(((p + q, r + t), (p - q, r - t))):
            torch.add(s, v, out=out[2 * m])
            torch.sub(s, v, out=out[2 * m + 1])
    elif n == 4:
        (p,), (q,), pair = x
        _opposite(p, q, pair[0].unflatten(1, (2, -1)).transpose(0, 1), out)
    else:  # D4: the mirror classes one after the other
        (p,), (q,), (r,), (s,) = x[:4]
        (a, b), (c, d) = x[4].unflatten(2, (2, -1)).unbind(0)[0].unbind(1), x[4].unflatten(2, (2, -1))[1].unbind(1)
        pair = x[0].new_empty(2, rows, channels)
        torch.add(a, d, out=pair[0])
        torch.sub(c, b, out=pair[1])
        _opposite(p + q, r + s, pair, out[:4])
        torch.sub(a, d, out=pair[0])
        torch.add(b, c, out=pair[1])
        _opposite(p - q, r - s, pair, out[4:])
    return out


def _exact_matmul(a: Tensor, b: Tensor) -> Tensor:
    r"""The product a @ b in their own precision: as the sums of the fast transforms, it is no affair of autocast."""
    with torch.autocast(a.device.type, enabled=False) if in_autocast(a) else contextlib.nullcontext():
        return a @ b


def _opposite(p: Tensor, q: Tensor, pair: Tensor, out: Tensor) -> None:
    r"""The planes `[e + c, o + d, e - c, o - d]` of four rotations, e = p + q, o = p - q, pair = (c, d)."""
    even_odd = p.new_empty(2, *p.shape)
    torch.add(p, q, out=even_odd[0])
    torch.sub(p, q, out=even_odd[1])
    torch.add(even_odd, pair, out=out[:2])
    torch.sub(even_odd, pair, out=out[2:])


def operators_of(weight: Tensor, group: Group, scaled: int) -> Coefficients:
    r"""The matrix (w·O, w·C) of each irrep for a weight (O, C, |G|); differentiable.

    scaled: how many of the features, the first ones, are multiplied by the scale of the irrep: all that go to
    `Synthesis`; one side of an inner product, `<x, y> = sum_i scale_i <x_i, y_i>`.
    """
    features, channels, n = weight.shape
    blocks = blocks_of(group)
    entries = images_of(group, weight.dtype, weight.device) @ weight.reshape(-1, n).mT
    parts = entries.split([b.width**2 for b in blocks])
    made = []
    for b, part in zip(blocks, parts, strict=True):
        matrix = part.view(b.width, b.width, features, channels).transpose(1, 2)
        made.append(_scaled(matrix, b.scale, scaled, 1).reshape(b.width * features, b.width * channels))
    return tuple(made)


def bias_of(bias: Tensor, group: Group, scaled: int) -> Tensor:
    r"""The coefficient of the trivial irrep of what is the bias (O,) on the whole group."""
    scale = blocks_of(group)[0].scale
    return _scaled(bias * (group.order / scale) ** 0.5, scale, scaled, 0)


def apply_operators(x: Coefficients, operators: Coefficients, bias: Tensor | None) -> Coefficients:
    r"""Each operator on the rows of its irrep, and the bias of `bias_of` added."""
    made = [
        differentiable_matmul(c.flatten(0, 1), op.mT).unflatten(0, c.shape[:2])
        for c, op in zip(x, operators, strict=True)
    ]
    if bias is not None:
        made[0] = made[0] + bias
    return tuple(made)


def _scaled(x: Tensor, scale: float, scaled: int, axis: int) -> Tensor:
    r"""X times the scale in its first entries along an axis."""
    if scale == 1 or not scaled:
        return x
    if scaled >= x.shape[axis]:
        return x * scale
    first, rest = x.tensor_split([scaled], axis)
    return torch.cat((first * scale, rest), axis)


@constant_when_compiled
def blocks_of(group: Group) -> tuple[IrrepBlock, ...]:
    r"""The irreps of the group, see `IrrepBasis`."""
    return irrep_basis(group).blocks


@constant_when_compiled
def has_fast_transform(group: Group) -> bool:
    r"""Whether additions alone make the coefficients."""
    return irrep_basis(group).fast


def matrix_of(group: Group, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""The basis Q, (|G|, |G|)."""
    if torch.compiler.is_compiling():  # a compiler takes no tensor from a cache and must leave none there
        return torch.tensor(_numbers(group, "matrix"), dtype=dtype, device=device).view(group.order, -1)
    return _kept(group, "matrix", dtype, device)


def images_of(group: Group, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""The entries of the matrices of all irreps below each other, (entries, |G|)."""
    if torch.compiler.is_compiling():
        return torch.tensor(_numbers(group, "images"), dtype=dtype, device=device).view(-1, group.order)
    return _kept(group, "images", dtype, device)


@table
def _kept(group: Group, which: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    return to_tensor(_array(group, which), device, dtype)


@constant_when_compiled
def _numbers(group: Group, which: str) -> tuple[float, ...]:
    return tuple(_array(group, which).ravel().tolist())


def _array(group: Group, which: str) -> Array:
    basis = irrep_basis(group)
    return basis.matrix if which == "matrix" else np.concatenate([t.reshape(-1, t.shape[2]) for t in basis.images])
