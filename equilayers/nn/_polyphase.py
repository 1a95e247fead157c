r"""Polyphase subsampling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from equilayers.functional import check_polyphase, polyphase_pool2d


class PolyphasePool2d(nn.Module):
    r"""Keep the polyphase component with the largest norm: no shift, rotation or mirror changes which.

    Args:
        stride: pixels between samples, an int or a pair.
        norm: p >= 1 of the p-norm, or infinity.
        exact: whether the stride must divide the map; see `equilayers.functional.polyphase_pool2d`.

    Attributes:
        exactness: "bitwise", or "approximate" where not `exact`.

    Raises:
        TypeError, ValueError: a stride that is no int or below 1, a norm below 1; in forward, as
            `equilayers.functional.polyphase_pool2d`.

    Law: for every cyclic shift `pool(roll(x, d))` is `pool(x)`, rolled; for every rotation and mirror
        `pool(act(g, x)) == act(g, pool(x))`.

    Source: Chaman and Dokmanic 2021 (arXiv:2011.14214).
    """

    def __init__(self, stride: int | Sequence[int] = 2, norm: float = 2.0, *, exact: bool = True) -> None:
        super().__init__()
        self.stride = check_polyphase("PolyphasePool2d", stride, norm)
        self.norm, self.exact = float(norm), exact

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return "bitwise" if self.exact else "approximate"

    def forward(self, x: Tensor) -> Tensor:
        return polyphase_pool2d(x, self.stride, self.norm, exact=self.exact)

    def extra_repr(self) -> str:
        return f"stride={self.stride}, norm={self.norm:g}" + ("" if self.exact else ", exact=False")
