r"""The algorithm of weight-tied layers: read and set, in one layer or in a whole model."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from equilayers._checks import ALGORITHMS, check_choice, refuse

ModelT = TypeVar("ModelT", bound=nn.Module)


def _get(layer: Any) -> str:
    return str(layer.spec.algorithm)


def _set(layer: Any, algorithm: str) -> None:
    layer.spec = layer.spec.with_algorithm(type(layer).__name__, algorithm)


algorithm = property(_get, _set, doc="The name of the algorithm; it may be set.")


def set_algorithm(model: ModelT, algorithm: str) -> ModelT:
    r"""Set the algorithm of every layer of this library in a model.

    Args:
        model: any module.
        algorithm: "auto", the fastest of all, at rounding level; "bitwise", the fastest that keeps the last bit; or a
            method by its name, "orbit", "fourier" or "dense". Layers that have no method of that name, such as blur
            pools, keep theirs.

    Returns:
        The model itself, changed in place.

    Raises:
        TypeError: model is no module.
        ValueError: an unknown name, or a layer whose group does not allow it, such as "bitwise" where rotations are
            interpolated; then no layer is changed.

    Law: after `set_algorithm(model, "bitwise")` every layer whose `exactness` depends on its algorithm alone is
        "bitwise".
    """
    caller = "set_algorithm"
    if not isinstance(model, nn.Module):
        refuse(caller, "model to be a torch.nn.Module", type(model).__name__, "Pass a module.", TypeError)
    check_choice(caller, "algorithm", algorithm, ALGORITHMS)
    layers = [(path, layer) for path, layer in model.named_modules() if hasattr(type(layer), "ALGORITHMS")]
    layers = [(path, layer) for path, layer in layers if algorithm in type(layer).ALGORITHMS]
    for path, layer in layers:
        if hasattr(layer, "spec"):
            layer.spec.with_algorithm(f"{caller}, {type(layer).__name__} at '{path}'", algorithm)
    for _, layer in layers:
        layer.algorithm = algorithm
    return model
