r"""What a conversion did, module by module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class Entry:
    r"""One module: what became of it and why. Paths are those of `named_modules`."""

    path: str
    before: str
    done: Literal["replaced", "kept", "refused"]
    after: str = ""
    reason: str = ""

    def __str__(self) -> str:
        arrow = f" -> {self.after}" if self.after else ""
        return f"{self.done:8} {self.path}: {self.before}{arrow}{f' ({self.reason})' if self.reason else ''}"


@dataclass(frozen=True)
class Report:
    r"""Every module that was looked at, in the order of `named_modules`, and the numbers of parameters."""

    entries: tuple[Entry, ...]
    parameters_before: int
    parameters_after: int

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
        return "\n".join([f"{count}; {change}", *map(str, self.entries)])


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    r"""Put a module in the place of another, wherever the model has that one."""
    old = model.get_submodule(path)
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module


def count(model: nn.Module) -> int:
    r"""How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def words(module: nn.Module) -> str:
    r"""A module in one line."""
    text = str(module)
    return text if "\n" not in text else type(module).__name__
