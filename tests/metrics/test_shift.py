"""Shifts and equivariance: against loops, by hand, exact on exact models, and failing on broken ones."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metric_reference as slow
from equilayers.groups import CyclicRotation, Group
from equilayers.metrics import equivariance_error, shift_consistency, shift_wobble
from equilayers.metrics._shift_sampling import ShiftPlan
from equilayers.nn import GroupConv2d, LiftingConv2d
from reference import Array, act
from strategies import C2, C4, D1, D4, T3

FAULT = r"expected .+, got .+\. .+\.$"
measures = pytest.mark.parametrize("measure", [shift_consistency, shift_wobble], ids=lambda m: m.__name__)


def plain(space: tuple[int, ...] = (1, 4, 5), classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(space), 8), nn.Tanh(), nn.Linear(8, classes)).double()


class Invariant(nn.Module):
    """A function of the sorted pixels: invariant to every roll, bitwise."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sort(1).values[:, :3]


def as_numpy(model: nn.Module) -> slow.NumpyModel:
    def one(sample: Array) -> Array:
        with torch.no_grad():
            out: Array = model(torch.from_numpy(sample.copy())[None])[0].numpy()
        return out

    return one


def images(batch: int, *space: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, *(space or (1, 4, 5)), dtype=torch.float64)


CASES: list[tuple[dict[str, Any], list[slow.Place]]] = [
    ({}, [(i, j) for i in range(4) for j in range(5)]),
    ({"max_shift": 1}, [(i, j) for i in (0, -1, 1) for j in (0, -1, 1)]),
    ({"max_shift": 2}, [(i, j) for i in range(4) for j in range(5)]),  # 2 and -2 are one roll of 4 rows
    ({"crop_size": (4, 5)}, [(i, j) for i in (0, 1, -1, -2) for j in (0, -1)]),
    ({"crop_size": (4, 5), "max_shift": 1}, [(i, j) for i in (0, 1, -1) for j in (0, -1)]),
]


@pytest.mark.parametrize(("options", "shifts"), CASES)
def test_exhaustive_against_loops(options: dict[str, Any], shifts: list[slow.Place]) -> None:
    size = options.get("crop_size")
    x, model = images(4, 1, 7, 6) if size else images(4), plain()
    one = as_numpy(model)
    same, wobbles = [], []
    for sample in x.numpy():
        views = [slow.window(sample, size, s) if size else slow.rolled(sample, s) for s in shifts]
        same += [slow.same_class(one(views[0]), one(view)) for view in views[1:]]
        wobbles.append(slow.wobble(one, views))
    got = shift_consistency(model, x, exhaustive=True, **options)
    assert got.item() == pytest.approx(math.fsum(same) / len(same), rel=1e-14)
    assert 0 < got < 1
    for reduction, expected in (("mean", math.fsum(wobbles) / len(wobbles)), ("max", max(wobbles))):
        value = shift_wobble(model, x, exhaustive=True, reduction=reduction, **options)
        assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("options", "shifts"), CASES)
def test_random_shifts_are_the_same_ones_uniform_and_bound_by_all(
    options: dict[str, Any], shifts: list[slow.Place]
) -> None:
    x = images(3, 1, 7, 6) if "crop_size" in options else images(3)
    plan = ShiftPlan("test", options.get("max_shift"), options.get("crop_size"), "pairs", 1, False, 0, None)
    made = plan.shifts(x)
    drawn = [torch.stack(s, 1) for s in made.random(3, 0, 4000, 2)]
    counts = dict.fromkeys(shifts, 0)
    for s in torch.cat(drawn).tolist():
        counts[tuple(s)] += 1  # a KeyError is a shift out of bounds
    expected = 8000 / len(shifts)
    assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in counts.values())
    assert not torch.equal(drawn[0], drawn[1])
    later = [torch.stack(s, 1) for s in made.random(3, 700, 10, 2)]
    assert all(torch.equal(a, b[700:710]) for a, b in zip(later, drawn, strict=True))
    lower, all_ = shift_wobble(plain(), x, shifts=4, **options), shift_wobble(plain(), x, exhaustive=True, **options)
    assert 0 < lower <= all_


