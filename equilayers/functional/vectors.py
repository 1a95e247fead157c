r"""Vectors of the plane in and out of regular features: lifting, linear and by convolution, and heads.

A vector feature is a plain tensor (B, C, 2, *S): vectors (B, C, 2), (B, C, 2, N), fields (B, C, 2, H, W). An element
turns the two components and moves the pixels, as `Group.act_vectors` does; (right, up) unless `axes` says otherwise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equilayers._checks import check_int, widened
from equilayers.functional._convolution.geometry import ConvSettings, Ints
from equilayers.functional.vector_maps import lift, lift_convolved, read_out, vector_conv_spec, vector_spec
from equilayers.groups import Group
from equilayers.groups.vectors import check_axes, check_vectors


def lift_vectors(
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    group: Group | str,
    *,
    axes: str = "right-up",
    algorithm: str = "bitwise",
) -> Tensor:
    r"""Lift vectors to regular features, at every position alike.

    `y[b, o, h, s] = sum_c <h · weight[o, c], v[b, c, :, s]> + bias_o`, h · weight being the weight turned by h.

    Args:
        v: vectors (B, C, 2) or (B, C, 2, N), or fields (B, C, 2, H, W), floating-point.
        weight: (O, C, 2), of the dtype of v.
        bias: (O,) or None.
        group: CyclicRotation or Dihedral, or its name, "C4".
        axes: "right-up", "right-down" or "down-right"; see `Group.act_vectors`.
        algorithm: "bitwise" or "orbit" (one product for each element), "auto" or "dense" (one product in all).

    Returns:
        Regular feature (B, O, |G|, *S) of the dtype and device of v.

    Raises:
        TypeError: v is not floating-point or its dtype is not the weight's.
        ValueError: shapes that do not fit, a group without rotations, unknown axes or algorithm.

    Law: `lift_vectors(act_vectors(g, v)) == act_regular(g, lift_vectors(v))` for all g: bitwise with "bitwise" and
        "orbit" (CPU, float32 and float64), rounding otherwise.

    Source: Weiler and Cesa 2019, the maps between the standard and the regular representation (arXiv:1911.08251).
    """
    return lift("lift_vectors", v, weight, bias, vector_spec("lift_vectors", group, axes, algorithm))


def lift_vectors_conv2d(
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    group: Group | str,
    *,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    axes: str = "right-up",
    algorithm: str = "auto",
) -> Tensor:
    r"""Lifting convolution of vector fields: the field correlated with every rotation of the filter, itself a field.

    `y[b, o, h] = corr(h · weight_o, v_b) + bias_o`, h moving the pixels of the filter and turning its components.

    Args:
        v: fields (B, C, 2, H, W), floating-point.
        weight: (O, C / groups, 2, kh, kw), of the dtype of v.
        bias: (O,) or None.
        group: CyclicRotation or Dihedral, or its name, "C4".
        stride: pixels between samples, as of `equilayers.functional.lift_conv2d`.
        padding: pixels on every side.
        dilation: pixels between taps.
        groups: channel groups.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        axes: "right-up", "right-down" or "down-right"; see `Group.act_vectors`.
        algorithm: "auto" or "dense" (one convolution with the expanded filter), "bitwise" or "orbit" (one for each
            element).

    Returns:
        Regular feature (B, O, |G|, H', W') of the dtype and device of v.

    Raises:
        TypeError: v is not floating-point or its dtype is not the weight's.
        ValueError: as `lift_conv2d`, or unknown axes.

    Law: `lift_vectors_conv2d(act_vectors(g, v)) == act_regular(g, lift_vectors_conv2d(v))` for all g, at every size
        that is accepted: bitwise with "bitwise" and "orbit" (CPU, float32 and float64), rounding otherwise.

    Source: Weiler and Cesa 2019 (arXiv:1911.08251).
    """
    caller, size = "lift_vectors_conv2d", weight.shape[-2:]
    given = ConvSettings(True, group, size, stride, padding, dilation, groups, padding_mode, algorithm)
    return lift_convolved(caller, v, weight, bias, vector_conv_spec(caller, given, axes))


def regular_to_vectors(
    f: Tensor,
    weight: Tensor,
    group: Group | str,
    *,
    axes: str = "right-up",
    order: int = 1,
    algorithm: str = "bitwise",
) -> Tensor:
    r"""Vectors from regular features: two numbers from each plane, in its own frame, turned back and averaged.

    `v[b, o, :, s] = 1/|G| sum_{c,h} h · weight[o, c] f[b, c, h, s]`, h · weight being the weight turned by h.

    Args:
        f: regular feature (B, C, |G|, *S), floating-point: vectors, tokens (B, C, |G|, N), maps (B, C, |G|, H, W).
        weight: (O, C, 2), of the dtype of f. There is no bias: no vector but zero stays where it is.
        group: CyclicRotation or Dihedral, or its name, "C4".
        axes: "right-up", "right-down" or "down-right"; see `Group.act_vectors`.
        order: m, for what turns m times as fast, (cos m·a, sin m·a).
        algorithm: as of `lift_vectors`.

    Returns:
        Vectors (B, O, 2, *S) of the dtype and device of f.

    Raises:
        TypeError: f is not floating-point or its dtype is not the weight's.
        ValueError: shapes that do not fit, a group without rotations, unknown axes or algorithm, order below 1.

    Law: `regular_to_vectors(act_regular(g, f)) == act_vectors(g, regular_to_vectors(f))` for all g (order 1): bitwise
        with "bitwise" and "orbit" (CPU, float32 and float64), rounding otherwise.

    Source: Weiler and Cesa 2019, the maps between the regular and the standard representation (arXiv:1911.08251).
    """
    spec = vector_spec("regular_to_vectors", group, axes, algorithm, order)
    return read_out("regular_to_vectors", f, weight, spec)


def vector_norm(v: Tensor) -> Tensor:
    r"""The lengths of vectors, (B, C, 2, *S) to (B, C, *S), which the group leaves alone.

    Raises:
        TypeError: v is not floating-point.
        ValueError: axis 2 does not hold two components.

    Law: `vector_norm(act_vectors(g, v)) == act(g, vector_norm(v))`, bitwise. The gradient at zero is zero.
    """
    first, second = widened(check_vectors("vector_norm", v)).unbind(2)
    squares = first * first + second * second  # two products and a sum, which commutes
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), squares).to(v.dtype)


def vector_angle(v: Tensor, *, order: int = 1, axes: str = "right-up") -> Tensor:
    r"""The angles of vectors in radians, counter-clockwise from the right: (B, C, 2, *S) to (B, C, *S).

    Args:
        v: vectors (B, C, 2, *S), floating-point.
        order: m, of vectors that turn m times as fast, (cos m·a, sin m·a): then a in [-pi/m, pi/m].
        axes: of the components.

    Returns:
        Angles of the dtype and device of v; 0, with a gradient of zero, for the vector zero, which has none.

    Raises:
        TypeError: v is not floating-point, or order no int.
        ValueError: axis 2 does not hold two components, unknown axes, order below 1.

    Law: a rotation by an angle b adds b, and a mirror left-right takes a to pi - a, modulo 2·pi/m, to rounding.
    """
    caller = "vector_angle"
    check_int(caller, "order", order, 1)
    first, second = widened(check_vectors(caller, v)).unbind(2)
    right, up = {"right-up": (first, second), "right-down": (first, -second)}.get(
        check_axes(caller, axes), (second, -first)
    )
    nowhere = (right == 0) & (up == 0)
    right, up = right.masked_fill(nowhere, 1.0), up.masked_fill(nowhere, 0.0)
    return (torch.atan2(up, right) / order).to(v.dtype)


__all__ = ["lift_vectors", "lift_vectors_conv2d", "regular_to_vectors", "vector_angle", "vector_norm"]
