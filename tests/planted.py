"""Exact networks with a place for a fault, the faults to be planted there, and what is to be said about them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.groups import Group
from equilayers.nn import GroupConv2d, InvariantAvgPool2d, LiftingConv2d, OrbitPool
from equilayers.testing import locate_break
from strategies import C4, filled

FIELDS, SIZE = 4, 8


def image(size: int = SIZE, batch: int = 3, channels: int = 1) -> Tensor:
    return torch.randn(batch, channels, size, size)


def located(model: Callable[[Tensor], Any], x: Tensor, group: Group = C4) -> tuple[str, ...]:
    """Path, name and kind of the break that is found; nothing where none is."""
    found = locate_break(model, x, group)
    return (found.path, found.name, found.kind) if found else ()


X = filled((4, 1, SIZE, SIZE), torch.float32, seed=1)
WEIGHT = filled((3, SIZE**2), torch.float32, seed=1) / 4


def plain(x: Tensor) -> Tensor:
    """A linear classifier, which is not invariant."""
    return x.flatten(1) @ WEIGHT.to(x).T


def invariant(x: Tensor) -> Tensor:
    """Three outputs that are invariant to the last bit."""
    return torch.stack([x.amax((1, 2, 3)), x.abs().amax((1, 2, 3)), -x.amin((1, 2, 3))], 1)


def one_buffer() -> Callable[[Tensor], Tensor]:
    """The linear classifier, as an engine that writes every output to one buffer."""
    out = torch.empty(4, 3)
    return lambda x: out.copy_(plain(x))


class Output:
    """What networks of transformers return."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Does(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(nn.Module):
    """Bitwise invariant but for the fault, which is fed a regular feature (B, 4, |G|, H, W)."""

    def __init__(self, group: Group, fault: nn.Module | None = None, algorithm: str = "bitwise") -> None:
        super().__init__()
        self.lift = LiftingConv2d(group, 1, FIELDS, 3, padding=1, algorithm=algorithm)
        self.fault = fault or nn.Identity()
        self.conv = GroupConv2d(group, FIELDS, FIELDS, 3, padding=1, algorithm=algorithm)
        self.pool, self.mean, self.head = OrbitPool(), InvariantAvgPool2d(), nn.Linear(FIELDS, 3)

    def forward(self, x: Tensor) -> Tensor:
        f = self.fault(F.relu(self.lift(x)))
        return self.head(self.mean(self.pool(F.relu(self.conv(f)))))


class Planes(nn.Module):
    """Layers between planes, (B, 16, H, W)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, f: Tensor) -> Tensor:
        return self.inner(f.flatten(1, 2)).unflatten(1, (FIELDS, -1))


class Places(nn.Module):
    """An embedding of absolute places, for maps (..., H, W) or tokens (B, H·W, C)."""

    def __init__(self, *shape: int, learned: bool) -> None:
        super().__init__()
        if learned:
            self.place = nn.Parameter(torch.randn(shape))
        else:
            self.register_buffer("place", torch.randn(shape))

    def forward(self, f: Tensor) -> Tensor:
        if self.place.shape == f.shape[-2:]:
            return f + self.place
        tokens = f.flatten(1, 2).flatten(2).mT + self.place
        return tokens.mT.reshape(f.shape)


class LeftOn(nn.Module):
    """A dropout that is put into training mode in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, f: Tensor) -> Tensor:
        return self.drop.train()(f)


class Alternates(nn.Module):
    """Every other call takes another course."""

    calls = 0

    def forward(self, f: Tensor) -> Tensor:
        self.calls += 1
        return f * 2 if self.calls % 2 else f + 1


def noise(f: Tensor) -> Tensor:
    """As large as TF32 leaves it, and in float32 alone."""
    if f.dtype != torch.float32:
        return f
    return f * (1 + 2**-11 * torch.sin(torch.arange(f.numel(), dtype=f.dtype)).view(f.shape))


def parity(f: Tensor) -> Tensor:
    """Casts to whole numbers, of which it matters whether they are even."""
    return ((f * 2e4).int() % 2).to(f.dtype)


def written(f: Tensor) -> Tensor:
    """One column set to zero."""
    f = f.clone()
    f[..., 0] = 0
    return f


def filled(f: Tensor) -> Tensor:
    """Empty memory filled, all but a row that is set to zero through a view; indices of maxima nobody reads."""
    values, _ = f.max(2, keepdim=True)
    out = torch.empty_like(f)
    out[:] = f + values
    out.narrow(-2, 0, 1).zero_()
    return out


def choice(f: Tensor) -> Tensor:
    """One of two courses, by where the map is brighter."""
    return f * 2 if f[..., 0].sum() > f[..., -1].sum() else f + 1


def first_by_index(f: Tensor) -> Tensor:
    """Maxima whose indices nobody reads, then a fault."""
    values, _ = f.max(2, keepdim=True)
    return (f + values).flip(-2)


class Fault(NamedTuple):
    """What is planted, the path, function or module that is to be named, its kind, and words of what is said."""

    make: Callable[[], nn.Module]
    path: str
    name: str
    words: tuple[str, ...]
    kind: str = "structural"
    algorithm: str = "bitwise"


