"""Turns by any angle: groups that interpolate, filters that are steered, and the convolutions made of them."""

import itertools
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.rotations import group_stack, smooth_images
from equilayers.convert import to_plain
from equilayers.functional import rotate
from equilayers.functional._convolution import steerable as _steered
from equilayers.functional._fourier.correlation import operators_of, transform
from equilayers.functional._fourier.rotations import FourierCn, FourierDn, rotations_fourier
from equilayers.functional._steerable_basis import basis, steering, waves
from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.nn import GroupConv2d, GroupLinear, LiftingConv2d
from strategies import filled, name

C3, C8, C16 = (CyclicRotation(n, interpolation="bicubic") for n in (3, 8, 16))
D6, D8 = (Dihedral(n, interpolation="bilinear") for n in (6, 8))
GROUPS = [C3, CyclicRotation(6, interpolation="bilinear"), C8, C16, D6, D8]
each_group = pytest.mark.parametrize("group", GROUPS, ids=name)


def double(*shape: int) -> Tensor:
    return filled(shape, torch.float64)


def quarters(group: Group) -> list[int]:
    """The elements that are quarter turns and mirrors."""
    assert isinstance(group, CyclicRotation | Dihedral)
    return [g for g in range(group.order) if 4 * (g % group.n) % group.n == 0]


def test_the_exact_groups_are_what_they_were() -> None:
    for kind, n in itertools.product((CyclicRotation, Dihedral), (1, 2, 4)):
        group = kind(n, interpolation="bilinear")
        assert group == kind(n)
        assert hash(group) == hash(kind(n))
        assert repr(group) == f"{kind.__name__}({n})"
        assert group.exactness == "bitwise"
        x = torch.arange(16).view(4, 4)  # integers, which cannot be interpolated
        for g in range(group.order):
            assert torch.equal(group.act(g, x), kind(n).act(g, x))


