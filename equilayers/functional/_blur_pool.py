r"""Anti-aliased subsampling: blur first, so that no frequency is left that the coarser grid cannot carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import PADDING_MODES, Pair, check_choice, check_float, check_int, pair_of, refuse
from equilayers.functional._resample.axes import MOST_TAPS, Reading, Weights, binomial
from equilayers.functional._resample.blur import blurred_by
from equilayers.functional._resample.windows import window_max, window_mean, windows

ALGORITHMS = ("auto", "bitwise", "dense")
Taps = int | str | Sequence[float]
Stride = int | Sequence[int]


def blur_pool2d(
    x: Tensor,
    taps: Taps = "auto",
    stride: Stride = 2,
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
        padding_mode: "zeros", "reflect", "replicate" or "circular"; goes around or mirrors as often as it must.
        exact: whether a fixed number of taps has to sample symmetrically too, where "auto" always does.
        algorithm: of the symmetric samplings "bitwise" (sums in an order that the group leaves alone) or "dense" (one
            depthwise convolution: faster, at rounding level), which "auto"
            takes. Fixed taps that are not `exact` always take the latter.

    Returns:
        (..., ceil(H / s), ceil(W / s)), of the dtype and device of x.

    Raises:
        TypeError: x is not floating-point, or a number is none.
        ValueError: x without a map, a stride below 1, taps of another kind, an unknown name, or taps that cannot
            sample this size symmetrically while `exact`.

    Law: `blur_pool2d(act(g, x)) == act(g, blur_pool2d(x))` for every turn and mirror, at every size with "auto" and
        wherever `exact` accepts the size, if the weights are symmetric: bitwise, or rounding with "dense". Fixed taps
        otherwise sample an even map with an odd filter, or an odd one with an even filter, off centre. Shifts by
        multiples of the stride commute with "circular" padding where the stride divides the map; of other shifts less
        is lost than by plain subsampling, but something is.

    Source: Zhang 2019 (arXiv:1904.11486); the choice of taps by the parity of the map is ours.
    """
    caller = "blur_pool2d"
    check_map(caller, x)
    checked = check_taps(caller, taps), check_stride(caller, stride), check_mode(caller, padding_mode), exact
    return _blur(caller, x, *checked, check_choice(caller, "algorithm", algorithm, ALGORITHMS))


def max_blur_pool2d(
    x: Tensor,
    taps: Taps = "auto",
    stride: Stride = 2,
    padding_mode: str = "reflect",
    *,
    kernel_size: int = 2,
    padding: int = 0,
    exact: bool = False,
    algorithm: str = "bitwise",
) -> Tensor:
    r"""The maximum over every window of `kernel_size` pixels, then `blur_pool2d`: max pooling without aliasing.

    Args:
        x: maps (..., H, W), floating-point.
        taps: of `blur_pool2d`, which sees a map smaller by kernel_size - 1, or as large with "circular".
        stride: of the blur.
        padding_mode: of the blur.
        exact: of the blur.
        algorithm: of the blur.
        kernel_size: pixels of a window, which is cut to the map where that is smaller. With "circular" padding windows
            go around and the map keeps its size.
        padding: pixels on every side that no maximum is taken from, as in torch.nn.MaxPool2d; at most half a window,
            and none with "circular".

    Returns:
        (..., ceil((H + 2 padding - kernel_size + 1) / s), ...) of the dtype and device of x.

    Raises:
        TypeError, ValueError: as `blur_pool2d`; kernel_size below 1, or a padding out of range.

    Law: that of `blur_pool2d`.

    Source: Zhang 2019, section 3.2 (arXiv:1904.11486).
    """
    caller, reduce = "max_blur_pool2d", window_max
    check_map(caller, x)
    if check_max_padding(caller, padding, kernel_size, padding_mode):
        x = F.pad(x, [padding] * 4, value=-math.inf)
    return _blur_windows(caller, x, taps, stride, padding_mode, exact, algorithm, kernel_size, reduce)


