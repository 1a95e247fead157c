r"""Taking the chosen polyphase component of each sample, and putting it back: two transposed maps."""

from __future__ import annotations

import torch
from torch import Tensor

from equilayers._checks import Pair
from equilayers.functional._resample.selection import components
from equilayers.functional._weight_cache import is_plain

LARGE = 4_000  # numbers of a sample that are worth a call each


def take(x: Tensor, choice: Tensor, strides: Pair) -> Tensor:
    r"""The chosen components (B, ..., H / s, W / s) of maps (B, ..., H, W)."""
    if not _is_readable(choice) or len(x) == 0 or x[0].numel() < LARGE:
        return components(x, strides)[torch.arange(x.shape[0], device=x.device), choice[:, 0], choice[:, 1]]
    samples = zip(x.unbind(0), choice.tolist(), strict=True)
    return torch.stack([sample[..., i :: strides[0], j :: strides[1]] for sample, (i, j) in samples])


def put(y: Tensor, choice: Tensor, strides: Pair) -> Tensor:
    r"""Maps with y at the chosen offsets and zeros elsewhere."""
    if torch.compiler.is_compiling() or is_plain(y, choice):
        x = y.new_zeros(*y.shape[:-2], y.shape[-2] * strides[0], y.shape[-1] * strides[1])
        components(x, strides)[torch.arange(y.shape[0], device=y.device), choice[:, 0], choice[:, 1]] = y
        return x
    # Under torch.func the choice may be batched where y is not, and y cannot be written in place.
    down, right = (choice[:, k, None] == torch.arange(step, device=y.device) for k, step in enumerate(strides))
    here = (down[:, :, None] & right[:, None, :]).view(-1, *[1] * (y.ndim - 2), strides[0], 1, strides[1])
    return torch.where(here, y[..., :, None, :, None], 0).flatten(-4, -3).flatten(-2)


def fits(choice: Tensor, strides: Pair) -> bool:
    r"""Whether all offsets lie within the stride, as far as that can be read here."""
    return not _is_readable(choice) or not bool(
        ((choice < 0) | (choice >= torch.tensor(strides, device=choice.device))).any()
    )


def _is_readable(choice: Tensor) -> bool:
    return choice.device.type == "cpu" and not torch.compiler.is_compiling() and is_plain(choice)
