r"""Models as they are used, not as they are trained, and what is called in them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Model = Callable[[Tensor], Any]


@contextlib.contextmanager
def evaluation(model: Model) -> Iterator[None]:
    r"""The model in eval mode, each of its modules put back into its own mode afterwards."""
    modules = [m for m in model.modules() if hasattr(m, "training")] if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def tensors(value: Any) -> Iterator[Tensor]:
    r"""The tensors in a value, its lists, tuples, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    r"""The value with every tensor that `tensors` finds replaced by the function of it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        made = copy.copy(value)
        for key, item in value.items():
            made[key] = mapped(function, item)
        return made
    if isinstance(value, list | tuple):
        items = [mapped(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: mapped(function, getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    return value


class CallTracer(TorchFunctionMode):
    r"""Observes the calls of modules and of torch functions; what it does at each is for the class that derives."""

    @contextlib.contextmanager
    def watching(self, modules: Iterable[tuple[str, nn.Module]], *, raising: bool) -> Iterator[None]:
        r"""Observe calls of these modules, named by their paths, and of every function of torch.

        raising: whether `leave` is told of calls that raise an error, too; what they put out is None.
        """
        handles: list[Any] = []
        try:
            for path, module in modules:
                enter, leave = partial(self.enter, path), partial(self.leave, path)
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=raising))
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        r"""A module is called."""

    def leave(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        r"""A module returns."""

    def call(self, function: Any, name: str, args: Any, kwargs: Any) -> Any:  # noqa: ARG002
        r"""A function of torch is called: what it returns."""
        return function(*args, **kwargs)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, getattr(func, "__name__", ""), args, kwargs or {})
