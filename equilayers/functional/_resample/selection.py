r"""Which polyphase component of a map is kept: the one with the largest norm.

Why this is bitwise: the norms are compared as sums of whole numbers, exact in any order. Components with equal norms
are told apart by hashes of their content, which shifts, turns and mirrors leave alone as well; see `_hashes`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from equilayers._checks import Pair, widened
from equilayers.functional._hashing import FAR, NEAR, mixed, odd_integers

MANTISSA = 52  # whole numbers below 2^53 add up exactly in float64
STEPS = 2**16  # that the numbers of a map are told apart in, for other norms than 1, 2 and infinity
BLOCK = 200_000  # numbers that the caches of a core hold with room to work


def components(x: Tensor, strides: Pair) -> Tensor:
    r"""The view (B, s, s, ..., H', W') of maps (B, ..., H, W)."""
    sh, sw = strides
    return x.unflatten(-1, (-1, sw)).unflatten(-3, (-1, sh)).movedim((-3, -1), (1, 2))


def choose(x: Tensor, strides: Pair, norm: float) -> Tensor:
    r"""The offsets (B, 2) of the components that are kept."""
    x = x.detach()
    if x.is_meta:
        return x.new_empty(len(x), 2, dtype=torch.int64)
    x = widened(x)
    if x[:1].numel() == 0 or len(x) == 0:
        return torch.zeros(len(x), 2, dtype=torch.int64, device=x.device)
    keys = _norms(x, strides, norm).flatten(1)
    best = keys == keys.amax(1, keepdim=True)
    tied = best.sum(1) > 1
    if tied.any():
        best[tied] = _break_ties(components(x[tied], strides), best[tied])
    return _place(best.to(torch.uint8).argmax(1), strides)


def _norms(x: Tensor, strides: Pair, norm: float) -> Tensor:
    r"""The p-th powers of the norms of all components (B, s, s), as whole numbers, exact in any order of summation."""
    top = _top(x)
    if not torch.isfinite(top).all():
        x = torch.nan_to_num(x, 0.0)  # a NaN weighs nothing, an infinity as much as the largest number
        top = _top(x)
    limit = torch.finfo(x.dtype).tiny ** 0.5
    if (top < limit).any():  # brought up first, or their powers would be lost
        scale = torch.ones_like(top).masked_fill_(top < limit, 1 / limit)
        x, top = x * scale.view(-1, *[1] * (x.ndim - 1)), top * scale
    # Every entry is brought into -1..1, then to whole numbers whose sum float64 still holds.
    unit = torch.where(top > 0, top, torch.ones_like(top)).view(-1, *[1] * (x.ndim - 1))
    terms = x[0].numel() // math.prod(strides)
    bits = MANTISSA - 1 - (0 if norm == math.inf else terms.bit_length())
    samples = max(1, BLOCK // x[0].numel())
    maps = [_powers(part, u, norm, bits) for part, u in zip(x.split(samples), unit.split(samples), strict=True)]
    parts = components(torch.cat(maps), strides)
    return parts.amax((-2, -1)) if norm == math.inf else parts.sum((-2, -1))


def _top(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return torch.maximum(flat.amax(1), -flat.amin(1))  # in this torch ten times as fast as aminmax


def _powers(x: Tensor, unit: Tensor, norm: float, bits: int) -> Tensor:
    r"""`|x / unit|^p 2^bits` in whole numbers, summed over the channels, or their largest: (B, H, W), float64."""
    if norm == 2:
        powers = (x * (2.0 ** (bits // 2) / unit)).square_()
    elif norm in (1, math.inf):
        powers = (x * (1 / unit)).abs_().mul_(2.0**bits)
    else:  # a power is not rounded alike wherever it stands: look it up
        places = (x * (STEPS / unit)).abs_().round_().to(torch.int64)
        powers = (
            (torch.linspace(0, 1, STEPS + 1, dtype=torch.float64, device="cpu") ** norm)
            .to(x.device)[places]
            .mul_(2.0**bits)
        )
    planes = powers.round_().flatten(1, -3)
    return planes.amax(1).double() if norm == math.inf else planes.sum(1, dtype=torch.float64)


def _break_ties(parts: Tensor, tied: Tensor) -> Tensor:
    r"""Of the tied components (B, s, s, C, [|G|,] H', W') those whose content has the largest hashes."""
    for keys in _hashes(parts):
        flat = torch.where(tied, keys.flatten(1), torch.iinfo(torch.int64).min)
        tied = tied & (flat == flat.amax(1, keepdim=True))
    return tied


def _hashes(parts: Tensor) -> list[Tensor]:
    r"""Hashes (B, s, s) of components that shifts leave alone, and of turns and mirrors first all, then ever fewer.

    The hash of a map is the sum over its pixels of a hash of the whole map as seen from there, going around. Of several
    images of a component, each under a larger group than the next, the first hash that differs decides: so what is kept
    for a moved map is an image under the group that moved it, be that all, the turns, the half turns or none.
    """
    bits = parts + 0.0  # minus zero equals zero
    bits = mixed(bits.contiguous().view(torch.int32 if bits.element_size() == 4 else torch.int64).to(torch.int64))
    bits = bits if bits.ndim == 7 else bits.unsqueeze(4)  # (B, s, s, C, |G|, H', W')
    channels, fiber = bits.shape[3:5]
    of_channels = odd_integers(channels, torch.int64, bits.device).view(-1, 1, 1, 1)
    of_fiber = odd_integers(fiber, torch.int64, bits.device).view(-1, 1, 1)
    planes = mixed((bits * of_channels).sum(3))
    still, ordered = planes.sum(3), (planes * of_fiber).sum(3)  # whatever becomes of the fiber, and with its order
    upright, mirrored = _seen(still), _seen(still.flip(-1))
    turned = {turn: _seen(torch.rot90(still, turn, (-2, -1))) for turn in (1, 2, 3)}
    mirrored = sum((_seen(torch.rot90(still.flip(-1), turn, (-2, -1))) for turn in turned), mirrored)
    of_turns = sum(turned.values(), upright)
    return [of_turns + mirrored, of_turns, upright + turned[2], _seen(ordered)]


def _seen(h: Tensor) -> Tensor:
    r"""The sum (...) over the pixels of a map (..., H, W) of the hash of all that is seen from there.

    Each step lets a pixel see twice as far, going around.
    """
    for axis in (-1, -2):
        step = 1
        while step < h.shape[axis]:
            h = mixed(h * NEAR + torch.roll(h, -step, axis) * FAR)
            step *= 2
    return h.sum((-2, -1))


def choose_quickly(x: Tensor, strides: Pair, norm: float) -> Tensor:
    r"""The choice by rounded norms, of plain operations, for graphs that leave torch."""
    precise = widened(x)
    norms = torch.linalg.vector_norm(components(precise, strides).flatten(3), norm, -1)
    return _place(norms.flatten(1).argmax(1), strides)


def _place(flat: Tensor, strides: Pair) -> Tensor:
    return torch.stack((flat // strides[1], flat % strides[1]), 1)
