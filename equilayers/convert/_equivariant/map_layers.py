r"""Layers of converted networks that change the size of maps, or put out images; fibers lie in the channels.

`fiber_layers` says why they do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers.functional import ConvSpec, WeightCache, expand, is_plain, orbit_pool
from equilayers.functional.strides import ALGORITHMS, StrideSpec, align
from equilayers.functional.transposed import TransposedSpec, by_torch, conv_transpose
from equilayers.groups import Group
from equilayers.nn import GroupConv2d, GroupConvTranspose2d, LiftingConv2d

LANES = 16  # numbers in a vector of a processor


class Aligned(nn.Module):
    r"""Maps made ready for the strided convolution behind it: see `equilayers.functional.strides`.

    Args:
        spec: where the convolution samples.
    """

    ALGORITHMS = ALGORITHMS

    def __init__(self, spec: StrideSpec) -> None:
        super().__init__()
        self.spec = spec

    @property
    def algorithm(self) -> str:
        r"""The name of the algorithm; it may be set."""
        return self.spec.algorithm

    @algorithm.setter
    def algorithm(self, algorithm: str) -> None:
        self.spec = self.spec.with_algorithm("Aligned", algorithm)

    def forward(self, x: Tensor) -> Tensor:
        return align("Aligned", x, self.spec)

    def extra_repr(self) -> str:
        kernel = tuple(span + 1 for span in self.spec.spans)
        return f"reach={kernel}, stride={self.spec.stride}, padding={self.spec.padding}"


class FiberConvTranspose2d(nn.Module):
    r"""A transposed group convolution, blurred where torch's would append a pixel to one side.

    The two-pixel mean of a map one pixel larger is symmetric, as large, and the adjoint of what `Aligned` does. It is
    taken of the filter, which becomes one pixel larger.

    Args:
        conv: the transposed convolution of the larger map.
        blurred: along which axes, height and width, that map is a pixel too large; the dilation is 1 there.
        mean: whether the mean over the fibers follows: that of the filters, which gives images.
    """

    def __init__(
        self, conv: GroupConvTranspose2d, blurred: tuple[bool, bool] = (False, False), *, mean: bool = False
    ) -> None:
        super().__init__()
        self.conv = conv
        self.blurred = blurred
        self.mean = mean
        self._cache = WeightCache()

    @property
    def weight(self) -> Tensor:
        r"""That of the convolution."""
        return self.conv.weight

    @property
    def spec(self) -> TransposedSpec:
        r"""The settings for the filter that may be a pixel larger."""
        return self.conv.spec.blurred(self.blurred)

    def forward(self, x: Tensor) -> Tensor:
        conv, spec, n = self.conv, self.spec, self.conv.group.order
        if spec.algorithm not in ("auto", "dense"):  # in an order that the group leaves alone
            f = x.unflatten(1, (-1, n))
            y = conv_transpose("FiberConvTranspose2d", f, self.blurred_weight(), conv.bias, spec, None)
            return orbit_pool(y, "mean") if self.mean else y.flatten(1, 2)
        bias = conv.bias if conv.bias is None or self.mean else conv.bias.repeat_interleave(n)
        return by_torch(x, kept(self._cache, conv.weight, self.filters), bias, spec)

    def filters(self) -> Tensor:
        r"""Those of the plain transposed convolution, (C·|G|, O·|G| / groups, kh, kw), or of images O / groups."""
        filters = expand(self.blurred_weight(), self.conv.group)
        return filters.unflatten(1, (-1, self.conv.group.order)).mean(2) if self.mean else filters

    def blurred_weight(self) -> Tensor:
        r"""The weight (C, O / groups, |G|, kh, kw), blurred."""
        weight = self.conv.weight
        down, right = self.blurred
        if down:
            weight = (F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))) / 2
        if right:
            weight = (F.pad(weight, (0, 1)) + F.pad(weight, (1, 0))) / 2
        return weight


class FiberPixelShuffle(nn.Module):
    r"""Pixels out of channels, or back, where channels are whole fields, (B, C·|G|, H, W).

    Of the field (c, o) plane h becomes the pixel h·o of plane h of field c, o one of the r x r offsets: a fixed order
    of the channels, then torch.nn.PixelShuffle.

    Args:
        group: the symmetry.
        fields: C of the larger map.
        factor: r.
        back: put pixels into channels instead, as torch.nn.PixelUnshuffle.

    Law: `layer(g·x) == g·layer(x)` bitwise, where g turns maps and fibers.

    Source: Shi et al. 2016 (arXiv:1609.05158) for the shuffle.
    """

    order: Tensor

    def __init__(self, group: Group, fields: int, factor: int, *, back: bool = False) -> None:
        super().__init__()
        self.factor, self.back = factor, back
        offsets = torch.arange(factor**2).view(factor, factor)
        source = torch.stack([group.act(h, offsets).flatten() * group.order + h for h in range(group.order)])
        order = (torch.arange(fields)[:, None] * factor**2 * group.order + source.flatten()).flatten()
        self.register_buffer("order", order.argsort() if back else order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.back:
            return F.pixel_unshuffle(x, self.factor)[:, self.order]
        return F.pixel_shuffle(x[:, self.order], self.factor)

    def extra_repr(self) -> str:
        return f"{self.factor}, back={self.back}"


class FiberMeanConv2d(nn.Module):
    r"""A convolution and the mean over its fibers, at the cost of a convolution to images: the mean of its filters.

    Args:
        conv: the convolution.
        spread: whether the mean stands in every plane of a fiber, where something with fibers is added to it.
    """

    def __init__(self, conv: LiftingConv2d | GroupConv2d, *, spread: bool = False) -> None:
        super().__init__()
        self.conv = conv
        self.spread = spread
        self._cache = WeightCache()

    @property
    def weight(self) -> Tensor:
        r"""That of the convolution."""
        return self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        conv, n = self.conv, self.conv.group.order
        if conv.spec.algorithm not in ("auto", "dense"):  # in an order that the group leaves alone
            y = orbit_pool(conv(x if isinstance(conv, LiftingConv2d) else x.unflatten(1, (-1, n))), "mean")
        else:
            maps, spec = conv.spec.padded(x)
            filters = kept(self._cache, conv.weight, self.filters)
            if _is_narrow(maps, filters, spec):
                y = _tap_by_tap(maps, filters, conv.bias, spec)
            else:
                y = F.conv2d(maps, filters, conv.bias, spec.stride, spec.padding, spec.dilation, spec.groups)
        return y.unsqueeze(2).expand(-1, -1, n, -1, -1).flatten(1, 2) if self.spread else y

    def filters(self) -> Tensor:
        r"""The mean over the fiber of the expanded filter, (O, C·|G| / groups, kh, kw)."""
        return expand(self.conv.weight, self.conv.group).unflatten(0, (-1, self.conv.group.order)).mean(1)


def _is_narrow(maps: Tensor, filters: Tensor, spec: ConvSpec) -> bool:
    r"""Whether a convolution would leave most lanes of a processor's vectors empty, and `_tap_by_tap` does not."""
    covers = all(span >= pad for span, pad in zip(spec.spans, spec.padding, strict=True))
    plain = spec.groups == 1 and spec.stride == (1, 1) and spec.kernel_size != (1, 1) and covers
    return plain and maps.device.type == "cpu" and len(filters) < LANES <= maps.shape[1]


def _tap_by_tap(maps: Tensor, filters: Tensor, bias: Tensor | None, spec: ConvSpec) -> Tensor:
    r"""A convolution as one product for all taps, whose results are added where they belong: output i - t of tap t."""
    taps = filters.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, filters.shape[1], 1, 1)
    down, right = (span - pad for span, pad in zip(spec.spans, spec.padding, strict=True))
    size = spec.out_size((maps.shape[2], maps.shape[3]))
    y = F.fold(F.conv2d(maps, taps).flatten(2), size, spec.kernel_size, spec.dilation, (down, right))
    return y if bias is None else y + bias[:, None, None].to(y.dtype)


def kept(cache: WeightCache, weight: Tensor, make: Callable[[], Tensor]) -> Tensor:
    r"""The filters made of a weight, kept between calls that want no gradient."""
    filters: Tensor = cache.get(weight, make) if is_plain(weight) and not torch.compiler.is_compiling() else make()
    return filters
