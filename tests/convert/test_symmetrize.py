"""The Reynolds operator: invariant to the last bit, and the slow mean of what a model says of all gx."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from equilayers.convert import Symmetrized, symmetrize
from equilayers.functional import _reynolds, reynolds
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group
from refusals import assert_refused
from strategies import S3, name

R4, D4, T3 = CyclicRotation(4), Dihedral(4), CyclicTranslation(3, dim=-1)
T2 = CyclicTranslation(2)
PRODUCTS = DirectProduct(T3, CyclicTranslation(2, dim=-2)), DirectProduct(CyclicRotation(2), T2)
GROUPS: list[Group] = [R4, D4, T3, *PRODUCTS, S3]
REDUCTIONS = ("mean", "probabilities", "max")
each_group = pytest.mark.parametrize("group", GROUPS, ids=name)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def shape(group: Group) -> tuple[int, ...]:
    return (3,) if group is S3 else (2, 6, 6)


def plain(group: Group) -> nn.Module:
    """A model without any symmetry."""
    entries = torch.zeros(shape(group)).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(entries, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 5))


def model_and_data(group: Group, dtype: torch.dtype, batch: int = 4) -> tuple[nn.Module, Tensor]:
    return plain(group).to(dtype), torch.randn(batch, *shape(group), dtype=dtype)


def slowly(f: Callable[[Tensor], Tensor], group: Group, x: Tensor, reduction: str) -> Tensor:
    """One call for each sample and element."""
    rows = []
    for sample in x:
        outputs = torch.stack([f(group.act(g, sample[None]))[0] for g in range(group.order)])
        if reduction == "max":
            rows.append(outputs.max(0).values)
        else:
            rows.append(outputs.mean(0) if reduction == "mean" else outputs.softmax(1).mean(0).log())
    return torch.stack(rows)


def misses(model: nn.Module, group: Group, x: Tensor) -> list[int]:
    """The elements for which the output is another, if only in one bit."""
    y = model(x)
    return [g for g in range(group.order) if not torch.equal(model(group.act(g, x)), y)]


@each_group
@each_reduction
@each_dtype
def test_bitwise_invariant(group: Group, reduction: str, dtype: torch.dtype) -> None:
    """Also of orbits that occur twice in a batch, and of orbits with fewer than |G| different images."""
    model, x = model_and_data(group, dtype, 5)
    averaged = symmetrize(model, group, reduction)
    twice = torch.stack([x[0], x[1], x[0], group.act(group.order - 1, x[0])])
    periodic = (x + group.act(1, x)).round() + 0 * x
    constant = torch.stack([torch.full_like(x[0], 0.1), torch.zeros_like(x[0]), -torch.zeros_like(x[0]), x[0]])
    whole = sum((group.act(g, x) for g in range(group.order)), torch.zeros_like(x)).round()
    for batch in (*(x[:count] for count in range(1, 6)), twice, periodic, constant, whole):
        assert misses(averaged, group, batch) == []
    moved = torch.stack([group.act((i + 1) % group.order, sample) for i, sample in enumerate(x)])
    assert not torch.equal(moved, x)
    assert torch.equal(averaged(moved), averaged(x))  # also when each sample is moved by another element
    rounded = x.round()
    assert torch.equal(averaged(torch.where(rounded == 0, -0.0, rounded)), averaged(rounded))
    y = averaged(constant)
    assert torch.equal(y[1], y[2])  # of zeros, whatever their sign
    torch.testing.assert_close(averaged(twice)[0], averaged(twice)[3])


def test_low_precision_and_many_threads(threads: int) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model, x = model_and_data(D4, dtype)
        assert misses(symmetrize(model, D4), D4, x) == []
    conv = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 100, 9))
    x = torch.randn(3, 2, 12, 12)
    assert misses(symmetrize(conv, R4), R4, x) == []


def test_without_the_order_it_is_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ordering is for: in the order of the elements last bits differ, and this test can see it."""
    monkeypatch.setattr(_reynolds, "_in_order", lambda orbit: (orbit, None))
    missed = 0
    for batch in range(1, 6):
        model, x = model_and_data(D4, torch.float32, batch)
        missed += len(misses(symmetrize(model, D4), D4, x))
    assert missed > 5


