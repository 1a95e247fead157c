r"""Functions of torch that a `forward` calls itself, where nothing can take their place: which break the symmetry.

A pool with a stride is symmetric at some sizes and not at others, so one run does not show it: what counts is how it
was called.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

_WINDOW = ("input", "kernel_size", "stride", "padding", "dilation")
_SCALED = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
WINDOWS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _WINDOW),
    "avg_pool2d": _WINDOW[:4],
    "lp_pool2d": ("input", "norm_type", "kernel_size", "stride"),
    **dict.fromkeys(("conv2d", "conv_transpose2d"), ("input", "weight", "bias", "stride", "padding")),
    "unfold": ("input", "kernel_size", "dilation", "padding", "stride"),
}
RANDOM = ("fractional_max_pool2d", "fractional_max_pool2d_with_indices")
SHUFFLES = ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "local_response_norm")
STEP = "samples every so many pixels, which is symmetric at some sizes alone"
LOPSIDED = "it pads more on one side"
RESCALED = "its pixels lie symmetrically at some sizes alone"
DECIDED = (
    "{} makes a number of what comes from the input: what is done for other numbers was not seen. Compute it with "
    "tensors, torch.where in the place of if"
)
Scale = float | tuple[float, ...] | None


def asymmetry(name: str, called: tuple[Any, Any], out: Any, *, lifted: bool) -> str | None:
    r"""Why a call of this function on maps is not symmetric at every size; None if nothing is known against it.

    called: its positional and its named arguments.
    lifted: whether channels are planes of a fiber, which must not be exchanged with others.
    """
    args, kwargs = called
    x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    if x is None or x.ndim != 4:
        return None
    if name in WINDOWS:
        return _windows(name, x, dict(zip(WINDOWS[name], args, strict=False)) | kwargs, out)
    if name in RANDOM:
        return f"{name} samples at random places; take a MaxBlurPool2d"
    if name in SHUFFLES and lifted:
        module = {"pixel_shuffle": "PixelShuffle", "pixel_unshuffle": "PixelUnshuffle"}.get(name)
        instead = f"; take the module nn.{module}, which is replaced" if module else ""
        return f"{name} exchanges the planes of a fiber with others{instead}"
    if name == "interpolate":
        given = dict(zip(_SCALED, args, strict=False)) | kwargs
        return _resized(x, given, out)
    if name == "pad":
        pad = kwargs.get("pad", args[1] if len(args) > 1 else ())
        return f"{name}: {LOPSIDED}; pad all sides alike" if len(set(pad[:4])) > 1 else None
    if name == "__getitem__" and _steps(args[1], x.ndim):
        return f"a slice {STEP}; take a BlurPool2d"
    return None


def resizing(mode: str, scale: Scale, *, recomputed: bool, corners: bool) -> bool:
    r"""Whether resizing so is symmetric at every size.

    By whole factors all modes are. Otherwise pixels lie symmetrically where their places follow from both sizes, which
    are then counted, and not from the factor; "nearest" rounds half a pixel to one side even so.
    """
    if scale is not None and all(float(s).is_integer() and s >= 1 for s in _pair(scale)):
        return True
    return not mode.startswith("nearest") and (scale is None or recomputed or corners or mode == "area")


def _resized(x: Tensor, given: dict[str, Any], out: Any) -> str | None:
    scale, mode = given.get("scale_factor"), given.get("mode") or "nearest"
    whole = scale is None and all(o % i == 0 for o, i in zip(out.shape[-2:], x.shape[-2:], strict=True))
    recomputed, corners = bool(given.get("recompute_scale_factor")), bool(given.get("align_corners"))
    if whole or resizing(mode, scale, recomputed=recomputed, corners=corners):
        return None
    return f"interpolate: {RESCALED}; pass mode='bilinear' and size= or recompute_scale_factor=True"


def _windows(name: str, x: Tensor, given: dict[str, Any], out: Any) -> str | None:
    weight = given.get("weight")
    kernel = _pair(given["kernel_size"] if weight is None else tuple(weight.shape[-2:]))
    stride = given.get("stride")
    steps = (kernel if "conv" not in name and name != "unfold" else (1, 1)) if stride in (None, []) else _pair(stride)
    whole = isinstance(out, Tensor) and kernel == tuple(x.shape[-2:]) and tuple(out.shape[-2:]) == (1, 1)
    if max(steps) == 1 or whole:
        return None
    if name == "unfold":
        return f"{name} {STEP}; cut windows with view, which takes whole ones alone"
    instead = "nn.Conv2d" if "conv" in name else "nn.MaxPool2d" if "max" in name else "nn.AvgPool2d"
    return f"{name} {STEP}; take the module {instead}, which is replaced"


def _steps(index: Any, ndim: int) -> bool:
    r"""Whether an index takes every so many of the last two axes."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(part, Tensor) or part is None for part in parts):
        return False
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (ndim - len(parts) + 1)
    return any(isinstance(part, slice) and part.step not in (None, 1) for part in parts[2:4])


def _pair(value: Any) -> tuple[Any, Any]:
    return (value[0], value[-1]) if isinstance(value, tuple | list) else (value, value)
