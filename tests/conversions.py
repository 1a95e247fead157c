"""Plain convolutional networks to be converted, and equivariant ones written as plain ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.groups import Group
from equilayers.testing import assert_equivariant, assert_invariant


class Wired(nn.Module):
    """Modules by name, and a function of them all and the input."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Block(nn.Module):
    """A residual block, strided, with a 1x1 shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.short = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(y.add_(self.short(x)))


class ResNet(nn.Module):
    """A stem with a strided pool, two blocks, and a linear head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 5, 1, 2), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(Block(width, width), Block(width, 2 * width))
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.pool(self.stem(x))).mean((-2, -1)))


class DenseNet(nn.Module):
    """Every layer reads what all before it have made, side by side; growth is no multiple of 8."""

    def __init__(self, growth: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 1, 1)
        sizes = [24 + i * growth for i in range(4)]
        self.norms = nn.ModuleList([nn.BatchNorm2d(size) for size in sizes])
        self.convs = nn.ModuleList([nn.Conv2d(size, growth, 3, 1, 1) for size in sizes[:-1]])
        self.narrow, self.pool, self.head = nn.Conv2d(sizes[-1], 24, 1), nn.AvgPool2d(2, 2), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms[:-1], self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        f = self.pool(self.narrow(self.norms[-1](torch.cat(features, 1))))
        return self.head(F.adaptive_avg_pool2d(F.relu(f), 1).flatten(1))


class UNet(nn.Module):
    """Down, across and up again, with transposed convolutions and a skip; images to images."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.InstanceNorm2d(2 * width), nn.PReLU())
        self.across = nn.Sequential(nn.MaxPool2d(2), nn.ConvTranspose2d(2 * width, 2 * width, 3, 2, 1, 1), nn.GELU())
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.leave = nn.Sequential(nn.Conv2d(2 * width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        f = self.enter(x)
        return self.leave(torch.cat([f, self.up(self.across(self.down(f)))], 1))


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, squeeze and excitation by convolutions, GroupNorm, two linear layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 5, 2, 2, groups=width),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 1, bias=False),
            nn.InstanceNorm2d(2 * width, affine=True),
            nn.Hardswish(),
            nn.Dropout2d(0.2),
        )
        self.squeeze, self.excite = nn.Conv2d(2 * width, 8, 1), nn.Conv2d(8, 2 * width, 1)
        head = nn.BatchNorm1d(2 * width), nn.Dropout(0.2), nn.Linear(2 * width, 16), nn.Tanh(), nn.Linear(16, 5)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)

    def forward(self, x: Tensor) -> Tensor:
        f = self.layers(self.stem(x))
        gate = self.excite(F.relu(self.squeeze(f.mean((-2, -1), keepdim=True)))).sigmoid()
        return self.head(f * gate)


MODELS: dict[str, type[nn.Module]] = {"ResNet": ResNet, "DenseNet": DenseNet, "UNet": UNet, "Separable": Separable}


def settled(model: nn.Module, size: int = 32, steps: int = 2) -> nn.Module:
    """In eval mode, with running statistics and parameters of normalisations as after a training."""
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        for _ in range(steps):
            model.train()(torch.randn(4, 3, size, size, dtype=dtype))
    return model.eval()


def assert_holds(model: nn.Module, x: Tensor, group: Group) -> None:
    """Images move with the input, anything else stays."""
    (assert_equivariant if model(x).ndim == 4 else assert_invariant)(model, x, group)


def expanded(weight: Tensor, group: Group) -> Tensor:
    """The filter of a plain convolution that computes what one with this tied weight does, fibers in the channels."""
    rows = []
    for h in range(group.order):
        turned = group.act(h, weight)
        if weight.ndim == 5:
            turned = turned[:, :, [group.compose(group.inverse(h), k) for k in range(group.order)]]
        rows.append(turned)
    filters = torch.stack(rows, 1)  # (O, |G|, C, [|G|,] kh, kw)
    return filters.flatten(0, 1) if weight.ndim == 4 else filters.flatten(2, 3).flatten(0, 1)


def tied_on_purpose(group: Group, fields: int = 3) -> nn.Sequential:
    """A plain network that happens to be invariant: its filters are expanded ones, its norms alike over each fiber."""
    n = group.order
    planes = fields * n
    model = nn.Sequential(
        nn.Conv2d(3, planes, 3, 1, 1),
        nn.BatchNorm2d(planes),
        nn.ReLU(),
        nn.Conv2d(planes, planes, 5, 1, 2, padding_mode="reflect"),
        nn.GroupNorm(fields, planes),
        nn.ReLU(),
        nn.Conv2d(planes, planes, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(planes, 5),
    )
    with torch.no_grad():
        for index, shape in ((0, (fields, 3, 3, 3)), (3, (fields, fields, n, 5, 5)), (6, (fields, fields, n, 1, 1))):
            model[index].weight.copy_(expanded(torch.randn(shape) / 4, group))
        for layer in (model[0], model[1], model[3], model[4]):
            values = [layer.bias] if isinstance(layer, nn.Conv2d) else [layer.weight, layer.bias]
            for value in values:
                value.copy_(torch.rand(fields).repeat_interleave(n))
        model[1].running_mean.copy_(torch.randn(fields).repeat_interleave(n))
        model[1].running_var.copy_(torch.rand(fields).repeat_interleave(n) + 0.5)
        model[9].weight.copy_(torch.randn(5, fields).repeat_interleave(n, 1))
    return model.eval()


class Pair(NamedTuple):
    """What a model puts out."""

    logits: Tensor
    features: Tensor


@dataclass
class Both:
    """What a model puts out."""

    logits: Tensor
    features: Tensor
    nothing: None = None


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda y, f: (y, f),
    "named tuple": Pair,
    "list in a dict": lambda y, f: {"logits": [y], "features": f, "name": "x"},
    "dataclass": Both,
}


def leaves(out: Any) -> tuple[Tensor, Tensor]:
    """Logits and features."""
    if isinstance(out, dict):
        return out["logits"][0], out["features"]
    return (out.logits, out.features) if isinstance(out, (Pair, Both)) else out
