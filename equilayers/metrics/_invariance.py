r"""Measures of invariance on the outputs of any model."""

from __future__ import annotations

from torch import Tensor

from equilayers.groups import Group
from equilayers.metrics._forms import agreement, distribution_gap, logit_gap, normalized_logit_gap
from equilayers.metrics._orbit import Model, orbit_total


def logit_invariance_error(
    model: Model,
    x: Tensor,
    group: Group | str,
    *,
    normalized: bool = False,
    batch_size: int | None = None,
    include_identity: bool = False,
) -> Tensor:
    r"""LI: how far the logits move when the input does.

    `LI = mean of 1/2 ||f(x) - f(gx)||^2` over samples and g; normalized: `mean of ||f(x) - f(gx)||^2 / ||f(x)||^2`.

    Args:
        model: any callable from (B, ...) to logits (B, K); a module is run in eval mode and put back afterwards.
        x: inputs (B, ...), floating-point, that the group acts on.
        group: the symmetry.
        normalized: divide by the size of the output, so that a small output cannot pass for an invariant one.
        batch_size: samples per call of the model, a bound on memory; all at once when None. Each element of the group
            is a call of its own, on a batch of one shape, so that an exact model is reported as exact.
        include_identity: count g = e, whose error is 0, among the elements averaged over.

    Returns:
        Scalar tensor of the dtype of the logits, in squared logits (or a ratio), on the device of x. 0 exactly for a
        bitwise invariant model; NaN when an output is NaN or there is no sample.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group does not act on x, is trivial, or the model does not return (B, K).

    Source: Moskalev et al. 2023, Eq. 2 (arXiv:2308.03904).
    """
    compare = normalized_logit_gap if normalized else logit_gap
    return orbit_total(
        "logit_invariance_error", model, x, group, compare, batch_size=batch_size, include_identity=include_identity
    ).mean()


def distribution_invariance_error(
    model: Model, x: Tensor, group: Group | str, *, batch_size: int | None = None, include_identity: bool = False
) -> Tensor:
    r"""DI: how far the predicted distribution moves when the input does.

    `DI = mean of KL(softmax f(x) || softmax f(gx))` over samples and g, in nats, computed from log-softmax.

    Args:
        model: any callable from (B, ...) to logits (B, K).
        x: inputs (B, ...), floating-point, that the group acts on.
        group: the symmetry.
        batch_size: samples per call of the model; all at once when None.
        include_identity: count g = e as well.

    Returns:
        Scalar tensor in nats, of the dtype of the logits, on the device of x.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group does not act on x, is trivial, or the model does not return (B, K).

    Source: Moskalev et al. 2023, Eq. 1 (arXiv:2308.03904).
    """
    caller = "distribution_invariance_error"
    return orbit_total(
        caller, model, x, group, distribution_gap, batch_size=batch_size, include_identity=include_identity
    ).mean()


def prediction_consistency(
    model: Model, x: Tensor, group: Group | str, *, batch_size: int | None = None, include_identity: bool = False
) -> Tensor:
    r"""How often the predicted class of gx is that of x, a fraction in 0..1.

    Args:
        model: any callable from (B, ...) to logits (B, K).
        x: inputs (B, ...), floating-point, that the group acts on.
        group: the symmetry.
        batch_size: samples per call of the model; all at once when None.
        include_identity: count g = e as well.

    Returns:
        Scalar tensor of the dtype of the logits, on the device of x; NaN when an output is NaN.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group does not act on x, is trivial, or the model does not return (B, K).
    """
    return orbit_total(
        "prediction_consistency", model, x, group, agreement, batch_size=batch_size, include_identity=include_identity
    ).mean()
