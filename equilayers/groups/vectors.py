r"""Vectors of the plane under rotations and mirrors: the two components, their order and signs, and how they turn.

Components are (right, up) unless `axes` says otherwise, so that a counter-clockwise turn by an angle a is the matrix
[[cos a, -sin a], [sin a, cos a]]. Of flows in pixels, whose second component runs down as rows do, the axes are
"right-down"; of (row, column) offsets "down-right".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from equilayers._checks import check_choice, check_float, refuse

Row = tuple[float, float]
Matrix = tuple[Row, Row]
Reading = tuple[int, bool]  # the axis of the two components, and whether the last two axes are a map

AXES = ("right-up", "right-down", "down-right")
NAMES = {"vector": "right-up", "vector:right-down": "right-down", "vector:down-right": "down-right"}  # of actions
IDENTITY: Matrix = ((1, 0), (0, 1))


def rotation_matrix(turn: int, n: int, order: int, *, mirrored: bool) -> Matrix:
    r"""What `turn` n-ths of a full turn do to (cos m·a, sin m·a), m the order, after a mirror left-right if `mirrored`.

    The mirror takes an angle a to pi - a. Of quarter turns the entries are whole numbers.
    """
    quarters, rest = divmod(4 * turn * order, n)
    angle = 2 * math.pi * (turn * order % n) / n
    cos, sin = (
        (math.cos(angle), math.sin(angle)) if rest else ((1, 0, -1, 0)[quarters % 4], (0, 1, 0, -1)[quarters % 4])
    )
    sign = (-1) ** order
    return ((sign * cos, sign * sin), (sign * sin, -sign * cos)) if mirrored else ((cos, -sin), (sin, cos))


def product_of(first: Matrix, second: Matrix) -> Matrix:
    r"""The matrix product."""
    (a, b), (c, d) = second
    (p, q), (r, s) = first
    return (p * a + q * c, p * b + q * d), (r * a + s * c, r * b + s * d)


def in_axes(matrix: Matrix, axes: str) -> Matrix:
    r"""A matrix in (right, up) as it is for components in other axes."""
    (a, b), (c, d) = matrix
    if axes == "right-down":
        return (a, -b), (-c, d)
    return ((d, -c), (-b, a)) if axes == "down-right" else matrix


def check_axes(caller: str, axes: str) -> str:
    r"""The axes themselves, ValueError where there are none of that name."""
    return check_choice(caller, "axes", axes, AXES)


def check_vectors(caller: str, v: object) -> Tensor:
    r"""Vectors (B, C, 2), (B, C, 2, N) or (B, C, 2, H, W); TypeError or ValueError otherwise."""
    v = check_float(caller, "v", v)
    if v.ndim not in (3, 4, 5) or v.shape[2] != 2:
        hint = "Axis 2 holds the two components: a flow (B, 2, H, W) is flow[:, None]."
        refuse(caller, "v of shape (B, C, 2), (B, C, 2, N) or (B, C, 2, H, W)", tuple(v.shape), hint)
    return v


def readings(shape: Sequence[int]) -> list[Reading]:
    r"""The ways in which such a shape may be vectors: (..., 2), (B, C, 2, N), (B, 2, H, W), (B, C, 2, H, W)."""
    n = len(shape)
    found = [(1, True)] if n == 4 and shape[1] == 2 else []
    found += [(2, n == 5)] if n in (4, 5) and shape[2] == 2 else []
    return found + ([(n - 1, False)] if n > 1 and shape[-1] == 2 else [])


def check_reading(caller: str, shape: Sequence[int]) -> Reading:
    r"""The one way in which a tensor of this shape may be vectors; ValueError where there is none, or another."""
    found = readings(shape)
    if len(found) != 1:
        wanted = "vectors (B, 2), (B, C, 2), (B, C, 2, N) or (..., 2), or fields (B, 2, H, W) or (B, C, 2, H, W)"
        got = f"{tuple(shape)}, which may be two of them" if found else tuple(shape)
        refuse(caller, wanted, got, "Pass a function of g and the output.")
    return found[0]


def turn(v: Tensor, matrix: Matrix, dim: int = 2) -> Tensor:
    r"""The matrix times the vectors along an axis; entries 0, 1 and -1 pick and negate, so that no digit is touched."""
    parts = v.unbind(dim)
    return torch.stack([_combined(row, (parts[0], parts[1])) for row in matrix], dim)


def _combined(row: Row, parts: tuple[Tensor, Tensor]) -> Tensor:
    terms = [part if a == 1 else -part if a == -1 else a * part for a, part in zip(row, parts, strict=True) if a]
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]


__all__ = [
    "AXES",
    "IDENTITY",
    "NAMES",
    "Matrix",
    "Reading",
    "check_axes",
    "check_reading",
    "check_vectors",
    "in_axes",
    "product_of",
    "readings",
    "rotation_matrix",
    "turn",
]
