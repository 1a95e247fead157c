"""Transformer layers: laws, values against loops, derivatives, dropout, caches; test_shipping.py runs them."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import token_reference as slow
from equilayers.functional import group_attention, group_layer_norm, group_rms_norm
from equilayers.groups import Group
from equilayers.nn import (
    GroupAttentionPool,
    GroupFeedForward,
    GroupLayerNorm,
    GroupMultiheadAttention,
    GroupRMSNorm,
    GroupRotaryEmbedding,
    GroupTransformerEncoder,
    GroupTransformerEncoderLayer,
    InvariantHead,
    set_algorithm,
)
from reference import orbit_pool
from strategies import C2, C4, D1, D2, D4, OCTAHEDRAL, S3, T3, filled, name, some_spaces

GROUPS = [C2, C4, D1, D2, D4, T3, S3, OCTAHEDRAL]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
Make = Callable[..., nn.Module]
each_group = pytest.mark.parametrize("group", GROUPS, ids=name)


def drawn(module: nn.Module) -> nn.Module:
    """The same with every parameter at random: a norm of ones and zeros hides what it does."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(filled(tuple(p.shape), p.dtype, i) / 4)
    return module


def encoder(group: Group, **factory: Any) -> nn.Module:
    layer = GroupTransformerEncoderLayer(group, 8, 2, 8, layer_scale=0.5, **factory)
    return GroupTransformerEncoder(layer, 2, GroupLayerNorm(8, **factory))


# Of 8 channels; a depth says how many roundings may add up.
LAYERS: dict[str, tuple[Make, int]] = {
    "layer norm": (lambda g, **f: GroupLayerNorm(8, **f), 1),
    "rms norm": (lambda g, **f: GroupRMSNorm(8, **f), 1),
    "attention": (lambda g, **f: GroupMultiheadAttention(g, 8, 4, num_kv_heads=2, **f), 2),
    "feed-forward": (lambda g, **f: GroupFeedForward(g, 8, 6, "swiglu", **f), 2),
    "encoder layer": (lambda g, **f: GroupTransformerEncoderLayer(g, 8, 2, norm="rms", **f), 4),
    "post-norm": (lambda g, **f: GroupTransformerEncoderLayer(g, 8, 2, 8, norm_first=False, **f), 4),
    "encoder": (encoder, 8),
    "attention pool": (lambda g, **f: GroupAttentionPool(g, 8, 2, **f), 2),
    "invariant head": (lambda g, **f: InvariantHead(8, 3, **f), 1),
}


@torch.no_grad()
def law_error(layer: nn.Module, group: Group, f: Tensor) -> float:
    """Of one feature moved by all elements, in terms of the largest output and eps; a pooled fiber moves alone."""
    y = layer(f)
    moved = layer(torch.cat([group.act_regular(g, f) for g in range(group.order)]))
    acts = {2: lambda g: y}.get(y.ndim, lambda g: group.act_regular(g, y))
    expected = torch.cat([acts(g) for g in range(group.order)])
    return float((moved - expected).abs().max() / y.abs().max()) / torch.finfo(f.dtype).eps


@each_group
@torch.no_grad()
def test_laws(group: Group, threads: int, device: torch.device) -> None:
    for what, (make, depth) in LAYERS.items():
        for dtype in TOLERANCE:
            layer = drawn(make(group, dtype=dtype)).eval().to(device)
            assert layer.exactness == "rounding"
            for algorithm in ("fourier", "dense"):
                set_algorithm(layer, algorithm)
                for space in some_spaces(group):
                    f = filled((1, 8, group.order, *space), dtype).to(device)
                    assert law_error(layer, group, f) <= 32 * depth, (what, algorithm, space, dtype)


@torch.no_grad()
def test_a_broken_law_is_found() -> None:
    """A mask that does not move with the positions; a parameter of its own for each plane."""
    f = filled((1, 8, 4, 4, 4), torch.float64)
    layer = GroupMultiheadAttention(C4, 8, 2, dtype=torch.float64)
    assert law_error(lambda f: layer(f, is_causal=True), C4, f) > 1e6
    planes = 1 + filled((4, 1, 1), torch.float64) / 100
    assert law_error(lambda f: layer(f * planes), C4, f) > 1e6


