r"""How a model is run: in its own precision without shortcuts, or in float64; afterwards all is as before."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from equilayers._checks import check_model, check_values
from equilayers._modules import evaluation, named_modules, tensors
from equilayers.groups import Group
from equilayers.metrics import compared_elements

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


def orbit_inputs(caller: str, model: Model, x: Tensor, group: Group | str) -> tuple[Group, Tensor, range]:
    r"""The group, the inputs as `placed`, which it has to act on, and the elements to compare with the identity."""
    check_model(caller, model)
    group, elements = compared_elements(caller, group, include_identity=False)
    x = placed(caller, model, x)
    group.check_space(tuple(x.shape), caller)
    return group, x, elements


def placed(caller: str, model: Model, x: Tensor) -> Tensor:
    r"""The inputs on the model's device and in its dtype."""
    check_values(caller, "x", x)
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    floating = next((p for p in parameters if p.is_floating_point()), None)
    return x if floating is None else x.to(floating.device, floating.dtype)


def rounding(model: Model, dtype: torch.dtype) -> float:
    r"""The relative error that rounding may leave: 32·eps for each module with parameters of its own."""
    depth = sum(any(True for _ in module.parameters(recurse=False)) for _, module in named_modules(model))
    return 32 * torch.finfo(dtype).eps * max(1, depth)


def in_double(model: Model) -> Model | None:
    r"""A module as a copy in float64, None where it cannot be copied; a function with its modules so as it runs."""
    if not isinstance(model, nn.Module):
        return _Widened(model) if named_modules(model) else model
    try:
        return copy.deepcopy(model).double()
    except (RuntimeError, TypeError, NotImplementedError):
        return None


class _Widened:
    r"""A function, during whose calls the modules that it holds are in float64."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Any:
        modules = [m for _, m in named_modules(self.model)]
        held = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
        before = [(t, t.data) for t in held if t.is_floating_point()]
        try:
            for t, data in before:
                t.data = data.double()
            return self.model(x)
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
