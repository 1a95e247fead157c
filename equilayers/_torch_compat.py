r"""What this library takes of torch that is private: all of it, here alone."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import fx
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

__all__ = [
    "TorchDispatchMode",
    "constant_when_compiled",
    "in_dispatch_mode",
    "in_forward_mode",
    "in_transform",
    "is_compiled",
    "is_tracing",
    "next_autograd_number",
    "outside_modes",
    "symbol_address",
    "without_tracer",
]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@contextlib.contextmanager
def outside_modes() -> Iterator[None]:
    r"""Ordinary tensors on the CPU by default, whatever modes, functional transforms and default device are on."""
    with (
        torch.inference_mode(False),
        temporarily_clear_interpreter_stack(),
        _disable_current_modes(),
        torch._C.DisableTorchFunction(),
    ):
        yield


def in_dispatch_mode() -> bool:
    r"""Whether a mode such as FakeTensorMode is on."""
    return bool(torch._C._len_torch_dispatch_stack())


def is_tracing() -> bool:
    r"""Whether `torch.jit.trace` is at work; its public name warns in newer versions."""
    return bool(torch.jit._trace.is_tracing())


def constant_when_compiled(function: FunctionT) -> FunctionT:
    r"""Mark a function whose results `torch.compile` may take for constants: its arguments decide them.

    It does what `torch.compiler.assume_constant_result` does, which would import the compiler, two seconds of every
    start.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_compiled
def in_forward_mode() -> bool:
    r"""Whether forward differentiation is on; a compiled graph holds for one of both."""
    return forward_ad._current_level >= 0


@constant_when_compiled
def in_transform() -> bool:
    r"""Whether a transform of `torch.func` is at work, in which operations on plain tensors make wrapped ones."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def without_tracer(graph: fx.Graph) -> fx.Graph:
    r"""The graph without the class that traced it, which pickle would look for where it is loaded."""
    graph._tracer_cls = None
    return graph


def is_compiled(module: Any) -> bool:
    r"""Whether it is what `torch.compile` makes of a module."""
    return isinstance(module, torch._dynamo.OptimizedModule)


def next_autograd_number() -> int:
    r"""The number that the next node of autograd gets."""
    return int(torch._C._autograd._get_sequence_nr())


@functools.cache
def symbol_address(name: str) -> int:
    r"""The address of a function in torch's library for processors, or in one that this uses; 0 if there is none."""
    for file in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / file))
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
    return 0