def as_arrays(module: nn.Module) -> slow.State:
    return {key: value.double().numpy() for key, value in module.state_dict().items()}


def assert_values(layer: nn.Module, call: Callable[..., Tensor], inputs: list[Tensor], expected: slow.Array) -> None:
    """In both algorithms and precisions, with gradients and from what an evaluation keeps."""
    for dtype, tolerance in TOLERANCE.items():
        cast, given = copy.deepcopy(layer).to(dtype), [x.to(dtype) for x in inputs]
        for algorithm in ("fourier", "dense", "auto"):
            set_algorithm(cast, algorithm)
            for grad in (True, False, False):
                with torch.set_grad_enabled(grad):
                    y = call(cast, *given)
                assert y.dtype == dtype
                assert y.shape == expected.shape
                error = np.abs(y.detach().double().numpy() - expected).max()
                assert error <= tolerance * max(1, np.abs(expected).max()), (dtype, algorithm, grad)


ENCODER_LAYERS: list[dict[str, Any]] = [
    {},
    {"norm": "rms", "activation": "swiglu", "layer_scale": 0.3},
    {"norm_first": False, "activation": "relu", "layer_scale": 0.5},
    {"norm_first": False, "norm": "rms", "activation": "silu", "bias": False, "num_kv_heads": 1},
]
SPACES = {C4: (2, 2), D2: (1, 3), T3: (3,), S3: (3,)}


@pytest.mark.parametrize("settings", ENCODER_LAYERS, ids=str)
@pytest.mark.parametrize("group", SPACES, ids=name)
def test_values_of_an_encoder_layer(group: Group, settings: dict[str, Any]) -> None:
    layer = drawn(GroupTransformerEncoderLayer(group, 4, 2, 3, dtype=torch.float64, **settings))
    f = filled((2, 4, group.order, *SPACES[group]), torch.float64)
    expected = slow.encoder_layer(f.numpy(), as_arrays(layer), group, 2, settings)
    assert_values(layer, lambda layer, f: layer(f), [f], expected)
    y, x = layer(f), f.mT.contiguous().mT
    assert y.movedim((1, 2), (-1, -2)).is_contiguous()
    torch.testing.assert_close(layer(x), y, atol=1e-13, rtol=0)


@pytest.mark.parametrize("group", [C2, D1, D4, OCTAHEDRAL], ids=name)
def test_values_of_its_parts(group: Group) -> None:
    space = some_spaces(group)[0]
    f = filled((1, 4, group.order, *space), torch.float64)
    for made, function in ((GroupLayerNorm(4), group_layer_norm), (GroupRMSNorm(4, 1e-5), group_rms_norm)):
        norm, rms = drawn(made.double()), function is group_rms_norm
        state = as_arrays(norm)
        expected = slow.layer_norm(f.numpy(), state["weight"], state.get("bias"), 1e-5, rms)
        assert_values(norm, lambda norm, f: norm(f), [f], expected)
        plain = slow.layer_norm(f.numpy(), None, None, 1e-3, rms)
        torch.testing.assert_close(function(f, eps=1e-3), torch.from_numpy(plain), atol=1e-12, rtol=0)
    feed = drawn(GroupFeedForward(group, 4, 3, dtype=torch.float64))
    expected = slow.feed_forward(f.numpy(), as_arrays(feed), group, "gelu")
    assert_values(feed, lambda feed, f: feed(f), [f], expected)
    pool = drawn(GroupAttentionPool(group, 4, 2, 2, dtype=torch.float64))
    state = as_arrays(pool)
    query = np.broadcast_to(state["weight"].T[None, :, None], (1, 4, group.order, 2))
    attention = {k.removeprefix("attention."): v for k, v in state.items()}
    expected = slow.multihead_attention([query, f.numpy(), f.numpy()], attention, group, 2)
    assert_values(pool, lambda pool, f: pool(f), [f], expected)


