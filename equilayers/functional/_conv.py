r"""Weight-tied convolutions: lifting from images to regular features, and between regular features."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import autocast, check_float, check_same_dtype, in_autocast, overridable
from equilayers.functional._convolution.custom_ops import pattern_conv2d
from equilayers.functional._convolution.dense import dense_conv2d, repeated
from equilayers.functional._convolution.dispatch import (
    Runtime,
    check_convolution,
    choose_algorithm,
    compiled_algorithm,
)
from equilayers.functional._convolution.geometry import ConvSettings, ConvSpec, Ints, conv_spec
from equilayers.functional._convolution.patches import PatchKernel
from equilayers.functional._convolution.pattern_kernel import PatternKernel
from equilayers.functional._convolution.steerable import steered_conv2d
from equilayers.functional._fourier.autograd import Correlate
from equilayers.functional._fourier.transforms import Butterflies, fast_fourier_of, fourier_of
from equilayers.functional._machine import machine_of
from equilayers.functional._weight_cache import WeightCache, is_plain
from equilayers.functional.cost import cheapest_tokens
from equilayers.functional.tokens import TokenSpace, TokenWeight, token_linear, token_sizes
from equilayers.groups import Group, interpolates


def lift_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    group: Group | str,
    *,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algorithm: str = "auto",
) -> Tensor:
    r"""Lifting convolution: the image correlated with every rotation of the filter.

    `y[b, o, h] = corr(h · weight_o, x_b) + bias_o`

    Args:
        x: images (B, C, H, W), floating-point.
        weight: (O, C / groups, kh, kw), of the dtype of x.
        bias: (O,) or None.
        group: CyclicRotation or Dihedral, or its name, "C4".
        stride: pixels between samples, an int or a pair (height, width).
        padding: pixels on every side, an int, a pair, "same" where that is symmetric, or "valid".
        dilation: pixels between taps, an int or a pair.
        groups: channel groups, as in torch.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        algorithm: "dense" (one convolution with the expanded filter), "orbit" (one convolution of every rotation
            of the input), "fourier" (patches and the group Fourier transform), "auto" (the fastest by the measured cost
            model), or "bitwise" (the fastest of "orbit" and "fourier").

    Returns:
        Regular feature (B, O, |G|, H', W') of the dtype and device of x.

    Raises:
        TypeError: x is not floating-point or its dtype is not the weight's.
        ValueError: shapes that do not fit, a group without rotations, or a stride that samples this size
            asymmetrically; the message names two settings that work.

    Law: `lift_conv2d(act(g, x)) == act_regular(g, lift_conv2d(x))` for all g, at every size that is accepted: bitwise
        with "orbit", "fourier" and "bitwise" (CPU, float32 and float64), rounding with "dense" and "auto".

    Source: Cohen and Welling 2016, Eq. 10 (arXiv:1602.07576).
    """
    size = weight.shape[-2:]
    given = ConvSettings(True, group, size, stride, padding, dilation, groups, padding_mode, algorithm)
    return convolve("lift_conv2d", x, weight, bias, conv_spec("lift_conv2d", given), None)


def group_conv2d(
    f: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    group: Group | str,
    *,
    stride: Ints = 1,
    padding: Ints | str = 0,
    dilation: Ints = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    algorithm: str = "auto",
) -> Tensor:
    r"""Group convolution: the equivariant convolution between regular features.

    `y[b, o, h] = sum_{c,k} corr(h · weight[o, c, h^-1 k], f[b, c, k]) + bias_o`

    Args:
        f: regular feature (B, C, |G|, H, W), floating-point.
        weight: (O, C / groups, |G|, kh, kw), of the dtype of f.
        bias: (O,) or None.
        group: CyclicRotation or Dihedral, or its name, "C4".
        stride: pixels between samples, as in `lift_conv2d`.
        padding: pixels on every side.
        dilation: pixels between taps.
        groups: channel groups.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        algorithm: "auto", "bitwise", "orbit", "dense" or "fourier".

    Returns:
        Regular feature (B, O, |G|, H', W') of the dtype and device of f.

    Raises:
        TypeError: f is not floating-point or its dtype is not the weight's.
        ValueError: as in `lift_conv2d`, or axis 2 of f is not the fiber.

    Law: `group_conv2d(act_regular(g, f)) == act_regular(g, group_conv2d(f))` for all g, at the levels of `lift_conv2d`.

    Source: Cohen and Welling 2016, Eq. 11 (arXiv:1602.07576).
    """
    size = weight.shape[-2:]
    given = ConvSettings(False, group, size, stride, padding, dilation, groups, padding_mode, algorithm)
    return convolve("group_conv2d", f, weight, bias, conv_spec("group_conv2d", given), None)


def convolve(
    caller: str, x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, cache: WeightCache | None
) -> Tensor:
    r"""Either convolution, with checked settings.

    cache: where a module keeps the transformed weight between calls that want no gradient.
    """
    again = None if cache is None else repeated(x, weight, bias, spec, cache)
    return _convolve(caller, x, weight, bias, spec, cache) if again is None else again


@overridable
def _convolve(
    caller: str, x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, cache: WeightCache | None
) -> Tensor:
    name = "x" if spec.lifting else "f"
    check_float(caller, name, x)
    if in_autocast(x):
        x, weight = autocast(x), autocast(weight)
        bias = None if bias is None else autocast(bias)
    else:
        check_same_dtype(caller, name, x, weight)
    return convolve_by(convolution_algorithm(caller, x, weight, spec), x, weight, bias, spec, cache)


def convolve_by(
    algorithm: str, x: Tensor, weight: Tensor, bias: Tensor | None, spec: ConvSpec, cache: WeightCache | None
) -> Tensor:
    r"""Either convolution by an algorithm; `spec.algorithm` says in which of its ways: "auto" need not be bitwise."""
    if algorithm == "tokens" or (algorithm == "dense" and as_tokens(x, spec)):
        space = TokenSpace(spec.group, algorithm == "tokens")
        return token_linear(x, TokenWeight(weight.flatten(2), bias), space, cache)
    cache = None if torch.compiler.is_compiling() or spec.group.order == 1 else cache
    x, rest = spec.padded(x)
    if algorithm == "dense":
        return dense_conv2d(x, rest, weight, bias, cache)
    if algorithm == "orbit":
        return _orbit(x, rest, weight, bias)
    if torch.compiler.is_compiling():
        return pattern_conv2d(x, weight, bias, rest)
    return _fourier(x, rest, weight, bias, cache)


def convolution_algorithm(caller: str, x: Tensor, weight: Tensor, spec: ConvSpec) -> str:
    r"""What is done for an input, which is checked: "dense", "orbit", "fourier", or "tokens" of a 1x1 convolution."""
    group = spec.group
    if torch.compiler.is_compiling() or group.order == 1:
        check_convolution(caller, x.shape, weight.shape, spec)
        if spec.pointwise and spec.algorithm == "auto":
            sizes = token_sizes(group, weight.shape[1], weight.shape[0])._replace(chain=False)
            return cheapest_tokens(group, sizes, machine_of(x))
        return compiled_algorithm(x.shape, weight.shape, spec, machine_of(x))
    return choose_algorithm(caller, x.shape, weight.shape, spec, Runtime(machine_of(x), not torch.is_grad_enabled()))


def as_tokens(x: Tensor, spec: ConvSpec) -> bool:
    r"""Whether the expanded filter of a 1x1 convolution meets tokens: what lies in memory as such stays so."""
    return spec.pointwise and spec.algorithm == "auto" and x.permute(0, 3, 4, 2, 1).is_contiguous()


def _orbit(x: Tensor, spec: ConvSpec, weight: Tensor, bias: Tensor | None) -> Tensor:
    r"""`y[h] = h · corr(weight, h^-1 · x)`: an ordinary convolution per rotated input, on memory of its own."""
    group, lifting = spec.group, spec.lifting
    act = group.act if lifting else group.act_regular
    filters = weight if lifting else weight.flatten(1, 2)
    planes = []
    for h in range(group.order):
        rotated = act(group.inverse(h), x) if h else x.clone()
        image = rotated if lifting else rotated.flatten(1, 2)
        image = image.contiguous().view(-1).view(image.shape)  # in the plain order, axes of length one too
        y = F.conv2d(image, filters, bias, spec.stride, spec.padding, spec.dilation, spec.groups)
        planes.append(group.act(h, y))
    return torch.stack(planes, 2)


def _fourier(x: Tensor, spec: ConvSpec, weight: Tensor, bias: Tensor | None, cache: WeightCache | None) -> Tensor:
    r"""Patches and the group Fourier transform, channel group by channel group."""
    group, groups = spec.group, spec.groups
    fast, exact = fast_fourier_of(group), fourier_of(group)
    if interpolates(group) and not spec.lifting:
        return steered_conv2d(x, spec, weight, bias, cache)
    if interpolates(group) or fast is None or exact is None:
        return dense_conv2d(x, spec, weight, bias, cache)
    settings, size = replace(spec, groups=1, algorithm="fourier"), (x.shape[-2], x.shape[-1])
    kernel: PatternKernel | PatchKernel
    if spec.algorithm == "auto" and not spec.lifting and isinstance(fast, Butterflies):
        kernel = PatternKernel(settings, fast, size)
    else:
        kernel = PatchKernel(settings, fast, exact, size)
    biases = [None] * groups if bias is None else bias.chunk(groups)
    if cache is None or torch.is_grad_enabled() or not is_plain(x, weight):
        given = zip(x.chunk(groups, 1), weight.chunk(groups), biases, strict=True)
        made = [Correlate.apply(part, w, b, kernel) for part, w, b in given]
    else:
        kind = f"fourier {type(kernel).__name__}"
        operators = cache.get(weight, lambda: [kernel.operators(w) for w in weight.chunk(groups)], kind)
        features = weight.shape[0] // groups
        kept = zip(x.chunk(groups, 1), operators, biases, strict=True)
        made = [kernel.apply(part, ops, b, features) for part, ops, b in kept]
    return made[0] if groups == 1 else torch.cat(made, 1)
