r"""Attention between the positions of regular features: one softmax per head, inner products over the whole fiber."""

from __future__ import annotations

from torch import Tensor

from equilayers._checks import check_float, check_same_dtype, check_tensor, refuse
from equilayers.functional.tokens import AttentionCall, attend, check_heads, feature_of, heads_of, planes_of


def group_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    r"""Attention whose weights are invariant: tokens are the positions of regular features.

    `y_s = sum_t softmax_t(<q_s, k_t> / sqrt(d)) v_t`, for each head by itself; the inner product runs over the channels
    of the head and the fiber, d = C |G| / num_heads numbers. A group element that moves query and key alike leaves it
    as it is.

    Args:
        query: regular feature (B, C, |G|, *S), floating-point.
        key: regular feature (B, C', |G|, *T); C' = C, or C / num_heads times the number of key heads, which must divide
            num_heads (grouped-query attention).
        value: regular feature (B, C', |G|, *T).
        num_heads: heads that the channels of the query are split into.
        attn_mask: which key each query may see, broadcast to (B, num_heads, N, M), with N positions of the query and M
            of the key: bool (True takes part) or a number that is added to the scores, as in
            torch.nn.functional.scaled_dot_product_attention.
        is_causal: position s sees positions up to s only.

    Returns:
        Regular feature (B, C, |G|, *S).

    Raises:
        TypeError: a tensor is not floating-point, or of another dtype.
        ValueError: shapes that do not fit, heads that do not divide C, no positions.

    Law: `group_attention(act_regular(g, q), act_regular(g, k), act_regular(g, v)) == act_regular(g, y)` for all g, to
        rounding, without a mask or with one that moves with the positions.

    Source: Vaswani et al. 2017, Eq. 1 (arXiv:1706.03762); Romero and Cordonnier 2021, section 4 (arXiv:2010.00977).
    """
    caller = "group_attention"
    for name, f in ("query", query), ("key", key), ("value", value):
        check_float(caller, name, check_tensor(caller, name, f))
        check_same_dtype(caller, name, f, query)
        if f.ndim < 4:
            hint = "Tokens stand on the trailing axes: (B, C, |G|, N) or (B, C, |G|, H, W)."
            refuse(caller, f"{name} of shape (B, C, |G|, *positions)", tuple(f.shape), hint)
        if f.shape[:3:2] != query.shape[:3:2]:
            hint = "All three must have one batch and one fiber."
            refuse(
                caller, f"{name} with the batch and fiber of query, {tuple(query.shape[:3:2])}", tuple(f.shape), hint
            )
    if key.shape[3:] != value.shape[3:] or key.shape[1] != value.shape[1]:
        hint = "Each key has one value."
        refuse(caller, f"value of the shape of key, {tuple(key.shape)}", tuple(value.shape), hint)
    check_heads(caller, query.shape[1], key.shape[1], num_heads)
    width = query.shape[1] // num_heads
    q, k, v = (heads_of(planes_of(f), query.shape[0], width) for f in (query, key, value))
    y = attend(q, k, v, AttentionCall(caller, query.shape[0], attn_mask, is_causal)).unflatten(3, (query.shape[2], -1))
    return feature_of(y.permute(3, 0, 2, 1, 4).flatten(3).flatten(1, 2), query)