def test_values_of_heads() -> None:
    """One query without an axis of its own; padding; a head on vectors, tokens and maps."""
    f = filled((2, 4, 4, 3), torch.float64)
    many, one = (GroupAttentionPool(C4, 4, 2, n, dtype=torch.float64) for n in (1, None))
    one.load_state_dict(drawn(many).state_dict())
    torch.testing.assert_close(many(f)[..., 0], one(f))
    padded = torch.tensor([[False, False, True]]).expand(2, -1)
    torch.testing.assert_close(one(f, padded), one(f[..., :2]))
    for reduction in ("mean", "max", "norm", "logsumexp"):
        head = InvariantHead(4, 3, reduction, dtype=torch.float64)
        weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
        for space in ((), (3,), (2, 5)):
            x = filled((2, 4, 4, *space), torch.float64)
            pooled = orbit_pool(x.numpy(), reduction).reshape(2, 4, -1).mean(2)
            torch.testing.assert_close(head(x), torch.from_numpy(pooled @ weight.T + bias), atol=1e-12, rtol=0)


N, M = 4, 3


def masks() -> dict[str, tuple[dict[str, Tensor | bool], Tensor | None, Tensor]]:
    """What the layer is told, and with it the numbers and the truth values (2, 2, 4, 3) of the reference."""
    everything = torch.ones(2, 2, N, M, dtype=torch.bool)
    hidden = torch.rand(2, 2, N, M) < 0.3
    hidden[..., 0] = False
    padding = torch.tensor([[False, False, True], [False, True, True]])
    added = filled((2, N, M), torch.float64)
    causal = everything.tril()
    return {
        "padding": ({"key_padding_mask": padding}, None, ~padding[:, None, None] & everything),
        "bool": ({"attn_mask": hidden[0, 0]}, None, ~hidden[0, 0] & everything),
        "bool of each sample": ({"attn_mask": hidden}, None, ~hidden),
        "numbers": ({"attn_mask": added}, added.expand(2, 2, N, M), everything),
        "causal": ({"is_causal": True}, None, causal),
        "numbers, padding": (
            {"attn_mask": added, "key_padding_mask": padding},
            added.expand(2, 2, N, M),
            ~padding[:, None, None] & everything,
        ),
        "all": (
            {"attn_mask": hidden, "key_padding_mask": padding, "is_causal": True},
            None,
            ~hidden & ~padding[:, None, None] & causal,
        ),
    }


@pytest.mark.parametrize("case", masks())
def test_values_of_masks_and_of_other_keys(case: str) -> None:
    """Three inputs, the query of another length."""
    told, numbers, seen = masks()[case]
    layer = drawn(GroupMultiheadAttention(C4, 4, 2, dtype=torch.float64))
    inputs = [filled((2, 4, 4, length), torch.float64, i) for i, length in enumerate((N, M, M))]
    added = None if numbers is None else numbers.numpy()
    of = lambda fs: slow.multihead_attention(  # noqa: E731
        [f.numpy() for f in fs], as_arrays(layer), C4, 2, mask=added, seen=seen.numpy()
    )
    assert_values(layer, lambda layer, *fs: layer(*fs, **told), inputs, of(inputs))
    query, key, _ = inputs
    assert_values(layer, lambda layer, q, k: layer(q, k, **told), [query, key], of([query, key, key]))
    y = group_attention(*inputs, 2, attn_mask=seen if numbers is None else numbers.masked_fill(~seen, -math.inf))
    expected = slow.attention(*(f.numpy() for f in inputs), 2, added, seen.numpy())
    torch.testing.assert_close(y, torch.from_numpy(expected), atol=1e-12, rtol=0)


