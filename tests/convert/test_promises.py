"""What `report.complete` promises, at every size: what is replaced holds it, what does not hold it is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.convert import to_antialiased, to_equivariant
from equilayers.groups import CyclicRotation
from planted import Does
from refusals import assert_refused

C4 = CyclicRotation(4)
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def ended(*layers: nn.Module, read: int = 8) -> nn.Sequential:
    """Layers between two convolutions, then a linear head."""
    head = nn.Conv2d(read, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, *head)


def worst(model: nn.Module, sizes: tuple[int, ...] = (28, 29, 30, 31, 32, 33)) -> float:
    """The largest error over some sizes, by how far outputs of several samples lie apart."""
    model, found = model.double().eval(), 0.0
    for size in sizes:
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        with torch.no_grad():
            y, *moved = (model(C4.act(g, x)) for g in range(4))
        found = max(found, float(max((m - y).abs().max() for m in moved) / (y - y[:1]).abs().max()))
    return found


def scaled(**settings: Any) -> Callable[[Tensor], Tensor]:
    return lambda f: F.interpolate(f, **settings)


ones = torch.ones(8, 1, 2, 2)
CALLED: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool2d ": lambda f: F.max_pool2d(f, 2),
    "max_pool2d_with_indices ": lambda f: F.max_pool2d(f, 3, 2, return_indices=True)[0],
    "avg_pool2d ": lambda f: F.avg_pool2d(f, 2),
    "lp_pool2d ": lambda f: F.lp_pool2d(f, 2.0, 2),
    "conv2d ": lambda f: F.conv2d(f, ones.to(f), stride=2, groups=8),
    "unfold ": lambda f: F.unfold(f, 2, stride=2).unflatten(2, (f.shape[-2] // 2, -1))[:, ::4],
    "fractional": lambda f: F.fractional_max_pool2d(f, 2, output_ratio=(0.5, 0.5)),
    "a slice": lambda f: f[..., ::2, ::2],
    "interpolate": scaled(scale_factor=1.5),
    "interpolate: its": scaled(scale_factor=0.5, mode="bilinear"),
    "interpolate: its pixels": scaled(size=(20, 20)),
    "pixel_shuffle": lambda f: F.pixel_shuffle(f, 2).repeat(1, 4, 1, 1),
    "pad": lambda f: F.pad(f, (0, f.shape[-1] % 2, 0, f.shape[-2] % 2)),
}


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("what", CALLED)
def test_functions_that_break_it_at_some_sizes_are_refused_at_any(what: str, size: int) -> None:
    x = X if size == 32 else F.pad(X, (0, 1, 0, 1))
    _, report = to_equivariant(ended(Does(CALLED[what])), C4, x)
    assert {e.path: e.reason for e in report.of("refused")}["1"].startswith(what)


ZERO = nn.ZeroPad2d((0, 1, 0, 1))
HELD: dict[str, Callable[[], nn.Module]] = {
    "LPPool2d": lambda: nn.LPPool2d(2, 2),
    "LPPool2d, overlapping": lambda: nn.LPPool2d(2.0, 3, 2),
    "nearest 1.5": lambda: nn.Upsample(scale_factor=1.5),
    "nearest 0.5": lambda: nn.Upsample(scale_factor=0.5),
    "bilinear 1.5": lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "bilinear 0.7": lambda: nn.UpsamplingBilinear2d(scale_factor=0.7),
    "bicubic 2": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "nearest to a size": lambda: nn.Upsample((20, 20)),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(5),
    "adaptive maxima": lambda: nn.AdaptiveMaxPool2d(4),
    "F.adaptive": lambda: Does(lambda f: F.adaptive_max_pool2d(f, 3)),
    "F.max_pool2d without a stride": lambda: Does(lambda f: F.max_pool2d(f, 3, 1, 1)),
    "to the size of the input": lambda: Does(
        lambda f: F.interpolate(f[..., 1:-1, 1:-1], f.shape[-2:], mode="bilinear")
    ),
    "by a whole factor": lambda: Does(scaled(scale_factor=2)),
    "over the whole map": lambda: Does(lambda f: F.avg_pool2d(f, f.shape[-2:]).expand_as(f)),
}


@pytest.mark.parametrize("what", HELD)
def test_what_is_complete_holds_at_every_size(what: str) -> None:
    made, report = to_equivariant(ended(HELD[what]()), C4, X)
    assert report.complete, str(report)
    assert worst(made) < 1e-10


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.FractionalMaxPool2d(2, output_ratio=0.5), "at random places"),
        (nn.ConstantPad2d((0, 1, 0, 1), 0.0), "pads more on one side"),
        (nn.ReflectionPad2d((1, 1, 0, 0)), "pads more on one side"),
        (nn.LocalResponseNorm(3), "exchanges the planes"),
    ],
)
def test_modules_that_break_it_are_refused(layer: nn.Module, words: str) -> None:
    _, report = to_equivariant(ended(layer), C4, X)
    assert words in {e.path: e.reason for e in report.of("refused")}["1"]


def test_power_pools_are_blurred() -> None:
    model = nn.Sequential(nn.LPPool2d(2.0, 2), nn.LPPool2d(2.0, 3, 1), nn.FractionalMaxPool2d(2, output_ratio=0.5))
    made, report = to_antialiased(model)
    assert [entry.done for entry in report.entries] == ["replaced", "kept", "refused"]
    for size in (9, 10):
        x = torch.rand(1, 1, size, size) + 1
        assert made[:2](x).shape == model[:2](x).shape


class Sized(nn.Module):
    """Takes the sizes that it is told."""

    def __init__(self, takes: Callable[[int], bool]) -> None:
        super().__init__()
        self.takes = takes

    def forward(self, x: Tensor) -> Tensor:
        if not self.takes(x.shape[-1]):
            raise IndexError(x.shape[-1])
        return x


@pytest.mark.parametrize(
    ("takes", "sizes"),
    [
        (lambda size: True, {32: 2, 33: 2}),
        (lambda size: size % 16 == 0, {32: 2}),
        (lambda size: size == 32, {32: 1}),
    ],
)
def test_sizes_of_each_parity(takes: Callable[[int], bool], sizes: dict[int, int]) -> None:
    _, report = to_equivariant(nn.Sequential(Sized(takes), *ended()), C4, X)
    assert report.complete
    assert report.verified[0] == (32, 32)
    for parity in (0, 1):
        found = {size for size, _ in report.verified if size % 2 == parity}
        assert len(found) == sizes.get(32 + parity, 0)
    last = str(report).splitlines()[-1]
    assert last.startswith("verified at 32x32")
    assert last.endswith("alone: it takes no other tried") == (len(report.verified) == 1)


def test_what_breaks_at_another_size_alone_is_seen() -> None:
    at_odd_sizes = Does(lambda f: f.flip(-1) if f.shape[-1] % 2 and f.shape[-1] > 8 else f)
    _, report = to_equivariant(ended(at_odd_sizes), C4, X)
    entry, *_ = report.of("refused")
    assert entry.reason.startswith("at 21x21 what it puts out is not the same")
    assert report.verified == ((32, 32), (26, 26))


def raises(error: Exception) -> nn.Module:
    def run(x: Tensor) -> Tensor:
        raise error

    return nn.Sequential(nn.Conv2d(3, 8, 3), Does(run))


@pytest.mark.parametrize("model", [nn.Bilinear(3, 3, 3), raises(IndexError("7")), raises(AssertionError())], ids=str)
def test_models_that_do_not_run_are_one_sentence(model: nn.Module) -> None:
    whole = nn.Sequential(nn.Conv2d(3, 3, 3), model)
    words = ("x that the model takes", "and it raised ", "one input")
    assert_refused(lambda: to_equivariant(whole, C4, X), ValueError, "to_equivariant", *words)
