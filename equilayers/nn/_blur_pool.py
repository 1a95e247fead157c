r"""Anti-aliased subsampling layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equilayers._checks import Pair, check_choice, check_int
from equilayers.functional._blur_pool import (
    ALGORITHMS,
    Stride,
    Taps,
    avg_blur_pool2d,
    blur_pool2d,
    check_max_padding,
    check_mode,
    check_stride,
    check_taps,
    max_blur_pool2d,
)


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

    ALGORITHMS = ALGORITHMS

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
        self.taps, self.stride, self.padding_mode = checked("BlurPool2d", taps, stride, padding_mode)
        self.exact, self.algorithm = exact, check_choice("BlurPool2d", "algorithm", algorithm, ALGORITHMS)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return exactness_of(self.taps, self.exact, self.algorithm)

    def forward(self, x: Tensor) -> Tensor:
        return blur_pool2d(x, self.taps, self.stride, self.padding_mode, exact=self.exact, algorithm=self.algorithm)

    def extra_repr(self) -> str:
        return settings_of(self)


class MaxBlurPool2d(nn.Module):
    r"""The maximum of every window, then `BlurPool2d`: in the place of `torch.nn.MaxPool2d(kernel_size, stride)`.

    Args:
        taps, stride, padding_mode, exact, algorithm: of `BlurPool2d`.
        kernel_size: pixels of a window.
        padding: pixels on every side that no maximum is taken from, as in torch.nn.MaxPool2d.

    Attributes:
        exactness: as of `BlurPool2d`.

    Raises:
        TypeError, ValueError: as `BlurPool2d`.

    Law: `pool(act(g, x)) == act(g, pool(x))` for every turn and mirror g, at every size.

    Source: Zhang 2019, section 3.2 (arXiv:1904.11486).
    """

    ALGORITHMS = ALGORITHMS

    def __init__(
        self,
        taps: Taps = "auto",
        stride: Stride = 2,
        padding_mode: str = "reflect",
        *,
        kernel_size: int = 2,
        padding: int = 0,
        exact: bool = False,
        algorithm: str = "bitwise",
    ) -> None:
        super().__init__()
        self.taps, self.stride, self.padding_mode = checked("MaxBlurPool2d", taps, stride, padding_mode)
        self.exact, self.algorithm = exact, check_choice("MaxBlurPool2d", "algorithm", algorithm, ALGORITHMS)
        self.kernel_size = check_int("MaxBlurPool2d", "kernel_size", kernel_size, 1)
        self.padding = check_max_padding("MaxBlurPool2d", padding, kernel_size, padding_mode)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return exactness_of(self.taps, self.exact, self.algorithm)

    def forward(self, x: Tensor) -> Tensor:
        return max_blur_pool2d(
            x,
            self.taps,
            self.stride,
            self.padding_mode,
            kernel_size=self.kernel_size,
            padding=self.padding,
            exact=self.exact,
            algorithm=self.algorithm,
        )

    def extra_repr(self) -> str:
        padding = f", padding={self.padding}" if self.padding else ""
        return f"{settings_of(self)}, kernel_size={self.kernel_size}{padding}"


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

    ALGORITHMS = ALGORITHMS

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
        self.taps, self.stride, self.padding_mode = checked("AvgBlurPool2d", taps, stride, padding_mode)
        self.exact, self.algorithm = exact, check_choice("AvgBlurPool2d", "algorithm", algorithm, ALGORITHMS)
        self.kernel_size = check_int("AvgBlurPool2d", "kernel_size", kernel_size, 1)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return exactness_of(self.taps, self.exact, self.algorithm)

    def forward(self, x: Tensor) -> Tensor:
        settings = self.taps, self.stride, self.padding_mode
        return avg_blur_pool2d(x, *settings, kernel_size=self.kernel_size, exact=self.exact, algorithm=self.algorithm)

    def extra_repr(self) -> str:
        return f"{settings_of(self)}, kernel_size={self.kernel_size}"


def checked(caller: str, taps: Taps, stride: Stride, padding_mode: str) -> tuple[Taps, Pair, str]:
    check_taps(caller, taps)
    kept = taps if isinstance(taps, int | str) else tuple(map(float, taps))
    return kept, check_stride(caller, stride), check_mode(caller, padding_mode)


def exactness_of(taps: Taps, exact: bool, algorithm: str) -> str:
    symmetric = isinstance(taps, int | str) or tuple(taps) == tuple(taps)[::-1]
    if not symmetric or not (exact or taps == "auto"):
        return "approximate"
    return "bitwise" if algorithm == "bitwise" else "rounding"


def settings_of(layer: Any) -> str:
    text = f"taps={layer.taps!r}, stride={layer.stride}, padding_mode={layer.padding_mode!r}"
    text += ", exact=True" if getattr(layer, "exact", False) else ""
    return text + (f", algorithm={layer.algorithm!r}" if getattr(layer, "algorithm", "bitwise") != "bitwise" else "")
