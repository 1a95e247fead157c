"""Converted layers that change the size of maps or put out images: values, laws, plain forms, weights taken over."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from conv_laws import misses, worst
from conversions import Wired
from equilayers.convert import to_equivariant, to_plain
from equilayers.convert._equivariant.fiber_layers import FiberConv2d, FiberMean
from equilayers.convert._equivariant.map_layers import Aligned, FiberConvTranspose2d, FiberMeanConv2d
from equilayers.functional.strides import split
from equilayers.groups import Group
from equilayers.nn import BlurPool2d, GroupConv2d, GroupConvTranspose2d, LiftingConv2d, set_algorithm
from equilayers.testing import assert_equivariant, assert_invariant
from refusals import assert_refused
from strategies import C4, D1, D4, filled, name

GROUPS = pytest.mark.parametrize("group", [C4, D1, D4], ids=name)
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def strided(group: Group) -> nn.Module:
    conv = GroupConv2d(group, 2, 3, 3, 2, 1)
    before, conv.spec = split(conv.spec)
    return nn.Sequential(Aligned(before), FiberConv2d(conv))


LAYERS: dict[str, Callable[[Group], nn.Module]] = {
    "strided": strided,
    "transposed": lambda g: FiberConvTranspose2d(GroupConvTranspose2d(g, 2, 3, 4, 2, 1)),
    "transposed, blurred": lambda g: FiberConvTranspose2d(GroupConvTranspose2d(g, 2, 3, 3, 2), (True, True)),
    "transposed, mean": lambda g: FiberConvTranspose2d(GroupConvTranspose2d(g, 2, 3, 3, 2), (True, True), mean=True),
    "mean": lambda g: FiberMeanConv2d(GroupConv2d(g, 2, 3, 3, padding=1)),
    "mean of many channels": lambda g: FiberMeanConv2d(GroupConv2d(g, 2, 17, 3, padding=1, padding_mode="reflect")),
    "mean, tap by tap": lambda g: FiberMeanConv2d(GroupConv2d(g, 9, 3, 3, padding=2, dilation=2)),
    "mean, spread": lambda g: FiberMeanConv2d(GroupConv2d(g, 2, 3, 3, padding=1, bias=False), spread=True),
}


def fields(layer: nn.Module) -> int:
    return next(m.in_channels for m in layer.modules() if isinstance(m, GroupConv2d | GroupConvTranspose2d))


@GROUPS
@pytest.mark.parametrize("what", LAYERS)
def test_laws_and_plain_forms(what: str, group: Group) -> None:
    """To rounding, and to the last bit where that is asked for."""
    layer = LAYERS[what](group).double()
    images = (what.startswith("mean") and "spread" not in what) or ("mean" in what and "transposed" in what)

    def on_features(f: Tensor) -> Tensor:
        y = layer(f.flatten(1, 2))
        return y if images else y.unflatten(1, (-1, group.order))

    for size in (8, 9):
        f = filled((2, fields(layer), group.order, size, size), torch.float64)
        plain, y = to_plain(layer), layer(f.flatten(1, 2))
        assert not any(type(m).__module__.startswith("equilayers") for m in plain.modules())
        torch.testing.assert_close(plain(f.flatten(1, 2)), y, atol=1e-12, rtol=1e-12)
        assert worst(on_features, group, f) <= 32
        with torch.no_grad():
            torch.testing.assert_close(layer(f.flatten(1, 2)), y)  # with filters that are kept
        set_algorithm(layer, "bitwise")
        torch.testing.assert_close(layer(f.flatten(1, 2)), y, atol=1e-12, rtol=1e-12)
        assert misses(on_features, group, f) == []
        set_algorithm(layer, "auto")


def test_values() -> None:
    """A blurred transposed convolution is that of the larger map and the mean of four neighbours; means of filters."""
    x = filled((2, 16, 5, 5), torch.float64)
    conv = GroupConvTranspose2d(D4, 2, 3, 3, 2).double()
    large = conv(x.unflatten(1, (2, 8))).flatten(1, 2)
    assert large.shape[-1] == 11
    blurred = FiberConvTranspose2d(conv, (True, True))(x)
    torch.testing.assert_close(blurred, nn.AvgPool2d(2, 1)(large))
    images = FiberConvTranspose2d(conv, (True, True), mean=True)(x)
    torch.testing.assert_close(images, FiberMean(8)(blurred))
    for conv in (GroupConv2d(D4, 2, 3, 3, padding=1).double(), LiftingConv2d(D4, 16, 3, 3, padding=1).double()):
        mean = FiberMean(8)(FiberConv2d(conv)(x))
        torch.testing.assert_close(FiberMeanConv2d(conv)(x), mean)
        torch.testing.assert_close(FiberMeanConv2d(conv, spread=True)(x), mean.repeat_interleave(8, 1))


class Residual(nn.Module):
    """A decoder whose last convolution adds to what it reads, as in MONAI's U-Net."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.grow = nn.ConvTranspose2d(16, channels, 3, 2, 1, output_padding=1)
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grow(torch.relu(self.stem(x)))
        return y + self.last(torch.relu(y))


@pytest.mark.parametrize("downsampling", ["auto", "symmetric-stride", "blur"])
@pytest.mark.parametrize("channels", [5, 12])
def test_images_that_something_reads(channels: int, downsampling: str) -> None:
    """Fewer channels than a field has planes are images, lifted again; of others the last mean is in every plane."""
    made, report = to_equivariant(Residual(channels), D4, X, downsampling=downsampling)
    assert report.complete, str(report)
    body = made if channels == 5 else made[0]
    assert isinstance(body.last, FiberMeanConv2d)
    assert (type(body.last.conv), body.last.spread) == (
        (LiftingConv2d, False) if channels == 5 else (GroupConv2d, True)
    )
    assert isinstance(body.grow, FiberConvTranspose2d)
    assert body.grow.mean == (channels == 5)
    kinds = {type(m) for m in made.modules()}
    assert (BlurPool2d in kinds, Aligned in kinds) == (downsampling == "blur", downsampling != "blur")
    for size in (14, 15):
        x = torch.randn(2, 3, size, size)
        assert made(x).shape == Residual(channels)(x).shape
        assert_equivariant(made, x, D4)
    torch.testing.assert_close(to_plain(made)(x), made(x))


