r"""Any model made invariant by averaging it over the orbit of its input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from equilayers._checks import refuse
from equilayers.functional import check_average, reynolds
from equilayers.groups import Group, as_group


class Symmetrized(nn.Module):
    r"""A model averaged over the orbit of its input, see `symmetrize`."""

    def __init__(self, model: nn.Module, group: Group | str, reduction: str = "mean", output: str = "auto") -> None:
        super().__init__()
        self.group = as_group("symmetrize", group)
        self.reduction, self.output = check_average("symmetrize", reduction, output)
        self.model = model

    def forward(self, x: Tensor) -> Any:
        r"""The reduced outputs for inputs x (B, ...): `equilayers.functional.reynolds`."""
        return reynolds(self.model, self.group, x, self.reduction, self.output)

    def extra_repr(self) -> str:
        moved = "" if self.output == "auto" else f", output={self.output!r}"
        return f"{self.group!r}, reduction={self.reduction!r}{moved}"


def symmetrize(model: nn.Module, group: Group | str, reduction: str = "mean", output: str = "auto") -> Symmetrized:
    r"""The Reynolds average of any model: exact to the last bit, at |G| times the cost, with the same weights.

    Args:
        model: inputs (B, ...) to outputs (B, ...), or tuples, lists, dictionaries or dataclasses of such; kept as the
            submodule `model`, not copied.
        group: the symmetry.
        reduction: "mean" of the outputs, "probabilities" (logarithm of their mean), or "max".
        output: "image" where outputs move with the input: they are moved back before the mean, those with fewer axes
            stay; "vector", "vector:right-down", "vector:down-right" for vectors of the plane and fields of them, with
            the reduction "mean"; "invariant" where they do not move; "auto" for rows (B,) and (B, K), which do not.

    Returns:
        A module from inputs (B, ...) that the group acts on to outputs (B, ...).

    Raises:
        TypeError: model is no module, or group no group.
        ValueError: an unknown reduction or output; in forward, an output of "auto" with axes of space.

    Law: `symmetrize(f, group)(act(g, x)) == symmetrize(f, group)(x)`, and with output="image"
        `symmetrize(f, group)(act(g, x)) == act(g, symmetrize(f, group)(x))`; bitwise for "mean" and "max" of every f in
        eval mode, the latter where the group moves x to |G| different inputs.

    Source: Elesedy and Zaidi 2021 (arXiv:2102.10333).
    """
    if not isinstance(model, nn.Module):
        hint = "Wrap a function in a module, or call equilayers.functional.reynolds."
        refuse("symmetrize", "model to be a torch.nn.Module", type(model).__name__, hint, TypeError)
    return Symmetrized(model, group, reduction, output)
