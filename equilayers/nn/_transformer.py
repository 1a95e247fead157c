r"""Transformer layers of regular features: feed-forward, encoder layer, encoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import Pair, check_choice, check_int
from equilayers.functional.choices import token_choice
from equilayers.functional.cost import Choice
from equilayers.functional.tokens import (
    TOKEN_ALGORITHMS,
    AttentionCall,
    TokenSpace,
    TokenWeight,
    attention_mask,
    map_size,
    positions,
    token_space,
)
from equilayers.groups import Group, as_group
from equilayers.nn._attention import GroupMultiheadAttention
from equilayers.nn._linear import GroupLinear
from equilayers.nn._norm import GroupLayerNorm, GroupRMSNorm
from equilayers.nn._position import GroupRotaryEmbedding
from equilayers.nn._tokens import check_probability, check_tokens, untouched

Norm = GroupLayerNorm | GroupRMSNorm
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class GroupFeedForward(nn.Module):
    r"""The feed-forward layer of a transformer, at every position of a regular feature (B, C, |G|, *S) alike.

    `y = W_2 dropout(activation(W_1 f))`; with "swiglu" `y = W_2 (silu(W_1 f) · V f)`, V the second half of the rows of
    `linear1`.

    Args:
        group: the symmetry, or its name, "C4".
        num_features: channels of input and output, C.
        hidden_features: channels between.
        activation: "gelu", "relu", "silu" or "swiglu".
        dropout: probability of dropping a channel of a token, with its whole fiber, in training.
        bias: learn biases, shared over the fiber.
        algorithm: "auto", "fourier" or "dense", as of `GroupMultiheadAttention`.

    Attributes:
        linear1: GroupLinear(C, hidden_features), of twice the features for "swiglu". linear2: GroupLinear. exactness:
            "rounding".

    Raises:
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: an unknown activation; in forward, another number of channels or another fiber, no positions.

    Law: `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g, to rounding.

    Source: Vaswani et al. 2017, section 3.3 (arXiv:1706.03762); Shazeer 2020 (arXiv:2002.05202).
    """

    ALGORITHMS = TOKEN_ALGORITHMS
    exactness = "rounding"

    def __init__(
        self,
        group: Group | str,
        num_features: int,
        hidden_features: int,
        activation: str = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
        *,
        algorithm: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "GroupFeedForward"
        self.group = as_group(caller, group)
        self.num_features = check_int(caller, "num_features", num_features, 1)
        self.hidden_features = check_int(caller, "hidden_features", hidden_features, 1)
        self.activation = check_choice(caller, "activation", activation, (*ACTIVATIONS, "swiglu"))
        self.dropout = check_probability(caller, "dropout", dropout)
        self.algorithm = check_choice(caller, "algorithm", algorithm, TOKEN_ALGORITHMS)
        wide = self.hidden_features * (2 if activation == "swiglu" else 1)
        self.linear1 = GroupLinear(self.group, self.num_features, wide, bias, "auto", device=device, dtype=dtype)
        self.linear2 = GroupLinear(
            self.group, self.hidden_features, self.num_features, bias, "auto", device=device, dtype=dtype
        )

    def forward(self, f: Tensor) -> Tensor:
        if not untouched(self.linear1, self.linear2, kinds=(GroupLinear,)):
            regular = TokenSpace(self.group, False)
            h = self._activated(self.linear1(f), 1)
            h = regular.leave(regular.dropped(regular.enter(h), self.dropout if self.training else 0.0, 0.0, 1), h)
            made: Tensor = self.linear2(h)
            return made
        check_tokens("GroupFeedForward", "f", f, self.group, self.linear1.weight)
        space = token_space(f, self.group, self.num_features, self.hidden_features, self.algorithm)
        return space.leave(self._on_tokens(space, space.enter(f)), f)

    def _on_tokens(
        self,
        space: TokenSpace,
        x: Tensor,
        *,
        norm: TokenWeight | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        r"""The layer in a space, see `GroupLinear._on_tokens`."""
        # In one expression, so that what is wide is freed as soon as the next step has read it.
        h = space.from_planes(self._activated(space.planes(self.linear1._on_tokens(space, x, norm=norm)), -1))
        h = space.dropped(h, self.dropout if self.training else 0.0, 0.0, 1)
        return self.linear2._on_tokens(space, h, scale=scale)

    def _activated(self, h: Tensor, channels: int) -> Tensor:
        r"""The activation of hidden features, whose channels are on this axis."""
        if self.activation != "swiglu":
            return ACTIVATIONS[self.activation](h)
        gate, up = h.chunk(2, channels)
        return F.silu(gate) * up

    def chosen(self, f: Tensor) -> Choice:
        r"""The algorithm that runs for f, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        return token_choice(f, self.group, self.num_features, self.hidden_features, self.algorithm)

    def extra_repr(self) -> str:
        return f"activation={self.activation!r}, dropout={self.dropout}, algorithm={self.algorithm!r}"


class GroupTransformerEncoderLayer(nn.Module):
    r"""The encoder layer of a transformer on regular features (B, C, |G|, *S): attention and feed-forward.

    `y = f + scale_1 attention(norm_1(f))`, `z = y + scale_2 feed_forward(norm_2(y))`; the norms follow the sums where
    `norm_first` is False.

    Args:
        group: the symmetry, or its name, "C4".
        num_features: channels, C; a plain layer of the same width has C |G|.
        num_heads: heads; must divide C.
        hidden_features: channels of the feed-forward layer; 4 C if None.
        dropout: probability of dropping an attention weight, a hidden or an output channel of a token, in training.
        activation: "gelu", "relu", "silu" or "swiglu".
        norm_first: norms before attention and feed-forward, as in ViT, or after the sums.
        norm: "layer" or "rms".
        layer_norm_eps: added to the variance.
        layer_scale: first value of a learned factor (C,) of each branch, shared over the fiber; None for no factors.
        drop_path: probability of dropping a branch of a sample, in training.
        num_kv_heads: heads of key and value, see `GroupMultiheadAttention`.
        rotary: turns queries and keys by their positions on a map.
        bias: learn biases.
        algorithm: "auto", "fourier" or "dense", as of `GroupMultiheadAttention`.

    Attributes:
        self_attn, feed_forward, norm1, norm2: the layers, which hold the parameters. scale1, scale2: (C,) or None.
            exactness: "rounding".

    Raises:
        TypeError, ValueError: as `GroupMultiheadAttention` and `GroupFeedForward`.

    Law: `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g, to rounding; with a mask, if it moves with
        the positions.

    Source: Vaswani et al. 2017 (arXiv:1706.03762); Xiong et al. 2020 (arXiv:2002.04745); Touvron et al. 2021
        (arXiv:2103.17239); coefficients of irreps between the nonlinearities: Nordstrom et al. 2025 (arXiv:2505.15441).
    """

    ALGORITHMS = TOKEN_ALGORITHMS
    exactness = "rounding"
    scale1: Tensor | None
    scale2: Tensor | None

    def __init__(
        self,
        group: Group | str,
        num_features: int,
        num_heads: int,
        hidden_features: int | None = None,
        dropout: float = 0.0,
        activation: str = "gelu",
        norm_first: bool = True,
        *,
        norm: str = "layer",
        layer_norm_eps: float = 1e-5,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        num_kv_heads: int | None = None,
        rotary: GroupRotaryEmbedding | None = None,
        bias: bool = True,
        algorithm: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "GroupTransformerEncoderLayer"
        self.group = as_group(caller, group)
        self.num_features = check_int(caller, "num_features", num_features, 1)
        hidden = 4 * self.num_features if hidden_features is None else hidden_features
        check_choice(caller, "norm", norm, ("layer", "rms"))
        self.norm_first = bool(norm_first)
        self.dropout = check_probability(caller, "dropout", dropout)
        self.drop_path = check_probability(caller, "drop_path", drop_path)
        self.algorithm = check_choice(caller, "algorithm", algorithm, TOKEN_ALGORITHMS)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.self_attn = GroupMultiheadAttention(
            self.group, num_features, num_heads, bias, dropout, num_kv_heads=num_kv_heads, rotary=rotary, **factory
        )
        self.feed_forward = GroupFeedForward(self.group, num_features, hidden, activation, dropout, bias, **factory)
        norms: list[Norm] = [
            GroupLayerNorm(num_features, layer_norm_eps, bias=bias, **factory)
            if norm == "layer"
            else GroupRMSNorm(num_features, layer_norm_eps, **factory)
            for _ in range(2)
        ]
        self.norm1, self.norm2 = norms
        self.layer_scale = layer_scale
        for name in "scale1", "scale2":
            empty = None if layer_scale is None else nn.Parameter(torch.empty(num_features, **factory))
            self.register_parameter(name, empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Set the factors of the branches to `layer_scale`; the layers within reset their own."""
        for scale in self.scale1, self.scale2:
            if scale is not None and self.layer_scale is not None:
                nn.init.constant_(scale, float(self.layer_scale))

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        r"""The layer on a regular feature (B, C, |G|, *S).

        Args:
            src: regular feature.
            src_mask: the `attn_mask` of `GroupMultiheadAttention.forward`.
            src_key_padding_mask: its `key_padding_mask`.
            is_causal: position s sees positions up to s only.
            size: of the map, for a rotary embedding of flattened tokens, as there.

        Returns:
            Regular feature of the same shape.
        """
        if untouched(*list(self.modules())[1:], kinds=PARTS):
            call = self._call(src, src_mask, src_key_padding_mask, is_causal, size)
            space = token_space(src, self.group, self.num_features, self.num_features, self.algorithm)
            return space.leave(self._on_tokens(space, space.enter(src), call), src)

        def attended(x: Tensor) -> Tensor:
            masks = {"key_padding_mask": src_key_padding_mask, "attn_mask": src_mask, "is_causal": is_causal}
            return self.self_attn(x, **masks, size=size)

        return self._called(src, attended)

    def _called(self, src: Tensor, attended: Callable[[Tensor], Tensor]) -> Tensor:
        r"""The layer by the calls of its parts, each with a regular feature."""

        def added(x: Tensor, y: Tensor, scale: Tensor | None) -> Tensor:
            y = y if scale is None else y * scale.view(-1, *[1] * (y.ndim - 2))
            fibers, samples = (self.dropout, self.drop_path) if self.training else (0.0, 0.0)
            space = TokenSpace(self.group, False)
            return x + space.leave(space.dropped(space.enter(y), fibers, samples, y.shape[0]), y)

        if self.norm_first:
            x = added(src, attended(self.norm1(src)), self.scale1)
            return added(x, self.feed_forward(self.norm2(x)), self.scale2)
        x = self.norm1(added(src, attended(src), self.scale1))
        y: Tensor = self.norm2(added(x, self.feed_forward(x), self.scale2))
        return y

    def _call(
        self, src: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool, size: Pair | None
    ) -> AttentionCall:
        r"""What attention is told, checked; arguments as of `forward`."""
        caller = "GroupTransformerEncoderLayer"
        check_tokens(caller, "src", src, self.group, self.self_attn.in_proj_weight)
        n = positions(src)
        mask = attention_mask(caller, mask, padding, (src.shape[0], self.self_attn.num_heads, n, n))
        return AttentionCall(caller, src.shape[0], mask, is_causal, map_size(src) if size is None else size)

    def _on_tokens(self, space: TokenSpace, x: Tensor, call: AttentionCall) -> Tensor:
        r"""The layer in a space, of B·N tokens."""
        first, second = _norm_weight(self.norm1), _norm_weight(self.norm2)

        def attended(x: Tensor, norm: TokenWeight | None) -> Tensor:
            return self.self_attn._on_tokens(space, [x], call, norm=norm, scale=self.scale1)

        def added(x: Tensor, y: Tensor) -> Tensor:
            fibers, samples = (self.dropout, self.drop_path) if self.training else (0.0, 0.0)
            return x + space.dropped(y, fibers, samples, call.batch)

        if self.norm_first:
            x = added(x, attended(_normalised(space, x, self.norm1), first))
            y = _normalised(space, x, self.norm2)
            return added(x, self.feed_forward._on_tokens(space, y, norm=second, scale=self.scale2))
        x = space.affine(_normalised(space, added(x, attended(x, None)), self.norm1), first)
        y = added(x, self.feed_forward._on_tokens(space, x, scale=self.scale2))
        return space.affine(_normalised(space, y, self.norm2), second)

    def chosen(self, src: Tensor) -> Choice:
        r"""The algorithm that runs for src, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        return token_choice(src, self.group, self.num_features, self.num_features, self.algorithm)

    def extra_repr(self) -> str:
        return f"norm_first={self.norm_first}, drop_path={self.drop_path}, algorithm={self.algorithm!r}"


class GroupTransformerEncoder(nn.Module):
    r"""Encoder layers one after the other; between them the features stay in coefficients of the group.

    Where hooks or wrappers stand on the layers, such as those of FSDP2 and of activation checkpointing, each layer is
    called with a regular feature instead.

    Args:
        encoder_layer: the layer, copied `num_layers` times, each with its own parameters of the same values, as in
            torch.nn.TransformerEncoder.
        num_layers: how many.
        norm: a last norm, or None.

    Attributes:
        layers: the encoder layers. norm: as given. exactness: "rounding".

    Raises:
        TypeError, ValueError: as `GroupTransformerEncoderLayer`.

    Law: `encoder(act_regular(g, f)) == act_regular(g, encoder(f))` for all g, to rounding, times the number of layers.
    """

    exactness = "rounding"

    def __init__(
        self, encoder_layer: GroupTransformerEncoderLayer, num_layers: int, norm: nn.Module | None = None
    ) -> None:
        super().__init__()
        count = check_int("GroupTransformerEncoder", "num_layers", num_layers, 1)
        self.layers = nn.ModuleList(copy.deepcopy(encoder_layer) for _ in range(count))
        self.norm = norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        r"""The layers on a regular feature (B, C, |G|, *S); arguments as of `GroupTransformerEncoderLayer.forward`."""
        y, layers = src, list(self.layers)
        if untouched(*layers, *(part for layer in layers for part in list(layer.modules())[1:]), kinds=PARTS):
            first: GroupTransformerEncoderLayer = layers[0]  # type: ignore[assignment]
            call = first._call(src, mask, src_key_padding_mask, is_causal, size)
            space = token_space(src, first.group, first.num_features, first.num_features, first.algorithm)
            x = space.enter(src)
            for layer in layers:
                x = layer._on_tokens(space, x, call)  # type: ignore[operator]
            y = space.leave(x, src)
        else:
            for layer in layers:
                y = layer(y, mask, src_key_padding_mask, is_causal, size=size)
        return y if self.norm is None else self.norm(y)


def _norm_weight(norm: Norm) -> TokenWeight:
    r"""What a norm does after the division, to be folded into the map that comes next."""
    centred = isinstance(norm, GroupLayerNorm)
    return TokenWeight(torch.empty(0), gain=norm.weight, shift=getattr(norm, "bias", None), centred=centred)


def _normalised(space: TokenSpace, x: Tensor, norm: Norm) -> Tensor:
    r"""The division of a norm."""
    eps = torch.finfo(x.dtype).eps if norm.eps is None else norm.eps
    return space.normalised(x, eps, centred=isinstance(norm, GroupLayerNorm))


# What an encoder is made of: past the calls of these it may go.
PARTS = (
    *(GroupTransformerEncoderLayer, GroupMultiheadAttention, GroupFeedForward, GroupLinear),
    *(GroupLayerNorm, GroupRMSNorm, GroupRotaryEmbedding),
)
