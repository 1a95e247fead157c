r"""Multi-head attention between the positions of regular features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equilayers._checks import check_choice, check_int, refuse
from equilayers.functional import WeightCache
from equilayers.functional.choices import token_choice
from equilayers.functional.cost import Choice
from equilayers.functional.tokens import (
    TOKEN_ALGORITHMS,
    AttentionCall,
    TokenSpace,
    TokenWeight,
    attend,
    attention_mask,
    check_heads,
    map_size,
    positions,
    token_space,
)
from equilayers.groups import Group, as_group
from equilayers.nn._init import reset
from equilayers.nn._linear import GroupLinear
from equilayers.nn._position import GroupRotaryEmbedding
from equilayers.nn._tokens import check_probability, check_tokens, untouched


class GroupMultiheadAttention(nn.Module):
    r"""Multi-head attention between the positions of regular features (B, C, |G|, *S).

    `y_s = W_out concat_heads(sum_t softmax_t(<q_s, k_t> / sqrt(d)) v_t)`, q, k, v group linear maps. Heads
    split C; the inner product runs over the channels of a head and the whole fiber, d = C |G| / num_heads numbers, so
    that a moved input has the same weights.

    Args:
        group: the symmetry, or its name, "C4".
        num_features: channels of query, key, value and output, C.
        num_heads: heads; must divide C.
        bias: learn biases, shared over the fiber.
        dropout: probability of dropping an attention weight, in training.
        num_kv_heads: heads of key and value, which must divide num_heads (grouped-query attention); num_heads if None.
        rotary: turns queries and keys by their positions on a map; None for no such embedding.
        algorithm: "auto" (the faster by the cost model), "fourier" (group Fourier transform) or "dense" (expanded
            matrices).

    Attributes:
        in_proj_weight: (C + 2 C num_kv_heads / num_heads, C, |G|), the rows of q, k, v below each other.
        in_proj_bias: one per row, or None. out_proj: GroupLinear(C, C). exactness: "rounding".

    Raises:
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: heads that do not divide; in forward, another number of channels, another fiber, no positions,
            key and value of different lengths, a mask that is not for tokens.

    Law: `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g, to rounding; with a mask, if it moves with
        the positions. In eval mode, and in training without dropout.

    Note:
        On CPU torch's flash attention has neither second derivatives nor forward-mode ones; call the layer under
        `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)` for those.

    Source: Vaswani et al. 2017, section 3.2 (arXiv:1706.03762); Romero and Cordonnier 2021 (arXiv:2010.00977).
    """

    ALGORITHMS = TOKEN_ALGORITHMS
    exactness = "rounding"
    in_proj_weight: Tensor
    in_proj_bias: Tensor | None

    def __init__(
        self,
        group: Group | str,
        num_features: int,
        num_heads: int,
        bias: bool = True,
        dropout: float = 0.0,
        *,
        num_kv_heads: int | None = None,
        rotary: GroupRotaryEmbedding | None = None,
        algorithm: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "GroupMultiheadAttention"
        self.group = as_group(caller, group)
        self.num_features = check_int(caller, "num_features", num_features, 1)
        self.num_heads = check_int(caller, "num_heads", num_heads, 1)
        wanted = self.num_heads if num_kv_heads is None else num_kv_heads
        self.num_kv_heads = check_int(caller, "num_kv_heads", wanted, 1)
        check_heads(caller, self.num_features, self.num_features, self.num_heads)
        if self.num_heads % self.num_kv_heads:
            hint = "As many query heads share each head of key and value."
            refuse(caller, f"num_kv_heads that divides num_heads={self.num_heads}", self.num_kv_heads, hint)
        self.dropout = check_probability(caller, "dropout", dropout)
        self.algorithm = check_choice(caller, "algorithm", algorithm, TOKEN_ALGORITHMS)
        rows = self.num_features + 2 * (self.num_features // self.num_heads) * self.num_kv_heads
        size = rows, self.num_features, self.group.order
        self.in_proj_weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.in_proj_bias = nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None
        self.out_proj = GroupLinear(
            self.group, self.num_features, self.num_features, bias, "auto", device=device, dtype=dtype
        )
        self.rotary = rotary
        self._caches = WeightCache(), WeightCache(), WeightCache()  # of the products that make query, key and value
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as `GroupLinear` does; biases are zero, as in torch.nn.MultiheadAttention."""
        reset(self.in_proj_weight, None)
        self.out_proj.reset_parameters()
        for bias in self.in_proj_bias, self.out_proj.bias:
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        r"""Attention of the positions of query to those of key and value.

        Args:
            query: regular feature (B, C, |G|, *S).
            key: regular feature (B, C, |G|, *T), with M positions; the query if None.
            value: regular feature of the shape of key; the key if None.
            key_padding_mask: (B, M), True for the keys that nobody sees; as in torch.nn.MultiheadAttention.
            attn_mask: (N, M), (num_heads, N, M) or (B, num_heads, N, M); bool, True for what is *not* seen, or numbers
                added to the scores; as in torch.nn.MultiheadAttention.
            is_causal: position s sees positions up to s only.
            size: (H, W) of the map whose tokens come last, for a rotary embedding of tokens (B, C, |G|, N); positions
                before them, such as class tokens, are not turned. None for the positions *S themselves.

        Returns:
            Regular feature (B, C, |G|, *S).
        """
        key = query if key is None else key
        value = key if value is None else value
        if value is query and key is not query:
            value = query.view_as(query)  # three inputs, not one
        caller = "GroupMultiheadAttention"
        for name, f in ("query", query), ("key", key), ("value", value):
            check_tokens(caller, name, f, self.group, self.in_proj_weight)
            if f.shape[0] != query.shape[0]:
                refuse(
                    caller,
                    f"{name} of the batch of query, {query.shape[0]}",
                    tuple(f.shape),
                    "All three have one batch.",
                )
        if value.shape[3:] != key.shape[3:]:
            hint = "Each key has one value."
            refuse(caller, f"value of the shape of key, {tuple(key.shape)}", tuple(value.shape), hint)
        shape = query.shape[0], self.num_heads, positions(query), positions(key)
        mask = attention_mask(caller, attn_mask, key_padding_mask, shape)
        space = token_space(query, self.group, self.num_features, self.num_features, self.algorithm)
        given = [query] if value is query else [query, key] if value is key else [query, key, value]
        entered = [space.enter(f) for f in given]
        call = AttentionCall(caller, query.shape[0], mask, is_causal, map_size(query) if size is None else size)
        if untouched(self.out_proj, kinds=(GroupLinear,)):
            return space.leave(self._on_tokens(space, entered, call), query)
        made: Tensor = self.out_proj(space.leave(self._merged(space, entered, call), query))
        return made

    def _on_tokens(
        self,
        space: TokenSpace,
        inputs: list[Tensor],
        call: AttentionCall,
        *,
        norm: TokenWeight | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        r"""The layer in a space, of B·N tokens: one input, or query and key, or all three.

        norm: what stands before the layer, by its `gain`, `shift` and `centred`. scale: (C,), multiplies the output.
        """
        return self.out_proj._on_tokens(space, self._merged(space, inputs, call, norm), scale=scale)

    def _merged(
        self, space: TokenSpace, inputs: list[Tensor], call: AttentionCall, norm: TokenWeight | None = None
    ) -> Tensor:
        r"""What `out_proj` takes, the heads side by side."""
        width = self.num_features // self.num_heads
        sizes = [self.num_features, self.num_kv_heads * width, self.num_kv_heads * width]
        # How many of query, key and value each input makes, in one product.
        parts = {1: [sizes], 2: [sizes[:1], sizes[1:]], 3: [[size] for size in sizes]}[len(inputs)]
        made: list[Tensor] = []
        first = 0
        for x, part, cache in zip(inputs, parts, self._caches, strict=False):
            rows = slice(first, first + sum(part))
            w = TokenWeight(self.in_proj_weight[rows], None if self.in_proj_bias is None else self.in_proj_bias[rows])
            made += space.map(x, w.after(norm), cache).split(part, -1)
            first = rows.stop
        if self.rotary is not None:
            made = [self._turned(space, made[0], call), self._turned(space, made[1], call), made[2]]
        query, key, value = (space.heads(x, call.batch, width) for x in made)
        y = attend(query, key, value, call._replace(dropout=self.dropout if self.training else 0.0))
        return space.merged(y)

    def _turned(self, space: TokenSpace, x: Tensor, call: AttentionCall) -> Tensor:
        r"""Queries or keys turned by their positions, which is done in the regular basis."""
        if self.rotary is None or call.size is None:
            hint = "Pass a map (B, C, |G|, H, W), or size=(H, W)."
            refuse("GroupMultiheadAttention", "positions on a map for the rotary embedding", call.size, hint)
        width = self.num_features // self.num_heads
        tokens = space.planes(x).transpose(0, 1).unflatten(0, (call.batch, -1)).unflatten(3, (-1, width))
        return space.from_planes(self.rotary(tokens, call.size).flatten(3).flatten(0, 1).transpose(0, 1))

    def chosen(self, query: Tensor) -> Choice:
        r"""The algorithm that runs for query, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        return token_choice(query, self.group, self.num_features, self.num_features, self.algorithm)

    def extra_repr(self) -> str:
        sizes = f"{self.group!r}, num_features={self.num_features}, num_heads={self.num_heads}"
        return f"{sizes}, num_kv_heads={self.num_kv_heads}, dropout={self.dropout}, algorithm={self.algorithm!r}"
