r"""The one way this library says no.

Every message reads `<who>: expected <argument> <condition>, got <value>. <What to do.>`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor


def refuse(who: str, expected: str, got: object, todo: str, error: type[Exception] = ValueError) -> NoReturn:
    r"""Raise `error` with the message `<who>: expected <expected>, got <got>. <todo>`."""
    raise error(f"{who}: expected {expected}, got {got}. {todo}")


def check_tensor(who: str, name: str, x: object) -> Tensor:
    r"""`x` itself when it is a tensor, TypeError otherwise."""
    if not isinstance(x, Tensor):
        refuse(who, f"{name} to be a torch.Tensor", type(x).__name__, "Convert it with torch.as_tensor.", TypeError)
    return x


def check_float(who: str, name: str, x: object) -> Tensor:
    r"""`x` itself when it is a floating-point tensor, TypeError otherwise."""
    x = check_tensor(who, name, x)
    if not x.is_floating_point():
        refuse(who, f"{name} to be floating-point", x.dtype, f"Convert it with {name}.float().", TypeError)
    return x


def check_same_dtype(who: str, name: str, x: Tensor, weight: Tensor) -> None:
    r"""TypeError unless `x` and `weight` share a dtype."""
    if x.dtype != weight.dtype:
        todo = f"Convert one of them, for example {name}.to(weight.dtype)."
        refuse(who, f"{name} of the weight's dtype {weight.dtype}", x.dtype, todo, TypeError)


def check_int(who: str, name: str, value: object, low: int, high: int | None = None) -> int:
    r"""`value` as an int in `low..high` (inclusive); TypeError when it is no integer, ValueError out of range."""
    wanted = f"{name} >= {low}" if high is None else f"{name} in {low}..{high}"
    if isinstance(value, bool):
        refuse(who, f"{name} to be an int", value, f"Pass {wanted}.", TypeError)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        refuse(who, f"{name} to be an int", repr(value), f"Pass {wanted}.", TypeError)
    if number < low or (high is not None and number > high):
        refuse(who, wanted, number, f"Pass an int in that range for {name}.")
    return number


def check_choice(who: str, name: str, value: object, choices: Sequence[str]) -> str:
    r"""`value` when it is one of `choices`, ValueError otherwise."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        refuse(who, f"{name} in {{{listed}}}", repr(value), "Pick one of those.")
    return str(value)


def in_autocast(x: Tensor) -> bool:
    r"""Whether `torch.autocast` is on for the device of x."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def autocast(x: Tensor) -> Tensor:
    r"""The tensor as `torch.autocast` wants it for a matrix product on its device: unchanged outside autocast."""
    if not in_autocast(x) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
