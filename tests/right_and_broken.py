"""Forty models that keep their law and forty that break it subtly, of as many kinds, for the checkers to tell apart.

Each is a body, whose output moves as `law` says, and a head, whose output stays: a checker of invariance is given both,
one of equivariance the body alone, or, where that is the whole model, its numbers as weights of the input image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.convert import symmetrize
from equilayers.groups import CyclicRotation, Dihedral, PermutationGroup
from equilayers.nn import (
    BlurPool2d,
    GroupConv2d,
    GroupLinear,
    LiftingConv2d,
    LiftingLinear,
    MaxBlurPool2d,
    OrbitPool,
    PolyphasePool2d,
)
from planted import Does

C4, D4 = CyclicRotation(4), Dihedral(4)


class Judged(nn.Module):
    """A body and a head; a parameter, so that a model of functions has a dtype as well."""

    def __init__(self, body: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.dtype = nn.Parameter(torch.zeros(()))
        self.body, self.head = body, head or nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


class Statistics(nn.Module):
    """Mean, mean square and maximum over places and fibers of (B, C, ...), and a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * channels, 3)

    def forward(self, f: Tensor) -> Tensor:
        f = f.flatten(2)
        return self.linear(torch.cat((f.mean(2), f.square().mean(2), f.amax(2)), 1))


class Gate(nn.Module):
    """Each number (B, K) that a model puts out as a weight of the image: it moves along where the number stays."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        image = x.clone()[:, :1]
        return _mapped(lambda y: y.reshape(len(y), -1, 1, 1).to(image) * image, self.model(x))


def _mapped(change: Callable[[Tensor], Tensor], out: Any) -> Any:
    if isinstance(out, Tensor):
        return change(out)
    if isinstance(out, Mapping):
        return {key: _mapped(change, value) for key, value in out.items()}
    return [_mapped(change, value) for value in out]


class Linear(nn.Module):
    """A linear classifier of pixels, which is not invariant, times a factor."""

    def __init__(self, factor: float = 1.0, outputs: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(factor / 8 * torch.randn(outputs, 64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Sum(nn.Module):
    """The sum of what modules put out."""

    def __init__(self, *terms: nn.Module) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = sum(term(x) for term in self.terms)  # type: ignore[assignment]
        return total


class Filter(nn.Module):
    """A convolution with a radial filter, so that it commutes with rotations and mirrors; `off` is added to a tap."""

    def __init__(self, into: int = 1, out: int = 4, off: float = 0.0, mode: str = "constant") -> None:
        super().__init__()
        self.free, self.off, self.mode = nn.Parameter(torch.randn(3, out, into) / (2 * into**0.5)), off, mode

    def forward(self, x: Tensor) -> Tensor:
        distance = torch.tensor([[2, 1, 2], [1, 0, 1], [2, 1, 2]])
        weight = self.free[distance].permute(2, 3, 0, 1)
        weight = weight + self.off * F.one_hot(torch.tensor(1), 9).view(3, 3).to(weight)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), self.mode), weight)


class OneBuffer(nn.Module):
    """Writes every output to the same memory, as an engine does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.out = model, {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x)
        return self.out.setdefault((y.shape, y.dtype), torch.empty_like(y)).copy_(y)


class Remembers(nn.Module):
    """Keeps what it put out for a tensor, by its address, where another tensor may come to lie."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.kept = model, {}

    def forward(self, x: Tensor) -> Tensor:
        key = (x.data_ptr(), x.shape, x.dtype)
        if key not in self.kept:
            self.kept[key] = self.model(x)
        return self.kept[key]


class Places(nn.Module):
    """A learned embedding of places, this large."""

    def __init__(self, size: float, *shape: int) -> None:
        super().__init__()
        self.place = nn.Parameter(size * torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.place


class Tokens(nn.Module):
    """A transformer layer on patches of one pixel (B, C, H, W), with an embedding of places or without."""

    def __init__(self, channels: int, places: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(channels, 2, 2 * channels, batch_first=True, norm_first=True)
        self.place = Places(places, 64, channels)

    def forward(self, f: Tensor) -> Tensor:
        return self.layer(self.place(f.flatten(2).mT)).mT.unflatten(2, f.shape[2:])


class Excite(nn.Module):
    """Squeeze and excitation, over all places or the rows from `first` on."""

    def __init__(self, channels: int, first: int = 0) -> None:
        super().__init__()
        self.linear, self.first = nn.Linear(channels, channels), first

    def forward(self, f: Tensor) -> Tensor:
        weights = self.linear(f[..., self.first :, :].flatten(2).mean(2)).sigmoid()
        return f * weights.reshape(*weights.shape, *[1] * (f.ndim - 2))


class LeftInTraining(nn.Module):
    """A module that its owner puts into training mode in every call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, f: Tensor) -> Tensor:
        return self.module.train()(f)


