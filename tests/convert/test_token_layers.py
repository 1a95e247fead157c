"""Layers with fibers innermost: values against loops, laws, derivatives, plain forms, shipping, refusals."""

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import token_reference as slow
from conv_reference import correlate
from equilayers.convert import to_equivariant, to_plain
from equilayers.convert._equivariant.attention import FiberMultiheadAttention
from equilayers.convert._equivariant.conversion import Conversion
from equilayers.convert._equivariant.fiber_layers import FiberDepthwiseConv2d
from equilayers.convert._equivariant.flows import IMAGE, LIFTED, Call, Flow
from equilayers.convert._equivariant.labels import regular_action
from equilayers.convert._equivariant.token_layers import FiberTokenLinear, TiedLinear
from equilayers.convert._equivariant.tokens import attention, moved_linear, token_linear
from equilayers.convert._report import Refused, Replaced
from equilayers.groups import Group
from equilayers.nn import LiftingConv2d
from reference import act, order
from refusals import assert_refused
from strategies import C2, C4, D1, D2, D4, name

each_group = pytest.mark.parametrize("group", [C2, C4, D1, D2, D4], ids=name)
DOUBLE: dict[str, Any] = {"dtype": torch.float64}


def patch_permutations(group: Group, size: int, channels: int) -> Tensor:
    """Where each entry of a patch (size, size, channels) goes."""
    places = torch.arange(size * size * channels).view(size, size, channels).movedim(-1, 0)
    return torch.stack([group.act(g, places).movedim(0, -1).flatten().argsort() for g in range(group.order)])


def turned(group: Group, g: int, x: Tensor) -> Tensor:
    """The fibers turned that are innermost."""
    return group.act_regular(g, x.reshape(-1, x.shape[-1] // group.order, group.order)).reshape(x.shape)


def depthwise(group: Group, each: int = 1, **settings: Any) -> FiberDepthwiseConv2d:
    return FiberDepthwiseConv2d(LiftingConv2d(group, 2, 2 * each, 3, groups=2, **settings, **DOUBLE))


@each_group
@pytest.mark.parametrize("sizes", [(3, 2), (48, 64)], ids=["dense", "fourier"])
def test_token_linear(group: Group, sizes: tuple[int, int]) -> None:
    n, (channels, features) = group.order, sizes
    layer = FiberTokenLinear(group, channels, features, **DOUBLE)
    x = torch.randn(2, 5, channels * n, requires_grad=True, **DOUBLE)
    y = layer(x)
    f = x.detach().unflatten(-1, (channels, n)).permute(0, 2, 3, 1).numpy()
    expected = slow.token_linear(f, *(p.detach().numpy() for p in layer.parameters()), group)
    np.testing.assert_allclose(y.detach().unflatten(-1, (features, n)).permute(0, 2, 3, 1), expected, atol=1e-12)
    for g in range(n):
        torch.testing.assert_close(layer(turned(group, g, x)), turned(group, g, y), atol=1e-12, rtol=0)
    plain = to_plain(layer)
    assert type(plain) is nn.Linear
    given = [x, *layer.parameters()]
    theirs = torch.autograd.grad(plain(x).square().sum(), [x, *plain.parameters()])
    ours = torch.autograd.grad(y.square().sum(), given)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[2], theirs[2].unflatten(0, (-1, n)).sum(1))
    layer.algorithm = "dense"
    with torch.no_grad():
        torch.testing.assert_close(layer(x), y)
    assert layer(x[:, :0]).shape == (2, 0, features * n)


@each_group
def test_tied_linear(group: Group) -> None:
    n, size = group.order, 5
    permutations = patch_permutations(group, size, 2)
    layer = TiedLinear(group, permutations, 3, **DOUBLE)
    x = torch.randn(4, size, size, 2, **DOUBLE)
    y = layer(x.flatten(1))
    weight, bias = (p.detach().numpy() for p in layer.parameters())
    for h in range(n):
        filters = weight.reshape(3, size, size, 2).transpose(0, 3, 1, 2)
        expected = np.einsum("bhwc,ochw->bo", x.numpy(), act(group, h, filters)) + bias
        np.testing.assert_allclose(y.detach().unflatten(1, (3, n))[:, :, h], expected, atol=1e-12)
        moved = group.act(h, x.movedim(-1, 1)).movedim(1, -1).flatten(1)
        torch.testing.assert_close(layer(moved), turned(group, h, y), atol=1e-12, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x.flatten(1)), y)
        layer.weight.mul_(2)
        assert not torch.allclose(layer(x.flatten(1)), y)  # what is kept is never stale
    torch.testing.assert_close(to_plain(layer)(x.flatten(1)), layer(x.flatten(1)))


