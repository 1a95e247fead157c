r"""What a model is called with: one tensor, several one after the other, or by name; and which of them move."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from equilayers._checks import check_model, check_tensor, check_values, refuse
from equilayers._modules import Model
from equilayers.groups import Group
from equilayers.testing._diagnosis.actions import NAMED, Action, Move, declared, image

Given = Tensor | Sequence[Any] | Mapping[str, Any]  # what users pass as x
Names = Sequence[str | int] | str | int | None  # and which of several inputs move
How = str | Move  # and how: by the name of an action, or a function of an element and a tensor


@dataclass(frozen=True)
class Inputs:
    r"""Inputs of a model by name, those that move first in `moving`.

    form: how the model takes them: "one" tensor, "several" arguments, arguments by "keywords", or a "dictionary".
    action: how they move; as images where None.
    """

    parts: dict[str, Any]
    moving: tuple[str, ...]
    form: Literal["one", "several", "keywords", "dictionary"]
    action: Action | None = None

    @classmethod
    def one(cls, x: Tensor) -> Inputs:
        r"""A single tensor, which moves."""
        return cls({"x": x}, ("x",), "one")

    @classmethod
    def of(
        cls,
        caller: str,
        model: Model,
        x: Given | Inputs,
        group: Group,
        moving: Names = None,
        input: How = "image",
    ) -> Inputs:
        r"""As `inputs_of`."""
        return inputs_of(caller, model, x, group, moving, input)

    @property
    def first(self) -> Tensor:
        r"""The first tensor that moves."""
        tensor: Tensor = self.parts[self.moving[0]]
        return tensor

    @property
    def movable(self) -> list[Tensor]:
        r"""All tensors that move."""
        return [self.parts[name] for name in self.moving]

    def __len__(self) -> int:
        return len(self.first)

    def changed(self, change: Callable[[Tensor], Tensor], *, all_: bool = False) -> Inputs:
        r"""With other tensors in the place of those that move, or of all."""
        parts = {
            name: change(t) if isinstance(t, Tensor) and (all_ or name in self.moving) else t
            for name, t in self.parts.items()
        }
        return dataclasses.replace(self, parts=parts)

    def acted(self, group: Group, g: int) -> Inputs:
        r"""g·x: each of those that move moves by g."""
        move = group.act if self.action is None else self.action.move
        return self.changed(lambda t: move(g, t))

    def known(self, group: Group) -> list[tuple[Action, torch.Size]]:
        r"""How those that move do so, with their shapes."""
        action = image(group) if self.action is None else self.action
        return [(action, t.shape) for t in self.movable]

    def double(self) -> Inputs:
        r"""In float64, whole numbers as they are."""
        return self.changed(lambda t: t.double() if t.is_floating_point() else t, all_=True)

    def clone(self) -> Inputs:
        r"""Copies of all tensors."""
        return self.changed(lambda t: t.clone(), all_=True)

    def samples(self, chosen: list[int]) -> Inputs:
        r"""Some samples of it."""
        return self.changed(lambda t: t[chosen] if t.ndim and len(t) == len(self) else t, all_=True)

    def noisy(self, away: float) -> Inputs:
        r"""With noise of about that size in the numbers that move."""

        def noise(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t
            generator = torch.Generator().manual_seed(0)
            return t + (torch.randn(t.shape, generator=generator, dtype=torch.float64, device="cpu") / 2 * away).to(t)

        return self.changed(noise)

    def run(self, model: Model) -> Any:
        r"""What the model returns for it."""
        call: Any = model
        if self.form == "keywords":
            return call(**self.parts)
        return call(self.parts) if self.form == "dictionary" else call(*self.parts.values())


def inputs_of(
    caller: str,
    model: Model,
    x: Given | Inputs,
    group: Group,
    moving: Names = None,
    input: How = "image",
) -> Inputs:
    r"""The inputs on the model's device and in its dtype, which the group has to act on.

    Raises:
        TypeError: x is no floating-point tensor, nor several inputs of which one can move.
        ValueError: there is no input of that name, or the group does not act on it.
    """
    if isinstance(x, Inputs):
        return x
    action = _action(caller, group, input)
    check_model(caller, model)
    if isinstance(x, Tensor) or not _several(x):
        if moving is not None:
            hint = "A single tensor moves: leave moving out."
            refuse(caller, "several inputs with moving=", type(x).__name__, hint, TypeError)
        found = Inputs.one(check_values(caller, "x", x))
    else:
        items = x.items() if isinstance(x, Mapping) else enumerate(x)
        parts = {str(name): value for name, value in items}
        for name, value in parts.items():
            if isinstance(value, Tensor):
                (check_values if value.is_floating_point() else check_tensor)(caller, f"x[{name}]", value)
        found = Inputs(parts, _moving(caller, parts, group, moving), _form(model, x))
    found = dataclasses.replace(_placed(model, found), action=action)
    for name in found.moving:
        t = found.parts[name]
        if action is None:
            group.check_space(tuple(t.shape), caller)
        else:
            _require_moving(caller, action, group, t)
        if len(t) != len(found):
            got = f"{len(t)} in {name!r}"
            refuse(caller, f"{len(found)} samples in every input that moves", got, "Name those that move with moving=.")
    return found


def _action(caller: str, group: Group, input: How) -> Action | None:
    r"""How the inputs move, None as images."""
    if callable(input):
        return Action("given", input)
    if input not in NAMED:
        named = ", ".join(map(repr, NAMED))
        refuse(caller, f"input in {{{named}}} or a function", repr(input), "Pick one of those.")
    return None if input == "image" else declared(group, input)


def _require_moving(caller: str, action: Action, group: Group, t: Tensor) -> None:
    r"""ValueError, in the name of `caller`, where an input cannot move as it was declared."""
    try:
        action.move(group.order - 1, t)
    except ValueError as error:
        if action.name == "given":
            raise
        hint = "Say how it moves with input=."
        refuse(caller, f"an input that moves as {action.name}", f"{tuple(t.shape)} ({error})", hint)


def _placed(model: Model, x: Inputs) -> Inputs:
    r"""On the model's device and, if it is floating-point, in its dtype."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    like = next((p for p in parameters if p.is_floating_point()), None)
    if like is None:
        return x
    return x.changed(lambda t: t.to(like.device, like.dtype if t.is_floating_point() else t.dtype), all_=True)


