r"""What happens inside a model, as a tree: its modules, and the torch functions called between them."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import resolve_name

from equilayers._modules import CallTracer, Model, named_modules, tensors
from equilayers.testing._inputs import Inputs

# Looks at a tensor without making another one.
SILENT = ("size", "dim", "numel", "stride", "is_floating_point", "is_complex", "__len__", "__bool__", "item")
# Memory with anything in it, which differs from run to run: here it begins with zeros.
EMPTY = ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass
class Event:
    r"""A module or function that was called: by whom, on what, with what outcome, and what it called in turn."""

    path: str  # of the module, or of the one that calls the function
    name: str
    module: nn.Module | None
    inputs: list[Tensor]
    number: int = -1  # in the order in which they begin
    outputs: list[Tensor] = field(default_factory=list)
    inside: list[Event] = field(default_factory=list)
    arguments: str = ""

    @property
    def opaque(self) -> bool:
        r"""Whether nothing is known of what goes on inside."""
        return not self.inside

    @property
    def closed(self) -> bool:
        r"""Whether what goes on inside is its own business: the layers of torch and of this library."""
        home = type(self.module).__module__
        return home.startswith(("torch.nn.modules", "equilayers.")) and not isinstance(self.module, CONTAINERS)

    def all(self) -> Iterator[Event]:
        r"""It and everything that it calls, in the order in which they begin."""
        yield self
        for event in self.inside:
            yield from event.all()

    def reads(self) -> set[int]:
        r"""The ids of all tensors that it, or anything it calls, takes."""
        return {id(t) for t in self.inputs}.union(*(event.reads() for event in self.inside))


def trace(model: Model, x: Tensor | Inputs, mended: Mapping[int, list[Tensor]] | None = None) -> Event:
    r"""Call the model on x and write down what happens; what is compiled runs as it was written.

    Tensors are copied, since they may be changed in place: what one event puts out and another takes is one copy.
    mended: what the events of these numbers put out instead.
    """
    x = (Inputs.one(x) if isinstance(x, Tensor) else x).clone()
    root = Event("", type(model).__name__, model if isinstance(model, nn.Module) else None, [])
    recorder = _Recorder(root, mended or {})
    fixed = [t for name, t in x.parts.items() if name not in x.moving]
    root.inputs = recorder.copies([*x.movable, *fixed])
    modules = [(path, module) for path, module in named_modules(model) if module is not model]
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), recorder.watching(modules, raising=True):
        out = x.run(model)
    root.outputs = recorder.copies(getattr(out, "logits", out))
    return root


class _Recorder(CallTracer):
    r"""Writes down what is called, below the event on top of the stack."""

    def __init__(self, root: Event, mended: Mapping[int, list[Tensor]]) -> None:
        super().__init__()
        self.stack = [root]
        self.mended = mended
        self.numbers = itertools.count()
        self.copied: dict[int, tuple[weakref.ref[Tensor], int, Tensor]] = {}
        self.copying = False

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        event = Event(path, type(module).__name__, module, [])
        if not self.inside_closed():
            event.number, event.inputs = next(self.numbers), self.copies((args, kwargs))
            self.stack[-1].inside.append(event)
        self.stack.append(event)

    def leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:  # noqa: ARG002
        event = self.stack.pop()
        if self.inside_closed():
            return None
        output = self.mend(event, output)
        event.outputs = self.copies(output)
        return output if event.number in self.mended else None

    def call(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name in EMPTY:
            return function(*args, **kwargs).zero_()
        taken = [t for t in tensors((args, kwargs)) if not isinstance(t, nn.Parameter)]
        if self.copying or name in SILENT or not taken or self.inside_closed():
            return function(*args, **kwargs)
        event = Event(self.stack[-1].path, _name(function), None, self.copies(taken), arguments=_words(args, kwargs))
        event.number = next(self.numbers)
        output = function(*args, **kwargs)
        written = args[0] if name == "__setitem__" else output
        if event.number in self.mended and any(written is t for t in taken):
            self.copying = True
            written.copy_(self.mended[event.number][0])
            self.copying = False
        else:
            output = written = self.mend(event, written)
        event.outputs = self.copies(written)
        if event.outputs:
            self.stack[-1].inside.append(event)
        return output

    def mend(self, event: Event, output: Any) -> Any:
        r"""The output, or the same with other tensors."""
        if event.number not in self.mended:
            return output
        before, self.copying = self.copying, True
        try:
            return _with_tensors(output, iter(self.mended[event.number]))
        finally:
            self.copying = before

    def inside_closed(self) -> bool:
        r"""Whether a layer of torch or of this library is at work, whose steps are not looked at."""
        return any(event.closed for event in self.stack)

    def copies(self, value: Any) -> list[Tensor]:
        r"""Copies of the tensors in a value."""
        before, self.copying = self.copying, True
        try:
            return [self._copy(t) for t in tensors(value)]
        finally:
            self.copying = before

    def _copy(self, t: Tensor) -> Tensor:
        version = -1 if t.is_inference() else t._version
        known = self.copied.get(id(t))
        if known is not None and known[0]() is t and known[1] == version != -1:
            return known[2]
        made = t.detach().clone()
        self.copied[id(t)] = weakref.ref(t), version, made
        return made


def _with_tensors(value: Any, others: Iterator[Tensor]) -> Any:
    r"""The value with others in the places of its tensors."""
    if isinstance(value, Tensor):
        return next(others).to(value)
    if isinstance(value, dict):
        made = copy.copy(value)
        for key, item in value.items():
            made[key] = _with_tensors(item, others)
        return made
    if isinstance(value, list | tuple):
        items = [_with_tensors(item, others) for item in value]
        return items if isinstance(value, list) else type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _name(func: Any) -> str:
    name = resolve_name(func) or getattr(func, "__name__", str(func))
    return name.replace("torch.Tensor.", "Tensor.").removesuffix(".__get__")


def _words(args: Any, kwargs: dict[str, Any]) -> str:
    r"""The arguments that are no tensors, as they would be written."""
    plain = [repr(a) for a in args if not list(tensors(a))]
    return ", ".join([*plain, *(f"{key}={value!r}" for key, value in kwargs.items() if not list(tensors(value)))])
