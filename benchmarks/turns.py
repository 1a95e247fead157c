r"""Equivariance error of blur pooling under quarter turns and mirror images, for our layers and for those of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from baselines.common.tables import head_lines, row_line
from benchmarks.peers import blur_pools
from benchmarks.timing import machine
from equilayers.groups import Dihedral
from equilayers.nn import BlurPool2d, MaxBlurPool2d

Pool = Callable[[Tensor], Tensor]
SIZES = (7, 8, 9, 16, 17, 32, 33)


def pools() -> dict[str, Pool]:
    r"""The pools by name; a peer only where it is installed."""
    made: dict[str, Pool] = {"BlurPool2d()": BlurPool2d(), "MaxBlurPool2d()": MaxBlurPool2d()}
    made |= {f"BlurPool2d({taps})": BlurPool2d(taps) for taps in (3, 4)}
    for taps in (3, 4):
        made |= {f"{name}, {taps} taps": pool for name, pool in blur_pools(3, taps).items()}
    return made


def worst(pool: Pool, size: int) -> float:
    r"""The largest error of the law over D4, relative to the largest output."""
    group = Dihedral(4)
    x = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(size))
    y = pool(x)
    gaps = [(pool(group.act(g, x)) - group.act(g, y)).abs().max() for g in range(1, group.order)]
    return float(max(gaps) / y.abs().max())


def report(seconds: float) -> Iterator[str]:  # noqa: ARG001 - nothing is timed
    r"""The lines of a Markdown table."""
    yield f"{machine()}. Stride 2, normal noise."
    yield "The largest `|pool(gx) - g pool(x)|` over D4, relative to the largest output.\n"
    yield head_lines(["pool", *(f"{size}x{size}" for size in SIZES)])
    for name, pool in pools().items():
        errors = (worst(pool, size) for size in SIZES)
        yield row_line([name, *("0" if error == 0 else f"{error:.1g}" for error in errors)])
