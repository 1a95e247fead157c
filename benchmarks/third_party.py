r"""Networks of MONAI and of transformers, with random weights: third-party models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equilayers.groups import Group
from equilayers.metrics import equivariance_error

CHANNELS, CLASSES = 3, 5
Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    r"""One network: how it is made, sizes it is tried at, whether it puts out images, and whether it is on tokens."""

    name: str
    make: Callable[[], nn.Module]
    sizes: tuple[int, ...] = (64, 65)
    images: bool = False
    tokens: bool = False


def versions() -> str:
    r"""The versions of both packages.

    Raises:
        ImportError: one of them is not installed.
    """
    try:
        import monai
        import transformers
    except ImportError as error:
        hint = "Run pip install 'equilayers[models]'."
        raise ImportError(f"models: expected monai and transformers to be installed ({error}). {hint}") from error
    return f"monai {monai.__version__}, transformers {transformers.__version__}"


def networks(*, small: bool) -> list[Network]:
    r"""The networks, small ones for a test, or of the widths that they are used with."""
    return [*_classifiers(small), *_segmentors(small), *_of_transformers(small), *token_networks(small=small)]


def _classifiers(small: bool) -> list[Network]:
    from monai.networks import nets

    usual = {"spatial_dims": 2, "num_classes": CLASSES, "n_input_channels": CHANNELS}
    dense = {"spatial_dims": 2, "in_channels": CHANNELS, "out_channels": CLASSES}
    width = {"widen_factor": 0.25} if small else {}
    depth = {"init_features": 16, "growth_rate": 8, "block_config": (2, 2, 2, 2)} if small else {}
    return [
        Network("MONAI resnet18", lambda: nets.resnet18(**usual, **width)),
        Network("MONAI densenet121", lambda: nets.DenseNet121(**dense, **depth)),
    ]


def _segmentors(small: bool) -> list[Network]:
    from monai.networks import nets

    usual = {"spatial_dims": 2, "in_channels": CHANNELS, "out_channels": CLASSES}
    channels = (8, 16, 32) if small else (32, 64, 128)
    features = (8, 8, 16, 32, 64, 8) if small else (32, 32, 64, 128, 256, 32)

    def unet(stride: int) -> nn.Module:
        return nets.UNet(**usual, channels=channels, strides=(stride, stride), num_res_units=2)

    return [
        Network("MONAI UNet", lambda: unet(2), images=True),
        Network("MONAI UNet, strides 3", lambda: unet(3), (72, 63), images=True),  # it takes multiples of 9
        Network("MONAI BasicUNet", lambda: nets.BasicUNet(**usual, features=features), images=True),
    ]


def _of_transformers(small: bool) -> list[Network]:
    import transformers as t

    widths, scale = ([16, 16, 32, 64], 0.35) if small else ([64, 128, 256, 512], 1.0)
    depths = [1, 1, 1, 1] if small else [2, 2, 2, 2]
    settings: dict[str, Any] = {"hidden_sizes": widths, "depths": depths, "num_labels": CLASSES}
    resnet = t.ResNetConfig(embedding_size=widths[0], layer_type="basic", **settings)
    mobile = t.MobileNetV2Config(depth_multiplier=scale, tf_padding=False, num_labels=CLASSES)
    convnext = t.ConvNextConfig(**settings)
    return [
        Network("transformers ResNet", lambda: t.ResNetForImageClassification(resnet)),
        Network("transformers MobileNetV2", lambda: t.MobileNetV2ForImageClassification(mobile)),
        Network("transformers ConvNext", lambda: t.ConvNextForImageClassification(convnext), tokens=True),
    ]


def token_networks(*, small: bool) -> list[Network]:
    r"""Networks on tokens, or with norms over channels: of equal width only, at sizes that they are built for."""
    import transformers as t

    width, depth = (32, 1) if small else (384, 4)
    usual: dict[str, Any] = {"num_labels": CLASSES, "hidden_size": width, "num_hidden_layers": depth}
    usual |= {"num_attention_heads": max(1, width // 64), "patch_size": 8}
    vit = usual | {"intermediate_size": 4 * width}
    stages: dict[str, Any] = {"hidden_sizes": [width // 4, width // 2], "depths": [depth, depth], "num_labels": CLASSES}
    swin = {"patch_size": 4, "embed_dim": width // 4, "depths": [2, 2], "num_heads": [1, 2], "num_labels": CLASSES}
    former = {"num_encoder_blocks": 2, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "strides": [4, 2]}
    former |= {"mlp_ratios": [4, 4], "num_attention_heads": [1, 2], "decoder_hidden_size": width // 2} | stages
    mobile = {"hidden_sizes": [16, 24, 32] if small else [128, 192, 256], "num_attention_heads": 1 if small else 4}
    made: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "ViT": (lambda: t.ViTForImageClassification(t.ViTConfig(**vit, image_size=64)), (64,)),
        "ViT, odd grid": (lambda: t.ViTForImageClassification(t.ViTConfig(**vit, image_size=72)), (72,)),
        "DeiT": (lambda: t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**vit, image_size=64)), (64,)),
        "DINOv2": (lambda: t.Dinov2ForImageClassification(t.Dinov2Config(**usual, image_size=64)), (64, 72)),
        "DINOv2, registers": (
            lambda: t.Dinov2WithRegistersForImageClassification(t.Dinov2WithRegistersConfig(**usual, image_size=64)),
            (64, 72),
        ),
        "BEiT": (
            lambda: t.BeitForImageClassification(
                t.BeitConfig(**vit, image_size=64, use_relative_position_bias=True, use_mask_token=False)
            ),
            (64,),
        ),
        "Swin, window 4": (
            lambda: t.SwinForImageClassification(t.SwinConfig(**swin, image_size=64, window_size=4)),
            (64,),
        ),
        "Swin, window 8": (
            lambda: t.SwinForImageClassification(t.SwinConfig(**swin, image_size=64, window_size=8)),
            (64,),
        ),
        "ConvNeXtV2": (
            lambda: t.ConvNextV2ForImageClassification(t.ConvNextV2Config(**stages, num_stages=2)),
            (64, 65),
        ),
        "SegFormer": (lambda: t.SegformerForSemanticSegmentation(t.SegformerConfig(**former)), (64, 65)),
        "MobileViT": (
            lambda: t.MobileViTForImageClassification(t.MobileViTConfig(**mobile, image_size=64, num_labels=CLASSES)),
            (64,),
        ),
    }
    of_transformers = [
        Network(f"transformers {name}", make, sizes, images=name == "SegFormer", tokens=True)
        for name, (make, sizes) in made.items()
    ]
    return [
        *of_transformers,
        *_monai_on_tokens(width, depth),
        Network("torch encoder", lambda: Encoder(width), (64,), tokens=True),
    ]


def _monai_on_tokens(width: int, depth: int) -> list[Network]:
    from monai.networks import nets

    usual: dict[str, Any] = {"in_channels": CHANNELS, "img_size": (64, 64), "hidden_size": width, "mlp_dim": 4 * width}
    usual |= {"num_heads": max(1, width // 64), "spatial_dims": 2}
    vit = usual | {"patch_size": (8, 8), "num_layers": depth, "classification": True, "num_classes": CLASSES}
    swin: dict[str, Any] = {"in_channels": CHANNELS, "out_channels": CLASSES, "spatial_dims": 2, "feature_size": 24}
    return [
        Network("MONAI ViT", lambda: Logits(nets.ViT(**vit)), (64,), tokens=True),
        Network("MONAI UNETR", lambda: nets.UNETR(**usual, out_channels=CLASSES), (64,), images=True, tokens=True),
        Network("MONAI SwinUNETR", lambda: nets.SwinUNETR(**swin, window_size=8), (64,), images=True, tokens=True),
    ]


class Logits(nn.Module):
    r"""A model as one from images to its logits alone, the first or the `logits` of what it puts out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        r"""The logits."""
        out = self.model(x)
        y: Tensor = out[0] if isinstance(out, tuple) and not hasattr(out, "logits") else getattr(out, "logits", out)
        return y


