"""Small models on tokens: of transformers and MONAI, and written by hand."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.third_party import CLASSES, Logits


class Patches(nn.Module):
    """A vision transformer by hand: patches cut out, one product for queries, keys and values, heads by views."""

    def __init__(self, width: int = 32, heads: int = 2, patch: int = 4, tokens: int = 16) -> None:
        super().__init__()
        self.heads, self.patch = heads, patch
        self.embed = nn.Sequential(nn.LayerNorm(3 * patch**2), nn.Linear(3 * patch**2, width), nn.LayerNorm(width))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, tokens + 1, width))
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, CLASSES)

    def cut(self, x: Tensor) -> Tensor:
        """Patches as rows (B, N, p·p·C)."""
        b, c, h, w = x.shape
        p = self.patch
        return x.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * p * c)

    def attend(self, x: Tensor) -> Tensor:
        """Attention over all tokens."""
        b, n, d = x.shape
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, dim=-1))
        weights = torch.matmul(q, k.transpose(-1, -2) * (d // self.heads) ** -0.5).softmax(-1)
        y: Tensor = self.out((weights @ v).transpose(1, 2).reshape(b, n, d))
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(self.cut(x))
        x = torch.cat((self.token.expand(len(x), -1, -1), x), dim=1) + self.places[:, : x.shape[1] + 1]
        x = x + self.attend(x)
        x = x + self.mlp(x)
        y: Tensor = self.head(x[:, 0])
        return y


class Encoder(nn.Module):
    """torch's own encoder on the patches of a convolution, and a learned query that reads it out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, stride=4)
        self.places = nn.Parameter(torch.randn(16, 32))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 1)
        self.query = nn.Parameter(torch.randn(1, 1, 32))
        self.read = nn.MultiheadAttention(32, 2, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.embed(x).flatten(2).transpose(1, 2) + self.places)
        y: Tensor = self.head(self.read(self.query.repeat(len(x), 1, 1), x, x)[0][:, 0])
        return y


class Dense(Patches):
    """Logits of every pixel, by a linear layer on every token and resizing."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        x = self.embed(self.cut(x))
        x = x + self.attend(x)
        x = self.head(x + self.mlp(x)).transpose(1, 2)
        side = int(x.shape[-1] ** 0.5)
        return nn.functional.interpolate(x.unflatten(2, (side, side)), size=size, mode="bilinear")


def models() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """By name, how each is made, and sizes of its images, the first of which it is converted at."""
    import transformers as t
    from monai.networks import nets

    usual: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": CLASSES}
    vit = usual | {"intermediate_size": 64, "patch_size": 8}
    dino = usual | {"mlp_ratio": 2, "patch_size": 8, "image_size": 32}
    beit = vit | {"image_size": 24}
    stages: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": CLASSES}
    swin = {"patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "num_labels": CLASSES}
    former = {
        "num_encoder_blocks": 2,
        "sr_ratios": [2, 1],
        "patch_sizes": [7, 3],
        "strides": [4, 2],
        "mlp_ratios": [2, 2],
    }
    former |= {"num_attention_heads": [1, 2], "decoder_hidden_size": 32} | stages
    mit = {"in_channels": 3, "img_size": (32, 32), "patch_size": (8, 8), "hidden_size": 32, "mlp_dim": 64}
    mit |= {"num_heads": 2, "spatial_dims": 2}
    return {
        "ViT": (lambda: Logits(t.ViTForImageClassification(t.ViTConfig(**vit, image_size=32))), (32,)),
        "ViT, odd": (lambda: Logits(t.ViTForImageClassification(t.ViTConfig(**vit, image_size=24))), (24,)),
        "DeiT": (
            lambda: Logits(t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**vit, image_size=32))),
            (32,),
        ),
        "DINOv2": (lambda: Logits(t.Dinov2ForImageClassification(t.Dinov2Config(**dino))), (32, 24, 37)),
        "DINOv2, registers": (
            lambda: Logits(t.Dinov2WithRegistersForImageClassification(t.Dinov2WithRegistersConfig(**dino))),
            (32, 24),
        ),
        "BEiT": (
            lambda: Logits(t.BeitForImageClassification(t.BeitConfig(**beit, use_relative_position_bias=True))),
            (24, 32),
        ),
        "ConvNeXt": (
            lambda: Logits(t.ConvNextForImageClassification(t.ConvNextConfig(**stages, num_stages=2))),
            (32, 33),
        ),
        "ConvNeXtV2": (
            lambda: Logits(t.ConvNextV2ForImageClassification(t.ConvNextV2Config(**stages, num_stages=2))),
            (32, 33),
        ),
        "Swin": (
            lambda: Logits(t.SwinForImageClassification(t.SwinConfig(**swin, image_size=64, window_size=4))),
            (64,),
        ),
        "SegFormer": (lambda: Logits(t.SegformerForSemanticSegmentation(t.SegformerConfig(**former))), (64, 65)),
        "MONAI ViT": (
            lambda: Logits(nets.ViT(**mit, num_layers=2, classification=True, num_classes=CLASSES)),
            (32,),
        ),
        "by hand": (Patches, (16,)),
        "by hand, odd": (lambda: Patches(patch=5, tokens=9), (15,)),
        "dense, by hand": (Dense, (16, 20)),
        "torch": (Encoder, (16,)),
    }
