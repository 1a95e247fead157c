r"""Whether a converted model is what it should be, seen by running it."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from equilayers._modules import tensors
from equilayers.convert._equivariant.flows import Dataflow
from equilayers.convert._report import Refused
from equilayers.groups import Group
from equilayers.metrics import equivariance_gaps
from equilayers.testing import locate_breaks

# Errors by how much the outputs differ from sample to sample, and by the largest output.
LIMITS = {torch.float64: (1e-6, 1e-11), torch.float32: (1e-3, 1e-5)}
FAINT = {torch.float64: 1e-9}  # outputs that differ by less, by their size, say the same of every input; else 1e-3
NAMED = 8  # places in the report
SCALES = (1.0, 1 / 32, 32.0, 1024.0)  # of images
DRAWS = 4  # of weights, until something is let through
DEAF = (
    "nothing shown: its output is the same for every input, noise included, with several draws of weights and batch "
    "statistics of x. Pass other images as x, or train it and check it with equilayers.testing"
)


def shortcoming(
    made: nn.Module, group: Group, x: Tensor, flow: Dataflow, *, places: bool = True
) -> list[tuple[str, str, Refused]]:
    r"""What is wrong with the converted model: path, description, reason of the whole and of its places.

    In float64 where it runs in that: it has to run, to put out what has the shapes of before, and that has to be an
    image that moves with x where it has two axes of space, and not to move where it has none. Outputs that are the same
    for every input show nothing: then other weights are tried. What is not known of every entry is tried on fainter and
    stronger images too.
    """
    problem, scales = None, (1.0,) if flow.known else SCALES
    for dtype in (torch.float64, x.dtype):
        try:
            wide, inputs = copy.deepcopy(made).eval().to(dtype), x.to(dtype)
            for draw in range(DRAWS):
                if draw:
                    _redrawn(wide, draw)
                problem, deaf = _run(wide, inputs, group, flow.shapes, scales)
                if problem is not None:
                    return [("", "", problem), *(_places(wide, inputs, group) if places else ())]
                if not deaf:
                    return []
            return [("", "", Refused(DEAF))]
        except Exception as error:  # a model of others may raise anything
            problem = Refused(f"it does not run any more: {_first_line(error)}")
    return [("", "", problem)] if problem is not None else []


@torch.no_grad()
def _run(
    made: nn.Module, x: Tensor, group: Group, shapes: list[torch.Size], scales: tuple[float, ...]
) -> tuple[Refused | None, bool]:
    r"""What is wrong, and whether all outputs are the same for every input, noise included."""
    _shaken(made)
    _settle(made, x)
    elements = (0, *group.generating_set())
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(x)
    plain, problem, deaf = list(tensors(made(x.clone()))), None, True
    for scale in scales:
        # With noise: zeros and other images that do not move show nothing.
        y, *moved = (list(tensors(made(group.act(g, (x + noise) * scale).clone()))) for g in elements)
        if scale == 1:
            deaf = all(_alike(before, after) for before, after in zip(plain, y, strict=True))
        if scale == 1 or all(bool(t.isfinite().all()) for t in y):
            problem = problem or _compared(group, elements[1:], y, moved, shapes)
    return problem, deaf


def _alike(before: Tensor, after: Tensor) -> bool:
    change = max(float((t - before).abs().max()) for t in (after, before[:1].expand_as(before)))
    return change <= FAINT.get(before.dtype, 1e-3) * float(before.abs().max())


def _redrawn(model: nn.Module, seed: int) -> None:
    r"""Other random weights, where a module knows how to draw them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            if callable(draw := getattr(module, "reset_parameters", None)):
                draw()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _places(made: nn.Module, x: Tensor, group: Group) -> list[tuple[str, str, Refused]]:
    r"""Where the converted model loses the symmetry."""
    try:
        found = locate_breaks(made, x[:2], group)
    except Exception as error:  # what is wrong has been said
        return [("", "", Refused(f"no place was found: {_first_line(error)}"))]
    found = [lost for lost in found if lost.kind != "numerical"][:NAMED]
    return [(lost.path, lost.description, Refused(f"{lost.why}: {lost.suggestion}")) for lost in found]


def _shaken(model: nn.Module) -> None:
    r"""A little noise on every parameter: what begins at zeros or ones shows nothing of how it is tied."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter)
            parameter.add_(noise * 0.05 * (parameter.abs().mean() + 0.1))


def _settle(model: nn.Module, x: Tensor) -> None:
    r"""Running statistics as after a training: with those of an untrained network little of the input may be left."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None
        norm.train()
    with contextlib.suppress(ValueError):  # a single number has no statistics
        model(x.clone())
    for norm in norms:
        norm.eval()


def _compared(
    group: Group, elements: tuple[int, ...], y: list[Tensor], moved: list[list[Tensor]], shapes: list[torch.Size]
) -> Refused | None:
    for tensor, shape in zip(y, shapes, strict=True):
        if tensor.shape != shape:
            return Refused(f"it puts out {tuple(tensor.shape)} where it was {tuple(shape)}")
    for number, before in enumerate(y):
        size = float(before.abs().max()) if before.numel() else 0.0
        spread = float((before - before[:1]).abs().max()) if len(before) > 1 else size
        by_spread, by_size = LIMITS.get(before.dtype, (0.1, 0.1))
        act = group.act if before.ndim == 4 else lambda g, y: y  # noqa: ARG005
        pairs = zip(elements, (outputs[number] for outputs in moved), strict=True)
        gaps = equivariance_gaps("to_equivariant", act, before, pairs)
        off = max((float(gap.max()) for gap in gaps if gap.numel()), default=0.0)
        if not off <= max(by_spread * spread, by_size * size):
            what = "an image that moves with the input" if before.ndim == 4 else "the same for moved inputs"
            much = f"off by {off:.1g}, where outputs of other samples differ by {spread:.1g}"
            return Refused(f"what it puts out is not {what}: {much}")
    return None