def test_other_groups_say_that_they_interpolate() -> None:
    assert repr(C8) == "CyclicRotation(8, interpolation='bicubic')"
    assert C8.exactness == D8.exactness == "approximate"
    assert pickle.loads(pickle.dumps(D8)) == D8 != Dihedral(8, interpolation="bicubic")
    for n, interpolation, words in (
        (8, None, "interpolation='bilinear' or 'bicubic'"),
        (8, "nearest", "'bilinear', 'bicubic'"),
    ):
        with pytest.raises(ValueError, match=words):
            CyclicRotation(n, interpolation)
    with pytest.raises(TypeError, match="floating-point"):
        C8.act(1, torch.zeros(4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="H == W"):
        C8.act(1, torch.zeros(4, 5))


@each_group
def test_quarter_turns_and_mirrors_are_exact(group: Group) -> None:
    x = double(2, 3, 7, 7)
    assert isinstance(group, CyclicRotation | Dihedral)
    for g in quarters(group):
        mirror, turn = divmod(g, group.n)
        expected = torch.rot90(torch.flip(x, [-1]) if mirror else x, 4 * turn // group.n, (-2, -1))
        assert torch.equal(group.act(g, x), expected)
        for h in range(group.n):  # a turn that interpolates, then a quarter turn
            if not mirror:
                assert torch.equal(group.act(g, group.act(h, x)), group.act(group.compose(g, h), x))


@pytest.mark.parametrize(("interpolation", "order"), [("bilinear", 2), ("bicubic", 3)])
def test_rotate_against_the_turned_function(interpolation: str, order: int) -> None:
    """A Gaussian off the centre is turned counter-clockwise, with an error of the interpolation's order."""
    errors = []
    for size in (33, 65):
        places = torch.linspace(-1, 1, size, dtype=torch.float64) * (size - 1) / size
        down, right = places[:, None], places

        def bump(angle: float, down: Tensor = down, right: Tensor = right) -> Tensor:
            a = math.radians(angle)
            x, y = 0.4 * math.cos(a), 0.4 * math.sin(a)  # up is against the rows
            return torch.exp(-((right - x) ** 2 + (down + y) ** 2) / 0.03)

        turned = rotate(bump(0), 30, interpolation)
        errors.append(float((turned - bump(30)).abs().max()))
        assert float((rotate(bump(0), 330, interpolation) - bump(30)).abs().max()) > 0.5
        assert torch.equal(rotate(bump(0), 90, interpolation), torch.rot90(bump(0), 1, (-2, -1)))
        assert rotate(bump(0), 360, interpolation) is not None
    assert errors[1] < errors[0] / 2 ** (order - 0.5) < 0.02


@pytest.mark.parametrize("size", range(1, 8))
def test_filters_are_steered(size: int) -> None:
    """`S_g S_h = S_gh`; quarter turns and mirrors move taps; the basis is as large as it says."""
    group = Dihedral(8, interpolation="bilinear")
    s = torch.from_numpy(steering(group, size))
    assert basis(size).shape[1] == sum(2 if m else 1 for _, m in waves(size))
    for g, h in itertools.product(range(group.order), repeat=2):
        torch.testing.assert_close(s[g] @ s[h], s[group.compose(g, h)], rtol=0, atol=1e-14)
    psi = (s[0] @ double(size * size)).view(size, size)
    for g in quarters(group):
        mirror, turn = divmod(g, 8)
        moved = torch.rot90(torch.flip(psi, [-1]) if mirror else psi, turn // 2, (-2, -1))
        torch.testing.assert_close((s[g] @ psi.flatten()).view(size, size), moved, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", range(1, 18))
def test_fourier_transforms_of_every_order(n: int) -> None:
    """Against the sum over the group; analysis and synthesis are each other's transposes."""
    for kind in (CyclicRotation, Dihedral):
        group = kind(n, interpolation="bilinear")
        fourier = rotations_fourier(group)
        order = group.order
        x, w, bias = double(3, order, 2), double(4, order, 2) + 1, double(4)
        expected = torch.stack(
            [
                sum(x[:, k] @ w[:, group.compose(group.inverse(h), k)].T for k in range(order)) + bias
                for h in range(order)
            ],
            1,
        )
        torch.testing.assert_close(transform(x, operators_of(w, fourier), bias, fourier), expected)
        v = fourier.analysis(double(3, order, 2) * 2)
        one = sum(
            (a * b).sum()
            for rows, others in zip(fourier.analysis(x), v, strict=True)
            for a, b in zip(rows, others, strict=True)
        )
        other = (torch.stack(fourier.synthesis(v), 1) * x).sum()
        torch.testing.assert_close(one, other)
    assert FourierCn(8).products == 11
    assert FourierDn(8).products == 28


def reference(layer: LiftingConv2d | GroupConv2d, x: Tensor) -> Tensor:
    """Plane by plane with filters turned by the steering matrices."""
    group, k = layer.group, layer.weight.shape[-1]
    s = torch.from_numpy(steering(group, k))  # type: ignore[arg-type]
    planes = []
    for h in range(group.order):
        if isinstance(layer, LiftingConv2d):
            filters = (layer.weight.flatten(2) @ s[h].T).view_as(layer.weight)
            planes.append(nn.functional.conv2d(x, filters, layer.bias, padding=1))
            continue
        back = [group.compose(group.inverse(h), j) for j in range(group.order)]
        filters = (layer.weight[:, :, back].flatten(3) @ s[h].T).view_as(layer.weight)
        planes.append(nn.functional.conv2d(x.flatten(1, 2), filters.flatten(1, 2), layer.bias, padding=1))
    return torch.stack(planes, 2)


@each_group
@pytest.mark.parametrize("size", [2, 3, 5])
def test_convolutions_against_the_definition(group: Group, size: int) -> None:
    """Both algorithms, values and gradients, with and without a gradient wanted."""
    lift = LiftingConv2d(group, 2, 3, size, padding=1, dtype=torch.float64)
    conv = GroupConv2d(group, 3, 4, size, padding=1, dtype=torch.float64)
    x = double(2, 2, 7, 7)
    torch.testing.assert_close(lift(x), reference(lift, x))
    f = lift(x).detach().requires_grad_()
    wanted = reference(conv, f)
    probe = double(*wanted.shape)
    leaves = (f, conv.weight, conv.bias)
    gradients = torch.autograd.grad((wanted * probe).sum(), leaves)
    for algorithm in ("auto", "dense", "fourier"):
        conv.algorithm = algorithm
        torch.testing.assert_close(conv(f), wanted)
        for found, expected in zip(torch.autograd.grad((conv(f) * probe).sum(), leaves), gradients, strict=True):
            torch.testing.assert_close(found, expected)
        with torch.no_grad():
            for _ in range(2):  # the second time with what is kept
                torch.testing.assert_close(conv(f), wanted)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_all_settings_in_both_algorithms(mode: str) -> None:
    f = double(2, 4, 8, 9, 9)
    for stride, dilation, groups, bias in itertools.product((1, 2), (1, 2), (1, 2), (True, False)):
        conv = GroupConv2d(C8, 4, 6, 3, stride, 2, dilation, groups, bias, mode, "dense", dtype=torch.float64)
        expected = conv(f)
        conv.algorithm = "fourier"
        torch.testing.assert_close(conv(f), expected)
        torch.testing.assert_close(to_plain(conv)(f), expected)


def network(group: Group, size: int = 5) -> nn.Sequential:
    torch.manual_seed(1)
    return group_stack(size, group)


@pytest.mark.parametrize("group", [C8, C16, D8], ids=name)
def test_quarter_turns_commute_to_rounding_at_every_size(group: Group) -> None:
    model = network(group)
    for size in (5, 6, 12, 17):
        x = double(1, 1, size, size)
        with torch.no_grad():
            y = model(x)
            moved = [(model(group.act(g, x)) - group.act_regular(g, y)).abs().max() for g in quarters(group)]
        assert float(max(moved)) <= 32 * 5 * 2.3e-16 * float(y.abs().max())


def eighth_turn_error(model: nn.Module, size: int) -> float:
    x = smooth_images(size, 2)
    places = torch.linspace(-1, 1, size, dtype=torch.float64)
    inside = (places[:, None] ** 2 + places**2 < 0.5).double()
    with torch.no_grad():
        expected = C8.act_regular(1, model(x)) * inside
        return float((model(C8.act(1, x)) * inside - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", [3, 5])
def test_other_turns_commute_the_better_the_finer_the_image(size: int) -> None:
    coarse, fine = (eighth_turn_error(network(C8, size), pixels) for pixels in (17, 65))
    assert 4 * fine < coarse < 0.1
    assert fine < 0.01
    plain = network(CyclicRotation(4))  # for which an eighth of a turn is nothing

    def as_c8(x: Tensor) -> Tensor:
        return plain(x).repeat_interleave(2, 2)

    assert eighth_turn_error(as_c8, 65) > 0.1  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", [{}, {"stride": 2, "padding": 2}, {"dilation": 2}, {"padding_mode": "reflect"}])
def test_blocks_of_samples_and_of_rows_agree(setting: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    conv = GroupConv2d(C8, 2, 3, 5, **{"padding": 1, "algorithm": "fourier"} | setting).double()  # type: ignore[arg-type]
    f = double(5, 2, 8, 13, 13)
    with torch.no_grad():
        expected = conv(f)
        for most, block in ((24_000_000, 1), (30_000, 1), (1, 1)):  # one sample, some rows of it, one row
            monkeypatch.setattr(_steered, "MOST_BYTES", most)
            monkeypatch.setattr(_steered, "BLOCK_BYTES", block)
            torch.testing.assert_close(conv(f), expected, rtol=1e-12, atol=1e-13)


def test_fake_tensors_leave_nothing_behind() -> None:
    group = CyclicRotation(7, interpolation="bilinear")
    with FakeTensorMode():
        GroupConv2d(group, 2, 2, 3, algorithm="fourier")(torch.empty(2, 2, 7, 8, 8))
    y = GroupConv2d(group, 2, 2, 3, algorithm="fourier")(torch.zeros(2, 2, 7, 8, 8))
    assert type(y.detach()) is Tensor


def test_layers_say_what_they_are() -> None:
    for layer in network(C8)[::2]:
        assert layer.exactness == "approximate"
    conv = GroupConv2d(C8, 3, 4, 3)
    assert conv.degrees_of_freedom == 4 * 3 * 8 * 6 + 4
    assert GroupConv2d(CyclicRotation(4), 3, 4, 3).degrees_of_freedom == 4 * 3 * 4 * 9 + 4
    assert LiftingConv2d(C8, 3, 4, 5, bias=False).degrees_of_freedom == 4 * 3 * 11
    for algorithm in ("bitwise", "orbit"):
        with pytest.raises(ValueError, match="by interpolation, which is never exact"):
            conv.algorithm = algorithm
    with pytest.raises(ValueError, match="What works"):
        GroupConv2d(C8, 3, 4, 3, stride=2, padding=1)(torch.zeros(1, 3, 8, 8, 8))


def test_the_fiber_alone_is_exact() -> None:
    """Without a map there is nothing to interpolate."""
    layer, f = GroupLinear(C8, 3, 4), filled((5, 3, 8), torch.float32)
    for g in range(8):
        assert torch.equal(layer(C8.act_regular(g, f)), C8.act_regular(g, layer(f)))
    assert layer.exactness == "bitwise"