def test_two_columns_by_hand() -> None:
    # Logits are the pixels: the other roll swaps them, and with them the class; log 3 makes 3/4 into 1/4.
    x = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]], dtype=torch.float64).reshape(2, 1, 2)
    model = nn.Flatten()
    assert shift_consistency(model, x, exhaustive=True).item() == 0.5
    assert shift_wobble(model, x, exhaustive=True).item() == pytest.approx(0.25, rel=1e-15)
    assert shift_wobble(model, x, exhaustive=True, reduction="max").item() == pytest.approx(0.5, rel=1e-15)
    # Random pairs: each of the four is as likely, two of them tell the classes of the first sample apart.
    assert shift_consistency(model, x, pairs=1000).item() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_models_are_reported_exact(dtype: torch.dtype) -> None:
    x = images(5, 2, 6, 6).to(dtype)
    for model in (Invariant(), lambda v: v.new_ones(len(v), 3)):
        for options in ({"exhaustive": True}, {}, {"batch_size": 2}):
            assert shift_consistency(model, x, **options).item() == 1.0
            assert shift_wobble(model, x, reduction="max", **options).item() == 0.0
    convolution = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.ReLU()).to(dtype)
    assert shift_consistency(lambda v: convolution(v).amax((2, 3)), x, exhaustive=True).item() == 1.0
    # Windows show other pixels: the same model is not invariant to those.
    assert shift_wobble(Invariant(), x, crop_size=4, exhaustive=True) > 0


@measures
@pytest.mark.parametrize("options", [{}, {"exhaustive": True}, {"crop_size": 3, "max_shift": 1}])
def test_seed_and_batches(measure: Any, options: dict[str, Any]) -> None:
    model, x = plain((1, 3, 3) if "crop_size" in options else (1, 4, 5)), images(7)
    first, again = (measure(model, x, seed=3, **options) for _ in range(2))
    assert first == again
    for size in (1, 2, 7, 9):
        assert measure(model, x, seed=3, batch_size=size, **options).item() == pytest.approx(first.item(), rel=1e-12)
    if not options:
        assert len({shift_wobble(model, x, seed=seed, shifts=1).item() for seed in range(4)}) == 4


@measures
def test_nan_empty_dtype_and_mode(measure: Any) -> None:
    x = images(4)
    assert measure(plain(), images(0)).isnan()
    assert measure(plain(), images(0), batch_size=2, exhaustive=True).isnan()
    broken = x.clone()
    broken[2, 0, 1, 1] = math.nan
    assert measure(plain(), broken).isnan()
    for dtype in (torch.float16, torch.float32):
        value = measure(lambda v, dtype=dtype: v.flatten(1).to(dtype), x)
        assert (value.dtype, value.shape, value.requires_grad) == (dtype, (), False)
    model = nn.Sequential(plain(), nn.Dropout(0.5)).train()
    assert measure(model, x) == measure(model, x)
    assert all(module.training for module in model.modules())


@measures
@pytest.mark.parametrize(
    ("error", "change"),
    [
        (ValueError, {"model": lambda v: v}),
        (ValueError, {"x": torch.ones(3, 4)}),
        (TypeError, {"x": torch.ones(3, 4, 4, dtype=torch.int64)}),
        (ValueError, {"x": torch.ones(3, 1, 1, 1)}),
        (ValueError, {"max_shift": 0}),
        (TypeError, {"max_shift": 1.5}),
        *((ValueError, {"crop_size": size}) for size in (5, 4, 0, (1, 2, 3))),
        (TypeError, {"crop_size": 2.0}),
        (ValueError, {"seed": -1}),
        (ValueError, {"batch_size": 0}),
    ],
)
def test_errors(measure: Any, error: type[Exception], change: dict[str, Any]) -> None:
    arguments = {"model": lambda v: v.flatten(1), "x": torch.ones(3, 1, 4, 4), **change}
    with pytest.raises(error, match=f"^{measure.__name__}: {FAULT}"):
        measure(**arguments)


def test_errors_of_their_own() -> None:
    measure: Any
    call: Any
    for measure, option in ((shift_consistency, "pairs"), (shift_wobble, "shifts")):
        with pytest.raises(ValueError, match=f"^{measure.__name__}: expected {option} >= 1, got 0"):
            measure(plain(), images(1), **{option: 0})
    for call in (shift_wobble, lambda *a, **k: equivariance_error(*a, C4, **k)):
        with pytest.raises(ValueError, match=r"expected reduction in \{'mean', 'max'\}, got 'sum'"):
            call(plain(), images(1), reduction="sum")


# Equivariance.


@pytest.mark.parametrize("group", [C4, C2, D4, T3], ids=repr)
def test_equivariance_against_loops(group: Group) -> None:
    model, x = nn.Conv2d(1, 2, 3, padding=1).double(), images(3, 1, 6, 6)
    one = as_numpy(model)
    for include in (False, True):
        elements = range(0 if include else 1, group.order)
        table = np.array([[slow.relative_distance(*_sides(one, group, g, s)) for s in x.numpy()] for g in elements])
        for reduction, expected in (("mean", table.mean(1)), ("max", table.max(1))):
            got = equivariance_error(model, x, group, reduction=reduction, include_identity=include)
            np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-14)
        assert not include or got[0] == 0


