r"""Transposed group convolutions: the adjoint of strided ones, between regular features, which enlarges maps.

Tap t of input pixel i lands on `s·i - p + d·t`. A mirror takes it to `s·(H-1-i) - p + d·(k-1-t)`, which is its mirror
image on the output exactly if nothing is appended to one side: `output_padding` must be 0 along every axis that the
group reverses, at every size.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import (
    Pair,
    autocast,
    check_choice,
    check_float,
    check_same_dtype,
    in_autocast,
    overridable,
    pair_of,
    refuse,
)
from equilayers.functional._convolution.filters import expand
from equilayers.functional._convolution.geometry import ConvSettings, ConvSpec, conv_spec, reversed_axes
from equilayers.functional._weight_cache import WeightCache, is_plain
from equilayers.groups import Group

ALGORITHMS = ("auto", "bitwise", "orbit", "dense")
Ints = int | Sequence[int]


@dataclass(frozen=True)
class TransposedSpec:
    r"""The settings of a transposed group convolution, checked once: those of the convolution it is the adjoint of."""

    conv: ConvSpec
    output_padding: Pair = (0, 0)

    @property
    def algorithm(self) -> str:
        r"""The name of the algorithm."""
        return self.conv.algorithm

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.conv.exactness

    @property
    def extra_repr(self) -> str:
        r"""`, name=value` for each of torch's settings that is not its default."""
        return self.conv.extra_repr + (f", output_padding={self.output_padding}" if any(self.output_padding) else "")

    def with_algorithm(self, caller: str, algorithm: str) -> TransposedSpec:
        r"""The same with another algorithm, which is checked."""
        check_choice(caller, "algorithm", algorithm, ALGORITHMS)
        return replace(self, conv=self.conv.with_algorithm(caller, algorithm))

    def blurred(self, along: tuple[bool, bool]) -> TransposedSpec:
        r"""For the two-pixel mean of a filter along these axes, which is a pixel larger: an output a pixel smaller."""
        (kh, kw), (ph, pw), (down, right) = self.conv.kernel_size, self.conv.padding, along
        conv = replace(self.conv, kernel_size=(kh + down, kw + right), padding=(ph + down, pw + right))
        return replace(self, conv=conv)

    def out_size(self, size: Pair) -> Pair:
        r"""Height and width of the output for an input of this size."""
        (sh, sw), (ph, pw), (eh, ew) = self.conv.stride, self.conv.padding, self.conv.spans
        oh, ow = self.output_padding
        return (size[0] - 1) * sh - 2 * ph + eh + oh + 1, (size[1] - 1) * sw - 2 * pw + ew + ow + 1

    def reaching(self, caller: str, size: Pair, output_size: Ints) -> TransposedSpec:
        r"""The settings under which an input of this size gives an output of that one."""
        wanted = pair_of(caller, "output_size", output_size, 1)
        least = replace(self, output_padding=(0, 0)).out_size(size)
        steps = self.conv.stride
        if any(not 0 <= w - o < s for w, o, s in zip(wanted, least, steps, strict=True)):
            most = least[0] + steps[0] - 1, least[1] + steps[1] - 1
            refuse(caller, f"output_size from {least} to {most}", wanted, "Change kernel_size, stride or padding.")
        return _with_output_padding(caller, self.conv, (wanted[0] - least[0], wanted[1] - least[1]))


def transposed_spec(caller: str, given: ConvSettings, output_padding: Ints) -> TransposedSpec:
    r"""The checked settings of a transposed group convolution; TypeError or ValueError where they make no sense."""
    check_choice(caller, "algorithm", given.algorithm, ALGORITHMS)
    if isinstance(given.padding, str):
        hint = "Words name no padding here: pass the pixels to be cut off on every side."
        refuse(caller, "padding to be an int or a pair", repr(given.padding), hint, TypeError)
    check_choice(caller, "padding_mode", given.padding_mode, ("zeros",))
    return _with_output_padding(caller, conv_spec(caller, given), pair_of(caller, "output_padding", output_padding, 0))


def _with_output_padding(caller: str, conv: ConvSpec, output_padding: Pair) -> TransposedSpec:
    r"""The settings together, where they place pixels symmetrically."""
    for axis in (0, 1):
        extra, most = output_padding[axis], max(conv.stride[axis], conv.dilation[axis]) - 1
        if extra > most:
            hint = "It appends fewer pixels than the stride or the dilation."
            refuse(caller, f"output_padding <= {most}", extra, hint)
        if extra and axis in reversed_axes(conv.group):
            hint = "The grid is lopsided: pixels of a rotated input would land elsewhere. Of outputs as large work: "
            hint += " or ".join(_settings_that_work(conv, axis, extra)) + "."
            refuse(caller, f"output_padding=0 along an axis that {conv.group!r} reverses", extra, hint)
    return TransposedSpec(conv, output_padding)


def _settings_that_work(conv: ConvSpec, axis: int, extra: int) -> list[str]:
    r"""The two nearest kernels and paddings whose output is as large, at every size."""
    kernel, pad, given = conv.kernel_size[axis], conv.padding[axis], conv.dilation[axis]
    larger = given * (kernel - 1) - 2 * pad + extra
    dilation = 1 if given % 2 == 0 and larger % 2 else given  # the taps of an even dilation have no other parity
    sizes = itertools.product(range(1, larger + 2 * pad + 8), range(pad + 5))
    options = [(abs(k - kernel) + abs(p - pad), k, p) for k, p in sizes if dilation * (k - 1) - 2 * p == larger]
    ending = "" if dilation == given else f", dilation={dilation}"
    return [f"kernel_size={k} with padding={p}{ending}" for _, k, p in sorted(options)[:2]]


