r"""Blur and polyphase pooling against kornia's and antialiased-cnns' BlurPool and torch's own pooling layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from baselines.common.tables import head_lines, row_line
from benchmarks.conv import call, median, ratio
from benchmarks.peers import blur_pools
from benchmarks.timing import Call, in_turn, machine, thread_count, threads
from equilayers.nn import BlurPool2d, MaxBlurPool2d, PolyphasePool2d

KORNIA, ANTIALIASED = "kornia", "antialiased-cnns"
OURS, DENSE, FIXED = "BlurPool2d", "BlurPool2d dense", "BlurPool2d fixed"
POLYPHASE, MAX_BLUR = "polyphase", "max blur"
COLUMNS = (OURS, DENSE, FIXED, POLYPHASE, MAX_BLUR, KORNIA, ANTIALIASED, "AvgPool2d", "MaxPool2d")


@dataclass(frozen=True)
class Case:
    r"""One comparison: maps of size x size; peers and `fixed` take the number of taps that "auto" takes there."""

    channels: int
    size: int
    batch: int = 8
    training: bool = False
    threads: int = 1

    @property
    def taps(self) -> int:
        r"""Of stride 2: three where the size is odd, four where it is even."""
        return 4 - self.size % 2

    def __str__(self) -> str:
        what = "training step" if self.training else "forward"
        maps = f"{self.batch}x{self.channels}x{self.size}x{self.size}"
        return f"{maps}, {self.taps} taps, {what}, {thread_count(self.threads)}"


def competitors(case: Case, names: Iterable[str] | None = None) -> dict[str, Call]:
    r"""What is timed, by name; a peer only where it is installed."""
    torch.manual_seed(0)
    x = torch.randn(case.batch, case.channels, case.size, case.size)
    made: dict[str, nn.Module] = {
        OURS: BlurPool2d(),
        DENSE: BlurPool2d(algorithm="dense"),
        FIXED: BlurPool2d(case.taps),
        POLYPHASE: PolyphasePool2d(exact=False),
        MAX_BLUR: MaxBlurPool2d(),
        "AvgPool2d": nn.AvgPool2d(2),
        "MaxPool2d": nn.MaxPool2d(2),
    }
    made |= blur_pools(case.channels, case.taps)
    wanted = [name for name in (COLUMNS if names is None else names) if name in made]
    return {name: call(made[name], x, training=case.training) for name in wanted}


CASES = [
    *(Case(64, size) for size in (8, 9, 16, 18, 32, 33, 36)),
    *(Case(channels, 36) for channels in (16, 256)),
    Case(64, 112),
    Case(3, 224),
    Case(64, 36, batch=32),
    *(Case(64, size, threads=2) for size in (18, 36, 112)),
]


def report(seconds: float) -> Iterator[str]:
    r"""The lines of a Markdown report, as they are measured."""
    yield f"Machine: {machine()}. Medians in ms, stride 2, competitors timed in turn. The last columns: how many times "
    yield "faster `auto` is than the faster of the peers, and what polyphase pooling costs in blur poolings.\n"
    yield head_lines(["case", *COLUMNS, "peers / auto", "polyphase / auto"])
    for case in (replace(case, training=training) for case in CASES for training in (False, True)):
        with threads(case.threads):
            timings = in_turn(competitors(case), seconds=seconds)
        cells = [median(timings, name, ".3f") for name in COLUMNS]
        peers = [name for name in (KORNIA, ANTIALIASED) if name in timings]
        fastest = min(peers, key=lambda name: timings[name].median, default=KORNIA)
        yield row_line([str(case), *cells, ratio(timings, fastest, OURS), ratio(timings, POLYPHASE, OURS)])