def _sides(one: slow.NumpyModel, group: Group, g: int, sample: Array) -> tuple[Array, Array]:
    """`g f(x)` and `f(g x)`; the action keeps the norm of f(x)."""
    return act(group, g, one(sample)[None])[0], one(act(group, g, sample[None])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equivariant_models_are_exact(dtype: torch.dtype) -> None:
    x = images(4, 1, 8, 8).to(dtype)
    for model in (nn.ReLU(), nn.MaxPool2d(2), lambda v: v.sort(1).values, lambda v: 0 * v):
        for size in (None, 3):
            assert equivariance_error(model, x, C4, batch_size=size).tolist() == [0, 0, 0]
    lifting = nn.Sequential(LiftingConv2d(C4, 1, 3, 3, algorithm="bitwise"), nn.ReLU()).to(dtype)
    second = GroupConv2d(C4, 3, 2, 3, algorithm="bitwise").to(dtype)
    features = nn.Sequential(lifting, second)
    assert equivariance_error(lifting, x, C4).tolist() == [0, 0, 0]
    assert equivariance_error(features, x, C4).tolist() == [0, 0, 0]
    assert equivariance_error(lambda v: features(v).mean((3, 4)), x, C4).max() < 32 * torch.finfo(dtype).eps
    f = lifting(x).detach()
    assert equivariance_error(second, f, C4, action_in=C4.act_regular, reduction="max").tolist() == [0, 0, 0]


def test_broken_models_are_not() -> None:
    x = images(4, 1, 8, 8)
    assert (equivariance_error(nn.Conv2d(1, 2, 3).double(), x, C4) > 0.1).all()
    shifted = lambda v: v.roll(1, -1)  # noqa: E731
    assert (equivariance_error(shifted, x, C4) > 0.1).all()
    lifting = LiftingConv2d(C4, 1, 2, 3).double()
    assert (equivariance_error(lambda v: lifting(v).flip(2), x, C4)[::2] > 0.1).all()
    assert (equivariance_error(lifting, x, C4, action_out=C4.act) > 0.1).all()


def test_closed_forms_zeros_and_users_actions() -> None:
    x = images(3, 1, 4, 4)
    left = lambda v: v * torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=v.dtype)  # noqa: E731  # the left half
    got = equivariance_error(left, torch.ones_like(x), C2)
    assert got.tolist() == pytest.approx([math.sqrt(2)], rel=1e-15)  # two disjoint halves
    assert equivariance_error(left, torch.ones_like(x), C2, relative=False).item() == 4.0
    # Invariant outputs: the trivial action. A model that flips its sign with the mirror: minus one.
    stay = lambda g, f: f  # noqa: E731
    assert equivariance_error(lambda v: v.flatten(1).sort(1).values, x, C4, action_out=stay).tolist() == [0, 0, 0]
    odd = lambda v: (v - v.flip(-1)).flatten(1)[:, :1]  # noqa: E731
    assert equivariance_error(odd, x, D1, action_out=lambda g, f: -f if g else f).tolist() == [0]
    assert equivariance_error(odd, x, D1, action_out=stay).tolist() == pytest.approx([2], rel=1e-15)
    # f(x) = 0 where f(g x) is not: infinitely far.
    top = torch.zeros(1, 1, 4, 4)
    top[..., 0, 0] = 1
    assert equivariance_error(lambda v: v * (v[..., -1:, -1:] > 0), top, C2).tolist() == [math.inf]
    assert equivariance_error(nn.ReLU(), x * math.nan, C4).isnan().all()
    for reduction in ("mean", "max"):
        assert equivariance_error(nn.ReLU(), x[:0], C4, reduction=reduction).isnan().all()


@pytest.mark.parametrize(
    ("error", "change"),
    [
        *((ValueError, {"model": model}) for model in (nn.Flatten(), torch.sum, lambda v: v[:, 0], lambda v: [v])),
        (ValueError, {"model": lambda v: v[:, :, None].expand(-1, -1, 3, -1, -1)}),
        (ValueError, {"action_out": lambda g, f: f[:, :, 1:]}),
        (TypeError, {"action_in": 3}),
        (TypeError, {"action_out": "roll"}),
        (TypeError, {"group": 4}),
        (ValueError, {"group": CyclicRotation(1)}),
        (TypeError, {"x": torch.ones(2, 1, 5, 5, dtype=torch.int64)}),
        (ValueError, {"batch_size": 0}),
    ],
)
def test_equivariance_errors(error: type[Exception], change: dict[str, Any]) -> None:
    arguments = {"model": nn.ReLU(), "x": torch.ones(2, 1, 5, 5), "group": C4, **change}
    with pytest.raises(error, match=f"^equivariance_error: {FAULT}"):
        equivariance_error(**arguments)
