r"""Rotated MNIST: 12,000 digits to learn from and 50,000 to test on, each turned by an angle of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from baselines.common.data import load_arrays
from equilayers.functional import rotate

TRAIN, VALIDATION, TEST = 10_000, 2_000, 50_000
SIDE = 28


class Digits(NamedTuple):
    r"""Images (N, 1, 28, 28), standardised, and their classes (N,), 0..9."""

    x: Tensor
    y: Tensor


class RotatedMnist(NamedTuple):
    r"""The protocol of Larochelle et al. 2007, made anew: other digits, other angles, the same numbers of them."""

    train: Digits
    validation: Digits
    test: Digits


def rotated_mnist(data_dir: str | None, seed: int = 0, sizes: tuple[int, int, int] | None = None) -> RotatedMnist:
    r"""Shuffle MNIST's 70,000 digits, turn each by a uniform angle (bicubic), and split them.

    Args:
        data_dir: folder of the idx files; None: EQUILAYERS_DATA.
        seed: of the order and the angles.
        sizes: of the splits, train, validation and test; None: 10,000, 2,000 and 50,000.
    """
    images, labels = load_arrays("mnist", data_dir)
    sizes = sizes or (TRAIN, VALIDATION, TEST)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)[: sum(sizes)]
    angles = 360 * torch.rand(len(order), generator=generator, dtype=torch.float64)
    x = torch.from_numpy(images)[order, None].float() / 255
    turned = torch.stack([rotate(image, float(angle), "bicubic") for image, angle in zip(x, angles, strict=True)])
    turned = turned.clamp(0, 1)
    train = turned[: sizes[0]]
    standard = (turned - train.mean()) / train.std()
    y = torch.from_numpy(labels)[order].long()
    parts = (Digits(*pair) for pair in zip(standard.split(sizes), y.split(sizes), strict=True))
    return RotatedMnist(*parts)
