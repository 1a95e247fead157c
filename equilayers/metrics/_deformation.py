r"""How a model takes smooth deformations of its input, against how far they are from the identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from equilayers._checks import refuse
from equilayers._modules import Model, evaluation
from equilayers.metrics._equivariance import relative_norm, rows
from equilayers.metrics._orbit import chunks, output_of
from equilayers.metrics._warp import check_magnitude, displacement_gradient_norm, inverse, unit_fields, warp


class DeformationCurve(NamedTuple):
    r"""What `deformation_stability` finds, one entry per magnitude.

    Attributes:
        gradient_norm: `sup over u of ||grad tau(u)||`, the operator norm, mean over fields, (M,).
        displacement: `sup over u of |tau(u)|`, in pixels, mean over fields, (M,).
        distance: `||f(x) - f(D_tau x)|| / ||f(x)||`, mean over samples and fields, (M,).
        quartiles: the first quartile, the median and the third quartile of the same, (3, M).
        interpolation_floor: `||x - D_tau^-1 D_tau x|| / ||x||`, mean over samples and fields, (M,): what the warp
            itself loses of an image. A distance under it may be the interpolation's.
    """

    gradient_norm: Tensor
    displacement: Tensor
    distance: Tensor
    quartiles: Tensor
    interpolation_floor: Tensor


def deformation_stability(
    model: Model,
    x: Tensor,
    *,
    magnitudes: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    cutoff: int = 3,
    fields: int = 8,
    seed: int = 0,
    batch_size: int | None = None,
) -> DeformationCurve:
    r"""How far the output moves when the input is deformed, for deformations of growing size.

    `distance = ||f(x) - f(D_tau x)|| / ||f(x)||` with `D_tau x(u) = x(u - tau(u))` and `sup ||grad tau||` each of the
    magnitudes in turn. A model is stable to deformations when the distance is at most C times the magnitude. The
    fields are the same for every sample, and those of two magnitudes differ by a factor alone.

    Args:
        model: any callable from (B, ..., H, W) to outputs (B, ...); a module is run in eval mode and put back.
        x: images (B, ..., H, W), floating-point.
        magnitudes: the values of `sup ||grad tau||`, without unit, each in [0, 1): at 1 the image begins to fold.
        cutoff: the highest frequency of a field, in half waves per side; low is smooth.
        fields: random fields per magnitude, each one call of the model.
        seed: sets the fields.
        batch_size: samples per call of the model, a bound on memory; all at once when None. Each field is a call of
            its own, on a batch of one shape.

    Returns:
        DeformationCurve of the dtype of the outputs, on the device of x. Distances where f(x) = 0: 0 if f(D_tau x) is
        0 too, else infinite. NaN when an output is NaN or there is no sample.

    Raises:
        TypeError: x is not floating-point, or fields, cutoff or seed is no int.
        ValueError: a magnitude out of range, none at all, x no batch of images or too small for the cutoff, or the
            model does not return (B, ...).

    Law: 0 exactly at magnitude 0, for any model that repeats itself bitwise.

    Source: Mallat 2012, section 1 (arXiv:1101.2286); Bruna and Mallat 2013, section 2 (arXiv:1203.1513).
    """
    return deformations("deformation_stability", model, x, magnitudes, cutoff, fields, seed, batch_size).curve()


@dataclass(frozen=True)
class Deformations:
    r"""What was seen, in float64: distances and floors (B, M, fields); `sizes` (B, M, 2): gradient norm, displacement.

    One row per sample throughout, so that those of several batches are put together by their first axis.
    """

    distances: Tensor
    floors: Tensor
    sizes: Tensor
    dtype: torch.dtype

    def curve(self) -> DeformationCurve:
        r"""Means and quartiles over samples and fields."""
        all_, (gradient, displacement) = self.distances.movedim(1, 0).flatten(1), self.sizes.mean(0).unbind(-1)
        found = (gradient, displacement, all_.mean(1), _quartiles(all_), self.floors.mean((0, 2)))
        return DeformationCurve(*(value.to(self.dtype) for value in found))


def deformations(
    caller: str,
    model: Model,
    x: Tensor,
    magnitudes: Sequence[float],
    cutoff: int,
    fields: int,
    seed: int,
    batch_size: int | None,
) -> Deformations:
    r"""The distances behind `deformation_stability`."""
    magnitudes = check_magnitudes(caller, magnitudes)
    parts = chunks(caller, x, batch_size)
    if x.ndim < 3:
        refuse(caller, "x of shape (B, ..., H, W)", tuple(x.shape), "Give it a batch axis and two of space.")
    unit = unit_fields(caller, fields, (x.shape[-2], x.shape[-1]), cutoff, seed).to(x.device)
    taus = torch.cat([m * unit for m in magnitudes])
    backs = inverse(taus)
    distances, floors = [], []
    with evaluation(model), torch.no_grad():
        for part in parts:
            f = output_of(caller, model, part)
            y, images = rows(f), rows(part)
            for tau, back in zip(taus, backs, strict=True):
                there = warp(part, tau)
                moved = rows(output_of(caller, model, there))
                distances.append(relative_norm(moved - y, y))
                floors.append(relative_norm(rows(warp(there, back)) - images, images))
    sizes = torch.stack((displacement_gradient_norm(taus), taus.norm(dim=1).amax((-2, -1))), -1)
    sizes = sizes.unflatten(0, (len(magnitudes), fields)).mean(1)
    seen, lost = (_table(values, len(parts), len(magnitudes)) for values in (distances, floors))
    return Deformations(seen, lost, sizes.expand(len(x), -1, -1), f.dtype.to_real())


def _table(values: list[Tensor], parts: int, magnitudes: int) -> Tensor:
    r"""From a list over parts, magnitudes and fields of (samples of the part,) to (B, M, fields)."""
    each = len(values) // parts
    table = [torch.stack(values[i * each : (i + 1) * each], 1) for i in range(parts)]
    return torch.cat(table).unflatten(1, (magnitudes, -1))


def check_magnitudes(caller: str, magnitudes: Sequence[float]) -> tuple[float, ...]:
    r"""The magnitudes as floats in [0, 1), at least one."""
    if not isinstance(magnitudes, Sequence) or isinstance(magnitudes, str):
        hint = "Pass, for example, (0.1, 0.2)."
        refuse(caller, "magnitudes to be a sequence of numbers", repr(magnitudes), hint, TypeError)
    if not magnitudes:
        refuse(caller, "magnitudes to hold at least one number", repr(magnitudes), "Pass, for example, (0.1, 0.2).")
    return tuple(check_magnitude(caller, "magnitudes", m) for m in magnitudes)


def _quartiles(values: Tensor) -> Tensor:
    r"""Quartiles (3, M) of rows (M, N) by linear interpolation, as torch.quantile, which takes 2^24 values at most."""
    if not values.shape[1]:
        return values.new_full((3, len(values)), torch.nan)
    ordered, found = values.sort(1).values, []
    for q in (0.25, 0.5, 0.75):
        place = q * (values.shape[1] - 1)
        low, high = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
        found.append(torch.where(low == high, low, low + (place % 1) * (high - low)))  # equal where both are infinite
    return torch.where(values.isnan().any(1), torch.nan, torch.stack(found))
