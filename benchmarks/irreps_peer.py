r"""A transformer block of D4 features in irreps, as octic vision transformers have it, in plain PyTorch.

Written from the description in Nordstrom et al. 2025 (arXiv:2505.15441): features are kept per irrep, linear layers are
one matrix per irrep, the nonlinearity goes to the regular basis and back. The paper's fused GPU kernel is not here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Irreps = tuple[Tensor, Tensor]  # the four signs (B, N, 4, C), and the plane, two rows of two (B, N, 2, 2C)


def d4_basis() -> Tensor:
    r"""The orthonormal coefficients (8, 8) of the four signs, and of the rows of the plane; element r + 4m."""
    quarter, mirror = torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.tensor([[-1.0, 0.0], [0.0, 1.0]])
    elements = [(r, m) for m in range(2) for r in range(4)]
    signs = [[s**r * t**m / 8**0.5 for r, m in elements] for s in (1, -1) for t in (1, -1)]
    power = torch.linalg.matrix_power
    plane = torch.stack([power(quarter, r) @ power(mirror, m) for r, m in elements], -1) / 2
    return torch.cat((torch.tensor(signs), plane.flatten(0, 1)))


class IrrepLinear(nn.Module):
    r"""One matrix for each sign, and one for both rows of the plane."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.signs = nn.Parameter(torch.randn(4, features, out) / features**0.5)
        self.bias = nn.Parameter(torch.zeros(out))
        self.plane = nn.Linear(2 * features, 2 * out, bias=False)

    def forward(self, x: Irreps) -> Irreps:
        signs = torch.einsum("bnic,ico->bnio", x[0], self.signs)
        trivial, rest = signs.split((1, 3), 2)
        return torch.cat((trivial + self.bias, rest), 2), self.plane(x[1])


class IrrepNorm(nn.Module):
    r"""Layer norm of all coefficients of a token, with a gain per channel."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Irreps) -> Irreps:
        signs, plane = x
        trivial, rest = signs.split((1, 3), 2)
        signs = torch.cat((trivial - trivial.mean(-1, keepdim=True), rest), 2)
        square = (signs.square().sum((2, 3)) + plane.square().sum((2, 3))) / (8 * signs.shape[-1])
        factor = torch.rsqrt(square + 1e-5)[..., None, None]
        trivial, rest = (signs * factor * self.gain).split((1, 3), 2)
        return torch.cat((trivial + self.bias, rest), 2), plane * factor * self.gain.repeat(2)


class IrrepBlock(nn.Module):
    r"""The encoder layer on tokens (B, N, 8, C) in irreps, pre-norm, gelu; `features` is C."""

    basis: Tensor

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = IrrepNorm(features), IrrepNorm(features)
        self.qkv, self.out = IrrepLinear(features, 3 * features), IrrepLinear(features, features)
        self.up, self.down = IrrepLinear(features, 4 * features), IrrepLinear(4 * features, features)
        self.register_buffer("basis", d4_basis(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.add(_split(tokens), self.attention(self.norm1(_split(tokens))))
        hidden = self.basis.mT @ _joined(self.up(self.norm2(x)))
        return _joined(self.add(x, self.down(_split(self.basis @ F.gelu(hidden)))))

    def attention(self, x: Irreps) -> Irreps:
        r"""Inner products over all coefficients of a head."""
        qkv = _joined(self.qkv(x)).unflatten(3, (3, self.heads, -1))  # (B, N, 8, 3, heads, d)
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).flatten(4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).unflatten(3, (8, -1)).permute(0, 2, 3, 1, 4).flatten(3)
        return self.out(_split(y))

    @staticmethod
    def add(x: Irreps, y: Irreps) -> Irreps:
        r"""The residual sum."""
        return x[0] + y[0], x[1] + y[1]


def _split(tokens: Tensor) -> Irreps:
    signs, plane = tokens.split((4, 4), 2)
    return signs, plane.unflatten(2, (2, 2)).flatten(3)


def _joined(x: Irreps) -> Tensor:
    return torch.cat((x[0], x[1].unflatten(3, (2, -1)).flatten(2, 3)), 2)
