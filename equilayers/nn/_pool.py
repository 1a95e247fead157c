r"""Pooling layers."""

from __future__ import annotations

from torch import Tensor, nn

from equilayers._checks import check_choice, check_tensor
from equilayers.functional import ORBIT_REDUCTIONS, invariant_avg_pool2d, orbit_pool
from equilayers.groups import Group, as_group


class OrbitPool(nn.Module):
    r"""Reduce the fiber of a regular feature, (B, C, |G|) to (B, C) or (B, C, |G|, H, W) to (B, C, H, W).

    Args:
        reduction: "max", "mean", "logsumexp" or "norm"; see `equilayers.functional.orbit_pool`.
        group: the symmetry, or None: with it, an input whose axis 2 is no fiber of that group is refused, such as maps
            (B, C, H, W) that were never lifted, which cannot be told from features of tokens otherwise.

    Attributes:
        exactness: "bitwise", or "rounding" for "logsumexp".

    Raises:
        ValueError: an unknown reduction; in forward, an input without a fiber.
        TypeError: group is no group; in forward, an input that is not floating-point.

    Law: `pool(act_regular(g, f)) == act(g, pool(f))`, and `pool(f)` where there is no space, for all g.

    Source: Cohen and Welling 2016, section 6.3 (arXiv:1602.07576).
    """

    def __init__(self, reduction: str = "max", group: Group | str | None = None) -> None:
        super().__init__()
        self.reduction = check_choice("OrbitPool", "reduction", reduction, ORBIT_REDUCTIONS)
        self.group = None if group is None else as_group("OrbitPool", group)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return "rounding" if self.reduction == "logsumexp" else "bitwise"

    def forward(self, f: Tensor) -> Tensor:
        if self.group is not None:
            self.group.check_fiber(check_tensor("OrbitPool", "f", f), "OrbitPool")
        return orbit_pool(f, self.reduction)

    def extra_repr(self) -> str:
        return repr(self.reduction) if self.group is None else f"{self.reduction!r}, group={self.group!r}"


class InvariantAvgPool2d(nn.Module):
    r"""The mean over the map, (B, C, H, W) to (B, C) or (B, C, |G|, H, W) to (B, C, |G|).

    Attributes:
        exactness: "bitwise".

    Raises:
        TypeError: in forward, an input that is not floating-point.
        ValueError: in forward, an input without a map.

    Law: `pool(act(g, x)) == pool(x)` for every rotation and mirror of the map; of a regular feature the fiber alone is
        permuted. See `equilayers.functional.invariant_avg_pool2d`.
    """

    exactness = "bitwise"

    def forward(self, x: Tensor) -> Tensor:
        return invariant_avg_pool2d(x)
