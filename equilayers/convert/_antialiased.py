r"""Strided layers of any model with a blur before they subsample, the trained weights kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from equilayers._checks import refuse
from equilayers.convert._report import OWN, Kept, Outcome, Refused, Replaced, Report, convert_modules, copied, report
from equilayers.nn import BlurConv2d, BlurPool2d, MaxBlurPool2d

CEIL = "ceil_mode counts windows here that hang over the edge by more than they can; take ceil_mode=False"
RANDOM = "it samples at random places; take MaxBlurPool2d"


def to_antialiased(model: nn.Module, taps: int | str = "auto") -> tuple[nn.Module, Report]:
    r"""A copy of the model that blurs before it subsamples: outputs of the same sizes, the same weights.

    Strided convolutions become `BlurConv2d`, max pools `MaxBlurPool2d` (oblong or dilated ones: a max pool of stride 1
    and `BlurPool2d`), average and power-average pools one of stride 1 and `BlurPool2d`.

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

    def convert(path: str, module: nn.Module) -> Outcome | None:  # noqa: ARG001
        return antialiased(module, taps) if isinstance(module, tuple(CONVERSIONS)) else None

    made, entries = convert_modules(copied("to_antialiased", model), convert)
    return made, report(entries, model, made)


def antialiased(module: nn.Module, taps: int | str = "auto") -> Outcome:
    r"""The conversion of a convolution or pool."""
    if type(module) not in CONVERSIONS:
        return Refused(OWN)
    if not subsamples(module):
        return Kept("stride 1 does not alias")
    return CONVERSIONS[type(module)](module, taps)


def subsamples(module: nn.Module) -> bool:
    r"""Whether a convolution or pool has a stride."""
    return isinstance(module, nn.FractionalMaxPool2d) or max(_steps(module)) > 1


def _convolution(module: nn.Conv2d, taps: int | str) -> Outcome:
    weight = module.weight
    if not isinstance(weight, nn.Parameter):
        return Refused(OWN)
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
    return Replaced(made)


def _random(module: nn.FractionalMaxPool2d, taps: int | str) -> Outcome:  # noqa: ARG001
    return Refused(RANDOM)


def _power_pool(module: nn.LPPool2d, taps: int | str) -> Outcome:
    windows = _windows(module)
    if windows is None:
        return Refused(CEIL)
    kernel, (down, right) = windows
    padding = [nn.ZeroPad2d((right, right, down, down))] if down or right else []
    dense = nn.LPPool2d(module.norm_type, kernel, 1)
    return Replaced(nn.Sequential(*padding, dense, BlurPool2d(taps, _steps(module), algorithm="dense")))


def _pool(module: nn.MaxPool2d | nn.AvgPool2d, taps: int | str) -> Outcome:
    largest = isinstance(module, nn.MaxPool2d)
    if largest and module.return_indices:
        return Kept("its indices are asked for, and blurred maxima have none")
    windows = _windows(module)
    if windows is None:
        return Refused(CEIL)
    (kernel, padding), stride = windows, _steps(module)
    if largest and kernel[0] == kernel[1] and padding[0] == padding[1] and _pair(module.dilation) == (1, 1):
        return Replaced(MaxBlurPool2d(kernel, stride, padding, taps=taps, algorithm="dense"))
    names = ("dilation",) if largest else ("count_include_pad", "divisor_override")
    settings = {name: getattr(module, name) for name in names}
    if module.ceil_mode and not largest and padding != _pair(module.padding):
        settings |= {"count_include_pad": False}  # as torch does with what hangs over
    dense = type(module)(kernel, 1, padding, **settings)
    return Replaced(nn.Sequential(dense, BlurPool2d(taps, stride, algorithm="dense")))


def _windows(module: Any) -> tuple[tuple[int, int], tuple[int, int]] | None:
    r"""Kernel and padding of a dense pool that leaves as many samples, counted in the module's `ceil_mode`.

    `ceil((L - 1) / s) + 1` samples of L windows are those of L + s - 1 windows: of s // 2 pixels more on either side,
    and of kernels larger by one where s is even. None where a window would lie outside the map.
    """
    kernel, padding = _pair(module.kernel_size), _pair(getattr(module, "padding", 0))
    if not module.ceil_mode:
        return kernel, padding
    steps, dilation = _steps(module), _pair(getattr(module, "dilation", 1))
    if getattr(module, "divisor_override", None) or dilation != (1, 1):
        return None
    if any(step > k or 2 * pad > k - step + 1 for k, step, pad in zip(kernel, steps, padding, strict=True)):
        return None
    wider = (kernel[0] + (steps[0] + 1) % 2, kernel[1] + (steps[1] + 1) % 2)
    return wider, (padding[0] + steps[0] // 2, padding[1] + steps[1] // 2)


def _steps(module: nn.Module) -> tuple[int, int]:
    r"""The stride: that of windows is their size where none is given."""
    return _pair(module.kernel_size if module.stride is None else module.stride)


def _pair(value: object) -> tuple[int, int]:
    r"""A setting of torch for both axes; no pixels for a padding that is a word."""
    if isinstance(value, tuple):
        return value[0], value[-1]
    return (value, value) if isinstance(value, int) else (0, 0)


CONVERSIONS: dict[type[nn.Module], Callable[..., Outcome]] = {
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _pool,
    nn.AvgPool2d: _pool,
    nn.LPPool2d: _power_pool,
    nn.FractionalMaxPool2d: _random,
}
