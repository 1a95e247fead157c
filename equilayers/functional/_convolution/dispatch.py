r"""The choice of a convolution's algorithm and the checks of its sizes: by sizes alone, so that both can be cached."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

from equilayers._checks import is_exporting, refuse
from equilayers._torch_compat import constant_when_compiled, in_forward_mode, in_transform
from equilayers.functional._convolution.geometry import ConvSpec, check_size
from equilayers.functional._convolution.patterns import has_basis
from equilayers.functional._machine import Machine
from equilayers.functional.cost import LinearSizes, Sizes, cheapest_convolution, cheapest_tokens
from equilayers.groups import Group

Size = tuple[int, ...]
MANY_PIXELS = tuple(2**k for k in range(20, -1, -1))


class Runtime(NamedTuple):
    r"""The part of a call that the choice depends on beside sizes.

    kept: whether the transformed weight is kept between calls.
    """

    machine: Machine
    kept: bool

    @property
    def known(self) -> bool:
        r"""Whether the model knows convolutions there: in full precision on a processor, elsewhere by a calibration."""
        machine = self.machine
        return machine.precision in ("float32", "float64") if machine.device == "cpu" else machine.measured


def check_convolution(caller: str, x: Size, weight: Size, spec: ConvSpec) -> None:
    r"""Raise unless input and weight of these sizes fit, and the layer is exactly equivariant on them."""
    lifting, order = spec.lifting, spec.group.order
    axes = 4 if lifting else 5
    if len(weight) != axes:
        wanted = "(O, C, kh, kw)" if lifting else "(O, C, |G|, kh, kw)"
        refuse(caller, f"weight of shape {wanted}", tuple(weight), "Give it one filter for each pair of channels.")
    if weight[0] % spec.groups:
        refuse(caller, f"output channels divisible by groups={spec.groups}", weight[0], "Change one of them.")
    if not lifting and weight[2] != order:
        refuse(caller, f"weight with axis 2 of length {order}", tuple(weight), "It is the fiber of the group.")
    if len(x) != axes or x[1] != spec.groups * weight[1] or (not lifting and x[2] != order):
        fiber = "" if lifting else f"{order}, "
        layout = f"{'x' if lifting else 'f'} of shape (B, {spec.groups * weight[1]}, {fiber}H, W)"
        hint = "Add a batch axis to a single image." if lifting else "Lift images with LiftingConv2d first."
        refuse(caller, layout, tuple(x), hint)
    spec.group.check_space(tuple(x[-2:]), caller)
    check_size(caller, spec, (x[-2], x[-1]))


@functools.lru_cache(maxsize=4096)
def choose_algorithm(caller: str, x: Size, weight: Size, spec: ConvSpec, runtime: Runtime) -> str:
    r"""The algorithm for inputs and weights of these sizes, which are checked."""
    check_convolution(caller, x, weight, spec)
    if spec.algorithm not in ("auto", "bitwise"):
        return spec.algorithm
    sizes, exact = convolution_sizes(x, weight, spec, runtime.kept), spec.algorithm == "bitwise"
    if not runtime.known:
        pointwise = spec.pointwise and not exact and runtime.machine.device != "cpu"
        return "orbit" if exact else _transformed(spec, sizes, runtime) if pointwise else "dense"
    return cheapest_convolution(spec.group, sizes, exact, runtime.machine)


def compiled_algorithm(x: Size, weight: Size, spec: ConvSpec, machine: Machine) -> str:
    r"""The algorithm in a compiled graph: "fourier" where "auto" would take it outside, otherwise "dense".

    A batch of any size is compared with one number of pixels: a layer makes two graphs at most.
    """
    ordinary = is_exporting() or in_transform() or in_forward_mode()
    if ordinary or spec.algorithm != "auto" or spec.lifting or not has_basis(spec.group):
        return "dense"
    area = spec.stride[0] * spec.stride[1]
    least = least_pixels(spec.group, (weight[1], weight[0], *spec.kernel_size, spec.groups, area), tuple(machine))
    height, width = spec.out_size((x[-2], x[-1]))
    return "fourier" if least and x[0] * height * width >= least else "dense"


@constant_when_compiled
def least_pixels(group: Group, sizes: Size, machine: tuple[Any, ...]) -> int:
    r"""The power of two of output pixels from which on "fourier" is the fastest in training, or 0 for never.

    sizes: channels of one channel group, features, height and width of the kernel, channel groups, pixels of the input
    for one of the output.
    """
    channels, features, kh, kw, groups, area = sizes
    runtime = Runtime(Machine._make(machine), kept=False)
    least = 0
    for pixels in MANY_PIXELS if runtime.known else ():
        counted = Sizes(area * pixels, pixels, channels, features, (kh, kw), groups, lifting=False, kept=False)
        if cheapest_convolution(group, counted, False, runtime.machine) != "fourier":
            return least
        least = pixels
    return least


def _transformed(spec: ConvSpec, sizes: Sizes, runtime: Runtime) -> str:
    r"""Of a 1x1 convolution, by the roofline: it is a linear map at every position, of which no more must be known."""
    n = spec.group.order
    linear = LinearSizes(sizes.pixels_in, sizes.channels * n, sizes.features, lifting=False, kept=sizes.kept)
    return cheapest_tokens(spec.group, linear, runtime.machine)


def convolution_sizes(x: Size, weight: Size, spec: ConvSpec, kept: bool) -> Sizes:
    r"""The sizes of a call, by which `choose_algorithm` chooses."""
    return Sizes(
        pixels_in=x[0] * math.prod(x[-2:]),
        pixels_out=x[0] * math.prod(spec.out_size((x[-2], x[-1]))),
        channels=weight[1],
        features=weight[0],
        kernel=spec.kernel_size,
        groups=spec.groups,
        lifting=spec.lifting,
        kept=kept,
    )