@each_group
@pytest.mark.parametrize("each", [1, 2])
def test_depthwise(group: Group, each: int) -> None:
    n = group.order
    layer = depthwise(group, each, padding=1, padding_mode="reflect")
    x = torch.randn(1, 2 * n, 4, 4, **DOUBLE)
    y = layer(x)
    weight, bias = (p.detach().numpy() for p in layer.conv.parameters())
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 1), (1, 1)], mode="reflect")
    for o in range(2 * each):
        for h in range(n):
            plane = padded[:, o // each * n + h, None]
            expected = correlate(plane, act(group, h, weight[o, None]), 1, 1) + bias[o]
            np.testing.assert_allclose(y.detach()[:, o * n + h, None], expected, atol=1e-12)
    for g in range(n):
        moved = layer(group.act_regular(g, x.unflatten(1, (2, n))).flatten(1, 2))
        torch.testing.assert_close(moved, group.act_regular(g, y.unflatten(1, (-1, n))).flatten(1, 2))
    torch.testing.assert_close(to_plain(layer)(x), y)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_first": True},
        {"add_bias_kv": True, "add_zero_attn": True},
        {"kdim": 16, "vdim": 24, "bias": False, "dropout": 0.5},
    ],
)
@torch.no_grad()
def test_attention_is_that_of_torch_with_tied_weights(settings: dict[str, Any]) -> None:
    layer = FiberMultiheadAttention(D4, nn.MultiheadAttention(48, 3, **settings, **DOUBLE)).eval()
    for parameter in layer.parameters():
        parameter.normal_()
    plain = to_plain(layer)
    assert type(plain) is nn.MultiheadAttention
    widths = (48, settings.get("kdim", 48), settings.get("vdim", 48))
    inputs = [torch.randn(5 if i else 4, 2, width, **DOUBLE) for i, width in enumerate(widths)]
    one = [x[:, 0] for x in inputs]
    if settings.get("batch_first"):
        inputs = [x.transpose(0, 1) for x in inputs]
    unseen = torch.rand(4, 5) > 0.8
    masks: list[dict[str, Any]] = [
        {"need_weights": False},
        {"average_attn_weights": False},
        {
            "attn_mask": unseen,
            "is_causal": True,
            "key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2]),
        },
        {"attn_mask": torch.randn(6, 4, 5, **DOUBLE), "key_padding_mask": torch.randn(2, 5, **DOUBLE)},
    ]
    for given, mask in [*((inputs, mask) for mask in masks), (one, {"key_padding_mask": torch.arange(5) > 3})]:
        torch.testing.assert_close(layer(*given, **mask), plain(*given, **mask))
    for g in range(8):
        moved = layer(*(turned(D4, g, x) for x in inputs), attn_mask=unseen)[0]
        torch.testing.assert_close(moved, turned(D4, g, layer(*inputs, attn_mask=unseen)[0]))


LIFTED_CALL = Call("", Flow(LIFTED, 48), (2, 5, 48), (2, 5, 48), regular_action(D4, 48))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.MultiheadAttention(20, 2), "does not divide the 10 channels of a head: embed_dim=32 works"),
        (nn.MultiheadAttention(48, 4), "embed_dim=64 works, or 3 heads"),
        (nn.MultiheadAttention(16, 2, kdim=12), "kdim=12: 16 works"),
        (nn.Linear(16, 12), "out_features=12: 16 works"),
    ],
)
def test_what_is_no_whole_fields_is_refused(module: nn.Module, words: str) -> None:
    conversion = Conversion(D4, "equal-width", False)
    made = attention(module, LIFTED_CALL, conversion) if len(module._modules) else token_linear(module, conversion)
    assert isinstance(made, Refused)
    assert words in made.reason


@pytest.mark.parametrize(
    ("change", "width", "words"),
    [
        ({"input": Flow(IMAGE, 3)}, "equal-width", "the image itself"),
        ({"moves": torch.arange(48).repeat(8, 1)}, "equal-width", "no whole fields"),
        ({"moves": None, "lost": "sorted"}, "equal-width", "sorted"),
        ({}, "equal-parameters", "only width='equal-width'"),
    ],
)
def test_attention_that_reads_no_whole_fields_is_refused(change: dict[str, Any], width: str, words: str) -> None:
    call = dataclasses.replace(LIFTED_CALL, **change)
    made = attention(nn.MultiheadAttention(48, 3), call, Conversion(D4, width, False))
    assert isinstance(made, Refused)
    assert words in f"{made.reason}, {made.cause}"


@pytest.mark.parametrize("settings", [{}, {"kdim": 16, "bias": False}, {"add_bias_kv": True}])
@torch.no_grad()
def test_attention_from_weights_is_the_projected_one(settings: dict[str, Any]) -> None:
    module, conversion = nn.MultiheadAttention(48, 3, **settings, **DOUBLE), Conversion(D4, "equal-width", True)
    module.out_proj.weight.requires_grad_(False)
    first = attention(module, LIFTED_CALL, conversion)
    assert isinstance(first, Replaced)
    assert first.distance == pytest.approx((7 / 8) ** 0.5, abs=0.03)
    assert not first.module.out_proj.weight.requires_grad
    projected = to_plain(first.module)
    for key, tied in projected.state_dict().items():
        rest = module.state_dict()[key] - tied
        assert abs(float((rest * tied).sum())) < 1e-9
    second = attention(projected, LIFTED_CALL, conversion)
    assert isinstance(second, Replaced)
    assert second.distance < 1e-9
    for key, tied in to_plain(second.module).state_dict().items():
        torch.testing.assert_close(tied, projected.state_dict()[key])


