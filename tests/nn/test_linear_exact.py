"""The layers keep the promise of `exactness = "bitwise"`: equivariance to the last bit, and a check that can fail."""

import itertools
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from equilayers.groups import CyclicTranslation, Group
from equilayers.nn import GroupLinear, LiftingLinear, OrbitPool
from linear_laws import LAYOUTS, acting, breaks, input_of, layers, misaligned, strided
from strategies import (
    C2,
    C4,
    D4,
    FOURIER_GROUPS,
    SOME_GROUPS,
    T3,
    TURNING,
    actions,
    algorithms_of,
    batches,
    filled,
    float_dtypes,
    name,
    some_spaces,
)

# All orders up to 36 with HYPOTHESIS_PROFILE=thorough; these have every kind: primes, powers, products, odd and even.
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
ORDERS = range(1, 37) if THOROUGH else (*range(1, 10), 12, 16, 25, 35, 36)
SHIFTS: list[Group] = [CyclicTranslation(n) for n in ORDERS]
BATCHES = (1, 2, 3, 5, 7, 33)
DTYPES = (torch.float32, torch.float64)
EXACT_REDUCTIONS = ("max", "mean", "norm")


def spaces_of(group: Group) -> list[tuple[int, ...]]:
    if isinstance(group, CyclicTranslation):
        return [(2, group.n * max(1, 40 // group.n))]
    return [(3, 6, 6), (2, 7, 7)]


@pytest.mark.parametrize("group", [*TURNING, *SHIFTS], ids=name)
def test_linear_layers_at_every_batch_size(group: Group) -> None:
    settings = itertools.cycle(itertools.product(DTYPES, ("fourier", "orbit")))
    for space in spaces_of(group):
        for batch, (dtype, algorithm) in zip(2 * BATCHES, settings, strict=False):
            for layer, out in layers(group, space, dtype, algorithm):
                assert layer.exactness == "bitwise"
                assert breaks(layer, group, input_of(layer, batch), out) == [], (layer, batch, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", [*FOURIER_GROUPS, CyclicTranslation(7)], ids=name)
def test_linear_layers_in_every_layout(group: Group, layout: str) -> None:
    for dtype in DTYPES:
        for algorithm in ("fourier", "orbit"):
            for layer, out in layers(group, spaces_of(group)[0], dtype, algorithm):
                for batch in (3, 33):
                    for first in LAYOUTS.values():
                        x = first(input_of(layer, batch))
                        assert breaks(layer, group, x, out, LAYOUTS[layout]) == [], (layer, batch, dtype)


@given(actions(max_size=12), batches(), float_dtypes(), st.sampled_from([*LAYOUTS]), st.data())
def test_linear_layers_of_any_group(
    action: tuple[Group, tuple[int, ...]], batch: int, dtype: torch.dtype, layout: str, data: st.DataObject
) -> None:
    group, space = action
    algorithm = data.draw(st.sampled_from(sorted({*algorithms_of(group)} - {"auto", "dense"})), label="algorithm")
    into = LAYOUTS[layout] if group.order > 1 else torch.clone  # alone the identity is torch's own layer
    for layer, out in layers(group, space, dtype, algorithm):
        if layer.exactness == "bitwise":
            assert breaks(layer, group, input_of(layer, batch), out, into) == []


@pytest.mark.parametrize("group", [*TURNING, T3, *(CyclicTranslation(n) for n in (4, 6, 9))], ids=name)
def test_layers_at_the_size_of_the_study(group: Group, threads: int) -> None:
    """Large enough that several threads share a product or a sum."""
    for algorithm in ("fourier", "orbit"):
        lifting = LiftingLinear(group, (36, 36), 128, algorithm=algorithm)
        assert breaks(lifting, group, torch.randn(301, 36, 36), "lift", misaligned) == []
        tied = GroupLinear(group, 130, 67, algorithm=algorithm)
        assert breaks(tied, group, torch.randn(301, 130, group.order), "regular", misaligned) == []
    for reduction in EXACT_REDUCTIONS:
        assert breaks(OrbitPool(reduction), group, torch.randn(301, 130, group.order), "pool", misaligned) == []


@pytest.mark.parametrize("group", SHIFTS, ids=name)
def test_periodic_and_constant_inputs_of_shifts(group: CyclicTranslation) -> None:
    n = group.n
    dtype = DTYPES[n // 2 % 2]  # both for odd n and for even ones
    for layer, out in layers(group, (2, 2 * n), dtype, "fourier"):
        step = 2 if out == "lift" else 1
        for period in (p for p in range(1, n + 1) if n % p == 0):
            x = filled((3, layer.weight.shape[1], period * step), dtype).repeat(1, 1, n // period)
            # One sample without a period among the periodic ones: each has its own.
            x = torch.cat([x, filled((1, *x.shape[1:]), dtype, seed=1), torch.zeros_like(x[:1])])
            y = layer(x)
            assert torch.equal(y[:3], group.act_regular(period % n, y[:3]))
            assert torch.equal(y[4], layer.bias[:, None].expand(-1, n))
            assert breaks(layer, group, x, out) == []
            constant = layer(torch.full_like(x, 0.3))
            assert torch.equal(constant, constant[..., :1].expand_as(constant))


@pytest.mark.parametrize("group", [*FOURIER_GROUPS, CyclicTranslation(12)], ids=name)
def test_zeros_of_both_signs_and_extreme_numbers(group: Group) -> None:
    for dtype in DTYPES:
        for layer, out in layers(group, spaces_of(group)[0], dtype, "fourier"):
            x = input_of(layer, 5)
            tiny = torch.finfo(dtype).tiny
            for values in ([0.0, -0.0], [0.0, -0.0, 1.0], [1.0, 2.0], [tiny, -tiny / 4, 0.0], [1e30, -1e30, 1.0]):
                chosen = torch.tensor(values, dtype=dtype)[torch.randint(len(values), x.shape)]
                assert breaks(layer, group, chosen, out) == [], values


@pytest.mark.parametrize("group", [*TURNING, *SHIFTS], ids=name)
def test_orbit_pool(group: Group) -> None:
    spaces = (), (2, group.order) if isinstance(group, CyclicTranslation) else (5, 5)
    for i, (reduction, space) in enumerate(itertools.product(EXACT_REDUCTIONS, spaces)):
        pool, f = OrbitPool(reduction), filled((3, 4, group.order, *space), DTYPES[i % 4 in (0, 3)])
        assert pool.exactness == "bitwise"
        for x in (f, misaligned(f), strided(f), f * f.sign().clamp_min(0) * -1):
            assert breaks(pool, group, x, "pool", strided) == []


@pytest.mark.parametrize("group", [*FOURIER_GROUPS, CyclicTranslation(12)], ids=name)
def test_invariant_stack(group: Group, threads: int) -> None:
    space = (5 * 36,) if isinstance(group, CyclicTranslation) else (6, 6)
    for reduction, dtype in itertools.product(EXACT_REDUCTIONS, DTYPES):
        lifting, pool = LiftingLinear(group, space, 32), OrbitPool(reduction)
        model = nn.Sequential(lifting, pool, nn.Linear(32, 17), nn.ReLU(), nn.Linear(17, 9)).to(dtype)
        for batch in BATCHES:
            assert breaks(model, group, filled((batch, *space), dtype), "invariant", misaligned) == []


def worst_error(layer: nn.Module, group: Group, x: Tensor, out: str) -> float:
    """The largest equivariance error in units of eps(dtype) * max|output|."""
    y, move = layer(x), acting(group, out == "regular")
    gaps = [(layer(move(g, x)) - group.act_regular(g, y)).abs().max() for g in range(group.order)]
    return (torch.stack(gaps).max() / (y.abs().max() * torch.finfo(x.dtype).eps)).item()


@pytest.mark.parametrize("group", SOME_GROUPS, ids=name)
def test_dense_holds_to_rounding(group: Group, device: torch.device) -> None:
    for dtype in DTYPES:
        for layer, out in layers(group, some_spaces(group)[0], dtype, "dense"):
            assert layer.exactness == "rounding"
            x = input_of(layer.to(device), 33).to(device)
            assert worst_error(layer, group, x, out) <= 32
    with torch.no_grad():  # a shift of one output by 1e-4 is no rounding
        shift = 1e-4 * torch.eye(layer.out_features, group.order, dtype=x.dtype, device=device)
        assert group.order == 1 or worst_error(lambda x: layer(x) + shift, group, x, out) > 32


@pytest.mark.parametrize("group", [C4, D4, T3], ids=name)
def test_dense_is_found_not_bitwise(group: Group) -> None:
    for layer, out in layers(group, (12, 12), torch.float32, "dense"):
        assert any(breaks(layer, group, input_of(layer, batch), out) for batch in BATCHES)


@pytest.mark.parametrize("group", [C4, D4, CyclicTranslation(6)], ids=name)
def test_one_perturbed_weight_is_found(group: Group) -> None:
    """Small integers add up exactly, so the expanded matrix passes; one entry changed in its last bit does not."""
    weight = torch.randint(-8, 9, (5, 6, 6)).float()
    expanded = torch.stack([group.act(h, weight).flatten(1) for h in range(group.order)], 1).flatten(0, 1)
    model = lambda x: nn.functional.linear(x.flatten(1), expanded).unflatten(1, (5, group.order))  # noqa: E731
    x = torch.randint(1, 9, (3, 6, 6)).float()
    assert breaks(model, group, x, "lift") == []
    expanded[3, 7] += 1
    assert breaks(model, group, x, "lift") == list(range(1, group.order))
    expanded[3, 7] -= 1 - 2**-12
    assert breaks(model, group, x, "lift") == list(range(1, group.order))


def test_wrong_group_is_found() -> None:
    stack = lambda group: nn.Sequential(LiftingLinear(group, (6, 6), 8), OrbitPool())  # noqa: E731
    x = torch.randn(3, 6, 6)
    for own, other, expected in (
        (C4, D4, [4, 5, 6, 7]),
        (C2, C4, [1, 3]),
        (T3, CyclicTranslation(2), [1]),
        (T3, CyclicTranslation(6), [1, 3, 5]),
        (T3, CyclicTranslation(3, dim=-2), [1, 2]),
        (CyclicTranslation(6), T3, []),
    ):
        assert breaks(stack(own), other, x, "invariant") == expected, (own, other)
    fiber = lambda f: f.roll(1, 2)[:, :, [0, 3, 2, 1]]  # noqa: E731  # of order 4, but not ours
    assert breaks(fiber, C4, torch.randn(2, 3, 4), "regular") != []


@pytest.mark.parametrize("group", [C4, D4, *map(CyclicTranslation, range(3, 13))], ids=name)
def test_unsorted_sums_are_found_not_bitwise(group: Group) -> None:
    f = filled((33, 4, group.order), torch.float32)
    assert breaks(lambda f: f.mean(2), group, f, "pool") != []
    assert breaks(lambda f: torch.linalg.vector_norm(f, dim=2), group, f, "pool") != []
    assert breaks(lambda f: f[:, :, 0], group, f, "pool") == list(range(1, group.order))
    assert breaks(lambda f: f.logsumexp(2), group, f, "pool") != []
