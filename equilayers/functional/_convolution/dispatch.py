r"""Which algorithm a convolution takes, and whether it may be taken at all: by sizes alone, so that it can be kept."""

from __future__ import annotations

import functools
import math

from equilayers._checks import check_choice, refuse
from equilayers.functional._convolution.geometry import Geometry, check_plane_group, check_size
from equilayers.functional.cost import Sizes, cheapest_convolution
from equilayers.groups import Group, interpolates

ALGORITHMS = ("auto", "bitwise", "orbit", "dense", "fourier")
Size = tuple[int, ...]


def check_convolution(caller: str, x: Size, weight: Size, group: Group, shape: Geometry, algorithm: str) -> None:
    r"""Raise unless input and weight of these sizes fit, and the layer is exactly equivariant on them."""
    check_plane_group(caller, group)
    check_choice(caller, "algorithm", algorithm, ALGORITHMS)
    if interpolates(group) and algorithm in ("bitwise", "orbit"):
        hint = "It turns images by interpolation, which is never exact."
        refuse(caller, f"algorithm in {{'auto', 'dense', 'fourier'}} for {group!r}", repr(algorithm), hint)
    lifting = caller in ("lift_conv2d", "LiftingConv2d")
    axes = 4 if lifting else 5
    if len(weight) != axes:
        wanted = "(O, C, kh, kw)" if lifting else "(O, C, |G|, kh, kw)"
        refuse(caller, f"weight of shape {wanted}", tuple(weight), "Give it one filter for each pair of channels.")
    if weight[0] % shape.groups:
        refuse(caller, f"output channels divisible by groups={shape.groups}", weight[0], "Change one of them.")
    if not lifting and weight[2] != group.order:
        refuse(caller, f"weight with axis 2 of length {group.order}", tuple(weight), "It is the fiber of the group.")
    if len(x) != axes or x[1] != shape.groups * weight[1] or (not lifting and x[2] != group.order):
        fiber = "" if lifting else f"{group.order}, "
        layout = f"{'x' if lifting else 'f'} of shape (B, {shape.groups * weight[1]}, {fiber}H, W)"
        hint = "Add a batch axis to a single image." if lifting else "Lift images with LiftingConv2d first."
        refuse(caller, layout, tuple(x), hint)
    group.check_space(tuple(x[-2:]), caller)
    check_size(caller, group, shape, (x[-2], x[-1]))


@functools.lru_cache(maxsize=4096)
def plan(
    caller: str,
    x: Size,
    weight: Size,
    group: Group,
    shape: Geometry,
    algorithm: str,
    measured: bool,
    kept: bool,
    threads: int,
) -> str:
    r"""The algorithm for inputs and weights of these sizes, which are checked.

    measured: whether the cost model knows this device and dtype. kept: whether what is made of the weight is.
    """
    check_convolution(caller, x, weight, group, shape, algorithm)
    if algorithm not in ("auto", "bitwise"):
        return algorithm
    if not measured:
        return "dense" if algorithm == "auto" else "orbit"
    sizes = Sizes(
        pixels_in=x[0] * math.prod(x[-2:]),
        pixels_out=x[0] * math.prod(shape.out_size((x[-2], x[-1]))),
        channels=weight[1],
        features=weight[0],
        taps=math.prod(shape.kernel_size),
        groups=shape.groups,
        lifting=len(weight) == 4,
        kept=kept,
    )
    return cheapest_convolution(group, sizes, algorithm == "bitwise", threads)
