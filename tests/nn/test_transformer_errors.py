"""Refusals of transformer layers, by their type and their words."""

from collections.abc import Callable

import pytest
import torch

from equilayers.functional import group_attention, group_layer_norm, group_rms_norm
from equilayers.nn import (
    GroupAttentionPool,
    GroupFeedForward,
    GroupMultiheadAttention,
    GroupRotaryEmbedding,
    GroupTransformerEncoder,
    GroupTransformerEncoderLayer,
    InvariantHead,
)
from refusals import assert_refused
from strategies import C4

F = torch.zeros(2, 4, 4, 5)
KEY, MAP = F[..., :3], torch.zeros(2, 4, 4, 2, 3)
ATTENTION, LAYER = GroupMultiheadAttention(C4, 4, 2), GroupTransformerEncoderLayer(C4, 4, 2)
TURNED = GroupMultiheadAttention(C4, 4, 2, rotary=GroupRotaryEmbedding(C4, 2))
HEAD, ENCODER = InvariantHead(4, 3), GroupTransformerEncoder(LAYER, 2)
A, L, W = "GroupMultiheadAttention", "GroupTransformerEncoderLayer", "GroupFeedForward"
SCORES, HIDDEN = torch.zeros(5, 5), torch.zeros(2, 5, dtype=torch.bool)

