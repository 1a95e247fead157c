"""Slow float64 references of transformer layers, straight from the formulas; they share no code with the library."""

import itertools
import math
from typing import Any

import numpy as np

from equilayers.groups import Dihedral, Group
from reference import Array, act, group_linear, order

State = dict[str, Array]


def rows_of(f: Array) -> Array:
    """A feature (B, C, |G|, *S) as vectors, the positions of each sample one after the other."""
    return np.moveaxis(f.reshape(*f.shape[:3], -1), 3, 1).reshape(-1, *f.shape[1:3])


def feature_of(rows: Array, f: Array) -> Array:
    """The inverse: (B, O, |G|, *S) with the batch and positions of f."""
    split = rows.reshape(len(f), -1, *rows.shape[1:])
    return np.moveaxis(split, 1, 3).reshape(len(f), *rows.shape[1:], *f.shape[3:])


def token_linear(f: Array, weight: Array, bias: Array | None, group: Group) -> Array:
    """The group linear map at each position."""
    return feature_of(group_linear(rows_of(f), weight, bias, group), f)


def layer_norm(f: Array, weight: Array | None, bias: Array | None, eps: float, rms: bool = False) -> Array:
    """`weight_c (f - mean) / sqrt(variance + eps) + bias_c` over channels and fiber; rms: the mean taken for zero."""
    rows = rows_of(f).copy()
    for row in rows:
        numbers = [float(v) for v in row.flat]
        mean = 0.0 if rms else math.fsum(numbers) / len(numbers)
        square = math.fsum((v - mean) ** 2 for v in numbers) / len(numbers)
        for c in range(len(row)):
            scale, shift = 1 if weight is None else weight[c], 0 if bias is None else bias[c]
            row[c] = scale * (row[c] - mean) / math.sqrt(square + eps) + shift
    return feature_of(rows, f)


def attention(q: Array, k: Array, v: Array, heads: int, mask: Array | None = None, seen: Array | None = None) -> Array:
    """`y_s = sum_t softmax_t(<q_s, k_t> / sqrt(d) + mask) v_t` of each head, over its channels and the fiber.

    mask: numbers (B, heads, N, M). seen: truth values of that shape, of the pairs that take part.
    """
    batch, channels, n, *_ = q.shape
    y, d = np.zeros((batch, channels, n, math.prod(q.shape[3:]))), channels // heads
    flat_q, flat_k, flat_v = (f.reshape(*f.shape[:3], -1) for f in (q, k, v))
    for b, a, s in itertools.product(range(batch), range(heads), range(y.shape[3])):
        mine = slice(a * d, a * d + d)
        first = a * k.shape[1] // channels * d  # as many heads of the query share one of the key
        theirs = slice(first, first + d)
        weights = []
        for t in range(flat_k.shape[3]):
            score = np.sum(flat_q[b, mine, :, s] * flat_k[b, theirs, :, t]) / math.sqrt(d * n)
            score += 0 if mask is None else mask[b, a, s, t]
            weights.append(math.exp(score) if seen is None or seen[b, a, s, t] else 0.0)
        for t, weight in enumerate(weights):
            y[b, mine, :, s] += weight / math.fsum(weights) * flat_v[b, theirs, :, t]
    return y.reshape(q.shape)


def rotary(f: Array, heads: int, group: Group, theta: float) -> Array:
    """Channel pairs (i, i + d/2) of each head turned, in plane h by the angles of plane 0 moved by h."""
    y, (height, width), d = f.copy(), f.shape[3:], f.shape[1] // heads
    quarter = order(group) // (2 if isinstance(group, Dihedral) else 1) == 4
    for i in range(d // 2):
        across, down = ((math.sqrt(0.5),) * 2 if quarter else (0.0, 1.0)) if i % 2 else (1.0, 0.0)
        frequency = theta ** -(i // 2 / math.ceil(d // 2 / 2))
        angle = np.zeros((height, width))
        for p, r in np.ndindex(height, width):
            angle[p, r] = frequency * (across * (r - (width - 1) / 2) + down * (p - (height - 1) / 2))
        for h, a in itertools.product(range(order(group)), range(heads)):
            pair = a * d + i, a * d + i + d // 2
            turned = (f[:, pair[0], h] + 1j * f[:, pair[1], h]) * np.exp(1j * act(group, h, angle))
            y[:, pair[0], h], y[:, pair[1], h] = turned.real, turned.imag
    return y


def _silu(v: float) -> float:
    return v / (1 + math.exp(-v))


def _activated(x: Array, activation: str) -> Array:
    if activation == "swiglu":
        gate, up = np.split(x, 2, 1)
        return np.vectorize(_silu)(gate) * up
    gelu = lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2  # noqa: E731
    return np.vectorize({"gelu": gelu, "relu": lambda v: max(v, 0.0), "silu": _silu}[activation])(x)


def multihead_attention(
    inputs: list[Array], state: State, group: Group, heads: int, theta: float | None = None, **masks: Array | None
) -> Array:
    """Query, key and value through their rows of `in_proj_weight`, and `out_proj`; theta: of a rotary embedding."""
    weight, bias = state["in_proj_weight"], state.get("in_proj_bias")
    channels, made = weight.shape[1], []
    cuts = [0, channels, (channels + len(weight)) // 2, len(weight)]
    for f, first, last in zip(inputs, cuts[:3], cuts[1:], strict=True):
        made.append(token_linear(f, weight[first:last], None if bias is None else bias[first:last], group))
    if theta is not None:
        made[:2] = (rotary(f, heads * f.shape[1] // channels, group, theta) for f in made[:2])
    y = attention(*made, heads, **masks)
    return token_linear(y, state["out_proj.weight"], state.get("out_proj.bias"), group)


def feed_forward(f: Array, state: State, group: Group, activation: str) -> Array:
    hidden = token_linear(f, state["linear1.weight"], state.get("linear1.bias"), group)
    return token_linear(_activated(hidden, activation), state["linear2.weight"], state.get("linear2.bias"), group)


def encoder_layer(
    f: Array, state: State, group: Group, heads: int, settings: dict[str, Any], theta: float | None = None
) -> Array:
    """Both branches as the docstring of GroupTransformerEncoderLayer has them, from its state and settings."""
    of = lambda prefix: {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}  # noqa: E731

    def norm(x: Array, number: int) -> Array:
        rms = settings.get("norm") == "rms"
        return layer_norm(x, state[f"norm{number}.weight"], state.get(f"norm{number}.bias"), 1e-5, rms)

    def scaled(x: Array, number: int) -> Array:
        scale = state.get(f"scale{number}")
        return x if scale is None else x * scale.reshape(-1, *(1,) * (x.ndim - 2))

    attend = lambda x: scaled(multihead_attention([x] * 3, of("self_attn."), group, heads, theta), 1)  # noqa: E731
    activation = settings.get("activation", "gelu")
    feed = lambda x: scaled(feed_forward(x, of("feed_forward."), group, activation), 2)  # noqa: E731
    if settings.get("norm_first", True):
        y = f + attend(norm(f, 1))
        return y + feed(norm(y, 2))
    y = norm(f + attend(f), 1)
    return norm(y + feed(y), 2)
