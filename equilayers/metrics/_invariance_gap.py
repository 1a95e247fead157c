r"""Is a model invariant, or only deaf? Its answer to the group against its answer to noise of the same size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from equilayers._checks import check_batch, check_int, refuse
from equilayers._modules import Model, evaluation
from equilayers.groups import Group
from equilayers.metrics._equivariance import rows
from equilayers.metrics._invariance import difference
from equilayers.metrics._orbit import chunks, compared_elements, output_of

FAINT = 1e-3  # of the size of the outputs


class InvarianceGap(NamedTuple):
    r"""How far outputs move under the group and under noise, relative to how far they lie apart.

    moved: under gx instead of x. noisy: under x + d, d random and as long as gx - x. ratio: moved / noisy, 0 for an
    invariant model, about 1 for one to which the group is noise like any other; NaN where neither moves anything.
    spread: how far outputs of different samples lie apart, relative to their size. trivial: whether the model is
    invariant because it says nearly the same of everything, or hears no noise either.
    """

    moved: Tensor
    noisy: Tensor
    ratio: Tensor
    spread: Tensor
    trivial: bool


def invariance_gap(
    model: Model,
    x: Tensor,
    group: Group | str,
    *,
    directions: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
) -> InvarianceGap:
    r"""The end-to-end change along the group against that along random directions of the same length.

    `moved = sqrt(mean ||f(gx) - f(x)||^2) / r`, `noisy = sqrt(mean ||f(x + d) - f(x)||^2) / r`, `||d|| = ||gx - x||`,
    with `r = sqrt(mean ||f(x) - mean f||^2)`, how far the outputs of the samples lie apart.

    A regulariser can make LI small by making the network deaf to everything; then `moved` is small and `ratio` is not.

    Args:
        model: any callable from (B, ...) to (B, ...); a module is run in eval mode and put back afterwards.
        x: two inputs (B, ...) or more, floating-point, that the group acts on.
        group: the symmetry, of more than one element.
        directions: random directions per sample and element.
        seed: of the directions.
        batch_size: samples per call of the model; all at once when None.

    Returns:
        `InvarianceGap`, scalar tensors of the dtype of the outputs.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: fewer than two samples, a trivial group, or one that does not act on x.

    Source: the claim behind Moskalev et al. 2023, section 3.2 (arXiv:2308.03904): learned invariance comes with
        spectral decay.
    """
    caller = "invariance_gap"
    group, elements = compared_elements(caller, group, include_identity=False)
    check_int(caller, "directions", directions, 1)
    if len(check_batch(caller, x)) < 2:
        refuse(caller, "x of two samples or more", len(x), "How far outputs lie apart takes two.")
    generator = torch.Generator().manual_seed(seed)
    outputs, moved, noisy = [], [], []
    with evaluation(model), torch.no_grad():
        for part in chunks(caller, x, batch_size):
            f = output_of(caller, model, part)
            outputs.append(rows(f))
            orbit = [group.act(g, part) for g in elements]
            lengths = [_length(turned - part) for turned in orbit if turned.shape == part.shape]
            for turned in orbit:
                moved.append(_squares(output_of(caller, model, turned), f))
                # A map set upright is nowhere near the one that lies: as far as the others move, on the average.
                same = turned.shape == part.shape
                length = _length(turned - part) if same else torch.stack(lengths).mean(0)
                for _ in range(directions):
                    noise = torch.randn(part.shape, generator=generator, dtype=part.dtype, device="cpu").to(part.device)
                    beside = part + noise * (length / _length(noise))
                    noisy.append(_squares(output_of(caller, model, beside), f))
    dtype, f = f.dtype.to_real(), torch.cat(outputs)
    f = f[:, (f != f[0]).any(0)]  # what is the same for all, such as the -1e9 of a masked class, says nothing of any
    size = f.square().sum(1).mean().sqrt()
    apart = (f - f.mean(0)).square().sum(1).mean().sqrt()
    along, across = (torch.cat(squares).mean().sqrt() for squares in (moved, noisy))
    trivial = bool(apart <= FAINT * size) or bool(across <= FAINT * apart)
    numbers = torch.stack((along / apart, across / apart, along / across, apart / (size or 1))).to(dtype)
    under_group, under_noise, ratio, spread = numbers
    return InvarianceGap(under_group, under_noise, ratio, spread, trivial)


def _length(d: Tensor) -> Tensor:
    return torch.linalg.vector_norm(d.flatten(1), dim=1).view(-1, *[1] * (d.ndim - 1))


def _squares(y: Tensor, f: Tensor) -> Tensor:
    return difference(rows(y), rows(f)).square().sum(1)
