r"""Normalisation layers of regular features at many positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equilayers._checks import check_int
from equilayers.functional import group_layer_norm, group_rms_norm


class GroupLayerNorm(nn.Module):
    r"""Layer normalisation of a regular feature (B, C, |G|, *S): over C and the fiber, at each position.

    Args:
        num_features: channels, C.
        eps: added to the variance.
        elementwise_affine: learn a weight, and with it a bias, one per channel, shared over the fiber.
        bias: learn a bias.

    Attributes:
        weight: (C,) or None, ones at first. bias: (C,) or None, zeros at first. exactness: "rounding".

    Raises:
        TypeError, ValueError: in forward, as `equilayers.functional.group_layer_norm`.

    Law: `norm(act_regular(g, f)) == act_regular(g, norm(f))` for all g, to rounding.

    Source: Ba, Kiros and Hinton 2016 (arXiv:1607.06450).
    """

    exactness = "rounding"
    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = check_int("GroupLayerNorm", "num_features", num_features, 1), eps
        made = torch.empty(self.num_features, device=device, dtype=dtype)
        self.register_parameter("weight", nn.Parameter(made) if elementwise_affine else None)
        self.register_parameter("bias", nn.Parameter(made.clone()) if elementwise_affine and bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Weight one, bias zero."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, f: Tensor) -> Tensor:
        return group_layer_norm(f, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, elementwise_affine={self.weight is not None}"


class GroupRMSNorm(nn.Module):
    r"""Root mean square normalisation of a regular feature (B, C, |G|, *S): over C and the fiber, at each position.

    Args:
        num_features: channels, C.
        eps: added to the mean square; the machine epsilon if None.
        elementwise_affine: learn a weight, one per channel, shared over the fiber.

    Attributes:
        weight: (C,) or None, ones at first. exactness: "rounding".

    Raises:
        TypeError, ValueError: in forward, as `equilayers.functional.group_rms_norm`.

    Law: `norm(act_regular(g, f)) == act_regular(g, norm(f))` for all g, to rounding.

    Source: Zhang and Sennrich 2019 (arXiv:1910.07467).
    """

    exactness = "rounding"
    weight: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps = check_int("GroupRMSNorm", "num_features", num_features, 1), eps
        made = torch.empty(self.num_features, device=device, dtype=dtype)
        self.register_parameter("weight", nn.Parameter(made) if elementwise_affine else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Weight one."""
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, f: Tensor) -> Tensor:
        return group_rms_norm(f, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, elementwise_affine={self.weight is not None}"
