r"""Cache of tensors derived from a weight, valid until the weight changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual

from equilayers._modules import tensors
from equilayers._tables import table
from equilayers._torch_compat import in_dispatch_mode
from equilayers.functional._hashing import odd_integers, power_of_two

CHUNK = 2**20  # entries that one table of random numbers serves


class WeightCache:
    r"""Keeps what `make` returned for a weight, as long as the weight is unchanged and no gradient is wanted.

    It is made anew when the weight was written to (by its version counter, and by a checksum for writes through
    `.data`, which the counter does not see), was replaced, moved, or trains. It is in no state dict, copy or pickle.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[Any, ...], Any] | None = None  # key and value in one piece: threads may share it

    def get(self, weight: Tensor | tuple[Tensor, ...], make: Callable[[], Any], kind: str = "") -> Any:
        r"""The kept value of this kind, or a new one from `make`, for a weight (or several) that `is_plain`."""
        weights = (weight,) if isinstance(weight, Tensor) else weight
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            self._kept = None
            return make()
        if torch.is_inference_mode_enabled() or in_dispatch_mode():
            return make()  # what is made here could not serve a gradient later, or belongs to a mode
        if any(unpack_dual(w).tangent is not None for w in weights):
            return make()  # nor could what has a tangent, and what has none would lose it
        if not all(map(_comparable, weights)):
            return make()
        key = kind, *((w.data_ptr(), w._version, w.dtype, w.shape, _checksum(w.detach())) for w in weights)
        kept = self._kept
        if kept is None or kept[0] != key:
            kept = key, make()
            if is_plain(*tensors(kept[1])):
                self._kept = kept
        return kept[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightCache:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()


def is_plain(*tensors: Tensor) -> bool:
    r"""Whether these are tensors with memory of their own, not the wrappers of a torch.func transform or a compiler.

    Nor may they have tangents, which what is computed in place would lose.
    """
    if forward_ad._current_level >= 0 and any(unpack_dual(t).tangent is not None for t in tensors):
        return False
    try:
        return all(type(t) in (Tensor, torch.nn.Parameter) and t.data_ptr() is not None for t in tensors)
    except RuntimeError:
        return False


def _comparable(weight: Tensor) -> bool:
    r"""Not so elsewhere: the checksum would wait for the device at every call or be coarse, or there is no version."""
    known = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    return known and not weight.is_inference()


def _checksum(weight: Tensor) -> list[tuple[int, float]]:
    r"""Two projections, chunk by chunk: of the bits on odd numbers, modulo 2^32 or 2^64, of the values on random ones.

    Odd numbers have an inverse: whatever changes one entry, if by its last bit, changes the first. Of many signs or
    exponents at once little is left modulo a power of two; the second sees those. A NaN equals nothing, not itself.
    """
    whole, sums = weight.flatten(), []
    for flat in whole.split(CHUNK) if whole.numel() > CHUNK else (whole,):
        count = flat.numel()
        odd, probe = _projections(power_of_two(count), flat.dtype)
        bits = flat.view(odd.dtype)
        sums.append((int(bits.dot(odd[:count])), float(flat.dot(probe[:count]))))
    return sums


@table
def _projections(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    r"""Odd numbers of the width of the dtype, and random ones, (count,) both."""
    odd = odd_integers(count, torch.int32 if dtype == torch.float32 else torch.int64, torch.device("cpu"))
    return odd, torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(count))
