"""Lifting and group convolutions: every algorithm and layer against the loops of the reference, and its gradients."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import conv_reference as slow
from conv_laws import (
    ALGORITHMS,
    KINDS,
    MODES,
    Kind,
    Settings,
    each_kind,
    has_quarter_turns,
    input_of,
    limit_blocks,
    make,
    misses,
    settings,
    square,
)
from equilayers.functional import group_conv2d, lift_conv2d
from equilayers.groups import CyclicRotation, Group
from equilayers.nn import GroupConv2d, LiftingConv2d
from strategies import C4, D1, D4, ROTATIONS, TURNING, filled, float_dtypes, name, rotations

Array = np.ndarray  # type: ignore[type-arg]
Inputs = tuple[Tensor, Tensor, Tensor]

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
FUNCTIONS: dict[Kind, tuple[Callable[..., Tensor], Callable[..., Array]]] = {
    LiftingConv2d: (lift_conv2d, slow.lift_conv2d),
    GroupConv2d: (group_conv2d, slow.group_conv2d),
}
SQUARE = [
    square(1, 1),
    square(5, 3),
    square(6, 3),
    square(4, 4),
    square(5, 1, padding=1),
    square(4, 2, padding=3),
    square(5, 5, padding=2, groups=2),
    square(7, 3, stride=2, padding=1),
    square(6, 2, stride=2),
    square(7, 3, stride=3, padding=1, groups=2),
    square(6, 3, padding=2, dilation=2),
    square(9, 3, stride=2, padding=1, dilation=2),
    *(square(4, 3, padding=2, padding_mode=mode) for mode in MODES),
    square(6, 2, stride=2, padding=3, dilation=3, groups=3, padding_mode="reflect"),
]
OBLONG = [
    Settings((5, 8), (3, 2)),
    Settings((7, 4), (3, 1), (2, 3), (0, 0), (1, 2)),
    Settings((4, 8), (2, 4), (1, 3), (3, 1), (3, 2), 2, "circular"),
]
LOPSIDED = Settings((6, 7), (3, 3), (2, 2))  # along the height alone, which mirrors leave as it is

each_group = pytest.mark.parametrize("group", ROTATIONS, ids=name)


def settings_of(group: Group) -> list[Settings]:
    more = [] if has_quarter_turns(group) else OBLONG
    return [*SQUARE, *more, *([LOPSIDED] if group in (CyclicRotation(1), D1) else [])]


def arguments(kind: Kind, group: Group, s: Settings, batch: int = 2, dtype: torch.dtype = torch.float64) -> Inputs:
    """Random x, weight and bias with two channels and two features in each channel group."""
    fiber = () if kind is LiftingConv2d else (group.order,)
    sizes = ((batch, 2 * s.groups, *fiber, *s.size), (2 * s.groups, 2, *fiber, *s.kernel_size), (2 * s.groups,))
    x, weight, bias = (filled(size, dtype, seed).requires_grad_() for seed, size in enumerate(sizes))
    return x, weight, bias


def distance(y: Tensor, expected: Array) -> float:
    """The largest error, relative to the largest entry; infinite where the shapes differ."""
    if y.shape != expected.shape:
        return float("inf")
    return float(np.abs(y.detach().double().numpy() - expected).max() / np.abs(expected).max())


@each_kind
@each_group
def test_every_algorithm_is_the_reference(group: Group, kind: Kind) -> None:
    function, reference = FUNCTIONS[kind]
    for s in settings_of(group):
        inputs = [t.detach() for t in arguments(kind, group, s)]
        expected = reference(*(t.numpy() for t in inputs), group, **s.keywords)
        plain = reference(*(t.numpy() for t in inputs[:2]), None, group, **s.keywords)
        for algorithm in ALGORITHMS:
            for dtype, tolerance in TOLERANCE.items():
                x, weight, bias = (t.to(dtype) for t in inputs)
                y = function(x, weight, bias, group, algorithm=algorithm, **s.keywords)
                assert y.dtype == dtype
                assert distance(y, expected) < tolerance, (s, algorithm)
            unbiased = function(x, weight, None, group, algorithm=algorithm, **s.keywords)
            assert distance(unbiased, plain) < TOLERANCE[x.dtype], (s, algorithm)


@each_kind
@given(rotations(), float_dtypes(), st.sampled_from(ALGORITHMS), st.integers(1, 3), st.data())
def test_layers_are_the_reference_at_any_settings(
    kind: Kind, group: Group, dtype: torch.dtype, algorithm: str, batch: int, data: st.DataObject
) -> None:
    s = data.draw(settings(group, max_groups=2), label="settings")
    x, weight, bias = (t.detach() for t in arguments(kind, group, s, batch, dtype))
    layer = make(kind, group, 2 * s.groups, 2 * s.groups, s, algorithm, dtype=dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    expected = FUNCTIONS[kind][1](*(t.double().numpy() for t in (x, weight, bias)), group, **s.keywords)
    assert distance(layer(x), expected) < TOLERANCE[dtype]
    with torch.no_grad():
        for _ in range(2):  # the second call finds what the first one kept
            assert distance(layer(x), expected) < TOLERANCE[dtype]


def test_the_comparison_can_fail() -> None:
    group, s = C4, square(5, 3)
    x, weight, bias = (t.detach() for t in arguments(GroupConv2d, group, s))
    expected = slow.group_conv2d(x.numpy(), weight.numpy(), bias.numpy(), group)
    y = group_conv2d(x, weight, bias, group)
    assert distance(y, expected) < 1e-12
    assert distance(y[:, :, [0, 3, 2, 1]], expected) > 0.1
    assert distance(y + 1e-9 * y.abs().max(), expected) > 1e-12
    assert distance(group_conv2d(x, weight.flip(-1), bias, group), expected) > 0.1
    assert distance(y[:, :, :, :-1], expected) == float("inf")
    circular = group_conv2d(x, weight, bias, group, padding=1, padding_mode="circular")
    assert distance(circular, slow.group_conv2d(x.numpy(), weight.numpy(), bias.numpy(), group, padding=1)) > 0.1


def expanded(kind: Kind, weight: Tensor, group: Group) -> Tensor:
    """The filter of the ordinary convolution, turn by turn: row (o, h), column c or (c, k)."""
    turns = range(group.order)
    if kind is LiftingConv2d:
        return torch.stack([group.act(h, weight) for h in turns], 1).flatten(0, 1)
    quotients = [[slow.quotient(group, h, k) for k in turns] for h in turns]
    rows = [torch.stack([group.act(h, weight[:, :, u]) for u in quotients[h]], 2) for h in turns]
    return torch.stack(rows, 1).flatten(2, 3).flatten(0, 1)


def by_torch(kind: Kind, x: Tensor, weight: Tensor, bias: Tensor, group: Group, s: Settings) -> Tensor:
    """The convolution as torch alone computes and differentiates it."""
    image = x if kind is LiftingConv2d else x.flatten(1, 2)
    (ph, pw), mode = s.padding, "constant" if s.padding_mode == "zeros" else s.padding_mode
    filters, spread = expanded(kind, weight, group), bias.repeat_interleave(group.order)
    y = F.conv2d(F.pad(image, (pw, pw, ph, ph), mode), filters, spread, s.stride, 0, s.dilation, s.groups)
    return y.unflatten(1, (-1, group.order))


@each_kind
@each_group
def test_every_gradient_is_that_of_the_expanded_filter(group: Group, kind: Kind) -> None:
    for s in settings_of(group):
        inputs = arguments(kind, group, s)
        y = by_torch(kind, *inputs, group, s)
        cotangent = filled(tuple(y.shape), torch.float64, seed=7)
        expected = torch.autograd.grad(y, inputs, cotangent)
        for algorithm in ALGORITHMS:
            z = FUNCTIONS[kind][0](*inputs, group, algorithm=algorithm, **s.keywords)
            gradients = torch.autograd.grad(z, inputs, cotangent)
            for gradient, other in zip(gradients, expected, strict=True):
                assert distance(gradient, other.numpy()) < 1e-12, (s, algorithm)


@each_kind
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_gradient_alone_is_the_same(kind: Kind, algorithm: str) -> None:
    """As frozen weights, or inputs that want no gradient, leave it."""
    for s in (square(5, 3, padding=1), square(7, 3, stride=2, padding=1, groups=2)):
        inputs = arguments(kind, C4, s)
        run = lambda *inputs, s=s: FUNCTIONS[kind][0](*inputs, C4, algorithm=algorithm, **s.keywords)  # noqa: E731
        y = run(*inputs)
        cotangent = filled(tuple(y.shape), torch.float64, seed=7)
        for i, expected in enumerate(torch.autograd.grad(y, inputs, cotangent)):
            alone = [t if i == j else t.detach() for j, t in enumerate(inputs)]
            assert torch.equal(torch.autograd.grad(run(*alone), inputs[i], cotangent)[0], expected)


def assert_as_torch(kind: Kind, group: Group, batch: int, channels: int, s: Settings, algorithm: str) -> None:
    """Output and gradients of a layer of three features are those of torch to 1e-5 in float32."""
    layer = make(kind, group, channels, 3, s, algorithm)
    x = input_of(layer, s.size, batch).requires_grad_()
    own, theirs = layer(x), by_torch(kind, x, layer.weight, layer.bias, group, s)
    assert distance(own, theirs.detach().numpy()) < 1e-5
    inputs, cotangent = (x, layer.weight, layer.bias), filled(tuple(own.shape), torch.float32, seed=7)
    for gradient, other in zip(*(torch.autograd.grad(y, inputs, cotangent) for y in (own, theirs)), strict=True):
        assert distance(gradient, other.numpy()) < 1e-5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_batches_and_maps_larger_than_a_block(algorithm: str) -> None:
    assert_as_torch(GroupConv2d, C4, 30, 40, square(13, 3, padding=1), algorithm)
    assert_as_torch(GroupConv2d, C4, 2, 64, square(31, 3, padding=1), algorithm)
    assert_as_torch(LiftingConv2d, C4, 2, 64, square(57, 5, stride=2, padding=2), algorithm)


@each_kind
@each_group
def test_blocks_of_any_size(kind: Kind, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of some samples, the last one shorter; of one sample; of one orbit of positions."""
    for block_bytes, s in product((1, 1_000, 20_000), (square(6, 3, padding=1), square(7, 3, stride=2, padding=1))):
        limit_blocks(monkeypatch, block_bytes)
        assert_as_torch(kind, group, 5, 3, s, "fourier")
        layer = make(kind, group, 3, 5, s, "fourier")
        assert misses(layer, group, input_of(layer, s.size, 5)) == []


