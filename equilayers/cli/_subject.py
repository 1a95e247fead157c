r"""The model that is checked, on its inputs, ready to be run."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equilayers.cli._arguments import Settings
from equilayers.cli._words import CALLER, bad, said
from equilayers.groups import Group
from equilayers.testing import Action, declared, one_output, placed, undisturbed


@dataclass(frozen=True)
class Subject:
    r"""A model in eval mode as a function to a tensor, its inputs on its device, and how its output moves."""

    settings: Settings
    model: nn.Module
    x: Tensor
    y: Tensor
    action: Action

    def __call__(self, x: Tensor) -> Tensor:
        r"""The tensor that the model puts out, (B, 1) for one number each."""
        return _with_axis(one_output(CALLER, self.model(x)))

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
        return self.y.ndim == 2 and self.action.fixed


def prepared(settings: Settings, model: nn.Module, x: Tensor) -> Subject:
    r"""The model on its device, run once.

    Raises:
        BadInputError: the group does not act on the inputs or outputs, or the model does not run on them.
        TypeError: the model returns no tensor.
    """
    try:
        settings.group.check_space(tuple(x.shape), CALLER)
    except ValueError as error:
        bad(f"--input that {settings.group!r} moves", f"{settings.shape} ({error})", "Change --input or --group.")
    try:
        model.to(settings.device)
        x = placed(CALLER, model, x.to(settings.device))
        with undisturbed(model), torch.no_grad():
            out = model(x.clone())
    except Exception as error:
        hint = "Say the shape of its inputs with --input, or add --traceback to see where."
        bad(f"the model to run on {tuple(x.shape)}", said(error), hint)
    try:
        y = one_output(CALLER, out)
    except TypeError:
        bad("model to return one tensor", type(out).__name__, "Wrap it in a module that does.")
    if y.ndim < 1 or len(y) != len(x):
        bad(f"one output for each of {len(x)} inputs", tuple(y.shape), "Return a tensor (B, ...).")
    action = declared(settings.group, _output(settings, y))
    try:
        action.move(settings.group.order - 1, y)
    except ValueError as error:
        hint = "Say how it moves with --output, for example --output invariant."
        bad(f"an output that moves as --output {settings.output} ({action.name})", f"{tuple(y.shape)} ({error})", hint)
    return Subject(settings, model, x, _with_axis(y), action)


def _with_axis(y: Tensor) -> Tensor:
    return y[:, None] if y.ndim == 1 else y


def _output(settings: Settings, y: Tensor) -> str:
    r"""How the output should move: as it was said, or by its shape."""
    if settings.output != "auto":
        return settings.output
    if y.ndim in (3, 5) and y.shape[2] == settings.group.order:
        return "regular"
    return "invariant" if y.ndim < 3 or math.prod(y.shape[2:]) == 1 else "image"
