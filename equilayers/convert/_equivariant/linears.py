r"""What becomes of linear layers: on vectors, or on tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from equilayers.convert._equivariant.conversion import Conversion
from equilayers.convert._equivariant.dataflow import LIFTED, Call
from equilayers.convert._equivariant.heads import PLACES, linear
from equilayers.convert._equivariant.labels import regular, whole_widths
from equilayers.convert._equivariant.ties import Tied, Ties
from equilayers.convert._report import Outcome, Refused, Replaced


def any_linear(module: nn.Linear, call: Call, conversion: Conversion) -> Outcome:
    r"""A linear layer on pooled features, or on tokens."""
    return token_linear(module, call, conversion) if len(call.shape) > 2 else linear(module, call, conversion)


def token_linear(module: nn.Linear, call: Call, conversion: Conversion) -> Outcome:
    r"""A linear layer at every token alike, from whatever permutation of its input to whole fields, or to numbers."""
    n, width = conversion.group.order, module.in_features
    if call.input.kind == LIFTED and width % n and call.moves is None:
        return Refused(f"its {width} features are no whole fields of |G| = {n}: {whole_widths(width, n)} are")
    if call.moves is None:
        return Refused(call.lost or PLACES)
    if conversion.width != "equal-width":
        return Refused("on tokens only width='equal-width' is known: views between have their widths written down")
    fibered = module.out_features % n == 0 and call.path not in conversion.images
    rows = [regular(conversion.group, g, module.out_features) for g in range(n)]
    out = torch.stack(rows) if fibered else torch.arange(module.out_features).expand(n, -1)
    return Replaced(_tied(module, out, call.moves, conversion))


def _tied(module: nn.Linear, rows: Tensor, columns: Tensor, conversion: Conversion) -> nn.Linear:
    r"""The layer with `W[rows_g o, columns_g i] == W[o, i]`."""
    made = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    made.to(module.weight.device, module.weight.dtype)
    ties = Ties(made.parameters())
    for rows_g, columns_g in zip(rows, columns, strict=True):
        numbers = ties.label(made.weight).sources[0]
        ties.tie(numbers, numbers[rows_g[:, None], columns_g[None]])
        if made.bias is not None:
            numbers = ties.label(made.bias).sources[0]
            ties.tie(numbers, numbers[rows_g])
    for name, parameter in list(made.named_parameters()):
        classes = ties.classes(parameter).to(parameter.device)
        if conversion.from_weights:
            with torch.no_grad():
                parameter.copy_(getattr(module, name))
        first = parameter.detach().flatten()[_firsts(classes)].clone()
        register_parametrization(made, name, Tied(classes))
        if not conversion.from_weights:
            with torch.no_grad():
                made.parametrizations[name].original.copy_(first)  # type: ignore[union-attr,operator]
    return made


def _firsts(classes: Tensor) -> Tensor:
    r"""An entry of each class."""
    flat = classes.flatten()
    return torch.empty(int(flat.max()) + 1, dtype=torch.long, device=flat.device).index_copy_(
        0, flat, torch.arange(len(flat), device=flat.device)
    )
