r"""How a model is run: in its own precision without shortcuts, or in float64; afterwards all is as before."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equilayers._modules import evaluation, named_modules, tensors
from equilayers.groups import Group
from equilayers.metrics import compared_elements
from equilayers.testing._inputs import Given, How, Inputs, Names, inputs_of
from equilayers.testing._outputs import name_of

Model = Callable[[Tensor], Any]
FULL = (False, "highest", "ieee", "none")


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    r"""No TF32 and no bfloat16 in the place of float32, on any device; afterwards what was set before."""
    with contextlib.ExitStack() as undo:
        for holder, name in _settings():
            try:
                before = getattr(holder, name)
            except RuntimeError:  # torch has two sets of flags, and refuses to read one that the other contradicts
                continue
            if before not in FULL:
                undo.callback(setattr, holder, name, before)
                setattr(holder, name, False if before is True else "ieee")
        yield


def _settings() -> Iterator[tuple[Any, str]]:
    r"""The flags of old, then those that torch has had since 2.9."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    yield _MatmulPrecision(), "value"
    yield cudnn, "allow_tf32"
    if hasattr(cudnn, "conv"):
        parts: list[Any] = [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]  # type: ignore[attr-defined]
        yield from ((part, "fp32_precision") for part in parts)


class _MatmulPrecision:
    r"""`torch.get_float32_matmul_precision` and its setter as an attribute."""

    @property
    def value(self) -> str:
        return torch.get_float32_matmul_precision()

    @value.setter
    def value(self, precision: str) -> None:
        torch.set_float32_matmul_precision("highest" if precision == "ieee" else precision)


@contextlib.contextmanager
def same_buffers(model: Model) -> Iterator[None]:
    r"""The buffers afterwards as they were before: a forward may change them in eval mode as well."""
    before = [(m, key, t, t.clone()) for _, m in named_modules(model) for key, t in m.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for module, key, buffer, value in before:
            if getattr(module, key) is not buffer:
                setattr(module, key, buffer)
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


@contextlib.contextmanager
def undisturbed(model: Model) -> Iterator[None]:
    r"""The model as it is checked: in eval mode and full precision; afterwards all is as before."""
    with evaluation(model), same_buffers(model), full_precision():
        yield


def orbit_inputs(
    caller: str,
    model: Model,
    x: Given | Inputs,
    group: Group | str,
    moving: Names = None,
    input: How = "image",
) -> tuple[Group, Inputs]:
    r"""The group, and the inputs on the model's device and in its dtype, which it has to act on."""
    group, _ = compared_elements(caller, group, include_identity=False)
    return group, inputs_of(caller, model, x, group, moving, input)


@contextlib.contextmanager
def trying(caller: str, model: Model, what: str) -> Iterator[None]:
    r"""RuntimeError that says what was tried in the place of whatever the model raises, which is its cause."""
    __tracebackhide__ = True
    try:
        yield
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        got = f"{type(error).__name__}: {first}"
        hint = "See the exception above."
        raise RuntimeError(f"{caller}: expected {name_of(model)} to run on {what}, got {got}. {hint}") from error


def rounding(model: Model, dtype: torch.dtype) -> float:
    r"""The relative error that rounding may leave: 32·eps for each module with parameters of its own."""
    depth = sum(any(True for _ in module.parameters(recurse=False)) for _, module in named_modules(model))
    return 32 * torch.finfo(dtype if dtype.is_floating_point else torch.float32).eps * max(1, depth)


def in_double(model: Model) -> Model | None:
    r"""A module as a copy in float64, None where it cannot be copied; a function with its modules so as it runs."""
    if not isinstance(model, nn.Module):
        return _Widened(model) if named_modules(model) else model
    try:
        wide = copy.deepcopy(model).double()
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    for module in wide.modules():  # tables that are no buffers
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.double())
    return wide


class _Widened:
    r"""A function, during whose calls the modules that it holds are in float64."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        modules = [m for _, m in named_modules(self.model)]
        tables = [t for m in modules for t in vars(m).values() if isinstance(t, Tensor)]
        held = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))] + tables
        before = [(t, t.data) for t in held if t.is_floating_point()]
        try:
            for t, data in before:
                t.data = data.double()
            return self.model(*args, **kwargs)
        finally:
            for t, data in before:
                t.data = data


class NarrowTensors(TorchFunctionMode):
    r"""Whether a function of torch gives floating-point numbers narrower than float64; `seen` then."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= any(t.is_floating_point() and t.dtype != torch.float64 for t in tensors(out))
        return out
