r"""How far a quarter turn and a mirror are from commuting with the BlurPools of others and of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.timing import machine
from equilayers.groups import Dihedral
from equilayers.nn import BlurPool2d, MaxBlurPool2d

Pool = Callable[[Tensor], Tensor]
SIZES = (7, 8, 9, 16, 17, 32, 33)


def pools() -> dict[str, Pool]:
    r"""The pools by name; a peer only where it is installed."""
    made: dict[str, Pool] = {"BlurPool2d()": BlurPool2d(), "MaxBlurPool2d()": MaxBlurPool2d()}
    made |= {f"BlurPool2d({taps})": BlurPool2d(taps) for taps in (3, 4)}
    try:
        from antialiased_cnns import BlurPool

        made |= {f"antialiased-cnns, {taps} taps": BlurPool(3, filt_size=taps) for taps in (3, 4)}
    except ImportError:
        pass
    try:
        from kornia.filters import BlurPool2D

        made |= {f"kornia, {taps} taps": BlurPool2D(taps) for taps in (3, 4)}
    except ImportError:
        pass
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
    yield f"| pool | {' | '.join(f'{size}x{size}' for size in SIZES)} |"
    yield f"|{'---|' * (len(SIZES) + 1)}"
    for name, pool in pools().items():
        errors = (worst(pool, size) for size in SIZES)
        yield f"| {name} | {' | '.join('0' if error == 0 else f'{error:.1g}' for error in errors)} |"