class Encoder(nn.Module):
    r"""torch's own encoder on patches of 8 pixels of images of 64."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(CHANNELS, width, 8, 8)
        self.places = nn.Parameter(torch.randn(1, 64, width) / 10)
        layer = nn.TransformerEncoderLayer(width, max(1, width // 64), 4 * width, dropout=0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        r"""The logits."""
        y: Tensor = self.head(self.blocks(self.embed(x).flatten(2).transpose(1, 2) + self.places).mean(1))
        return y


def tensor_of(model: nn.Module) -> Model:
    r"""The model as a function to the tensor it puts out, also as `logits` of something larger."""

    def call(x: Tensor) -> Tensor:
        out = model(x)
        y: Tensor = getattr(out, "logits", out)
        return y

    return call


def random_loss(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    r"""The cross-entropy of random labels, of samples or of pixels."""
    call = tensor_of(model)
    with torch.no_grad():
        y = call(x)
    labels = torch.randint(CLASSES, (len(y), *y.shape[2:]), generator=torch.Generator().manual_seed(0))
    return lambda: F.cross_entropy(call(x), labels)


def images(batch: int, size: int) -> Tensor:
    r"""Noise (batch, 3, size, size), each image of a colour and a contrast of its own, so that outputs lie apart."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(batch, CHANNELS, size, size, generator=generator)
    colour = torch.randn(batch, CHANNELS, 1, 1, generator=generator)
    return x * torch.linspace(0.5, 2, batch).view(-1, 1, 1, 1) + colour


def train(model: nn.Module, x: Tensor, steps: int) -> list[float]:
    r"""The losses before each of some Adam steps on random labels, and after them; then the model is in eval mode.

    Running statistics become those of x under the last weights: a few steps would leave them near their initial ones.
    """
    model.train()
    loss_of, optimizer = random_loss(model, x), torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        losses.append(loss_of().item())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    return losses


def error(network: Network, model: nn.Module, group: Group, x: Tensor) -> float:
    r"""The worst `||f(gx) - g f(x)||` of a sample, by how far the outputs of the samples lie apart."""
    call = tensor_of(model.eval())
    with torch.no_grad():
        y = call(x).double().flatten(1)
    apart = (y - y.mean(0)).norm(dim=1).max()
    move = group.act if network.images else lambda g, y: y  # noqa: ARG005
    errors = equivariance_error(call, x, group, action_out=move, relative=False, reduction="max")
    return float(errors.max() / apart)
