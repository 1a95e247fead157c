r"""Layers of random sizes, and what each of their algorithms does, as calls to be timed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from equilayers.functional._conv import convolve_by
from equilayers.functional._convolution.geometry import ConvSettings, conv_spec
from equilayers.functional._linear import linear, linear_spec
from equilayers.functional._machine import Machine
from equilayers.functional._weight_cache import WeightCache
from equilayers.functional.cost import LinearSizes, Sizes, Work, convolution_work, costs_of, linear_work, roofline_costs
from equilayers.functional.tokens import TokenSpace, TokenWeight, token_linear
from equilayers.groups import Group, group_from_name

Call = Callable[[], object]
CALLER = "equilayers calibrate"
KINDS = {
    "lifting linear": 3,
    "group linear": 3,
    "tokens": 4,
    "lifting convolution": 3,
    "group convolution": 8,
    "bitwise group convolution": 2,
}
EXACT = ("C2", "C4", "D1", "D2", "D4")
GROUPS = {
    "lifting linear": (*EXACT, "T3", "T6"),
    "group linear": (*EXACT, "T3", "T6", "C8"),
    "tokens": (*EXACT, "T3", "C8"),
    "lifting convolution": EXACT,
    "group convolution": (*EXACT, *EXACT, "C8"),
    "bitwise group convolution": EXACT,
}
MOST = 1.5e9  # multiplications of the expanded layer


class Case(NamedTuple):
    r"""A layer, its input, and how it is used. size: of a map or image, squared the number of tokens."""

    kind: str
    group: str
    channels: int
    features: int
    size: int
    batch: int
    kernel: int
    training: bool

    @property
    def lifting(self) -> bool:
        r"""Whether images come in."""
        return self.kind.split()[0] == "lifting"

    @property
    def exact(self) -> bool:
        r"""Whether the last bit is to be kept."""
        return self.kind.startswith("bitwise")

    @property
    def convolves(self) -> bool:
        r"""Whether it is a convolution."""
        return self.kind.split()[-1] == "convolution"

    @property
    def rows(self) -> int:
        r"""Samples of a linear map, or positions."""
        return self.batch * self.size**2 if self.kind == "tokens" else self.batch

    def work(self) -> dict[str, Work]:
        r"""The work of each algorithm."""
        group, kept = group_from_name(self.group), not self.training
        if self.convolves:
            pixels = self.batch * self.size**2
            return convolution_work(
                group,
                Sizes(pixels, pixels, self.channels, self.features, (self.kernel,) * 2, 1, self.lifting, kept),
                self.exact,
            )
        entries = self.channels * (self.size**2 if self.lifting else group.order)
        sizes = LinearSizes(self.rows, entries, self.features, self.lifting, kept)
        choices = linear_work(group, sizes)
        return {k: choices[k] for k in ("tokens", "dense")} if self.kind == "tokens" else choices

    def costs(self, threads: int, *, roofline: bool = False) -> dict[str, float]:
        r"""Nanoseconds of each algorithm on the processor by the calibration, if there is one, or by the roofline."""
        made = roofline_costs if roofline else costs_of
        return made(self.work(), Machine(threads=threads))

    @property
    def multiplications(self) -> float:
        r"""Of the expanded layer."""
        n = group_from_name(self.group).order
        entries = self.channels * (1 if self.lifting else n)
        if self.convolves:
            entries *= self.kernel**2 * self.size**2
        elif self.lifting:
            entries *= self.size**2
        rows = self.batch if self.convolves or self.lifting else self.rows
        return (3 if self.training else 1) * rows * entries * self.features * n


def random_cases(seed: int) -> Iterator[Case]:
    r"""Cases without end, widths and batches even in their logarithms, and none that takes long."""
    draw = random.Random(seed)
    while True:
        case = _case(draw)
        if case.multiplications <= MOST:
            yield case


def _case(draw: random.Random) -> Case:
    kind = draw.choices([*KINDS], [*KINDS.values()])[0]
    name = draw.choice(GROUPS[kind])
    n = group_from_name(name).order

    def even(low: float, high: float) -> int:
        return max(1, round(math.exp(draw.uniform(math.log(low), math.log(high)))))

    channels, features = (max(1, even(16, 768) // n) for _ in range(2))
    training = draw.random() < 0.5
    if kind == "lifting linear":
        size = 6 * draw.randint(1, 6)
        return Case(kind, name, draw.choice((1, 3)), even(8, 256), size, even(1, 512), 1, training)
    if kind == "group linear":
        return Case(kind, name, channels, features, 1, even(1, 512), 1, training)
    if kind == "tokens":
        return Case(kind, name, channels, features, draw.randint(4, 16), even(1, 16), 1, training)
    kernel = draw.choice((3, 3, 5) if name == "C8" else (1, 3, 3, 3, 5))
    size = draw.randint(5, 36)
    channels = draw.choice((1, 3)) if kind == "lifting convolution" else channels
    return Case(kind, name, channels, features, size, even(1, 64), kernel, training)


def calls(case: Case, device: torch.device) -> dict[str, Call]:
    r"""Each algorithm as a forward pass without gradients, or a training step down to input and weight."""
    group = group_from_name(case.group)
    generator = torch.Generator().manual_seed(0)
    shapes = _shapes(case, group)
    x, weight, bias = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
    if case.kind == "tokens":  # as the layers leave them
        x = x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    made = {name: _function(case, group, name) for name in case.work()}
    return {name: _call(f, (x, weight, bias), training=case.training) for name, f in made.items()}


def _shapes(case: Case, group: Group) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    fiber = () if case.lifting else (group.order,)
    space: tuple[int, ...] = (case.size, case.size) if case.convolves or case.lifting else ()
    space = (case.size**2,) if case.kind == "tokens" else space
    taps = (case.kernel, case.kernel) if case.convolves else space if case.lifting else ()
    inside = case.channels, *fiber
    return (case.batch, *inside, *space), (case.features, *inside, *taps), (case.features,)


def _function(case: Case, group: Group, algorithm: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    cache = WeightCache()
    tokens = algorithm == "tokens"
    if tokens or (not case.lifting and not case.convolves and algorithm == "dense"):
        space = TokenSpace(group, tokens)
        return lambda x, w, b: token_linear(x, TokenWeight(w[..., 0, 0] if case.convolves else w, b), space, cache)
    if case.convolves:
        word = "bitwise" if case.exact else "auto"
        given = ConvSettings(case.lifting, group, case.kernel, padding=case.kernel // 2, algorithm=word)
        conv = conv_spec(CALLER, given)
        return lambda x, w, b: convolve_by(algorithm, x, w, b, conv, cache)
    spec = linear_spec(CALLER, group, algorithm, lifting=case.lifting)
    return lambda x, w, b: linear(CALLER, x, w, b, spec, cache)


def _call(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], given: tuple[Tensor, Tensor, Tensor], *, training: bool
) -> Call:
    x, weight, bias = given
    if not training:

        def forward() -> object:
            with torch.no_grad():
                return function(x, weight, bias)

        return forward
    leaves = [t.clone().requires_grad_() for t in given]
    upstream = torch.randn_like(function(x, weight, bias))

    def step() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(function(leaves[0], leaves[1], leaves[2]), leaves, upstream)

    return step
