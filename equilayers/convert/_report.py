r"""What a conversion makes of each module, and the report of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from equilayers._checks import refuse

CONTAINER = "its parts are converted"
OWN = "its class computes something of its own, or its weight is parametrised"

HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks"),
    *("_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
)
STATE_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


Sizes = tuple[tuple[int, int], ...]
Lopsided = tuple[tuple[tuple[int, int], str], ...]


@dataclass(frozen=True)
class Replaced:
    r"""The module that takes the place of another; distance: of the weights it took over, see `Entry`."""

    module: nn.Module
    reason: str = ""
    distance: float | None = None


@dataclass(frozen=True)
class Kept:
    r"""Why a module can stay as it is; distance: of its numbers that were made alike, see `Entry`."""

    reason: str
    distance: float | None = None


@dataclass(frozen=True)
class Cause:
    r"""Where the symmetry is lost first, and why.

    where: the path of the module that was running. number: grows from call to call. parameters: that were in
    it.
    """

    where: str
    reason: str
    number: int = 0
    parameters: tuple[Tensor, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Refused:
    r"""Why a module cannot be converted.

    cause: where the symmetry of what it reads was lost, if that is why. doubtful: whether that is not sure.
    """

    reason: str
    cause: Cause | None = None
    doubtful: bool = False


Outcome = Replaced | Kept | Refused


@dataclass(frozen=True)
class Entry:
    r"""One module: what became of it and why. Paths are those of `named_modules`.

    distance: with from_weights how far its weight W was from equivariant, `||W - P W|| / ||W||`, P W the nearest
    equivariant one: 0 if it was, about `sqrt(1 - 1/|G|)` for random numbers.
    """

    path: str
    before: str
    done: Literal["replaced", "kept", "refused"]
    after: str = ""
    reason: str = ""
    distance: float | None = None

    def __str__(self) -> str:
        arrow = f" -> {self.after}" if self.after else ""
        away = "" if self.distance is None else f"{self.distance:.2f} from equivariant"
        notes = "; ".join(filter(None, (self.reason, away)))
        return f"{self.done:8} {self.path}: {self.before}{arrow}{f' ({notes})' if notes else ''}"


@dataclass(frozen=True)
class Report:
    r"""Every module that was looked at, in the order of `named_modules`, and the numbers of parameters.

    verified: the sizes (height, width) that the result was run at and found to be what it should be. lopsided: sizes
    that a model on tokens takes without being symmetric there, and why: its windows and places are of one size.
    """

    entries: tuple[Entry, ...]
    parameters_before: int
    parameters_after: int
    verified: Sizes = ()
    lopsided: Lopsided = ()

    def of(self, done: str) -> list[Entry]:
        r"""The entries "replaced", "kept" or "refused"."""
        return [entry for entry in self.entries if entry.done == done]

    @property
    def complete(self) -> bool:
        r"""Whether nothing was refused."""
        return not self.of("refused")

    def __str__(self) -> str:
        count = ", ".join(f"{len(self.of(done))} {done}" for done in ("replaced", "kept", "refused"))
        change = f"{self.parameters_before:,} parameters before, {self.parameters_after:,} after"
        lines = [f"{count}; {change}", *map(str, self.entries)]
        if self.verified:
            sizes = ", ".join(f"{height}x{width}" for height, width in self.verified)
            alone = len(self.verified) == 1 and not self.lopsided
            lines.append(f"verified at {sizes}" + (" alone: it takes no other tried" if alone else ""))
        lines += [f"not symmetric at {height}x{width}: {why}" for (height, width), why in self.lopsided]
        return "\n".join(lines)


def copied(caller: str, model: nn.Module) -> nn.Module:
    r"""A copy of the model; ValueError where torch makes none, as of weights that a hook computes."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        got = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        hint = "Make computed weights parameters before, as torch.nn.utils.prune.remove does."
        refuse(caller, "a model that can be copied", got, hint)


def convert_modules(
    model: nn.Module, convert: Callable[[str, nn.Module], Outcome | None]
) -> tuple[nn.Module, list[Entry]]:
    r"""Replace modules of the model in place; an entry for each of which `convert(path, module)` is not None."""
    entries: list[Entry] = []
    within: set[nn.Module] = set()
    for path, module in list(model.named_modules()):
        if module in within:  # a part of what was replaced as a whole
            continue
        outcome = convert(path, module)
        if isinstance(outcome, Replaced) and any(getattr(module, name) for name in STATE_HOOKS):
            outcome = Refused("it has hooks on its state dict, the names in which would be others")
        if outcome is not None:
            entries.append(entry(path, _described(module), outcome))
        if isinstance(outcome, Replaced):
            within |= set(module.modules())
            outcome.module.train(module.training)
            for name in HOOKS:
                setattr(outcome.module, name, getattr(module, name))
            model = _replaced(model, module, outcome.module)
    return model, entries


def entry(path: str, before: str, outcome: Outcome) -> Entry:
    r"""The line of a report about one outcome."""
    if isinstance(outcome, Replaced):
        return Entry(path, before, "replaced", _described(outcome.module), outcome.reason, outcome.distance)
    if isinstance(outcome, Kept):
        return Entry(path, before, "kept", reason=outcome.reason, distance=outcome.distance)
    return Entry(path, before, "refused", reason=outcome.reason)


def distance(weight: Tensor, nearest: Tensor) -> float:
    r"""`||W - P W|| / ||W||`, zero for zeros."""
    return float((weight - nearest).norm() / weight.norm().clamp(min=torch.finfo(weight.dtype).tiny))


def report(
    entries: list[Entry], before: nn.Module, after: nn.Module, verified: Sizes = (), lopsided: Lopsided = ()
) -> Report:
    r"""The report of a conversion."""
    first, last = (sum(p.numel() for p in model.parameters()) for model in (before, after))
    return Report(tuple(entries), first, last, verified, lopsided)


def _replaced(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    r"""The model with a module in the place of another, wherever it stands."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
    return new if old is model else model


def _described(module: nn.Module) -> str:
    r"""A module in one line."""
    text = str(module)
    return text if "\n" not in text else type(module).__name__
