r"""Weight-tied linear layers: two classes over one core, which a `LinearSpec` tells apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equilayers._checks import ALGORITHMS, check_int
from equilayers.functional import WeightCache, linear, linear_spec
from equilayers.functional.choices import linear_choice
from equilayers.functional.cost import Choice
from equilayers.functional.tokens import TokenSpace, TokenWeight
from equilayers.groups import Group
from equilayers.nn._algorithm import algorithm
from equilayers.nn._init import add_parameters, reset


class LiftingLinear(nn.Module):
    r"""A linear layer applied to every element of the input's orbit: from a space to regular features.

    `y[b, o, h] = <weight_o, h^-1 · x_b> + bias_o`, input (B, *in_shape), output (B, out_features, |G|).

    Args:
        group: the symmetry, or its name, "C4".
        in_shape: shape of one input, ending in the space the group acts on: (C, H, W), or n for a flat vector.
        out_features: number of output features.
        bias: learn a bias, one per feature, shared over the fiber.
        algorithm: "auto", "bitwise", "orbit", "dense" or "fourier"; see `equilayers.functional.lift_linear`.

    Attributes:
        weight: (out_features, *in_shape), initialised as in torch.nn.Linear.
        bias: (out_features,) or None.
        exactness: "bitwise"; "rounding" with "auto" and "dense".

    Raises:
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: an in_shape the group does not act on, an unknown algorithm; in forward, another shape.

    Law: `layer(act(g, x)) == act_regular(g, layer(x))` for all g, at the level of `exactness`, on CPU in float32 and
        float64, for every batch size and number of threads. The trivial group gives torch.nn.Linear.

    Source: Cohen and Welling 2016, Eq. 10 (arXiv:1602.07576); Moskalev et al. 2023 (arXiv:2308.03904).
    """

    ALGORITHMS = ALGORITHMS
    algorithm = algorithm
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        group: Group | str,
        in_shape: Sequence[int] | int,
        out_features: int,
        bias: bool = True,
        algorithm: str = "bitwise",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "LiftingLinear"
        self.spec = linear_spec(caller, group, algorithm, lifting=True)
        self.group = self.spec.group
        shape = in_shape if isinstance(in_shape, Sequence) else (in_shape,)
        self.in_shape = tuple(check_int(caller, "in_shape entries", n, 1) for n in shape)
        self.group.check_stackable(self.in_shape, caller)
        self.out_features = check_int(caller, "out_features", out_features, 1)
        self._cache = WeightCache()
        add_parameters(self, (self.out_features, *self.in_shape), bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Linear does."""
        reset(self.weight, self.bias)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.spec.exactness

    def forward(self, x: Tensor) -> Tensor:
        return linear("LiftingLinear", x, self.weight, self.bias, self.spec, self._cache)

    def chosen(self, x: Tensor) -> Choice:
        r"""The algorithm that runs for x, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        return linear_choice("LiftingLinear", x, self.weight, self.spec)

    def extra_repr(self) -> str:
        sizes = f"{self.group!r}, in_shape={self.in_shape}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, algorithm={self.spec.algorithm!r}"


class GroupLinear(nn.Module):
    r"""The equivariant linear layer between regular features, at every position alike.

    `y[b, o, h, s] = sum_{c,k} weight[o, c, h^-1 k] f[b, c, k, s] + bias_o`, input (B, in_features, |G|, *S), output
    (B, out_features, |G|, *S): vectors, tokens (B, C, |G|, N), maps (B, C, |G|, H, W).

    Args:
        group: the symmetry, or its name, "C4".
        in_features: number of input features, C.
        out_features: number of output features.
        bias: learn a bias, one per feature, shared over the fiber.
        algorithm: "auto" (the fastest, for tokens), "bitwise", "orbit", "dense" or "fourier"; see
            `equilayers.functional.group_linear`.

    Attributes:
        weight: (out_features, in_features, |G|), initialised as in torch.nn.Linear.
        bias: (out_features,) or None.
        exactness: "bitwise"; "rounding" with "auto" and "dense", and with "fourier" for a group without an exact
            transform.

    Raises:
        TypeError: group is no group, a size no int; in forward, an input that is not floating-point.
        ValueError: an unknown algorithm; in forward, another number of channels or another fiber.

    Law: `layer(act_regular(g, f)) == act_regular(g, layer(f))` for all g, at the level of `exactness`, on CPU in
        float32 and float64, for every batch size and number of threads.

    Source: Cohen and Welling 2016, Eq. 11 (arXiv:1602.07576).
    """

    ALGORITHMS = ALGORITHMS
    algorithm = algorithm
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        group: Group | str,
        in_features: int,
        out_features: int,
        bias: bool = True,
        algorithm: str = "bitwise",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        caller = "GroupLinear"
        self.spec = linear_spec(caller, group, algorithm, lifting=False)
        self.group = self.spec.group
        self.in_features = check_int(caller, "in_features", in_features, 1)
        self.out_features = check_int(caller, "out_features", out_features, 1)
        self._cache = WeightCache()
        add_parameters(self, (self.out_features, self.in_features, self.group.order), bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw the parameters as torch.nn.Linear does."""
        reset(self.weight, self.bias)

    @property
    def exactness(self) -> str:
        r"""The level at which the law holds."""
        return self.spec.exactness

    def forward(self, f: Tensor) -> Tensor:
        return linear("GroupLinear", f, self.weight, self.bias, self.spec, self._cache)

    def _on_tokens(
        self,
        space: TokenSpace,
        x: Tensor,
        *,
        norm: TokenWeight | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        r"""The layer in a space; `norm` and `scale` as of `TokenWeight`."""
        return space.map(x, TokenWeight(self.weight, self.bias, scale=scale).after(norm), self._cache)

    def chosen(self, f: Tensor) -> Choice:
        r"""The algorithm that runs for f, and why, as `equilayers.functional.cost.Choice`; nothing is computed."""
        return linear_choice("GroupLinear", f, self.weight, self.spec)

    def extra_repr(self) -> str:
        sizes = f"{self.group!r}, in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, algorithm={self.spec.algorithm!r}"
