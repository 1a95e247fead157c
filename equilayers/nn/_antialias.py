r"""Anti-aliased subsampling layers."""

from __future__ import annotations

from torch import Tensor, nn

from equilayers._checks import check_choice, check_int
from equilayers.functional._antialias import (
    ALGORITHMS,
    Stride,
    Taps,
    avg_blur_pool2d,
    blur_pool2d,
    check_mode,
    check_stride,
    check_taps,
    max_blur_pool2d,
)
from equilayers.functional._geometry import Pair
from equilayers.groups import Group
from equilayers.nn._conv import GroupConv2d

ORDERS = ("conv-activation-blur", "blur-conv-activation")


class BlurPool2d(nn.Module):
    r"""Blur with a binomial filter and subsample, (..., H, W) to (..., ceil(H / stride), ceil(W / stride)).

    Args:
        taps: "auto", 1 to 7, or the weights along one axis; see `equilayers.functional.blur_pool2d`.
        stride: pixels between samples, an int or a pair.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        exact: whether fixed taps must sample every size symmetrically.
        algorithm: "bitwise", or "dense" for one depthwise convolution, faster and at rounding level.

    Attributes:
        exactness: "bitwise" or "rounding" with "auto" or `exact` and symmetric weights; "approximate" otherwise.

    Raises:
        TypeError, ValueError: settings that make no sense; in forward, as `equilayers.functional.blur_pool2d`.

    Law: `pool(act(g, x)) == act(g, pool(x))` for every turn and mirror g, at every size.

    Source: Zhang 2019 (arXiv:1904.11486).
    """

    def __init__(
        self,
        taps: Taps = "auto",
        stride: Stride = 2,
        padding_mode: str = "reflect",
        *,
        exact: bool = False,
        algorithm: str = "bitwise",
    ) -> None:
        super().__init__()
        self.taps, self.stride, self.padding_mode = _checked("BlurPool2d", taps, stride, padding_mode)
        self.exact, self.algorithm = exact, check_choice("BlurPool2d", "algorithm", algorithm, ALGORITHMS)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return _exactness(self.taps, self.exact, self.algorithm)

    def forward(self, x: Tensor) -> Tensor:
        return blur_pool2d(x, self.taps, self.stride, self.padding_mode, exact=self.exact, algorithm=self.algorithm)

    def extra_repr(self) -> str:
        return _repr(self)


class MaxBlurPool2d(nn.Module):
    r"""The maximum of every window, then `BlurPool2d`: in the place of `torch.nn.MaxPool2d(kernel_size, stride)`.

    Args:
        taps, stride, padding_mode, exact, algorithm: of `BlurPool2d`.
        kernel_size: pixels of a window.

    Attributes:
        exactness: as of `BlurPool2d`.

    Raises:
        TypeError, ValueError: as `BlurPool2d`.

    Law: `pool(act(g, x)) == act(g, pool(x))` for every turn and mirror g, at every size.

    Source: Zhang 2019, section 3.2 (arXiv:1904.11486).
    """

    def __init__(
        self,
        taps: Taps = "auto",
        stride: Stride = 2,
        padding_mode: str = "reflect",
        *,
        kernel_size: int = 2,
        exact: bool = False,
        algorithm: str = "bitwise",
    ) -> None:
        super().__init__()
        self.taps, self.stride, self.padding_mode = _checked("MaxBlurPool2d", taps, stride, padding_mode)
        self.exact, self.algorithm = exact, check_choice("MaxBlurPool2d", "algorithm", algorithm, ALGORITHMS)
        self.kernel_size = check_int("MaxBlurPool2d", "kernel_size", kernel_size, 1)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return _exactness(self.taps, self.exact, self.algorithm)

    def forward(self, x: Tensor) -> Tensor:
        settings = self.taps, self.stride, self.padding_mode
        return max_blur_pool2d(x, *settings, kernel_size=self.kernel_size, exact=self.exact, algorithm=self.algorithm)

    def extra_repr(self) -> str:
        return f"{_repr(self)}, kernel_size={self.kernel_size}"


