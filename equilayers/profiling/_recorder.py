r"""Which module of a model is running, forward and backward, and what a clock says meanwhile."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from equilayers._modules import mapped, named_modules, tensors
from equilayers._torch_compat import is_compiled, next_autograd_number


@dataclass(eq=False)
class Node:
    r"""A module where it is called: the same module under two callers is two nodes."""

    path: str
    module: Any
    parent: Node | None = None
    children: dict[Any, Node] = field(default_factory=dict)
    calls: int = 0
    width: int = 0
    args: Any = None

    def child(self, path: str, module: nn.Module) -> Node:
        r"""The node of a module that is called in this one."""
        if module not in self.children:
            self.children[module] = Node(path, module, self)
        return self.children[module]

    def walk(self) -> Iterator[tuple[int, Node]]:
        r"""This node and all below, each with its depth, in the order of their first calls."""
        yield 0, self
        for node in self.children.values():
            for depth, inner in node.walk():
                yield depth + 1, inner


@dataclass
class Segment:
    r"""A stretch of a run that belongs to one node: the readings of the clock at its ends."""

    node: Node
    backward: bool
    start: Any
    end: Any


def observed(model: Any) -> list[tuple[str, nn.Module]]:
    r"""The modules whose calls can be seen: not those inside of compiled or scripted ones."""
    if hasattr(model, "_torchdynamo_orig_callable"):  # a compiled function
        return []
    found = [(path, module) for path, module in named_modules(model) if module is not model]
    closed = {inner for _, module in [("", model), *found] if _closed(module) for inner in module.modules()}
    outermost = {module for _, module in found if is_compiled(module)} - {model}
    return [(path, module) for path, module in found if module not in closed or module in outermost]


def _closed(module: Any) -> bool:
    return isinstance(module, nn.Module) and (_compiled(module) or isinstance(module, torch.jit.ScriptModule))


def _compiled(module: Any) -> bool:
    whole = is_compiled(module) or hasattr(module, "_torchdynamo_orig_callable")
    return whole or getattr(module, "_compiled_call_impl", None) is not None


class Recorder:
    r"""Runs of a model, cut into segments; hooks are the outermost, so that those of the user count as the module's."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.root = Node("", model)
        self.modules = observed(model)
        self.compiled = any(map(_compiled, [model, *(module for _, module in named_modules(model))]))
        self.stack: list[Node] = [self.root]
        self.segments: list[Segment] = []

    def run(
        self,
        call: Callable[[], Any],
        back: Callable[[Any], Any] | None,
        clock: Callable[[], Any],
        *,
        keep: bool = False,
    ) -> tuple[Any, list[Segment]]:
        r"""One run: what the model puts out, and the segments.

        keep: whether nodes of layers with several algorithms keep the arguments of their first call.
        """
        self.clock, self.keep = clock, keep
        self.stack, self.segments = [self.root], []
        self.numbers, self.owners = [_sequence()], [self.root]
        self.backward = False
        self.root.calls += 1
        self.since = clock()
        with self._watching():
            out = call()
            self._switch()
            self.stack = [self.root]
            self.root.width = _width(out)
            if back is not None:
                self._backward(out, back)
        return out, self.segments

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        handles: list[Any] = []
        try:
            for path, module in self.modules:
                enter = self._entering(path)
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self.backward:  # a checkpoint computes again: that is part of the backward pass
                return
            self._switch()
            node = self.stack[-1].child(path, module)
            node.calls += 1
            if self.keep and node.args is None and hasattr(type(module), "ALGORITHMS"):
                node.args = mapped(_alone, args), mapped(_alone, kwargs)
            self.stack.append(node)
            self._own()

        return enter

    def _leave(self, module: nn.Module, args: Any, out: Any) -> None:  # noqa: ARG002
        if self.backward or all(node.module is not module for node in self.stack):
            return
        self._switch()
        while self.stack[-1].module is not module:  # those that an exception ended
            self.stack.pop()
        self.stack.pop().width = _width(out)
        self._own()

    def _own(self) -> None:
        self.numbers.append(_sequence())
        self.owners.append(self.stack[-1])

    def _switch(self) -> None:
        now = self.clock()
        self.segments.append(Segment(self.stack[-1], self.backward, self.since, now))
        self.since = now

    def _backward(self, out: Any, back: Callable[[Any], Any]) -> None:
        r"""Nodes of autograd are counted as they are made, so their numbers tell in which module that was."""
        starts = [t.grad_fn for t in tensors(out) if t.grad_fn is not None]
        handles = [node.register_prehook(self._turning(owner)) for node, owner in self._graph(starts)]
        self.backward = True
        self.since = self.clock()
        try:
            back(out)
            self._switch()
        finally:
            for handle in handles:
                handle.remove()

    def _turning(self, owner: Node) -> Callable[[Any], None]:
        def turn(grads: Any) -> None:  # noqa: ARG001
            self._switch()
            self.stack[-1] = owner

        return turn

    def _graph(self, starts: Iterable[Any]) -> Iterator[tuple[Any, Node]]:
        seen: set[Any] = set()
        waiting = [(node, self.root) for node in starts]
        while waiting:
            node, user = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            leaf = hasattr(node, "variable")  # its gradient is of the module that uses it
            owner = user if leaf else self.owners[bisect_right(self.numbers, node._sequence_nr()) - 1]
            yield node, owner
            waiting += [(following, owner) for following, _ in node.next_functions if following is not None]


def _alone(x: Tensor) -> Tensor:
    r"""A tensor without the graph that it comes from."""
    return x.detach().requires_grad_(x.requires_grad)


def _sequence() -> int:
    r"""The number that the next node of autograd gets."""
    return next_autograd_number()


def _width(out: Any) -> int:
    first: Tensor | None = next(tensors(out), None)
    return 0 if first is None else first.numel()
