r"""Rotated MNIST: 12,000 digits to learn from and 50,000 to test on, each rotated by an angle of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from baselines.common.data import load_arrays
from equilayers.functional import rotate

SIZES = (10_000, 2_000, 50_000)  # train, validation, test


class Digits(NamedTuple):
    r"""Images (N, 1, 28, 28), standardised, and their classes (N,), 0..9."""

    x: Tensor
    y: Tensor


def rotated_mnist(data_dir: str | None, seed: int = 0, sizes: tuple[int, int, int] = SIZES) -> list[Digits]:
    r"""Shuffle MNIST's 70,000 digits, rotate each by a uniform angle (bicubic), and split them.

    The protocol of Larochelle et al. 2007, made anew: other digits, other angles, the same numbers of them.

    Args:
        data_dir: folder of the idx files; None: EQUILAYERS_DATA.
        seed: of the order and the angles.
        sizes: of the splits, train, validation and test.
    """
    images, labels = load_arrays("mnist", data_dir)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)[: sum(sizes)]
    angles = 360 * torch.rand(len(order), generator=generator, dtype=torch.float64)
    x = torch.from_numpy(images)[order, None].float() / 255
    rotated = torch.stack([rotate(image, float(angle), "bicubic") for image, angle in zip(x, angles, strict=True)])
    rotated = rotated.clamp(0, 1)
    train = rotated[: sizes[0]]
    standard = (rotated - train.mean()) / train.std()
    y = torch.from_numpy(labels)[order].long()
    return [Digits(*pair) for pair in zip(standard.split(sizes), y.split(sizes), strict=True)]
