r"""Anti-aliased subsampling layers: three classes over one core, which a `BlurSpec` tells apart."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equilayers._checks import pair_of
from equilayers.functional import BlurSpec, binomial, blur_pool, blur_spec
from equilayers.functional._resample import ALGORITHMS, Ints, Taps
from equilayers.nn._algorithm import algorithm


def _exactness(layer: Any) -> str:
    return str(layer.spec.exactness)


def _extra_repr(layer: Any) -> str:
    return describe(layer.spec)


exactness = property(_exactness, doc="The level at which the law holds.")


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

    Law: `pool(act(g, x)) == act(g, pool(x))` for every rotation and mirror g, at every size.

    Source: Zhang 2019 (arXiv:1904.11486).
    """

    ALGORITHMS = ALGORITHMS
    algorithm = algorithm
    exactness = exactness
    spec: BlurSpec

    def __init__(
        self,
        taps: Taps = "auto",
        stride: Ints = 2,
        padding_mode: str = "reflect",
        *,
        exact: bool = False,
        algorithm: str = "bitwise",
    ) -> None:
        super().__init__()
        self.spec = blur_spec("BlurPool2d", taps, stride, padding_mode, exact=exact, algorithm=algorithm)

    def forward(self, x: Tensor) -> Tensor:
        return blur_pool("BlurPool2d", x, self.spec)

    extra_repr = _extra_repr


class MaxBlurPool2d(nn.Module):
    r"""The maximum of every window, then `BlurPool2d`: in the place of `torch.nn.MaxPool2d(kernel_size, stride)`.

    Args:
        kernel_size: pixels of a window, an int or a pair.
        stride: of the blur; the kernel size if None.
        padding: pixels on every side that no maximum is taken from, as in torch.nn.MaxPool2d.
        taps, padding_mode, exact, algorithm: of `BlurPool2d`.

    Attributes:
        exactness: as of `BlurPool2d`.

    Raises:
        TypeError, ValueError: as `BlurPool2d`.

    Law: `pool(act(g, x)) == act(g, pool(x))` for every rotation and mirror g, at every size.

    Source: Zhang 2019, section 3.2 (arXiv:1904.11486).
    """

    ALGORITHMS = ALGORITHMS
    algorithm = algorithm
    exactness = exactness
    spec: BlurSpec

    def __init__(
        self,
        kernel_size: Ints = 2,
        stride: Ints | None = None,
        padding: Ints = 0,
        *,
        taps: Taps = "auto",
        padding_mode: str = "reflect",
        exact: bool = False,
        algorithm: str = "bitwise",
    ) -> None:
        super().__init__()
        caller, kernel = "MaxBlurPool2d", pair_of("MaxBlurPool2d", "kernel_size", kernel_size, 1)
        steps = kernel if stride is None else stride
        blur = blur_spec(caller, taps, steps, padding_mode, exact=exact, algorithm=algorithm)
        self.spec = blur.of_windows(caller, "max", kernel, padding)

    def forward(self, x: Tensor) -> Tensor:
        return blur_pool("MaxBlurPool2d", x, self.spec)

    extra_repr = _extra_repr


class AvgBlurPool2d(nn.Module):
    r"""The mean of every window, then `BlurPool2d`: in the place of `torch.nn.AvgPool2d(kernel_size, stride)`.

    Args:
        kernel_size, stride, taps, padding_mode, exact, algorithm: as in `MaxBlurPool2d`.
        padding: zeros on every side, which count in the means, as in torch.nn.AvgPool2d.

    Attributes:
        exactness: as of `BlurPool2d`.

    Raises:
        TypeError, ValueError: as `BlurPool2d`.

    Law: `pool(act(g, x)) == act(g, pool(x))` for every rotation and mirror g, at every size.
    """

    ALGORITHMS = ALGORITHMS
    algorithm = algorithm
    exactness = exactness
    spec: BlurSpec

    def __init__(
        self,
        kernel_size: Ints = 2,
        stride: Ints | None = None,
        padding: Ints = 0,
        *,
        taps: Taps = "auto",
        padding_mode: str = "reflect",
        exact: bool = False,
        algorithm: str = "bitwise",
    ) -> None:
        super().__init__()
        caller, kernel = "AvgBlurPool2d", pair_of("AvgBlurPool2d", "kernel_size", kernel_size, 1)
        steps = kernel if stride is None else stride
        blur = blur_spec(caller, taps, steps, padding_mode, exact=exact, algorithm=algorithm)
        self.spec = blur.of_windows(caller, "mean", kernel, padding)

    def forward(self, x: Tensor) -> Tensor:
        return blur_pool("AvgBlurPool2d", x, self.spec)

    extra_repr = _extra_repr


def describe(spec: BlurSpec) -> str:
    r"""The settings as they are passed, those that differ from the defaults alone where they are many."""
    taps: object = "auto" if spec.taps is None else spec.taps
    if spec.taps is not None and spec.taps == binomial(len(spec.taps)):
        taps = len(spec.taps)
    parts = [f"taps={taps!r}", f"stride={spec.stride}"]
    if spec.window is not None:
        padding = [f"padding={spec.padding}"] if any(spec.padding) else []
        parts = [f"kernel_size={spec.kernel_size}", parts[1], *padding, parts[0]]
    exact = ["exact=True"] if spec.exact else []
    method = [f"algorithm={spec.algorithm!r}"] if spec.algorithm != "bitwise" else []
    return ", ".join([*parts, f"padding_mode={spec.padding_mode!r}", *exact, *method])
