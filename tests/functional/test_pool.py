"""Orbit pooling: every reduction against the reference, its gradients, its NaNs, and the sorting network under it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

import reference
from equilayers.functional import orbit_pool
from equilayers.functional._pool import NETWORK_LIMIT, ORBIT_REDUCTIONS, sorted_sum, sorting_network
from equilayers.nn import OrbitPool
from strategies import filled

Network = tuple[tuple[int, int], ...]
ORDERS = (1, 2, 3, 4, 5, 8, 9, 12, 36)
SPACES = ((), (3, 5))

reductions = pytest.mark.parametrize("reduction", ORBIT_REDUCTIONS)


@reductions
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("space", SPACES)
def test_reductions_are_the_reference(reduction: str, order: int, space: tuple[int, ...]) -> None:
    f = filled((2, 3, order, *space), torch.float64)
    expected = torch.as_tensor(reference.orbit_pool(f.numpy(), reduction))
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-15)):
        pooled = orbit_pool(f.to(dtype), reduction)
        assert (pooled.shape, pooled.dtype) == ((2, 3, *space), dtype)
        torch.testing.assert_close(pooled.double(), expected, atol=4 * tolerance, rtol=4 * tolerance)
        assert torch.equal(OrbitPool(reduction)(f.to(dtype)), pooled)


def test_max_is_the_default_and_all_say_how_exact_they_are() -> None:
    f = torch.randn(4, 3, 5)
    assert torch.equal(orbit_pool(f), f.amax(2))
    assert OrbitPool().reduction == "max"
    assert {r: OrbitPool(r).exactness for r in ORBIT_REDUCTIONS} == {
        "max": "bitwise",
        "mean": "bitwise",
        "logsumexp": "rounding",
        "norm": "bitwise",
    }


@reductions
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("order", [1, 3, 4, 9])
def test_gradcheck(reduction: str, space: tuple[int, ...], order: int) -> None:
    f = filled((2, 1, order, *space[:1]), torch.float64).requires_grad_()
    run = lambda f: orbit_pool(f, reduction)  # noqa: E731
    assert torch.autograd.gradcheck(run, f)
    assert torch.autograd.gradgradcheck(run, f)
    torch.testing.assert_close(vmap(run)(f[None].expand(3, *f.shape))[1], run(f))


@pytest.mark.parametrize("order", [2, 4, 9])
def test_equal_maxima_share_the_gradient(order: int) -> None:
    f = torch.zeros(1, 1, order, requires_grad=True)
    (gradient,) = torch.autograd.grad(orbit_pool(f, "max").sum(), f)
    torch.testing.assert_close(gradient, torch.full_like(f, 1 / order))
    f = torch.tensor([[[1.0, 3.0, 3.0, 2.0]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(orbit_pool(f, "max").sum(), f)
    assert gradient.tolist() == [[[0.0, 0.5, 0.5, 0.0]]]


@pytest.mark.parametrize("order", ORDERS)
def test_norm_of_zero_has_gradient_zero(order: int) -> None:
    f = torch.zeros(2, 2, order)
    f[1] = torch.randn(2, order)
    f.requires_grad_()
    pooled = orbit_pool(f, "norm")
    (gradient,) = torch.autograd.grad(pooled.sum(), f)
    assert pooled[0].tolist() == [0.0, 0.0]
    assert not gradient[0].any()
    torch.testing.assert_close(gradient[1], f[1] / pooled[1, :, None])
    # What the library avoids: the plain square root's gradient at zero is no number.
    naive = torch.zeros(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(naive.square().sum().sqrt(), naive)
    assert gradient.isnan().all()


@reductions
@pytest.mark.parametrize("order", ORDERS)
def test_nan_spoils_its_fiber_alone(reduction: str, order: int) -> None:
    for place in range(order):
        f = torch.randn(2, 3, order, 4)
        clean = orbit_pool(f, reduction)
        f[1, 2, place, 3] = math.nan
        pooled = orbit_pool(f, reduction)
        assert pooled.isnan().nonzero().tolist() == [[1, 2, 3]]
        assert torch.equal(pooled[~pooled.isnan()], clean[~pooled.isnan()])


@reductions
def test_infinities(reduction: str) -> None:
    f = torch.tensor([1.0, math.inf, 2.0]).view(1, 1, 3)
    assert orbit_pool(f, reduction).item() == math.inf
    below = {"max": 1.0, "mean": -math.inf, "norm": math.inf, "logsumexp": math.log(2 * math.e)}
    f = torch.tensor([1.0, -math.inf, 1.0]).view(1, 1, 3)
    torch.testing.assert_close(orbit_pool(f, reduction).item(), below[reduction])


@reductions
def test_empty_batch_and_input_left_alone(reduction: str) -> None:
    f = torch.randn(0, 3, 4, 5, 5, requires_grad=True)
    pooled = orbit_pool(f, reduction)
    assert pooled.shape == (0, 3, 5, 5)
    assert torch.autograd.grad(pooled.sum(), f)[0].shape == f.shape
    for order in (1, 4, 9):
        f = torch.randn(2, 3, order)
        before = f.clone()
        orbit_pool(f, reduction).zero_()
        assert torch.equal(f, before)


def unsorted(network: Network, n: int) -> list[tuple[int, ...]]:
    """The inputs of zeros and ones that the network leaves unsorted; without any it sorts everything (Knuth, 5.3.4)."""
    found = []
    for bits in itertools.product((0, 1), repeat=n):
        values = list(bits)
        for i, j in network:
            values[i], values[j] = min(values[i], values[j]), max(values[i], values[j])
        if values != sorted(values):
            found.append(bits)
    return found


@pytest.mark.parametrize("n", range(1, 13))
def test_sorting_network_sorts(n: int) -> None:
    network = sorting_network(n)
    assert all(0 <= i < j < n for i, j in network)
    assert unsorted(network, n) == []


def order_dependent(total: object, f: Tensor) -> bool:
    """Whether some order of the terms of axis 2 changes the bits of the total."""
    orders = itertools.islice(itertools.permutations(range(f.shape[2])), 200)
    return any(not torch.equal(total(f[:, :, list(p)]), total(f)) for p in orders)  # type: ignore[operator]


@given(st.integers(2, NETWORK_LIMIT + 3), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_sorted_sum_is_the_same_for_every_order(n: int, dtype: torch.dtype, seed: int) -> None:
    f = filled((2, 2, n), dtype, seed) * 10.0 ** filled((2, 2, n), dtype, seed + 1)
    assert not order_dependent(sorted_sum, f)
    torch.testing.assert_close(sorted_sum(f), f.sum(2))


@pytest.mark.parametrize("n", range(3, NETWORK_LIMIT + 3))
def test_plain_sum_is_not(n: int) -> None:
    assert order_dependent(lambda f: f.sum(2), filled((33, 2, n), torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("reduction", "value"), [("norm", 300.0), ("mean", 20000.0), ("norm", 1e-4), ("mean", 1e-4)])
def test_sums_of_half_precision_neither_overflow_nor_vanish(dtype: torch.dtype, reduction: str, value: float) -> None:
    f = torch.full((1, 1, 4), value, dtype=dtype)
    pooled = orbit_pool(f, reduction)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled, orbit_pool(f.double(), reduction).to(dtype), rtol=0.01, atol=0)
