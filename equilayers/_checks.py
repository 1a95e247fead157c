r"""Checks of arguments, and the error messages of this library.

Every message reads `<caller>: expected <argument> <condition>, got <value>. <What to do.>`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

ALGORITHMS = ("auto", "bitwise", "orbit", "dense", "fourier")  # of every weight-tied layer
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
Pair = tuple[int, int]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def refuse(caller: str, expected: str, got: object, hint: str, error: type[Exception] = ValueError) -> NoReturn:
    r"""Raise `error` with the message `<caller>: expected <expected>, got <got>. <hint>`."""
    __tracebackhide__ = True
    raise error(f"{caller}: expected {expected}, got {got}. {hint}")


def check_tensor(caller: str, name: str, x: object) -> Tensor:
    r"""`x` itself when it is a dense tensor of 16 bits or more where it is floating-point, TypeError otherwise."""
    if not isinstance(x, Tensor):
        refuse(caller, f"{name} to be a torch.Tensor", type(x).__name__, "Convert it with torch.as_tensor.", TypeError)
    if x.is_nested:
        refuse(
            caller, f"{name} to be dense", "a nested tensor", f"Convert it with {name}.to_padded_tensor(0).", TypeError
        )
    if x.layout != torch.strided:
        refuse(caller, f"{name} to be dense", x.layout, f"Convert it with {name}.to_dense().", TypeError)
    if x.is_floating_point() and x.element_size() == 1:
        refuse(caller, f"{name} of 16 bits or more", x.dtype, f"Convert it with {name}.bfloat16().", TypeError)
    return x


def check_float(caller: str, name: str, x: object) -> Tensor:
    r"""`x` itself when it is a dense floating-point tensor, TypeError otherwise."""
    x = check_tensor(caller, name, x)
    if not x.is_floating_point():
        refuse(caller, f"{name} to be floating-point", x.dtype, f"Convert it with {name}.float().", TypeError)
    return x


def check_values(caller: str, name: str, x: object) -> Tensor:
    r"""`x` itself when it is a dense floating-point tensor that has values, TypeError otherwise."""
    x = check_float(caller, name, x)
    if x.is_meta:
        refuse(caller, f"{name} with values", "a tensor on the meta device", "Pass inputs of a real device.", TypeError)
    return x


def check_batch(caller: str, x: object) -> Tensor:
    r"""Inputs (B, ...) with values; TypeError or ValueError otherwise."""
    x = check_values(caller, "x", x)
    if x.ndim < 2 or 0 in x.shape[1:]:
        refuse(caller, "x of shape (B, ...)", tuple(x.shape), "Give it a batch axis, and something in each sample.")
    return x


def check_same_dtype(caller: str, name: str, x: Tensor, weight: Tensor) -> None:
    r"""TypeError unless `x` and `weight` share a dtype, ValueError unless they share a device."""
    if x.dtype != weight.dtype:
        hint = f"Convert one of them, for example {name}.to(weight.dtype)."
        refuse(caller, f"{name} of the weight's dtype {weight.dtype}", x.dtype, hint, TypeError)
    check_same_device(caller, name, x, weight)


def check_same_device(caller: str, name: str, x: Tensor, weight: Tensor) -> None:
    r"""ValueError unless `x` and `weight` share a device."""
    if x.device != weight.device:
        hint = f"Move one of them, for example {name}.to(weight.device)."
        refuse(caller, f"{name} on the weight's device {weight.device}", x.device, hint)


def check_model(caller: str, model: object) -> None:
    r"""TypeError unless the model can be called."""
    if not callable(model):
        hint = "Pass a module, or a function of inputs (B, ...)."
        refuse(caller, "model to be callable", type(model).__name__, hint, TypeError)


def check_output(caller: str, out: Tensor) -> None:
    r"""TypeError unless what a model puts out is a dense tensor that has values."""
    check_tensor(caller, "model outputs", out)
    if out.is_meta:
        got = "a tensor on the meta device"
        refuse(caller, "model outputs with values", got, "Run the model on a real device.", TypeError)


def check_int(caller: str, name: str, value: object, low: int, high: int | None = None) -> int:
    r"""`value` as an int in `low..high` (inclusive); TypeError when it is no integer, ValueError out of range."""
    wanted = f"{name} >= {low}" if high is None else f"{name} in {low}..{high}"
    if isinstance(value, bool):
        refuse(caller, f"{name} to be an int", value, f"Pass {wanted}.", TypeError)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        refuse(caller, f"{name} to be an int", repr(value), f"Pass {wanted}.", TypeError)
    if number < low or (high is not None and number > high):
        refuse(caller, wanted, number, f"Pass an int in that range for {name}.")
    return number


def check_even(caller: str, name: str, value: object, low: int) -> int:
    r"""`value` as an even int, at least `low`; TypeError when it is no integer, ValueError otherwise."""
    number = check_int(caller, name, value, low)
    if number % 2:
        refuse(caller, f"{name} to be even", number, f"Take {number - 1} or {number + 1}.")
    return number


def check_positive(caller: str, name: str, value: object) -> float:
    r"""`value` as a float; TypeError when it is no number, ValueError unless it is positive and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(caller, f"{name} to be a number", repr(value), f"Pass {name} > 0.", TypeError)
    if not 0 < value < math.inf:
        refuse(caller, f"{name} to be positive and finite", value, f"Pass {name} > 0.")
    return float(value)


