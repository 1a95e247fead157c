r"""Weight-tied linear maps: lifting from a space to regular features, and between regular features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from equilayers._checks import (
    ALGORITHMS,
    autocast,
    check_choice,
    check_float,
    check_same_dtype,
    in_autocast,
    overridable,
    refuse,
)
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._convolution.patches import PatchKernel
from equilayers.functional._fourier.autograd import Correlate
from equilayers.functional._fourier.basis import MAX_ORDER
from equilayers.functional._fourier.correlation import PlaneKernel, operators_of, transform, transform_blocks
from equilayers.functional._fourier.irreps import Fourier
from equilayers.functional._fourier.orbits import OrbitTable, orbit_table
from equilayers.functional._fourier.transforms import fourier_of
from equilayers.functional._machine import machine_of
from equilayers.functional._weight_cache import WeightCache, is_plain
from equilayers.functional.cost import (
    MANY_ROWS,
    LinearSizes,
    cheapest_compiled,
    cheapest_linear,
    cheapest_tokens,
)
from equilayers.functional.tokens import TokenSpace, TokenWeight, feature_of, planes_of, token_linear
from equilayers.groups import Group, Rotations, as_group


@dataclass(frozen=True)
class LinearSpec:
    r"""The settings of a weight-tied linear map, checked once; lifting: from a space, without a fiber."""

    group: Group
    lifting: bool
    algorithm: str

    @property
    def exactness(self) -> str:
        r"""The level of the law: "rounding" where the matrix may be expanded."""
        rounds = self.algorithm == "fourier" and fourier_of(self.group) is None and self.group.order > 1
        return "rounding" if self.algorithm in ("auto", "dense") or rounds else "bitwise"

    @property
    def act(self) -> Callable[[int, Tensor], Tensor]:
        r"""The action of the group on inputs and weights."""
        return self.group.act if self.lifting else self.group.act_regular

    def with_algorithm(self, caller: str, algorithm: str) -> LinearSpec:
        r"""The same with another algorithm, which is checked."""
        return replace(self, algorithm=check_choice(caller, "algorithm", algorithm, ALGORITHMS))


def linear_spec(caller: str, group: Group | str, algorithm: str, *, lifting: bool) -> LinearSpec:
    r"""The checked settings; TypeError or ValueError where they make no sense."""
    group = as_group(caller, group, exact=lifting)
    return LinearSpec(group, lifting, check_choice(caller, "algorithm", algorithm, ALGORITHMS))


def lift_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, group: Group | str, *, algorithm: str = "bitwise"
) -> Tensor:
    r"""Lifting: the linear map applied to every element of the input's orbit.

    `y[b, o, h] = <weight_o, h^-1 · x_b> + bias_o`

    Args:
        x: input (B, *in_shape), floating-point; in_shape ends in the space the group acts on, (C, H, W) or (n,).
        weight: (O, *in_shape), of the dtype of x.
        bias: (O,) or None.
        group: the symmetry, or its name, "C4".
        algorithm: "auto" (the fastest known), "bitwise" (the fastest that keeps the last bit, by the measured cost
            model; in a compiled or exported graph, which serves any batch, the fastest for a batch of 256), "orbit"
            (one ordinary product per element of the orbit), "fourier" (group Fourier transform; rotations, mirrors and
            translations) or "dense" (one product with the expanded matrix).

    Returns:
        Regular feature (B, O, |G|) of the dtype and device of x.

    Raises:
        TypeError: x is not floating-point or its dtype is not the weight's.
        ValueError: shapes that do not fit, or an algorithm the group does not have.

    Law: `lift_linear(act(g, x)) == act_regular(g, lift_linear(x))` for all g: bitwise with "bitwise", "orbit"
        and "fourier", rounding with "auto" and "dense".

    Source: Cohen and Welling 2016, Eq. 10 (arXiv:1602.07576); Moskalev et al. 2023 (arXiv:2308.03904).
    """
    return linear("lift_linear", x, weight, bias, linear_spec("lift_linear", group, algorithm, lifting=True), None)


def group_linear(
    f: Tensor, weight: Tensor, bias: Tensor | None, group: Group | str, *, algorithm: str = "bitwise"
) -> Tensor:
    r"""The equivariant linear map between regular features, at every position alike: a correlation over the group.

    `y[b, o, h, s] = sum_{c,k} weight[o, c, h^-1 k] f[b, c, k, s] + bias_o`

    Args:
        f: regular feature (B, C, |G|, *S), floating-point: a vector, tokens (B, C, |G|, N), a map (B, C, |G|, H, W).
        weight: (O, C, |G|), of the dtype of f.
        bias: (O,) or None.
        group: the symmetry, or its name, "C4".
        algorithm: "auto" (the fastest known: the group Fourier transform of the tokens, for any group, or the expanded
            matrix), "bitwise", "orbit", "dense" or "fourier" as in `lift_linear`; of groups without a transform that
            keeps the last bit "fourier" keeps the law to rounding.

    Returns:
        Regular feature (B, O, |G|, *S) of the dtype and device of f; its channels are innermost in memory, the fiber
        next, and a feature in that order is read without a copy.

    Raises:
        TypeError: f is not floating-point or its dtype is not the weight's.
        ValueError: shapes that do not fit, no positions, or a group too large for an algorithm.

    Law: `group_linear(act_regular(g, f)) == act_regular(g, group_linear(f))` for all g, whether the positions move or
        not: bitwise with "bitwise", "orbit" and, for C2, C4, D1, D2, D4 and T_n, "fourier"; rounding otherwise.

    Source: Cohen and Welling 2016, Eq. 11 (arXiv:1602.07576).
    """
    return linear("group_linear", f, weight, bias, linear_spec("group_linear", group, algorithm, lifting=False), None)


@overridable
def linear(
    caller: str, x: Tensor, weight: Tensor, bias: Tensor | None, spec: LinearSpec, cache: WeightCache | None
) -> Tensor:
    r"""Either linear map, with checked settings.

    cache: where a module keeps the transformed weight between calls that want no gradient.
    """
    group = spec.group
    check_linear(caller, x, weight, spec)
    x, weight = autocast(x), autocast(weight)
    bias = None if bias is None else autocast(bias)
    if group.order == 1:  # nothing is tied: torch's own layer
        if spec.lifting:
            return F.linear(x.flatten(1), weight.flatten(1), bias).unsqueeze(-1)
        return feature_of(F.linear(planes_of(x), weight[:, :, 0], bias), x)
    algorithm = linear_algorithm(x, weight, spec)
    if not spec.lifting and algorithm in ("tokens", "dense"):
        return token_linear(x, TokenWeight(weight, bias), TokenSpace(group, algorithm == "tokens"), cache)
    if not spec.lifting and x.ndim > 3:
        return _at_positions(x, weight, bias, replace(spec, algorithm=algorithm), cache)
    if algorithm == "orbit":
        return _orbit(x, weight, bias, spec)
    fourier = fourier_of(group)
    if algorithm == "dense" or fourier is None:
        return _dense(x, weight, bias, spec, cache)
    if not spec.lifting:
        return _fourier(x, weight, bias, fourier, None, cache)
    table = orbit_table(group, tuple(x.shape[1:]), x.device)
    return _fourier(x.flatten(1), weight.flatten(1), bias, fourier, table, cache)


def check_linear(caller: str, x: Tensor, weight: Tensor, spec: LinearSpec) -> None:
    r"""Refuse what does not fit: the input, the weight, or the algorithm with the group."""
    group, name = spec.group, "x" if spec.lifting else "f"
    check_float(caller, name, x)
    if not spec.lifting:
        group.check_fiber(x, caller)
    shape = x.shape[1:] if spec.lifting else x.shape[1:3]
    if x.ndim < 2 or shape != weight.shape[1:]:
        wanted = ", ".join(map(str, weight.shape[1:]))
        hint = (
            "The trailing axes must be those of the weight." if spec.lifting else "Its channels must be the weight's."
        )
        refuse(caller, f"{name} of shape (B, {wanted}{'' if spec.lifting else ', *positions'})", tuple(x.shape), hint)
    if spec.lifting:
        group.check_stackable(tuple(x.shape[1:]), caller)
    if not in_autocast(x):
        check_same_dtype(caller, name, x, weight)
    if spec.algorithm == "fourier" and spec.lifting and fourier_of(group) is None and group.order > 1:
        hint = 'Use algorithm="bitwise" or "orbit".'
        refuse(caller, 'algorithm="fourier" with rotations, mirrors or translations', repr(group), hint)
    if spec.algorithm == "fourier" and group.order > MAX_ORDER:
        hint = 'Use algorithm="bitwise" or "orbit".'
        refuse(caller, f'algorithm="fourier" with a group of at most {MAX_ORDER} elements', group.order, hint)


def linear_sizes(x: Tensor, weight: Tensor, spec: LinearSpec) -> LinearSizes:
    r"""The sizes of a call, by which `linear_algorithm` chooses."""
    rows = x.shape[0] if spec.lifting else x.shape[0] * math.prod(x.shape[3:])
    kept = not torch.is_grad_enabled()
    return LinearSizes(rows, math.prod(weight.shape[1:]), weight.shape[0], spec.lifting, kept)


def linear_algorithm(x: Tensor, weight: Tensor, spec: LinearSpec) -> str:
    r"""What is done for an input: "orbit", "fourier", "dense", or "tokens", the transform of every position."""
    group, named, positions = spec.group, spec.algorithm, not spec.lifting and x.ndim > 3
    compiling = torch.compiler.is_compiling()  # a compiler reorders sums as it likes: there is no last bit to keep
    if named == "fourier" and (fourier_of(group) is None or (positions and compiling)):
        return "tokens"
    if named not in ("auto", "bitwise"):
        return named
    if compiling:  # a graph serves any batch
        entries, features = math.prod(weight.shape[1:]), weight.shape[0]
        if positions:
            sizes = LinearSizes(MANY_ROWS, entries, features, lifting=False, kept=True)
            return cheapest_tokens(group, sizes, machine_of(x))
        return cheapest_compiled(group, (entries, features, spec.lifting), named == "bitwise")
    sizes = linear_sizes(x, weight, spec)
    if not positions:
        return cheapest_linear(group, sizes, named == "bitwise", machine_of(x))
    if named == "auto":
        return cheapest_tokens(group, sizes, machine_of(x))
    if not _moves(group, tuple(x.shape[3:])):  # the places of the rows are fixed: as many vectors
        return cheapest_linear(group, sizes, True, machine_of(x))
    return "orbit" if fourier_of(group) is None or not isinstance(group, Rotations) else "fourier"


def _at_positions(
    f: Tensor, weight: Tensor, bias: Tensor | None, spec: LinearSpec, cache: WeightCache | None
) -> Tensor:
    r"""The group linear map at every position of f (B, C, |G|, *S), by "orbit" or "fourier", to the last bit."""
    group = spec.group
    if not _moves(group, tuple(f.shape[3:])):  # the places of the rows are fixed: as many vectors
        vectors = linear("group_linear", planes_of(f).permute(1, 2, 0), weight, bias, spec, cache)
        return feature_of(vectors.permute(2, 0, 1), f)
    fourier = fourier_of(group)
    if spec.algorithm == "orbit" or fourier is None or not isinstance(group, Rotations):
        return _orbit_at_positions(f, weight, bias, group)
    size = f.shape[-2], f.shape[-1]
    kernel = PatchKernel(ConvSpec(group, False, (1, 1), algorithm="fourier"), fourier, fourier, size)
    return Correlate.apply(f, weight[..., None, None], bias, kernel)


def _moves(group: Group, space: tuple[int, ...]) -> bool:
    r"""Whether the group acts on arrays of this shape."""
    try:
        group.check_space(space, "act")
    except ValueError:
        return False
    return True


def _orbit_at_positions(f: Tensor, weight: Tensor, bias: Tensor | None, group: Group) -> Tensor:
    r"""`y[:, :, h] = h · (W (h^-1 · f))`, one product per element, each on an operand of its own."""
    matrix, planes = weight.mT.flatten(1), []
    for h in range(group.order):
        moved = group.act_regular(group.inverse(h), f) if h else f.clone()
        y = F.linear(planes_of(moved).transpose(0, 1).contiguous().flatten(1), matrix, bias)
        planes.append(group.act(h, feature_of(y[None], moved)[:, :, 0]))
    return torch.stack(planes, 2)


def _fourier(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fourier: Fourier,
    table: OrbitTable | None,
    cache: WeightCache | None,
) -> Tensor:
    r"""Flat x (B, N) and weight (O, N) with a table of orbits, or features (B, C, |G|) and (O, C, |G|) without one."""
    # Planes in one memory order: a product of operands in another order may end in other bits.
    planes = x.transpose(1, 2).contiguous() if table is None else table.planes(x)

    def weight_planes() -> Tensor:
        return weight.transpose(1, 2).contiguous() if table is None else table.weight_planes(weight)

    if torch.compiler.is_compiling():
        return transform(planes, operators_of(weight_planes(), fourier), bias, fourier).transpose(1, 2)
    if cache is None or torch.is_grad_enabled() or not is_plain(x, weight):
        return Correlate.apply(planes, weight_planes(), bias, PlaneKernel(fourier)).transpose(1, 2)
    operators = cache.get(weight, lambda: operators_of(weight_planes(), fourier), "fourier")
    return transform_blocks(planes, operators, bias, fourier, weight.shape[0]).transpose(1, 2)


def _orbit(x: Tensor, weight: Tensor, bias: Tensor | None, spec: LinearSpec) -> Tensor:
    r"""One product per element, each on an operand of its own.

    The last bits of a matrix product depend on how its operand is aligned in memory and on where in it a row stands.
    """
    group, act, matrix = spec.group, spec.act, weight.flatten(1)
    moved = (act(group.inverse(h), x) if h else x.clone() for h in range(group.order))
    return torch.stack([F.linear(part.contiguous().flatten(1), matrix, bias) for part in moved], 1).transpose(1, 2)


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, spec: LinearSpec, cache: WeightCache | None) -> Tensor:
    r"""One product with the expanded matrix of a lifting."""
    n = spec.group.order
    biases = None if bias is None else bias.repeat_interleave(n)
    keep = cache is not None and not torch.compiler.is_compiling() and not torch.is_grad_enabled()
    if cache is not None and keep and is_plain(x, weight):
        matrix = cache.get(weight, lambda: expand_matrix(weight, spec), "dense")
    else:
        matrix = expand_matrix(weight, spec)
    return F.linear(x.flatten(1), matrix, biases).unflatten(1, (weight.shape[0], n))


def expand_matrix(weight: Tensor, spec: LinearSpec) -> Tensor:
    r"""The matrix (O·|G|, N) of the ordinary linear map, rows (o, h) = h · weight_o. Differentiable."""
    return torch.stack([spec.act(h, weight).flatten(1) for h in range(spec.group.order)], 1).flatten(0, 1)
