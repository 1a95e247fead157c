r"""A detector and a segmentor with three kinds of subsampling, alike in everything else.

All convolutions and maxima wrap around, so that a cyclic shift loses nothing but what subsampling loses.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.functional import blur_pool2d, polyphase_pool2d, polyphase_unpool2d
from equilayers.nn import InvariantAvgPool2d

KINDS = ("max", "blur", "polyphase")
TASKS = ("detector", "segmentor")


def build(task: str, kind: str, classes: int, planes: Sequence[int]) -> nn.Module:
    r"""The network of one of TASKS with one of KINDS; it halves the map len(planes) - 1 times."""
    return Detector(kind, classes, planes) if task == "detector" else Segmentor(kind, classes + 1, planes)


class Detector(nn.Module):
    r"""Images (B, 1, H, W) to logits (B, classes): invariant to shifts where subsampling lets it."""

    def __init__(self, kind: str, classes: int, planes: Sequence[int]) -> None:
        super().__init__()
        self.encoder = Encoder(kind, planes)
        self.mean = InvariantAvgPool2d()
        self.head = nn.Linear(planes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.mean(self.encoder(x)[0]).flatten(1))
        return y


class Segmentor(nn.Module):
    r"""Images (B, 1, H, W) to logits (B, classes, H, W): equivariant to shifts where subsampling lets it."""

    def __init__(self, kind: str, classes: int, planes: Sequence[int]) -> None:
        super().__init__()
        self.kind = kind
        self.encoder = Encoder(kind, planes)
        self.blocks = nn.ModuleList(block(*pair) for pair in zip(planes[:0:-1], planes[-2::-1], strict=True))
        self.head = convolution(planes[0], classes)

    def forward(self, x: Tensor) -> Tensor:
        x, choices = self.encoder(x)
        for layer, choice in zip(self.blocks, reversed(choices), strict=True):
            x = upsample(layer(x), self.kind, choice)  # in this order: a quarter of the work
        y: Tensor = self.head(x)
        return y


class Encoder(nn.Module):
    r"""Blocks of convolutions with subsampling between: features, and what polyphase pooling chose at each."""

    def __init__(self, kind: str, planes: Sequence[int]) -> None:
        super().__init__()
        self.kind = kind
        pairs = zip((1, *planes[:-1]), planes, strict=True)
        self.blocks = nn.ModuleList(block(*pair) for pair in pairs)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        choices = []
        x = self.blocks[0](x)
        for layer in self.blocks[1:]:
            x, choice = subsample(x, self.kind)
            choices.append(choice)
            x = layer(x)
        return x, choices


def convolution(ins: int, outs: int) -> nn.Conv2d:
    r"""A 3x3 convolution that wraps around."""
    return nn.Conv2d(ins, outs, 3, padding=1, padding_mode="circular")


def block(ins: int, outs: int) -> nn.Sequential:
    r"""Convolution, batch normalisation, ReLU: each commutes with cyclic shifts."""
    return nn.Sequential(convolution(ins, outs), nn.BatchNorm2d(outs), nn.ReLU())


def dense_max(x: Tensor) -> Tensor:
    r"""The maximum of every 2x2 window, around the border: max pooling before it subsamples."""
    x = torch.maximum(x, x.roll(-1, -1))
    return torch.maximum(x, x.roll(-1, -2))


def subsample(x: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
    r"""Every second pixel of the maximum over 2x2 windows, by one of KINDS; the choice of polyphase pooling."""
    if kind == "max":
        return F.max_pool2d(x, 2), None
    if kind == "blur":
        return blur_pool2d(dense_max(x), "auto", 2, "circular"), None
    return polyphase_pool2d(dense_max(x), 2, return_choice=True)


def upsample(y: Tensor, kind: str, choice: Tensor | None) -> Tensor:
    r"""Twice as many pixels each way, as it fits to `subsample`."""
    if choice is not None:
        # Each sample back to its place; the linear interpolation (1 2 1) / 2 fills the zeros between.
        return 4 * blur_pool2d(polyphase_unpool2d(y, choice, 2), 3, 1, "circular")
    x = F.interpolate(y, scale_factor=2, mode="nearest")
    return blur_pool2d(x, 3, 1, "circular") if kind == "blur" else x
