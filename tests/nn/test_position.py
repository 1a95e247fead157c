"""Layers of positions and tokens: they are their functions, state, resizing, refusals; test_shipping.py runs them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equilayers.functional import position_embedding, prepend_tokens, relative_position_bias, rotary_embedding
from equilayers.groups import CyclicRotation, Dihedral
from equilayers.nn import GroupPositionEmbedding, GroupRelativePositionBias, GroupRotaryEmbedding, GroupTokens
from refusals import assert_refused
from strategies import S3, filled

C2, C4, D4 = CyclicRotation(2), CyclicRotation(4), Dihedral(4)


def test_layers_are_their_functions() -> None:
    f, x = filled((2, 3, 4, 5, 5), torch.float32), filled((2, 26, 4, 3, 6), torch.float32)
    embedding, tokens, bias = GroupPositionEmbedding("C4", 3, 5), GroupTokens(3, 2), GroupRelativePositionBias(C4, 3, 5)
    assert torch.equal(embedding(f), f + position_embedding(embedding.weight, C4))
    assert torch.equal(tokens(f), prepend_tokens(f, tokens.weight))
    assert torch.equal(bias(), relative_position_bias(bias.weight, C4, 5))
    assert torch.equal(GroupRotaryEmbedding(C4, 6, 50)(x, 5), rotary_embedding(x, C4, 5, 50.0))


STATE: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...]]] = {
    "GroupPositionEmbedding(CyclicRotation(2), num_features=30, size=(6, 7))": (
        lambda **f: GroupPositionEmbedding(C2, 30, (6, 7), **f),
        (30, 6, 7),
    ),
    f"GroupPositionEmbedding({S3!r}, num_features=300, size=(3,))": (
        lambda **f: GroupPositionEmbedding(S3, 300, 3, **f),
        (300, 3),
    ),
    "GroupRelativePositionBias(Dihedral(4), num_heads=40, window_size=(7, 7))": (
        lambda **f: GroupRelativePositionBias(D4, 40, 7, **f),
        (28, 40),
    ),
    "GroupTokens(num_features=300, num_tokens=2)": (lambda **f: GroupTokens(300, 2, **f), (2, 300)),
}


@pytest.mark.parametrize("shown", STATE)
def test_state(shown: str) -> None:
    """One parameter, drawn as in ViT."""
    make, shape = STATE[shown]
    layer = make(dtype=torch.float64)
    assert repr(layer) == shown
    assert layer.exactness == "bitwise"
    assert {key: (value.shape, value.dtype) for key, value in layer.state_dict().items()} == {
        "weight": (shape, torch.float64)
    }
    assert list(layer.buffers()) == []
    weight = layer.weight.detach()
    assert 0.017 < float(weight.std()) < 0.023
    assert abs(float(weight.mean())) < 0.003
    assert make(device="meta").weight.is_meta


def test_rotary_has_no_state() -> None:
    layer = GroupRotaryEmbedding(C4, 6)
    assert not layer.state_dict()
    assert repr(layer) == "GroupRotaryEmbedding(CyclicRotation(4), head_features=6, theta=100.0)"
    assert layer.exactness == "bitwise"


@pytest.mark.parametrize("size", [(4, 4), (9, 9), (6, 6)])
def test_resized_embedding(size: tuple[int, int]) -> None:
    layer = GroupPositionEmbedding(D4, 3, 6, dtype=torch.float64)
    other = layer.resized(size)
    e = position_embedding(other.weight, D4)
    assert other.weight.shape == (3, *size)
    assert all(torch.equal(D4.act_regular(g, e[None])[0], e) for g in range(8))
    if size == (6, 6):
        torch.testing.assert_close(other.weight, layer.weight, atol=1e-12, rtol=0)
    with torch.no_grad():
        layer.weight.copy_(torch.ones(3, 6, 6))
    torch.testing.assert_close(layer.resized(size).weight, torch.ones(3, *size).double())


def test_autocast_keeps_the_dtype_of_tokens() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        f = filled((1, 3, 4, 2, 2), torch.bfloat16)
        assert GroupTokens(3)(f).dtype == torch.bfloat16
        assert GroupPositionEmbedding(C4, 3, 2)(f).dtype == torch.float32  # as of torch's own sum


F = torch.zeros(1, 3, 4, 5, 5)


def refused() -> list[tuple[Callable[[], Tensor | nn.Module], type[Exception], str, tuple[str, ...]]]:
    embedding, rotary, bias = GroupPositionEmbedding, GroupRotaryEmbedding, GroupRelativePositionBias
    layer = embedding(C4, 3, 5)
    return [
        (lambda: embedding(C4, 3, (5, 6)), ValueError, embedding.__name__, ("H == W",)),
        (lambda: embedding(C4, 3, (5, 0)), ValueError, embedding.__name__, ("size >= 1",)),
        (lambda: embedding(C4, 0, 5), ValueError, embedding.__name__, ("num_features >= 1",)),
        (lambda: embedding(S3, 3, 4), ValueError, embedding.__name__, ("last axis 3",)),
        (lambda: embedding("C8", 3, 4), ValueError, embedding.__name__, ("exact group",)),
        (lambda: embedding(4, 3, 4), TypeError, embedding.__name__, ("group of equilayers.groups",)),  # type: ignore[arg-type]
        (lambda: layer(F[..., :4, :4]), ValueError, embedding.__name__, ("(B, 3, 4, 5, 5)", "got (1, 3, 4, 4, 4)")),
        (lambda: layer(F[:, :, :2]), ValueError, embedding.__name__, ("got (1, 3, 2, 5, 5)",)),
        (lambda: layer(F.double()), TypeError, embedding.__name__, ("got torch.float64",)),
        (lambda: layer(F.int()), TypeError, embedding.__name__, ("floating-point",)),
        (lambda: embedding(S3, 3, 3).resized(3), ValueError, "GroupPositionEmbedding.resized", ("(H, W)",)),
        (lambda: rotary(C4, 7), ValueError, rotary.__name__, ("head_features to be even", "got 7.", "Take 6 or 8.")),
        (lambda: rotary("C8", 6), ValueError, rotary.__name__, ("exact rotations", "C1, C2, C4, D1, D2 or D4")),
        (lambda: rotary("T3", 6), ValueError, rotary.__name__, ("exact rotations",)),
        (lambda: rotary(C4, 6, -1), ValueError, rotary.__name__, ("theta to be positive",)),
        (lambda: rotary(C4, 6)(F, 5), ValueError, rotary.__name__, ("(B, N, 4, ..., 6)", "got (1, 3, 4, 5, 5)")),
        (lambda: rotary(C4, 4)(F[..., :4], 5), ValueError, "rotary_embedding", ("N >= 25",)),
        (lambda: bias("T3", 2, 3), ValueError, bias.__name__, ("exact rotations",)),
        (lambda: bias(C4, 2, (3, 2)), ValueError, bias.__name__, ("H == W",)),
        (lambda: bias(C4, 0, 3), ValueError, bias.__name__, ("num_heads >= 1",)),
        (lambda: GroupTokens(3, 0), ValueError, "GroupTokens", ("num_tokens >= 1",)),
        (lambda: GroupTokens(2)(F), ValueError, "prepend_tokens", ("(T, 3)", "(1, 2)")),
    ]


@pytest.mark.parametrize(("call", "error", "caller", "words"), refused())
def test_refusals(
    call: Callable[[], Tensor | nn.Module], error: type[Exception], caller: str, words: tuple[str, ...]
) -> None:
    assert_refused(call, error, caller, *words)
