r"""Token-wise correlations: the group Fourier transform of features at many positions, and products in its basis.

Features are tokens (R, |G|, C), all positions of all samples below each other, C innermost. Their coefficients have the
same shape, in the order of `IrrepBasis`:

    Analysis(x) -> coefficients      Synthesis(coefficients) -> y, its transpose

each other's derivatives. Between them stands one matrix product per row of each irrep. Nothing here keeps the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from equilayers._matmul import matmul_into
from equilayers.functional._fourier.autograd import Correlate
from equilayers.functional._fourier.basis import IrrepBasis, irrep_basis
from equilayers.functional._index_tables import to_tensor
from equilayers.functional._weight_cache import WeightCache, is_plain
from equilayers.groups import Group

BLOCK_BYTES = 400_000  # of tokens that are transformed at a time: both sides and the sums between stay in the cache


def to_tokens(f: Tensor) -> Tensor:
    r"""Regular feature (B, C, |G|, *S) to tokens (R, |G|, C): a view where C is innermost in memory, the fiber next."""
    return f.movedim(1, -1).movedim(1, -2).reshape(-1, f.shape[2], f.shape[1])


def from_tokens(y: Tensor, f: Tensor) -> Tensor:
    r"""Tokens (R, N, O) to (B, O, N, *S), a view; B and S are those of f."""
    return y.reshape(f.shape[0], *f.shape[3:], *y.shape[1:]).movedim(-2, 1).movedim(-1, 1)


def token_linear(x: Tensor, weight: Tensor, bias: Tensor | None, group: Group, cache: WeightCache | None) -> Tensor:
    r"""Tokens (R, |G|, C) and weight (O, C, |G|) to tokens (R, |G|, O)."""
    return synthesis(product(analysis(x, group), weight, bias, TokenKernel(group), cache), group)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None, kernel: TokenKernel, cache: WeightCache | None = None
) -> Tensor:
    r"""Coefficients (R, |G|, C) to coefficients (R, |G|, O), the products of the kernel; differentiable."""
    if torch.compiler.is_compiling():
        return kernel.composed(x, weight, bias)
    if cache is None or torch.is_grad_enabled() or not is_plain(x, weight):
        return Correlate.apply(x, weight, bias, kernel)
    operators = cache.get(weight, lambda: kernel.operators(weight), f"tokens {kernel.scaled}")
    return kernel.biased_(kernel.apply(x.contiguous(), operators, weight.shape[0]), bias)


class _Transform(Function):
    r"""What analysis and synthesis share: both are linear, row by row, and each other's transpose."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.group = inputs[1]

    @staticmethod
    def _over_rows(
        apply: Callable[..., Tensor], in_dims: tuple[Any, ...], x: Tensor, group: Group
    ) -> tuple[Tensor, int]:
        rows = x.movedim(in_dims[0], 0)
        return apply(rows.flatten(0, 1), group).unflatten(0, rows.shape[:2]), 0