@dataclass(frozen=True)
class Case:
    """A model, the group, the shape of one input, and how the body's output moves: None where that is the output."""

    make: Callable[[], Judged]
    group: str
    shape: tuple[int, ...]
    law: str | None

    def model(self, dtype: torch.dtype, *, equivariant: bool = False) -> nn.Module:
        """The whole model, or the body: weights from one seed, in eval mode."""
        torch.manual_seed(1)
        model = self.make().eval().to(dtype)
        return model if not equivariant else model.body if self.law else Gate(model)

    def x(self) -> Tensor:
        return torch.randn(4, *self.shape, generator=torch.Generator().manual_seed(2))


def net(
    *layers: Callable[[], nn.Module],
    out: int = 4,
    group: str = "C4",
    shape: tuple[int, ...] = (1, 8, 8),
    law: str = "image",
) -> Case:
    """Layers, whose output (B, `out`, ...) moves by the law, and statistics of it."""

    def make() -> Judged:
        return Judged(nn.Sequential(*(layer() for layer in layers)), Statistics(out))

    return Case(make, group, shape, law)


def whole(make: Callable[[], nn.Module], group: str = "C4", shape: tuple[int, ...] = (1, 8, 8)) -> Case:
    """A model that is to be invariant as a whole."""
    return Case(lambda: Judged(make()), group, shape, None)


