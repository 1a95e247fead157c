r"""What the layers of this library ran, and what their other algorithms cost on the same input."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from equilayers._modules import tensors

TIMES = 7


def measure_algorithms(layer: Any, args: Any, synchronize: Callable[[], None]) -> tuple[str, dict[str, float]]:
    r"""The algorithm a layer ran, and seconds forward of each that it has, measured in turn on the same input.

    What "auto" took is told by its result: the method with the same operations and the same bits.
    """
    given = layer.algorithm
    took: dict[str, list[float]] = {}
    results: dict[str, tuple[int, list[Any]]] = {}
    try:
        with torch.no_grad():
            for name in type(layer).ALGORITHMS:
                try:
                    layer.algorithm = name
                    with FlopCounterMode(display=False) as counter:
                        out = layer(*args[0], **args[1])
                except (ValueError, NotImplementedError):  # not for this group, or these sizes
                    continue
                results[name], took[name] = (counter.get_total_flops(), list(tensors(out))), []
            for _ in range(TIMES):
                for name, seconds in took.items():
                    layer.algorithm = name
                    synchronize()
                    start = time.perf_counter()
                    layer(*args[0], **args[1])
                    synchronize()
                    seconds.append(time.perf_counter() - start)
    finally:
        layer.algorithm = given
    return _ran(given, results), {name: median(seconds) for name, seconds in took.items()}


def _ran(given: str, results: dict[str, tuple[int, list[Any]]]) -> str:
    if given not in ("auto", "bitwise") or given not in results:
        return str(given)
    flops, out = results[given]
    same = [
        name
        for name, (count, other) in results.items()
        if name not in ("auto", "bitwise") and count == flops and len(out) == len(other)
        if all(torch.equal(a, b) for a, b in zip(out, other, strict=True))
    ]
    return f"{given} -> {' or '.join(same)}" if same else str(given)
