"""Deformations: the warp against loops and exact where it must be, the fields as steep as asked, the curve by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import metric_reference as slow
from equilayers.metrics import deformation_stability, displacement_gradient_norm, random_displacement, warp
from equilayers.metrics._warp import inverse

FAULT = r"expected .+, got .+\. .+\.$"
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def constant(size: tuple[int, ...], down: float, right: float) -> Tensor:
    return torch.tensor([down, right], dtype=torch.float64)[:, None, None].expand(2, *size)


def smooth_images(batch: int = 4, size: int = 24) -> Tensor:
    return F.interpolate(noise(batch, 1, 4, 4), size, mode="bicubic", align_corners=True)


# The warp.


@given(size=sizes, seed=st.integers(0, 99), scale=st.sampled_from([0.3, 2.0, 20.0]))
def test_warp_against_loops(size: tuple[int, int], seed: int, scale: float) -> None:
    x, tau = noise(3, 2, *size, seed=seed), scale * noise(3, 2, *size, seed=seed + 1)
    each = [[slow.warped(channel, field) for channel in sample] for sample, field in zip(x.numpy(), tau.numpy())]  # noqa: B905
    np.testing.assert_allclose(warp(x, tau).numpy(), np.array(each), rtol=1e-10, atol=1e-10)
    one = [[slow.warped(channel, tau[0].numpy()) for channel in sample] for sample in x.numpy()]
    np.testing.assert_allclose(warp(x, tau[0]).numpy(), np.array(one), rtol=1e-10, atol=1e-10)


@given(size=sizes, dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_no_displacement_is_the_identity(size: tuple[int, int], dtype: torch.dtype) -> None:
    x = noise(2, 3, *size, dtype=dtype)
    for tau in (torch.zeros(2, *size), -torch.zeros(2, 2, *size, dtype=torch.float64)):
        moved = warp(x, tau)
        assert torch.equal(moved, x)
        assert moved.dtype == dtype


@given(size=sizes, down=st.integers(-9, 9), right=st.integers(-9, 9))
def test_whole_pixels_move_entries(size: tuple[int, int], down: int, right: int) -> None:
    x = noise(2, *size, dtype=torch.float32)
    i = (torch.arange(size[0]) - down).clamp(0, size[0] - 1)
    j = (torch.arange(size[1]) - right).clamp(0, size[1] - 1)
    moved = warp(x, constant(size, down, right))
    assert torch.equal(moved, x[:, i][:, :, j])
    if abs(down) < size[0] and abs(right) < size[1]:  # inside: torch.roll, content down and right
        inside = np.s_[:, max(down, 0) : size[0] + min(down, 0), max(right, 0) : size[1] + min(right, 0)]
        assert torch.equal(moved[inside], x.roll((down, right), (-2, -1))[inside])


def test_what_stays_away_stays_away() -> None:
    # NaN and infinity are not spread by a weight of 0; a constant image is exactly constant; empty batches are fine.
    x = noise(1, 5, 5)
    x[0, 2, 3], x[0, 4, 4] = math.nan, math.inf
    assert torch.equal(warp(x, torch.zeros(2, 5, 5)).isfinite(), x.isfinite())
    assert torch.equal(warp(torch.full((1, 5, 5), 0.1), 3 * noise(2, 5, 5)), torch.full((1, 5, 5), 0.1))
    assert warp(x[:0], torch.zeros(2, 5, 5)).shape == (0, 5, 5)
    tau = torch.zeros(2, 5, 5)
    tau[0, 0, 0], tau[1, 0, 1], tau[0, 0, 2] = math.nan, math.inf, -1e30
    assert warp(torch.ones(5, 5), tau).isnan().sum() == 2


def test_warp_is_differentiable() -> None:
    x, tau = noise(2, 1, 4, 5).requires_grad_(), (0.4 * noise(2, 2, 4, 5, seed=3)).requires_grad_()
    assert torch.autograd.gradcheck(warp, (x, tau))


# The fields.


@given(size=sizes, seed=st.integers(0, 99))
def test_gradient_norm_against_svd(size: tuple[int, int], seed: int) -> None:
    tau = noise(3, 2, *size, seed=seed)
    expected = [slow.steepness(field) for field in tau.numpy()]
    np.testing.assert_allclose(displacement_gradient_norm(tau).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [(3, 3), (12, 17), (36, 36)])
@pytest.mark.parametrize("magnitude", [0.0, 0.01, 0.4, 0.95])
def test_random_fields_are_as_steep_as_asked(size: tuple[int, int], magnitude: float) -> None:
    for cutoff in (1, min(size) - 2):
        tau = random_displacement(5, size, magnitude, cutoff=cutoff, seed=2)
        assert (tau.shape, tau.dtype) == ((5, 2, *size), torch.float64)
        np.testing.assert_allclose(displacement_gradient_norm(tau).numpy(), magnitude, rtol=1e-12)
        border = torch.ones(size, dtype=torch.bool)
        border[1:-1, 1:-1] = False
        assert (tau[..., border] == 0).all()


def test_random_fields_by_seed_and_cutoff() -> None:
    first = random_displacement(4, (9, 9), 0.2, seed=1)
    assert torch.equal(first, random_displacement(4, (9, 9), 0.2, seed=1))
    torch.testing.assert_close(first[:2], random_displacement(2, (9, 9), 0.2, seed=1), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(2 * first, random_displacement(4, (9, 9), 0.4, seed=1), rtol=1e-12, atol=1e-15)
    assert not torch.allclose(first, random_displacement(4, (9, 9), 0.2, seed=2))
    assert not torch.allclose(first[0], first[1])
    # A cutoff of 3 is made of three half waves: projecting on the others leaves nothing.
    waves = torch.sin(torch.pi * torch.arange(4, 8)[:, None] * torch.arange(9) / 8).double()
    assert torch.einsum("naij,ki->nakj", first, waves).abs().max() < 1e-6
    assert torch.einsum("naij,kj->naki", random_displacement(4, (9, 9), 0.2, cutoff=7), waves).abs().max() > 1e-3


@pytest.mark.parametrize("magnitude", [0.1, 0.5, 0.95])
def test_inverse_fields(magnitude: float) -> None:
    tau = random_displacement(4, (12, 17), magnitude)
    back = inverse(tau)
    # u - sigma(u) =: v is the place that tau carries to u: v - tau(v) = u.
    assert (back + warp(tau, back)).abs().max() < 1e-8
    x = smooth_images(4, 40)
    tau = random_displacement(4, (40, 40), magnitude)
    there = warp(x, tau)
    lost = (warp(there, inverse(tau)) - x).norm() / x.norm()
    assert lost < 0.03
    if magnitude == 0.5:
        assert (warp(there, -tau) - x).norm() / x.norm() > 1.5 * lost  # the negative field does not undo it


WARP: Any = warp
NORM: Any = displacement_gradient_norm
RANDOM: Any = random_displacement


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (TypeError, lambda: WARP(torch.ones(4, 4, dtype=torch.int64), torch.zeros(2, 4, 4))),
        (TypeError, lambda: WARP(torch.ones(4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))),
        (TypeError, lambda: WARP([[1.0]], torch.zeros(2, 1, 1))),
        *(
            (ValueError, lambda shapes=shapes: WARP(*map(torch.ones, shapes)))
            for shapes in (
                ((4, 5), (2, 4, 4)),
                ((4,), (2, 4, 4)),
                ((4, 4), (4, 4)),
                ((4, 4), (3, 4, 4)),
                ((3, 4, 4), (2, 2, 4, 4)),
                ((3, 4, 4), (1, 3, 2, 4, 4)),
            )
        ),
        (ValueError, lambda: NORM(torch.zeros(2, 0, 4))),
        (TypeError, lambda: NORM(3)),
        *((ValueError, lambda a=a: RANDOM(*a, 0.1)) for a in ((0, (5, 5)), (1, (5, 2)), (1, (5, 5, 5)))),
        *((ValueError, lambda c=c: RANDOM(1, (5, 5), 0.1, cutoff=c)) for c in (4, 0)),
        *((ValueError, lambda m=m: RANDOM(1, (5, 5), m)) for m in (1.0, math.nan)),
        (TypeError, lambda: RANDOM(1, (5, 5), "much")),
        (TypeError, lambda: RANDOM(1, (5, 5), 0.1, seed=None)),
    ],
)
def test_errors_of_fields(error: type[Exception], call: Any) -> None:
    with pytest.raises(error, match=f"^(warp|displacement_gradient_norm|random_displacement): {FAULT}"):
        call()


# The curve.


def head(size: int = 24) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(size * size, 8), nn.Tanh(), nn.Linear(8, 3)).double()


class Shaped(nn.Module):
    """The first pixels, as outputs of a shape, float32."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : math.prod(self.shape)].reshape(-1, *self.shape).float()