def does(function: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Does(function)


def lift(out: int = 4, kernel: int = 3, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: LiftingConv2d(C4, 1, out, kernel, **settings)


def radial(into: int = 1, out: int = 4, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: Filter(into, out, **settings)


def invariant(x: Tensor) -> Tensor:
    """Three numbers that no permutation of pixels changes."""
    x = x.flatten(1)
    return torch.stack([x.amax(1), x.square().mean(1), x.relu().mean(1)], 1)


def head(wrong: Callable[[], nn.Module] | None, change: Callable[[Tensor], Any]) -> Case:
    """What is made of an invariant output; with a wrong part of a thousandth."""
    return whole(
        lambda: nn.Sequential(Sum(Does(invariant), *([wrong()] if wrong else [])), Does(change)),
    )


def some(share: float = 1e-3) -> Callable[[], nn.Module]:
    return lambda: Linear(share)


def masked(value: float) -> Callable[[Tensor], Tensor]:
    return lambda y: torch.cat((y, torch.full_like(y[:, :1], value)), 1)


def lowest(y: Tensor) -> Tensor:
    return torch.cat((y, torch.full_like(y[:, :1], torch.finfo(y.dtype).min)), 1)


def scaled(x: Tensor) -> Tensor:
    """Scales its input in place, as a preprocessing of pixels does."""
    x /= 4
    return x


def at_the_maximum(x: Tensor) -> Tensor:
    """The square of the first maximum; rounding makes ties, which the order of pixels decides."""
    flat = x.flatten(1)
    value = flat.square().gather(1, (flat * 2).round().argmax(1, keepdim=True))
    return torch.cat((value, -value, value.sqrt()), 1)


def summed(f: Tensor) -> Tensor:
    """Sums from all four sides."""
    return sum((f.rot90(k, (-2, -1)).cumsum(-1).rot90(-k, (-2, -1)) for k in range(4)), torch.zeros_like(f))


def bright(threshold: float) -> Callable[[Tensor], Tensor]:
    """Values above a threshold, those of the upper half twice."""

    def forward(x: Tensor) -> Tensor:
        weight = torch.ones_like(x)
        weight[..., : x.shape[-2] // 2, :] = 1.5
        return x + (x - threshold).relu() * (weight - 1)

    return forward


def one_sample(x: Tensor) -> Tensor:
    """The darkest sample is mixed with itself, shifted by one."""
    darkest = x.flatten(1).mean(1).argmin()
    return torch.where((torch.arange(len(x)) == darkest).view(-1, 1, 1, 1), x + 0.01 * x.roll(1, -1) * x, x)


def one_channel(f: Tensor) -> Tensor:
    """Of all channels the last is read from left to right."""
    return torch.cat((f[:, :-1], f[:, -1:].cumsum(-1)), 1)


def deep(off: float) -> list[Callable[[], nn.Module]]:
    """A plain residual network of twelve convolutions, one filter in it not quite symmetric."""

    def block(i: int) -> Callable[[], nn.Module]:
        return lambda: Sum(nn.Identity(), nn.Sequential(nn.Tanh(), Filter(4, 4, off=off if i == 5 else 0.0)))

    return [radial(), *(block(i) for i in range(12))]


def plain_on_fibers() -> nn.Module:
    return nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0))


POINTS = PermutationGroup([[1, 2, 3, 4, 5, 0]])  # one set of six points
LIFTED = {"law": "regular"}
RIGHT: dict[str, Case] = {
    "lifting convolution": net(lift(padding=1), nn.Tanh, **LIFTED),
    "group convolution of rotations and mirrors": net(
        lambda: LiftingConv2d(D4, 1, 3, 3), nn.ReLU, lambda: GroupConv2d(D4, 3, 4, 3), group="D4", **LIFTED
    ),
    "lifting linear layer": net(
        lambda: LiftingLinear(C4, (1, 8, 8), 8), nn.ReLU, lambda: GroupLinear(C4, 8, 4), **LIFTED
    ),
    "stride 2 on a symmetric grid": net(lift(kernel=4, stride=2, padding=1), nn.ReLU, **LIFTED),
    "stride 2 on an odd map": net(lift(stride=2, padding=1), shape=(1, 9, 9), **LIFTED),
    "blur pool": net(lift(padding=1), nn.ReLU, BlurPool2d, **LIFTED),
    "max blur pool on an odd map": net(radial(), MaxBlurPool2d, shape=(1, 9, 9)),
    "orbit pool": net(lift(), nn.ReLU, OrbitPool),
    "batch normalisation with statistics": net(lift(), lambda: nn.BatchNorm3d(4), nn.ReLU, **LIFTED),
    "residual blocks and dropout, switched off": net(
        lift(padding=1),
        lambda: Sum(nn.Identity(), GroupConv2d(C4, 4, 4, 3, padding=1)),
        nn.Dropout3d,
        **LIFTED,
    ),
    "group normalisation": net(lift(), lambda: nn.GroupNorm(2, 4), nn.GELU, **LIFTED),
    "radial filters, padded by reflection": net(radial(mode="reflect"), nn.ReLU, radial(4, 4, mode="reflect")),
    "twelve blocks": net(*deep(0.0)),
    "squeeze and excitation": net(radial(), lambda: Excite(4)),
    "transformer without places": net(radial(), lambda: Tokens(4)),
    "embedding of distances from the middle": net(radial(), does(lambda f: f + radii(f))),
    "average pool of windows that tile": net(radial(), lambda: nn.AvgPool2d(2)),
    "ceil_mode where nothing is left over": net(radial(), lambda: nn.MaxPool2d(2, ceil_mode=True)),
    "padding alike on all sides": net(lambda: nn.ZeroPad2d(1), radial(), nn.Tanh),
    "transposed radial filter": net(radial(), does(lambda f: F.interpolate(f, scale_factor=2)), radial(4, 4)),
    "sums from all four sides": net(radial(), does(summed)),
    "median filter": net(
        radial(), does(lambda f: F.unfold(f, 3).unflatten(1, (4, 9)).median(2)[0].unflatten(2, (6, 6)))
    ),
    "maxout": net(radial(1, 8), does(lambda f: f.unflatten(1, (4, 2)).amax(2))),
    "maps that are no squares": net(radial(), lambda: nn.InstanceNorm2d(4), nn.ELU, shape=(1, 6, 8)),
    "circular convolution": net(lambda: nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), nn.ReLU, group="T8"),
    "stride 2 under even shifts": net(
        lambda: nn.Conv2d(1, 4, 4, 2, 1, padding_mode="circular"), nn.ReLU, group="T4xT4:-2"
    ),
    "polyphase pool": whole(
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular"), PolyphasePool2d(), Statistics(4)),
        "T8",
    ),
    "spectrum": whole(lambda: nn.Sequential(Does(lambda x: torch.fft.fft2(x.float()).abs().to(x)), Linear()), "T8"),
    "average over the group": whole(lambda: symmetrize(nn.Sequential(Linear(), nn.Tanh()), C4)),
    "sorted pixels": whole(lambda: nn.Sequential(Does(lambda x: x.flatten(1).sort(1)[0]), Linear())),
    "writes to its input": whole(lambda: nn.Sequential(Does(scaled), Does(invariant))),
    "one buffer for all outputs": whole(lambda: OneBuffer(Does(invariant))),
    "one logit": head(None, lambda y: y[:, :1] - y[:, 1:2]),
    "dictionary of nested outputs": head(None, lambda y: {"a": y, "more": [{"b": y[:, :2]}, y.square()]}),
    "a masked class": head(None, masked(-1e4)),
    "the lowest number there is": head(None, lowest),
    "quantised outputs": head(None, lambda y: (8 * y).round() / 8),
    "a large constant beside small outputs": head(None, lambda y: torch.cat((y, 0 * y + 1000), 1)),
    "tiny outputs": head(None, lambda y: 1e-4 * y),
    "probabilities": head(None, lambda y: y.softmax(1)),
}


def radii(f: Tensor) -> Tensor:
    line = torch.linspace(-1, 1, f.shape[-1], dtype=f.dtype)
    return (line**2 + line[:, None] ** 2).cos()


BROKEN: dict[str, Case] = {
    "stride 2 on an even map": net(lambda: nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU),
    "radial filter with stride 2 on an even map": net(radial(), does(lambda f: f[..., ::2, ::2])),
    "max pool, kernel 3 and stride 2": net(radial(), lambda: nn.MaxPool2d(3, 2)),
    "average pool on an odd map, a row left out": net(radial(), lambda: nn.AvgPool2d(2), shape=(1, 9, 9)),
    "ceil_mode on an odd map": net(radial(), lambda: nn.MaxPool2d(2, ceil_mode=True), shape=(1, 9, 9)),
    "zeros on two sides": net(lambda: nn.ZeroPad2d((0, 1, 0, 1)), radial(), does(lambda f: F.avg_pool2d(f, 2, 1))),
    "reflection on one side": net(radial(), does(lambda f: F.pad(f, (1, 0, 1, 0), "reflect")), radial(4, 4)),
    "one tap of a filter off by a thousandth": net(radial(off=1e-3), nn.ReLU),
    "one filter among sixteen": net(radial(1, 16), does(one_channel), nn.Tanh, out=16),
    "twelve blocks, one tap off": net(*deep(3e-4)),
    "embedding of places, small": net(radial(), lambda: Places(1e-3, 8, 8)),
    "embedding of tokens, small": net(radial(), lambda: Tokens(4, 1e-3)),
    "squeeze over all rows but one": net(radial(), lambda: Excite(4, 1)),
    "softmax of rows": net(radial(), does(lambda f: f.softmax(-1))),
    "sums from the left": net(radial(), does(lambda f: f + 1e-3 * f.cumsum(-1))),
    "interpolation to an odd size": net(radial(), does(lambda f: F.interpolate(f, (5, 5)))),
    "windows that do not tile": net(radial(), does(lambda f: f + F.pad(F.avg_pool2d(f, 3, 3), (0, 6, 0, 6)))),
    "fiber convolved as an axis": net(lift(), nn.ReLU, plain_on_fibers, **LIFTED),
    "maximum over three of four": net(lift(), does(lambda f: f[:, :, :3].amax(2))),
    "a fiber weighed by its place": net(
        lift(), does(lambda f: f * torch.tensor([1, 1, 1, 1.001]).to(f).view(1, 1, 4, 1, 1)), **LIFTED
    ),
    "rotations, but no mirrors": net(lift(), nn.ReLU, OrbitPool, radial(4, 4), group="D4"),
    "half turns, but no quarter turns": net(lambda: LiftingConv2d(CyclicRotation(2), 1, 4, 3), nn.ReLU, OrbitPool),
    "shifts along the width alone": net(
        lambda: nn.ReflectionPad2d((0, 0, 1, 1)),
        lambda: nn.CircularPad2d((1, 1, 0, 0)),
        lambda: nn.Conv2d(1, 4, 3),
        nn.ReLU,
        group="T4xT4:-2",
    ),
    "shifts by two, but not by one": net(
        lambda: nn.Conv2d(1, 4, 4, 2, 1, padding_mode="circular"),
        does(lambda f: F.interpolate(f, scale_factor=2)),
        group="T8",
    ),
    "zeros in the place of what comes around": net(radial(), nn.ReLU, group="T8"),
    "values above a threshold": net(does(bright(2.4)), radial()),
    "one sample alone": net(does(one_sample), radial()),
    "samples that see each other": whole(lambda: nn.Sequential(Does(lambda x: x - x.mean(0)), Does(invariant))),
    "batch statistics of pixels": whole(
        lambda: nn.Sequential(nn.Flatten(), LeftInTraining(nn.BatchNorm1d(64)), Does(invariant))
    ),
    "dropout left on": whole(lambda: nn.Sequential(Does(invariant), LeftInTraining(nn.Dropout(0.1)))),
    "one buffer for all outputs": whole(lambda: OneBuffer(Linear())),
    "outputs kept by address": whole(lambda: Remembers(Linear())),
    "writes to its input and reads places": whole(
        lambda: nn.Sequential(Does(scaled), Sum(Does(invariant), Linear(1e-3)))
    ),
    "the first of equal maxima": whole(lambda: Sum(Does(invariant), Does(at_the_maximum))),
    "one logit": head(some(), lambda y: y[:, :1] - y[:, 1:2]),
    "one of nested outputs": head(
        some(), lambda y: {"a": y.detach()[:, :0].sum(1) + y.new_ones(len(y)), "b": [{"c": y}]}
    ),
    "a masked class": head(some(), masked(-1e4)),
    "the lowest number there is": head(some(), lowest),
    "quantised outputs": head(some(0.2), lambda y: (8 * y).round() / 8),
    "a large constant beside small outputs": head(some(1e-2), lambda y: y + 1000),
}
