r"""Modules of escnn 1.0.11 as modules on plain tensors: the same function, the trained weights, exact equivariance.

C trivial fields are an image (B, C, H, W) in both libraries. C regular fields are (B, C·|G|, H, W) there and
(B, C, |G|, H, W) here, the fiber in the order of our group; `to_regular` takes the one to the other. No order is
assumed: an element of escnn's group is the element of ours that moves pixels the same way.

    model = from_escnn(trained)  # an escnn.nn.SequentialModule, say
    model(x.tensor)              # for an escnn GeometricTensor x of trivial fields: to_regular(trained(x))
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from equilayers._checks import refuse
from equilayers.interop._escnn_fields import escnn_nn, fields_of
from equilayers.interop._escnn_layers import blocks_and_bias, counterparts

__all__ = ["expanded_filter", "from_escnn", "to_regular"]


def from_escnn(module: nn.Module) -> nn.Module:
    r"""The escnn module as a module on plain tensors that computes the same.

    - `R2Conv`: LiftingConv2d from trivial fields, GroupConv2d from regular ones; to trivial fields, that and
      OrbitPool("mean"), or nn.Conv2d where it is 1 x 1 without stride and comes from trivial fields.
    - `R2ConvTransposed`: GroupConvTranspose2d, between regular fields; `R2Upsampling`: GroupUpsample.
    - `GroupPooling`: OrbitPool("max").
    - `InnerBatchNorm`, `PointwiseMaxPool2D`, `PointwiseAvgPool2D`, `PointwiseAdaptiveMaxPool2D`,
      `PointwiseAdaptiveAvgPool2D`: torch's own, 3-D with windows (1, k, k) on regular fields, 2-D on trivial ones.
    - `ReLU`, `ELU`, `LeakyReLU`, `PointwiseNonLinearity`, `PointwiseDropout`, `IdentityModule`: torch's own.
    - `SequentialModule`: nn.Sequential of the same names; a module that occurs twice does so in the result.

    At some sizes escnn's modules are not equivariant, because their sampling grid is lopsided: with stride 2 and an odd
    kernel at even sizes, for example. There our convolutions raise ValueError; torch's pooling, like escnn's, does not.
    escnn's `GroupPooling` gives float32 whatever it is given; OrbitPool keeps the dtype.

    Args:
        module: escnn module, in train or eval mode, on trivial fields alone or regular fields alone, whose group moves
            the plane as CyclicRotation(n) or Dihedral(n) does with n in 1, 2, 4.

    Returns:
        Module from (B, C, H, W) or (B, C, |G|, H, W) to the one or the other, of the mode, dtype and device of
        `module`. Its parameters are copies that share no memory, and learn where those of `module` do.

    Raises:
        ImportError: escnn is not installed.
        TypeError: a module not listed above.
        ValueError: other fields, another group, or a filter that is not equivariant.

    Law: `from_escnn(m)(to_regular(x)) == to_regular(m(x))` for every GeometricTensor x, to rounding, wherever our
        convolutions do not refuse the size; dropout aside.

    Source: Weiler and Cesa 2019 (arXiv:1911.08251); Cesa, Lang and Weiler 2022 (escnn).
    """
    return _convert(module, "", {})


def expanded_filter(module: nn.Module) -> Tensor:
    r"""The filter of the ordinary convolution that an escnn `R2Conv` does, its fibers in the order of our group.

    Args:
        module: escnn R2Conv from C to O fields. In train mode the filter is expanded from the basis, in eval mode it is
            the one that escnn keeps ready.

    Returns:
        Filter (O·t, C/groups·s, kh, kw), a detached copy of the module's dtype and device: row (o, h), column (c, k),
        with t = |G| for regular output fields and 1 for trivial ones, and s likewise for the input.

    Raises:
        ImportError: escnn is not installed.
        TypeError: module is no R2Conv.
        ValueError: fields neither all trivial nor all regular, or another group.

    Law: with regular output fields row (o, h) is row (o, 0) moved by h, by `act` for trivial input fields and by
        `act_regular` for regular ones, up to the rounding in float32 with which escnn samples its basis.

    Source: Weiler and Cesa 2019, section 2.4 (arXiv:1911.08251).
    """
    if not isinstance(module, escnn_nn().R2Conv):
        hint = "Other modules have no filter; from_escnn converts them."
        refuse("expanded_filter", "module to be an escnn R2Conv", type(module).__name__, hint, TypeError)
    source, target = (fields_of("expanded_filter", "module", kind) for kind in (module.in_type, module.out_type))
    return blocks_and_bias(module, source, target)[0].flatten(2, 3).flatten(0, 1)


def to_regular(x: Any) -> Tensor:
    r"""The tensor of an escnn GeometricTensor in the layout of this library.

    Args:
        x: GeometricTensor (B, C·|G|, H, W) of C regular fields, or (B, C, H, W) of C trivial ones.

    Returns:
        Feature (B, C, |G|, H, W), a copy in the order of our group; for trivial fields the tensor itself. Of the dtype
        and device of x, differentiable.

    Raises:
        ImportError: escnn is not installed.
        TypeError: x is no GeometricTensor.
        ValueError: fields neither all trivial nor all regular, or another group.

    Law: `to_regular(x.transform(e)) == act_regular(g, to_regular(x))` for all g and the element e of escnn that moves
        pixels as g does, to the rounding of escnn's interpolation.
    """
    if not isinstance(x, escnn_nn().GeometricTensor):
        hint = "Wrap the tensor in its type: field_type(tensor)."
        refuse("to_regular", "x to be an escnn GeometricTensor", type(x).__name__, hint, TypeError)
    fields = fields_of("to_regular", "x", x.type)
    return x.tensor.unflatten(1, (fields.channels, -1))[:, :, fields.places] if fields.regular else x.tensor


def _convert(module: nn.Module, path: str, done: dict[nn.Module, nn.Module]) -> nn.Module:
    r"""`from_escnn` of the module at this path, unless it is already `done`."""
    if module in done:
        return done[module]
    if type(module) is escnn_nn().SequentialModule:
        parts = [(name, part) for name, part in module._modules.items() if part is not None]
        inside = OrderedDict((name, _convert(part, f"{path}.{name}".lstrip("."), done)) for name, part in parts)
        converted: nn.Module = nn.Sequential(inside)
        converted.training = module.training
    else:
        known, what = counterparts(), path or "module"
        if type(module) not in known:
            names = ", ".join(["SequentialModule", *(kind.__name__ for kind in known)])
            hint = "Convert the modules around it one by one, and do its part on plain tensors."
            refuse("from_escnn", f"{what} to be one of escnn's {names}", type(module).__name__, hint, TypeError)
        fields = fields_of("from_escnn", f"{what} ({type(module).__name__})", module.in_type)
        converted = known[type(module)](module, fields, what).train(module.training)
    done[module] = converted
    return converted