def does(function: Callable[[Tensor], Tensor], name: str, *words: str, **more: str) -> Fault:
    return Fault(lambda: Does(function), "fault", name, words, **more)


def inner(name: str, *words: str, at: str = "0", layers: Callable[[], list[nn.Module]]) -> Fault:
    return Fault(lambda: Planes(*layers()), f"fault.inner.{at}", name, words)


LOPSIDED = "stride 2 samples 8 pixels lopsidedly: 8 + "
EMBEDDING = ("combines tensors that move differently", "embedding of absolute places")
FAULTS: dict[str, Fault] = {
    "F.pad of one pixel": does(
        lambda f: F.pad(f, (1, 0, 1, 0)), "torch.nn.functional.pad", "more on one side", "Pad all sides alike"
    ),
    "even kernel, lopsided padding": inner(
        "ZeroPad2d",
        "more on one side",
        "Pad all sides alike",
        layers=lambda: [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(16, 16, 2)],
    ),
    "strided Conv2d": inner(
        "Conv2d",
        f"{LOPSIDED}2·1 - 1·2 - 1 = 7 is no multiple of 2",
        "filter is not symmetric",
        "to_equivariant(model, group, x), or build it",
        layers=lambda: [nn.Conv2d(16, 16, 3, 2, 1)],
    ),
    "strided MaxPool2d": inner(
        "MaxPool2d",
        f"{LOPSIDED}2·0 - 1·2 - 1 = 5 is no multiple of 2",
        "Take kernel 4 with padding 0, or MaxBlurPool2d",
        layers=lambda: [nn.MaxPool2d(3, 2)],
    ),
    "strided AvgPool2d": inner(
        "AvgPool2d", LOPSIDED, "stride 1 and BlurPool2d", layers=lambda: [nn.AvgPool2d(3, 2, 1)]
    ),
    "strided MaxPool3d": Fault(
        lambda: nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)), "fault", "MaxPool3d", (LOPSIDED, "or MaxBlurPool2d")
    ),
    "F.max_pool3d": does(
        lambda f: F.max_pool3d(f, (1, 3, 3), (1, 2, 2)), "torch.nn.functional.max_pool3d", "windows", "MaxBlurPool2d"
    ),
    "every other pixel": does(lambda f: f[..., ::2, ::2], "Tensor.__getitem__", "at fixed places"),
    "cropped": does(lambda f: f[..., 1:, 1:], "Tensor.__getitem__", "at fixed places"),
    "written in place": does(written, "Tensor.__setitem__", "at fixed places"),
    "filled in part": does(filled, "Tensor.narrow", "at fixed places"),
    "places of maps, learned": Fault(lambda: Places(SIZE, SIZE, learned=True), "fault", "Tensor.add", EMBEDDING),
    "places of maps, a buffer": Fault(lambda: Places(SIZE, SIZE, learned=False), "fault", "Tensor.add", EMBEDDING),
    "places of tokens, learned": Fault(lambda: Places(SIZE**2, 16, learned=True), "fault", "Tensor.add", EMBEDDING),
    "places of tokens, a buffer": Fault(lambda: Places(SIZE**2, 16, learned=False), "fault", "Tensor.add", EMBEDDING),
    "flip": does(lambda f: f.flip(-1), "Tensor.flip", "mirrors", "Drop it"),
    "flip of the fiber": does(lambda f: torch.flip(f, (2,)), "torch.flip", "mirrors", "Drop it"),
    "flip after unread indices": does(first_by_index, "Tensor.flip", "mirrors", "Drop it"),
    "transpose": does(lambda f: f.transpose(-1, -2), "Tensor.transpose", "exchanges axes", "height before width"),
    "mT": does(lambda f: f.mT, "Tensor.mT", "exchanges axes", "height before width"),
    "permute": does(lambda f: f.permute(0, 1, 2, 4, 3), "Tensor.permute", "exchanges axes", "height before width"),
    "cumsum": does(lambda f: f.cumsum(-1), "Tensor.cumsum", "from one side to the other", "the whole map"),
    "softmax of rows": does(lambda f: f.softmax(-1), "Tensor.softmax", "along an axis", "the whole map"),
    "roll": does(lambda f: f.roll(1, -1), "Tensor.roll", "shifts along one axis", "Drop it"),
    "random filter": inner(
        "Conv2d", "filter is not symmetric", "to_equivariant", layers=lambda: [nn.Conv2d(16, 16, 3, padding=1)]
    ),
    "not a number": does(
        lambda f: torch.log(-1 - f), "torch.log", "puts out what is not a number", "where it is defined"
    ),
    "F.dropout": does(
        lambda f: F.dropout(f, 0.3),
        "torch.nn.functional.dropout",
        "two identical calls differ",
        "training=self.training",
        kind="random",
    ),
    "nn.Dropout left on": Fault(LeftOn, "fault.drop", "Dropout", ("two identical calls differ",), "random"),
    "another course each time": Fault(
        Alternates, "fault", "Alternates", ("two identical calls differ",), kind="random"
    ),
    "an int cast": does(parity, "Tensor.int", "into large steps", "float64", kind="numerical", algorithm="dense"),
    "TF32-sized noise": does(noise, "Tensor.mul", "rounding grows there", "TF32", kind="numerical"),
}