class AvgBlurPool2d(nn.Module):
    r"""The mean of every window, then `BlurPool2d`: in the place of `torch.nn.AvgPool2d(kernel_size, stride)`.

    Args:
        taps, stride, padding_mode, exact, algorithm: of `BlurPool2d`.
        kernel_size: pixels of a window.

    Attributes:
        exactness: as of `BlurPool2d`.

    Raises:
        TypeError, ValueError: as `BlurPool2d`.

    Law: `pool(act(g, x)) == act(g, pool(x))` for every turn and mirror g, at every size.
    """

    def __init__(
        self,
        taps: Taps = "auto",
        stride: Stride = 2,
        padding_mode: str = "reflect",
        *,
        kernel_size: int = 2,
        exact: bool = False,
        algorithm: str = "bitwise",
    ) -> None:
        super().__init__()
        self.taps, self.stride, self.padding_mode = _checked("AvgBlurPool2d", taps, stride, padding_mode)
        self.exact, self.algorithm = exact, check_choice("AvgBlurPool2d", "algorithm", algorithm, ALGORITHMS)
        self.kernel_size = check_int("AvgBlurPool2d", "kernel_size", kernel_size, 1)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return _exactness(self.taps, self.exact, self.algorithm)

    def forward(self, x: Tensor) -> Tensor:
        settings = self.taps, self.stride, self.padding_mode
        return avg_blur_pool2d(x, *settings, kernel_size=self.kernel_size, exact=self.exact, algorithm=self.algorithm)

    def extra_repr(self) -> str:
        return f"{_repr(self)}, kernel_size={self.kernel_size}"


class BlurConv2d(nn.Module):
    r"""A strided convolution without aliasing: convolution at stride 1, activation, blur and subsample.

    Args:
        in_channels, out_channels: of the convolution.
        kernel_size: of the convolution, an int or a pair.
        stride: of the subsampling, an int or a pair.
        padding, dilation, groups, bias: of the convolution, as in torch.nn.Conv2d; `groups` are channel groups.
        padding_mode: of the blur and, unless `conv_padding_mode` says otherwise, of the convolution.
        taps: of the blur: "auto", 1 to 7, or the weights along one axis.
        activation: between the convolution and the blur; ReLU if None, nn.Identity() for none.
        order: "conv-activation-blur", the order that Zhang found best, or "blur-conv-activation", which convolves the
            small map instead of the large one: stride^2 times cheaper.
        group: a symmetry, for a `GroupConv2d` between regular features; none for a torch.nn.Conv2d.
        conv_padding_mode: of the convolution, where it is not that of the blur.

    Attributes:
        conv: the convolution, at stride 1.
        exactness: "rounding" with "auto" taps, where the convolution keeps the law; "approximate" otherwise.

    Raises:
        TypeError, ValueError: settings that make no sense; in forward, as `equilayers.functional.blur_pool2d`.

    Law: with a group, `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g.

    Source: Zhang 2019, section 3.2 (arXiv:1904.11486).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Stride,
        stride: Stride = 2,
        padding: Stride | str = 0,
        dilation: Stride = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "reflect",
        *,
        taps: Taps = "auto",
        activation: nn.Module | None = None,
        order: str = ORDERS[0],
        group: Group | None = None,
        conv_padding_mode: str | None = None,
    ) -> None:
        super().__init__()
        who = "BlurConv2d"
        self.taps, self.stride, self.padding_mode = _checked(who, taps, stride, padding_mode)
        self.order = check_choice(who, "order", order, ORDERS)
        mode = check_mode(who, padding_mode if conv_padding_mode is None else conv_padding_mode)
        settings = in_channels, out_channels, kernel_size, 1, padding, dilation, groups, bias, mode
        self.conv = nn.Conv2d(*settings) if group is None else GroupConv2d(group, *settings)  # type: ignore[arg-type]
        self.activation = nn.ReLU() if activation is None else activation

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return "rounding" if _exactness(self.taps, False, "dense") == "rounding" else "approximate"

    def forward(self, x: Tensor) -> Tensor:
        settings = self.taps, self.stride, self.padding_mode
        if self.order == ORDERS[0]:
            return blur_pool2d(self.activation(self.conv(x)), *settings)
        y: Tensor = self.activation(self.conv(blur_pool2d(x, *settings)))
        return y

    def extra_repr(self) -> str:
        return f"{_repr(self)}, order={self.order!r}"


def _checked(who: str, taps: Taps, stride: Stride, padding_mode: str) -> tuple[Taps, Pair, str]:
    check_taps(who, taps)
    kept = taps if isinstance(taps, int | str) else tuple(map(float, taps))
    return kept, check_stride(who, stride), check_mode(who, padding_mode)


def _exactness(taps: Taps, exact: bool, algorithm: str) -> str:
    symmetric = isinstance(taps, int | str) or tuple(taps) == tuple(taps)[::-1]
    if not symmetric or not (exact or taps == "auto"):
        return "approximate"
    return "bitwise" if algorithm == "bitwise" else "rounding"


def _repr(layer: BlurPool2d | MaxBlurPool2d | AvgBlurPool2d | BlurConv2d) -> str:
    text = f"taps={layer.taps!r}, stride={layer.stride}, padding_mode={layer.padding_mode!r}"
    text += ", exact=True" if getattr(layer, "exact", False) else ""
    return text + (", algorithm='dense'" if getattr(layer, "algorithm", "") == "dense" else "")
