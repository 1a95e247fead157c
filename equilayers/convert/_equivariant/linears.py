r"""What becomes of linear layers: on vectors, or on tokens."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from equilayers.convert._equivariant.conversion import AS_WIDE, Conversion
from equilayers.convert._equivariant.flows import LIFTED, Call
from equilayers.convert._equivariant.heads import PLACES, linear
from equilayers.convert._equivariant.labels import is_regular, whole_widths
from equilayers.convert._equivariant.ties import Tied, orbits
from equilayers.convert._equivariant.tokens import moved_linear, token_linear
from equilayers.convert._report import Outcome, Refused, Replaced


def any_linear(module: nn.Linear, call: Call, conversion: Conversion) -> Outcome:
    r"""A linear layer on pooled features, or on tokens: these from any permutation to whole fields, or to numbers."""
    if len(call.shape) < 3:
        return linear(module, call, conversion)
    n, width = conversion.group.order, module.in_features
    if call.input.kind == LIFTED and width > 1 and width % n and call.moves is None:
        return Refused(f"its {width} features are no whole fields of |G| = {n}: {whole_widths(width, n)} are")
    if call.moves is None:
        return Refused(PLACES, call.lost)
    if conversion.width != "equal-width":
        return Refused(AS_WIDE)
    if module.out_features % n or call.path in conversion.heads:
        return Replaced(_numbers(module, call.moves, conversion), "what it puts out is alike for all planes")
    if is_regular(conversion.group, call.moves):
        return token_linear(module, conversion)
    return moved_linear(module, call.moves, conversion)


def _numbers(module: nn.Linear, moves: Tensor, conversion: Conversion) -> nn.Linear:
    r"""The layer whose weight is alike for entries that the group exchanges: it puts out invariants."""
    made = copy.deepcopy(module)
    if not conversion.from_weights:
        made.reset_parameters()
    classes = orbits(moves.cpu()).to(module.weight.device)
    firsts = [int((classes == i).nonzero()[0]) for i in range(int(classes.max()) + 1)]
    drawn = made.weight.detach()[:, firsts]
    rows = torch.arange(len(made.weight), device=classes.device)[:, None]
    register_parametrization(made, "weight", Tied(rows * drawn.shape[1] + classes))
    if not conversion.from_weights:
        with torch.no_grad():  # numbers drawn as for a layer of as many entries
            made.parametrizations["weight"].original.copy_(drawn.flatten())  # type: ignore[index,union-attr]
    return made
