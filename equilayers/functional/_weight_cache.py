r"""Cache of tensors derived from a weight, valid until the weight changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.forward_ad import unpack_dual

from equilayers._modules import tensors
from equilayers._torch_compat import in_dispatch_mode

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
LARGE = 8192  # entries


class WeightCache:
    r"""Keeps what `make` returned for a weight, as long as the weight is unchanged and no gradient is wanted.

    It is made anew when the weight differs from the one it was made of, bit by bit, or trains: the version counter does
    not see what is written through `.data` or numpy. It is in no state dict, copy or pickle.
    """

    def __init__(self) -> None:
        # What it is, the bits of the weights, the value: in one piece, for threads may share it.
        self._kept: tuple[str, list[Tensor], Any] | None = None

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
        kept, bits = self._kept, [w.detach().view(BITS[w.dtype]) for w in weights]
        if kept is None or kept[0] != kind or not _same(kept[1], bits):
            kept = kind, [b.clone() for b in bits], make()
            if is_plain(*tensors(kept[2])):
                self._kept = kept
        return kept[2]

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
    r"""Not so elsewhere: to compare would wait for the device at every call; nor where a view negates what it shows."""
    known = weight.device.type == "cpu" and weight.dtype in BITS
    return known and not weight.is_inference() and not weight.is_neg()


def _same(kept: list[Tensor], bits: list[Tensor]) -> bool:
    return len(kept) == len(bits) and all(map(_equal, kept, bits))


def _equal(a: Tensor, b: Tensor) -> bool:
    r"""Whether dtypes, shapes and numbers agree; numpy compares five times as fast, once it has begun."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) if a.numel() < LARGE else bool((a.numpy() == b.numpy()).all())
