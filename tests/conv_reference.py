"""Slow float64 convolutions, straight from the formulas: one turn, one plane and one position at a time.

They share no code with the library: the groups are those of `reference.py`.
"""

import numpy as np
from numpy.typing import NDArray

from equilayers.groups import Group
from reference import act, compose, inverse, order

Array = NDArray[np.float64]
Ints = int | tuple[int, int]
NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def quotient(group: Group, h: int, k: int) -> int:
    """The element h^-1 k."""
    return compose(group, inverse(group, h), k)


def _pair(value: Ints) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def correlate(x: Array, filters: Array, stride: Ints, dilation: Ints) -> Array:
    """Images (B, C, H, W) with filters (O, C, kh, kw), nothing added around, position by position."""
    (sh, sw), (dh, dw), (kh, kw) = _pair(stride), _pair(dilation), filters.shape[2:]
    reach_h, reach_w = dh * (kh - 1) + 1, dw * (kw - 1) + 1
    rows, columns = range(0, x.shape[2] - reach_h + 1, sh), range(0, x.shape[3] - reach_w + 1, sw)
    y = np.zeros((len(x), len(filters), len(rows), len(columns)))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            patch = x[:, :, top : top + reach_h : dh, left : left + reach_w : dw]
            y[:, :, i, j] = np.einsum("bcst,ocst->bo", patch, filters)
    return y


def _convolve(
    f: Array,
    weight: Array,
    bias: Array | None,
    group: Group,
    stride: Ints = 1,
    padding: Ints = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Array:
    """f (B, C, K, H, W) and weight (O, C / groups, K, kh, kw): K = 1 is an image, K = |G| a regular feature."""
    (ph, pw), n, fiber = _pair(padding), order(group), f.shape[2]
    padded = np.pad(f, [(0, 0), (0, 0), (0, 0), (ph, ph), (pw, pw)], mode=NUMPY_MODES[padding_mode])  # type: ignore[call-overload]
    channels, features = f.shape[1] // groups, len(weight) // groups
    outputs = []
    for group_number in range(groups):
        part = padded[:, group_number * channels :][:, :channels]
        own = weight[group_number * features :][:features]
        for h in range(n):
            quotients = [0] if fiber == 1 else [quotient(group, h, k) for k in range(fiber)]
            filters = [act(group, h, own[:, :, u]) for u in quotients]
            planes = [correlate(part[:, :, k], filters[k], stride, dilation) for k in range(fiber)]
            outputs.append(np.sum(planes, axis=0))
    y = np.stack(outputs).reshape(groups, n, len(f), features, *outputs[0].shape[2:])
    y = y.transpose(2, 0, 3, 1, 4, 5).reshape(len(f), len(weight), n, *outputs[0].shape[2:])
    return y if bias is None else y + bias[:, None, None, None]


def lift_conv2d(x: Array, weight: Array, bias: Array | None, group: Group, **settings: object) -> Array:
    """`y[b, o, h] = corr(h · psi_o, x_b) + bias_o`."""
    return _convolve(x[:, :, None], weight[:, :, None], bias, group, **settings)  # type: ignore[arg-type]


def group_conv2d(f: Array, weight: Array, bias: Array | None, group: Group, **settings: object) -> Array:
    """`y[b, o, h] = sum_{c,k} corr(h · psi[o, c, h^-1 k], f[b, c, k]) + bias_o`."""
    return _convolve(f, weight, bias, group, **settings)  # type: ignore[arg-type]
