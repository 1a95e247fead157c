r"""The models of the study."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from baselines.vit import models as vit
from equilayers.groups import Group
from equilayers.nn import GroupConv2d, InvariantAvgPool2d, LiftingConv2d, LiftingLinear, OrbitPool

MODELS = ("mlp", "cnn", "vit")
METHODS = ("WT", "DA", "IR")  # of the paper
UPRIGHT = "UP"  # the unconstrained network, trained on samples as they are
WIDTHS = ("equal-parameters", "equal-width")
HIDDEN = (128,) * 5
PLANES = (32, 64, 64)
VIT = vit.Shape(width=64, depth=4, heads=4)


def build(model: str, tied: bool, width: str, group: Group, in_shape: Sequence[int], classes: int) -> nn.Module:
    r"""The model of a run: `model` and `width` are among MODELS and WIDTHS.

    The tied network is the same for both widths; the plain one has as many parameters, or as many planes or features.
    The two multilayer perceptrons agree in both anyway.
    """
    if model == "mlp":
        return weight_tied_mlp(group, in_shape, classes) if tied else mlp(in_shape, classes)
    if model == "vit":
        return _transformer(tied, width, group, in_shape, classes)
    if tied:
        return weight_tied_cnn(group, in_shape, classes)
    return cnn(in_shape, classes, PLANES if width == "equal-width" else equal_planes(group, in_shape, classes))


def _transformer(tied: bool, width: str, group: Group, in_shape: Sequence[int], classes: int) -> nn.Module:
    r"""A vision transformer on 6x6 patches: the tied one, or the plain one of that width or as many parameters."""

    channels, height, width_ = in_shape

    def of(shape: vit.Shape, name: Group | None) -> nn.Module:
        return vit.build(shape, name, (height, width_), height // 6, classes, channels)

    if tied or width == "equal-width":
        return of(VIT, group if tied else None)
    with torch.device("meta"):  # no memory, and no random numbers
        wanted = parameters(of(VIT, group))
        narrower = [VIT._replace(width=n) for n in range(VIT.heads, VIT.width, VIT.heads)]
        shape = next((shape for shape in narrower if parameters(of(shape, None)) >= wanted), VIT)
    return of(shape, None)


def mlp(in_shape: Sequence[int], classes: int, hidden: Sequence[int] = HIDDEN) -> nn.Sequential:
    r"""The unconstrained baseline: images (B, *in_shape) to logits (B, classes), ReLU between linear layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(in_shape), hidden[0]), *_rest(hidden, classes))


def weight_tied_mlp(
    group: Group, in_shape: Sequence[int], classes: int, hidden: Sequence[int] = HIDDEN
) -> nn.Sequential:
    r"""The same network with its first layer tied: lift, maximum over the orbit, ReLU; as many parameters."""
    first = LiftingLinear(group, tuple(in_shape), hidden[0])
    return nn.Sequential(first, OrbitPool("max"), *_rest(hidden, classes))


def _rest(hidden: Sequence[int], classes: int) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.ReLU()]
    for width, following in itertools.pairwise(hidden):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return [*layers, nn.Linear(hidden[-1], classes)]


def cnn(in_shape: Sequence[int], classes: int, planes: Sequence[int] = PLANES) -> nn.Sequential:
    r"""The unconstrained convolutional network: images (B, C, H, W) to logits (B, classes).

    6x6 convolution of stride 2, maximum over 2x2 pixels, then 3x3 convolutions, each with batch norm and ReLU; mean
    over the map, linear layer. The first kernel is even: with an odd one stride 2 samples an even map lopsidedly.

    Raises:
        ValueError: H or W is no multiple of 4.
    """
    channels = _channels("cnn", in_shape)
    layers: list[nn.Module] = [nn.Conv2d(channels, planes[0], 6, stride=2, padding=2, bias=False)]
    layers += [nn.BatchNorm2d(planes[0]), nn.ReLU(), nn.MaxPool2d(2)]
    for before, width in itertools.pairwise(planes):
        layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(planes[-1], classes))


def weight_tied_cnn(
    group: Group, in_shape: Sequence[int], classes: int, planes: Sequence[int] = PLANES
) -> nn.Sequential:
    r"""The same network with every convolution tied: planes / |G| features of |G| planes each.

    The mean over the map comes first and the maximum over the orbit after: so features keep their rotation relative to
    each other up to the end.

    Raises:
        ValueError: no CyclicRotation or Dihedral group, planes that |G| does not divide, or a size as for `cnn`.
    """
    caller, n = "weight_tied_cnn", group.order
    channels = _channels(caller, in_shape)
    if any(width % n for width in planes):
        raise ValueError(f"{caller}: expected planes divisible by |G| = {n}, got {tuple(planes)}. Round them up.")
    fields = [width // n for width in planes]
    layers: list[nn.Module] = [LiftingConv2d(group, channels, fields[0], 6, stride=2, padding=2, bias=False)]
    layers += [nn.BatchNorm3d(fields[0]), nn.ReLU(), nn.MaxPool3d((1, 2, 2))]
    for before, width in itertools.pairwise(fields):
        layers += [GroupConv2d(group, before, width, 3, padding=1, bias=False), nn.BatchNorm3d(width), nn.ReLU()]
    return nn.Sequential(*layers, InvariantAvgPool2d(), OrbitPool("max"), nn.Linear(fields[-1], classes))


def equal_planes(
    group: Group, in_shape: Sequence[int], classes: int, planes: Sequence[int] = PLANES
) -> tuple[int, ...]:
    r"""The fewest planes, in the same proportion, that give `cnn` no fewer parameters than `weight_tied_cnn` has."""
    with torch.device("meta"):  # no memory, and no random numbers
        wanted = parameters(weight_tied_cnn(group, in_shape, classes, planes))
        for part in range(1, 128):
            fewer = tuple(max(1, round(width * part / 128)) for width in planes)
            if parameters(cnn(in_shape, classes, fewer)) >= wanted:
                return fewer
    return tuple(planes)


def parameters(model: nn.Module) -> int:
    r"""How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def _channels(caller: str, in_shape: Sequence[int]) -> int:
    r"""The channels of images that a stride and a pooling of 2 sample symmetrically."""
    if len(in_shape) != 3 or in_shape[1] % 4 or in_shape[2] % 4:
        got = f"{tuple(in_shape)}. Pad the images: sampled lopsidedly they would look different when rotated."
        raise ValueError(f"{caller}: expected in_shape (C, H, W), H and W multiples of 4, got {got}")
    return in_shape[0]