@torch.no_grad()
def test_masks_reach_every_layer_of_an_encoder() -> None:
    layer = GroupTransformerEncoderLayer(C4, 4, 2, dtype=torch.float64)
    model, f = drawn(GroupTransformerEncoder(layer, 2)), filled((2, 4, 4, N), torch.float64)
    padding = torch.tensor([[False, False, False, True]]).expand(2, -1)
    alone = model(f[..., :3], is_causal=True)
    torch.testing.assert_close(model(f, None, padding, is_causal=True)[..., :3], alone)
    torch.testing.assert_close(model(f, torch.ones(N, N, dtype=torch.bool).triu(1))[..., :3], alone)
    assert not torch.allclose(model(f)[..., :3], alone)


@pytest.mark.parametrize("group", [C2, C4, D1, D4], ids=name)
def test_values_with_a_rotary_embedding(group: Group) -> None:
    """Of an encoder layer on maps; and of two inputs, and behind a token without a position."""
    rotary, space = GroupRotaryEmbedding(group, 4, 30.0), (3, 3)
    settings = {"norm": "rms", "num_kv_heads": 1}
    layer = drawn(GroupTransformerEncoderLayer(group, 8, 2, 3, rotary=rotary, dtype=torch.float64, **settings))
    f = filled((1, 8, group.order, *space), torch.float64)
    expected = slow.encoder_layer(f.numpy(), as_arrays(layer), group, 2, settings, theta=30.0)
    assert_values(layer, lambda layer, f: layer(f), [f], expected)
    assert law_error(layer, group, f) < 128
    attention, key = layer.self_attn, f.flip(0, -1)
    expected = slow.multihead_attention([f.numpy(), *[key.numpy()] * 2], as_arrays(attention), group, 2, theta=30.0)
    assert_values(attention, lambda layer, q, k: layer(q, k), [f, key], expected)
    flat = layer(f.flatten(3), size=space)
    torch.testing.assert_close(flat.unflatten(3, space), layer(f), atol=1e-12, rtol=0)
    token = filled((1, 8, 1, 1), torch.float64).expand(-1, -1, group.order, -1)
    y = layer(torch.cat([token, f.flatten(3)], 3), size=space)
    for g in range(group.order):
        moved = layer(torch.cat([token, group.act_regular(g, f).flatten(3)], 3), size=space)
        back = group.act_regular(g, y[..., 1:].unflatten(3, space))
        torch.testing.assert_close(moved[..., 1:].unflatten(3, space), back, atol=1e-12, rtol=0)


DIFFERENTIABLE: dict[str, Make] = {
    "layer norm": lambda **f: GroupLayerNorm(2, **f),
    "rms norm": lambda **f: GroupRMSNorm(2, **f),
    "attention": lambda **f: GroupMultiheadAttention(C4, 2, 1, algorithm="fourier", **f),
    "pre-norm": lambda **f: GroupTransformerEncoderLayer(S3, 2, 2, 1, layer_scale=0.5, algorithm="fourier", **f),
    "post-norm": lambda **f: GroupTransformerEncoderLayer(D2, 2, 1, 1, norm_first=False, algorithm="fourier", **f),
    "dense": lambda **f: GroupTransformerEncoderLayer(C2, 2, 1, 1, activation="swiglu", algorithm="dense", **f),
    "attention pool": lambda **f: GroupAttentionPool(C2, 2, 1, algorithm="fourier", **f),
    "mean": lambda **f: InvariantHead(2, 2, **f),
    "max": lambda **f: nn.Sequential(nn.Unflatten(3, (2, 1)), InvariantHead(2, 2, "max", **f)),
}


