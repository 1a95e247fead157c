r"""How a group may act on what a module puts out: the ways that are tried on tensors nobody has declared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.groups.vectors import AXES, NAMES, Reading, check_reading, readings, turn
from equilayers.metrics import equivariance_gaps

Move = Callable[[int, Tensor], Tensor]
RESHAPED = ", reshaped"


@dataclass(frozen=True)
class Action:
    r"""One way that elements move a tensor (B, ...).

    fixed: they leave it as it is. anywhere: the origin may be at any place, the same for all samples. mixes: they mix
    channels, those of the components of vectors.
    """

    name: str
    move: Move
    fixed: bool = False
    anywhere: bool = False
    mixes: bool = False


def image(group: Group) -> Action:
    r"""Every channel is an image: the last axes move."""
    return Action("image", group.act)


def regular(group: Group) -> Action:
    r"""Regular features (B, C, |G|) or (B, C, |G|, H, W)."""
    return Action("regular", group.act_regular)


def invariant() -> Action:
    r"""Nothing moves."""
    return Action("invariant", lambda g, y: y, fixed=True)  # noqa: ARG005


def vector(group: Group, axes: str = "right-up") -> Action:
    r"""Vectors of the plane: (..., 2), (B, C, 2, N), and fields (B, 2, H, W) or (B, C, 2, H, W), whose pixels move.

    A shape that can be read in two ways is refused.
    """
    group.vector_matrix(0, axes=axes)  # refused here where there is none

    def move(g: int, y: Tensor) -> Tensor:
        return _read(group, axes, check_reading("vector", y.shape)).move(g, y)

    return Action(_name_of(axes), move, mixes=True)


def _name_of(axes: str) -> str:
    return next(name for name, those in NAMES.items() if those == axes)


def _read(group: Group, axes: str, reading: Reading) -> Action:
    r"""Vectors that are read in this way."""
    dim, field = reading

    def move(g: int, y: Tensor) -> Tensor:
        return turn(group.act(g, y) if field else y, group.vector_matrix(g, axes=axes), dim)

    return Action(_name_of(axes), move, mixes=True)


NAMED: dict[str, Callable[[Group], Action]] = {
    "image": image,
    "regular": regular,
    **{name: partial(vector, axes=axes) for name, axes in NAMES.items()},
}


def declared(group: Group, name: str) -> Action:
    r"""The action of this name: "invariant", or one of `NAMED`."""
    return NAMED[name](group) if name in NAMED else invariant()


def carried(action: Action, shape: Sequence[int]) -> Action:
    r"""The action on a tensor that is one of `shape` (B, ...) in another shape."""

    def move(g: int, y: Tensor) -> Tensor:
        return action.move(g, y.reshape(len(y), *shape[1:])).reshape(y.shape)

    return replace(action, name=f"{action.name.removesuffix(RESHAPED)}{RESHAPED}", move=move)


def channels_last(action: Action, side: tuple[int, int] | None = None) -> Action:
    r"""The action on maps (B, H, W, C), or on maps of that size as tokens (B, H·W, C)."""

    def move(g: int, y: Tensor) -> Tensor:
        maps = (y if side is None else y.unflatten(1, side)).movedim(-1, 1)
        moved = action.move(g, maps).movedim(1, -1)
        return moved if side is None else moved.flatten(1, 2)

    return Action(f"{action.name}, {'channels last' if side is None else 'as tokens'}", move)


def candidates(group: Group, shape: torch.Size, known: Sequence[tuple[Action, torch.Size]]) -> Iterator[Action]:
    r"""Actions that a tensor of this shape may follow; first those of what it was made of, with their shapes."""
    for action, before in known:
        if before == shape:
            yield action
        elif math.prod(before[1:]) == math.prod(shape[1:]) and before[:1] == shape[:1]:
            yield carried(action, before)
    if len(shape) in (3, 5) and shape[2] == group.order and _acts(group, shape[3:]):
        yield regular(group)
    if len(shape) > group.space_ndim and _acts(group, shape[-group.space_ndim :]):
        yield image(group)
    if len(shape) in (2, 4) and _acts(group, shape[2:]):
        yield from _fibers(group, shape)
    if group.space_ndim == 2:
        yield from _channels_last(group, shape)
    yield invariant()
    yield from _vectors(group, shape)
    yield from _coordinates(group, shape)


def _vectors(group: Group, shape: torch.Size) -> Iterator[Action]:
    r"""Vectors and fields, also fields whose components are neighbours among the channels."""
    if not isinstance(group, CyclicRotation | Dihedral):
        return
    for axes, reading in itertools.product(AXES, readings(shape)):
        if not reading[1] or _acts(group, shape[-2:]):
            yield _read(group, axes, reading)
    if len(shape) == 4 and shape[1] > 2 and shape[1] % 2 == 0 and _acts(group, shape[2:]):
        for axes in AXES:
            yield carried(_read(group, axes, (2, True)), (shape[0], shape[1] // 2, 2, *shape[2:]))


def _fibers(group: Group, shape: Sequence[int]) -> Iterator[Action]:
    r"""Regular features whose fibers lie in the channels, (B, C·|G|) or (B, C·|G|, H, W)."""
    fields, rest = divmod(shape[1], group.order)
    if fields and not rest:
        yield carried(regular(group), (shape[0], fields, group.order, *shape[2:]))


def _channels_last(group: Group, shape: torch.Size) -> Iterator[Action]:
    r"""Maps (B, H, W, C), and square ones as tokens (B, H·W, C): images, or regular features in the channels."""
    if len(shape) == 4:
        side, tokens = (shape[1], shape[2]), None
    else:
        tokens = side = (math.isqrt(shape[1]),) * 2 if len(shape) == 3 else (0, 0)
    if side[0] > 1 and math.prod(side) == math.prod(shape[1:-1]) and _acts(group, side):
        yield channels_last(image(group), tokens)
        for action in _fibers(group, (shape[0], shape[-1], *side)):
            yield channels_last(action, tokens)


def _coordinates(group: Group, shape: Sequence[int]) -> Iterator[Action]:
    r"""Places in the plane, one after the other (B, ..., 2), or along axis 1: (x, y) or (y, x), y upwards or down."""
    if not isinstance(group, CyclicRotation | Dihedral) or len(shape) < 2 or shape[0] < 2:
        return
    sides = [-1] if shape[-1] == 2 else []
    if len(shape) in (2, 3) and shape[1] % 2 == 0:
        sides += [1, 2]
    for side, order, sign in itertools.product(sides, (1, -1), (1, -1)):
        yield replace(_as_pairs(_read(group, "right-up", (-1, False)), side, order, sign), anywhere=True)


def _as_pairs(action: Action, side: int, order: int, sign: int) -> Action:
    r"""Vectors (..., 2) along the last axis, in the halves (1) or the neighbours (2) of axis 1."""

    def pairs(y: Tensor) -> Tensor:
        t = y if side == -1 else y.unflatten(1, (2, -1)).movedim(1, -1) if side == 1 else y.unflatten(1, (-1, 2))
        t = t.movedim(2, -1) if side == 2 else t
        t = t.flip(-1) if order == -1 else t
        return torch.stack((t[..., 0], sign * t[..., 1]), -1)

    def back(y: Tensor) -> Tensor:
        t = torch.stack((y[..., 0], sign * y[..., 1]), -1)
        t = t.flip(-1) if order == -1 else t
        return t if side == -1 else t.movedim(-1, side).flatten(1, 2)

    return replace(action, move=lambda g, y: back(action.move(g, pairs(y))))


def _acts(group: Group, space: Sequence[int]) -> bool:
    r"""Whether the group moves this space; vectors without a space have nothing that it could not."""
    if not space:
        return True
    if len(space) < group.space_ndim:
        return False
    try:
        group.check_space(tuple(space), "candidates")
    except ValueError:
        return False
    return True


def distance(action: Action, y: Tensor, moved: Sequence[Tensor], elements: Sequence[int] = ()) -> float:
    r"""The largest entry of `f(gx) - act(g, f(x))` over the moved outputs, by that of the channels that vary.

    They are those of g = 1, 2, ..., or of the elements. Infinite where the action does not make the shape of f(gx).
    """
    plain, *others = map(_wide, (y, *moved))
    if action.anywhere:
        plain, *others = (t - t.mean(0) for t in (plain, *others))
    pairs = zip(elements or range(1, len(moved) + 1), others, strict=True)
    try:
        found = equivariance_gaps("distance", action.move, plain, pairs)
        off = max((largest(gap, finite=False) for gap in found), default=0.0)
    except (ValueError, RuntimeError):
        return math.inf
    return off / (_size((y, *moved)) or 1.0) if off else 0.0


def _size(outputs: Sequence[Tensor]) -> float:
    r"""The largest finite entry, of channels (axis 1) that are not the same everywhere as those of masked classes."""
    if all(t.ndim > 1 and len(t) > 1 and t.numel() and t.shape[1] == outputs[0].shape[1] for t in outputs):
        rows = torch.cat([(t.abs() if t.is_complex() else t).movedim(1, 0).flatten(1).double() for t in outputs], 1)
        rows = rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        varies = rows.amax(1) > rows.amin(1)
        outputs = [rows[varies]] if bool(varies.any()) else outputs
    return max(largest(t) for t in outputs)


def largest(t: Tensor, *, finite: bool = True) -> float:
    r"""The largest absolute entry, of the finite ones or of all; 0 where there is none."""
    if not t.numel():
        return 0.0
    size = t.abs() if t.dtype != torch.bool else t.double()
    return float(size.nan_to_num(nan=0.0, posinf=0.0).max() if finite and t.dtype.is_floating_point else size.max())


def _wide(t: Tensor) -> Tensor:
    t = t.cpu() if t.device.type == "mps" else t  # which has no float64
    return t.to(torch.complex128) if t.is_complex() else t.double()
