"""Harmonic layers: filters, the law under turns, and everything that a layer of torch can do."""

import cmath
import functools
import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from benchmarks.rotations import smooth_images
from equilayers.functional import harmonic_magnitude, rotate, rotate_harmonic
from equilayers.functional._harmonic import harmonic_filter, harmonic_terms
from equilayers.functional._steerable_basis import polar, profile
from equilayers.metrics import RotationErrorCurve, rotation_error_curve
from equilayers.nn import (
    AvgBlurPool2d,
    BlurPool2d,
    HarmonicBatchNorm,
    HarmonicConv2d,
    HarmonicMagnitude,
    HarmonicNonlinearity,
    InvariantAvgPool2d,
)
from strategies import filled


def double(*shape: int) -> Tensor:
    return filled(shape, torch.float64)


def stack(order: int = 2, channels: int = 3, layers: int = 5, kernel_size: int = 5) -> nn.Sequential:
    """As many convolutions with norms and nonlinearities between, of random weights and biases."""
    torch.manual_seed(0)
    modules: list[nn.Module] = [HarmonicConv2d(1, channels, kernel_size, None, order, padding=kernel_size // 2)]
    for _ in range(layers - 1):
        modules += [HarmonicBatchNorm(channels, order), HarmonicNonlinearity(channels, order)]
        nn.init.uniform_(modules[-1].bias, -0.3, 0.1)  # type: ignore[arg-type]
        modules.append(HarmonicConv2d(channels, channels, kernel_size, order, order, padding=kernel_size // 2))
    model = nn.Sequential(*modules).double()
    for _ in range(20):
        model(smooth_images(33, 4))
    return model.eval()


def complex_streams(z: Tensor) -> Tensor:
    """(B, C, M + 1, H, W), complex."""
    return torch.view_as_complex(z.unflatten(2, (-1, 2)).movedim(3, -1).contiguous())


@pytest.mark.parametrize(("in_order", "out_order"), [(None, 0), (None, 2), (0, 1), (1, 1), (2, 2), (2, 0)])
def test_convolution_against_complex_numbers(in_order: int | None, out_order: int) -> None:
    """`y_m = sum over m' of W_{m - m'} * x_m'`, pixel by pixel of the kernel, in complex arithmetic."""
    size, channels, features = 5, 2, 3
    layer = HarmonicConv2d(channels, features, size, in_order, out_order, padding=1).double()
    streams = 1 if in_order is None else in_order + 1
    x = double(2, channels, 7, 7) if in_order is None else double(2, channels, 2 * streams, 7, 7)
    z = x.to(torch.complex128)[:, :, None] if in_order is None else complex_streams(x)
    _, angle = polar(size)
    expected = torch.zeros(2, features, out_order + 1, 5, 5, dtype=torch.complex128)
    for m, n in itertools.product(range(out_order + 1), range(streams)):
        w = torch.zeros(features, channels, size * size, dtype=torch.complex128)
        for number, (i, j, ring) in enumerate(harmonic_terms(size, streams - 1, out_order)):
            if (i, j) == (m, n):
                wave = torch.from_numpy(profile(size, ring, m - n)) * torch.exp(1j * (m - n) * torch.from_numpy(angle))
                w += layer.profile[:, :, number, None] * (
                    wave / wave.abs().square().sum().sqrt() * (1 if m == n else 2**0.5 / 2**0.5)
                )
        w = (w * torch.exp(1j * layer.phase[:, :, m * streams + n, None])).unflatten(2, (size, size))
        part = z[:, :, n]
        expected[:, :, m] += torch.complex(
            nn.functional.conv2d(part.real, w.real, padding=1) - nn.functional.conv2d(part.imag, w.imag, padding=1),
            nn.functional.conv2d(part.real, w.imag, padding=1) + nn.functional.conv2d(part.imag, w.real, padding=1),
        )
    torch.testing.assert_close(complex_streams(layer(x)), expected)


@functools.cache
def quarters() -> nn.Sequential:
    return stack()


@pytest.mark.parametrize("size", range(5, 41))
def test_quarter_turns_at_every_size(size: int) -> None:
    model, x = quarters(), double(1, 1, size, size)
    with torch.no_grad():
        y = model(x)
        for turn in (1, 2, 3):
            error = (model(torch.rot90(x, turn, (-2, -1))) - rotate_harmonic(y, 90 * turn)).abs().max()
            assert float(error) <= 32 * 5 * torch.finfo(torch.float64).eps * float(y.abs().max())


def test_quarter_turns_through_blurs_and_strides() -> None:
    model = nn.Sequential(
        HarmonicConv2d(1, 2, 5, None, 1, padding=2),
        BlurPool2d(),
        HarmonicConv2d(2, 2, 4, 1, 2, stride=2, padding=1),
        HarmonicNonlinearity(2, 2),
        AvgBlurPool2d(),
        HarmonicMagnitude(),
        InvariantAvgPool2d(),
    ).double()
    x = double(2, 1, 24, 24)
    torch.testing.assert_close(model(torch.rot90(x, 1, (-2, -1))), model(x), rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="What works"):
        HarmonicConv2d(1, 2, 3, stride=2, padding=1)(torch.zeros(1, 1, 8, 8))


def test_other_turns_come_near_the_floor_of_the_test() -> None:
    """The error falls as the image is sampled finer, and stays within twice of what the usual test errs by itself."""
    model, angles = stack(order=1), (20, 45, 70, 90)

    def curve(size: int, interpolation: str) -> RotationErrorCurve:
        act = partial(rotate_harmonic, interpolation=interpolation)
        return rotation_error_curve(model, smooth_images(size, 2), angles, action_out=act, interpolation=interpolation)

    coarse, fine = (curve(size, "bicubic") for size in (17, 65))
    assert bool((fine.error[:3] < coarse.error[:3] / 4).all())
    assert bool((fine.error[:3] < 0.02).all())
    assert float(fine.error[3]) < 1e-12
    for size in (17, 33, 65):
        linear = curve(size, "bilinear")
        assert bool((linear.error[:3] < 2 * linear.floor[:3]).all())


def test_a_broken_order_is_seen() -> None:
    """The checker fails for a feature that turns as another order does."""
    model, x = stack(order=1), smooth_images(33, 2)
    wrong = lambda z, a: rotate_harmonic(z, a).flip(2)  # noqa: E731
    for action in (wrong, rotate):
        assert float(rotation_error_curve(model, x, (45,), action_out=action).error) > 0.3


def test_nonlinearity_and_norm_act_on_magnitudes() -> None:
    z, layer = double(2, 3, 4, 5, 5), HarmonicNonlinearity(3, 1).double()
    nn.init.uniform_(layer.bias, -1, 1)
    c = complex_streams(z)
    size = (c.abs() + layer.bias[:, :, None, None]).clamp(min=0)
    torch.testing.assert_close(complex_streams(layer(z)), size * c / c.abs())
    torch.testing.assert_close(harmonic_magnitude(z), c.abs())
    torch.testing.assert_close(HarmonicMagnitude()(z), c.abs().flatten(1, 2))

    norm = HarmonicBatchNorm(3, 1, eps=0.0, momentum=0.5).double()
    nn.init.uniform_(norm.weight, 1, 2)
    square = c.abs().square().mean((0, 3, 4))
    expected = c * (norm.weight / square.sqrt())[:, :, None, None]
    torch.testing.assert_close(complex_streams(norm(z)), expected)
    torch.testing.assert_close(norm.running_square, 0.5 + square / 2)
    norm.eval()
    torch.testing.assert_close(
        complex_streams(norm(z)), c * (norm.weight / norm.running_square.sqrt())[:, :, None, None]
    )


def test_zero_features_keep_training_alive() -> None:
    z = torch.zeros(1, 2, 4, 3, 3, requires_grad=True)
    layer = HarmonicNonlinearity(2, 1)
    nn.init.ones_(layer.bias)
    (HarmonicMagnitude()(z).sum() + layer(z).sum()).backward()
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_gradients_reach_profile_and_phase() -> None:
    profile_ = double(2, 2, len(harmonic_terms(3, 1, 1))).requires_grad_()
    phase = double(2, 2, 4).requires_grad_()
    x = double(1, 2, 4, 5, 5).requires_grad_()

    def convolved(profile_: Tensor, phase: Tensor, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x.flatten(1, 2), harmonic_filter(profile_, phase, 3, 1, 1))

    assert torch.autograd.gradcheck(convolved, (profile_, phase, x))
    model = stack(order=1, channels=2, layers=2).train()
    model(double(2, 1, 9, 9)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_kept_filters_are_those_of_the_parameters() -> None:
    model, x = stack(layers=2), double(1, 1, 9, 9)
    assert set(model[0].state_dict()) == {"profile", "phase"}
    with torch.no_grad():
        y = model(x)
        assert torch.equal(model(x), y)
        model[0].phase.add_(1.0)  # type: ignore[operator, union-attr]
        assert not torch.equal(model(x), y)


def test_phases_of_quarter_turns_are_exact() -> None:
    z = double(1, 2, 6, 5, 5)
    c = complex_streams(z)
    for turn in range(4):
        turned = torch.rot90(c, turn, (-2, -1)) * torch.tensor([1j ** (turn * m) for m in range(3)])[:, None, None]
        assert torch.equal(complex_streams(rotate_harmonic(z, 90 * turn)), turned)
    a = math.radians(30)
    alone = rotate_harmonic(torch.ones(1, 1, 4, 1, 1, dtype=torch.float64), 30)  # one pixel stays where it is
    torch.testing.assert_close(
        complex_streams(alone)[0, 0, 1, 0, 0], torch.tensor((1 + 1j) * cmath.exp(1j * a), dtype=c.dtype)
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HarmonicConv2d(1, 1, 1, None, 1), "orders of at most 0 for kernel_size=1"),
        (lambda: HarmonicConv2d(1, 1, 3, 3, 0), "orders of at most 2 for kernel_size=3"),
        (lambda: HarmonicConv2d(1, 1, 4, None, 3), "one of 6 pixels carries order 3"),
        (lambda: HarmonicConv2d(1, 1, 3, None, -1), "out_order >= 0"),
        (lambda: rotate(torch.zeros(1, 4, 5), 45), r"x of shape \(..., H, H\)"),
        (lambda: rotate(torch.zeros(5), 180), r"x of shape \(..., H, H\)"),
        (lambda: rotate(torch.zeros(4, 4), math.nan), "degrees to be a finite number, got nan"),
        (lambda: rotate(torch.zeros(4, 4), "45"), "degrees to be a finite number, got 45"),  # type: ignore[arg-type]
        (lambda: rotation_error_curve(nn.ReLU(), torch.ones(1, 1, 4, 4), ()), "angles to be a sequence of degrees"),
        (lambda: rotation_error_curve(nn.ReLU(), torch.ones(0, 1, 4, 4)), "images in x"),
        (lambda: HarmonicConv2d(1, 1, (3, 5)), "kernel_size alike"),  # type: ignore[arg-type]
        (lambda: HarmonicConv2d(1, 1, 3)(torch.zeros(1, 2, 4, 4)), r"x of shape \(B, 1, H, W\)"),
        (lambda: HarmonicConv2d(1, 1, 3, 1)(torch.zeros(1, 1, 4, 4)), r"x of shape \(B, 1, 4, H, W\)"),
        (lambda: HarmonicNonlinearity(2, 1)(torch.zeros(1, 2, 6, 4, 4)), r"z of shape \(B, 2, 4, H, W\)"),
        (lambda: HarmonicMagnitude()(torch.zeros(1, 2, 3, 4, 4)), r"z of shape \(B, C, 2M \+ 2, H, W\)"),
    ],
)
def test_errors_by_their_words(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


def test_half_precision_and_empty_batches_spoil_nothing() -> None:
    model = stack(layers=2).bfloat16()
    assert model(torch.randn(1, 1, 9, 9).bfloat16()).dtype == torch.bfloat16
    norm, bend = HarmonicBatchNorm(3, 1), HarmonicNonlinearity(3, 1)
    for dtype in (torch.float16, torch.bfloat16):
        z = (1000 * torch.randn(4, 3, 4, 5, 5)).to(dtype)  # squares beyond float16
        assert norm(z).dtype == harmonic_magnitude(z).dtype == dtype
        assert float(norm(z).detach().abs().amax()) > 1
        assert bool(bend(z).isfinite().all())
    kept = norm.running_square.clone()
    assert bool(kept.isfinite().all())
    norm(torch.zeros(0, 3, 4, 5, 5))
    assert torch.equal(norm.running_square, kept)


def test_the_settings_are_shown() -> None:
    layer = HarmonicConv2d(1, 2, 5, None, 1, padding=2, padding_mode="reflect")
    wanted = "HarmonicConv2d(1, 2, kernel_size=5, in_order=None, out_order=1, padding=(2, 2), padding_mode='reflect')"
    assert repr(layer) == wanted
    assert repr(HarmonicNonlinearity(2, 1)) == "HarmonicNonlinearity(2, order=1)"
    assert layer.exactness == "approximate"


def test_running_statistics_as_torch_keeps_them() -> None:
    """Averaged over all batches, by `update_bn`, made anew on a device and in a dtype, frozen by hand."""
    batches = [double(3, 2, 4, 5, 5) * scale for scale in (1, 2, 3)]
    square = torch.stack([complex_streams(z).abs().square().mean((0, 3, 4)) for z in batches]).mean(0)
    layer = HarmonicBatchNorm(2, 1, momentum=None, dtype=torch.float64, device="cpu")
    for z in batches:
        layer(z)
    torch.testing.assert_close(layer.running_square, square)
    layer = HarmonicBatchNorm(2, 1).double().eval()
    update_bn(batches, nn.Sequential(layer))
    torch.testing.assert_close(layer.running_square, square)
    assert layer.momentum == 0.1
    layer.train()
    for module in nn.Sequential(layer).modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    layer(batches[0])
    torch.testing.assert_close(layer.running_square, square)
    assert HarmonicBatchNorm(2, 1, device="meta").running_square.is_meta
    assert HarmonicNonlinearity(2, 1, device="meta", dtype=torch.float64).bias.dtype == torch.float64


def normalised(layer: HarmonicBatchNorm, z: Tensor) -> list[Tensor]:
    z.requires_grad_()
    y = layer(z)
    y.sin().sum().backward()
    return [y.detach(), z.grad, layer.weight.grad, layer.running_square]


def half_a_batch(index: int, folder: Path, z: Tensor) -> None:
    rank = index + 1
    torch.distributed.init_process_group("gloo", f"file://{folder / 'store'}", world_size=2, rank=rank)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(HarmonicBatchNorm(2, 1).double()))
    torch.save(normalised(model[0], z.chunk(2)[rank].clone()), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_synchronised_statistics_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    z = double(6, 2, 4, 3, 3) * torch.arange(1.0, 7.0).view(-1, 1, 1, 1, 1)
    other = torch.multiprocessing.spawn(half_a_batch, (tmp_path, z.detach()), nprocs=1, join=False)
    half_a_batch(-1, tmp_path, z.detach())
    other.join()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    y, slope, weight, square = normalised(HarmonicBatchNorm(2, 1).double(), z.detach().clone())
    torch.testing.assert_close([torch.cat((first[i], second[i])) for i in range(2)], [y, slope])
    torch.testing.assert_close([first[2] + second[2], first[3], second[3]], [weight, square, square])
    alone = nn.SyncBatchNorm.convert_sync_batchnorm(HarmonicBatchNorm(2, 1).double())  # without other processes
    torch.testing.assert_close(normalised(alone, z.detach().clone()), [y, slope, weight, square])
