r"""Matrix products by the faster of the two libraries that torch's CPU build carries.

torch hands float32 products to MKL, which uses AVX2 on any processor not made by its maker; oneDNN, which torch's
convolutions go through, uses AVX-512 wherever there is some, and is then twice as fast. There it takes the large
products; it needs ten microseconds longer to start, so small ones stay with MKL.

Which of them is used depends on the processor and on shapes alone, never on values or on time: what is bitwise equal
stays so.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LARGE = 1_500_000  # multiplications


def times(a: Tensor, b: Tensor) -> Tensor:
    r"""The product a @ b; not differentiable where `b` is large."""
    rows, inner = a.shape[-2:]
    large = rows * inner * b.shape[-1] >= LARGE and a.ndim == b.ndim == 2
    if large and a.dtype == torch.float32 and a.device.type == "cpu" and type(a) is type(b) is Tensor and _onednn():
        return torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], "")
    return a @ b


def _onednn() -> bool:
    # A compiler has its own way with products, and derives them.
    return not torch.compiler.is_compiling() and wide()


@functools.cache
def wide() -> bool:
    r"""Whether the processor has AVX-512 and torch the library that uses it everywhere."""
    capable = "AVX512" in torch.backends.cpu.get_cpu_capability() and torch.backends.mkldnn.is_available()
    return capable and hasattr(torch.ops.mkldnn, "_linear_pointwise")
