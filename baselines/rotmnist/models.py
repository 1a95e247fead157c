r"""The networks of `python -m baselines rotmnist`, of about 25,000 parameters each."""

from collections.abc import Callable

import torch
from torch import nn

from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.nn import (
    BlurPool2d,
    GroupConv2d,
    HarmonicBatchNorm,
    HarmonicConv2d,
    HarmonicMagnitude,
    HarmonicNonlinearity,
    InvariantAvgPool2d,
    LiftingConv2d,
    OrbitPool,
)

CLASSES = 10


def z2cnn(channels: int = 20) -> nn.Sequential:
    r"""Cohen and Welling's Z2CNN: seven layers of 3x3, 4x4 at the end, a max pool after the second."""
    layers: list[nn.Module] = []
    for i in range(6):
        layers += [nn.Conv2d(channels if i else 1, channels, 3), nn.BatchNorm2d(channels), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i == 1 else []
    return nn.Sequential(*layers, nn.Conv2d(channels, CLASSES, 4), nn.Flatten())


def group_cnn(group: Group, fields: int) -> nn.Sequential:
    r"""Their P4CNN and P4MCNN: the same with group convolutions, and a max over the group before the classes."""
    layers: list[nn.Module] = []
    for i in range(6):
        conv = GroupConv2d(group, fields, fields, 3) if i else LiftingConv2d(group, 1, fields, 3)
        layers += [conv, nn.BatchNorm3d(fields), nn.ReLU()]
        layers += [nn.MaxPool3d((1, 2, 2))] if i == 1 else []
    return nn.Sequential(*layers, GroupConv2d(group, fields, CLASSES, 4), OrbitPool("max"), nn.Flatten())


def steered_cnn(group: Group, fields: int) -> nn.Sequential:
    r"""A network for rotations by other angles: 5x5 kernels, two blurs, a max over the group, a mean over the map."""
    layers: list[nn.Module] = [LiftingConv2d(group, 1, fields, 5, padding=2), nn.BatchNorm3d(fields), nn.ReLU()]
    for _ in range(2):
        layers += [BlurPool2d()]
        for _ in range(2):
            layers += [GroupConv2d(group, fields, fields, 5, padding=2), nn.BatchNorm3d(fields), nn.ReLU()]
    return nn.Sequential(*layers, OrbitPool("max"), *_head(fields))


def harmonic_network(order: int, widths: tuple[int, ...]) -> nn.Sequential:
    r"""A Harmonic Network: streams of orders 0 to `order`, nonlinear in magnitudes alone; two layers of each width."""
    layers: list[nn.Module] = []
    channels, in_order = 1, None
    for width in widths:
        layers += [BlurPool2d()] if layers else []
        for _ in range(2):
            conv = HarmonicConv2d(channels, width, 5, in_order, order, padding=2)
            layers += [conv, HarmonicBatchNorm(width, order), HarmonicNonlinearity(width, order)]
            channels, in_order = width, order
    return nn.Sequential(*layers, HarmonicMagnitude(), *_head(channels * (order + 1)))


def _head(channels: int) -> list[nn.Module]:
    return [InvariantAvgPool2d(), nn.BatchNorm1d(channels), nn.Linear(channels, CLASSES)]


def rotation(n: int) -> CyclicRotation:
    r"""C_n, bilinear where it needs an interpolation."""
    return CyclicRotation(n, interpolation="bilinear")


MODELS: dict[str, Callable[[], nn.Sequential]] = {
    "Z2CNN": z2cnn,
    "P4CNN": lambda: group_cnn(CyclicRotation(4), 10),
    "P4MCNN": lambda: group_cnn(Dihedral(4), 7),
    "C8": lambda: steered_cnn(rotation(8), 8),
    "C16": lambda: steered_cnn(rotation(16), 6),
    "H-Net": lambda: harmonic_network(2, (6, 12, 18)),
}


def build(name: str, seed: int) -> nn.Sequential:
    r"""A network with the weights of that seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name]()


def parameters(model: nn.Module) -> int:
    r"""How many numbers a network learns; of a steered filter, the coefficients in its basis."""
    return sum(_numbers(module) for module in model.modules())


def _numbers(module: nn.Module) -> int:
    if isinstance(module, LiftingConv2d | GroupConv2d):
        return module.degrees_of_freedom
    return sum(p.numel() for p in module.parameters(recurse=False))
