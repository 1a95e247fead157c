r"""The model that is checked, on its inputs, ready to be run."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from equilayers.cli._arguments import Settings
from equilayers.cli._words import CALLER, bad, said
from equilayers.groups import Group
from equilayers.testing import Action, Inputs, declared, outputs_of, undisturbed


@dataclass(frozen=True)
class Subject:
    r"""A model in eval mode as a function to a tensor, its inputs on its device, and how its outputs move.

    Of several outputs the verdict is of all, y and what is measured of the one of this name.
    """

    settings: Settings
    model: nn.Module
    inputs: Inputs
    y: Tensor
    name: str
    actions: dict[str, Action]

    def __call__(self, x: Tensor) -> Tensor:
        r"""The tensor of that name that the model puts out, (B, 1) for one number each."""
        return _with_axis(outputs_of(CALLER, self.model(x))[self.name])

    @property
    def x(self) -> Tensor:
        r"""The input, or the first of several that moves."""
        return self.inputs.first

    @property
    def several(self) -> str:
        r"""Why there is no number of one input; empty where there is one."""
        if self.settings.input_as != "image":
            return "it is of inputs that move as images"
        return "it is of models of one input" if len(self.settings.shapes) > 1 else ""

    @property
    def action(self) -> Action:
        r"""How the outputs move, each by its shape where there are several."""
        if len(self.actions) == 1:
            return self.actions[self.name]
        words = ", ".join(f"{name}: {action.name}" for name, action in self.actions.items())
        fixed = all(action.fixed for action in self.actions.values())
        return Action(words, lambda g, y: _declared(self.settings, y).move(g, y), fixed)

    def running(self) -> contextlib.AbstractContextManager[None]:
        r"""As it is checked: in eval mode, in full precision; afterwards as before."""
        return undisturbed(self.model)

    @property
    def group(self) -> Group:
        r"""The symmetry."""
        return self.settings.group

    @property
    def logits(self) -> bool:
        r"""Whether the output is (B, K) and should not move."""
        return self.y.ndim == 2 and self.actions[self.name].fixed


def prepared(settings: Settings, model: nn.Module, given: Any) -> Subject:
    r"""The model on its device, run once.

    Raises:
        BadInputError: the group does not act on the inputs or outputs, or the model does not run on them.
        TypeError: the model returns no tensor.
    """
    shapes = settings.shape if len(settings.shapes) == 1 else settings.shapes
    try:
        model.to(settings.device)
    except Exception as error:
        bad(f"the model to run on {settings.device}", said(error), "Add --traceback to see where.")
    try:
        x = Inputs.of(CALLER, model, given, settings.group, settings.moving, settings.input_as)
    except (TypeError, ValueError) as error:
        bad(f"--input that {settings.group!r} moves", f"{shapes} ({error})", "Change --input or --group.")
    try:
        x = x.changed(lambda t: t.to(settings.device), all_=True)
        with undisturbed(model), torch.no_grad():
            out = x.clone().run(model)
    except Exception as error:
        hint = "Say the shape of its inputs with --input, or add --traceback to see where."
        run_on = tuple(x.first.shape) if len(settings.shapes) == 1 else shapes
        bad(f"the model to run on {run_on}", said(error), hint)
    try:
        found = outputs_of(CALLER, out)
    except TypeError:
        bad("model to return a tensor", type(out).__name__, "Wrap it in a module that does.")
    actions = {name: _acting(settings, len(x), name, y) for name, y in found.items()}
    logits = (name for name, y in found.items() if y.ndim == 2 and actions[name].fixed)
    name = next(logits, next(iter(found)))
    return Subject(settings, model, x, _with_axis(found[name]), name, actions)


def _acting(settings: Settings, samples: int, name: str, y: Tensor) -> Action:
    r"""How the output y of this name moves; refused where it cannot."""
    what = f"output {name} " if name else ""
    if y.ndim < 1 or len(y) != samples:
        bad(f"one {what or 'output '}for each of {samples} inputs", tuple(y.shape), "Return a tensor (B, ...).")
    action = _declared(settings, y)
    try:
        action.move(settings.group.order - 1, y)
    except ValueError as error:
        hint = "Say how it moves with --output, for example --output invariant."
        wanted = f"an output that moves as --output {settings.output} ({action.name})"
        bad(wanted, f"{what}{tuple(y.shape)} ({error})", hint)
    return action


def _with_axis(y: Tensor) -> Tensor:
    return y[:, None] if y.ndim == 1 else y


def _declared(settings: Settings, y: Tensor) -> Action:
    r"""How an output should move: as it was said, or by its shape."""
    how = settings.output
    if how == "auto" and y.ndim in (3, 5) and y.shape[2] == settings.group.order:
        how = "regular"
    elif how == "auto":
        how = "invariant" if y.ndim < 3 or math.prod(y.shape[2:]) == 1 else "image"
    return declared(settings.group, how)