def avg_blur_pool2d(
    x: Tensor,
    taps: Taps = "auto",
    stride: Stride = 2,
    padding_mode: str = "reflect",
    *,
    kernel_size: int = 2,
    exact: bool = False,
    algorithm: str = "bitwise",
) -> Tensor:
    r"""The mean over every window of `kernel_size` pixels, then `blur_pool2d`: average pooling without aliasing.

    Args:
        x: maps (..., H, W), floating-point.
        taps: of `blur_pool2d`, which sees a map smaller by kernel_size - 1, or as large with "circular".
        stride: of the blur.
        padding_mode: of the blur.
        exact: of the blur.
        algorithm: of the blur.
        kernel_size: pixels of a window, which is cut to the map where that is smaller. With "circular" padding windows
            go around and the map keeps its size.

    Returns:
        (..., ceil((H - kernel_size + 1) / s), ...) of the dtype and device of x.

    Raises:
        TypeError, ValueError: as `blur_pool2d`; kernel_size below 1.

    Law: that of `blur_pool2d`.
    """
    caller, reduce = "avg_blur_pool2d", window_mean
    return _blur_windows(caller, x, taps, stride, padding_mode, exact, algorithm, kernel_size, reduce)


def check_map(caller: str, x: Tensor) -> None:
    r"""TypeError or ValueError unless x is a floating-point map."""
    check_float(caller, "x", x)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        hint = "Pool images (B, C, H, W) or features (B, C, |G|, H, W)."
        refuse(caller, "x of shape (..., H, W), H and W positive", tuple(x.shape), hint)


def check_taps(caller: str, taps: Taps) -> Weights | None:
    r"""The weights along one axis; None for "auto"."""
    hint = f"Pass 'auto', a number of taps from 1 to {MOST_TAPS}, or the weights along one axis."
    if isinstance(taps, str):
        if taps != "auto":
            refuse(caller, "taps to be 'auto', an int or weights", repr(taps), hint)
        return None
    if not isinstance(taps, Sequence | Tensor | np.ndarray) or isinstance(taps, bytes):
        return binomial(check_int(caller, "taps", taps, 1, MOST_TAPS))
    try:
        weights = tuple(float(weight) for weight in taps)
    except (TypeError, ValueError, RuntimeError):
        refuse(caller, "taps to be a list of numbers", repr(taps), hint)
    size = sum(map(abs, weights))
    if not weights or not math.isfinite(size) or abs(sum(weights)) <= 1e-6 * size:
        refuse(caller, "taps to be finite weights that do not sum to zero", weights, hint)
    return weights


def check_stride(caller: str, stride: Stride) -> Pair:
    r"""The stride along both axes."""
    return pair_of(caller, "stride", stride, 1)


def check_max_padding(caller: str, padding: int, kernel_size: int, mode: str) -> int:
    r"""The padding of a window of this size, if it leaves every window a pixel of the map."""
    most = 0 if mode == "circular" else check_int(caller, "kernel_size", kernel_size, 1) // 2
    return check_int(caller, "padding", padding, 0, most)


def check_mode(caller: str, mode: str) -> str:
    r"""The padding mode, if there is such a one."""
    return check_choice(caller, "padding_mode", mode, PADDING_MODES)


def _blur_windows(
    caller: str,
    x: Tensor,
    taps: Taps,
    stride: Stride,
    padding_mode: str,
    exact: bool,
    algorithm: str,
    kernel_size: int,
    reduce: Callable[[Tensor, Pair], Tensor],
) -> Tensor:
    check_map(caller, x)
    checked = check_taps(caller, taps), check_stride(caller, stride), check_mode(caller, padding_mode), exact, algorithm
    check_choice(caller, "algorithm", algorithm, ALGORITHMS)
    k = check_int(caller, "kernel_size", kernel_size, 1)
    reduced, offset = windows(x, k, padding_mode, reduce)
    return _blur(caller, reduced, *checked, offset)


def _blur(
    caller: str,
    x: Tensor,
    taps: Weights | None,
    stride: Pair,
    mode: str,
    exact: bool,
    algorithm: str,
    offset: Pair = (0, 0),
) -> Tensor:
    precise = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    bitwise = algorithm == "bitwise" and (exact or taps is None)
    return blurred_by(caller, precise, Reading(taps, stride, mode, exact, offset), bitwise=bitwise).to(x.dtype)