def check_choice(caller: str, name: str, value: object, choices: Sequence[str]) -> str:
    r"""`value` when it is one of `choices`, ValueError otherwise."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        refuse(caller, f"{name} in {{{listed}}}", repr(value), "Pick one of those.")
    return str(value)


def pair_of(caller: str, name: str, value: int | Sequence[int], low: int) -> Pair:
    r"""The pair (height, width) that an int or a pair stands for; TypeError or ValueError otherwise."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            refuse(caller, f"{name} to be an int or a pair (height, width)", value, f"Pass one or two ints for {name}.")
        return check_int(caller, name, value[0], low), check_int(caller, name, value[1], low)
    number = check_int(caller, name, value, low)
    return number, number


def in_autocast(x: Tensor) -> bool:
    r"""Whether `torch.autocast` is on for the device of x."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast(x: Tensor) -> Tensor:
    r"""The tensor as `torch.autocast` wants it for a matrix product on its device: unchanged outside autocast."""
    if not in_autocast(x) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def widened(x: Tensor) -> Tensor:
    r"""The tensor in float32 where it is of half precision, in which sums lose digits and overflow."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def is_exporting() -> bool:
    r"""Whether torch.export or an ONNX exporter is tracing, which should find plain operations."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def overridable(function: FunctionT) -> FunctionT:
    r"""Let subclasses of Tensor take part as in torch's own functions: they say what to make of plain numbers.

    A tensor of `FakeTensorMode` brings its mode with it, as it does to torch's functions.
    """

    @functools.wraps(function)
    def overriding(*args: Any, **settings: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **settings)
        theirs = [a for a in (*args, *settings.values()) if isinstance(a, Tensor) and type(a) not in _PLAIN]
        if not theirs:
            return function(*args, **settings)
        if has_torch_function(theirs):
            return handle_torch_function(overriding, theirs, *args, **settings)
        modes = [mode for mode in (getattr(a, "fake_mode", None) for a in theirs) if mode is not None]
        with modes[0] if modes else contextlib.nullcontext():
            return function(*map(_numbers, args), **{name: _numbers(value) for name, value in settings.items()})

    return overriding  # type: ignore[return-value]


_PLAIN = (Tensor, nn.Parameter)


def _numbers(value: Any) -> Any:
    r"""A tensor that is one of a subclass by name alone, and not by what torch does with it, without the name."""
    named = isinstance(value, Tensor) and type(value) not in _PLAIN
    return value.as_subclass(Tensor) if named and type(value).__torch_dispatch__ is Tensor.__torch_dispatch__ else value
