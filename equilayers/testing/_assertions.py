r"""Assertions of invariance and equivariance for any model, with a diagnosis when they fail."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from equilayers.groups import Group
from equilayers.testing._check import require
from equilayers.testing._comparison import Output, compare
from equilayers.testing._diagnosis.actions import invariant
from equilayers.testing._execution import Model
from equilayers.testing._inputs import Given, How, Names


def invariance_error(
    model: Model, x: Given, group: Group | str, *, moving: Names = None, input: How = "image"
) -> Tensor:
    r"""The largest absolute entry of `f(gx) - f(x)` over samples, outputs and elements.

    Args:
        model: any callable from (B, ...) to a tensor (B, ...), or to something with `logits`.
        group: the symmetry.
        x: inputs (B, ...), floating-point, moved to the model's device and dtype; several as for `assert_invariant`.
        moving: which of several inputs move, as for `assert_invariant`.
        input: how they move, as for `assert_invariant`.

    Returns:
        Scalar tensor, float64, in units of the output. 0 exactly for a bitwise invariant model.

    Raises:
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group does not act on x, or is trivial.
    """
    how: dict[str, Any] = {"moving": moving, "input": input, "bitwise": True, "diagnose": False}
    found = compare("invariance_error", model, x, group, invariant(), **how)
    return torch.tensor(found.error, dtype=torch.float64, device="cpu")


def assert_invariant(
    model: Model,
    x: Given,
    group: Group | str,
    *,
    moving: Names = None,
    input: How = "image",
    bitwise: bool = False,
    tolerance: float | None = None,
    atol: float | None = None,
    diagnose: bool = True,
) -> None:
    r"""Assert `f(gx) = f(x)` for every g.

    A module is run in eval mode, without gradients, without TF32, on its own device and in its own dtype, and put back.

    Args:
        model: any callable from (B, ...) to a tensor (B, ...), to something with `logits`, or to dictionaries,
            sequences, dataclasses or arrays, of which each tensor is judged and named in the message. It gets copies
            of x, and its outputs are copied.
        x: inputs (B, ...), floating-point, that the group acts on. With two samples or more it is tried as well
            whether they influence each other. A list or tuple is taken as several arguments, a dictionary as arguments
            by name, or as it is where the model has no arguments of these names.
        group: the symmetry, of more than one element.
        moving: which of several inputs the group moves, by place or name; when None, all images (B, C, H, W) that it
            acts on, and what else is as large as the first of them in the last axes, such as a mask (B, H, W).
        input: how those that move do so: "image" (last axes), "regular" (fiber on axis 2), "vector" (vectors of the
            plane, as the outputs of `assert_equivariant`), or a function of g and the input.
        bitwise: ask for equality to the last bit.
        tolerance: largest error relative to the size of the output, channel by channel, so that one large constant
            hides no error; when None, 32·eps of the dtype times the number of modules with parameters. Where that is
            not small beside what noise changes, as in half precision, a copy in float64 is judged instead.
        atol: largest absolute error, added to that of `tolerance`; alone when tolerance is None.
        diagnose: when it fails, say whether the cause is numerical or structural and which module it is.

    Raises:
        AssertionError: it does not hold, with the worst element, sample and output, the error, and the diagnosis; or
            nothing was shown, since the inputs do not move, the output is the same for every input or not finite, or
            the tolerance is as large as what noise changes.
        RuntimeError: the model raised an exception, which is its cause.
        TypeError: x is not floating-point, or group is no group.
        ValueError: the group does not act on x, or is trivial.
    """
    __tracebackhide__ = True
    options: dict[str, Any] = {
        "moving": moving,
        "input": input,
        "bitwise": bitwise,
        "tolerance": tolerance,
        "atol": atol,
        "diagnose": diagnose,
    }
    check = compare("assert_invariant", model, x, group, invariant(), **options)
    require(check, "assert_invariant", model, group)


def assert_equivariant(
    model: Model,
    x: Given,
    group: Group | str,
    *,
    moving: Names = None,
    input: How = "image",
    output: Output = "auto",
    bitwise: bool = False,
    tolerance: float | None = None,
    atol: float | None = None,
    diagnose: bool = True,
) -> None:
    r"""Assert `f(gx) = act(g, f(x))` for every g.

    Args:
        model: as for `assert_invariant`.
        group: the symmetry, of more than one element.
        x: inputs (B, ...), floating-point, that the group acts on; several as for `assert_invariant`.
        moving: as for `assert_invariant`.
        input: as for `assert_invariant`.
        output: how the output moves: "image" (last axes), "regular" (fiber on axis 2), "vector", a function of g and
            the output, or "auto": regular where axis 2 of a 3-D or 5-D output has length |G|, otherwise image. Vectors
            of the plane are (..., 2) or (B, C, 2, N), and turn; of fields (B, 2, H, W) and (B, C, 2, H, W) the pixels
            move as well. Their components are (right, up); "vector:right-down" and "vector:down-right" are for others.
        bitwise: as for `assert_invariant`.
        tolerance: as for `assert_invariant`.
        atol: as for `assert_invariant`.
        diagnose: as for `assert_invariant`.

    Raises:
        AssertionError, TypeError, ValueError: as `assert_invariant`; ValueError also for an unknown output.
    """
    __tracebackhide__ = True
    options: dict[str, Any] = {
        "moving": moving,
        "input": input,
        "bitwise": bitwise,
        "tolerance": tolerance,
        "atol": atol,
        "diagnose": diagnose,
    }
    check = compare("assert_equivariant", model, x, group, output, **options)
    require(check, "assert_equivariant", model, group)
