r"""Polyphase subsampling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from equilayers.functional import check_polyphase, polyphase_pool2d, polyphase_unpool2d


class PolyphasePool2d(nn.Module):
    r"""Keep the polyphase component with the largest norm: no shift, rotation or mirror changes which.

    Args:
        stride: pixels between samples, an int or a pair.
        norm: p >= 1 of the p-norm, or infinity.
        exact: whether the stride must divide the map; see `equilayers.functional.polyphase_pool2d`.
        return_choice: put out which component was kept as well, (B, 2), for `PolyphaseUnpool2d`.

    Attributes:
        exactness: "bitwise", or "approximate" where not `exact`.

    Raises:
        TypeError, ValueError: a stride that is no int or below 1, a norm below 1; in forward, as
            `equilayers.functional.polyphase_pool2d`.

    Law: for every cyclic shift `pool(roll(x, d))` is `pool(x)`, rolled; for every rotation and mirror
        `pool(act(g, x)) == act(g, pool(x))`.

    Source: Chaman and Dokmanic 2021 (arXiv:2011.14214).
    """

    def __init__(
        self, stride: int | Sequence[int] = 2, norm: float = 2.0, *, exact: bool = True, return_choice: bool = False
    ) -> None:
        super().__init__()
        self.stride = check_polyphase("PolyphasePool2d", stride, norm)
        self.norm, self.exact, self.return_choice = float(norm), exact, return_choice

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return "bitwise" if self.exact else "approximate"

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.return_choice:
            return polyphase_pool2d(x, self.stride, self.norm, exact=self.exact, return_choice=True)
        return polyphase_pool2d(x, self.stride, self.norm, exact=self.exact)

    def extra_repr(self) -> str:
        choice = ", return_choice=True" if self.return_choice else ""
        return f"stride={self.stride}, norm={self.norm:g}" + ("" if self.exact else ", exact=False") + choice


class PolyphaseUnpool2d(nn.Module):
    r"""Put each sample back to where a `PolyphasePool2d(return_choice=True)` took it from, with zeros between.

    Args:
        stride: that of the pool.

    Attributes:
        exactness: "bitwise".

    Raises:
        TypeError, ValueError: a stride that is no int or below 1; in forward(y, choice), as
            `equilayers.functional.polyphase_unpool2d`.

    Law: with `y, choice = pool(x)`, and layers between that commute with shifts and turns, `unpool(y, choice)` moves as
        x does, under every cyclic shift and every rotation and mirror; the same pool with its choice undoes it.

    Source: Chaman and Dokmanic 2022 (arXiv:2105.04040).
    """

    exactness = "bitwise"

    def __init__(self, stride: int | Sequence[int] = 2) -> None:
        super().__init__()
        self.stride = check_polyphase("PolyphaseUnpool2d", stride, 1.0)

    def forward(self, y: Tensor, choice: Tensor) -> Tensor:
        return polyphase_unpool2d(y, choice, self.stride)

    def extra_repr(self) -> str:
        return f"stride={self.stride}"
