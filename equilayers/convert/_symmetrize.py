r"""Any model made invariant by averaging it over the orbit of its input."""

from __future__ import annotations

from torch import Tensor, nn

from equilayers._checks import check_choice, refuse
from equilayers.functional import REDUCTIONS, reynolds
from equilayers.groups import Group, as_group


class Symmetrized(nn.Module):
    r"""A model averaged over the orbit of its input, see `symmetrize`."""

    def __init__(self, model: nn.Module, group: Group | str, reduction: str = "mean") -> None:
        super().__init__()
        self.group = as_group("symmetrize", group)
        self.reduction = check_choice("symmetrize", "reduction", reduction, REDUCTIONS)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        r"""The reduced outputs for inputs x (B, ...): `equilayers.functional.reynolds`."""
        return reynolds(self.model, self.group, x, self.reduction)

    def extra_repr(self) -> str:
        return f"{self.group!r}, reduction={self.reduction!r}"


def symmetrize(model: nn.Module, group: Group | str, reduction: str = "mean") -> Symmetrized:
    r"""The Reynolds average of any model: invariant to the last bit, at |G| times the cost, with the same weights.

    Args:
        model: inputs (B, ...) to outputs (B, ...); kept as the submodule `model`, not copied.
        group: the symmetry.
        reduction: "mean" of the outputs, "probabilities" (logarithm of their mean), or "max".

    Returns:
        A module from inputs (B, ...) that the group acts on to outputs (B, ...).

    Raises:
        TypeError: model is no module, or group no group.
        ValueError: an unknown reduction.

    Law: `symmetrize(f, group)(act(g, x)) == symmetrize(f, group)(x)`, bitwise for every f in eval mode.

    Source: Elesedy and Zaidi 2021 (arXiv:2102.10333).
    """
    if not isinstance(model, nn.Module):
        hint = "Wrap a function in a module, or call equilayers.functional.reynolds."
        refuse("symmetrize", "model to be a torch.nn.Module", type(model).__name__, hint, TypeError)
    return Symmetrized(model, group, reduction)