def test_curve_against_loops() -> None:
    model, x, magnitudes = head(), smooth_images(3), (0.1, 0.3)
    curve = deformation_stability(model, x, magnitudes=magnitudes, fields=4, seed=7)
    for m, magnitude in enumerate(magnitudes):
        distances, floors, reach = [], [], []
        for tau in random_displacement(4, (24, 24), magnitude, seed=7).numpy():
            back = inverse(torch.from_numpy(tau)[None])[0].numpy()
            reach.append(np.sqrt((tau**2).sum(0)).max())
            for sample in x[:, 0].numpy():
                there = slow.warped(sample, tau)
                f, fg = (model(torch.from_numpy(v)[None]).detach().numpy() for v in (sample, there))
                distances.append(slow.relative_distance(f, fg))
                floors.append(slow.relative_distance(sample, slow.warped(there, back)))
        got = [curve.distance[m], *curve.quartiles[:, m], curve.interpolation_floor[m], curve.displacement[m]]
        expected = [np.mean(distances), *np.quantile(distances, [0.25, 0.5, 0.75]), np.mean(floors), np.mean(reach)]
        np.testing.assert_allclose([float(v) for v in got], expected, rtol=1e-8)
        assert curve.gradient_norm[m].item() == pytest.approx(magnitude, rel=1e-12)


