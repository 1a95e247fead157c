r"""A model between what it is and an equivariant one: its weights are drawn towards the nearest tied ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from equilayers._checks import refuse
from equilayers.convert._equivariant.fiber_layers import FiberMean, FiberOutputs
from equilayers.convert._equivariant.softness import Soft, classes_of
from equilayers.convert._equivariant.to_equivariant import to_equivariant
from equilayers.convert._report import Report, copied
from equilayers.groups import Group, as_group

ModelT = TypeVar("ModelT", bound=nn.Module)


def soften(model: nn.Module, group: Group | str, x: Tensor | None = None) -> tuple[nn.Module, Report]:
    r"""A copy of the model whose weights can be drawn towards equivariant ones, by `set_softness`.

    `W_s = P W + s (W - P W)` for every weight that `to_equivariant` ties, P W the nearest tied one and W what is
    trained. At softness s = 1 it is the model as it is; at 0 it computes what `to_equivariant(model, group,
    from_weights=True)` does, but for what subsamples and for statistics of channels, which that one replaces.
    `to_equivariant(soft, group, from_weights=True)` makes the fast one of it.

    Args:
        model: as of `to_equivariant`. Not changed.
        group: as there, exact.
        x: as there.

    Returns:
        The model, of softness 1, and the report of `to_equivariant` with `from_weights=True`: what it refuses, and
        filters that it enlarges, stay as they are.

    Raises:
        TypeError, ValueError: as `to_equivariant`.

    Law: of a layer `x -> W_s x` the error `|W_s g x - g W_s x|` is at most `2 s ||W - P W|| |x|`: `softness_bounds`.

    Source: Reynolds operator: Derksen and Kemper, Computational Invariant Theory, section 2.2; drawing pretrained
        weights towards its image: arXiv:2603.26657.
    """
    group = as_group("soften", group, exact=True)
    tied, report = to_equivariant(model, group, x, from_weights=True)
    soft = copied("soften", model)
    root = tied.model if isinstance(tied, FiberOutputs) else tied
    if type(tied) is nn.Sequential and isinstance(tied[-1], FiberMean):
        root = tied[0]
    replaced = {entry.path for entry in report.of("replaced")}
    for path, module in list(soft.named_modules()):
        made = root.get_submodule(path)
        classes = classes_of(made) if path in replaced else {}
        if is_parametrized(made):  # numbers that meet features
            tables = made.parametrizations.items()  # type: ignore[operator,union-attr]
            classes |= {name: chain[0].classes for name, chain in tables if hasattr(chain[0], "classes")}
        for name, table in classes.items():
            inner, _, last = name.rpartition(".")
            owner = module.get_submodule(inner)
            if getattr(owner, last).shape == table.shape:
                register_parametrization(owner, last, Soft(table.to(getattr(owner, last).device)))
    return soft, report


def set_softness(model: ModelT, softness: float) -> ModelT:
    r"""Set how far the weights of a softened model are from equivariant ones.

    Args:
        model: of `soften`, or with one in it.
        softness: from 1, the weights as they are, to 0, the nearest equivariant ones.

    Returns:
        The model itself, changed in place.

    Raises:
        ValueError: a softness out of [0, 1], or a model without soft weights.
    """
    caller = "set_softness"
    if not 0 <= softness <= 1:
        refuse(caller, "softness in [0, 1]", softness, "At 1 weights are as they are, at 0 equivariant.")
    found = [part for part in model.modules() if isinstance(part, Soft)]
    if not found:
        refuse(caller, "a model with soft weights", type(model).__name__, "Make one with soften(model, group, x).")
    for part in found:
        part.softness = float(softness)
    return model


@torch.no_grad()
def softness_bounds(model: nn.Module) -> dict[str, float]:
    r"""How unequivariant each layer of a softened model can be: `2 s ||W - P W||` by the path of its weight.

    Operator norms: of matrices the largest singular value, of filters the sum of it over the taps; Euclidean norms of
    everything else, such as biases and embeddings.

    Args:
        model: of `soften`.

    Returns:
        The bounds, in the order of `named_modules`.

    Law: `|W_s g x - g W_s x| <= bound |x|` for every element g and every x; 0 at softness 0.
    """
    return {
        name: 2 * soft.softness * _norm(owner, weight - soft.nearest(weight))
        for name, owner, soft, weight in _soft(model)
    }


def _soft(model: nn.Module) -> Iterator[tuple[str, nn.Module, Soft, Tensor]]:
    r"""The name, owner, parametrisation and free weight of everything soft."""
    for path, module in model.named_modules():
        chains: Any = getattr(module, "parametrizations", {})
        for name, chain in chains.items() if is_parametrized(module) else ():
            if isinstance(chain[0], Soft):
                yield f"{path}.{name}".lstrip("."), module, chain[0], chain.original


def _norm(owner: nn.Module, rest: Tensor) -> float:
    if isinstance(owner, nn.Linear | nn.MultiheadAttention) and rest.ndim == 2:
        return float(torch.linalg.matrix_norm(rest.double(), 2))
    if isinstance(owner, nn.Conv2d | nn.ConvTranspose2d) and rest.ndim == 4:
        return float(torch.linalg.matrix_norm(rest.double().permute(2, 3, 0, 1), 2).sum())
    return float(rest.double().norm())
