r"""Anti-aliased subsampling: blur first, so that no frequency is left that the coarser grid cannot carry."""

from __future__ import annotations

from torch import Tensor

from equilayers._checks import check_float, overridable, pair_of, refuse, widened
from equilayers.functional._resample.axes import BlurSpec, Ints, Taps, blur_spec
from equilayers.functional._resample.blur import blurred
from equilayers.functional._resample.windows import windows


def blur_pool2d(
    x: Tensor,
    taps: Taps = "auto",
    stride: Ints = 2,
    padding_mode: str = "reflect",
    *,
    exact: bool = False,
    algorithm: str = "bitwise",
) -> Tensor:
    r"""Blur with a binomial filter along both axes and keep every `stride`-th pixel.

    `y[..., i, j] = sum_{a,b} w_a w_b x[..., p + s·i + a, q + s·j + b] / (sum_a w_a)^2`

    Args:
        x: maps (..., H, W), floating-point: images (B, C, H, W) or regular features (B, C, |G|, H, W).
        taps: how many, 1 to 7, of a row of Pascal's triangle, as in the published BlurPool; or the weights themselves,
            along one axis; or "auto": s + 1 or s + 2 of them, whichever makes the grid symmetric at this size.
        stride: pixels between samples, an int or a pair (height, width).
        padding_mode: "zeros", "reflect", "replicate" or "circular"; wraps around or mirrors as often as it must.
        exact: whether a fixed number of taps has to sample symmetrically too, where "auto" always does.
        algorithm: of the symmetric samplings "bitwise" (sums in an order that the group leaves alone) or "dense" (one
            depthwise convolution: faster, at rounding level), which "auto" takes. Fixed taps that are not `exact`
            always take the latter.

    Returns:
        (..., ceil(H / s), ceil(W / s)), of the dtype and device of x.

    Raises:
        TypeError: x is not floating-point, or a number is none.
        ValueError: x without a map, a stride below 1, taps of another kind, an unknown name, or taps that cannot
            sample this size symmetrically while `exact`.

    Law: `blur_pool2d(act(g, x)) == act(g, blur_pool2d(x))` for every rotation and mirror, at every size with "auto"
        and wherever `exact` accepts the size, if the weights are symmetric: bitwise, or rounding with "dense". Fixed
        taps otherwise sample an even map with an odd filter, or an odd one with an even filter, off centre. Shifts by
        multiples of the stride commute with "circular" padding where the stride divides the map; of other shifts less
        is lost than by plain subsampling, but something is.

    Source: Zhang 2019 (arXiv:1904.11486); the choice of taps by the parity of the map is ours.
    """
    caller = "blur_pool2d"
    return blur_pool(caller, x, blur_spec(caller, taps, stride, padding_mode, exact=exact, algorithm=algorithm))


def max_blur_pool2d(
    x: Tensor,
    kernel_size: Ints = 2,
    stride: Ints | None = None,
    padding: Ints = 0,
    *,
    taps: Taps = "auto",
    padding_mode: str = "reflect",
    exact: bool = False,
    algorithm: str = "bitwise",
) -> Tensor:
    r"""The maximum over every window of `kernel_size` pixels, then `blur_pool2d`: max pooling without aliasing.

    Args:
        x: maps (..., H, W), floating-point.
        kernel_size: pixels of a window, an int or a pair, cut to the map where that is smaller. With "circular"
            padding windows wrap around and the map keeps its size.
        stride: of the blur; the kernel size if None.
        padding: pixels on every side that no maximum is taken from, as in torch.nn.MaxPool2d; at most half a window,
            and none with "circular".
        taps: of `blur_pool2d`, which sees a map smaller by kernel_size - 1, or as large with "circular".
        padding_mode: of the blur.
        exact: of the blur.
        algorithm: of the blur.

    Returns:
        (..., ceil((H + 2 padding - kernel_size + 1) / s), ...) of the dtype and device of x.

    Raises:
        TypeError, ValueError: as `blur_pool2d`; kernel_size below 1, or a padding out of range.

    Law: that of `blur_pool2d`.

    Source: Zhang 2019, section 3.2 (arXiv:1904.11486).
    """
    caller, kernel = "max_blur_pool2d", pair_of("max_blur_pool2d", "kernel_size", kernel_size, 1)
    steps = kernel if stride is None else stride
    spec = blur_spec(caller, taps, steps, padding_mode, exact=exact, algorithm=algorithm)
    return blur_pool(caller, x, spec.of_windows(caller, "max", kernel, padding))


def avg_blur_pool2d(
    x: Tensor,
    kernel_size: Ints = 2,
    stride: Ints | None = None,
    padding: Ints = 0,
    *,
    taps: Taps = "auto",
    padding_mode: str = "reflect",
    exact: bool = False,
    algorithm: str = "bitwise",
) -> Tensor:
    r"""The mean over every window of `kernel_size` pixels, then `blur_pool2d`: average pooling without aliasing.

    Args:
        x: maps (..., H, W), floating-point.
        kernel_size: as in `max_blur_pool2d`.
        stride: of the blur; the kernel size if None.
        padding: zeros on every side, which count in the means, as in torch.nn.AvgPool2d; none with "circular".
        taps: of the blur.
        padding_mode: of the blur.
        exact: of the blur.
        algorithm: of the blur.

    Returns:
        As `max_blur_pool2d`.

    Raises:
        TypeError, ValueError: as `max_blur_pool2d`.

    Law: that of `blur_pool2d`.
    """
    caller, kernel = "avg_blur_pool2d", pair_of("avg_blur_pool2d", "kernel_size", kernel_size, 1)
    steps = kernel if stride is None else stride
    spec = blur_spec(caller, taps, steps, padding_mode, exact=exact, algorithm=algorithm)
    return blur_pool(caller, x, spec.of_windows(caller, "mean", kernel, padding))


@overridable
def blur_pool(caller: str, x: Tensor, spec: BlurSpec) -> Tensor:
    r"""Windows, blur and subsampling by checked settings."""
    check_float(caller, "x", x)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        hint = "Pool images (B, C, H, W) or features (B, C, |G|, H, W)."
        refuse(caller, "x of shape (..., H, W), H and W positive", tuple(x.shape), hint)
    pooled = windows(x, spec)
    precise = widened(pooled)
    return blurred(caller, precise, spec).to(x.dtype)