@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_derivatives(case: str) -> None:
    """First and second, in all parameters and the input, and forward-mode ones."""
    layer = drawn(DIFFERENTIABLE[case](dtype=torch.float64))
    group = getattr(layer, "group", C4)
    names = [key for key, _ in layer.named_parameters()]
    f = filled((1, 2, group.order, 2), torch.float64)

    def call(f: Tensor, *parameters: Tensor) -> Tensor:
        y: Tensor = functional_call(layer, dict(zip(names, parameters, strict=True)), (f,))
        return y

    inputs = (f, *(p.detach() for p in layer.parameters()))
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    assert gradcheck(call, leaves, fast_mode=True)
    with sdpa_kernel(SDPBackend.MATH):
        assert gradcheck(call, leaves, fast_mode=True, check_forward_ad=True)
        assert gradgradcheck(call, leaves, fast_mode=True)
        tangents = tuple(filled(tuple(x.shape), x.dtype, i) for i, x in enumerate(inputs))
        y, tangent = jvp(call, inputs, tangents)
    step = 1e-6
    ahead, behind = (call(*(x + s * t for x, t in zip(inputs, tangents, strict=True))) for s in (step, -step))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), atol=1e-6 * float(tangent.abs().max()), rtol=0)
    torch.testing.assert_close(y, call(*inputs))


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda p: p.mul_(1.5),
    "through .data": lambda p: p.data.add_(0.25),
    "another .data": lambda p: setattr(p, "data", p + 0.5),
}


@pytest.mark.parametrize("change", [*CHANGES, "a step of Adam"])
@pytest.mark.parametrize("algorithm", ["fourier", "dense"])
def test_no_change_of_any_parameter_is_missed(change: str, algorithm: str) -> None:
    """What an evaluation keeps is made of a weight, of the norm before it and the scale after it."""
    model = drawn(encoder(C4, dtype=torch.float64)).eval()
    pool = drawn(GroupAttentionPool(C4, 8, 2, dtype=torch.float64)).eval()
    model = set_algorithm(nn.Sequential(model, pool), algorithm)
    f = filled((2, 8, 4, 3), torch.float64)
    with torch.no_grad():
        before = model(f)
    for parameter in model.parameters() if change in CHANGES else [None]:
        with torch.no_grad():
            if parameter is not None:
                CHANGES[change](parameter)
        if parameter is None:
            optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
            model(f).square().sum().backward()
            optimizer.step()
        with torch.no_grad():
            after = model(f)
            torch.testing.assert_close(after, copy.deepcopy(model)(f), atol=1e-12, rtol=0)
            with torch.enable_grad():
                torch.testing.assert_close(after, model(f).detach(), atol=1e-12, rtol=0)
        named = next((key for key, p in model.named_parameters() if p is parameter), "")
        keys = named.endswith("in_proj_bias")  # of the keys it changes nothing, but the other rows do
        assert keys or not torch.allclose(after, before, atol=1e-9, rtol=0), named
        before = after


@pytest.mark.parametrize("algorithm", ["fourier", "dense"])
def test_dropout_drops_whole_fibers_and_drop_path_whole_samples(algorithm: str) -> None:
    """So the law holds in training as well, up to what was drawn."""
    f = filled((6, 8, 4, 2, 3), torch.float64)
    feed = GroupFeedForward(C4, 8, 8, "relu", 0.5, bias=False, algorithm=algorithm, dtype=torch.float64)
    with torch.no_grad():
        feed.linear2.weight.zero_()[..., 0].copy_(torch.eye(8))  # the output is what is left of the hidden features
        dropped, kept = feed(f), feed.eval()(f)
    quotient = dropped / kept
    alike = torch.stack([quotient[..., h, :, :][kept[..., h, :, :].abs() > 1e-9] for h in (0,)])
    assert {round(v, 9) for v in alike.flatten().tolist()} == {0.0, 2.0}
    lost = (dropped.abs() < 1e-12).all(2)
    assert 0.3 < float(lost.double().mean()) < 0.7
    torch.testing.assert_close(torch.where(lost[:, :, None], 0, 2 * kept), dropped, atol=1e-12, rtol=0)
    layer = GroupTransformerEncoderLayer(
        C4, 8, 2, 8, norm_first=False, norm="rms", drop_path=0.5, algorithm=algorithm, dtype=torch.float64
    )
    many = filled((40, 8, 4, 3), torch.float64)
    with torch.no_grad():
        whole = layer(many)
        nothing = GroupRMSNorm(8, 1e-5, dtype=torch.float64)(GroupRMSNorm(8, 1e-5, dtype=torch.float64)(many))
        still = ((whole - nothing).abs().amax((1, 2, 3)) < 1e-12).double().mean()
        assert 0.05 < float(still) < 0.5  # both branches of a quarter of the samples, in expectation
        assert not ((whole - nothing).abs() < 1e-12).flatten(1).all(1).all()
        assert torch.equal(layer.eval()(many), layer(many))


