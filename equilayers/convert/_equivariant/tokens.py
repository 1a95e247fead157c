r"""What becomes of layers on tokens (..., C·|G|) whose fibers are innermost."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from equilayers.convert._equivariant.attention import FiberMultiheadAttention
from equilayers.convert._equivariant.conversion import AS_WIDE, WIDTHS, Conversion
from equilayers.convert._equivariant.flows import LIFTED, Call
from equilayers.convert._equivariant.heads import take_over
from equilayers.convert._equivariant.labels import is_regular
from equilayers.convert._equivariant.token_layers import FiberTokenLinear, TiedLinear
from equilayers.convert._report import CONTAINER, Kept, Outcome, Refused, Replaced, distance


def token_linear(module: nn.Linear, conversion: Conversion) -> Outcome:
    r"""A group linear layer at every token."""
    group, n = conversion.group, conversion.group.order
    problem = _not_whole(n, **{"in_features": module.in_features, "out_features": module.out_features})
    if problem is not None:
        return problem
    made = FiberTokenLinear(group, module.in_features // n, module.out_features // n, module.bias is not None)
    made.to(module.weight.device, module.weight.dtype)
    away = take_over(made, module.weight, module.bias) if conversion.from_weights else None
    return Replaced(made, distance=away)


def moved_linear(module: nn.Linear, permutations: Tensor, conversion: Conversion) -> Outcome:
    r"""A layer from entries that the group permutes so (|G|, in_features): pixels of a patch, places side by side."""
    problem = _not_whole(conversion.group.order, out_features=module.out_features)
    if problem is not None:
        return problem
    n, like = conversion.group.order, module.weight
    made = TiedLinear(conversion.group, permutations, module.out_features // n, module.bias is not None)
    made.to(like.device, like.dtype)
    away = None
    if conversion.from_weights:
        with torch.no_grad():
            blocks = like.unflatten(0, (-1, n))
            made.weight.copy_(torch.stack([blocks[:, h, p] for h, p in enumerate(made.permutations)]).mean(0))
            if module.bias is not None and made.bias is not None:
                made.bias.copy_(module.bias.unflatten(0, (-1, n)).mean(1))
            away = distance(like, made.expanded())
    return Replaced(made, "the group permutes what it reads", away)


def attention(module: nn.MultiheadAttention, call: Call, conversion: Conversion) -> Outcome:
    r"""Attention whose heads are whole fields."""
    n = conversion.group.order
    if call.input.kind != LIFTED:
        return Refused("it reads the image itself: make patches of it before", call.lost)
    if conversion.width != WIDTHS[0]:
        return Refused(AS_WIDE)
    if module.head_dim % n:
        width = math.ceil(module.head_dim / n) * n
        fits = [h for h in range(module.num_heads, 0, -1) if module.embed_dim % (h * n) == 0]
        fewer = f", or {fits[0]} heads" if fits else ""
        works = f"embed_dim={module.num_heads * width} works{fewer}"
        return Refused(f"|G| = {n} does not divide the {module.head_dim} channels of a head: {works}")
    problem = _not_whole(n, kdim=module.kdim, vdim=module.vdim)
    if problem is not None:
        return problem
    if call.moves is None or not is_regular(conversion.group, call.moves):
        return Refused("the channels that it reads are no whole fields", call.lost)
    made = FiberMultiheadAttention(conversion.group, module)
    return Replaced(made, distance=_take_over_attention(made, module) if conversion.from_weights else None)


def _take_over_attention(made: FiberMultiheadAttention, module: nn.MultiheadAttention) -> float:
    weights = module.in_proj_weight
    parts = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight) if weights is None else weights.chunk(3)
    biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    layers = (made.q_proj, made.k_proj, made.v_proj, made.out_proj)
    theirs = (*parts, module.out_proj.weight)
    away = [
        take_over(layer, weight, bias)
        for layer, weight, bias in zip(layers, theirs, (*biases, module.out_proj.bias), strict=True)
    ]
    with torch.no_grad():
        for ours, bias in ((made.bias_k, module.bias_k), (made.bias_v, module.bias_v)):
            if ours is not None and bias is not None:
                ours.copy_(bias.view(len(ours), -1).mean(1))
    squares = [float(weight.detach().square().sum()) for weight in theirs]
    return math.sqrt(sum(a * a * s for a, s in zip(away, squares, strict=True)) / max(sum(squares), 1e-300))


def encoder(module: nn.TransformerEncoder, call: Call, conversion: Conversion) -> Outcome:  # noqa: ARG001
    r"""Kept, without the nested tensors for which it reads the weights of its layers itself."""
    module.use_nested_tensor = False
    return Kept(CONTAINER)


def _not_whole(n: int, **widths: int) -> Refused | None:
    r"""Why these widths are no whole fields."""
    for name, width in widths.items():
        if width % n:
            return Refused(f"|G| = {n} does not divide {name}={width}: {math.ceil(width / n) * n} works")
    return None
