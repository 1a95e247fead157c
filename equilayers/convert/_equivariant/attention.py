r"""Attention on tokens whose fibers are innermost, in the place of torch.nn.MultiheadAttention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import refuse
from equilayers.convert._equivariant.token_layers import FiberTokenLinear
from equilayers.groups import Group


class FiberMultiheadAttention(nn.Module):
    r"""Multi-head attention on tokens (..., C·|G|), the fibers innermost: called as torch.nn.MultiheadAttention is.

    A head is a number of whole fields, so that its inner products do not change when the input is moved.

    Args:
        group: the symmetry.
        plain: the attention whose settings it has; |G| must divide the width of its heads, kdim and vdim.

    Attributes:
        q_proj, k_proj, v_proj, out_proj: FiberTokenLinear. bias_k, bias_v: (C,), constant over the fiber, or None.

    Law: `layer(g·q, g·k, g·v) == g·layer(q, k, v)` where g turns fibers and moves tokens, to rounding; with masks, if
        they move with the tokens.

    Source: Vaswani et al. 2017, section 3.2 (arXiv:1706.03762); Romero and Cordonnier 2021 (arXiv:2010.00977).
    """

    # What torch.nn.TransformerEncoderLayer asks for before it goes past the calls of its parts, which it then does not.
    in_proj_weight = in_proj_bias = None
    _qkv_same_embed_dim = False
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(self, group: Group, plain: nn.MultiheadAttention) -> None:
        super().__init__()
        self.group = group
        n, like = group.order, plain.out_proj.weight
        factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.embed_dim, self.num_heads, self.head_dim = plain.embed_dim, plain.num_heads, plain.head_dim
        self.batch_first, self.dropout, self.add_zero_attn = plain.batch_first, plain.dropout, plain.add_zero_attn

        def linear(width: int) -> FiberTokenLinear:
            bias = plain.in_proj_bias is not None
            return FiberTokenLinear(group, width // n, self.embed_dim // n, bias, **factory)

        self.q_proj, self.out_proj = linear(self.embed_dim), linear(self.embed_dim)
        self.k_proj, self.v_proj = linear(plain.kdim), linear(plain.vdim)
        for name in ("bias_k", "bias_v"):
            made = None if plain.bias_k is None else nn.Parameter(torch.empty(self.embed_dim // n, **factory))
            self.register_parameter(name, made)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Biases zero, as in torch.nn.MultiheadAttention; the layers within draw their own weights."""
        for layer in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for bias in (self.bias_k, self.bias_v):
            if bias is not None:
                nn.init.normal_(bias, std=self.embed_dim**-0.5)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        r"""As torch.nn.MultiheadAttention.forward."""
        if is_causal and attn_mask is None:
            hint = "It says of a mask that it is causal, as in torch."
            refuse("FiberMultiheadAttention", "attn_mask with is_causal=True", None, hint)
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        made = (
            self.q_proj(query),
            *map(self._longer, (self.k_proj(key), self.v_proj(value)), (self.bias_k, self.bias_v)),
        )
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in made)
        mask = self._mask(attn_mask, key_padding_mask, q, k.shape[2] - key.shape[1])
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.mT / self.head_dim**0.5
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            return y[0], None if weights is None else weights[0]
        return y if self.batch_first else y.transpose(0, 1), weights

    def _longer(self, x: Tensor, bias: Tensor | None) -> Tensor:
        r"""Keys or values (B, M, C·|G|) with the learned one after them, and one of zeros."""
        if bias is not None:
            token = bias.repeat_interleave(self.group.order).to(x.dtype)
            x = torch.cat((x, token.expand(len(x), 1, -1)), 1)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor, added: int) -> Tensor | None:
        r"""Both masks as numbers to add to the scores (B, heads, N, M + added)."""
        if mask is not None and mask.ndim == 3:
            mask = mask.unflatten(0, (-1, self.num_heads))
        parts = [part for part in (mask, None if padding is None else padding[:, None, None]) if part is not None]
        numbers = [_numbers(part, q) for part in parts]
        return F.pad(sum(numbers[1:], numbers[0]), (0, added)) if numbers else None

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, num_heads={self.num_heads}, dropout={self.dropout}, batch_first={self.batch_first}"


def _numbers(mask: Tensor, like: Tensor) -> Tensor:
    r"""Minus infinity where a truth value says that a pair is not seen; numbers as they are."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
