"""Imported escnn modules compute what escnn computes, and are equivariant where escnn is not."""

import copy
import itertools
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.interop.escnn import expanded_filter, from_escnn, to_regular
from equilayers.nn import GroupConv2d, GroupConvTranspose2d, LiftingConv2d, OrbitPool
from golden.make_escnn import network, train
from refusals import assert_refused

GROUPS: dict[str, Group] = {"C4": CyclicRotation(4), "D4": Dihedral(4)}
# How escnn makes the space, our group, and which of our elements stands at each place of escnn's fiber.
SPACES: dict[str, tuple[Callable[[Any], Any], Group, list[int]]] = {
    "C1": (lambda g: g.trivialOnR2(), CyclicRotation(1), [0]),
    "C2": (lambda g: g.rot2dOnR2(2), CyclicRotation(2), [0, 1]),
    "C4": (lambda g: g.rot2dOnR2(4), CyclicRotation(4), [0, 1, 2, 3]),
    "D1": (lambda g: g.flip2dOnR2(), Dihedral(1), [0, 1]),
    "D1 of flipRot": (lambda g: g.flipRot2dOnR2(1), Dihedral(1), [0, 1]),
    "D2": (lambda g: g.flipRot2dOnR2(2), Dihedral(2), [0, 1, 2, 3]),
    "D2, axis 0": (lambda g: g.flipRot2dOnR2(2, axis=0.0), Dihedral(2), [0, 1, 3, 2]),
    "D4": (lambda g: g.flipRot2dOnR2(4), Dihedral(4), [0, 1, 2, 3, 4, 5, 6, 7]),
    "D4, axis 0": (lambda g: g.flipRot2dOnR2(4, axis=0.0), Dihedral(4), [0, 1, 2, 3, 6, 7, 4, 5]),
    "D4, axis pi/4": (lambda g: g.flipRot2dOnR2(4, axis=math.pi / 4), Dihedral(4), [0, 1, 2, 3, 7, 4, 5, 6]),
    "D4, axis 3pi/4": (lambda g: g.flipRot2dOnR2(4, axis=3 * math.pi / 4), Dihedral(4), [0, 1, 2, 3, 5, 6, 7, 4]),
}
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-12}

both_groups = pytest.mark.parametrize("name", GROUPS)


def space(escnn: types.ModuleType, name: str) -> Any:
    return SPACES[name][0](escnn.gspaces)


def fields(gspace: Any, kind: str, count: int) -> Any:
    return gspace.type(*[getattr(gspace, f"{kind}_repr")] * count)


def conv(escnn: types.ModuleType, name: str, kinds: str = "RR", channels: int = 2, **settings: Any) -> Any:
    """An R2Conv between trivial (T) and regular (R) fields, with a bias that is not zero."""
    source, target = (fields(space(escnn, name), {"T": "trivial", "R": "regular"}[kind], channels) for kind in kinds)
    module = escnn.nn.R2Conv(source, target, **settings)
    if module.bias is not None:
        nn.init.normal_(module.bias)
    return module


