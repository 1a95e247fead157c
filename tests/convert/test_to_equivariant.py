"""Converted networks are equivariant to rounding, of the width that was asked for, and can be trained."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conversions import MODELS, assert_holds, expanded, settled, tied_on_purpose
from equilayers.convert import to_equivariant
from equilayers.convert._equivariant.convolutions import projected
from equilayers.convert._equivariant.fiber_layers import FiberDepthwiseConv2d
from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.nn import GroupConv2d, LiftingConv2d
from equilayers.testing import assert_invariant, locate_break
from strategies import name

C2, C4, D4 = CyclicRotation(2), CyclicRotation(4), Dihedral(4)
GROUPS: list[Group] = [C2, C4, D4]
WIDTHS = ("equal-width", "equal-parameters", "equal-compute")
each_group = pytest.mark.parametrize("group", GROUPS, ids=name)
each_model = pytest.mark.parametrize("what", MODELS)


def sizes(what: str) -> tuple[int, ...]:
    return (16, 20) if what == "UNet" else (17, 20)  # conversions are verified at 16 themselves


def off(model: nn.Module, group: Group, x: Tensor) -> float:
    """The largest error by how much the outputs of several samples differ."""
    with torch.no_grad():
        y, *moved = (model(group.act(g, x)) for g in range(group.order))
        expected = [group.act(g, y) if y.ndim == 4 else y for g in range(1, group.order)]
        error = max(float((m - e).abs().max()) for m, e in zip(moved, expected, strict=True))
    return error / float((y - y[:1]).abs().max())


@each_model
@each_group
def test_equivariant_to_rounding(what: str, group: Group) -> None:
    model = MODELS[what]()
    made, report = to_equivariant(model, group, torch.randn(2, 3, 16, 16))
    assert report.complete, str(report)
    settled(made, 16)
    for size in sizes(what):
        x = torch.randn(2, 3, size, size)
        assert made(x).shape == model(x).shape
        assert_holds(made, x, group)
    if group == D4:
        assert locate_break(made, x, group) is None
        with pytest.raises(AssertionError, match="Conv2d"):
            assert_holds(model, x, group)


@each_model
@pytest.mark.parametrize("width", WIDTHS)
def test_in_float64_and_of_every_width(what: str, width: str) -> None:
    made, report = to_equivariant(MODELS[what]().double(), D4, torch.randn(2, 3, 16, 16), width=width)
    assert report.complete, str(report)
    settled(made, 16)
    for size in sizes(what):
        assert off(made, D4, torch.randn(2, 3, size, size, dtype=torch.float64)) < 1e-10
    assert off(settled(MODELS[what](), 16), D4, torch.randn(2, 3, 16, 16)) > 1e-2


def planes(model: nn.Module) -> list[int]:
    """How many planes each convolution puts out, seen by calling it."""
    found = []

    def note(module: nn.Module, args: object, out: Tensor) -> None:
        found.append(out.shape[1] * (module.group.order if isinstance(module, tied) else 1))

    tied = (LiftingConv2d, GroupConv2d)
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, FiberDepthwiseConv2d, *tied)):
            module.register_forward_hook(note)
    model(torch.randn(1, 3, 16, 16))
    return found


@pytest.mark.parametrize("what", ["ResNet", "Separable", "DenseNet"])
@each_group
def test_widths(what: str, group: Group) -> None:
    model = MODELS[what](16)
    counts = {}
    for width in WIDTHS:
        made, report = to_equivariant(model, group, torch.randn(2, 3, 16, 16), width=width)
        counts[width] = sum(p.numel() for p in made.parameters())
        assert report.parameters_before == sum(p.numel() for p in model.parameters())
        assert report.parameters_after == counts[width]
        if width == "equal-width":
            assert planes(made) == planes(model)
        else:
            assert all(ours >= theirs for ours, theirs in zip(planes(made), planes(model), strict=True))
    assert counts["equal-width"] < counts["equal-compute"] <= counts["equal-parameters"]
    assert (counts["equal-compute"] == counts["equal-parameters"]) == (group == C2)  # the transform saves it half
    if what != "Separable":
        assert counts["equal-width"] == pytest.approx(report.parameters_before / group.order, rel=0.05)
        assert counts["equal-parameters"] == pytest.approx(report.parameters_before, rel=0.15)


@each_model
@pytest.mark.parametrize("from_weights", [False, True], ids=["random", "from weights"])
def test_the_original_is_as_it_was(what: str, from_weights: bool) -> None:
    model = MODELS[what]()
    settled(model, 16).train()
    next(iter(model.children())).eval()
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    modes, hooks = [m.training for m in model.modules()], [len(m._forward_hooks) for m in model.modules()]
    made, _ = to_equivariant(model, C4, torch.randn(2, 3, 16, 16), from_weights=from_weights)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert repr(model) == text
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert not any(len(m._forward_hooks) for m in made.modules())
    pointers = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    assert not pointers & {t.data_ptr() for t in (*made.parameters(), *made.buffers())}
    child = next(iter(made.children()))
    assert (made.training, child.training) == (True, False)
    assert not any(m.training for m in child.modules())


@each_group
def test_an_equivariant_model_keeps_its_outputs(group: Group) -> None:
    """From its own weights; and one that is not is made so, by as little as can be."""
    model = tied_on_purpose(group)
    x = torch.randn(3, 3, 12, 12)
    assert_invariant(model, x, group)
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        made, report = to_equivariant(model.to(dtype), group, x.to(dtype), from_weights=True)
        assert report.complete
        y = model(x.to(dtype))
        assert (made(x.to(dtype)) - y).abs().max() < limit * y.abs().max()
    assert off(made, group, x.double()) < 1e-10
    anew, _ = to_equivariant(model, group, x.double())
    assert (anew(x.double()) - y).abs().max() > 1e-2 * y.abs().max()


@each_group
def test_images_from_weights(group: Group) -> None:
    """Where the output is an image, each of its channels is the mean over the group."""
    features = 2 * group.order
    body = nn.Sequential(nn.Conv2d(3, features, 3, 1, 1), nn.ReLU())
    with torch.no_grad():
        body[0].weight.copy_(expanded(torch.randn(2, 3, 3, 3), group))
        body[0].bias.copy_(torch.randn(2).repeat_interleave(group.order))
    head = nn.Conv2d(features, 2, 3, 1, 1)
    model, x = nn.Sequential(body, head).double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    made, report = to_equivariant(model, group, x, from_weights=True)
    assert report.complete
    expected = torch.stack([group.act(group.inverse(g), model(group.act(g, x))) for g in range(group.order)]).mean(0)
    torch.testing.assert_close(made(x), expected, atol=1e-6, rtol=1e-6)


@each_group
@pytest.mark.parametrize("kind", [LiftingConv2d, GroupConv2d], ids=lambda kind: kind.__name__)
def test_projection(kind: type[LiftingConv2d | GroupConv2d], group: Group) -> None:
    """It leaves equivariant filters alone, is idempotent, and takes the nearest of them."""
    n, lifting = group.order, kind is LiftingConv2d
    fiber = () if lifting else (n,)
    tied = torch.randn(3, 2, *fiber, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(projected(expanded(tied, group), group, lifting), tied)
    dense = torch.randn(3 * n, 2 * (1 if lifting else n), 3, 3, dtype=torch.float64)
    once = projected(dense, group, lifting)
    assert once.shape == tied.shape
    torch.testing.assert_close(projected(expanded(once, group), group, lifting), once)
    rest = dense - expanded(once, group)
    assert rest.abs().max() > 0.1
    assert abs(float((rest * expanded(tied, group)).sum())) < 1e-10
    layer = kind(group, 2, 3, 3, padding=1, bias=False, dtype=torch.float64)
    x = torch.randn(2, 2, *fiber, 7, 7, dtype=torch.float64)
    plain = F.conv2d(x.flatten(1, -3), expanded(layer.weight, group), padding=1)
    torch.testing.assert_close(layer(x).flatten(1, 2), plain)


@each_model
def test_a_few_steps_lower_the_loss(what: str) -> None:
    model = MODELS[what]()
    for dropout in (m for m in model.modules() if isinstance(m, (nn.Dropout, nn.Dropout2d))):
        dropout.p = 0.0
    made, _ = to_equivariant(model, C4, torch.randn(2, 3, 16, 16))
    optimizer = torch.optim.Adam(made.train().parameters(), 0.003 if what == "UNet" else 0.01)
    x = torch.randn(8, 3, 16, 16)
    target = (x[:, 0] > 0).long() if what == "UNet" else torch.arange(8) % 5
    losses = []
    for _ in range(30 if what == "UNet" else 10):
        loss = F.cross_entropy(made(x), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in made.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert_holds(made.eval(), torch.randn(2, 3, 20, 20), C4)