def test_images_that_are_read_by_a_head_as_well() -> None:
    """Its mean over the map is a number for each field."""

    def run(m: Wired, x: Tensor) -> dict[str, Tensor]:
        y = m.last(m.stem(x).relu())
        return {"image": y, "logits": m.head(y.mean((-2, -1)))}

    parts = {"stem": nn.Conv2d(3, 16, 3), "last": nn.Conv2d(16, 5, 3), "head": nn.Linear(5, 2)}
    made, report = to_equivariant(Wired(run, **parts), D4, X)
    assert report.complete, str(report)
    x = torch.randn(2, 3, 13, 13)
    assert_equivariant(lambda x: made(x)["image"], x, D4)
    assert_invariant(lambda x: made(x)["logits"], x, D4)


# kernel_size, stride, padding, output_padding, dilation
TRANSPOSED = [(4, 2, 1, 0, 1), (3, 2, 1, 1, 1), (2, 2, 0, 1, 1), (3, 3, 0, 2, 1), (3, 2, 2, 0, 2), (3, 1, 0, 0, 1)]


@pytest.mark.parametrize("settings", TRANSPOSED, ids=str)
def test_transposed_convolutions_of_every_setting(settings: tuple[int, ...]) -> None:
    kernel, stride, padding, extra, dilation = settings
    grow = nn.ConvTranspose2d(16, 8, kernel, stride, padding, extra, dilation=dilation)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), grow, nn.ReLU(), nn.Conv2d(8, 2, 1))
    for options in ({}, {"from_weights": True}):
        made, report = to_equivariant(model, D4, X, **options)
        if options and kernel == 2:
            assert "filters with a middle" in report.of("refused")[0].reason
            continue
        assert report.complete, str(report)
        for size in (9, 10):
            x = torch.randn(2, 3, size, size)
            assert made(x).shape == model(x).shape
            assert_equivariant(made, x, D4)


def test_weights_of_transposed_convolutions_are_taken_over() -> None:
    """Those of an equivariant network are kept; of another they are the mean over the group."""
    tied = nn.Sequential(
        LiftingConv2d(C4, 3, 2, 3),
        nn.ReLU(),
        GroupConvTranspose2d(C4, 2, 2, 4, 2, 1),
        nn.ReLU(),
        GroupConvTranspose2d(C4, 2, 2, 3),
    )
    plain = nn.Sequential(
        *(m for m in to_plain(tied).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.ReLU))
    )
    x = filled((2, 3, 9, 9), torch.float32)
    expected = plain(x).unflatten(1, (2, 4))
    head = nn.ConvTranspose2d(8, 2, 3)  # to two images: the mean of each fiber
    with torch.no_grad():
        head.weight.copy_(plain[-1].weight.unflatten(1, (2, 4)).mean(2))
        head.bias.copy_(tied[-1].bias)
    plain[-1] = head
    made, report = to_equivariant(plain, C4, x, from_weights=True)
    assert report.complete, str(report)
    torch.testing.assert_close(made(x), expected.mean(2))
    torch.testing.assert_close(plain(x), expected.mean(2))
    distances = [entry.distance for entry in report.entries if entry.distance is not None]
    assert max(distances) < 1e-6
    nn.init.normal_(plain[-1].weight)
    averaged = torch.stack([C4.act(C4.inverse(g), plain(C4.act(g, x))) for g in range(4)]).mean(0)
    made, report = to_equivariant(plain, C4, x, from_weights=True)
    torch.testing.assert_close(made(x), averaged)
    assert report.entries[-1].distance is None or report.entries[-1].distance > 0.3


def test_what_is_refused() -> None:
    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.grow = nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            f = torch.relu(self.stem(x))
            return self.grow(f, [2 * f.shape[-2], 2 * f.shape[-1]])

    def reason(model: nn.Module) -> str:
        return to_equivariant(model, C4)[1].of("refused")[0].reason

    assert "it was asked for an output of (124, 124), and gives (123, 123) by itself" in reason(Asked())
    stem = nn.Conv2d(3, 8, 3)
    assert "is not square" in reason(nn.Sequential(stem, nn.ConvTranspose2d(8, 8, (3, 2), 2)))
    assert "no middle" in reason(nn.Sequential(stem, nn.ConvTranspose2d(8, 8, 3, 2, 2, 1, dilation=2)))
    words = ("downsampling in {'auto', 'symmetric-stride', 'blur'}", "'stride'")
    assert_refused(lambda: to_equivariant(stem, C4, downsampling="stride"), ValueError, "to_equivariant", *words)


def test_every_stride_of_a_classifier_is_exact_at_every_size() -> None:
    strides: list[nn.Module] = [nn.Conv2d(3, 8, 7, 2, 3), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 1, 2)]
    strides += [nn.Conv2d(16, 16, 2, 2), nn.Conv2d(16, 16, 3, 2, 1, groups=16)]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    model = nn.Sequential(*(layer for conv in strides for layer in (conv, nn.Tanh())), *head)
    made, report = to_equivariant(model, D4, torch.randn(2, 3, 64, 64))
    assert report.complete, str(report)
    for size in range(48, 64, 3):
        assert_invariant(made, torch.randn(2, 3, size, size), D4)
