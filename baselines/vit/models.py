r"""Vision transformers: of torch's own layers, and the same with every layer tied over a group."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from equilayers.groups import Group, as_group
from equilayers.nn import (
    GroupLayerNorm,
    GroupPositionEmbedding,
    GroupTransformerEncoder,
    GroupTransformerEncoderLayer,
    LiftingConv2d,
)

Size = int | tuple[int, int]
# Deviation of positions at the start. Beside embedded patches, of about 0.5, attention sees 0.02 only after many steps,
# and what has no places yet and is averaged over the group tells classes apart worse than a plain network does.
POSITION_STD = 0.3


class Shape(NamedTuple):
    r"""Numbers a token, encoder layers, and heads of each."""

    width: int
    depth: int
    heads: int


SIZES = {"S": Shape(384, 12, 6), "B": Shape(768, 12, 12), "L": Shape(1024, 24, 16)}


def vit(
    size: str = "S",
    group: Group | str | None = None,
    image: Size = 224,
    patch: int = 16,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> nn.Module:
    r"""ViT-S, ViT-B or ViT-L without class token; with a group, its counterpart of the same width, invariant to it.

    Args:
        size: "S" (384 wide, 12 layers), "B" (768, 12) or "L" (1024, 24).
        group: "C4", "D4" or another group of exact rotations and mirrors; None for torch's own layers.
        image: height and width in pixels, or one for both; multiples of the patch.
        patch: side of a patch in pixels.
        num_classes, in_channels: of logits and images.

    Returns:
        A module from images (B, in_channels, H, W) to logits (B, num_classes), freshly drawn.

    Raises:
        ValueError: another size; an image that the patch does not divide or that the group does not act on.

    Source: Dosovitskiy et al. 2021 (arXiv:2010.11929); mean over tokens, Beyer et al. 2022 (arXiv:2205.01580).
    """
    if size not in SIZES:
        raise ValueError(
            f"vit: expected size one of {list(SIZES)}, got {size!r}. Take `build` for a shape of your own."
        )
    return build(SIZES[size], group, image, patch, num_classes, in_channels)


def build(
    shape: Shape, group: Group | str | None, image: Size, patch: int, num_classes: int, in_channels: int
) -> nn.Module:
    r"""As `vit`, of any shape; a width that the group's order does not divide, or heads that do not divide, raise."""
    height, width = image if isinstance(image, Sequence) else (image, image)
    if height % patch or width % patch or not height or not width:
        got = f"{height}x{width}. Pad or resize the images."
        raise ValueError(f"vit: expected image to be a multiple of the patch, {patch} pixels, each way, got {got}")
    grid = height // patch, width // patch
    if group is None:
        return PlainViT(shape, grid, patch, num_classes, in_channels)
    return GroupViT(shape, as_group("vit", group, exact=True), grid, patch, num_classes, in_channels)


class PlainViT(nn.Module):
    r"""Images (B, in_channels, H, W) to logits: torch's own encoder layers, pre-norm, and the mean over tokens."""

    def __init__(self, shape: Shape, grid: tuple[int, int], patch: int, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        width, depth, heads = shape
        self.embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.position = nn.Parameter(self.embed.weight.new_empty(width, *grid))
        nn.init.normal_(self.position, std=POSITION_STD)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        draw(self.encoder)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x)
        if patches.shape[1:] != self.position.shape:
            height, width = (n * k for n, k in zip(self.position.shape[1:], self.embed.stride, strict=True))
            hint = "Build a network for that size."
            raise ValueError(f"PlainViT: expected images of {height}x{width}, got {tuple(x.shape)}. {hint}")
        y: Tensor = self.head(self.encoder((patches + self.position).flatten(2).mT).mean(1))
        return y


class GroupViT(nn.Module):
    r"""The same, every layer tied: a token has width / |G| features of |G| planes each, and the mean takes both.

    Law: `model(act(g, x)) == model(x)` for all g, to rounding.
    """

    def __init__(
        self, shape: Shape, group: Group, grid: tuple[int, int], patch: int, num_classes: int, in_channels: int = 3
    ) -> None:
        super().__init__()
        width, depth, heads = shape
        if width % group.order:
            hint = "Take a multiple."
            raise ValueError(f"GroupViT: expected a width divisible by |G| = {group.order}, got {width}. {hint}")
        features = width // group.order
        self.embed = LiftingConv2d(group, in_channels, features, patch, stride=patch)
        self.position = GroupPositionEmbedding(group, features, grid)
        nn.init.normal_(self.position.weight, std=POSITION_STD)
        layer = GroupTransformerEncoderLayer(group, features, heads)
        self.encoder = GroupTransformerEncoder(layer, depth, GroupLayerNorm(features))
        draw(self.encoder)
        self.head = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        f = self.encoder(self.position(self.embed(x)))  # (B, C, |G|, H, W)
        y: Tensor = self.head(f.mean((2, 3, 4)))
        return y


def draw(encoder: nn.Module) -> None:
    r"""Draw matrices from a normal distribution of variance 1 / inputs, each layer's anew, and set biases to 0.

    The inputs of a tied matrix (O, C, |G|) are C |G|: expanded, it has the distribution of a plain one.
    """
    for name, parameter in encoder.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def parameters(model: nn.Module) -> int:
    r"""How many numbers a network learns."""
    return sum(p.numel() for p in model.parameters())
