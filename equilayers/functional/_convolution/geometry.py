r"""The settings and sizes of a convolution, and the rule that keeps its sampling grid symmetric.

The grid `o + s·i` along an axis that the group reverses is symmetric when `H + 2p - d(k-1) - 1` is a multiple of
the stride s. Only then does the layer commute with mirrors and rotations; any other size is refused.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import ALGORITHMS, PADDING_MODES, Pair, check_choice, check_int, pair_of, refuse
from equilayers.groups import Dihedral, Group, Rotations, as_group, interpolates

Ints = int | Sequence[int]


@dataclass(frozen=True)
class ConvSpec:
    r"""The settings of a weight-tied convolution, checked once; pairs are (height, width), as in torch.

    lifting: from images, without a fiber. groups: channel groups.
    """

    group: Group
    lifting: bool
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    padding_mode: str = "zeros"
    algorithm: str = "auto"

    def __hash__(self) -> int:  # a key of every cache that a call looks into: computed once
        if "_hash" not in self.__dict__:
            values = [getattr(self, field.name) for field in fields(self)]
            object.__setattr__(self, "_hash", hash(tuple(values)))
        return self.__dict__["_hash"]

    def __getstate__(self) -> dict[str, Any]:  # hashes of strings differ from process to process
        return {name: value for name, value in self.__dict__.items() if name != "_hash"}

    def with_algorithm(self, caller: str, algorithm: str) -> ConvSpec:
        r"""The same with another algorithm, which is checked."""
        return replace(self, algorithm=check_algorithm(caller, self.group, algorithm))

    @property
    def exactness(self) -> str:
        r"""The level: "rounding" where filters may be expanded, "approximate" where the group interpolates."""
        if self.group.exactness != "bitwise":
            return self.group.exactness
        return "rounding" if self.algorithm in ("auto", "dense") else "bitwise"

    @property
    def extra_repr(self) -> str:
        r"""`, name=value` for each of torch's settings that is not its default."""
        named = (f for f in fields(self) if f.name in ("stride", "padding", "dilation", "groups", "padding_mode"))
        given = ((f.name, getattr(self, f.name), f.default) for f in named)
        return "".join(f", {name}={value!r}" for name, value, usual in given if value != usual)

    @property
    def pointwise(self) -> bool:
        r"""Whether it is a group linear map at every position."""
        alone = self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1
        return alone and not self.lifting and self.group.order > 1

    @property
    def spans(self) -> Pair:
        r"""d(k-1) of both axes: how many pixels beyond the first a filter reaches."""
        (kh, kw), (dh, dw) = self.kernel_size, self.dilation
        return dh * (kh - 1), dw * (kw - 1)

    def sampling_span(self, size: Pair) -> Pair:
        r"""`H + 2p - d(k-1) - 1` of both axes: how far the filter can move over an input of this size."""
        (height, width), (ph, pw), (eh, ew) = size, self.padding, self.spans
        return height + 2 * ph - eh - 1, width + 2 * pw - ew - 1

    def out_size(self, size: Pair) -> Pair:
        r"""Height and width of the output for an input of this size."""
        (rh, rw), (sh, sw) = self.sampling_span(size), self.stride
        return rh // sh + 1, rw // sw + 1

    def padded(self, x: Tensor) -> tuple[Tensor, ConvSpec]:
        r"""The input (..., C, H, W) with any padding but zeros around it, and the settings left to apply."""
        if self.padding_mode == "zeros" or self.padding == (0, 0):
            return x, self
        ph, pw = self.padding
        image = x.flatten(1, -3) if x.ndim > 4 else x
        image = F.pad(image, (pw, pw, ph, ph), mode=self.padding_mode).to(x.dtype)  # autocast pads in float32
        return image.unflatten(1, x.shape[1:-2]), replace(self, padding=(0, 0), padding_mode="zeros")


def empty_output(spec: ConvSpec, x: Tensor, features: int) -> Tensor:
    r"""Memory for the output of a group convolution of x (B, C, |G|, H, W), in the order (B, |G|, H', W', O)."""
    size = len(x), features, spec.group.order, *spec.out_size((x.shape[-2], x.shape[-1]))
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)


def check_plane_group(caller: str, group: Group) -> Group:
    r"""The group itself when convolutions can be tied under it, ValueError otherwise."""
    if not isinstance(group, Rotations):
        hint = (
            "Shifts need no tying: torch.nn.Conv2d with padding_mode='circular' commutes with every cyclic shift, "
            "and a mean over the map makes it invariant."
        )
        refuse(caller, "group to be CyclicRotation or Dihedral", repr(group), hint)
    return group


def reversed_axes(group: Group) -> tuple[int, ...]:
    r"""The axes, 0 for height and 1 for width, that some element reverses."""
    if group.order == 1:
        return ()
    return (1,) if isinstance(group, Dihedral) and group.n == 1 else (0, 1)


def swaps_axes(group: Group) -> bool:
    r"""Whether some element mixes height and width."""
    return isinstance(group, Rotations) and group.n > 2


class ConvSettings(NamedTuple):
    r"""The settings of a convolution as they are given, in torch's order, not checked yet."""

    lifting: bool
    group: Group | str
    kernel_size: Ints
    stride: Ints = 1
    padding: Ints | str = 0
    dilation: Ints = 1
    groups: int = 1
    padding_mode: str = "zeros"
    algorithm: str = "auto"


