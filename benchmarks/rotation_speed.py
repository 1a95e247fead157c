r"""Speed of layers equivariant to rotations by any angle, beside torch's convolution of the same width."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.conv import call
from benchmarks.timing import in_turn, threads
from equilayers.groups import CyclicRotation
from equilayers.nn import GroupConv2d, HarmonicConv2d

HARMONICS = (16, 8, 36), (16, 16, 36), (16, 32, 18)  # batch, channels, size
GROUPS = (8, 8, 18), (8, 16, 18), (8, 32, 18), (8, 64, 18), (8, 64, 9), (8, 128, 9), (16, 32, 18)  # n, fields, size


def speed(seconds: float) -> Iterator[str]:
    r"""Against nn.Conv2d of the same real width: forward with filters that are kept, and a training step."""
    yield "| layer | batch | map | nn.Conv2d forward, ms | times as fast | its step, ms | times as fast |"
    yield f"|{'---|' * 7}"
    with threads(1):
        for batch, channels, size in HARMONICS:
            width = 4 * channels
            layer, plain = HarmonicConv2d(channels, channels, 5, 1, 1, padding=2), nn.Conv2d(width, width, 5, padding=2)
            x = torch.randn(batch, channels, 4, size, size)
            name = f"HarmonicConv2d, 2 orders, {channels} channels, 5x5"
            yield _ratio(name, layer, plain, x, seconds)
        for n, fields, size in GROUPS:
            group = CyclicRotation(n, interpolation="bilinear")
            conv = GroupConv2d(group, fields, fields, 3, padding=1)
            plain = nn.Conv2d(n * fields, n * fields, 3, padding=1)
            x = torch.randn(16, n, size, size, fields).permute(0, 4, 1, 2, 3)  # as the layer before leaves it
            yield _ratio(f"GroupConv2d, C{n}, {fields} fields, 3x3", conv, plain, x, seconds)


def _ratio(name: str, layer: nn.Module, plain: nn.Module, x: Tensor, seconds: float) -> str:
    flat, cells = x.flatten(1, 2).contiguous(), []
    for training in (False, True):
        with torch.enable_grad():
            calls = {"ours": call(layer, x, training=training), "plain": call(plain, flat, training=training)}
            found = in_turn(calls, seconds=seconds)
        ours, theirs = found["ours"].median, found["plain"].median
        cells += [f"{theirs:.1f}", f"{theirs / ours:.2f}"]
    return f"| {name} | {len(x)} | {x.shape[-1]}x{x.shape[-1]} | {' | '.join(cells)} |"
