r"""What a model looks at, and whether that moves along with the input."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import check_batch, check_model, check_tensor, refuse
from equilayers._modules import Model, evaluation
from equilayers.groups import CyclicTranslation, DirectProduct, Group, PermutationGroup
from equilayers.metrics._invariance import cosine
from equilayers.metrics._orbit import (
    Total,
    chunks,
    compared_elements,
    group_in_order,
    logits_of,
    outside_inference,
)

Saliency = Callable[..., Tensor]
ORDER = "(model, x, target, group)"


def integrated_gradients_saliency(
    model: Model, x: Tensor, target: Tensor, group: Group | str, *, steps: int = 50, threshold: float = 0.9
) -> Tensor:
    r"""The study's saliency map: integrated gradients, thresholded and smoothed.

    `m = smooth(|IG(x)| where |IG(x)| >= threshold · max |IG(x)|, else 0)`, the maximum taken per sample, `smooth` a
    Gaussian of 3x3 pixels and sigma 1 with a padding that commutes with the group: circular for translations, zeros
    otherwise; vectors that are permuted are not smoothed.

    Args:
        model: any differentiable callable from (B, ...) to logits (B, K).
        x: inputs (B, ..., H, W) or flat (B, n), floating-point.
        target: classes (B,), int64, whose logit is explained.
        group: the symmetry that smoothing has to commute with.
        steps: points of the path integral from the zero image to x.
        threshold: share of the map's maximum under which a value is set to 0.

    Returns:
        Maps of the shape, dtype and device of x, non-negative.

    Raises:
        ImportError: captum is not installed.
        TypeError: x is not floating-point, or group is no group.

    Law: `m(act(g, x)) == act(g, m(x))` for a model that is invariant, up to rounding.

    Source: Sundararajan et al. 2017 (arXiv:1703.01365), by captum; Moskalev et al. 2023, section 4 (arXiv:2308.03904).
    """
    caller = "integrated_gradients_saliency"
    group = group_in_order(caller, group, ORDER)
    check_batch(caller, x)
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        hint = "Run pip install 'equilayers[saliency]'."
        raise ImportError(f"{caller}: expected captum to be installed. {hint}", name="captum") from error
    if len(x) == 0:
        return torch.zeros_like(x)
    with evaluation(model), torch.inference_mode(False), torch.enable_grad():

        def explained(x: Tensor) -> Tensor:
            y = logits_of(caller, model, x)
            if not y.requires_grad:
                hint = "It may be detached, rounded or an argmax on the way."
                refuse(
                    caller, "a model whose output depends on x by differentiable steps", "one without a gradient", hint
                )
            return y

        attribution = IntegratedGradients(explained).attribute(
            outside_inference(x).detach(), target=target.long(), n_steps=steps
        )
    map_ = attribution.detach().abs().to(x.dtype)
    top = map_.flatten(1).amax(1).reshape(-1, *[1] * (x.ndim - 1))
    map_ = torch.where(map_ < threshold * top, 0, map_)
    return map_ if _permutes(group) else smooth(map_, circular=_shifts(group))


def smooth(x: Tensor, *, circular: bool) -> Tensor:
    r"""Gaussian blur of sigma 1: 3x3 pixels on images (B, ..., H, W), 3 on flat vectors (B, n).

    Law: commutes bitwise with quarter turns and mirrors, and with shifts where `circular`: neighbours that a symmetry
        exchanges are added to each other first.
    """
    edge = math.exp(-0.5)
    mode = "circular" if circular else "constant"
    if x.ndim == 2:
        p = F.pad(x[:, None], (1, 1), mode=mode)[:, 0]
        return (x + edge * (p[..., :-2] + p[..., 2:])) / (1 + 2 * edge)
    p = F.pad(x.reshape(-1, 1, *x.shape[-2:]), (1, 1, 1, 1), mode=mode)
    p = p.reshape(*x.shape[:-2], *p.shape[-2:])
    up, down, left, right = p[..., :-2, 1:-1], p[..., 2:, 1:-1], p[..., 1:-1, :-2], p[..., 1:-1, 2:]
    corners = (p[..., :-2, :-2] + p[..., 2:, 2:]) + (p[..., :-2, 2:] + p[..., 2:, :-2])
    return (x + edge * ((up + down) + (left + right)) + edge**2 * corners) / (1 + 2 * edge) ** 2


def saliency_invariance_similarity(
    model: Model,
    x: Tensor,
    target: Tensor,
    group: Group | str,
    *,
    saliency: Saliency = integrated_gradients_saliency,
    batch_size: int | None = None,
    include_identity: bool = False,
) -> Tensor:
    r"""SI: whether the model looks at the same thing when the input moves.

    `SI = mean of cos(m(x), g^-1 · m(gx))` over samples and g. 1 for an invariant model; a model that has learned every
    orientation separately stays well below.

    Args:
        model: any differentiable callable from (B, ...) to logits (B, K); run in eval mode and put back afterwards.
        x: inputs (B, ...), floating-point, that the group acts on.
        target: classes (B,), int64, whose logit is explained, the same for the whole orbit.
        group: the symmetry.
        saliency: `saliency(model, x, target, group)` or `saliency(model, x, target)`, maps that the group acts on.
        batch_size: samples per call of `saliency`, a bound on memory; all at once when None.
        include_identity: count g = e, whose similarity is 1.

    Returns:
        Scalar tensor of the dtype and device of x. Two zero maps are alike (1), a zero map and another are not (0);
        NaN when a map is NaN or there is no sample.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group does not act on x or is trivial, or target does not fit.

    Source: Moskalev et al. 2023, Eq. 3 (arXiv:2308.03904).
    """
    caller = "saliency_invariance_similarity"
    return saliency_total(caller, model, x, target, group, saliency, batch_size, include_identity).value()


def saliency_total(
    caller: str,
    model: Model,
    x: Tensor,
    target: Tensor,
    group: Group | str,
    saliency: Saliency,
    batch_size: int | None,
    include_identity: bool,
) -> Total:
    r"""The sum behind `saliency_invariance_similarity`."""
    check_model(caller, model)
    group, elements = compared_elements(caller, group, include_identity, ORDER)
    parts = chunks(caller, x, batch_size)
    target = check_tensor(caller, "target", target)
    if target.shape != x.shape[:1] or target.is_floating_point():
        got = f"{tuple(target.shape)}, {target.dtype}"
        refuse(caller, f"target of shape ({len(x)},) and an integer dtype", got, "Pass one class per sample.")
    explain = _with_group(saliency, group)
    with evaluation(model), torch.inference_mode(False), torch.enable_grad():
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        target = outside_inference(target).long()
        parts = [outside_inference(part) for part in parts]
        for part, classes in zip(parts, target.split([len(p) for p in parts]), strict=True):
            reference = explain(model, part, classes).detach()
            for g in elements:
                moved = explain(model, group.act(g, part), classes).detach()
                total = total + cosine(reference, group.act(group.inverse(g), moved)).sum()
    return Total(total, len(x) * len(elements), x.dtype)


def _with_group(saliency: Saliency, group: Group) -> Saliency:
    r"""Call it with the group when it asks for one: by that name, or by a fourth argument without a default."""
    try:
        parameters = list(inspect.signature(saliency).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        return saliency
    named = [p for p in parameters if p.name == "group"]
    if named and named[0].kind is inspect.Parameter.KEYWORD_ONLY:
        return lambda model, x, target: saliency(model, x, target, group=group)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    fourth = positional[3] if len(positional) > 3 else None
    if fourth is None or not (fourth.name == "group" or fourth.default is inspect.Parameter.empty):
        return saliency
    return lambda model, x, target: saliency(model, x, target, group)


def _shifts(group: Group) -> bool:
    if isinstance(group, DirectProduct):
        return _shifts(group.first) or _shifts(group.second)
    return isinstance(group, CyclicTranslation)


def _permutes(group: Group) -> bool:
    if isinstance(group, DirectProduct):
        return _permutes(group.first) or _permutes(group.second)
    return isinstance(group, PermutationGroup)
