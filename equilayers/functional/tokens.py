r"""The spaces in which a chain of token-wise layers works: coefficients of the group, or the regular basis.

Only a nonlinearity needs the regular basis. Norms, attention and sums stay in coefficients, so that a chain of layers
pays for a transform where it starts, where it ends, and on both sides of each nonlinearity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import Pair, autocast, check_float, refuse
from equilayers._torch_compat import constant_when_compiled
from equilayers.functional._fourier.tokens import (
    CoefficientKernel,
    Operators,
    analysis,
    bias_of,
    feature_of,
    fiber_analysis,
    fiber_synthesis,
    normalised,
    operators_of,
    planes_of,
    product,
    synthesis,
)
from equilayers.functional._machine import machine_of
from equilayers.functional._weight_cache import WeightCache, is_plain
from equilayers.functional.cost import MANY_ROWS, LinearSizes, cheapest_tokens
from equilayers.groups import Group

TOKEN_ALGORITHMS = ("auto", "fourier", "dense")


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
        r"""Weight and bias of the one group linear map that does all of it, as autocast wants them."""
        weight, bias = self.weight, self.bias
        if self.shift is not None:
            shifted = weight.sum(2) @ self.shift
            bias = shifted if bias is None else bias + shifted
        if self.gain is not None:
            weight = weight * self.gain[:, None]
        if self.centred:  # less y of what is constant over channels and fiber
            weight = weight - weight.sum(2).mean(1)[:, None, None] / weight.shape[2]
        if self.scale is not None:
            weight = weight * self.scale[:, None, None]
            bias = None if bias is None else bias * self.scale
        return autocast(weight), None if bias is None else autocast(bias)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        r"""All that it is made of."""
        return tuple(t for t in self[:5] if isinstance(t, Tensor))


def token_sizes(group: Group, channels: int, features: int) -> LinearSizes:
    r"""The sizes by which a chain of layers chooses: those of one map, at so many positions that they alone count."""
    return LinearSizes(MANY_ROWS, channels * group.order, features, lifting=False, kept=True, chain=True)


def token_space(x: Tensor, group: Group, channels: int, features: int, algorithm: str) -> TokenSpace:
    r"""Where a layer works on x: in coefficients ("fourier"), the regular basis ("dense"), or the faster ("auto")."""
    if algorithm == "auto" and group.order > 1:
        choice = cheapest_tokens(group, token_sizes(group, channels, features), machine_of(autocast(x)))
        algorithm = "fourier" if choice == "tokens" else "dense"
    return TokenSpace(group, algorithm == "fourier" and group.order > 1)


@dataclass(frozen=True)
class TokenSpace:
    r"""Where R tokens are worked on: coefficients (|G|, R, C) if `spectral`, otherwise tokens (R, |G|, C)."""

    group: Group
    spectral: bool

    def enter(self, f: Tensor) -> Tensor:
        r"""A regular feature (B, C, |G|, *S), brought here."""
        return self.from_planes(planes_of(f))

    def leave(self, x: Tensor, f: Tensor) -> Tensor:
        r"""Back to a regular feature, with the batch and positions of f."""
        return feature_of(self.planes(x), f)

    def planes(self, x: Tensor) -> Tensor:
        r"""In the regular basis, (|G|, R, C), for a pointwise function."""
        return synthesis(x, self.group) if self.spectral else x.transpose(0, 1)

    def from_planes(self, x: Tensor) -> Tensor:
        r"""Planes (|G|, R, C), brought here."""
        return analysis(x, self.group) if self.spectral else x.transpose(0, 1)

    def map(self, x: Tensor, w: TokenWeight, cache: WeightCache | None) -> Tensor:
        r"""The group linear map, C channels to O."""
        x = autocast(x)
        kept = _usable(cache, x, w)
        if not self.spectral:
            matrix, bias = _matrix_of(w, self.group, kept, x)
            return F.linear(x.flatten(1), matrix, bias).unflatten(1, (self.group.order, -1))
        if kept is None:
            weight, bias = w.folded()
            return product(x, weight, bias, self.group)

        def prepared() -> tuple[Operators, Tensor | None]:
            weight, bias = w.folded()
            return operators_of(weight, self.group), bias

        operators, bias = kept.get(w.tensors, prepared, f"fourier {x.dtype}")
        return CoefficientKernel(self.group).apply(x.contiguous(), operators, bias, len(w.weight))

    def normalised(self, x: Tensor, eps: float, *, centred: bool) -> Tensor:
        r"""Tokens over their deviation, or root mean square, one by one.

        In coefficients the mean, that of the trivial irrep, is not subtracted: a `TokenWeight` that is `centred` does.
        """
        if not self.spectral:
            shape = x.shape[1:]
            return F.layer_norm(x, shape, eps=eps) if centred else F.rms_norm(x, shape, eps=eps)
        return normalised(x, eps, centred=centred)

    def affine(self, x: Tensor, norm: TokenWeight) -> Tensor:
        r"""`gain · x + shift` of what is `normalised`, less its mean if `centred`, where no map follows."""
        if not self.spectral:
            x = x if norm.gain is None else x * norm.gain
            return x if norm.shift is None else x + norm.shift
        trivial = x[:1] - x[:1].mean(2, keepdim=True) if norm.centred else x[:1]
        trivial, rest = (part if norm.gain is None else part * norm.gain for part in (trivial, x[1:]))
        return torch.cat((trivial if norm.shift is None else trivial + bias_of(norm.shift, self.group), rest))

    def dropped(self, x: Tensor, fibers: float, samples: float, batch: int) -> Tensor:
        r"""Dropout of whole fibers, each channel of a token with all its planes, and of whole samples.

        So it commutes with the action of the group on the fiber and with every change of basis.
        """
        if not fibers and not samples:
            return x
        shape = x.shape[1:] if self.spectral else (x.shape[0], x.shape[2])
        kept = F.dropout(x.new_ones(shape), fibers).unflatten(0, (batch, -1))
        kept = (kept * F.dropout(x.new_ones(batch, 1, 1), samples)).flatten(0, 1)
        return x * (kept if self.spectral else kept[:, None])

    def heads(self, x: Tensor, batch: int, width: int) -> Tensor:
        r"""What attention takes, (B, heads, N, |G|·width), of `heads·width` channels.

        The one copy that attention over a fiber costs: a head's channels lie side by side only within a plane.
        """
        return heads_of(x if self.spectral else x.transpose(0, 1), batch, width)

    def merged(self, y: Tensor) -> Tensor:
        r"""The result of attention (B, heads, N, |G|·width), of heads·width channels: the inverse of `heads`."""
        split = y.unflatten(3, (self.group.order, -1))
        order = (3, 0, 2, 1, 4) if self.spectral else (0, 2, 3, 1, 4)
        merged = split.permute(order).flatten(3)
        return merged.flatten(1, 2) if self.spectral else merged.flatten(0, 1)


def _usable(cache: WeightCache | None, x: Tensor, w: TokenWeight) -> WeightCache | None:
    r"""The cache, where a call may keep what it makes of a weight."""
    kept = None if cache is None or torch.compiler.is_compiling() or torch.is_grad_enabled() else cache
    return kept if is_plain(x, w.weight) else None


def _matrix_of(
    w: TokenWeight, group: Group, cache: WeightCache | None, x: Tensor, *, innermost: bool = False
) -> tuple[Tensor, Tensor | None]:
    r"""The matrix of all planes for x and its bias, rows (h, o), columns (k, c); (o, h), (c, k) if fibers innermost."""

    def made() -> tuple[Tensor, Tensor | None]:
        weight, bias = w.folded()
        n = group.order
        table = torch.tensor(_quotients(group), device=weight.device)
        matrix = weight.index_select(2, table).unflatten(2, (n, n))  # (o, c, h, k)
        matrix = matrix.permute((0, 2, 1, 3) if innermost else (2, 0, 3, 1)).flatten(2).flatten(0, 1)
        return matrix, None if bias is None else bias.repeat_interleave(n) if innermost else bias.repeat(n)

    return made() if cache is None else cache.get(w.tensors, made, f"dense {innermost} {x.dtype}")


@constant_when_compiled
def _quotients(group: Group) -> tuple[int, ...]:
    r"""h^-1 k for all h and k."""
    return tuple(group.cayley_table[group.inverses].ravel().tolist())


def token_linear(f: Tensor, w: TokenWeight, space: TokenSpace, cache: WeightCache | None) -> Tensor:
    r"""The group linear map of a regular feature (B, C, |G|, *S), to (B, O, |G|, *S)."""
    return space.leave(space.map(space.enter(f), w, cache), f)


def fiber_linear(x: Tensor, w: TokenWeight, space: TokenSpace, cache: WeightCache | None) -> Tensor:
    r"""The group linear map of numbers (..., C·|G|) with the fiber innermost, to (..., O·|G|)."""
    group = space.group
    if not space.spectral:
        x = autocast(x)
        matrix, bias = _matrix_of(w, group, _usable(cache, x, w), x, innermost=True)
        return F.linear(x, matrix, bias)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return fiber_synthesis(space.map(fiber_analysis(rows, group), w, cache), group).view(
        *x.shape[:-1], len(w.weight) * group.order
    )


def heads_of(planes: Tensor, batch: int, width: int) -> Tensor:
    r"""Planes (|G|, B·N, heads·width) to what attention takes, (B, heads, N, |G|·width)."""
    return planes.unflatten(1, (batch, -1)).unflatten(3, (-1, width)).permute(1, 3, 2, 0, 4).flatten(3)


def check_heads(caller: str, channels: int, key_channels: int, num_heads: int) -> None:
    r"""Refuse heads that do not divide the channels, of the query or of the key."""
    if num_heads < 1 or channels % num_heads:
        hint = "Each head has the same number of channels, with the whole fiber."
        refuse(caller, f"num_heads that divides the {channels} channels", num_heads, hint)
    width = channels // num_heads
    heads = key_channels // width
    if key_channels % width or not heads or num_heads % heads:
        hint = f"They are the channels of a number of heads of width {width} that divides num_heads={num_heads}."
        refuse(caller, "channels of the key that make whole heads", key_channels, hint)


class AttentionCall(NamedTuple):
    r"""What a call of attention is told beside features.

    mask: as torch.nn.functional.scaled_dot_product_attention takes it. size: of the map whose tokens come last.
    """

    caller: str
    batch: int
    mask: Tensor | None = None
    is_causal: bool = False
    size: Pair | None = None
    dropout: float = 0.0


def map_size(f: Tensor) -> Pair | None:
    r"""(H, W) of a feature that is a map."""
    return (f.shape[3], f.shape[4]) if f.ndim == 5 else None


def positions(f: Tensor) -> int:
    r"""The number of positions of a feature (B, C, |G|, *S)."""
    return math.prod(f.shape[3:])


def attend(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
    r"""Attention of heads (B, heads, N, |G|·d), in one orthonormal basis of the fiber; (B, heads, N, |G|·d) back."""
    batch, heads, length, _ = query.shape
    if not length or not key.shape[2]:
        refuse(call.caller, "at least one position", (length, key.shape[2]), "Attention needs tokens to attend to.")
    mask, is_causal = call.mask, call.is_causal
    if mask is not None:
        _check_mask(call.caller, mask, (batch, heads, length, key.shape[2]))
        mask = mask if mask.dtype == torch.bool else mask.to(query.dtype)
        if is_causal:  # torch takes one of the two
            unseen = torch.ones(length, key.shape[2], dtype=torch.bool, device=mask.device).triu(1)
            mask, is_causal = _without(mask, unseen), False
    grouped = bool(heads != key.shape[1])  # a tracer makes a tensor of it
    return F.scaled_dot_product_attention(query, key, value, mask, call.dropout, is_causal, enable_gqa=grouped)


def attention_mask(
    caller: str, attn_mask: Tensor | None, key_padding_mask: Tensor | None, shape: tuple[int, int, int, int]
) -> Tensor | None:
    r"""The two masks of torch.nn.MultiheadAttention, in which True is not seen, as one for `attend`.

    attn_mask: (N, M), (heads, N, M) or (B, heads, N, M). key_padding_mask: (B, M), bool. shape: (B, heads, N, M).
    """
    if attn_mask is not None:
        _check_mask(caller, attn_mask, shape)
        attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask
    if key_padding_mask is None:
        return attn_mask
    if tuple(key_padding_mask.shape) != shape[::3] or key_padding_mask.dtype != torch.bool:
        got = f"{tuple(key_padding_mask.shape)} of {key_padding_mask.dtype}"
        hint = "True stands for keys that nobody sees."
        refuse(caller, f"key_padding_mask of shape (B, M) = {shape[::3]} of torch.bool", got, hint)
    padding = key_padding_mask[:, None, None]
    return ~padding if attn_mask is None else _without(attn_mask, padding)


def _without(mask: Tensor, unseen: Tensor) -> Tensor:
    r"""The mask, as `attend` takes it, without what is not seen."""
    return mask & ~unseen if mask.dtype == torch.bool else mask.masked_fill(unseen, float("-inf"))


def _check_mask(caller: str, mask: Tensor, shape: tuple[int, int, int, int]) -> None:
    if mask.dtype != torch.bool:
        check_float(caller, "attn_mask", mask)
    fits = 2 <= mask.ndim <= 4 and all(m in (1, s) for m, s in zip(reversed(mask.shape), reversed(shape), strict=False))
    if not fits:
        hint = "A mask tells tokens apart, never the elements of the group: it has no axis for the fiber."
        refuse(caller, f"attn_mask that broadcasts to (B, heads, N, M) = {shape}", tuple(mask.shape), hint)


__all__ = [
    "TOKEN_ALGORITHMS",
    "AttentionCall",
    "TokenSpace",
    "TokenWeight",
    "attend",
    "attention_mask",
    "check_heads",
    "feature_of",
    "fiber_linear",
    "heads_of",
    "map_size",
    "planes_of",
    "positions",
    "token_linear",
    "token_sizes",
    "token_space",
]
