r"""Scenes to shift: a digit somewhere on a canvas that is larger than what the network sees of it.

The canvas carries weak noise. On a blank one a moved window would be the same as a cyclic shift; with noise, what
enters at one border is not what left at the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.common.data import Dataset, Split

MOTIONS = ("circular", "cropped")
NOISE = 0.1  # standard deviation; digits go from 0 to 1
INK = 0.5  # from here on a pixel belongs to the digit


@dataclass(frozen=True)
class Layout:
    r"""Pixels: of a digit's side, of the window's side, and how many shifts each way."""

    digit: int
    window: int
    shifts: int

    @property
    def canvas(self) -> int:
        r"""The side of a canvas on which the window takes every shift."""
        return self.window + self.shifts - 1


@dataclass(frozen=True, eq=False)  # comparing tensors gives tensors
class Scenes:
    r"""Canvases x (N, L, L); the class of each pixel, labels (N, L, L), 0 background, k + 1 digit k; digits y (N,)."""

    layout: Layout
    x: Tensor
    labels: Tensor
    y: Tensor

    def first(self, count: int) -> Scenes:
        r"""The first `count` scenes."""
        return Scenes(self.layout, self.x[:count], self.labels[:count], self.y[:count])

    def move(self, motion: str, dy: Tensor | int, dx: Tensor | int) -> tuple[Tensor, Tensor]:
        r"""The scenes, moved: images (N, 1, H, H) and labels (N, H, H).

        Args:
            motion: "circular" rolls the window in the middle of the canvas down by dy and right by dx; "cropped" puts
                the window to row dy and column dx of the canvas, which moves what is seen up and left.
            dy, dx: 0..shifts-1, one for all scenes or (N,), one for each.
        """
        rows, columns = self._places(motion, dy), self._places(motion, dx)
        at = torch.arange(len(self.x))[:, None, None], rows[:, :, None], columns[:, None, :]
        return self.x[at][:, None], self.labels[at]

    def _places(self, motion: str, d: Tensor | int) -> Tensor:
        side = self.layout.window
        shift = torch.as_tensor(d).expand(len(self.x))[:, None]
        if motion == "cropped":
            return torch.arange(side) + shift
        return (torch.arange(side) - shift) % side + self.layout.shifts // 2


def scenes(split: Split, data: Dataset, layout: Layout, generator: torch.Generator) -> Scenes:
    r"""Each image of the split on a noisy canvas of its own, where every window has the whole digit in it."""
    count, side = len(split.y), layout.canvas
    margin = (split.x.shape[-1] - layout.digit) // 2
    inner = slice(margin, margin + layout.digit)
    digits = (split.x[:, 0, inner, inner] * data.std + data.mean).clamp(0, 1)
    x = NOISE * torch.randn(count, side, side, generator=generator)
    labels = torch.zeros(count, side, side, dtype=torch.int64)
    low, high = layout.shifts - 1, layout.window - layout.digit
    drawn = (torch.randint(low, high + 1, (count, 1), generator=generator) for _ in range(2))
    rows, columns = (first + torch.arange(layout.digit) for first in drawn)
    at = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    x[at] += digits
    labels[at] = torch.where(digits >= INK, split.y[:, None, None] + 1, 0)
    return Scenes(layout, x, labels, split.y)


def random_windows(seen: Scenes, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    r"""One window of each canvas, at random: the digits come to lie anywhere in it."""
    dy, dx = (torch.randint(seen.layout.shifts, seen.y.shape, generator=generator) for _ in range(2))
    return seen.move("cropped", dy, dx)