def group_conv_transpose2d(
    f: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    group: Group | str,
    *,
    stride: Ints = 1,
    padding: Ints = 0,
    output_padding: Ints = 0,
    groups: int = 1,
    dilation: Ints = 1,
    algorithm: str = "auto",
) -> Tensor:
    r"""Transposed group convolution: the adjoint of `group_conv2d` by its input.

    `y[b, o, k] = sum_{c,h} corr^T(h · weight[c, o, h^-1 k], f[b, c, h]) + bias_o`

    Args:
        f: regular feature (B, C, |G|, H, W), floating-point.
        weight: (C, O / groups, |G|, kh, kw), of the dtype of f: that of the `group_conv2d` from O to C features.
        bias: (O,) or None.
        group: CyclicRotation or Dihedral, or its name, "C4".
        stride: pixels between the places where neighbours land, an int or a pair (height, width).
        padding: pixels cut off on every side.
        output_padding: pixels appended at the bottom and on the right: 0 along every axis that the group reverses.
        groups: channel groups, as in torch.
        dilation: pixels between taps.
        algorithm: "dense" (one transposed convolution with the expanded filter), "orbit" (one of every rotation of the
            input), "auto" (the first) or "bitwise" (the second).

    Returns:
        Regular feature (B, O, |G|, H', W') with `H' = (H - 1)·s - 2p + d·(kh - 1) + output_padding + 1`, of the dtype
        and device of f.

    Raises:
        TypeError: f is not floating-point or its dtype is not the weight's.
        ValueError: shapes that do not fit, a group without rotations, or an output_padding that makes the grid
            lopsided; the message names two settings that work.

    Law: `group_conv_transpose2d(act_regular(g, f)) == act_regular(g, group_conv_transpose2d(f))` for all g, at every
        size: bitwise with "orbit" and "bitwise" (CPU, float32 and float64), rounding with "dense" and "auto". And
        `<group_conv_transpose2d(f), x> == <f, group_conv2d(x)>` without biases, where that takes the size of x.

    Source: Cohen and Welling 2016, Eq. 11 (arXiv:1602.07576), transposed.
    """
    caller = "group_conv_transpose2d"
    size = weight.shape[-2:]
    given = ConvSettings(False, group, size, stride, padding, dilation, groups, algorithm=algorithm)
    return conv_transpose(caller, f, weight, bias, transposed_spec(caller, given, output_padding), None)


@overridable
def conv_transpose(
    caller: str, f: Tensor, weight: Tensor, bias: Tensor | None, spec: TransposedSpec, cache: WeightCache | None
) -> Tensor:
    r"""The transposed group convolution, with checked settings.

    cache: where a module keeps the expanded weight between calls that want no gradient.
    """
    check_float(caller, "f", f)
    if in_autocast(f):
        f, weight = autocast(f), autocast(weight)
        bias = None if bias is None else autocast(bias)
    else:
        check_same_dtype(caller, "f", f, weight)
    check_shapes(caller, f.shape, weight.shape, spec)
    if spec.algorithm in ("bitwise", "orbit") and spec.conv.group.order > 1 and not torch.compiler.is_compiling():
        return _orbit(f, weight, bias, spec)
    group, n = spec.conv.group, spec.conv.group.order
    keep = cache is not None and is_plain(weight) and not torch.compiler.is_compiling()
    filters = cache.get(weight, lambda: expand(weight, group), "dense") if keep and cache else expand(weight, group)
    biases = None if bias is None else bias.unsqueeze(1).expand(-1, n).reshape(-1)
    return by_torch(f.flatten(1, 2), filters, biases, spec).unflatten(1, (-1, n))


def check_shapes(caller: str, f: Sequence[int], weight: Sequence[int], spec: TransposedSpec) -> None:
    r"""Raise unless input and weight of these sizes fit, and an output is left."""
    group = spec.conv.group
    if len(weight) != 5 or weight[2] != group.order:
        hint = "It is that of the group convolution from O to C features."
        refuse(caller, f"weight of shape (C, O, {group.order}, kh, kw)", tuple(weight), hint)
    if weight[0] % spec.conv.groups:
        refuse(caller, f"input channels divisible by groups={spec.conv.groups}", weight[0], "Change one of them.")
    if len(f) != 5 or f[1] != weight[0] or f[2] != group.order or 0 in f[-2:]:
        wanted = f"f of shape (B, {weight[0]}, {group.order}, H, W), H and W positive"
        refuse(caller, wanted, tuple(f), "Lift images with LiftingConv2d first.")
    group.check_space(tuple(f[-2:]), caller)
    out = spec.out_size((f[-2], f[-1]))
    if min(out) < 1:
        refuse(caller, "settings that leave an output", f"one of {out[0]}x{out[1]}", "Take a smaller padding.")


def by_torch(image: Tensor, filters: Tensor, bias: Tensor | None, spec: TransposedSpec) -> Tensor:
    r"""Torch's transposed convolution with these settings."""
    conv = spec.conv
    return F.conv_transpose2d(
        image, filters, bias, conv.stride, conv.padding, spec.output_padding, conv.groups, conv.dilation
    )


def _orbit(f: Tensor, weight: Tensor, bias: Tensor | None, spec: TransposedSpec) -> Tensor:
    r"""`y[k] = k · (plane 0 of the output for k^-1 · f)`: every rotated input on memory of its own."""
    group = spec.conv.group
    filters = expand(weight, group).unflatten(1, (-1, group.order))[:, :, 0].contiguous()
    planes = []
    for k in range(group.order):
        rotated = group.act_regular(group.inverse(k), f) if k else f.clone()
        image = rotated.flatten(1, 2).contiguous()
        image = image.view(-1).view(image.shape)  # in the plain order, axes of length one too
        planes.append(group.act(k, by_torch(image, filters, bias, spec)))
    return torch.stack(planes, 2)
