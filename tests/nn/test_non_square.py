"""Maps that are no squares, under quarter turns: what they carry from (H, W) to (W, H), bitwise where squares are."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import conv_reference as reference
from conv_laws import EXACT, KINDS, Kind, Settings, input_of, limit_blocks, make, misses, worst
from equilayers import metrics
from equilayers.functional import invariant_avg_pool2d, reynolds, rotate_harmonic
from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.losses import InvarianceLoss
from equilayers.nn import (
    AvgBlurPool2d,
    BlurConv2d,
    BlurPool2d,
    GroupConv2d,
    GroupLinear,
    HarmonicConv2d,
    InvariantAvgPool2d,
    LiftingConv2d,
    LiftingLinear,
    MaxBlurPool2d,
    OrbitPool,
    PolyphasePool2d,
)
from equilayers.testing import assert_equivariant, assert_invariant, locate_break
from refusals import assert_refused
from strategies import filled, name

GROUPS: list[Group] = [CyclicRotation(4), Dihedral(4)]
SETTINGS = [
    Settings((4, 5), (3, 3), padding=(1, 1)),
    Settings((5, 2), (3, 3), padding=(1, 1), padding_mode="circular"),
    Settings((7, 5), (3, 3), (2, 2)),
    Settings((6, 8), (4, 4), (2, 2), groups=2),
    Settings((5, 3), (2, 2), dilation=(2, 2), padding=(2, 2)),
    Settings((5, 1), (1, 1)),
]
each = pytest.mark.parametrize("group", GROUPS, ids=name)
each_kind = pytest.mark.parametrize("kind", KINDS)


@each
@each_kind
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_convolutions(kind: Kind, group: Group, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    function = reference.lift_conv2d if kind is LiftingConv2d else reference.group_conv2d
    for algorithm in (*EXACT, "dense"):
        if algorithm == "fourier" and settings is SETTINGS[0]:
            limit_blocks(monkeypatch, 1)
        layer = make(kind, group, 2, 4, settings, algorithm, dtype=torch.float64)
        x = input_of(layer, settings.size)
        given = (t.detach().numpy() for t in (x, layer.weight, layer.bias))
        expected = torch.from_numpy(function(*given, group, **settings.keywords))
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected)
            if algorithm in EXACT:
                assert not misses(layer, group, x)
                assert not misses(layer.float(), group, x.float())
            else:
                assert worst(layer, group, x) < 32


@each
@each_kind
@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
def test_gradients(kind: Kind, group: Group, settings: Settings) -> None:
    gradients = []
    layer = make(kind, group, 2, 4, settings, "dense", dtype=torch.float64)
    x = input_of(layer, settings.size).requires_grad_()
    for algorithm in ("dense", "fourier"):
        layer.algorithm = algorithm
        gradients.append(torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*gradients)


@each
@pytest.mark.parametrize("algorithm", [*EXACT, "dense", "auto"])
def test_linear_at_every_position(group: Group, algorithm: str) -> None:
    layer = GroupLinear(group, 3, 2, algorithm=algorithm).double()
    f = filled((2, 3, group.order, 3, 5), torch.float64)
    back = [[group.compose(group.inverse(h), k) for k in range(group.order)] for h in range(group.order)]
    weight = layer.weight[:, :, back]
    expected = torch.einsum("ochk,bckst->bohst", weight, f) + layer.bias[:, None, None, None]
    torch.testing.assert_close(layer(f), expected)
    if algorithm in EXACT:
        assert not misses(layer, group, f)
    else:
        assert worst(layer, group, f) < 32


POOLS: dict[str, Callable[[], nn.Module]] = {
    "blur": BlurPool2d,
    "blur, zeros": lambda: BlurPool2d(3, padding_mode="zeros", exact=True),
    "blur, stride 3": lambda: BlurPool2d(stride=3, padding_mode="circular"),
    "max": lambda: MaxBlurPool2d(3, 2, 1),
    "mean": lambda: AvgBlurPool2d(3, 2, 1),
    "mean, circular": lambda: AvgBlurPool2d(2, padding_mode="circular"),
    "polyphase": lambda: PolyphasePool2d(exact=False),
    "map": InvariantAvgPool2d,
}


@each
@pytest.mark.parametrize("pool", POOLS)
def test_pools(pool: str, group: Group) -> None:
    layer = POOLS[pool]()
    sizes = [(4, 6), (10, 4)] if pool == "polyphase" else [(5, 9), (9, 3), (7, 1)]
    for size, dtype, fiber in itertools.product(sizes, (torch.float32, torch.float64), ((), (group.order,))):
        x = filled((2, 3, *fiber, *size), dtype)
        y = layer(x)
        for g in range(group.order):
            move = group.act_regular if fiber else group.act
            assert torch.equal(layer(move(g, x)), move(g, y) if y.ndim > 3 or fiber else y)
    torch.testing.assert_close(invariant_avg_pool2d(x), x.mean((-2, -1)))


@each
def test_polyphase_ties(group: Group) -> None:
    """Components with equal norms, told apart by what they show."""
    x = torch.stack([filled((3, 2, 5), torch.float32).round() for _ in range(2)])
    x = torch.stack((x, x.flip(-1), x.flip(-2), x.flip((-2, -1))), -1).unflatten(-1, (2, 2))
    x = x.permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 4, 10)
    model = lambda x: PolyphasePool2d()(x).sum((-2, -1)) * 3 + PolyphasePool2d()(x).amax((-2, -1))  # noqa: E731
    for g in range(group.order):
        torch.testing.assert_close(model(group.act(g, x)), model(x))


@each
def test_harmonic(group: Group) -> None:
    x = filled((2, 2, 6, 9), torch.float64)
    layer = HarmonicConv2d(2, 3, 3, in_order=None, out_order=1, padding=1, dtype=torch.float64)
    for turns in range(group.order // 2):
        turned = layer(torch.rot90(x, turns, (-2, -1)))
        torch.testing.assert_close(turned, rotate_harmonic(layer(x), 90 * turns))


def network(group: Group) -> nn.Sequential:
    layers = (
        LiftingConv2d(group, 1, 3, 3, padding=1, algorithm="bitwise"),
        nn.ReLU(),
        BlurPool2d(),
        GroupConv2d(group, 3, 4, 3, padding=1, algorithm="bitwise"),
        nn.MaxPool3d((1, 2, 2)),
        BlurConv2d(group, 4, 4, 3, padding=1, taps="auto"),
        OrbitPool("norm"),
        InvariantAvgPool2d(),
        nn.Linear(4, 3),
    )
    torch.manual_seed(0)
    return nn.Sequential(*layers)


@each
def test_assertions_and_measures(group: Group) -> None:
    model, x = network(group), filled((3, 1, 12, 20), torch.float32)
    assert_invariant(model, x, group)
    assert_equivariant(model[:6], x, group)
    assert_invariant(nn.Sequential(*model[:5], OrbitPool(), InvariantAvgPool2d()), x, group, bitwise=True)
    assert metrics.logit_invariance_error(model, x, group) < 1e-8
    assert metrics.saliency_invariance_similarity(model, x, torch.tensor([0, 1, 2]), group) > 0.999
    assert metrics.invariance_gap(model, x, group).ratio < 1e-3
    assert metrics.equivariance_error(model[:5], x, group).max() < 1e-5
    assert InvarianceLoss(group)(model, x) < 1e-8
    assert locate_break(model, x, group) is None
    model[4] = nn.MaxPool3d((1, 3, 3), (1, 2, 2))
    with pytest.raises(AssertionError, match="4: MaxPool3d"):
        assert_invariant(model, x, group)
    assert metrics.invariance_gap(model, x, group).ratio > 1e-3


@each
def test_what_ties_places_refuses(group: Group) -> None:
    """As do orbits in one tensor, and rotations that interpolate."""
    x, n, finer = filled((2, 1, 4, 6), torch.float32), group.order, type(group)(8, "bilinear")  # type: ignore[call-arg]
    refused: dict[str, Callable[[], object]] = {
        "LiftingLinear": lambda: LiftingLinear(group, (1, 4, 6), 3),
        f"{group!r}.orbit": lambda: group.orbit(x),
        f"{group!r}.permutations": lambda: group.permutations((4, 6)),
        "reynolds": lambda: reynolds(lambda x: x.flatten(1), group, x),
        "InvarianceLoss": lambda: InvarianceLoss(group, elements="random")(lambda x: x.mean((1, 2)), x),
        f"{finer!r}.act": lambda: finer.act(0, x),
        f"{finer!r}.act_regular": lambda: finer.act_regular(1, torch.zeros(1, 1, finer.order, 4, 6)),
        "LiftingConv2d": lambda: LiftingConv2d(finer, 1, 1, 3)(x),
    }
    for caller, call in refused.items():
        assert_refused(call, ValueError, caller, "H == W", "H=4, W=6")
    moved = group.act_regular(1, filled((2, 1, n, 4, 6), torch.float32))
    assert moved.shape == (2, 1, n, 6, 4)
