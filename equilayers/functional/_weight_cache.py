r"""Cache of tensors derived from a weight, valid until the weight changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from equilayers._modules import tensors
from equilayers._torch_compat import in_dispatch_mode, in_forward_mode, in_transform

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
LARGE = 65536  # entries


class Place(NamedTuple):
    r"""A parameter, where it lies in memory, and the bits there."""

    weight: Tensor
    pointer: int
    strides: tuple[int, ...]
    shape: torch.Size
    bits: np.ndarray


class Kept(NamedTuple):
    r"""What was made of weights.

    kind: which of the things that are made of them. bits: theirs, as they were. places: where they lie, if all are
    parameters; otherwise empty. inference: whether it was made in inference mode, and can serve no gradient.
    """

    kind: str
    bits: list[np.ndarray]
    places: list[Place]
    value: Any
    inference: bool

    def serves(self) -> bool:
        r"""Whether it may be used in the mode that is on."""
        return not self.inference or torch.is_inference_mode_enabled()

    def unchanged(self, weights: tuple[Tensor, ...]) -> bool:
        r"""Whether these are the very parameters, in the same memory, and as they were."""
        if len(weights) != len(self.places):
            return False
        for weight, place, bits in zip(weights, self.places, self.bits, strict=True):
            here = weight is place.weight and weight.data_ptr() == place.pointer and weight.stride() == place.strides
            if not here or weight.shape != place.shape or not _equal(place.bits, bits):
                return False
        return True


class WeightCache:
    r"""Keeps what `make` returned for a weight, as long as the weight is unchanged and no gradient is wanted.

    It is made anew when the weight differs from the one it was made of, bit by bit, or trains: the version counter does
    not see what is written through `.data` or numpy. It is in no state dict, copy or pickle.
    """

    def __init__(self) -> None:
        # Each in one piece, for threads may share them.
        self._kept: Kept | None = None
        self.last: Any = None  # what its owner knows of its last call

    def kept(self, kind: str) -> Kept | None:
        r"""What is kept now, if it is of this kind."""
        return self._kept if self._kept is not None and self._kept.kind == kind else None

    def get(self, weight: Tensor | tuple[Tensor, ...], make: Callable[[], Any], kind: str = "") -> Any:
        r"""The kept value of this kind, or a new one from `make`, for a weight (or several) that `is_plain`."""
        weights = (weight,) if isinstance(weight, Tensor) else weight
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            self._kept = None
            return make()
        if in_dispatch_mode() or _have_tangents(*weights):
            return make()  # what is made here belongs to the mode, or has a tangent, which what is kept would lose
        kept = self.kept(kind)
        if kept is not None and not kept.serves():
            kept = None
        if kept is not None and kept.unchanged(weights):
            return kept.value
        if in_transform() or not all(map(_comparable, weights)):
            return make()
        bits = [w.detach().view(BITS[w.dtype]).numpy() for w in weights]
        if kept is None or not _same(kept.bits, bits):
            lasting = all(type(w) is torch.nn.Parameter for w in weights)
            places = [Place(w, w.data_ptr(), w.stride(), w.shape, b) for w, b in zip(weights, bits, strict=True)]
            kept = Kept(
                kind, [b.copy() for b in bits], places if lasting else [], make(), torch.is_inference_mode_enabled()
            )
            if is_plain(*tensors(kept.value)):
                self._kept = kept
        return kept.value

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightCache:
        return WeightCache()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return WeightCache, ()


def is_plain(*tensors: Tensor) -> bool:
    r"""Whether these are tensors with memory of their own, not the wrappers of a torch.func transform or a compiler.

    Nor may they have tangents, which what is computed in place would lose.
    """
    if _have_tangents(*tensors):
        return False
    try:
        return all(type(t) in (Tensor, torch.nn.Parameter) and t.data_ptr() is not None for t in tensors)
    except RuntimeError:
        return False


def _have_tangents(*tensors: Tensor) -> bool:
    return in_forward_mode() and any(unpack_dual(t).tangent is not None for t in tensors)


def _comparable(weight: Tensor) -> bool:
    r"""Not so elsewhere: to compare would wait for the device at every call; nor where a view negates what it shows."""
    known = weight.device.type == "cpu" and weight.dtype in BITS
    return known and not weight.is_inference() and not weight.is_neg()


def _same(kept: list[np.ndarray], bits: list[np.ndarray]) -> bool:
    return len(kept) == len(bits) and all(map(_equal, kept, bits))


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    r"""Whether dtypes, shapes and numbers agree; bytes are compared at once, of large arrays without a copy of them."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.tobytes() == b.tobytes() if a.size < LARGE else bool((a == b).all())