def test_dropout_is_off_in_evaluation_alone() -> None:
    f = filled((2, 8, 4, 3), torch.float32)
    for layer in (
        GroupMultiheadAttention(C4, 8, 2, dropout=0.5),
        GroupFeedForward(C4, 8, 8, dropout=0.5),
        GroupTransformerEncoderLayer(C4, 8, 2, dropout=0.5),
        GroupAttentionPool(C4, 8, 2, dropout=0.5),
    ):
        assert not torch.equal(layer(f), layer(f))
        assert torch.equal(layer.eval()(f), layer(f))


@pytest.mark.parametrize("algorithm", ["fourier", "dense"])
def test_half_precision(algorithm: str) -> None:
    """Autocast keeps the residual sums in float32, a module of bfloat16 its own dtype; norms are taken in float32."""
    model, f = drawn(encoder(C4)).eval(), filled((2, 8, 4, 3), torch.float32)
    set_algorithm(model, algorithm)
    large = GroupTransformerEncoder(model.layers[0], 1)
    y, sums = model(f), large(f * 1000)
    with torch.autocast("cpu", torch.bfloat16):
        low, kept = model(f), large(f * 1000)
    assert low.dtype == kept.dtype == torch.float32
    torch.testing.assert_close(low, y, atol=0.05 * float(y.detach().abs().max()), rtol=0)
    torch.testing.assert_close(kept, sums, atol=0.1, rtol=0)  # of thousands, which bfloat16 knows to tens
    half = copy.deepcopy(model).bfloat16()(f.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, atol=0.1 * float(y.detach().abs().max()), rtol=0)


@torch.no_grad()
def test_hooks_and_wrappers_of_layers_are_called() -> None:
    """An encoder goes past the call of a layer only where nobody would notice."""

    class Wrapper(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer, self.calls = layer, 0

        def forward(self, *args: Any, **more: Any) -> Tensor:
            self.calls += 1
            y: Tensor = self.layer(*args, **more)
            return y

    model, f = drawn(encoder(D4, dtype=torch.float64)), filled((2, 8, 8, 3, 3), torch.float64)
    expected, seen = model(f), []
    handle = model.layers[1].register_forward_hook(lambda layer, given, y: seen.append(y.shape))
    torch.testing.assert_close(model(f), expected)
    assert seen == [f.shape]
    handle.remove()
    model.layers[0] = Wrapper(model.layers[0])
    torch.testing.assert_close(model(f), expected)
    assert model.layers[0].calls == 1


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(
    "path", ["self_attn", "self_attn.out_proj", "feed_forward", "feed_forward.linear1", "feed_forward.linear2", "norm2"]
)
def test_hooks_and_wrappers_of_parts_are_called(path: str, norm_first: bool) -> None:
    """As adapters stand there; the layer is the same by the calls of its parts."""
    model = nn.Sequential(
        GroupTransformerEncoderLayer(
            D4, 8, 2, 12, activation="swiglu", norm_first=norm_first, layer_scale=0.3, dtype=torch.float64
        )
    )
    drawn(model)
    f, seen = filled((2, 8, 8, 3, 3), torch.float64), []
    mask = torch.rand(9, 9) > 0.7
    mask.fill_diagonal_(False)
    expected = model[0](f, mask)
    handle = model[0].get_submodule(path).register_forward_pre_hook(lambda part, given: seen.append(part))
    torch.testing.assert_close(model[0](f, mask), expected)
    assert len(seen) == 1
    handle.remove()
    parent, _, leaf = f"0.{path}".rpartition(".")
    wrapped = nn.Sequential(model.get_submodule(f"0.{path}")) if leaf.startswith(("linear", "out", "norm")) else None
    if wrapped is not None:
        setattr(model.get_submodule(parent), leaf, wrapped)
        torch.testing.assert_close(model[0](f, mask), expected)
