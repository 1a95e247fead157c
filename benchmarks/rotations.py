r"""Rotations by any angle: equivariance errors of layers beside the interpolation floor and escnn's, and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from baselines.common.figures import BLUE, GREEN, ORANGE, VERMILLION
from baselines.common.figures import figure as new_figure
from baselines.common.tables import head_lines, row_line
from benchmarks.peers import import_escnn
from benchmarks.rotation_speed import speed
from benchmarks.timing import machine
from equilayers.functional import rotate, rotate_harmonic
from equilayers.groups import CyclicRotation, Group
from equilayers.metrics import RotationErrorCurve, rotation_error_curve
from equilayers.nn import (
    AvgBlurPool2d,
    BlurPool2d,
    GroupConv2d,
    HarmonicBatchNorm,
    HarmonicConv2d,
    HarmonicMagnitude,
    HarmonicNonlinearity,
    LiftingConv2d,
    MaxBlurPool2d,
    OrbitPool,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

C8, C16 = (CyclicRotation(n, interpolation="bicubic") for n in (8, 16))
SIZES = (17, 33, 65, 129)
DRAWS = 8  # of the weights, means over which are shown: single draws differ twofold
ANGLES = (*range(0, 100, 10), 45)
LAYERS, CHANNELS, FIELDS = 5, 4, 8
Turn = Callable[[Tensor, float], Tensor]


class Subject(NamedTuple):
    r"""A network in one or several draws, the action on its output, the angles, and how images are interpolated."""

    models: Sequence[Callable[[Tensor], Any]]
    action: Turn
    angles: tuple[int, ...]
    interpolation: str = "bicubic"


def smooth_images(size: int, count: int = 4, seed: int = 0) -> Tensor:
    r"""Images (count, 1, size, size), float64: eight Gaussians each, the same at every size."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.linspace(-1, 1, size, dtype=torch.float64)
    draws = torch.rand(count, 8, 4, 1, 1, generator=generator, dtype=torch.float64)
    across, along, width, height = draws.unbind(2)
    distance = (places - across + 0.5) ** 2 + (places[:, None] - along + 0.5) ** 2
    return ((height - 0.5) * torch.exp(-distance / (2 * (0.12 + 0.1 * width) ** 2))).sum(1, keepdim=True)


def harmonic_stack(kernel_size: int, order: int = 1) -> nn.Sequential:
    r"""Five harmonic convolutions of random weights, with norms and nonlinearities between."""
    pad = kernel_size // 2
    modules: list[nn.Module] = [HarmonicConv2d(1, CHANNELS, kernel_size, None, order, padding=pad)]
    for _ in range(LAYERS - 1):
        modules += [HarmonicBatchNorm(CHANNELS, order), HarmonicNonlinearity(CHANNELS, order)]
        modules += [HarmonicConv2d(CHANNELS, CHANNELS, kernel_size, order, order, padding=pad)]
    model = nn.Sequential(*modules).double()
    for _ in range(40):
        model(smooth_images(33, 16, seed=1))
    return model.eval()


def group_stack(kernel_size: int, group: Group = C8) -> nn.Sequential:
    r"""A lifting and two group convolutions of random weights, with no bias: a constant would not rotate."""
    pad = kernel_size // 2
    return nn.Sequential(
        LiftingConv2d(group, 1, FIELDS, kernel_size, padding=pad, bias=False),
        nn.ReLU(),
        GroupConv2d(group, FIELDS, FIELDS, kernel_size, padding=pad, bias=False),
        nn.ReLU(),
        GroupConv2d(group, FIELDS, FIELDS, kernel_size, padding=pad, bias=False),
    ).double()


def escnn_stack(kernel_size: int, group: Group = C8) -> Callable[[Tensor], Tensor]:
    r"""The same of escnn, whose biases begin at zero, on plain tensors; its fibers rotate as ours do."""
    library = import_escnn()
    space, pad = library.gspaces.rot2dOnR2(group.order), kernel_size // 2
    image = library.nn.FieldType(space, [space.trivial_repr])
    regular = library.nn.FieldType(space, FIELDS * [space.regular_repr])
    model = library.nn.SequentialModule(
        library.nn.R2Conv(image, regular, kernel_size, padding=pad),
        library.nn.ReLU(regular),
        library.nn.R2Conv(regular, regular, kernel_size, padding=pad),
        library.nn.ReLU(regular),
        library.nn.R2Conv(regular, regular, kernel_size, padding=pad),
    ).double()

    def call(x: Tensor) -> Tensor:
        y: Tensor = model(library.nn.GeometricTensor(x, image)).tensor
        return y.unflatten(1, (FIELDS, group.order))

    return call


def subjects() -> dict[str, Subject]:
    r"""The networks that are measured, by name."""
    found = {}
    for k in (5, 7):
        stack = harmonic_stack(k)
        alone = nn.Sequential(*(layer for layer in stack if isinstance(layer, HarmonicConv2d)))
        for how in ("bicubic", "bilinear"):
            turn = partial(rotate_harmonic, interpolation=how)
            found[f"HarmonicConv2d {k}x{k}, five, {how}"] = Subject([stack], turn, ANGLES, how)
            found[f"{k}x{k}, five with nothing between, {how}"] = Subject([alone], turn, ANGLES, how)
    return found | group_subjects()


