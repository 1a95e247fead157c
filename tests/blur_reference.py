"""Blur and polyphase pooling written out: loops in float64, padding by numpy.pad, one sample and pixel at a time."""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
NUMPY_MODES: dict[str, Any] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
PASCAL = {
    1: [1],
    2: [1, 1],
    3: [1, 2, 1],
    4: [1, 3, 3, 1],
    5: [1, 4, 6, 4, 1],
    6: [1, 5, 10, 10, 5, 1],
    7: [1, 6, 15, 20, 15, 6, 1],
}


class Reading(NamedTuple):
    """The taps along one axis, the pixels of padding before and after it, and how many outputs there are."""

    weights: list[float]
    before: int
    after: int
    count: int


def published(length: int, weights: Sequence[float], stride: int) -> Reading:
    """As in Zhang's BlurPool: padded by (k - 1) / 2 on both sides, the odd pixel after."""
    extra = len(weights) - 1
    return Reading([*map(float, weights)], extra // 2, extra - extra // 2, math.ceil(length / stride))


def symmetric(length: int, stride: int, taps: int | None = None) -> Reading:
    """The one grid of ceil(L / s) samples with equal room at both ends; taps fit in where their parity does."""
    count = math.ceil(length / stride)
    span = stride * (count - 1)  # from the first sample to the last
    if taps is None:
        (taps,) = (k for k in (stride + 1, stride + 2) if (length - span - k) % 2 == 0)
    assert (length - span - taps) % 2 == 0
    around = (span + taps - length) // 2
    return Reading([*map(float, PASCAL[taps])], around, around, count)


def pad_line(line: np.ndarray, before: int, after: int, mode: str) -> np.ndarray:
    """The line with so many pixels around it; a negative number takes pixels away."""
    padded = np.pad(line, (max(before, 0), max(after, 0)), mode=NUMPY_MODES[mode])
    return padded[max(-before, 0) : len(padded) - max(-after, 0)]


def read_line(line: np.ndarray, how: Reading, stride: int, mode: str) -> list[float]:
    padded = pad_line(line, how.before, how.after, mode)
    total = math.fsum(how.weights)
    return [math.fsum(w * padded[stride * i + j] for j, w in enumerate(how.weights)) / total for i in range(how.count)]


def blur(x: Tensor, readings: tuple[Reading, Reading], stride: Pair, mode: str) -> Tensor:
    """Every map of x (..., H, W), read along its rows and then along its columns; float64."""
    (down, right), (sh, sw) = readings, stride
    maps = x.double().reshape(-1, *x.shape[-2:]).numpy()
    made = []
    for image in maps:
        rows = np.array([read_line(row, right, sw, mode) for row in image])
        made.append(np.array([read_line(column, down, sh, mode) for column in rows.T]).T)
    return torch.from_numpy(np.array(made)).reshape(*x.shape[:-2], down.count, right.count)


def depthwise(x: Tensor, weights: Sequence[float], stride: int, mode: str) -> Tensor:
    """The published BlurPool of images (B, C, H, W): pad, then one depthwise convolution, in the dtype of x."""
    extra = len(weights) - 1
    before, after = extra // 2, extra - extra // 2
    if mode == "zeros":
        padded = F.pad(x, (before, after, before, after))
    else:
        height, width = (torch.from_numpy(pad_line(np.arange(n), before, after, mode)) for n in x.shape[-2:])
        padded = x[..., height, :][..., width]
    line = torch.tensor([*weights], dtype=torch.float64)
    kernel = (torch.outer(line, line) / line.sum() ** 2).to(x.dtype)
    return F.conv2d(padded, kernel.expand(x.shape[1], 1, -1, -1), stride=stride, groups=x.shape[1])


def windows(x: Tensor, size: int) -> Tensor:
    """All windows (..., H', W', k, k) of maps, cut to the map where that is smaller."""
    kh, kw = (min(size, n) for n in x.shape[-2:])
    return x.unfold(-2, kh, 1).unfold(-2, kw, 1)


def components(x: Tensor, stride: Pair) -> Iterator[tuple[Pair, Tensor]]:
    """The polyphase components of one sample (C, ..., H, W), by their offsets."""
    for i, j in product(*map(range, stride)):
        yield (i, j), x[..., i :: stride[0], j :: stride[1]]


def norms(x: Tensor, stride: Pair, norm: float) -> dict[Pair, float]:
    """The p-th powers of the norms of one sample's components, or its largest entries."""
    found = {}
    for at, part in components(x, stride):
        entries = [abs(value) for value in part.double().flatten().tolist()]
        found[at] = max(entries) if norm == math.inf else math.fsum(value**norm for value in entries)
    return found


def polyphase(x: Tensor, choice: Tensor, stride: Pair) -> Tensor:
    """The chosen components of every sample."""
    kept = [dict(components(part, stride))[at[0], at[1]] for part, at in zip(x, choice.tolist(), strict=True)]
    return torch.stack(kept)


def cyclic_shifts(y: Tensor) -> Iterator[Tensor]:
    """All shifts of a map around its edges."""
    for shift in product(*map(range, y.shape[-2:])):
        yield y.roll(shift, (-2, -1))
