r"""How far a model is from turning its output along with its input, angle by angle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from equilayers._checks import check_choice, check_values, refuse
from equilayers._modules import Model, evaluation
from equilayers.groups import INTERPOLATIONS, rotate
from equilayers.metrics._equivariance import relative_norm, rows
from equilayers.metrics._orbit import chunks, output_of

Turn = Callable[[Tensor, float], Tensor]
TAPER = 0.2  # of the radius, over which the input fades


class RotationErrorCurve(NamedTuple):
    r"""Relative errors, means over samples: `error` of the model, `floor` of the test itself; (A,) each.

    angles: in degrees. A model whose error is at the floor cannot be told from an equivariant one.
    """

    angles: Tensor
    error: Tensor
    floor: Tensor


def rotation_error_curve(
    model: Model,
    x: Tensor,
    angles: Sequence[float] = tuple(range(0, 360, 15)),
    *,
    action_out: Turn | None = None,
    interpolation: str = "bicubic",
    radius: float = 1.0,
    batch_size: int | None = None,
) -> RotationErrorCurve:
    r"""The error of invariance or equivariance under rotations by any angle, and the floor of that test.

    `error(a) = ||f(R_a x) - R_a f(x)|| / ||f(x)||`, inside a disk; R_a interpolates, which errs by itself. How much,
    turning there and back tells: `floor(a)` is `||f(R_-a R_a x) - f(x)|| / ||f(x)||` where the output is invariant, and
    the mean of that and of `||R_-a R_a f(x) - f(x)|| / ||f(x)||` where it turns, two interpolations like the test.

    Args:
        model: any callable from images (B, C, H, H) to outputs; a module is run in eval mode and put back afterwards.
        x: images (B, C, H, H), floating-point; outside the disk they are faded to zero first.
        angles: in degrees, counter-clockwise.
        action_out: `action_out(y, degrees)`, how it turns the output: `equilayers.functional.rotate_harmonic` for
            harmonic features. When None, outputs (B, K) stay and images (B, K, H', W') turn.
        interpolation: "bilinear" or "bicubic".
        radius: of the disk, in halves of the side.
        batch_size: samples per call of the model; all at once when None.

    Returns:
        `RotationErrorCurve`, tensors (A,) in float64 on the CPU.

    Raises:
        TypeError: x is not floating-point.
        ValueError: images that are not square, a radius outside 0..1, an unknown interpolation, or outputs of another
            form.

    Source: the law of equivariance, Worrall et al. 2017, Eq. 1 (arXiv:1612.04642); the floor is ours.
    """
    caller = "rotation_error_curve"
    check_values(caller, "x", x)
    check_choice(caller, "interpolation", interpolation, INTERPOLATIONS)
    if x.ndim != 4 or x.shape[-1] != x.shape[-2]:
        refuse(caller, "x of shape (B, C, H, H)", tuple(x.shape), "Crop or pad the images to squares.")
    if isinstance(angles, int | float) or len(angles) == 0:
        refuse(caller, "angles to be a sequence of degrees", repr(angles), "Pass (30, 45, 60), for example.")
    if len(x) == 0:
        refuse(caller, "images in x", tuple(x.shape), "Pass one at least.")
    if not 0 < radius <= 1:
        refuse(caller, "radius in 0..1", radius, "It is in halves of the side.")
    found = []
    with evaluation(model), torch.no_grad():
        for part in chunks(caller, x * disk(x.shape[-1], radius, TAPER).to(x), batch_size):
            f = output_of(caller, model, part)
            turn, mask = _output_action(caller, f, action_out, interpolation, radius)
            test = _Test(lambda x: output_of(caller, model, x), part, f, turn, mask, interpolation)
            found.append(torch.stack([torch.stack(test.at(float(a))) for a in angles], 1))  # (2, A, B)
    error, floor = torch.cat(found, 2).mean(2).cpu()
    return RotationErrorCurve(torch.tensor([float(a) for a in angles], dtype=torch.float64, device="cpu"), error, floor)


class _Test(NamedTuple):
    r"""One batch and what a model makes of it; turn is None where the output stays."""

    run: Model
    x: Tensor
    f: Tensor
    turn: Turn | None
    mask: Tensor
    interpolation: str

    def at(self, a: float) -> tuple[Tensor, Tensor]:
        r"""The errors of the samples (B,) at an angle, and the floors."""
        turned = rotate(self.x, a, self.interpolation)
        there_and_back = self.gap(self.run(rotate(turned, -a, self.interpolation)), self.f)
        if self.turn is None:
            return self.gap(self.run(turned), self.f), there_and_back
        expected = self.turn(self.f, a)
        floor = (there_and_back + self.gap(self.turn(expected, -a), self.f)) / 2
        return self.gap(self.run(turned), expected), floor

    def gap(self, y: Tensor, expected: Tensor) -> Tensor:
        return relative_norm(rows((y - expected) * self.mask), rows(self.f * self.mask))


def _output_action(
    caller: str, f: Tensor, action_out: Turn | None, interpolation: str, radius: float
) -> tuple[Turn | None, Tensor]:
    r"""How the output turns, None where it stays, and the mask that it is seen through."""
    if f.ndim <= 2:
        return action_out, f.new_ones(())
    if f.ndim < 4 or f.shape[-1] != f.shape[-2] or (f.ndim > 4 and action_out is None):
        hint = "Pass action_out to say how these turn."
        refuse(caller, "model outputs (B, K) or (B, K, H', H')", tuple(f.shape), hint)

    def turn(y: Tensor, degrees: float) -> Tensor:
        return rotate(y, degrees, interpolation)

    return action_out or turn, disk(f.shape[-1], radius * (1 - TAPER)).to(f)


def disk(size: int, radius: float, taper: float = 0.0) -> Tensor:
    r"""A mask (H, H) in float64: one inside the disk, zero outside, a cosine over the taper between."""
    places = (torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2) / (size / 2)
    distance = (places[:, None] ** 2 + places**2).sqrt() / radius
    if taper == 0:
        return (distance <= 1).double()
    return (1 + torch.cos(math.pi * ((distance - 1 + taper) / taper).clamp(0, 1))) / 2