def _several(x: object) -> bool:
    values = x.values() if isinstance(x, Mapping) else x if isinstance(x, list | tuple) else ()
    return any(isinstance(value, Tensor) for value in values)


def _moving(caller: str, parts: dict[str, Any], group: Group, moving: Names) -> tuple[str, ...]:
    r"""The names that were given; otherwise those of images, and of what is as large as the first image."""
    tensors = {name: t for name, t in parts.items() if isinstance(t, Tensor)}
    if moving is not None:
        names = tuple(map(str, [moving] if isinstance(moving, str | int) else moving))
        if not names or not set(names) <= set(tensors):
            had = ", ".join(map(repr, tensors))
            hint = "Name those that the group moves."
            refuse(caller, f"moving to name some of the tensors {had}", repr(moving), hint)
        return names
    n = group.space_ndim
    fits: list[str] = []
    for extra in (2, 1):  # batch and channels before the space, or the batch alone
        fits = fits or [
            name for name, t in tensors.items() if t.is_floating_point() and t.ndim >= n + extra and _acts(group, t)
        ]
    if not fits:
        shapes = ", ".join(f"{name}: {tuple(t.shape)}" for name, t in tensors.items())
        refuse(caller, f"an input that {group!r} moves", shapes, "Name those that move with moving=.", TypeError)
    space = tensors[fits[0]].shape[-n:]
    alike = [name for name, t in tensors.items() if t.ndim > n and t.shape[-n:] == space and _acts(group, t)]
    return tuple(dict.fromkeys((*fits, *alike)))


def _acts(group: Group, t: Tensor) -> bool:
    try:
        group.check_space(tuple(t.shape), "inputs_of")
    except ValueError:
        return False
    return True


def _form(model: Model, x: object) -> Literal["several", "keywords", "dictionary"]:
    r"""Whether a dictionary is taken as arguments by name, where all its names are arguments, or as it is."""
    if not isinstance(x, Mapping):
        return "several"
    try:
        inspect.signature(model.forward if isinstance(model, nn.Module) else model).bind(**x)
    except (TypeError, ValueError):
        return "dictionary"
    return "keywords"


def first_tensor(x: object) -> Tensor | None:
    r"""The first tensor of what a user passes as x, for messages."""
    values = x.values() if isinstance(x, Mapping) else x if isinstance(x, list | tuple) else (x,)
    return next((value for value in values if isinstance(value, Tensor)), None)
