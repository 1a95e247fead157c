r"""The spaces in which a chain of token-wise layers works: coefficients of the group, or the regular basis.

Only a nonlinearity needs the regular basis. Norms, attention and sums stay in coefficients, so that a chain of layers
pays for a transform where it starts, where it ends, and on both sides of each nonlinearity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import autocast, constant_when_compiled
from equilayers.functional._fourier.basis import irrep_basis
from equilayers.functional._fourier.tokens import ALL, TokenKernel, analysis, product, synthesis
from equilayers.functional._weight_cache import WeightCache, is_plain
from equilayers.functional.cost import cheapest_tokens
from equilayers.groups import Group


class TokenWeight(NamedTuple):
    r"""A group linear map with what stands before and after it: `y = scale (W (gain · x + shift) + bias)`.

    weight: (O, C, |G|). bias: (O,). gain, shift: (C,), of a norm before it. scale: (O,). centred: subtract from x its
    mean over channels and fiber first.
    """

    weight: Tensor
    bias: Tensor | None = None
    gain: Tensor | None = None
    shift: Tensor | None = None
    scale: Tensor | None = None
    centred: bool = False

    def after(self, norm: TokenWeight | None) -> TokenWeight:
        r"""The same with the gain, shift and centring of a norm before it."""
        return self if norm is None else self._replace(gain=norm.gain, shift=norm.shift, centred=norm.centred)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        r"""Weight and bias of the one group linear map that does all of it."""
        weight, bias = self.weight, self.bias
        if self.shift is not None:
            shifted = weight.sum(2) @ self.shift
            bias = shifted if bias is None else bias + shifted
        if self.gain is not None:
            weight = weight * self.gain[:, None]
        if self.centred:  # y of what is constant over channels and fiber
            weight = weight - weight.sum(2).mean(1)[:, None, None] / weight.shape[2]
        if self.scale is not None:
            weight = weight * self.scale[:, None, None]
            bias = None if bias is None else bias * self.scale
        return weight, bias


def token_space(group: Group, channels: int, features: int, algorithm: str) -> TokenSpace:
    r"""Where a layer works: by "fourier" in coefficients, by "dense" in the regular basis, by "auto" where it is faster."""
    if algorithm == "auto":
        algorithm = "fourier" if cheapest_tokens(group, channels, features) == "tokens" else "dense"
    return TokenSpace(group, algorithm == "fourier" and group.order > 1)


@dataclass(frozen=True)
class TokenSpace:
    r"""Where tokens (R, |G|, C) are worked on: as coefficients if `spectral`, otherwise as they are."""

    group: Group
    spectral: bool

    def enter(self, tokens: Tensor) -> Tensor:
        r"""Tokens in the regular basis, brought here."""
        return analysis(tokens, self.group) if self.spectral else tokens

    def leave(self, x: Tensor) -> Tensor:
        r"""Back to the regular basis, what `map` did not scale."""
        return synthesis(x * self._scales(x), self.group) if self.spectral else x

    def leave_scaled(self, x: Tensor) -> Tensor:
        r"""Back to the regular basis, what `map` scaled."""
        return synthesis(x, self.group) if self.spectral else x

    def map(self, x: Tensor, w: TokenWeight, cache: WeightCache | None, *, scaled: int = 0) -> Tensor:
        r"""The group linear map of tokens (R, |G|, C), to (R, |G|, O).

        scaled: how many of the features, the first ones, are scaled: ALL for `leave_scaled`, the queries of attention.
        """
        x = autocast(x)
        kept = cache if cache is not None and not torch.is_grad_enabled() and is_plain(x, w.weight) else None
        if not self.spectral:
            matrix, bias = self._dense(w) if kept is None else kept.get(_tensors(w), lambda: self._dense(w), "dense")
            return F.linear(x.flatten(1), matrix, bias).unflatten(1, (self.group.order, -1))
        kernel = TokenKernel(self.group, scaled)

        def folded() -> tuple[Tensor, Tensor | None]:
            weight, bias = w.folded()
            return autocast(weight), None if bias is None else autocast(bias)

        def prepared() -> tuple[list[Tensor], Tensor | None]:
            weight, bias = folded()
            return kernel.operators(weight), bias

        if kept is None or torch.compiler.is_compiling():
            return product(x, *folded(), kernel)
        operators, bias = kept.get(_tensors(w), prepared, f"{scaled} {x.dtype}")
        return kernel.biased_(kernel.apply(x.contiguous(), operators, len(w.weight)), bias)

    def _dense(self, w: TokenWeight) -> tuple[Tensor, Tensor | None]:
        r"""The expanded matrix, rows (h, o) and columns (k, c), and its bias."""
        weight, bias = w.folded()
        n = self.group.order
        rows = [self.group.act_regular(h, weight).transpose(1, 2).flatten(1) for h in range(n)]
        return autocast(torch.cat(rows)), None if bias is None else autocast(bias.repeat(n))

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        r"""X over its deviation, or root mean square, at each token.

        In coefficients the mean, that of the trivial irrep, is not subtracted: a `TokenWeight` that is `centred` does.
        """
        n, channels = x.shape[1:]
        if not self.spectral:
            flat = x.flatten(1)
            shape = flat.shape[1:]
            return (F.layer_norm(flat, shape, eps=eps) if centred else F.rms_norm(flat, shape, eps=eps)).view_as(x)
        basis = irrep_basis(self.group)
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        square = torch.zeros((), dtype=x.dtype, device=x.device)
        for first, last, scale in _runs(self.group):
            square = square + torch.linalg.vector_norm(x[:, first:last], dim=(1, 2)).square() * scale
        mean = x[:, 0].mean(1) * (basis.scales[0] / n) ** 0.5
        square = square / (n * channels) - (mean.square() if centred else 0)
        return x * torch.rsqrt(square.clamp(min=0) + eps)[:, None, None]

    def affine(self, x: Tensor, norm: TokenWeight) -> Tensor:
        r"""`gain · x + shift` of tokens that are `normalised`, less their mean if `centred`, where no map follows."""
        if self.spectral and norm.centred:
            first = x[:, :1] - x[:, :1].mean(2, keepdim=True)
            x = torch.cat((first, x[:, 1:]), 1)
        x = x if norm.gain is None else x * norm.gain
        if norm.shift is None:
            return x
        if not self.spectral:
            return x + norm.shift
        basis = irrep_basis(self.group)
        constant = (
            norm.shift * (basis.order / basis.scales[0]) ** 0.5
        )  # the trivial irrep of what is the same everywhere
        return torch.cat((x[:, :1] + constant, x[:, 1:]), 1)

    def _scales(self, x: Tensor) -> Tensor:
        basis = irrep_basis(self.group)
        scales = [s for b, s in zip(basis.blocks, basis.scales, strict=True) for _ in range(b.rows * b.width)]
        return torch.tensor(scales, dtype=x.dtype, device=x.device)[:, None]


@constant_when_compiled
def _runs(group: Group) -> tuple[tuple[int, int, float], ...]:
    r"""Places of coefficients of one scale that follow each other: first, last, scale."""
    basis = irrep_basis(group)
    runs: list[tuple[int, int, float]] = []
    for block, scale in zip(basis.blocks, basis.scales, strict=True):
        if runs and runs[-1][2] == scale:
            runs[-1] = runs[-1][0], block.slice.stop, scale
        else:
            runs.append((block.slice.start, block.slice.stop, scale))
    return tuple(runs)


def _tensors(w: TokenWeight) -> tuple[Tensor, ...]:
    return tuple(t for t in w[:5] if isinstance(t, Tensor))


__all__ = ["ALL", "TokenSpace", "TokenWeight"]
