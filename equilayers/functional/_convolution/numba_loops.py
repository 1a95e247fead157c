r"""Convolutions block by block as machine code: numba compiles it at the first call, and keeps it on disk.

Numbers are added in the order in which `torch_sums` adds them, and nothing is reordered: results are the same to the
last bit. Places are unsigned: of a signed one numba asks whether it is negative, and the loops take ten times as long.
Products are torch's own: the BLAS in its library. All is in one file, because numba makes code anew when its file has
changed, and code has in it that of the functions it calls.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import binding
from numba import carray, cfunc, njit, types, uint64
from numba.extending import intrinsic

from equilayers._torch_compat import symbol_address

# Columns of a table of steps: sign (0 for a copy), runs, length of a run; of each view offset, then the distances of
# samples, lines and runs.
SIGN, RUNS, LENGTH, OUT, A, B = 0, 1, 2, 3, 7, 11
# Entries of a layout: what `gather` reads of an input, and where it puts it.
(SAMPLES, LINES, STRIDE, REACH, PLANES, MAP, HEIGHT, WIDTH, LEFT) = range(9)
(X_CHANNELS, X_HEIGHT, X_WIDTH, X_SAMPLE, X_CHANNEL, X_PLANE, X_LINE, X_PIXEL) = range(9, 17)

# Columns of a table of products: offset of the first matrix in the workspace, address of the second (of a gradient
# its offset), rows, terms and columns, and offset of the result.
FIRST, SECOND, ROWS, TERMS, COLUMNS, RESULT = range(6)
# What calls of BLAS point at, in the lower half of 64 bits: letters, numbers in float32, and room for three sizes.
TRANSPOSED, PLAIN, ONE, ZERO, SIZES = 0, 8, 16, 24, 32
WORDS = np.array([ord("T"), ord("N"), np.float32(1).view(np.int32), 0, 0, 0, 0], dtype=np.int64)
MOST = 32  # arrays of a job

SYMBOLS = {"equilayers_" + name: name for name in ("sgemm_", "omp_get_thread_num", "omp_get_num_threads")}
for symbol, name in SYMBOLS.items():
    if symbol_address(name):  # of a function without one no code is made
        binding.add_symbol(symbol, symbol_address(name))
sgemm = types.ExternalFunction("equilayers_sgemm_", types.void(*[types.intp] * 13))
thread_number = types.ExternalFunction("equilayers_omp_get_thread_num", types.int32())
thread_count = types.ExternalFunction("equilayers_omp_get_num_threads", types.int32())


def kept(decorator: Any, *arguments: Any, **settings: Any) -> Any:
    r"""The decorator of numba with these arguments; its code is kept on disk where numba finds a folder for it."""

    def decorated(function: Any) -> Any:
        try:
            return decorator(*arguments, cache=True, **settings)(function)
        except RuntimeError:  # there is no folder
            return decorator(*arguments, **settings)(function)

    return decorated


compiled = kept(njit, nogil=True, error_model="numpy")


@compiled
def step(out: np.ndarray, m: np.ndarray, t: np.ndarray, i: int, y: int) -> None:
    r"""The sum of row t of a table, for line y of sample i, from m to out."""
    n = uint64(t[LENGTH])
    o = uint64(t[OUT] + i * t[OUT + 1] + y * t[OUT + 2])
    a = uint64(t[A] + i * t[A + 1] + y * t[A + 2])
    b = uint64(t[B] + i * t[B + 1] + y * t[B + 2])
    next_o, next_a, next_b = uint64(t[OUT + 3]), uint64(t[A + 3]), uint64(t[B + 3])
    sign = t[SIGN]
    for _ in range(t[RUNS]):
        if sign > 0:
            for j in range(n):
                out[o + j] = m[a + j] + m[b + j]
        elif sign < 0:
            for j in range(n):
                out[o + j] = m[a + j] - m[b + j]
        else:
            for j in range(n):
                out[o + j] = m[a + j]
        o += next_o
        a += next_a
        b += next_b


@compiled
def load(m: np.ndarray, x: np.ndarray, g: np.ndarray, i: int, y: int, top: int) -> None:
    r"""Write line top + y of sample i of all planes, with zeros around it, into line y of the workspace m."""
    c, width, line = g[X_CHANNELS], g[WIDTH], top + y
    low = min(max(g[LEFT], 0), width)
    high = min(g[LEFT] + g[X_WIDTH], width)
    if line < 0 or line >= g[X_HEIGHT] or high < low:
        low = high = width
    channels, distance = uint64(c), uint64(g[X_CHANNEL])
    for plane in range(g[PLANES]):
        o = plane * g[MAP] + (i * g[HEIGHT] + y) * width * c
        for j in range(uint64(o), uint64(o + low * c)):
            m[j] = 0
        for j in range(uint64(o + high * c), uint64(o + width * c)):
            m[j] = 0
        a = i * g[X_SAMPLE] + plane * g[X_PLANE] + line * g[X_LINE] + (low - g[LEFT]) * g[X_PIXEL]
        for p in range(high - low):
            to, start = uint64(o + (low + p) * c), uint64(a + p * g[X_PIXEL])
            if distance == uint64(1):
                for j in range(channels):
                    m[to + j] = x[start + j]
            else:
                for j in range(channels):
                    m[to + j] = x[start + j * distance]


@compiled
def gather(m: np.ndarray, x: np.ndarray, top: int, g: np.ndarray, inputs: np.ndarray, outputs: np.ndarray) -> None:
    r"""The patches of a block: load each line, and take the steps as soon as all that they read is there."""
    for i in range(g[SAMPLES]):
        done = 0
        for y in range(g[LINES]):
            while done < y * g[STRIDE] + g[REACH]:
                load(m, x, g, i, done, top)
                for k in range(inputs.shape[0]):
                    step(m, m, inputs[k], i, done)
                done += 1
            for k in range(outputs.shape[0]):
                step(m, m, outputs[k], i, y)


@compiled
def scatter(out: np.ndarray, m: np.ndarray, size: np.ndarray, inner: np.ndarray, last: np.ndarray) -> None:
    r"""The outputs of a block of (samples, lines): steps within the workspace, then those that write into `out`."""
    for i in range(size[0]):
        for y in range(size[1]):
            for k in range(inner.shape[0]):
                step(m, m, inner[k], i, y)
            for k in range(last.shape[0]):
                step(out, m, last[k], i, y)


@compiled
def sizes_into(words: np.ndarray, p: np.ndarray) -> tuple[int, int, int]:
    r"""Addresses of columns, rows and terms, written behind the constants."""
    words[4], words[5], words[6] = p[COLUMNS], p[ROWS], p[TERMS]
    at = words.ctypes.data + SIZES
    return at, at + 8, at + 16


@compiled
def multiply(m: np.ndarray, results: np.ndarray, p: np.ndarray, words: np.ndarray) -> None:
    r"""`R = A B^T` for A (rows, terms) in m, B (columns, terms) at an address, R in `results`; BLAS sees transposes."""
    w = words.ctypes.data
    columns, rows, terms = sizes_into(words, p)
    a, b, r = m.ctypes.data + 4 * p[FIRST], p[SECOND], results.ctypes.data + 4 * p[RESULT]
    sgemm(w + TRANSPOSED, w + PLAIN, columns, rows, terms, w + ONE, b, terms, a, terms, w + ZERO, r, columns)


@compiled
def add_product(v: np.ndarray, x: np.ndarray, totals: np.ndarray, p: np.ndarray, words: np.ndarray) -> None:
    r"""`T += V^T X` for V (terms, rows) in v, X (terms, columns) in x; T (rows, columns) in `totals`."""
    w = words.ctypes.data
    columns, rows, terms = sizes_into(words, p)
    a, b, t = v.ctypes.data + 4 * p[FIRST], x.ctypes.data + 4 * p[SECOND], totals.ctypes.data + 4 * p[RESULT]
    sgemm(w + PLAIN, w + TRANSPOSED, columns, rows, terms, w + ONE, b, columns, a, rows, w + ONE, t, columns)


# Of both functions below the last argument says which blocks are theirs: thread k of n takes k, k + n, k + 2 n, ...


@compiled
def convolve(memory: Any, data: Any, starts: np.ndarray, tables: Any, turn: tuple[int, int]) -> None:
    r"""The outputs of all blocks of one size; starts: the first of each in x, line of x, and first in out."""
    (m, results, words), (x, out) = memory, data
    layout, inputs, outputs, products, size, inner, last = tables
    for k in range(turn[0], len(starts), turn[1]):
        gather(m, x[starts[k, 0] :], starts[k, 1], layout, inputs, outputs)
        for p in range(len(products)):
            multiply(m, results, products[p], words)
        scatter(out[starts[k, 2] :], results, size, inner, last)


@compiled
def correlate(memory: Any, data: Any, starts: np.ndarray, tables: Any, turn: tuple[int, int]) -> None:
    r"""Add the products v^T x of the coefficients of all blocks of one size to the totals.

    starts: the first of each in v, line of v, first in x, line of x.
    """
    (left, right, totals, words), (v, x) = memory, data
    layout_v, inputs_v, outputs_v, layout_x, inputs_x, outputs_x, products = tables
    for k in range(turn[0], len(starts), turn[1]):
        gather(left, v[starts[k, 0] :], starts[k, 1], layout_v, inputs_v, outputs_v)
        gather(right, x[starts[k, 2] :], starts[k, 3], layout_x, inputs_x, outputs_x)
        for p in range(len(products)):
            add_product(left, right, totals, products[p], words)


def call_words(threads: int) -> np.ndarray:
    r"""A row of `WORDS` for each thread."""
    return np.tile(WORDS, (threads, 1))


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))


@intrinsic
def floats_at(context: Any, address: Any) -> Any:  # noqa: ARG001
    r"""A pointer to numbers at an address."""
    return types.CPointer(types.float32)(address), _pointer


@intrinsic
def integers_at(context: Any, address: Any) -> Any:  # noqa: ARG001
    r"""The same, to integers of 64 bits."""
    return types.CPointer(types.int64)(address), _pointer


@compiled
def floats(given: np.ndarray, k: int) -> np.ndarray:
    r"""Array k of those that were given."""
    return carray(floats_at(given[k, 0]), (given[k, 1], given[k, 2]))


@compiled
def integers(given: np.ndarray, k: int) -> np.ndarray:
    r"""The same, of integers."""
    return carray(integers_at(given[k, 0]), (given[k, 1], given[k, 2]))


@compiled
def workspace(given: np.ndarray, k: int, thread: int) -> np.ndarray:
    r"""That of a thread; array k holds address and length of each."""
    at = integers(given, k)
    return carray(floats_at(at[thread, 0]), (at[thread, 1],))


def convolve_job(data: Any) -> None:
    r"""`convolve` of a thread: arrays in the order of `run_job`."""
    g, k = carray(data, (MOST, 3)), thread_number()
    memory = workspace(g, 0, k), workspace(g, 1, k), integers(g, 2)[k]
    tables = (
        *(integers(g, 6)[0], integers(g, 7), integers(g, 8), integers(g, 9)),
        *(integers(g, 10)[0], integers(g, 11), integers(g, 12)),
    )
    convolve(memory, (floats(g, 3)[0], floats(g, 4)[0]), integers(g, 5), tables, (k, thread_count()))


def correlate_job(data: Any) -> None:
    r"""`correlate` of a thread: arrays in the order of `run_job`."""
    g, k = carray(data, (MOST, 3)), thread_number()
    memory = workspace(g, 0, k), workspace(g, 1, k), workspace(g, 2, k), integers(g, 3)[k]
    tables = (
        *(integers(g, 7)[0], integers(g, 8), integers(g, 9), integers(g, 10)[0], integers(g, 11), integers(g, 12)),
        integers(g, 13),
    )
    correlate(memory, (floats(g, 4)[0], floats(g, 5)[0]), integers(g, 6), tables, (k, thread_count()))


@functools.cache
def _compiled_job(job: Any) -> Any:
    return kept(cfunc, types.void(types.CPointer(types.int64)))(job)


@functools.cache
def _parallel() -> Any:
    r"""The function that runs a job in so many threads: its address, that of its data, their number, settings."""
    address, word = ctypes.c_void_p, ctypes.c_uint
    return ctypes.CFUNCTYPE(None, address, address, word, word)(symbol_address("GOMP_parallel"))


def run_job(job: Any, memory: Sequence[Sequence[np.ndarray]], arrays: Sequence[np.ndarray]) -> None:
    r"""Run a job in the threads of torch, one for each workspace of a kind; arrays: words, data, starts and tables.

    They are those of GNU's OpenMP: threads of another kind would wait for them, which go on turning for a while when
    their work is done.
    """
    spaces = [np.array([(m.ctypes.data, len(m)) for m in own], dtype=np.int64) for own in memory]
    matrices = [array.reshape(1, -1) if array.ndim == 1 else array for array in (*spaces, *arrays)]
    given = np.zeros((MOST, 3), dtype=np.int64)
    given[: len(matrices)] = [(matrix.ctypes.data, *matrix.shape) for matrix in matrices]
    _parallel()(_compiled_job(job).address, given.ctypes.data, len(spaces[0]), 0)
