r"""Strided layers of any model with a blur before they subsample, the trained weights kept."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from equilayers._checks import refuse
from equilayers.convert._report import Entry, Report, count, replace, words
from equilayers.nn import BlurConv2d, BlurPool2d, MaxBlurPool2d

Pair = tuple[int, int]
OWN = "its class computes something of its own, or its weight is parametrised"
CEIL = "ceil_mode counts windows that hang over the edge; take ceil_mode=False"


def to_antialiased(model: nn.Module, taps: int | str = "auto") -> tuple[nn.Module, Report]:
    r"""A copy of the model that blurs before it subsamples: outputs of the same sizes, the same weights.

    Strided convolutions become `BlurConv2d`, max pools `MaxBlurPool2d` (oblong or dilated ones: a max pool of stride 1
    and `BlurPool2d`), average pools with overlapping or padded windows an average of stride 1 and `BlurPool2d`.

    Args:
        model: any module; it is not changed.
        taps: of the blur, "auto" for a symmetric one at every size, or 1 to 7.

    Returns:
        The new model, and a `Report` of what was replaced, kept and refused and why.

    Raises:
        TypeError: model is no module.

    Source: Zhang 2019 (arXiv:1904.11486).
    """
    if not isinstance(model, nn.Module):
        refuse("to_antialiased", "model to be a torch.nn.Module", type(model).__name__, "Wrap it in one.", TypeError)
    made, entries = copy.deepcopy(model), []
    for path, module in list(made.named_modules()):
        if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            continue
        found = antialiased(module, taps)
        if isinstance(found, str):
            entries.append(Entry(path, words(module), "refused" if found in (CEIL, OWN) else "kept", reason=found))
            continue
        found.train(module.training)
        entries.append(Entry(path, words(module), "replaced", words(found)))
        if path:
            replace(made, path, found)
        else:
            made = found
    return made, Report(tuple(entries), count(model), count(made))


def antialiased(module: nn.Module, taps: int | str = "auto") -> nn.Module | str:
    r"""What takes the place of one of the modules of `CONVERSIONS`, or why nothing does."""
    if type(module) not in CONVERSIONS:
        return OWN
    return CONVERSIONS[type(module)](module, taps)


def _convolution(module: nn.Conv2d, taps: int | str) -> nn.Module | str:
    if max(module.stride) == 1:
        return "stride 1 does not alias"
    weight = module.weight
    if not isinstance(weight, nn.Parameter):
        return OWN
    small = module.kernel_size == (1, 1) and not any(_pair(module.padding))
    made = BlurConv2d(
        None,
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        _pair(module.stride),
        module.padding,
        module.dilation,
        module.groups,
        module.bias is not None,
        taps=taps,
        activation=nn.Identity(),
        order="blur-conv-activation" if small else "conv-activation-blur",  # the same, and cheaper
        conv_padding_mode=module.padding_mode,
    )
    made.conv.to(weight.device, weight.dtype)
    made.conv.weight, made.conv.bias = module.weight, module.bias
    return made


def _max_pool(module: nn.MaxPool2d, taps: int | str) -> nn.Module | str:
    kernel, stride, padding = (_pair(s) for s in (module.kernel_size, module.stride, module.padding))
    if max(stride) == 1:
        return "stride 1 does not alias"
    if module.return_indices:
        return "its indices are asked for, and blurred maxima have none"
    if module.ceil_mode:
        return CEIL
    if kernel[0] == kernel[1] and padding[0] == padding[1] and _pair(module.dilation) == (1, 1):
        return MaxBlurPool2d(kernel, stride, padding, taps=taps, algorithm="dense")
    dense = nn.MaxPool2d(module.kernel_size, 1, module.padding, module.dilation)
    return nn.Sequential(dense, BlurPool2d(taps, stride, algorithm="dense"))


def _avg_pool(module: nn.AvgPool2d, taps: int | str) -> nn.Module | str:
    kernel, stride, padding = (_pair(s) for s in (module.kernel_size, module.stride, module.padding))
    if max(stride) == 1:
        return "stride 1 does not alias"
    if module.ceil_mode:
        return CEIL
    dense = nn.AvgPool2d(kernel, 1, padding, False, module.count_include_pad, module.divisor_override)
    return nn.Sequential(dense, BlurPool2d(taps, stride, algorithm="dense"))


def _pair(value: int | tuple[int, ...] | str) -> Pair:
    if isinstance(value, str):
        return (0, 0)
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


CONVERSIONS: dict[type[nn.Module], Callable[..., nn.Module | str]] = {
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
}