def conv_spec(caller: str, given: ConvSettings) -> ConvSpec:
    r"""The checked settings of a convolution tied under the group; TypeError or ValueError where they make no sense."""
    group = check_plane_group(caller, as_group(caller, given.group))
    kernel = pair_of(caller, "kernel_size", given.kernel_size, 1)
    strides = pair_of(caller, "stride", given.stride, 1)
    dilations = pair_of(caller, "dilation", given.dilation, 1)
    made = ConvSpec(
        group,
        given.lifting,
        kernel,
        strides,
        _padding(caller, given.padding, kernel, strides, dilations),
        dilations,
        check_int(caller, "groups", given.groups, 1),
        check_choice(caller, "padding_mode", given.padding_mode, PADDING_MODES),
        check_algorithm(caller, group, given.algorithm),
    )
    for name in ("kernel_size", "stride", "padding", "dilation") if swaps_axes(group) else ():
        height, width = getattr(made, name)
        if height != width:
            hint = "A quarter turn swaps the axes; CyclicRotation(2), Dihedral(1) and Dihedral(2) do not."
            refuse(caller, f"{name} alike along both axes for {group!r}", (height, width), hint)
    return made


def check_algorithm(caller: str, group: Group, algorithm: str) -> str:
    r"""The name of the algorithm, where convolutions under this group have it."""
    check_choice(caller, "algorithm", algorithm, ALGORITHMS)
    if interpolates(group) and algorithm in ("bitwise", "orbit"):
        hint = "It rotates images by interpolation, which is never exact."
        refuse(caller, f"algorithm in {{'auto', 'dense', 'fourier'}} for {group!r}", repr(algorithm), hint)
    return algorithm


def check_size(caller: str, spec: ConvSpec, size: Pair) -> None:
    r"""ValueError unless the layer is defined and exactly equivariant on inputs of this size."""
    group, spans = spec.group, spec.sampling_span(size)
    for axis, name in enumerate(("H", "W")):
        length, pad, span, stride = size[axis], spec.padding[axis], spans[axis], spec.stride[axis]
        if span < 0:
            reach = spec.spans[axis] + 1
            expected, hint = (
                f"{name} + 2·padding >= {reach}, the reach of the kernel",
                "Pad more, or take a smaller kernel or dilation.",
            )
            refuse(caller, expected, f"{name}={length}, padding={pad}", hint)
        most = _most_padding(spec, length)
        if pad > most:
            hint = "Pad less, or take padding_mode='replicate' or 'zeros', which have no limit."
            refuse(caller, f"padding <= {most} for padding_mode={spec.padding_mode!r} at {name}={length}", pad, hint)
        if axis in reversed_axes(group) and span % stride:
            settings = " or ".join(
                _settings_that_work(spec, length, axis, "H=W" if swaps_axes(group) and size[0] == size[1] else name)
            )
            hint = f"The grid is lopsided: a rotated input would be sampled elsewhere. What works: {settings}."
            expected = f"{name} + 2·padding - dilation·(kernel_size - 1) - 1 to be a multiple of the stride {stride}"
            refuse(caller, expected, f"{span} at {name}={length}", hint)


def _most_padding(spec: ConvSpec, length: int) -> int:
    return {"reflect": length - 1, "circular": length}.get(spec.padding_mode, sys.maxsize)


def _settings_that_work(spec: ConvSpec, length: int, axis: int, name: str) -> list[str]:
    r"""Two ways out: the nearest other kernel and padding for this size, and the next size for this kernel."""
    kernel, pad, stride, dilation = (
        pair[axis] for pair in (spec.kernel_size, spec.padding, spec.stride, spec.dilation)
    )
    span = lambda k, p: length + 2 * p - dilation * (k - 1) - 1  # noqa: E731
    paddings = range(min(pad + stride, _most_padding(spec, length)) + 1)
    options = [
        (abs(k - kernel) + abs(p - pad), -k, p)
        for k, p in itertools.product(range(1, kernel + stride + 2), paddings)
        if span(k, p) >= 0 and span(k, p) % stride == 0
    ]
    larger = f"an input of {name}={length + stride - span(kernel, pad) % stride}"
    if not options:
        return [larger, "stride=1 followed by a pooling layer"]
    _, minus_k, p = min(options)
    return [f"kernel_size={-minus_k} with padding={p}", larger]


def _padding(caller: str, padding: int | Sequence[int] | str, kernel: Pair, stride: Pair, dilation: Pair) -> Pair:
    r"""The padding on either side, in numbers; "same" keeps the size, as in torch for stride 1."""
    if not isinstance(padding, str):
        return pair_of(caller, "padding", padding, 0)
    if check_choice(caller, "padding", padding, ("same", "valid")) == "valid":
        return 0, 0
    total = dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)
    if stride != (1, 1):
        refuse(caller, "stride=1 with padding='same'", stride, "Pass the padding as a number.")
    if total[0] % 2 or total[1] % 2:
        hint = "An even kernel would need more padding on one side: take an odd one, or pass the padding as a number."
        refuse(caller, "dilation·(kernel_size - 1) to be even with padding='same'", total, hint)
    return total[0] // 2, total[1] // 2
