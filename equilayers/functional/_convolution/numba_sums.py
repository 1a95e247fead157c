r"""Convolutions by numba where it is installed: line by line, so that what a sum reads is still in the caches.

The sums are those of `torch_sums`, to the last bit. In float32 the products are called from machine code as well,
where torch's BLAS can be had and is the faster library, see `_matmul`; Python between them, which empty the caches,
would take as long as a narrow layer.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equilayers._checks import Pair
from equilayers._matmul import prefers_onednn, product_into
from equilayers._torch_compat import in_dispatch_mode, symbol_address
from equilayers.functional._convolution.geometry import ConvSpec, empty_output
from equilayers.functional._convolution.plans import Layout, Part, SlopePart, convolution_plan, slope_plan
from equilayers.functional._convolution.programs import matrix
from equilayers.functional._fourier.irreps import Rows
from equilayers.functional._fourier.transforms import Butterflies
from equilayers.functional._weight_cache import is_plain

Run = Callable[..., None]
Arrays = Sequence[np.ndarray]
Memory = Sequence[Sequence[Tensor]]  # of each kind a workspace for each thread


@functools.cache
def has_numba() -> bool:
    r"""Whether numba is installed and may compile; it is imported when a convolution first needs it."""
    return find_spec("numba") is not None and os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


@functools.cache
def can_call_blas() -> bool:
    r"""Whether numba is installed, and its code can call the products that torch would."""
    return has_numba() and not prefers_onednn() and symbol_address("sgemm_") > 0


@functools.cache
def has_team() -> bool:
    r"""Whether torch's threads are those of GNU's OpenMP, which do any job."""
    return all(map(symbol_address, ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")))


def calls_blas(x: Tensor) -> bool:
    r"""Whether the products of a convolution of x, where numba serves, are called from machine code."""
    return x.dtype == torch.float32 and can_call_blas()


def serves(*tensors: Tensor) -> bool:
    r"""Whether numba may work on these: numbers in memory that no mode watches."""
    known = all(x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() for x in tensors)
    known = known and not any(x.is_neg() for x in tensors)
    return known and has_numba() and not in_dispatch_mode() and is_plain(*tensors) and loops() is not None


@functools.cache
def loops() -> Any:
    r"""The module `numba_loops`, or None, with a warning, where numba cannot be imported."""
    try:
        return importlib.import_module("equilayers.functional._convolution.numba_loops")
    except ImportError as error:
        warnings.warn(f"equilayers: numba is installed but not imported ({error}). torch does its work.", stacklevel=2)
        return None


def convolve(
    fourier: Butterflies, spec: ConvSpec, x: Tensor, operators: list[Tensor], bias: Tensor | None, share: Pair
) -> Tensor:
    r"""The convolution of x, in memory as (B, |G|, H', W', O); share: samples and lines of a block."""
    shapes = tuple(tuple(operator.shape) for operator in operators)
    parts = convolution_plan(fourier, spec, _layout(x), shapes, share)
    out = empty_output(spec, x, shapes[0][0])
    run, workers = _way(x, _by_blas, _by_torch)
    patches = _workspaces(x, max(part.gathering.entries for part in parts), workers)
    results = _workspaces(x, max(part.entries for part in parts), workers)
    for memory in results:
        memory[: out.shape[1]] = 0 if bias is None else bias
    given, written = numbers(x), numbers(out)
    for part in parts:
        run(part, (patches, results), given, operators, written)
    return out


def _by_blas(part: Part, memory: Memory, x: np.ndarray, operators: list[Tensor], out: np.ndarray) -> None:
    products = part.products.copy()
    products[:, loops().SECOND] = [operators[k].data_ptr() + 4 * offset for k, offset in part.sources]
    tables = *part.gathering.tables, products, *part.scattering
    _run((loops().convolve, loops().convolve_job), memory, (x, out), part.starts, tables)


def _run(functions: tuple[Any, Any], memory: Memory, data: Arrays, starts: np.ndarray, tables: Arrays) -> None:
    r"""Call a function of `numba_loops`, or its job in a thread for each workspace of a kind."""
    function, job = functions
    threads = len(memory[0])
    own, words = [[m.numpy() for m in kind] for kind in memory], loops().call_words(threads)
    if threads == 1:
        function((*(kind[0] for kind in own), words[0]), tuple(data), starts, tuple(tables), (0, 1))
    else:
        loops().run_job(job, own, (words, *data, starts, *tables))


def _by_torch(part: Part, memory: Memory, x: np.ndarray, operators: list[Tensor], out: np.ndarray) -> None:
    (patches, results), found = (m[0] for m in memory), []
    for (k, offset), (left, _, rows, terms, columns, place) in zip(part.sources, part.products.tolist(), strict=True):
        b = operators[k].view(-1)[offset : offset + terms * columns].view(columns, terms).mT
        found.append(product_into(matrix(patches, (left, (rows, terms))), b, matrix(results, (place, (rows, columns)))))
    for start, top, to in part.starts.tolist():
        loops().gather(patches.numpy(), x[start:], top, *part.gathering.tables)
        for product in found:
            product()
        loops().scatter(out[to:], results.numpy(), *part.scattering)


def correlate(fourier: Butterflies, spec: ConvSpec, v: Tensor, x: Tensor, share: Pair) -> list[Rows]:
    r"""The gradients of the matrices of each irrep for an output gradient v; share: as in `convolve`."""
    parts = slope_plan(fourier, spec, _layout(v), _layout(x), share)
    sizes = parts[0].totals
    run, workers = _way(x, _slopes_by_blas, _slopes_by_torch)
    totals = [m.zero_() for m in _workspaces(x, sum(map(math.prod, itertools.chain(*sizes))), workers)]
    left, right = (max(part.gatherings[k].entries for part in parts) for k in range(2))
    memory = _workspaces(x, left, workers), _workspaces(x, right, workers), totals
    upstream, given = numbers(v), numbers(x)
    for part in parts:
        run(part, memory, upstream, given)
    found = iter(functools.reduce(Tensor.add_, totals).split([math.prod(size) for size in itertools.chain(*sizes)]))
    sums = [[next(found).view(size) for size in own] for own in sizes]
    counts = [len(rows) for rows in parts[0].gatherings[1].rows]
    return [block.slope(own, rows) for block, own, rows in zip(fourier.blocks, sums, counts, strict=True)]


def _way(x: Tensor, blas_way: Run, torch_way: Run) -> tuple[Run, int]:
    r"""Who calls the products, and how many threads work on blocks of their own."""
    if not calls_blas(x):
        return torch_way, 1
    threads = torch.get_num_threads()
    return blas_way, threads if threads > 1 and has_team() else 1


def _slopes_by_blas(part: SlopePart, memory: Memory, v: np.ndarray, x: np.ndarray) -> None:
    tables = *part.gatherings[0].tables, *part.gatherings[1].tables, part.products
    _run((loops().correlate, loops().correlate_job), memory, (v, x), part.starts, tables)


def _slopes_by_torch(part: SlopePart, memory: Memory, v: np.ndarray, x: np.ndarray) -> None:
    left, right, totals = (m[0] for m in memory)
    found = [
        (
            matrix(left, (a, (terms, rows))).mT,
            matrix(right, (b, (terms, columns))),
            matrix(totals, (to, (rows, columns))),
        )
        for a, b, rows, terms, columns, to in part.products.tolist()
    ]
    for start_v, top_v, start_x, top_x in part.starts.tolist():
        loops().gather(left.numpy(), v[start_v:], top_v, *part.gatherings[0].tables)
        loops().gather(right.numpy(), x[start_x:], top_x, *part.gatherings[1].tables)
        for a, b, total in found:
            torch.addmm(total, a, b, out=total)


def _workspaces(x: Tensor, entries: int, count: int) -> list[Tensor]:
    r"""Apart, for of one large block the system takes back the memory after every call."""
    return [x.new_empty(entries) for _ in range(count)]


def _layout(x: Tensor) -> Layout:
    return Layout(tuple(x.shape), x.stride())


def numbers(x: Tensor) -> np.ndarray:
    r"""What lies in memory from the first number of x to its last."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.detach().as_strided((length,), (1,)).numpy()