class Analysis(_Transform):
    r"""Tokens (R, |G|, C) to coefficients (R, |G|, C), `Q x / sqrt(scale)`."""

    @staticmethod
    def forward(x: Tensor, group: Group) -> Tensor:
        return _blockwise(x, group, _analysis)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return Synthesis.apply(v, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return Analysis.apply(tangent, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, group: Group) -> tuple[Tensor, int]:  # noqa: ARG004
        return _Transform._over_rows(Analysis.apply, in_dims, x, group)


class Synthesis(_Transform):
    r"""Coefficients to tokens, the transpose of `Analysis`."""

    @staticmethod
    def forward(x: Tensor, group: Group) -> Tensor:
        return _blockwise(x, group, _synthesis)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        return Analysis.apply(v, ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return Synthesis.apply(tangent, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, group: Group) -> tuple[Tensor, int]:  # noqa: ARG004
        return _Transform._over_rows(Synthesis.apply, in_dims, x, group)


def analysis(x: Tensor, group: Group) -> Tensor:
    r"""`Analysis`, as plain operations for a compiler."""
    if not torch.compiler.is_compiling():
        return Analysis.apply(x, group)
    fast = irrep_basis(group).fast
    if fast is None:
        return _matrix(group, x.dtype, x.device) @ x
    return torch.cat([row for rows in fast.analysis(x) for row in rows], -1).view_as(x)


def synthesis(x: Tensor, group: Group) -> Tensor:
    r"""`Synthesis`, as plain operations for a compiler."""
    if not torch.compiler.is_compiling():
        return Synthesis.apply(x, group)
    basis = irrep_basis(group)
    if basis.fast is None:
        return _matrix(group, x.dtype, x.device).mT @ x
    pairs = len(basis.fast.blocks) == 3  # C4: the pair (c, d) is one row of ours
    rows = [
        tuple(x[:, block.slice].unflatten(1, (block.rows, block.width)).flatten(2).unbind(1)) for block in basis.blocks
    ]
    if pairs:
        rows[-1] = rows[-1][0].chunk(2, -1)
    return torch.stack(basis.fast.synthesis(rows), 1)


def _blockwise(x: Tensor, group: Group, transform: Callable[[Tensor, Tensor, Group], None]) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    rows = (
        max(16, BLOCK_BYTES // max(1, x.element_size() * x[:1].numel())) if x.device.type == "cpu" else max(1, len(x))
    )
    for part, place in zip(x.split(rows), out.split(rows), strict=True):
        transform(part, place, group)
    return out


def _analysis(x: Tensor, out: Tensor, group: Group) -> None:
    n = x.shape[1]
    fast = irrep_basis(group).fast
    if fast is None:
        torch.matmul(_matrix(group, x.dtype, x.device), x, out=out)
    elif n == 2:
        torch.add(x[:, 0], x[:, 1], out=out[:, 0])
        torch.sub(x[:, 0], x[:, 1], out=out[:, 1])
    elif fast.products == n:  # D2, element r + 2m
        pairs, result = x.unflatten(1, (2, 2)), out.unflatten(1, (2, 2))
        sums, differences = pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]
        for half, target in (sums, result[:, 0]), (differences, result[:, 1]):
            torch.add(half[:, 0], half[:, 1], out=target[:, 0])
            torch.sub(half[:, 0], half[:, 1], out=target[:, 1])
    elif n == 4:
        sums = x[:, :2] + x[:, 2:]
        torch.sub(x[:, :2], x[:, 2:], out=out[:, 2:])
        torch.add(sums[:, 0], sums[:, 1], out=out[:, 0])
        torch.sub(sums[:, 0], sums[:, 1], out=out[:, 1])
    else:  # D4, element r + 4m: (c_m, d_m) are the differences of opposite rotations
        opposite = x.unflatten(1, (2, 2, 2))
        sums, pairs = opposite[:, :, 0] + opposite[:, :, 1], opposite[:, :, 0] - opposite[:, :, 1]
        for half, first in (sums[:, :, 0] + sums[:, :, 1], 0), (sums[:, :, 0] - sums[:, :, 1], 2):
            torch.add(half[:, 0], half[:, 1], out=out[:, first])
            torch.sub(half[:, 0], half[:, 1], out=out[:, first + 1])
        torch.add(pairs[:, 0], pairs[:, 1], out=out[:, 4::2])  # c_0 + c_1, d_0 + d_1
        torch.sub(pairs[:, 1, 1], pairs[:, 0, 1], out=out[:, 5])
        torch.sub(pairs[:, 0, 0], pairs[:, 1, 0], out=out[:, 7])


def _synthesis(x: Tensor, out: Tensor, group: Group) -> None:
    n = x.shape[1]
    fast = irrep_basis(group).fast
    if fast is None:
        torch.matmul(_matrix(group, x.dtype, x.device).mT, x, out=out)
    elif n == 2:
        torch.add(x[:, 0], x[:, 1], out=out[:, 0])
        torch.sub(x[:, 0], x[:, 1], out=out[:, 1])
    elif fast.products == n:  # D2
        pairs, result = x.unflatten(1, (2, 2)), out.unflatten(1, (2, 2))
        sums, differences = pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]  # of mirror class 0 and 1
        torch.add(sums[:, 0], sums[:, 1], out=result[:, 0, 0])
        torch.sub(sums[:, 0], sums[:, 1], out=result[:, 0, 1])
        torch.add(differences[:, 0], differences[:, 1], out=result[:, 1, 0])
        torch.sub(differences[:, 0], differences[:, 1], out=result[:, 1, 1])
    elif n == 4:
        even_odd = torch.empty_like(x[:, :2])
        torch.add(x[:, 0], x[:, 1], out=even_odd[:, 0])
        torch.sub(x[:, 0], x[:, 1], out=even_odd[:, 1])
        torch.add(even_odd, x[:, 2:], out=out[:, :2])
        torch.sub(even_odd, x[:, 2:], out=out[:, 2:])
    else:  # D4
        (p, q, r, s), (a, b, c, d) = x[:, :4].unbind(1), x[:, 4:].unbind(1)
        sums, pairs = x.new_empty(2, len(x), 2, 2, x.shape[2])
        plain, mirrored = p + q, p - q
        other = r + s, r - s
        for m, half in enumerate((plain, mirrored)):
            torch.add(half, other[m], out=sums[:, m, 0])
            torch.sub(half, other[m], out=sums[:, m, 1])
        torch.add(a, d, out=pairs[:, 0, 0])
        torch.sub(c, b, out=pairs[:, 0, 1])
        torch.sub(a, d, out=pairs[:, 1, 0])
        torch.add(b, c, out=pairs[:, 1, 1])
        opposite = out.unflatten(1, (2, 2, 2))
        torch.add(sums, pairs, out=opposite[:, :, 0])
        torch.sub(sums, pairs, out=opposite[:, :, 1])


ALL = 1 << 62


@dataclass(frozen=True)
class TokenKernel:
    r"""The `Kernel` of coefficients x (R, |G|, C), weight (O, C, |G|) and y (R, |G|, O).

    scaled: how many of the features, the first ones, are multiplied by the scale of each irrep: ALL that go to
    `Synthesis`; one side of an inner product, `<x, y> = sum_i scale_i <x_i, y_i>`.
    """

    group: Group
    scaled: int = ALL

    def operators(self, weight: Tensor) -> list[Tensor]:
        r"""The matrix (w·O, w·C) of each irrep."""
        basis = irrep_basis(self.group)
        features, channels, _ = weight.shape
        entries = _images(self.group, weight.dtype, weight.device) @ weight.reshape(features * channels, -1).mT
        made = []
        for block, scale, part in zip(basis.blocks, basis.scales, entries.split(_entries(basis)), strict=True):
            matrix = part.view(block.width, block.width, features, channels).transpose(1, 2)
            matrix = self._scale(matrix, scale, 1)
            made.append(matrix.reshape(block.width * features, block.width * channels))
        return made

    def _scale(self, x: Tensor, scale: float, axis: int) -> Tensor:
        r"""X times the scale in the first features."""
        if self.scaled >= x.shape[axis]:
            return x if scale == 1 else x * scale
        if not self.scaled or scale == 1:
            return x
        first, rest = x.tensor_split([self.scaled], axis)
        return torch.cat((first * scale, rest), axis)

    def apply(self, x: Tensor, operators: list[Tensor], features: int, *, adjoint: bool = False) -> Tensor:
        r"""Each operator, or its transpose, on the rows of its irrep."""
        out = x.new_empty(*x.shape[:2], features)
        for block, operator in zip(irrep_basis(self.group).blocks, operators, strict=True):
            matrix = operator if adjoint else operator.mT
            for row, place in zip(_rows(x, block), _rows(out, block), strict=True):
                matmul_into(row, matrix, place)
        return out

    def correlate(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = self.apply(x.contiguous(), self.operators(weight), weight.shape[0])
        return self.biased_(y, bias)

    def composed(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        r"""`correlate` in plain operations, for a compiler."""
        basis, features = irrep_basis(self.group), weight.shape[0]
        made = []
        for block, operator in zip(basis.blocks, self.operators(weight), strict=True):
            rows = x[:, block.slice].reshape(len(x), block.rows, -1)
            made.append((rows @ operator.mT).reshape(len(x), -1, features))
        if bias is not None:
            made[0] = made[0] + self._trivial(bias)
        return torch.cat(made, 1)

    def biased_(self, y: Tensor, bias: Tensor | None) -> Tensor:
        r"""The bias added in place: it reaches the trivial irrep alone."""
        if bias is not None:
            y[:, 0].add_(self._trivial(bias))
        return y

    def bias_gradient(self, v: Tensor) -> Tensor:
        r"""The bias-gradient of <v, y>."""
        return self._trivial(v[:, 0].sum(0))

    def _trivial(self, bias: Tensor) -> Tensor:
        r"""The coefficient of the trivial irrep of what is the bias on the whole group."""
        basis = irrep_basis(self.group)
        return self._scale(bias * (basis.order / basis.scales[0]) ** 0.5, basis.scales[0], 0)

    def input_adjoint(self, v: Tensor, weight: Tensor) -> Tensor:
        return self.apply(v.contiguous(), self.operators(weight), weight.shape[1], adjoint=True)

    def weight_gradient(self, v: Tensor, x: Tensor) -> Tensor:
        basis = irrep_basis(self.group)
        v, x, features, channels = v.contiguous(), x.contiguous(), v.shape[2], x.shape[2]
        parts = []
        for block, scale in zip(basis.blocks, basis.scales, strict=True):
            pairs = zip(_rows(v, block), _rows(x, block), strict=True)
            total = functools.reduce(torch.add, (y.mT @ u for y, u in pairs))
            part = self._scale(total.view(block.width, features, block.width, channels), scale, 1).transpose(1, 2)
            parts.append(part.reshape(block.width**2, features * channels))
        images = _images(self.group, v.dtype, v.device)
        return (images.mT @ torch.cat(parts)).mT.reshape(features, channels, -1)


def _rows(x: Tensor, block: Any) -> list[Tensor]:
    r"""The rows (R, w·C) of an irrep, views of coefficients (R, |G|, C)."""
    rows = x[:, block.slice].view(len(x), block.rows, block.width * x.shape[2])
    return list(rows.unbind(1))


def _entries(basis: IrrepBasis) -> list[int]:
    return [block.width**2 for block in basis.blocks]


@functools.lru_cache(maxsize=64)
def _matrix(group: Group, dtype: torch.dtype, device: torch.device) -> Tensor:
    return to_tensor(irrep_basis(group).matrix, device, dtype)


@functools.lru_cache(maxsize=64)
def _images(group: Group, dtype: torch.dtype, device: torch.device) -> Tensor:
    r"""The entries of the matrices of all irreps below each other, (entries, |G|)."""
    images = irrep_basis(group).images
    return torch.cat([to_tensor(t.reshape(-1, t.shape[2]), device, dtype) for t in images])
