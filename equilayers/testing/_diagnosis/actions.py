r"""How a group may act on what a module puts out: the ways that are tried on tensors nobody has declared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from equilayers.groups import Group
from equilayers.metrics import equivariance_gaps

Move = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Action:
    r"""One way that elements move a tensor (B, ...); `fixed` where they leave it as it is."""

    name: str
    move: Move
    fixed: bool = False


def image(group: Group) -> Action:
    r"""Every channel is an image: the last axes move."""
    return Action("image", group.act)


def regular(group: Group) -> Action:
    r"""Regular features (B, C, |G|) or (B, C, |G|, H, W)."""
    return Action("regular", group.act_regular)


def invariant() -> Action:
    r"""Nothing moves."""
    return Action("invariant", lambda g, y: y, fixed=True)  # noqa: ARG005


def declared(group: Group, name: str) -> Action:
    r"""The action of this name: "invariant", "image" or "regular"."""
    actions = {action.name: action for action in (invariant(), image(group), regular(group))}
    return actions[name]


def carried(action: Action, shape: Sequence[int]) -> Action:
    r"""The action on a tensor that is one of `shape` (B, ...) in another shape."""

    def move(g: int, y: Tensor) -> Tensor:
        return action.move(g, y.reshape(len(y), *shape[1:])).reshape(y.shape)

    return Action(f"{action.name}, reshaped", move)


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


def distance(action: Action, y: Tensor, moved: Sequence[Tensor]) -> float:
    r"""The largest entry of `f(gx) - act(g, f(x))` over the moved outputs of g = 1, 2, ..., by that of f(x).

    Infinite where the action does not make the shape of f(gx).
    """
    scale = max(largest(m) for m in (y, *moved)) or 1.0
    pairs = ((g, _wide(after)) for g, after in enumerate(moved, start=1))
    try:
        found = equivariance_gaps("distance", action.move, _wide(y), pairs)
        return max((largest(gap, finite=False) for gap in found), default=0.0) / scale
    except ValueError:
        return math.inf


def largest(t: Tensor, *, finite: bool = True) -> float:
    r"""The largest absolute entry, of the finite ones or of all; 0 where there is none."""
    if not t.numel():
        return 0.0
    size = t.abs() if t.dtype != torch.bool else t.double()
    return float(size.nan_to_num(nan=0.0, posinf=0.0).max() if finite and t.dtype.is_floating_point else size.max())


def _wide(t: Tensor) -> Tensor:
    t = t.cpu() if t.device.type == "mps" else t  # which has no float64
    return t.to(torch.complex128) if t.is_complex() else t.double()
