"""The invariant mean over the map: bitwise for every turn and mirror, a mean to rounding; torch's own is not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

from conv_laws import LAYOUTS, has_quarter_turns, misses
from equilayers.functional import invariant_avg_pool2d
from equilayers.groups import Group
from equilayers.nn import InvariantAvgPool2d
from strategies import D4, ROTATIONS, filled, float_dtypes, name, rotations

POOL = InvariantAvgPool2d()


def bitwise(group: Group, x: Tensor, layout: str = "plain") -> bool:
    if x.ndim == 4:
        return misses(POOL, group, x, LAYOUTS[layout]) == []
    y = POOL(x)
    moved = [POOL(LAYOUTS[layout](group.act_regular(g, x))) for g in range(group.order)]
    return all(torch.equal(z, group.act_regular(g, y)) for g, z in enumerate(moved))  # the fiber alone is permuted


@pytest.mark.parametrize("group", ROTATIONS, ids=name)
def test_bitwise_at_every_size(group: Group) -> None:
    for size in (*range(1, 18), 32, 37, 64):
        for dtype in (torch.float32, torch.float64):
            assert bitwise(group, filled((2, 3, size, size), dtype, size))
            assert bitwise(group, filled((1, 2, group.order, size, size), dtype, size))


@given(rotations(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), float_dtypes(), st.data())
def test_bitwise_on_any_map(
    group: Group, height: int, width: int, batch: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    width = height if has_quarter_turns(group) else width
    first, then = (data.draw(st.sampled_from([*LAYOUTS])) for _ in range(2))
    fiber = data.draw(st.sampled_from([(), (group.order,)]))
    assert bitwise(group, LAYOUTS[first](filled((batch, 3, *fiber, height, width), dtype)), then)


def test_bitwise_with_cancellation_and_zeros_of_both_signs() -> None:
    for values in ([1e8, 1.0, -1e8], [0.0, -0.0], [1e30, -1e30, 1.0], [1e-40, -1e-42, 0.0]):
        for size in (6, 7):
            x = torch.tensor(values)[torch.randint(len(values), (3, 4, size, size))]
            assert bitwise(D4, x), values


@pytest.mark.parametrize(
    "shape", [(2, 3, 1, 1), (2, 3, 7, 7), (2, 3, 8, 5), (2, 3, 4, 6, 6), (5, 9), (0, 3, 4, 4), (2, 3, 1, 64, 64)]
)
def test_a_mean_to_rounding(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = filled(shape, dtype)
        y = POOL(x)
        assert (y.shape, y.dtype) == (shape[:-2], dtype)
        assert torch.equal(y, invariant_avg_pool2d(x))
        rows = x.double().flatten(-2).reshape(-1, shape[-1] * shape[-2]).tolist()
        for mean, row in zip(y.double().flatten().tolist(), rows, strict=True):
            assert abs(mean - math.fsum(row) / len(row)) <= 4 * torch.finfo(dtype).eps * max(map(abs, row))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    x = torch.full((1, 2, 256, 256), 1000.0, dtype=dtype)
    assert torch.equal(POOL(x), x[..., 0, 0])
    assert torch.equal(POOL(60 * x), 60 * x[..., 0, 0])
    gradient = torch.autograd.grad(POOL(x.requires_grad_()).sum(), x)[0]
    assert gradient.dtype == dtype
    assert torch.equal(gradient, torch.full_like(x, 2.0**-16))


def test_gradcheck_and_vmap() -> None:
    for shape in ((2, 2, 3, 3), (1, 2, 2, 4), (1, 1, 2, 3, 3)):
        x = filled(shape, torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(POOL, x)
        assert torch.autograd.gradgradcheck(POOL, x)
        assert torch.equal(vmap(POOL)(x), POOL(x))
        assert torch.equal(vmap(POOL, 1, 1)(x), POOL(x))
        loss = lambda x: POOL(x).square().sum()  # noqa: E731
        each = vmap(torch.func.grad(loss))(x.detach())
        torch.testing.assert_close(each, torch.autograd.grad(loss(x), x)[0], atol=1e-15, rtol=1e-15)


def test_a_bad_pixel_spoils_its_own_mean_alone() -> None:
    x = filled((2, 3, 6, 6), torch.float32)
    clean = POOL(x)
    for bad in (float("nan"), float("inf")):
        spoiled = x.clone()
        spoiled[1, 2, 3, 4] = bad
        y = POOL(spoiled)
        assert not torch.isfinite(y[1, 2])
        y[1, 2] = clean[1, 2]
        assert torch.equal(y, clean)


@pytest.mark.parametrize("group", [g for g in ROTATIONS if g.order > 1], ids=name)
def test_torchs_own_mean_is_found_not_bitwise(group: Group) -> None:
    x = filled((4, 8, 37, 37), torch.float32)
    for mean in (lambda x: x.mean((-2, -1)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())):
        assert misses(mean, group, x, LAYOUTS["misaligned"]) != []
    assert misses(POOL, group, x, LAYOUTS["misaligned"]) == []
    # Three numbers are enough: 1e8 swallows a 1 that meets it before the -1e8 does.
    x = torch.tensor([[1e8, -1e8, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])[None, None]
    one_by_one = lambda x: sum(x.flatten(2).unbind(2), torch.zeros(1, 1)) / 9  # noqa: E731
    assert misses(one_by_one, group, x) != []
    assert misses(POOL, group, x) == []
