r"""Models as they are used, not as they are trained, and what is called in them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import CellType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Model = Callable[[Tensor], Any]


@contextlib.contextmanager
def evaluation(model: Model) -> Iterator[None]:
    r"""The model in eval mode, each of its modules put back into its own mode afterwards."""
    modules = [m for _, m in named_modules(model) if hasattr(m, "training")]
    modes = [module.training for module in modules]
    _set_modes(modules, [False] * len(modules))
    try:
        yield
    finally:
        _set_modes(modules, modes)


def _set_modes(modules: list[nn.Module], modes: list[bool]) -> None:
    for module, mode in zip(modules, modes, strict=True):  # a module before its parts, whose modes may be others
        if module.training != mode:
            module.train(mode)  # which does more than to set a flag in escnn: there it makes the filter


def named_modules(model: Any) -> list[tuple[str, nn.Module]]:
    r"""The modules of a model and their paths, also those that a function, method, partial or object calls.

    Of one module in a function the paths are its own; of several they begin with the names that these have there.
    """
    if isinstance(model, nn.Module):
        return list(model.named_modules())
    roots = _wrapped(model, depth=4)
    found: dict[nn.Module, str] = {}
    for name, root in roots.items():
        before = name if len(roots) > 1 else ""
        for path, module in root.named_modules():
            found.setdefault(module, ".".join(filter(None, (before, path))))
    return [(path, module) for module, path in found.items()]


def _wrapped(value: Any, depth: int) -> dict[str, nn.Module]:
    r"""The outermost modules that a callable, or a container of some, holds, by the names they have there."""
    parts: dict[str, dict[str, nn.Module]] = {}
    for name, part in _held(value).items() if depth else ():
        if isinstance(part, nn.Module):
            parts[name] = {"": part}
        elif (callable(part) and not isinstance(part, type)) or isinstance(part, list | tuple | dict):
            parts[name] = _wrapped(part, depth - 1)
    parts = {name: inner for name, inner in parts.items() if inner}
    if len(parts) == 1 and "" not in next(iter(parts.values())):
        return next(iter(parts.values()))
    found = {".".join(filter(None, (name, path))): m for name, inner in parts.items() for path, m in inner.items()}
    inside = {m for module in found.values() for m in list(module.modules())[1:]}
    return {name: module for name, module in found.items() if module not in inside}


def _held(value: Any) -> Mapping[str, Any]:
    r"""What a function, method, partial, object or container refers to, by name."""
    if isinstance(value, partial):
        return {"func": value.func, **{f"args.{i}": a for i, a in enumerate(value.args)}, **value.keywords}
    if inspect.ismethod(value):
        return {"self": value.__self__, "func": value.__func__}
    if inspect.isfunction(value):
        if value.__module__.startswith("torch."):
            return {}
        code, given = value.__code__, value.__defaults__ or ()
        arguments = code.co_varnames[: code.co_argcount]
        cells = zip(code.co_freevars, value.__closure__ or (), strict=True)
        return {
            **{name: value.__globals__[name] for name in code.co_names if name in value.__globals__},
            **(value.__kwdefaults__ or {}),
            **dict(zip(arguments[len(arguments) - len(given) :], given, strict=True)),
            **{name: cell.cell_contents for name, cell in cells if cell != CellType()},
        }
    if isinstance(value, list | tuple):
        return {str(i): item for i, item in enumerate(value)}
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    return getattr(value, "__dict__", {})


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