def group_subjects(draws: int = DRAWS) -> dict[str, Subject]:
    r"""Group convolutions, ours and escnn's."""
    found = {}
    for group, k in ((C8, 3), (C8, 5), (C8, 7), (C16, 5)):
        turn = partial(_turn_fiber, group)
        for name, make in (("GroupConv2d", group_stack), ("escnn", escnn_stack)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                models = [make(k, group) for _ in range(draws)]
            found[f"{name} C{group.order} {k}x{k}, three"] = Subject(models, turn, (45, 90))
    return found


def layer_subjects() -> dict[str, Subject]:
    r"""Every layer alone; those of harmonic features behind a convolution that makes some, in several draws each."""
    harmonic, plain = partial(rotate_harmonic, interpolation="bicubic"), partial(rotate, interpolation="bicubic")
    after: dict[str, tuple[Callable[[], nn.Module] | None, Turn]] = {
        "HarmonicConv2d 5x5": (None, harmonic),
        "the same, HarmonicBatchNorm": (lambda: HarmonicBatchNorm(CHANNELS, 1), harmonic),
        "the same, HarmonicNonlinearity": (lambda: HarmonicNonlinearity(CHANNELS, 1), harmonic),
        "the same, BlurPool2d": (BlurPool2d, harmonic),
        "the same, HarmonicMagnitude": (HarmonicMagnitude, plain),
    }
    found = {
        name: Subject([_behind_harmonic(layer) for _ in range(DRAWS)], turn, (45, 90))
        for name, (layer, turn) in after.items()
    }
    lifting = [LiftingConv2d(C8, 1, CHANNELS, 5, padding=2, bias=False).double() for _ in range(DRAWS)]
    found["LiftingConv2d C8 5x5"] = Subject(lifting, partial(_turn_fiber, C8), (45, 90))
    pooled = [nn.Sequential(layer, OrbitPool("max")) for layer in lifting]
    found["the same, OrbitPool max"] = Subject(pooled, plain, (45, 90))
    for pool in (BlurPool2d, AvgBlurPool2d, MaxBlurPool2d):
        found[f"{pool.__name__}, stride 2"] = Subject([pool()], plain, (45, 90))
    return found


def _behind_harmonic(layer: Callable[[], nn.Module] | None) -> nn.Module:
    first = HarmonicConv2d(1, CHANNELS, 5, None, 1, padding=2)
    return nn.Sequential(first, *([] if layer is None else [layer()])).double().eval()


def _turn_fiber(group: CyclicRotation, y: Tensor, degrees: float) -> Tensor:
    return group.act_regular(round(degrees * group.n / 360) % group.n, y)


def curves(subject: Subject, sizes: Sequence[int] = SIZES) -> dict[int, RotationErrorCurve]:
    r"""By the number of pixels along an axis; means over the draws."""
    models, turn, angles, how = subject
    found = {}
    for size in sizes:
        x = smooth_images(size)
        drawn = [rotation_error_curve(model, x, angles, action_out=turn, interpolation=how) for model in models]
        error, floor = (torch.stack([getattr(curve, name) for curve in drawn]).mean(0) for name in ("error", "floor"))
        found[size] = RotationErrorCurve(drawn[0].angles, error, floor)
    return found


def report(seconds: float) -> Iterator[str]:
    r"""Errors at 45 and 90 degrees beside their floors, then speed ratios."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        yield head_lines(["error / floor at 45 degrees", *(f"{size}x{size}" for size in SIZES), "at 90 degrees"])
        for name, subject in (subjects() | layer_subjects()).items():
            yield _row(name, curves(subject))
        yield ""
        yield f"Speed, one thread, {machine()}; times as fast as nn.Conv2d of the same width, medians."
        yield ""
        yield from speed(seconds)


def _row(name: str, found: dict[int, RotationErrorCurve]) -> str:
    cells = []
    for curve in found.values():
        at = curve.angles.tolist().index(45)
        cells.append(f"{float(curve.error[at]):.2g} / {float(curve.floor[at]):.2g}")
    right = max(float(curve.error[curve.angles.tolist().index(90)]) for curve in found.values())
    return row_line([name, *cells, f"{right:.1e}"])


def error_figure() -> Figure:
    r"""The error of the harmonic network against the angle, at several resolutions."""
    turn = partial(rotate_harmonic, interpolation="bicubic")
    with torch.no_grad():
        return _figure(curves(Subject([harmonic_stack(7)], turn, tuple(range(0, 181, 5)))))


def _figure(found: dict[int, RotationErrorCurve]) -> Figure:
    figure = new_figure(8, 4.2, None)
    place = figure.subplots()
    for (size, curve), colour in zip(found.items(), (VERMILLION, ORANGE, GREEN, BLUE), strict=True):
        drawn = curve.error.clamp(min=1e-16)
        place.plot(curve.angles, drawn, color=colour, label=f"{size}x{size} pixels", linewidth=1.8)
        place.plot(curve.angles, curve.floor.clamp(min=1e-16), color=colour, linestyle=":", linewidth=1.2)
    place.set(yscale="log", xlabel="degrees", ylabel="relative error", xticks=range(0, 181, 45))
    place.legend(frameon=False, loc="lower left", bbox_to_anchor=(0.12, 0.12))
    place.set_title("Five harmonic convolutions; dotted: the floor of the test", fontsize=10)
    return figure
