r"""How long it takes to make layers: one convolution, and a network of the size of a ResNet-18."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn

from benchmarks.peers import escnn_convolution, import_escnn
from benchmarks.timing import Call, in_turn, machine
from equilayers.groups import group_from_name
from equilayers.nn import GroupConv2d

# Channels in and out and kernels of a ResNet-18's convolutions after the first.
STAGES = (64, 128, 256, 512)
RESNET = [
    (cin, cout, kernel)
    for before, width in zip((64, *STAGES), STAGES, strict=False)
    for cin, cout, kernel in [
        (before, width, 3),
        *[(width, width, 3)] * 3,
        *([(before, width, 1)] if before != width else []),
    ]
]


Layers = list[tuple[int, int, int]]


def _ours(group: str, layers: Layers) -> list[nn.Module]:
    n = group_from_name(group).order
    return [GroupConv2d(group_from_name(group), cin // n, cout // n, k, padding=k // 2) for cin, cout, k in layers]


def _plain(layers: Layers) -> list[nn.Module]:
    return [nn.Conv2d(cin, cout, k, padding=k // 2) for cin, cout, k in layers]


def _escnn(group: str, layers: Layers) -> list[nn.Module]:
    n = group_from_name(group).order
    return [escnn_convolution(group, cin // n, cout // n, k) for cin, cout, k in layers]


def _calls(group: str, layers: Layers) -> dict[str, Call]:
    calls: dict[str, Call] = {"torch": partial(_plain, layers), "ours": partial(_ours, group, layers)}
    try:
        import_escnn()
    except ImportError:
        return calls
    return {**calls, "escnn": partial(_escnn, group, layers)}


def report(seconds: float) -> Iterator[str]:
    r"""The lines of a Markdown report, as they are measured."""
    yield f"Machine: {machine()}. Medians in ms; escnn's caches are warm.\n"
    yield "| made | torch Conv2d | ours | escnn | escnn / ours |"
    yield "|---|---|---|---|---|"
    for group in ("C4", "D4"):
        width = 64 * group_from_name(group).order
        for what, layers in (("one layer of 64 fields", [(width, width, 3)]), ("a ResNet-18", RESNET)):
            ms = {
                name: timing.median
                for name, timing in in_turn(_calls(group, layers), seconds=seconds, warmup=1, rounds=2).items()
            }
            peer = (f"{ms['escnn']:.1f}", f"{ms['escnn'] / ms['ours']:.1f}") if "escnn" in ms else ("–", "–")
            yield f"| {group}, {what} | {ms['torch']:.2f} | {ms['ours']:.2f} | {' | '.join(peer)} |"