@each_group
@each_reduction
def test_is_the_slow_mean(group: Group, reduction: str) -> None:
    """Values and gradients; those of a moved input move with it."""
    model, x = model_and_data(group, torch.float64)
    averaged = symmetrize(model, group, reduction)
    x.requires_grad_()
    y, expected = averaged(x), slowly(model, group, x, reduction)
    torch.testing.assert_close(y, expected, atol=1e-13, rtol=1e-13)
    assert torch.equal(reynolds(model, group, x, reduction), y)
    if reduction == "probabilities":
        torch.testing.assert_close(expected.exp().sum(1), torch.ones(len(x), dtype=x.dtype))
    else:
        assert (expected - model(x)).abs().max() > 1e-3
    wanted, weights = [x, *model.parameters()], torch.randn_like(y)
    found, slow = (torch.autograd.grad((weights * out).sum(), wanted) for out in (y, expected))
    for gradient, other in zip(found, slow, strict=True):
        assert gradient.abs().max() > 1e-6
        assert (gradient - other).abs().max() < 1e-10
    moved = group.act(1, x.detach()).requires_grad_()
    (there,) = torch.autograd.grad((weights * averaged(moved)).sum(), moved)
    torch.testing.assert_close(there, group.act(1, found[0]), atol=1e-12, rtol=1e-10)
    single = averaged.float()(x.float())
    assert single.dtype == torch.float32
    assert (single - expected).abs().max() < 1e-5


def test_one_call_with_all_samples() -> None:
    calls = []
    x = torch.randn(3, 2, 6, 6)
    reynolds(lambda t: calls.append(t.shape) or t.flatten(1), D4, x)
    assert calls == [(24, 2, 6, 6)]
    rows = reynolds(lambda t: t.sum((1, 2, 3)), R4, x)
    torch.testing.assert_close(rows, x.sum((1, 2, 3)))
    maps = reynolds(lambda t: t.cumsum(-1), R4, x, output="invariant")
    assert maps.shape == x.shape
    assert reynolds(lambda t: t.flatten(1), R4, x[:0]).shape == (0, 72)


def test_as_a_module() -> None:
    model, x = model_and_data(R4, torch.float32)
    averaged = symmetrize(model, R4, "max")
    y = averaged(x)
    assert isinstance(averaged, Symmetrized)
    assert averaged.model is model
    assert list(averaged.state_dict()) == [f"model.{key}" for key in model.state_dict()]
    assert repr(averaged).startswith("Symmetrized(\n  CyclicRotation(4), reduction='max'\n  (model): Sequential(")
    with torch.no_grad():
        model[1].weight.zero_()
    assert not torch.equal(averaged(x), y)
    averaged.eval()
    assert not model.training


def test_refusals() -> None:
    model, x = model_and_data(R4, torch.float32)
    caller = "reynolds"
    assert_refused(lambda: reynolds(model, "R4", x), ValueError, caller, "a name such as", "The paper's R4 is 'C4'")
    assert_refused(lambda: reynolds(model, R4, x, "sum"), ValueError, caller, "'mean', 'probabilities', 'max'", "'sum'")
    assert_refused(lambda: reynolds(model, R4, x.int()), TypeError, caller, "x to be floating-point", "torch.int32")
    assert_refused(lambda: reynolds(model, R4, x[0, 0]), ValueError, caller, "x of shape (B, ...)", "(6, 6)")
    assert_refused(lambda: reynolds(model, R4, x[..., 1:]), ValueError, caller, "H == W", "H=6, W=5")
    assert_refused(lambda: reynolds(model, CyclicTranslation(4), x), ValueError, caller, "multiple of 4")
    for f, got in (
        (lambda t: t.sum(), "()"),
        (lambda t: t[1:], "(15, 2, 6, 6)"),
        (lambda t: t.mean(0), "(2, 6, 6)"),
        (lambda t: (t[1:], t), "(15, 2, 6, 6)"),
        (lambda t: None, "NoneType"),
    ):
        words = ("a row for each of 16 samples", f"got {got}", "batch axis")
        assert_refused(lambda f=f: reynolds(f, R4, x), ValueError, caller, *words)
    logits = ("rows of logits", "got (16,)")
    assert_refused(lambda: reynolds(lambda t: t.sum((1, 2, 3)), R4, x, "probabilities"), ValueError, caller, *logits)
    caller = "symmetrize"
    assert_refused(lambda: symmetrize(torch.relu, R4), TypeError, caller, "torch.nn.Module", "builtin", "reynolds")
    assert_refused(lambda: symmetrize(model, 4), TypeError, caller, "group to be a group", "got 4")
    assert_refused(lambda: symmetrize(model, R4, "median"), ValueError, caller, "'mean'", "'median'")
