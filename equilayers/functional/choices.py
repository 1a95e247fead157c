r"""Which algorithm a layer runs for an input, and why: what `layer.chosen(x)` says."""

from __future__ import annotations

import torch
from torch import Tensor

from equilayers._checks import autocast, check_float
from equilayers.functional._conv import convolution_algorithm
from equilayers.functional._convolution.dispatch import Runtime, convolution_sizes
from equilayers.functional._convolution.geometry import ConvSpec
from equilayers.functional._linear import LinearSpec, check_linear, linear_algorithm, linear_sizes
from equilayers.functional._machine import Machine, machine_of
from equilayers.functional.cost import Choice, Work, calibrated, convolution_work, costs_of, linear_work, token_work
from equilayers.functional.tokens import token_sizes, token_space
from equilayers.functional.vector_maps import VectorSpec
from equilayers.groups import Group

PLAIN = Choice("plain", "the group has one element, so that nothing is tied: this is torch's own layer")
FASTER = ("auto", "bitwise")  # the words that leave the choice to the model


def linear_choice(caller: str, x: Tensor, weight: Tensor, spec: LinearSpec) -> Choice:
    r"""Of `lift_linear` or `group_linear`; x is checked as there."""
    check_linear(caller, x, weight, spec)
    if spec.group.order == 1:
        return PLAIN
    x, weight = autocast(x), autocast(weight)
    algorithm = linear_algorithm(x, weight, spec)
    if spec.algorithm not in FASTER:
        return named(algorithm, spec.algorithm)
    sizes, positions = linear_sizes(x, weight, spec), not spec.lifting and x.ndim > 3
    work = token_work if positions and spec.algorithm == "auto" else linear_work
    return _compared(algorithm, work(spec.group, sizes), spec.algorithm == "bitwise", machine_of(x))


def convolution_choice(caller: str, x: Tensor, weight: Tensor, spec: ConvSpec) -> Choice:
    r"""Of `lift_conv2d` or `group_conv2d`; x is checked as there."""
    check_float(caller, "x" if spec.lifting else "f", x)
    x = autocast(x)
    algorithm = convolution_algorithm(caller, x, weight, spec)
    if spec.group.order == 1:
        return PLAIN
    if spec.algorithm not in FASTER:
        return named(algorithm, spec.algorithm)
    runtime, exact = Runtime(machine_of(x), not torch.is_grad_enabled()), spec.algorithm == "bitwise"
    if not runtime.known and algorithm != "tokens":
        return Choice(algorithm, f"convolutions were not measured on {runtime.machine}; run `equilayers calibrate`")
    sizes = convolution_sizes(tuple(x.shape), tuple(weight.shape), spec, runtime.kept)
    return _compared(algorithm, convolution_work(spec.group, sizes, exact), exact, runtime.machine)


def token_choice(x: Tensor, group: Group, channels: int, features: int, algorithm: str) -> Choice:
    r"""Of a layer that works in a `TokenSpace`."""
    if group.order == 1:
        return PLAIN
    taken = "tokens" if token_space(x, group, channels, features, algorithm).spectral else "dense"
    if algorithm not in FASTER:
        return named(taken, algorithm)
    machine = machine_of(autocast(x))
    return _compared(taken, token_work(group, token_sizes(group, channels, features)), False, machine)


def vector_choice(spec: VectorSpec) -> Choice:
    r"""Of a map between vectors and regular features."""
    return expanded_choice(spec.group, spec.algorithm, dense=spec.dense)


def expanded_choice(group: Group, algorithm: str, *, dense: bool) -> Choice:
    r"""Of a layer that has no transform: it expands its weight unless the last bit is to be kept."""
    if group.order == 1:
        return PLAIN
    taken = "dense" if dense else "orbit"
    if algorithm not in FASTER:
        return named(taken, algorithm)
    return Choice(taken, f'algorithm="{algorithm}", and this layer has no transform to compare with')


def named(taken: str, algorithm: str) -> Choice:
    r"""What the user named."""
    if taken == algorithm:
        return Choice(taken, f'algorithm="{algorithm}" was set')
    return Choice(taken, f'algorithm="{algorithm}" was set, and this is what it means for this group and input')


def _compared(taken: str, choices: dict[str, Work], exact: bool, machine: Machine) -> Choice:
    costs = costs_of(choices, machine)
    costs = {name: costs[name] for name in sorted(costs, key=costs.__getitem__)}
    compared = ", ".join(f"{name} {1e-6 * cost:.3g} ms" for name, cost in costs.items())
    which = "the fastest that keeps the last bit" if exact else "the fastest"
    model = "roofline" if calibrated(choices, machine) is None else "calibration"
    return Choice(taken, f"{which} by the {model} of {machine}: {compared}", costs)