@each_group
@torch.no_grad()
def test_moved_entries_from_weights(group: Group) -> None:
    module, moves = nn.Linear(50, 3 * group.order, **DOUBLE), patch_permutations(group, 5, 2)
    made = moved_linear(module, moves, Conversion(group, "equal-width", True))
    assert isinstance(made, Replaced)
    tied = to_plain(made.module).weight
    assert abs(float(((module.weight - tied) * tied).sum())) < 1e-9
    assert made.distance == pytest.approx(float((module.weight - tied).norm() / module.weight.norm()))
    module.weight.copy_(tied)
    assert moved_linear(module, moves, Conversion(group, "equal-width", True)).distance < 1e-9


class Padded(nn.Module):
    """An encoder and a decoder of torch, called with padding masks; the encoder makes nested tensors of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2)
        self.decoder = nn.TransformerDecoderLayer(32, 2, 64, batch_first=True, norm_first=True)
        self.query, self.head = nn.Parameter(torch.randn(32)), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).mT
        padding = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        tokens = self.encoder(tokens, src_key_padding_mask=padding)
        return self.head(self.decoder(tokens + self.query, tokens, memory_key_padding_mask=padding).mean(1))


@pytest.mark.parametrize("from_weights", [False, True])
@torch.no_grad()
def test_encoders_and_decoders_of_torch(from_weights: bool) -> None:
    model, x = Padded().eval().double(), torch.randn(2, 3, 5, 5, **DOUBLE)
    made, report = to_equivariant(model, D4, x, from_weights=from_weights)
    assert report.complete, str(report)
    away = {entry.path: entry.distance for entry in report.entries}
    query = model.query.unflatten(0, (4, 8))
    rest = float((query - query.mean(1, keepdim=True)).norm() / query.norm())
    assert away[""] == (pytest.approx(rest) if from_weights else None)
    assert away["decoder.norm1"] == (0 if from_weights else None)
    y = made(x)
    for g in range(8):
        torch.testing.assert_close(made(D4.act(g, x)), y)
    with torch.enable_grad():
        torch.testing.assert_close(made(x), y)
    before = copy.deepcopy(made)
    plain = to_plain(made)
    assert not any(type(part).__module__.startswith("equilayers") for part in plain.modules())
    torch.testing.assert_close(plain(x), y)
    torch.testing.assert_close(before(x), made(x))


SHIPPED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "token linear": (lambda: FiberTokenLinear(D4, 24, 24), (2, 3, 192)),
    "small token linear": (lambda: FiberTokenLinear(C4, 2, 3), (2, 3, 8)),
    "tied linear": (lambda: TiedLinear(D4, patch_permutations(D4, 4, 3), 2), (2, 3, 48)),
    "depthwise": (lambda: depthwise(C4).float(), (2, 8, 6, 6)),
}


@pytest.mark.parametrize("what", SHIPPED)
def test_shipping(what: str) -> None:
    make, shape = SHIPPED[what]
    layer, x = make(), torch.randn(shape)
    y = layer(x)
    again = make()
    again.load_state_dict(layer.state_dict())
    exported = torch.export.export(layer, (x,)).module()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), again, exported):
        torch.testing.assert_close(other(x), y)
    torch.testing.assert_close(torch.func.vmap(layer)(x[:, None]) if x.ndim == 4 else layer(x)[:, None], y[:, None])
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_refusals() -> None:
    assert order(D4) == 8
    linear = FiberTokenLinear(D4, 3, 2)
    assert_refused(lambda: linear(torch.zeros(2, 23)), ValueError, "FiberTokenLinear", "(..., 24)", "side by side")
    layer = FiberMultiheadAttention(C4, nn.MultiheadAttention(8, 2))
    x = torch.zeros(3, 1, 8)
    assert_refused(lambda: layer(x, x, x, is_causal=True), ValueError, "FiberMultiheadAttention", "attn_mask with")
    tied = TiedLinear(C4, patch_permutations(C4, 2, 1), 1)
    assert_refused(lambda: tied(torch.zeros(2, 5)), ValueError, "TiedLinear", "(..., 4)", "permutes")
    for wrong in (patch_permutations(C2, 2, 1), torch.zeros(4, 4, dtype=torch.int64)):
        assert_refused(lambda w=wrong: TiedLinear(C4, w, 1), ValueError, "TiedLinear", "4 permutations", "place")
    strided = FiberDepthwiseConv2d(LiftingConv2d(C4, 2, 2, 3, 2, groups=2))
    assert_refused(lambda: strided(torch.zeros(1, 4, 5, 5)), ValueError, "FiberDepthwiseConv2d", "(B, 8, H, W)")
    assert_refused(
        lambda: strided(torch.zeros(1, 8, 6, 6)), ValueError, "FiberDepthwiseConv2d", "multiple of the stride"
    )
