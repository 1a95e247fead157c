r"""What becomes of the parameters that a module has of its own, and nothing takes the place of."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from equilayers.convert._equivariant.conversion import Conversion
from equilayers.convert._equivariant.ties import Tied, Ties
from equilayers.convert._report import Kept, Outcome, Refused, distance

CHANGING = "a buffer that training changes, and that would have to stay alike where the group moves what it meets"


def changing_buffers(model: nn.Module, x: Tensor, handled: Callable[[nn.Module], bool]) -> list[Tensor]:
    r"""The floating-point buffers that a step of training changes, such as running means, of what is not replaced."""
    inside = {id(t) for module in model.modules() if handled(module) for t in module.buffers()}
    buffers = {name: t for name, t in model.named_buffers() if t.is_floating_point() and id(t) not in inside}
    if not buffers or x.is_meta:
        return []
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            twin = copy.deepcopy(model).train()
            twin(torch.cat((x, x.flip(0) + 1))[: max(len(x), 2)])
    except Exception:  # a model of others may raise anything
        return []
    after = dict(twin.named_buffers())
    return [t for name, t in buffers.items() if name in after and not torch.equal(t, after[name])]


def own_parameters(module: nn.Module, ties: Ties, conversion: Conversion, shared: bool, called: bool) -> Outcome:
    r"""Tie the parameters of a module that nothing takes the place of; called: whether the model calls it."""
    own = {name: p for name, p in module.named_parameters(recurse=False) if p.numel() > 1}
    for name, buffer in module.named_buffers(recurse=False):
        alike = ties.classes(buffer) if buffer in ties.used else None
        if buffer in ties.wrong or (alike is not None and int(alike.max()) + 1 < alike.numel()):
            return Refused(f"{name}: {CHANGING}", ties.wrong.get(buffer))
    wrong = next((ties.wrong[p] for p in own.values() if p in ties.wrong), None)
    if wrong is not None:
        return Refused(wrong.reason, wrong)
    used = {name: p for name, p in own.items() if p in ties.used}
    if any(not ties.is_met(p) for p in used.values()):
        return Refused("nobody saw what its parameters meet: " + ", ".join(used))
    if not used and not called:
        return Refused("it was not called with what comes from the input")
    classes = {name: ties.classes(p) for name, p in used.items()}
    if any(each is None for each in classes.values()):
        return Refused("numbers of it would have to equal those of another module")
    fewer = {name: c for name, c in classes.items() if c is not None and int(c.max()) + 1 < c.numel()}
    if fewer and (shared or conversion.width != "equal-width"):
        why = "is shared with another module" if shared else "is as wide as it is: only width='equal-width' is known"
        return Refused(f"its {', '.join(fewer)} {why}")
    before = [used[name].detach().flatten() for name in fewer]
    for name, c in fewer.items():
        register_parametrization(module, name, Tied(c.to(used[name].device)))
    away = None
    if fewer and conversion.from_weights:
        tied = [getattr(module, name).detach().flatten() for name in fewer]
        away = distance(torch.cat(before), torch.cat(tied))
    words = [f"{name} {c.numel()} -> {int(c.max()) + 1} numbers" for name, c in fewer.items()]
    words += [f"{name} as it is" for name in used if name not in fewer]
    words += [f"{name} not used when it is called so" for name in own if name not in used]
    return Kept("alike where the group moves what they meet: " + ", ".join(words), away)
