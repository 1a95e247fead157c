r"""The spaces in which a chain of token-wise layers works: coefficients of the group, or the regular basis.

Only a nonlinearity needs the regular basis. Norms, attention and sums stay in coefficients, so that a chain of layers
pays for a transform where it starts, where it ends, and on both sides of each nonlinearity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import Pair, autocast, refuse, widened
from equilayers.functional._fourier.tokens import (
    Coefficients,
    analysis,
    apply_operators,
    bias_of,
    blocks_of,
    feature_of,
    operators_of,
    planes_of,
    synthesis,
)
from equilayers.functional._weight_cache import WeightCache, is_plain
from equilayers.functional.cost import cheapest_tokens
from equilayers.groups import Group

TOKEN_ALGORITHMS = ("auto", "fourier", "dense")
ALL = 1 << 62  # features


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


def token_space(group: Group, channels: int, features: int, algorithm: str) -> TokenSpace:
    r"""Where a layer works: in coefficients ("fourier"), in the regular basis ("dense"), or the faster ("auto")."""
    if algorithm == "auto":
        algorithm = "fourier" if cheapest_tokens(group, channels, features) == "tokens" else "dense"
    return TokenSpace(group, algorithm == "fourier" and group.order > 1)


@dataclass(frozen=True)
class TokenSpace:
    r"""Where R tokens of C channels are worked on: coefficients if `spectral`, otherwise one tensor (1, R, |G|·C).

    Coefficients are a tuple of tensors (m, R, w·C), one per irrep of the group.
    """

    group: Group
    spectral: bool

    def enter(self, f: Tensor) -> Coefficients:
        r"""A regular feature (B, C, |G|, *S), brought here."""
        return self.from_planes(planes_of(f), as_tokens=True)

    def leave(self, x: Coefficients, f: Tensor, *, scaled: bool = False) -> Tensor:
        r"""Back to a regular feature, with the batch and positions of f; scaled: whether `map` has scaled x."""
        if self.spectral and not scaled:
            x = tuple(c * b.scale for c, b in zip(x, blocks_of(self.group), strict=True))
        return feature_of(self.planes(x, as_tokens=True), f)

    def planes(self, x: Coefficients, *, as_tokens: bool = False) -> Tensor:
        r"""What `map` scaled, in the regular basis, (|G|, R, C); as_tokens: in memory (R, |G|, C)."""
        if not self.spectral:
            return x[0][0].unflatten(1, (self.group.order, -1)).transpose(0, 1)
        return synthesis(x, self.group, as_tokens=as_tokens)

    def from_planes(self, x: Tensor, *, as_tokens: bool = False) -> Coefficients:
        r"""Planes (|G|, R, C), brought here; as_tokens: whether they lie in memory as (R, |G|, C)."""
        if not self.spectral:
            return (x.transpose(0, 1).flatten(1)[None],)
        return analysis(x, self.group, as_tokens=as_tokens)

    def map(self, x: Coefficients, w: TokenWeight, cache: WeightCache | None, *, scaled: int = 0) -> Coefficients:
        r"""The group linear map, C channels to O.

        scaled: how many of the features, the first ones, are scaled: ALL for `planes` and `leave(scaled=True)`, the
            queries of attention.
        """
        x = tuple(map(autocast, x))

        def made() -> tuple[Coefficients, Tensor | None]:
            weight, bias = w.folded()
            if not self.spectral:
                return (_expanded(weight, self.group),), None if bias is None else bias.repeat(self.group.order)
            operators = operators_of(weight, self.group, scaled)
            return operators, None if bias is None else bias_of(bias, self.group, scaled)

        if cache is None or torch.compiler.is_compiling() or torch.is_grad_enabled() or not is_plain(*x, w.weight):
            operators, bias = made()
        else:
            operators, bias = cache.get(w.tensors, made, f"{self.spectral} {scaled} {x[0].dtype}")
        return apply_operators(x, operators, bias)

    def normalised(self, x: Coefficients, eps: float, *, centred: bool) -> Coefficients:
        r"""X over its deviation, or root mean square, at each token.

        In coefficients the mean, that of the trivial irrep, is not subtracted: a `TokenWeight` that is `centred` does.
        """
        if not self.spectral:
            shape = x[0].shape[2:]
            return (F.layer_norm(x[0], shape, eps=eps) if centred else F.rms_norm(x[0], shape, eps=eps),)
        blocks, n = blocks_of(self.group), self.group.order
        wide = tuple(map(widened, x))
        norms = (torch.linalg.vector_norm(c, dim=(0, 2)).square() * b.scale for c, b in zip(wide, blocks, strict=True))
        square = sum(norms) / (n * x[0].shape[2])
        if centred:
            square = square - (wide[0][0].mean(1) * (blocks[0].scale / n) ** 0.5).square()
        factor = torch.rsqrt(square.clamp(min=0) + eps)[:, None]
        return tuple((c * factor).to(given.dtype) for c, given in zip(wide, x, strict=True))

    def affine(self, x: Coefficients, norm: TokenWeight) -> Coefficients:
        r"""`gain · x + shift` of what is `normalised`, less its mean if `centred`, where no map follows."""
        if self.spectral and norm.centred:
            x = x[0] - x[0].mean(2, keepdim=True), *x[1:]
        if norm.gain is not None:
            gain = norm.gain
            x = tuple(c * gain.repeat(w) for c, w in zip(x, self._widths, strict=True))
        if norm.shift is None:
            return x
        constant = bias_of(norm.shift, self.group, 0) if self.spectral else norm.shift.repeat(self.group.order)
        return x[0] + constant, *x[1:]

    def add(self, x: Coefficients, y: Coefficients) -> Coefficients:
        r"""The sum of both."""
        return tuple(a + b for a, b in zip(x, y, strict=True))

    def dropped(self, x: Coefficients, fibers: float, samples: float, batch: int) -> Coefficients:
        r"""Dropout of whole fibers, each channel of a token with all its planes, and of whole samples.

        So it commutes with the action of the group on the fiber and with every change of basis.
        """
        if not fibers and not samples:
            return x
        widths = self._widths
        tokens, channels = x[0].shape[1], x[0].shape[2] // widths[0]
        kept = F.dropout(x[0].new_ones(tokens, channels), fibers)
        kept = (kept.unflatten(0, (batch, -1)) * F.dropout(x[0].new_ones(batch, 1, 1), samples)).flatten(0, 1)
        return tuple(c * kept.repeat(1, w) for c, w in zip(x, widths, strict=True))

    def heads(self, x: Coefficients, batch: int, counts: Sequence[tuple[int, int]]) -> list[Tensor]:
        r"""What attention takes: for each (heads, d) of the features, in their order, a tensor (B, heads, N, |G|·d).

        The one copy that attention over a fiber costs: a head's channels lie side by side only within a row.
        """
        parts: list[list[Tensor]] = [[] for _ in counts]
        for c, w in zip(x, self._widths, strict=True):
            split = c.unflatten(2, (w, -1)).unflatten(1, (batch, -1)).split([h * d for h, d in counts], -1)
            for rows, (h, _), made in zip(split, counts, parts, strict=True):
                made += [row.unflatten(3, (h, -1)).permute(0, 3, 1, 2, 4) for row in rows.unbind(0)]
        return [torch.cat(made, 3).flatten(3) for made in parts]

    def merged(self, y: Tensor) -> Coefficients:
        r"""The result of attention (B, heads, N, |G|·d) as coefficients of heads·d channels, the inverse of `heads`."""
        batch, _, length, _ = y.shape
        widths = self._widths
        rows = [b.rows for b in blocks_of(self.group)] if self.spectral else [1]
        y = y.unflatten(3, (self.group.order, -1))
        parts = y.split([m * w for m, w in zip(rows, widths, strict=True)], 3)
        split = (part.unflatten(3, (m, w)) for part, m, w in zip(parts, rows, widths, strict=True))
        return tuple(part.permute(3, 0, 2, 4, 1, 5).reshape(part.shape[3], batch * length, -1) for part in split)

    @property
    def _widths(self) -> list[int]:
        return [b.width for b in blocks_of(self.group)] if self.spectral else [self.group.order]


def _expanded(weight: Tensor, group: Group) -> Tensor:
    r"""The matrix of all planes, rows (h, o) and columns (k, c)."""
    return torch.cat([group.act_regular(h, weight).transpose(1, 2).flatten(1) for h in range(group.order)])


def token_linear(f: Tensor, w: TokenWeight, space: TokenSpace, cache: WeightCache | None) -> Tensor:
    r"""The group linear map of a regular feature (B, C, |G|, *S), to (B, O, |G|, *S)."""
    return space.leave(space.map(space.enter(f), w, cache, scaled=ALL), f, scaled=True)


def regular_heads(planes: Tensor, batch: int, heads: int) -> Tensor:
    r"""Planes (|G|, B·N, heads·d) to what attention takes, (B, heads, N, |G|·d)."""
    return planes.unflatten(1, (batch, -1)).unflatten(3, (heads, -1)).permute(1, 3, 2, 0, 4).flatten(3)


def check_heads(caller: str, channels: int, key_channels: int, num_heads: int) -> int:
    r"""The number of key heads, checked."""
    if num_heads < 1 or channels % num_heads:
        hint = "Each head has the same number of channels, with the whole fiber."
        refuse(caller, f"num_heads that divides the {channels} channels", num_heads, hint)
    width = channels // num_heads
    heads = key_channels // width
    if key_channels % width or not heads or num_heads % heads:
        hint = f"They are the channels of a number of heads of width {width} that divides num_heads={num_heads}."
        refuse(caller, "channels of the key that make whole heads", key_channels, hint)
    return heads


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


def attend(query: Tensor, key: Tensor, value: Tensor, call: AttentionCall) -> Tensor:
    r"""Attention of heads (B, heads, N, |G|·d), in one orthonormal basis of the fiber; (B, heads, N, |G|·d) back."""
    batch, heads, length, _ = query.shape
    if not length or not key.shape[2]:
        refuse(call.caller, "at least one position", (length, key.shape[2]), "Attention needs tokens to attend to.")
    if call.mask is not None:
        _check_mask(call.caller, call.mask, (batch, heads, length, key.shape[2]))
    grouped = bool(heads != key.shape[1])  # a tracer makes a tensor of it
    _, _, mask, is_causal, _, dropout = call
    return F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal, enable_gqa=grouped)


def attention_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
    r"""The two masks of torch.nn.MultiheadAttention, in which True is not seen, as one for `attend`.

    attn_mask: (N, M), (heads, N, M) or (B, heads, N, M). key_padding_mask: (B, M), bool.
    """
    if key_padding_mask is not None:
        if key_padding_mask.ndim != 2 or key_padding_mask.dtype != torch.bool:
            got = f"{tuple(key_padding_mask.shape)}, {key_padding_mask.dtype}"
            refuse("key_padding_mask", "a bool mask (B, M)", got, "True stands for keys that nobody sees.")
        padding = key_padding_mask[:, None, None]
        if attn_mask is None:
            return ~padding
        if attn_mask.dtype == torch.bool:
            return ~(attn_mask | padding)
        return attn_mask.masked_fill(padding, float("-inf"))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        return ~attn_mask
    return attn_mask


def _check_mask(caller: str, mask: Tensor, shape: tuple[int, int, int, int]) -> None:
    fits = 2 <= mask.ndim <= 4 and all(m in (1, s) for m, s in zip(reversed(mask.shape), reversed(shape), strict=False))
    if not fits:
        hint = "A mask tells tokens apart, never the elements of the group: it has no axis for the fiber."
        refuse(caller, f"attn_mask that broadcasts to (B, heads, N, M) = {shape}", tuple(mask.shape), hint)


__all__ = [
    "ALL",
    "TOKEN_ALGORITHMS",
    "AttentionCall",
    "Coefficients",
    "TokenSpace",
    "TokenWeight",
    "attend",
    "attention_mask",
    "check_heads",
    "feature_of",
    "map_size",
    "planes_of",
    "regular_heads",
    "token_linear",
    "token_space",
]
