r"""The layers on a GPU: the tables of `linear`, `conv` and `transformer`, everything made and timed there."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import conv, linear, transformer


def report(seconds: float, device: str = "cuda") -> Iterator[str]:
    r"""The lines of a Markdown report, as they are measured; RuntimeError where there is no GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("benchmarks: expected a GPU that torch can use, got none. Run this where there is one.")
    with torch.device(device):
        yield from linear.report(seconds, [case for case in linear.CASES if case.threads == 1])
        yield ""
        yield from conv.report(
            seconds, [case for case in conv.CASES if case.threads == 1], (conv.PLAIN, *conv.ALGORITHMS)
        )
        yield ""
        yield from transformer.timings(seconds, [1])