Case = tuple[Callable[[], object], type[Exception], str, tuple[str, ...]]
REFUSED: list[Case] = [
    (lambda: GroupMultiheadAttention(C4, 6, 4), ValueError, A, ("num_heads that divides the 6 channels", "got 4.")),
    (lambda: GroupMultiheadAttention(C4, 4, 0), ValueError, A, ("num_heads >= 1",)),
    (lambda: GroupMultiheadAttention(C4, 8, 4, num_kv_heads=3), ValueError, A, ("divides num_heads=4", "got 3.")),
    (lambda: GroupMultiheadAttention(C4, 4, 2, dropout=1.0), ValueError, A, ("dropout in [0, 1)", "got 1.0.")),
    (
        lambda: GroupMultiheadAttention(C4, 4, 2, algorithm="fft"),
        ValueError,
        A,
        ("'fourier', 'dense'", "'fft'"),
    ),
    (lambda: GroupMultiheadAttention(4, 4, 2), TypeError, A, ("group of equilayers.groups",)),  # type: ignore[arg-type]
    (lambda: GroupFeedForward(C4, 4, 8, "tanh"), ValueError, W, ("activation in {'gelu'", "'swiglu'", "'tanh'")),
    (lambda: GroupFeedForward(C4, 4, 8, dropout=-0.1), ValueError, W, ("dropout in [0, 1)", "got -0.1.")),
    (lambda: GroupFeedForward(C4, 4, 0), ValueError, W, ("hidden_features >= 1",)),
    (lambda: GroupTransformerEncoderLayer(C4, 4, 2, norm="batch"), ValueError, L, ("norm in {'layer', 'rms'}",)),
    (lambda: GroupTransformerEncoderLayer(C4, 4, 2, drop_path=2), ValueError, L, ("drop_path in [0, 1)", "got 2.")),
    (lambda: GroupTransformerEncoderLayer(C4, 4, 3), ValueError, A, ("num_heads that divides the 4 channels",)),
    (lambda: GroupTransformerEncoder(LAYER, 0), ValueError, "GroupTransformerEncoder", ("num_layers >= 1",)),
    (lambda: GroupRotaryEmbedding(C4, 3), ValueError, "GroupRotaryEmbedding", ("head_features to be even",)),
    (lambda: ATTENTION(F[:, :3]), ValueError, A, ("query of shape (B, 4, 4, *positions)", "(2, 3, 4, 5)")),
    (lambda: ATTENTION(F[:, :, :2]), ValueError, A, ("axis 2 of length 4", "(2, 4, 2, 5)")),
    (lambda: ATTENTION(F[..., 0]), ValueError, A, ("*positions", "(2, 4, 4)")),
    (lambda: ATTENTION(F[..., :0]), ValueError, A, ("query with at least one position", "(2, 4, 4, 0)")),
    (lambda: ATTENTION(F, KEY[..., :0]), ValueError, A, ("key with at least one position",)),
    (lambda: ATTENTION(F.double()), TypeError, A, ("torch.float32", "got torch.float64")),
    (lambda: ATTENTION(F.int()), TypeError, A, ("query to be floating-point",)),
    (lambda: ATTENTION(F, KEY[:1]), ValueError, A, ("key of the batch of query, 2", "got (1, 4, 4, 3)")),
    (lambda: ATTENTION(F, KEY, KEY[:1]), ValueError, A, ("value of the batch of query, 2", "got (1, 4, 4, 3)")),
    (lambda: ATTENTION(F, KEY, F), ValueError, A, ("value of the shape of key, (2, 4, 4, 3)", "got (2, 4, 4, 5)")),
    (lambda: ATTENTION(F, attn_mask=SCORES.expand(2, 2, 4, 5, 5)), ValueError, A, ("no axis for the fiber",)),
    (lambda: ATTENTION(F, attn_mask=SCORES.expand(4, 5, 5)), ValueError, A, ("(2, 2, 5, 5)", "got (4, 5, 5)")),
    (lambda: ATTENTION(F, KEY, attn_mask=SCORES), ValueError, A, ("(B, heads, N, M) = (2, 2, 5, 3)", "got (5, 5)")),
    (lambda: ATTENTION(F, attn_mask=SCORES.long()), TypeError, A, ("attn_mask to be floating-point",)),
    (lambda: ATTENTION(F, key_padding_mask=HIDDEN[:, :4]), ValueError, A, ("key_padding_mask", "= (2, 5)", "(2, 4)")),
    (lambda: ATTENTION(F, key_padding_mask=HIDDEN.float()), ValueError, A, ("torch.bool", "torch.float32")),
    (lambda: TURNED(F), ValueError, A, ("positions on a map for the rotary embedding", "size=(H, W)")),
    (lambda: TURNED(MAP), ValueError, "rotary_embedding", ("H == W",)),
    (lambda: LAYER(F[:, :, :1]), ValueError, L, ("axis 2 of length 4",)),
    (lambda: LAYER(F[:, :2]), ValueError, L, ("src of shape (B, 4, 4, *positions)",)),
    (lambda: LAYER([1.0]), TypeError, L, ("src to be a torch.Tensor", "got list")),
    (lambda: LAYER(F, SCORES[:4]), ValueError, L, ("attn_mask that broadcasts", "got (4, 5)")),
    (lambda: ENCODER(F[..., :0]), ValueError, L, ("src with at least one position",)),
    (lambda: ENCODER(F, None, HIDDEN[:1]), ValueError, L, ("key_padding_mask", "(1, 5)")),
    (lambda: GroupFeedForward(C4, 4, 8)(F[:, :2]), ValueError, W, ("f of shape (B, 4, 4, *positions)",)),
    (lambda: group_attention(F, KEY, KEY, 3), ValueError, "group_attention", ("num_heads that divides",)),
    (lambda: group_attention(F, KEY[:, :3], KEY[:, :3], 2), ValueError, "group_attention", ("whole heads", "got 3.")),
    (lambda: group_attention(F, KEY[:1], KEY, 2), ValueError, "group_attention", ("key with the batch", "(2, 4)")),
    (lambda: group_attention(F, KEY, F, 2), ValueError, "group_attention", ("value of the shape of key",)),
    (lambda: group_attention(F, KEY[..., :0], KEY[..., :0], 2), ValueError, "group_attention", ("one position",)),
    (lambda: group_attention(F[..., 0], F, F, 2), ValueError, "group_attention", ("query of shape", "positions")),
    (lambda: group_layer_norm(F, torch.ones(3)), ValueError, "group_layer_norm", ("weight of shape (4,)",)),
    (lambda: group_rms_norm(F[0, 0]), ValueError, "group_rms_norm", ("(B, C, |G|, *positions)",)),
    (lambda: group_layer_norm(F.int()), TypeError, "group_layer_norm", ("floating-point",)),
    (lambda: GroupAttentionPool(C4, 4, 2, 0), ValueError, "GroupAttentionPool", ("num_queries >= 1",)),
    (lambda: GroupAttentionPool(C4, 4, 2)(F[..., :0]), ValueError, A, ("key with at least one position",)),
    (lambda: InvariantHead(4, 3, "sum"), ValueError, "InvariantHead", ("reduction in {'max'", "'sum'")),
    (lambda: HEAD(F[:, :2]), ValueError, "InvariantHead", ("(B, 4, |G|, *positions)", "got (2, 2, 4, 5)")),
    (lambda: HEAD(F[..., :0]), ValueError, "InvariantHead", ("got (2, 4, 4, 0)",)),
    (lambda: HEAD(F.double()), TypeError, "InvariantHead", ("got torch.float64",)),
]


@pytest.mark.parametrize(("call", "error", "caller", "words"), REFUSED)
def test_refusals(call: Callable[[], object], error: type[Exception], caller: str, words: tuple[str, ...]) -> None:
    assert_refused(call, error, caller, *words)
