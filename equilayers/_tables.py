r"""Cache of tables that are made once: bounded in bytes, and the same whatever mode of torch is on.

All tables together keep at most `EQUILAYERS_TABLE_BYTES` bytes, an environment variable read at import, 256 MiB when it
is not set; those that were used last stay.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from equilayers._torch_compat import constant_when_compiled, in_dispatch_mode, outside_modes

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


class Tables:
    r"""Values by their keys: of those used last as many as have `limit` bytes together, and the newest in any case."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        r"""The kept value, or a new one, made outside all modes."""
        kept = self._kept.get(key)
        if kept is None:
            with outside_modes():
                value = make()
            self._keep(key, value)
            return value
        with contextlib.suppress(KeyError):  # another thread may have dropped it just now
            self._kept.move_to_end(key)
        return kept[0]

    def values(self) -> list[Any]:
        r"""All that is kept, what was used last at the end."""
        with self._lock:
            return [value for value, _ in self._kept.values()]

    def _keep(self, key: Hashable, value: Any) -> None:
        if any(leaf.is_meta for leaf in _leaves(value) if isinstance(leaf, Tensor)):
            return
        size = sum(map(_bytes, _leaves(value)))
        with self._lock:
            self.bytes += size - self._kept.pop(key, (None, 0))[1]
            self._kept[key] = value, size
            while self.bytes > self.limit and len(self._kept) > 1:
                self.bytes -= self._kept.popitem(last=False)[1][1]


TABLES = Tables(int(os.environ.get("EQUILAYERS_TABLE_BYTES") or 256 * 2**20))


def table(function: FunctionT) -> FunctionT:
    r"""Keep what a function of hashable arguments returns: arrays, tensors, and tuples and dataclasses of them.

    The function runs outside all modes. Under a mode its tensors are handed out as constants of that mode.
    """

    @functools.wraps(function)
    def kept(*args: Any) -> Any:
        value = TABLES.get((function, args), lambda: function(*args))
        return _lifted(value) if in_dispatch_mode() else value

    return constant_when_compiled(kept)  # type: ignore[return-value]


def _lifted(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.ops.aten.lift_fresh(value)
    if isinstance(value, tuple):
        return tuple(map(_lifted, value))
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _lifted(getattr(value, field.name)) for field in fields(value)})
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for item in value:
            yield from _leaves(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name))
    else:
        yield value


def _bytes(leaf: Any) -> int:
    r"""Memory of a leaf, all of it where a view keeps the whole."""
    if isinstance(leaf, Tensor):
        return leaf.untyped_storage().nbytes()
    while isinstance(leaf, np.ndarray) and isinstance(leaf.base, np.ndarray):
        leaf = leaf.base
    return leaf.nbytes if isinstance(leaf, np.ndarray) else sys.getsizeof(leaf)
