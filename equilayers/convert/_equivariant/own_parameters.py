r"""What becomes of the parameters that a module has of its own, and nothing takes the place of."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from equilayers.convert._equivariant.conversion import Conversion
from equilayers.convert._equivariant.ties import Tied, Ties
from equilayers.convert._report import Kept, Outcome, Refused, distance


def own_parameters(module: nn.Module, ties: Ties, conversion: Conversion, shared: bool, called: bool) -> Outcome:
    r"""Tie the parameters of a module that nothing takes the place of; called: whether the model calls it."""
    own = {name: p for name, p in module.named_parameters(recurse=False) if p.numel() > 1}
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
