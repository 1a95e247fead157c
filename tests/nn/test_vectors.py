"""Vectors of the plane: how they move, and the layers that take them in and put them out."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.functional import rotate_harmonic
from equilayers.functional.vectors import (
    lift_vectors,
    lift_vectors_conv2d,
    regular_to_vectors,
    vector_angle,
    vector_norm,
)
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group
from equilayers.groups.vectors import AXES
from equilayers.nn import (
    AngleHead,
    GroupConv2d,
    HarmonicConv2d,
    VectorHead,
    VectorLiftingConv2d,
    VectorLiftingLinear,
    set_algorithm,
)
from refusals import assert_refused
from strategies import C2, C4, D4, S3, TURNING, each_group, filled, name

C8 = CyclicRotation(8, interpolation="bicubic")
SPACES = ((), (5,), (6, 6), (7, 7), (4, 7))
each_axes = pytest.mark.parametrize("axes", AXES)


def gradient(x: Tensor, axes: str) -> Tensor:
    """The gradient of periodic images (B, C, H, W) as a field: independent of any table of matrices."""
    right, down = (x.roll(-1, dim) - x.roll(1, dim) for dim in (-1, -2))
    return torch.stack({"right-up": (right, -down), "right-down": (right, down), "down-right": (down, right)}[axes], 2)


def act_fiber(group: Group, g: int, f: Tensor) -> Tensor:
    """`act_regular`, also of features (B, C, |G|, N) whose places stay."""
    back = [group.compose(group.inverse(g), h) for h in range(group.order)]
    return f[:, :, back] if f.ndim == 4 else group.act_regular(g, f)


@each_axes
@pytest.mark.parametrize("group", [*TURNING, DirectProduct(C2, CyclicTranslation(2)), CyclicTranslation(3)], ids=name)
def test_gradients_of_images_move_as_vectors(group: Group, axes: str) -> None:
    for size, dtype in itertools.product(((6, 6), (6, 12)), (torch.float32, torch.float64)):
        x = filled((2, 3, *size), dtype)
        v = gradient(x, axes)
        for g, h in itertools.product(range(group.order), repeat=2):
            moved = group.act_vectors(g, v, axes=axes)
            assert torch.equal(moved, gradient(group.act(g, x), axes))
            if size == (6, 6):
                twice = group.act_vectors(g, group.act_vectors(h, v, axes=axes), axes=axes)
                assert torch.equal(group.act_vectors(group.compose(g, h), v, axes=axes), twice)
            assert torch.equal(
                group.act_vectors(g, v[..., 0, 0], axes=axes), group.act_vectors(g, v[..., 0], axes=axes)[..., 0]
            )
    infinite = torch.tensor([[[math.inf, 1.0]]])
    assert not group.act_vectors(group.order - 1, infinite).isnan().any()


def test_all_vectors_turn_by_the_angle() -> None:
    for group, order in itertools.product((C4, C8, Dihedral(6, "bilinear")), (1, 2, 3)):
        for g in range(group.order):
            mirror, turns = divmod(g, group.n)
            a = torch.rand(50, dtype=torch.float64) * 7
            b = (torch.pi - a if mirror else a) + 2 * torch.pi * turns / group.n
            matrix = torch.tensor(group.vector_matrix(g, order=order), dtype=torch.float64)
            after, before = (torch.stack(((order * t).cos(), (order * t).sin())) for t in (b, a))
            torch.testing.assert_close(matrix @ before, after)


@each_axes
@each_group
def test_laws_bitwise(group: Group, axes: str) -> None:
    for space, dtype in itertools.product(SPACES, (torch.float32, torch.float64)):
        v, f = filled((3, 2, 2, *space), dtype), filled((3, 5, group.order, *space), dtype, 1)
        given = {"axes": axes, "dtype": dtype}
        lifts = [VectorLiftingLinear(group, 2, 6, **given)]
        if len(space) == 2:
            conv = VectorLiftingConv2d(group, 2, 4, 3, padding=1, groups=2, algorithm="bitwise", **given)
            even = VectorLiftingConv2d(group, 2, 4, 2, padding=1, padding_mode="reflect", algorithm="orbit", **given)
            lifts += [conv, even]
        head = VectorHead(group, 5, 3, **given)
        for g in range(group.order):
            moved = group.act_vectors(g, v, axes=axes)
            for lift in lifts:
                assert lift.exactness == "bitwise"
                assert torch.equal(lift(moved), act_fiber(group, g, lift(v)))
            out = head(act_fiber(group, g, f))
            assert torch.equal(out, group.act_vectors(g, head(f), axes=axes))
            expected = vector_norm(head(f))
            assert torch.equal(vector_norm(out), group.act(g, expected) if len(space) == 2 else expected)


@torch.no_grad()
@pytest.mark.parametrize("axes", ["right-down", "down-right"])
def test_other_axes_break_the_law(axes: str) -> None:
    """A checker that passes wrong components would pass anything. Turns alone know no up from down-right."""
    g = 1 if axes == "right-down" else 4
    v, f = filled((2, 3, 2, 5, 5), torch.float64), filled((2, 3, 8, 5, 5), torch.float64)
    lift, head = VectorLiftingLinear(D4, 3, 2, dtype=v.dtype), VectorHead(D4, 3, 2, dtype=v.dtype)
    assert not torch.allclose(lift(D4.act_vectors(g, v, axes=axes)), D4.act_regular(g, lift(v)), atol=0.1)
    assert not torch.allclose(head(D4.act_regular(g, f)), D4.act_vectors(g, head(f), axes=axes), atol=0.01)


def turned(group: Group, h: int, v: Tensor) -> Tensor:
    """Vectors (..., 2, kh, kw) moved by h, spelled out: the slow reference."""
    mirror, turns = divmod(h, group.n)  # type: ignore[attr-defined]
    a = 2 * math.pi * turns / group.n  # type: ignore[attr-defined]
    matrix = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)
    matrix = matrix @ torch.diag(torch.tensor([-1.0 if mirror else 1.0, 1.0], dtype=torch.float64))
    pixels = torch.rot90(v.flip(-1) if mirror else v, 4 * turns // group.n, (-2, -1))  # type: ignore[attr-defined]
    return torch.einsum("ij,...jhw->...ihw", matrix, pixels)


@pytest.mark.parametrize("algorithm", ["auto", "bitwise"])
@each_group
def test_values_against_loops(group: Group, algorithm: str) -> None:
    v, f = filled((2, 4, 2, 7, 7), torch.float64), filled((2, 3, group.order, 5, 5), torch.float64)
    settings = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "padding_mode": "circular"}
    conv = VectorLiftingConv2d(group, 4, 6, 3, algorithm=algorithm, dtype=v.dtype, **settings)
    linear = VectorLiftingLinear(group, 4, 6, algorithm=algorithm, dtype=v.dtype)
    head = VectorHead(group, 3, 2, algorithm=algorithm, dtype=v.dtype)
    padded = F.pad(v.flatten(1, 2), (1, 1, 1, 1), mode="circular")
    expected: Tensor = torch.zeros(2, 2, 2, 5, 5, dtype=v.dtype)
    for h in range(group.order):
        filters = turned(group, h, conv.weight).flatten(1, 2)
        y = F.conv2d(padded, filters, conv.bias, stride=2, dilation=2, groups=2)
        torch.testing.assert_close(conv(v)[:, :, h], y)
        pairs = turned(group, h, linear.weight[..., None, None])[..., 0, 0]
        y = torch.einsum("oci,bcihw->bohw", pairs, v) + linear.bias[:, None, None]
        torch.testing.assert_close(linear(v)[:, :, h], y)
        pairs = turned(group, h, head.weight[..., None, None])[..., 0, 0]
        expected = expected + torch.einsum("oci,bchw->boihw", pairs, f[:, :, h]) / group.order
    torch.testing.assert_close(head(f), expected)


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize("group", [C4, D4], ids=name)
def test_a_flow_field_turned(group: Group, size: int) -> None:
    """From flow to flow: every element, to the last bit."""
    net = nn.Sequential(
        VectorLiftingConv2d(group, 1, 8, 3, padding=1, axes="right-down"),
        nn.ReLU(),
        GroupConv2d(group, 8, 8, 3, padding=1),
        nn.ReLU(),
        VectorHead(group, 8, 1, axes="right-down"),
    )
    set_algorithm(net, "bitwise")
    flow = filled((2, 1, 2, size, size), torch.float32)
    for g in range(group.order):
        expected = group.act_vectors(g, net(flow), axes="right-down")
        assert torch.equal(net(group.act_vectors(g, flow, axes="right-down")), expected)
    assert float(expected.detach().abs().max()) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("order", [1, 2, 3])
@each_group
def test_angles(group: Group, order: int) -> None:
    f = filled((3, 5, group.order, 6, 6), torch.float64)
    head = AngleHead(group, 5, 2, order, dtype=f.dtype)
    angle = head(f)
    assert float(angle.abs().max()) <= math.pi / order
    for g in range(group.order):
        mirror, turns = divmod(g, group.n)  # type: ignore[attr-defined]
        expected = group.act(g, math.pi - angle if mirror else angle) + 2 * math.pi * turns / group.n  # type: ignore[attr-defined]
        off = order * (head(group.act_regular(g, f)) - expected)
        assert float((1 - off.cos()).max()) < 1e-15
    assert float((1 - (order * (head(group.act_regular(group.order - 1, f)) - angle)).cos()).max()) > 1e-3


def test_angles_by_axes_and_nowhere() -> None:
    up_right = torch.tensor([1.0, 2.0]).view(1, 1, 2)
    for axes, v in {"right-up": (1, 2), "right-down": (1, -2), "down-right": (-2, 1)}.items():
        found = vector_angle(torch.tensor(v, dtype=torch.float32).view(1, 1, 2), axes=axes)
        assert torch.equal(found, vector_angle(up_right))
    nowhere = torch.zeros(1, 1, 2, requires_grad=True)
    for number in (vector_angle(nowhere), vector_norm(nowhere)):
        assert number.item() == 0
        assert torch.equal(torch.autograd.grad(number.sum(), nowhere)[0], torch.zeros(1, 1, 2))


@pytest.mark.parametrize("algorithm", ["dense", "orbit"])
def test_gradients(algorithm: str) -> None:
    double = {"dtype": torch.float64, "requires_grad": True}
    v, f = torch.randn(2, 2, 2, 2, 2, **double), torch.randn(1, 2, 4, 2, 2, **double)  # type: ignore[call-overload]
    weight, bias = torch.randn(2, 2, 2, **double), torch.randn(2, **double)  # type: ignore[call-overload]
    filters = torch.randn(2, 2, 2, 2, 2, **double)  # type: ignore[call-overload]
    for call, inputs in (
        (lambda v, w, b: lift_vectors_conv2d(v, w, b, C4, padding=1, algorithm=algorithm), (v, filters, bias)),
        (lambda v, w, b: lift_vectors(v, w, b, C4, algorithm=algorithm), (v, weight, bias)),
        (lambda f, w: regular_to_vectors(f, w, C4, algorithm=algorithm), (f, weight)),
    ):
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


def disk(v: Tensor) -> Tensor:
    """Without the corners, where zeros come in from outside."""
    places = torch.arange(v.shape[-1], dtype=torch.float64) - (v.shape[-1] - 1) / 2
    inside = places[:, None] ** 2 + places**2 <= (v.shape[-1] / 3) ** 2
    return v * inside


@torch.no_grad()
def test_turns_by_45_degrees() -> None:
    """Plain vectors to rounding; fields to the error of the interpolation, which is measured here."""
    v, f = filled((3, 2, 2), torch.float64), filled((3, 2, 8), torch.float64)
    lift, head = VectorLiftingLinear(C8, 2, 3, dtype=v.dtype), VectorHead(C8, 2, 3, dtype=v.dtype)
    conv = VectorLiftingConv2d(C8, 2, 3, 5, padding=2, dtype=v.dtype)
    smooth = F.interpolate(filled((6, 2, 6, 6), torch.float64), (48, 48), mode="bicubic").view(3, 2, 2, 48, 48)
    assert {layer.exactness for layer in (lift, head, conv)} == {"approximate"}
    for g in range(8):
        torch.testing.assert_close(lift(C8.act_vectors(g, v)), C8.act_regular(g, lift(v)))
        torch.testing.assert_close(head(C8.act_regular(g, f)), C8.act_vectors(g, head(f)))
        expected = C8.act_regular(g, conv(smooth))
        off = disk(conv(C8.act_vectors(g, smooth)) - expected).norm() / disk(expected).norm()
        assert float(off) < (0.02 if g % 2 else 1e-12)


def test_the_first_order_of_harmonic_features_is_a_field() -> None:
    conv = HarmonicConv2d(2, 3, 5, None, 1, padding=2, dtype=torch.float64)
    z = conv(filled((2, 2, 9, 9), torch.float64))
    for g in range(4):
        torch.testing.assert_close(rotate_harmonic(z, 90 * g)[:, :, 2:], C4.act_vectors(g, z[:, :, 2:]))
    head = VectorHead(C4, 3, 2, dtype=z.dtype)
    onwards = HarmonicConv2d(
        2, 1, 5, 1, 0, padding=2, dtype=z.dtype
    )  # a field as the stream of order 1, without order 0
    f = filled((2, 3, 4, 9, 9), torch.float64)
    read = lambda f: onwards(torch.cat((torch.zeros_like(v := head(f)), v), 2))[:, :, :1]  # noqa: E731
    torch.testing.assert_close(read(C4.act_regular(1, f)), C4.act(1, read(f)))


def test_refusals() -> None:
    v = torch.randn(2, 3, 2, 8, 8)
    who = "CyclicRotation(4).act_vectors"
    assert_refused(lambda: C4.act_vectors(1, v[:, 0]), ValueError, who, "flow[:, None]")
    assert_refused(lambda: C4.act_vectors(1, v, axes="up-right"), ValueError, who, "right-down")
    assert_refused(lambda: C4.act_vectors(1, v.long()), TypeError, who, "floating-point")
    assert_refused(lambda: S3.act_vectors(1, v), ValueError, repr(S3), "plane")
    assert_refused(lambda: VectorHead("T3", 2, 2), ValueError, "VectorHead", "shifts leave them")
    assert_refused(lambda: VectorHead(C4, 2, 2, algorithm="fourier"), ValueError, "VectorHead", "'orbit'")
    assert_refused(lambda: AngleHead(C4, 2, order=0), ValueError, "AngleHead", "order >= 1")
    conv = VectorLiftingConv2d(C4, 3, 2, 3, stride=2, padding=1)
    assert_refused(lambda: conv(v), ValueError, "VectorLiftingConv2d", "What works: kernel_size=4")
    assert_refused(lambda: conv(v.flatten(1, 2)), ValueError, "VectorLiftingConv2d", "Axis 2")
    assert_refused(lambda: conv(v[:, :1]), ValueError, "VectorLiftingConv2d", "(B, 3, 2, H, W)")
    steered = VectorLiftingConv2d(C8, 1, 1, 3)
    assert_refused(lambda: setattr(steered, "algorithm", "bitwise"), ValueError, "VectorLiftingConv2d", "interpolation")
    assert_refused(lambda: VectorHead(C4, 2, 2)(v), ValueError, "VectorHead", "axis 2")