@pytest.mark.parametrize("group", [g for g in ROTATIONS if g not in TURNING], ids=name)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", [True, False])
def test_the_trivial_group_is_torchs_convolution(group: Group, mode: str, bias: bool) -> None:
    settings_ = {"stride": (3, 2), "padding": (2, 1), "dilation": (1, 2), "groups": 2, "padding_mode": mode}
    for kind, x in ((LiftingConv2d, torch.randn(3, 4, 8, 9)), (GroupConv2d, torch.randn(3, 4, 1, 8, 9))):
        torch.manual_seed(1)
        layer = kind(group, 4, 6, (3, 2), **settings_, bias=bias)
        torch.manual_seed(1)
        plain = torch.nn.Conv2d(4, 6, (3, 2), **settings_, bias=bias)
        assert torch.equal(layer.weight.flatten(), plain.weight.flatten())
        assert (layer.bias is None) if not bias else torch.equal(layer.bias, plain.bias)
        for algorithm in ALGORITHMS:
            layer.algorithm = algorithm
            assert torch.equal(layer(x)[:, :, 0], plain(x.view(3, 4, 8, 9)))


@each_kind
@pytest.mark.parametrize("group", [C4, D4], ids=name)
def test_initial_output_deviation_is_that_of_torch(group: Group, kind: Kind) -> None:
    s = square(8, 3)
    fiber = () if kind is LiftingConv2d else (group.order,)
    x = torch.randn(20, 8, *fiber, *s.size)
    layer, plain = make(kind, group, 8, 64, s, "auto"), torch.nn.Conv2d(x[0, :, ..., 0, 0].numel(), 64, 3)
    deviation = plain(x.view(20, -1, 8, 8)).std()
    for h in range(group.order):
        assert abs(layer(x)[:, :, h].std() / deviation - 1) < 0.05
    with torch.no_grad():
        layer.weight *= 1.1
    assert abs(layer(x).std() / deviation - 1) > 0.05