def some(kind: Any, size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Any:
    """A GeometricTensor of noise."""
    return kind(torch.randn(batch, kind.size, size, size, dtype=dtype))


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def tied(module: Any, group: Group) -> Any:
    """A copy in float64 whose filters are the mean over the group, in eval mode.

    escnn samples its basis in float32, so that in float64 its own filters are tied to 1e-7 only.
    """
    module = copy.deepcopy(module).double().requires_grad_(False).eval()
    for part in filter(lambda part: hasattr(part, "filter"), module.modules()):
        # Default mirror axis: escnn's fiber has our order.
        shape = [(-1, kind.representations[0].size) for kind in (part.out_type, part.in_type)]
        blocks = part.filter.unflatten(0, shape[0]).unflatten(2, shape[1])
        mean = torch.zeros_like(blocks)
        for g in range(group.order):
            source = [group.compose(group.inverse(g), h) for h in range(group.order)]
            moved = group.act(g, blocks)
            moved = moved[:, source] if shape[0][1] > 1 else moved
            mean += (moved[:, :, :, source] if shape[1][1] > 1 else moved) / group.order
        mean = mean.flatten(2, 3).flatten(0, 1)
        assert off(mean, part.filter) < 1e-5
        part.filter = mean
    return module


def imported(module: Any, size: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The import, after having seen that it computes what escnn does; an input and the output."""
    ours, dtype = from_escnn(module), module.weights.dtype
    assert {p.dtype for p in ours.parameters()} == {dtype}
    x = some(module.in_type, size, dtype=dtype)
    y = to_regular(module(x))
    assert off(ours(to_regular(x)), y) <= LIMIT[dtype]
    return ours, to_regular(x), y


@pytest.mark.parametrize("name", SPACES)
def test_elements_and_fibers_correspond(escnn: types.ModuleType, name: str) -> None:
    _, group, order = SPACES[name]
    gspace = space(escnn, name)
    x, image = (some(fields(gspace, kind, 2), 5) for kind in ("regular", "trivial"))
    assert to_regular(image) is image.tensor
    ours = to_regular(x)
    assert ours.shape == (2, 2, group.order, 5, 5)
    assert torch.equal(ours[:, :, order], x.tensor.unflatten(1, (2, group.order)))
    for number, element in zip(order, gspace.fibergroup.elements, strict=True):
        moved = to_regular(x.transform(element))
        torch.testing.assert_close(moved, group.act_regular(number, ours), atol=1e-5, rtol=1e-5)
        if group.order > 1:
            wrong = group.act_regular(group.compose(number, 1), ours)
            assert not torch.allclose(moved, wrong, atol=0.1)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("kinds", ["TR", "RR", "RT", "TT"])
def test_every_space_and_kind_of_field(escnn: types.ModuleType, name: str, kinds: str) -> None:
    ours, x, y = imported(conv(escnn, name, kinds, channels=3, kernel_size=3, padding=1), 6)
    layer = ours if kinds[1] == "R" else ours[0]  # type: ignore[index]
    assert type(layer) is (LiftingConv2d if kinds[0] == "T" else GroupConv2d)
    assert layer.group == SPACES[name][1]
    assert set(layer.state_dict()) == {"weight", "bias"}
    if kinds[1] == "T":
        assert ours[1].reduction == "mean"  # type: ignore[index,union-attr]
    places = SPACES[name][2]
    if places != sorted(places) and kinds == "RR":  # another mirror axis: escnn's own order would be wrong
        assert off(ours(x[:, :, places]), y) > 1e-2
        assert off(ours(x)[:, :, places], y) > 1e-2


@both_groups
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_convolutions(escnn: types.ModuleType, name: str, kernel: int) -> None:
    group = GROUPS[name]
    for kinds, (stride, bias) in itertools.product(("TR", "RR"), ((1, True), (2, False))):
        theirs = conv(escnn, name, kinds, 3, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=bias)
        for module in (theirs, tied(theirs, group)):
            ours, x, y = imported(module, 9)
            assert set(ours.state_dict()) == ({"weight", "bias"} if bias else {"weight"})
            if (kinds, kernel) != ("TR", 1):  # there every entry of a fiber is the same
                assert all(off(ours(x).roll(shift, 2), y) > 1e-2 for shift in range(1, group.order))
            with torch.no_grad():
                ours.weight.view(-1)[0] += 1e-3 * ours.weight.abs().max()
            assert off(ours(x), y) > 1e-5


@both_groups
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_dilation_and_channel_groups(escnn: types.ModuleType, name: str, mode: str) -> None:
    for kinds, dilation, blocks in [("TR", 1, 2), ("TR", 2, 1), ("RR", 2, 2), ("RT", 1, 2)]:
        settings = {"kernel_size": 3, "padding": 2, "padding_mode": mode, "dilation": dilation, "groups": blocks}
        theirs = conv(escnn, name, kinds, 4, **settings)
        _, x, y = imported(theirs, 7)
        imported(tied(theirs, GROUPS[name]), 7)
        theirs.padding_mode = "replicate" if mode != "replicate" else "circular"
        assert off(from_escnn(theirs)(x), y) > 1e-2


def test_a_pointwise_convolution_of_images_is_torchs(escnn: types.ModuleType) -> None:
    assert type(imported(conv(escnn, "D4", "TT", 3, kernel_size=1), 5)[0]) is nn.Conv2d
    strided = from_escnn(conv(escnn, "D4", "TT", 3, kernel_size=1, stride=2))  # a grid that can be lopsided is checked
    with pytest.raises(ValueError, match="stride"):
        strided(torch.randn(1, 3, 6, 6))


@both_groups
def test_four_layers_with_batch_norm_and_pooling(escnn: types.ModuleType, name: str) -> None:
    theirs = network(escnn.nn, space(escnn, name))
    train(theirs, 13)
    norms = [part for part in from_escnn(theirs) if isinstance(part, nn.BatchNorm3d)]
    assert all(part.running_mean.abs().max() > 0.01 for part in norms)
    assert all((part.running_var - 1).abs().max() > 0.01 for part in norms)
    assert all((part.weight - 1).abs().max() > 0.01 < part.bias.abs().max() for part in norms)
    x = some(theirs.in_type, 17, batch=3)
    for module in (theirs.eval(), theirs.train()):
        ours = from_escnn(module)
        assert off(ours(x.tensor), module(x).tensor) <= 1e-5
    for (key, value), other in zip(ours.named_buffers(), from_escnn(theirs).buffers(), strict=True):
        assert off(value.double(), other.double()) <= 1e-5, key  # running statistics after the step, and how many steps
    exact = tied(theirs, GROUPS[name])
    wide = exact.in_type(x.tensor.double())
    head = exact[-1].export()  # escnn's GroupPooling itself returns float32
    assert off(from_escnn(exact)(wide.tensor), head(exact[:-1](wide).tensor)) <= 1e-12
    broken = from_escnn(exact)
    broken[4].running_mean[0] += 1e-3  # type: ignore[index,operator]
    assert off(broken(wide.tensor), head(exact[:-1](wide).tensor)) > 1e-5


@both_groups
def test_equivariant_where_escnn_is_not(escnn: types.ModuleType, name: str) -> None:
    group, theirs = GROUPS[name], network(escnn.nn, space(escnn, name))
    train(theirs, 13)
    ours = from_escnn(theirs.eval())

    def worst(model: Callable[[Tensor], Tensor], x: Tensor) -> float:
        y = model(x)
        return max(off(model(group.act(g, x)), group.act(g, y)) for g in range(1, group.order))

    for size in (12, 13, 16, 17):
        x = torch.randn(2, 2, size, size)
        peer = worst(lambda x: theirs(theirs.in_type(x)).tensor, x)
        if size % 2:
            assert worst(ours, x) <= 4 * 32 * torch.finfo(x.dtype).eps
            assert peer <= 1e-5
        else:
            assert peer > 1e-2
            with pytest.raises(ValueError, match=r"GroupConv2d: expected .*stride"):
                ours(x)


def test_expanded_filter_is_the_filter_of_a_plain_convolution(escnn: types.ModuleType) -> None:
    theirs = conv(escnn, "D4, axis 0", "RR", 2, kernel_size=5, groups=2, bias=False)
    x = some(theirs.in_type, 9)
    for module in (theirs, theirs.eval()):
        weight = expanded_filter(module)
        assert (weight.shape, weight.requires_grad) == ((16, 8, 5, 5), False)
        f, y = to_regular(x), to_regular(module(x))
        assert off(F.conv2d(f.flatten(1, 2), weight, groups=2), y.flatten(1, 2)) <= 1e-6
        assert off(F.conv2d(x.tensor, weight, groups=2), y.flatten(1, 2)) > 1e-2
    theirs.filter.mul_(2)  # what escnn keeps ready is what it applies
    assert torch.equal(expanded_filter(theirs), 2 * weight)
    theirs.train()
    assert torch.equal(expanded_filter(theirs), weight)
    image = conv(escnn, "C4", "TR", 3, kernel_size=3)
    assert expanded_filter(image).shape == (12, 3, 3, 3)


# How escnn makes a module, and what it becomes for regular fields, and for trivial ones where that is another.
POINTWISE: dict[str, tuple[Callable[[Any, Any], Any], list[nn.Module]]] = {
    "ReLU": (lambda e, t: e.ReLU(t, inplace=True), [nn.ReLU(inplace=True)]),
    "ELU": (lambda e, t: e.ELU(t, alpha=0.5), [nn.ELU(0.5)]),
    "LeakyReLU": (lambda e, t: e.LeakyReLU(t, 0.3), [nn.LeakyReLU(0.3)]),
    "p_relu": (lambda e, t: e.PointwiseNonLinearity(t, "p_relu"), [nn.ReLU()]),
    "p_elu": (lambda e, t: e.PointwiseNonLinearity(t, "p_elu"), [nn.ELU()]),
    "p_sigmoid": (lambda e, t: e.PointwiseNonLinearity(t, "p_sigmoid"), [nn.Sigmoid()]),
    "p_tanh": (lambda e, t: e.PointwiseNonLinearity(t, "p_tanh"), [nn.Tanh()]),
    "dropout": (lambda e, t: e.PointwiseDropout(t, 0.4), [nn.Dropout(0.4)]),
    "identity": (lambda e, t: e.IdentityModule(t), [nn.Identity()]),
    "group pooling": (lambda e, t: e.GroupPooling(t), [OrbitPool("max"), nn.Identity()]),
    "max pooling": (
        lambda e, t: e.PointwiseMaxPool2D(t, 3, stride=2, padding=1, dilation=2, ceil_mode=True),
        [
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1), (1, 2, 2), ceil_mode=True),
            nn.MaxPool2d((3, 3), (2, 2), (1, 1), (2, 2), ceil_mode=True),
        ],
    ),
    "mean pooling": (
        lambda e, t: e.PointwiseAvgPool2D(t, (3, 2), padding=1, ceil_mode=True),
        [
            nn.AvgPool3d((1, 3, 2), (1, 3, 2), (0, 1, 1), ceil_mode=True),
            nn.AvgPool2d((3, 2), (3, 2), (1, 1), ceil_mode=True),
        ],
    ),
    "adaptive max": (
        lambda e, t: e.PointwiseAdaptiveMaxPool2D(t, 3),
        [nn.AdaptiveMaxPool3d((None, 3, 3)), nn.AdaptiveMaxPool2d((3, 3))],
    ),
    "adaptive mean": (
        lambda e, t: e.PointwiseAdaptiveAvgPool2D(t, (1, 2)),
        [nn.AdaptiveAvgPool3d((None, 1, 2)), nn.AdaptiveAvgPool2d((1, 2))],
    ),
}


@pytest.mark.parametrize("what", POINTWISE)
def test_pointwise_modules_and_pooling_are_torchs(escnn: types.ModuleType, what: str) -> None:
    make, expected = POINTWISE[what]
    for (kind, module), name in itertools.product(
        (("regular", expected[0]), ("trivial", expected[-1])), ("C4", "D4, axis pi/4")
    ):
        theirs = make(escnn.nn, fields(space(escnn, name), kind, 3)).eval()
        ours = from_escnn(theirs)
        assert repr(ours) == repr(module)
        assert not ours.training
        for size in (7, 8):
            x = some(theirs.in_type, size)
            assert off(ours(to_regular(x).clone()), to_regular(theirs(theirs.in_type(x.tensor.clone())))) <= 1e-6


def test_dropout_drops_when_training(escnn: types.ModuleType) -> None:
    theirs = escnn.nn.PointwiseDropout(fields(space(escnn, "C4"), "regular", 3), 0.4)
    ours, x = from_escnn(theirs), some(theirs.in_type, 9)
    torch.manual_seed(1)
    y = to_regular(theirs(x))
    torch.manual_seed(1)
    assert torch.equal(ours(x.tensor.unflatten(1, (3, 4))), y)
    assert 0.3 < float((y == 0).float().mean()) < 0.5


@pytest.mark.parametrize("kind", ["regular", "trivial"])
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_batch_norm(escnn: types.ModuleType, kind: str, settings: dict[str, Any]) -> None:
    theirs = escnn.nn.InnerBatchNorm(fields(space(escnn, "D4, axis 0"), kind, 3), eps=0.01, **settings)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    for _ in range(3):
        theirs(theirs.in_type(2 * some(theirs.in_type, 4).tensor + 1))
    ours = from_escnn(theirs)
    assert type(ours) is (nn.BatchNorm3d if kind == "regular" else nn.BatchNorm2d)
    assert (ours.eps, ours.momentum) == (0.01, settings.get("momentum", 0.1))
    for mode in (True, False):
        x = some(theirs.in_type, 5)
        assert off(ours.train(mode)(to_regular(x)), to_regular(theirs.train(mode)(x))) <= 1e-5
    (inner,) = theirs.children()
    for value, other in zip(ours.state_dict().values(), inner.state_dict().values(), strict=True):
        assert off(value.double(), other.double()) <= 1e-5


def test_a_sequence_keeps_its_names_its_nesting_and_its_repetitions(escnn: types.ModuleType) -> None:
    gspace = space(escnn, "C4")
    image, regular = fields(gspace, "trivial", 2), fields(gspace, "regular", 2)
    twice = escnn.nn.R2Conv(regular, regular, 3, padding=1)
    block = escnn.nn.SequentialModule(twice, escnn.nn.ReLU(regular), twice)
    theirs = escnn.nn.SequentialModule(escnn.nn.R2Conv(image, regular, 3), block)
    theirs.add_module("pool", escnn.nn.GroupPooling(regular))
    theirs.add_module("last", escnn.nn.R2Conv(image, image, 1))
    theirs.add_module("norm", escnn.nn.InnerBatchNorm(image))
    theirs.add_module("mean", escnn.nn.PointwiseAdaptiveAvgPool2D(image, 1))
    theirs.eval()[0].train()
    ours = from_escnn(theirs)
    assert [name for name, _ in ours.named_children()] == ["0", "1", "pool", "last", "norm", "mean"]
    assert isinstance(ours, nn.Sequential)
    assert ours[1][0] is ours[1][2]
    assert [module.training for module in (ours, *ours)] == [module.training for module in (theirs, *theirs)]
    x = some(image, 9)
    assert off(ours(x.tensor), theirs(x).tensor) <= 1e-5
    assert not ours(x.tensor)[..., 0, 0].isnan().any()


def test_the_import_is_a_copy(escnn: types.ModuleType) -> None:
    theirs = network(escnn.nn, space(escnn, "C4"))
    theirs[3].weights.requires_grad_(False)
    ours = from_escnn(theirs)
    assert [name for name, parameter in ours.named_parameters() if not parameter.requires_grad] == ["3.weight"]
    assert all(parameter.is_leaf for parameter in ours.parameters())
    pointers = {tensor.data_ptr() for tensor in (*theirs.parameters(), *theirs.buffers())}
    assert not pointers & {tensor.data_ptr() for tensor in (*ours.parameters(), *ours.buffers())}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_kept(escnn: types.ModuleType, dtype: torch.dtype) -> None:
    theirs = copy.deepcopy(conv(escnn, "C4", "RR", 12, kernel_size=7)).eval().to(dtype)
    ours = from_escnn(theirs)
    assert {parameter.dtype for parameter in ours.parameters()} == {dtype}
    blocks = expanded_filter(theirs).unflatten(1, (12, 4)).unflatten(0, (12, 4))
    turned = ours.group.act_regular(1, ours.weight)  # what escnn rounds apart is an equivariant filter all the same
    assert 1e-4 < off(turned.float(), blocks[:, 1].float()) <= torch.finfo(dtype).eps


def test_refusals(escnn: types.ModuleType) -> None:
    library, spaces = escnn.nn, escnn.gspaces
    c4, d4 = spaces.rot2dOnR2(4), spaces.flipRot2dOnR2(4)
    regular, image = fields(c4, "regular", 2), fields(c4, "trivial", 2)
    kind = "trivial fields alone or regular fields alone"
    irreps, quotient = c4.type(c4.irrep(1), c4.irrep(1)), d4.type(d4.quotient_repr((None, 2)))
    mixed = c4.type(c4.trivial_repr, c4.regular_repr)
    for field, got in ((irreps, "irrep_1"), (quotient, "quotient"), (mixed, "irrep_0, regular")):
        refused(from_escnn, library.IdentityModule(field), ValueError, kind, got)
    refused(to_regular, some(mixed, 3), ValueError, "x to have", kind)
    out = library.R2Conv(image, irreps, 3)
    refused(from_escnn, out, ValueError, "module (R2Conv)", kind, "irrep_1")
    refused(expanded_filter, out, ValueError, kind, "irrep_1")
    for gspace in (
        *(spaces.rot2dOnR2(8), spaces.rot2dOnR2(3), spaces.rot2dOnR2(-1), spaces.flip2dOnR2(0.0)),
        *(spaces.flipRot2dOnR2(2, axis=math.pi / 4), spaces.flipRot2dOnR2(4, axis=math.pi / 8)),
        spaces.no_base_space(escnn.group.cyclic_group(4)),
    ):
        words = ("module (IdentityModule)", "CyclicRotation(4)", "Dihedral(4)", f"got {gspace}.", "rot2dOnR2(4)")
        refused(from_escnn, library.IdentityModule(fields(gspace, "trivial", 1)), ValueError, *words)
    for module in (library.FieldDropout(regular), library.PointwiseAvgPoolAntialiased2D(regular, 0.6, 2)):
        words = ("one of escnn's SequentialModule, R2Conv", f"got {type(module).__name__}.", "one by one")
        refused(from_escnn, module, TypeError, "expected module", *words)
        nested = library.SequentialModule(library.ReLU(regular), library.SequentialModule(module))
        refused(from_escnn, nested, TypeError, "expected 1.0 to be", *words)
    for parent in (library.SequentialModule, library.ReLU):  # a subclass may compute anything
        child = type("Child", (parent,), {})(library.ReLU(regular) if parent is library.SequentialModule else regular)
        refused(from_escnn, child, TypeError, "got Child.")
    for other in (nn.Conv2d(1, 1, 3), "R2Conv", None):
        refused(from_escnn, other, TypeError, f"got {type(other).__name__}.")
        refused(expanded_filter, other, TypeError, "R2Conv", "got")
    refused(to_regular, torch.ones(3), TypeError, "GeometricTensor", "field_type(tensor)")


@pytest.mark.parametrize("name", SPACES)
def test_transposed_convolutions(escnn: types.ModuleType, name: str) -> None:
    kind = fields(space(escnn, name), "regular", 2)
    for settings in ({"kernel_size": 4, "padding": 1}, {"kernel_size": 3, "groups": 2, "dilation": 2, "bias": False}):
        theirs = escnn.nn.R2ConvTransposed(kind, kind, stride=2, **settings)
        if theirs.bias is not None:
            nn.init.normal_(theirs.bias)
        for module in (theirs, theirs.eval()):
            assert type(imported(module, 5)[0]) is GroupConvTranspose2d
    theirs.filter[0, 0, 0, 1] += 0.01 * theirs.filter.abs().max()
    if name != "C1":
        refused(
            from_escnn, theirs, ValueError, "module (R2ConvTransposed) to have an equivariant filter", "off by 0.01"
        )


@both_groups
def test_the_unet_of_escnn(escnn: types.ModuleType, name: str) -> None:
    """The same values part by part; ours is exact at odd sizes too, where nothing of it samples lopsidedly."""
    library, gspace, group = escnn.nn, space(escnn, name), GROUPS[name]
    image, f, both = fields(gspace, "trivial", 1), fields(gspace, "regular", 2), fields(gspace, "regular", 4)
    parts = {
        "stem": library.R2Conv(image, f, 3, padding=1),
        "pool": library.PointwiseAvgPool2D(f, 2),
        "inner": library.R2Conv(f, f, 3, padding=1),
        "grow": library.R2ConvTransposed(f, f, 4, padding=1, stride=2),
        "enlarge": library.R2Upsampling(f, 2),
        "join": library.R2Conv(both, f, 3, padding=1),
        "relu": library.ReLU(f),
    }
    ours = {key: from_escnn(part) for key, part in parts.items()}

    def run(part: dict[str, Any], cat: Callable[[list[Any]], Any], x: Any) -> Any:
        skip = part["relu"](part["stem"](x))
        low = part["pool"](part["relu"](part["inner"](part["pool"](skip))))
        low = part["enlarge"](part["relu"](part["grow"](low)))
        return part["join"](cat([low, skip]))

    x = some(image, 16)
    y = run(ours, lambda both: torch.cat(both, 1), x.tensor)
    assert off(y, to_regular(run(parts, library.tensor_directsum, x))) <= 1e-5
    for g in range(group.order):
        moved = run(ours, lambda both: torch.cat(both, 1), group.act(g, x.tensor))
        assert off(moved, group.act_regular(g, y)) <= 1e-5


@pytest.mark.parametrize("settings", [{"scale_factor": 3}, {"size": 11}, {"scale_factor": 2, "align_corners": True}])
def test_upsampling(escnn: types.ModuleType, settings: dict[str, Any]) -> None:
    for kind in (fields(space(escnn, "D4"), what, 2) for what in ("regular", "trivial")):
        x = some(kind, 6)
        theirs = escnn.nn.R2Upsampling(kind, **settings)
        assert off(from_escnn(theirs)(to_regular(x)), to_regular(theirs(x))) <= 1e-6
    uneven = escnn.nn.R2Upsampling(kind, 1.5)
    refused(from_escnn, uneven, ValueError, "module (R2Upsampling) to have a whole scale_factor", "1.5")
    nearest = from_escnn(escnn.nn.R2Upsampling(kind, size=9, mode="nearest"))
    assert_refused(lambda: nearest(x.tensor), ValueError, "GroupUpsample", "a multiple of H=6")
    transposed = escnn.nn.R2ConvTransposed(kind, kind, 3)
    refused(from_escnn, transposed, ValueError, "module (R2ConvTransposed) between regular fields", "trivial ones")


def refused(function: Callable[[Any], Any], argument: Any, error: type[Exception], *words: str) -> None:
    assert_refused(lambda: function(argument), error, function.__name__, *words)


@pytest.mark.parametrize("kinds", ["TR", "RR", "RT", "TT"])
def test_a_filter_that_is_not_equivariant_is_refused(escnn: types.ModuleType, kinds: str) -> None:
    theirs = conv(escnn, "D4", kinds, 2, kernel_size=3).eval()
    from_escnn(theirs)
    theirs.filter[0, 0, 0, 1] += 0.01 * theirs.filter.abs().max()
    words = ("module (R2Conv) to have an equivariant filter", "off by 0.01", "train() and then eval()")
    refused(from_escnn, theirs, ValueError, *words)
    from_escnn(theirs.train())
    from_escnn(theirs.eval())


def test_without_escnn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "escnn", None)
    for call in (from_escnn, expanded_filter, to_regular):
        with pytest.raises(ImportError, match=r"expected escnn .*got .*escnn.* pip install 'equilayers\[escnn\]'"):
            call(nn.Identity())
