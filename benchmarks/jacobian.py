r"""`jacobian_spectral_norm` against the ways people write it: a loop over samples, vmap of jacrev, and scipy's svds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.common.tables import head_lines, row_line
from baselines.study.models import mlp
from benchmarks.conv import median
from benchmarks.timing import Call, in_turn, machine, thread_count, threads
from equilayers.metrics import jacobian_spectral_norm

LOOP, VMAP, SVDS = "loop over samples", "vmap(jacrev) + svdvals", "scipy svds"
GRAM, LANCZOS = "gram", "lanczos"
COLUMNS = (GRAM, LANCZOS, LOOP, VMAP, SVDS)


@dataclass(frozen=True)
class Case:
    r"""One comparison; svds takes minutes where the output is small, and the dense ways where it is large."""

    name: str
    samples: int
    names: tuple[str, ...]
    threads: int = 1

    def __str__(self) -> str:
        return f"{self.name}, {self.samples} samples, {thread_count(self.threads)}"


SMALL = (GRAM, LANCZOS, LOOP, VMAP)
CASES = [
    Case("MLP 1296 -> 9", 256, SMALL),
    Case("CNN 36x36 -> 9", 32, SMALL),
    Case("segmentation 3x64x64 -> 64x64", 4, (LANCZOS, SVDS)),
    Case("MLP 1296 -> 9", 256, SMALL, threads=2),
]


def model_of(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    r"""The model of a case, in eval mode, and the shape of a sample."""
    torch.manual_seed(0)
    if name.startswith("MLP"):
        return mlp((1, 36, 36), 9).eval(), (1, 36, 36)
    if name.startswith("CNN"):
        layers: list[nn.Module] = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 9)]
        return nn.Sequential(*layers).eval(), (1, 36, 36)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1), nn.Flatten(1)).eval(), (3, 64, 64)


def loop(model: nn.Module, x: Tensor) -> Tensor:
    r"""A Jacobian at a time."""
    rows = [torch.autograd.functional.jacobian(model, sample[None]).flatten(0, 1).flatten(1) for sample in x]
    return torch.stack([torch.linalg.svdvals(row)[0] for row in rows])


def vmapped(model: nn.Module, x: Tensor) -> Tensor:
    r"""All Jacobians at once, by function transforms."""
    rows = torch.func.vmap(torch.func.jacrev(lambda sample: model(sample[None])[0]))(x)
    return torch.linalg.svdvals(rows.flatten(2))[:, 0]


def by_svds(model: nn.Module, x: Tensor) -> Tensor:
    r"""ARPACK on products with the Jacobian, a sample at a time."""
    from scipy.sparse.linalg import LinearOperator, svds

    def norm(sample: Tensor) -> float:
        y, back = torch.func.vjp(model, sample[None])[:2]
        into = lambda v: torch.from_numpy(v).float().view(1, *sample.shape)  # noqa: E731
        operator = LinearOperator(
            (y.numel(), sample.numel()),
            matvec=lambda v: torch.func.jvp(model, (sample[None],), (into(v),))[1].flatten().numpy(),
            rmatvec=lambda u: back(torch.from_numpy(u).float().view_as(y))[0].flatten().numpy(),
            dtype="float32",
        )
        return float(svds(operator, k=1, return_singular_vectors=False, random_state=0)[0])

    return torch.tensor([norm(sample) for sample in x])


def competitors(case: Case) -> dict[str, Call]:
    r"""What is timed, by name."""
    model, shape = model_of(case.name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(case.samples, *shape)
    made: dict[str, Call] = {
        GRAM: lambda: jacobian_spectral_norm(model, x, "gram"),
        LANCZOS: lambda: jacobian_spectral_norm(model, x, "lanczos"),
        LOOP: lambda: loop(model, x),
        VMAP: lambda: vmapped(model, x),
        SVDS: lambda: by_svds(model, x),
    }
    return {name: made[name] for name in case.names}


def report(seconds: float) -> Iterator[str]:
    r"""The lines of a Markdown report, as they are measured."""
    yield f"Machine: {machine()}. Medians in ms, competitors timed in turn; the last columns say how many times as long"
    yield "the others take as `auto`, which is `gram` up to 64 outputs and `lanczos` above.\n"
    yield head_lines(["case", *COLUMNS, *(f"{name} / auto" for name in (LOOP, VMAP, SVDS))])
    for case in CASES:
        with threads(case.threads):
            timings = in_turn(competitors(case), seconds=seconds, warmup=1, rounds=5)
        auto = timings.get(GRAM, timings[LANCZOS]).median
        cells = [median(timings, name) for name in COLUMNS]
        cells += [f"{timings[name].median / auto:.1f}" if name in timings else "–" for name in (LOOP, VMAP, SVDS)]
        yield row_line([str(case), *cells])