@each_kind
@each_group
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_empty_batch(group: Group, kind: Kind, algorithm: str) -> None:
    for s in (square(6, 3, padding=1), *(square(5, 3, 2, 1, padding_mode=mode) for mode in MODES)):
        inputs = arguments(kind, group, s, batch=0)
        y = FUNCTIONS[kind][0](*inputs, group, algorithm=algorithm, **s.keywords)
        assert y.shape == (0, 2, group.order, *((6, 6) if s.stride == (1, 1) else (3, 3)))
        gradients = torch.autograd.grad(y.sum(), inputs)
        for gradient, tensor in zip(gradients, inputs, strict=True):
            assert gradient.shape == tensor.shape
            assert not gradient.any()
        layer = make(kind, group, 2, 2, s, algorithm, dtype=torch.float64)
        with torch.no_grad():
            assert layer(inputs[0]).shape == y.shape


@each_kind
@each_group
def test_a_bad_sample_spoils_itself_alone(group: Group, kind: Kind) -> None:
    s = square(5, 3, padding=1)
    x, weight, bias = (t.detach() for t in arguments(kind, group, s, batch=5))
    others = [0, 1, 3, 4]
    for algorithm, bad in product(ALGORITHMS, (float("nan"), float("inf"))):
        run = lambda x, a=algorithm: FUNCTIONS[kind][0](x, weight, bias, group, algorithm=a, **s.keywords)  # noqa: E731
        clean, spoiled = run(x), x.clone()
        spoiled[2] = bad
        y = run(spoiled)
        assert not torch.isfinite(y[2]).any()
        assert torch.equal(y[others], clean[others])


def test_a_bad_pixel_stays_within_reach_of_the_kernel() -> None:
    """As in an ordinary convolution, whatever its transform does inside a patch."""
    for group in TURNING:
        for kind in KINDS:
            x, weight, bias = (t.detach() for t in arguments(kind, group, square(9, 3, padding=1)))
            for algorithm in ALGORITHMS:
                run = lambda x, a=algorithm: FUNCTIONS[kind][0](x, weight, bias, group, padding=1, algorithm=a)  # noqa: B023, E731
                clean, spoiled = run(x), x.clone()
                spoiled[..., 2, 6] = float("nan")
                y = run(spoiled)
                near = torch.zeros(9, 9, dtype=torch.bool)
                near[1:4, 5:8] = True
                assert y[..., near].isnan().all()
                torch.testing.assert_close(y[..., ~near], clean[..., ~near], atol=1e-12, rtol=1e-12)
