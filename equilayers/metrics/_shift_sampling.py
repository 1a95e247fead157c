r"""Which shifts of an image there are, and which of them a measure looks at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from equilayers._checks import check_int, refuse

Shift = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ShiftPlan:
    r"""What a caller asks for: which shifts, how many per sample, from which seed."""

    caller: str
    max_shift: int | None
    crop_size: int | tuple[int, int] | None
    counted: str
    count: int
    exhaustive: bool
    seed: int
    batch_size: int | None

    def __post_init__(self) -> None:
        check_int(self.caller, self.counted, self.count, 1)
        check_int(self.caller, "seed", self.seed, 0)
        if self.max_shift is not None:
            check_int(self.caller, "max_shift", self.max_shift, 1)
        for side in self.window or ():
            check_int(self.caller, "crop_size", side, 1)

    @property
    def window(self) -> tuple[int, int] | None:
        r"""Height and width of a window, None where the image is rolled."""
        size = self.crop_size
        if size is None:
            return None
        height, *rest = size if isinstance(size, tuple | list) else (size, size)
        if len(rest) != 1:
            refuse(self.caller, "crop_size to be an int or (height, width)", repr(size), "Pass two ints at most.")
        return height, rest[0]

    def shifts(self, x: Tensor) -> Shifts:
        r"""The shifts there are for images like x."""
        if x.ndim < 3:
            refuse(self.caller, "x of shape (B, ..., H, W)", tuple(x.shape), "Give it a batch axis and two of space.")
        space = (x.shape[-2], x.shape[-1])
        window = self.window or space
        if window[0] > space[0] or window[1] > space[1]:
            hint = "Pass larger images, or cut smaller windows."
            refuse(self.caller, f"crop_size of at most {space[0]} x {space[1]}", f"{window[0]} x {window[1]}", hint)
        rows, columns = (self._steps(*sizes) for sizes in zip(space, window, strict=True))
        if len(rows) * len(columns) < 2:
            hint = "Pass larger images, or smaller windows."
            refuse(self.caller, "x with room for more than one shift", tuple(x.shape), hint)
        return Shifts(rows, columns, window, ((space[0] - window[0]) // 2, (space[1] - window[1]) // 2))

    def _steps(self, length: int, window: int) -> range:
        r"""The shifts along one axis, each once, 0 among them."""
        if self.crop_size is None:  # a roll by the length is a roll by nothing
            if self.max_shift is None or 2 * self.max_shift + 1 >= length:
                return range(length)
            return range(-self.max_shift, self.max_shift + 1)
        room, middle = length - window, (length - window) // 2
        most = room if self.max_shift is None else self.max_shift
        return range(max(middle - room, -most), min(middle, most) + 1)


@dataclass(frozen=True)
class Shifts:
    r"""All shifts (dy, dx) of an image: views of `size` pixels, the unshifted one with its first pixel at `origin`."""

    rows: range
    columns: range
    size: tuple[int, int]
    origin: tuple[int, int]

    def view(self, x: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
        r"""The samples of x (B, ..., H, W), each moved by its own dy and dx (B,), bitwise: (B, ..., h, w)."""
        channels = math.prod(x.shape[1:-2])
        b, c, i, j = (torch.arange(n, device=x.device) for n in (len(x), channels, *self.size))
        i = (self.origin[0] - dy.to(x.device)[:, None] + i) % x.shape[-2]
        j = (self.origin[1] - dx.to(x.device)[:, None] + j) % x.shape[-1]
        images = x.reshape(len(x), channels, *x.shape[-2:])
        moved = images[b[:, None, None, None], c[:, None, None], i[:, None, :, None], j[:, None, None, :]]
        return moved.reshape(*x.shape[:-2], *self.size)

    def unshifted(self, x: Tensor) -> Tensor:
        r"""The view of shift 0."""
        zero = torch.zeros(len(x), dtype=torch.int64, device="cpu")
        return self.view(x, zero, zero)

    def every(self, n: int) -> Iterator[Shift]:
        r"""Every shift but 0, the same for all n samples."""
        for dy in self.rows:
            for dx in self.columns:
                if dy or dx:
                    yield torch.full((n,), dy, device="cpu"), torch.full((n,), dx, device="cpu")

    def random(self, seed: int, first: int, n: int, count: int) -> Iterator[Shift]:
        r"""The `count` random shifts of each of the samples number first..first+n-1."""
        # One 64-bit number for each coordinate: the generator can be set to any sample without drawing for the others.
        source = np.random.PCG64(seed).advance(2 * count * first)
        u = torch.from_numpy(np.random.Generator(source).random((n, count, 2)))
        lengths = torch.tensor([len(self.rows), len(self.columns)], device="cpu")
        steps = (u * lengths).long() + torch.tensor([self.rows.start, self.columns.start], device="cpu")
        for k in range(count):
            yield steps[:, k, 0], steps[:, k, 1]
