r"""Matrix products by the faster of the two libraries that torch's CPU build carries.

torch hands float32 products to MKL, which uses AVX2 on any processor not made by its maker, Intel; oneDNN, which
torch's convolutions go through, uses AVX-512 wherever there is some, and is then twice as fast. On processors of others
it takes the large products; it needs ten microseconds longer to start, so small ones stay with MKL. On Intel's all do,
where MKL is as fast, and up to twice as fast if one of the matrices is transposed.

Which of them is used depends on the processor and on shapes alone, never on values or on time: what is bitwise equal
stays so.
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equilayers._torch_compat import TorchDispatchMode

LARGE = 1_500_000  # multiplications
LONG = 512  # terms of a sum


def matmul(a: Tensor, b: Tensor) -> Tensor:
    r"""The product a @ b; not differentiable where `b` is large."""
    if torch.compiler.is_compiling():  # a question about the size would tie the graph to the batch
        return a @ b
    if a.ndim == b.ndim == 2 and type(a) is type(b) is Tensor and _suits(a, b) and _onednn():
        return _linear(a, b, None)
    return a @ b


def matmul_into(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> None:
    r"""Write the product a @ b of matrices into `out`, or add it.

    oneDNN writes into memory of its own: only where sums are long is the copy worth its speed.
    """
    if add:
        torch.addmm(out, a, b, out=out)
    elif a.shape[1] >= LONG and type(a) is type(b) is Tensor and _suits(a, b) and _onednn():
        out.copy_(_linear(a, b, None))
    else:
        torch.mm(a, b, out=out)


def product_into(a: Tensor, b: Tensor, out: Tensor) -> Callable[[], object]:
    r"""A function that writes a @ b into `out`, for products that are repeated: how is decided once."""
    if _suits(a, b) and _onednn():
        return functools.partial(matmul_into, a, b, out)
    return functools.partial(torch.mm, a, b, out=out)


def onednn_products(x: Tensor) -> contextlib.AbstractContextManager[object]:
    r"""Within it the large products of any code, autograd's included, on float32 like x go through oneDNN as well."""
    plain = x.dtype == torch.float32 and x.device.type == "cpu" and type(x) is Tensor
    return _WideProducts() if plain and _onednn() else contextlib.nullcontext()


class _WideProducts(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.aten.mm.default and _suits(*args):
            a, b = args
            return _linear(a, b, None)
        if func is torch.ops.aten.addmm.default and not kwargs and args[0].ndim == 1 and _suits(*args[1:]):
            bias, a, b = args
            return _linear(a, b, bias)
        return func(*args, **(kwargs or {}))


def _suits(a: Tensor, b: Tensor) -> bool:
    large = a.shape[0] * a.shape[1] * b.shape[1] >= LARGE
    return large and a.dtype == torch.float32 and a.device.type == "cpu"


def _linear(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    if not (b.is_contiguous() or b.mT.is_contiguous()):
        b = b.contiguous()  # with gaps in it oneDNN takes a thousand times as long
    return torch.ops.mkldnn._linear_pointwise(a, b.mT, bias, "none", [], "")


def _onednn() -> bool:
    # A compiler has its own way with products, and derives them.
    return not torch.compiler.is_compiling() and prefers_onednn()


def prefers_onednn() -> bool:
    r"""Whether the large float32 products of this processor go through oneDNN."""
    return has_avx512() and not by_intel()


@functools.cache
def has_avx512() -> bool:
    r"""Whether the processor has AVX-512 and torch the library that uses it everywhere."""
    capable = "AVX512" in torch.backends.cpu.get_cpu_capability() and torch.backends.mkldnn.is_available()
    return capable and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def by_intel() -> bool:
    r"""Whether Intel makes the processor."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return "GenuineIntel" in platform.processor()