def test_curve_of_models_by_hand() -> None:
    x = smooth_images()
    options: dict[str, Any] = {"magnitudes": (0.0, 0.1, 0.4), "fields": 3}
    for steady in (lambda v: v.new_ones(len(v), 3), lambda v: 0 * v, lambda v: v[:, 0, 0, 0]):  # a corner rests
        curve = deformation_stability(steady, x, **options)
        assert curve.distance.tolist() == [0, 0, 0]
        assert (curve.quartiles == 0).all()
    # The identity model moves as the image does, whatever its scale; nothing moves at magnitude 0.
    once = deformation_stability(nn.Identity(), x, **options)
    twice = deformation_stability(lambda v: -2 * v, x, **options)
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=0)
    assert once.distance[0] == once.interpolation_floor[0] == once.displacement[0] == 0
    assert 0 < once.interpolation_floor[1] < once.distance[1] < once.distance[2]
    assert (once.quartiles[0] <= once.quartiles[1]).all()
    assert (once.quartiles[1] <= once.quartiles[2]).all()


def test_seeds_batches_shapes_and_modes() -> None:
    model, x = nn.Sequential(head(), nn.Dropout(0.5)).train(), smooth_images(7)
    first = deformation_stability(model, x)
    for size in (1, 3, 7, None):
        torch.testing.assert_close(deformation_stability(model, x, batch_size=size), first, rtol=1e-10, atol=1e-12)
    assert all(module.training for module in model.modules())
    assert (deformation_stability(model, x, seed=1).distance != first.distance).all()
    for shape in ((), (2,), (3, 8, 8), (1, 1, 64, 3)):
        out = deformation_stability(Shaped(shape), x)
        assert [(v.dtype, tuple(v.shape)) for v in out] == [
            (torch.float32, (3, 4) if name == "quartiles" else (4,)) for name in out._fields
        ]


def test_nan_infinity_and_nothing() -> None:
    x = smooth_images(3)
    empty = deformation_stability(head(), x[:0])
    assert all(v.isnan().all() for v in empty)
    broken = x.clone()
    broken[1, 0, 5, 5] = math.nan
    curve = deformation_stability(head(), broken)
    assert curve.distance.isnan().all()
    assert curve.quartiles.isnan().all()
    assert curve.interpolation_floor.isnan().all()
    # f(x) = 0 where f(D x) is not.
    spot = torch.zeros(1, 1, 9, 9)
    spot[..., 4, 4] = 1
    curve = deformation_stability(lambda v: (v < 1) * (v > 0) * 1.0, spot, magnitudes=(0.3,))
    assert curve.distance.tolist() == [math.inf]
    assert curve.quartiles.tolist() == [[math.inf]] * 3


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (TypeError, {"x": torch.ones(2, 1, 6, 6, dtype=torch.int64)}),
        (ValueError, {"x": torch.ones(6, 6)}),
        (ValueError, {"x": torch.ones(2, 1, 2, 6)}),
        (ValueError, {"x": torch.ones(2, 1, 4, 6)}),
        (ValueError, {"model": lambda v: v.sum()}),
        (ValueError, {"model": lambda v: v[:1]}),
        (ValueError, {"magnitudes": ()}),
        (ValueError, {"magnitudes": (0.1, 1.0)}),
        (ValueError, {"magnitudes": (-0.1,)}),
        (TypeError, {"magnitudes": 0.1}),
        (TypeError, {"magnitudes": ("a",)}),
        (ValueError, {"fields": 0}),
        (ValueError, {"cutoff": 5}),
        (TypeError, {"seed": 0.5}),
        (ValueError, {"batch_size": 0}),
    ],
)
def test_errors(error: type[Exception], change: dict[str, Any]) -> None:
    arguments = {"model": nn.Flatten(), "x": torch.ones(2, 1, 6, 6), **change}
    with pytest.raises(error, match=f"^deformation_stability: {FAULT}"):
        deformation_stability(**arguments)
