r"""What a model returns, as tensors with names: one tensor, or dictionaries, sequences and dataclasses of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equilayers._checks import check_output, refuse
from equilayers._modules import Model


def name_of(model: Model) -> str:
    r"""What a model is called in messages and reports."""
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "the model")


def outputs_of(caller: str, out: Any) -> dict[str, Tensor]:
    r"""Copies of the tensors that a model returns, by name, such as "boxes[0]"; "" for a tensor alone.

    Of an output with `logits` those alone are taken. Integers become float64.

    Raises:
        TypeError: there is no tensor in it.
    """
    logits = getattr(out, "logits", None)
    found = {}
    for name, value in _leaves("", out if logits is None else logits):
        check_output(caller, value)
        found[name] = value.clone() if value.is_floating_point() or value.is_complex() else value.double()
    if not found:
        refuse(
            caller,
            "model to return a tensor",
            type(out).__name__,
            "Return one, or pick it: lambda x: model(x)[0].",
            TypeError,
        )
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, np.ndarray | np.generic | float):
        yield name, torch.as_tensor(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        yield from _parts(name, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        yield from _parts(name, value)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for i, item in enumerate(value):
            yield from _leaves(f"{name}[{i}]", item)


def _parts(name: str, items: Mapping[Any, Any]) -> Iterator[tuple[str, Tensor]]:
    for key, item in items.items():
        yield from _leaves(f"{name}.{key}" if name else str(key), item)
