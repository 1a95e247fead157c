"""Slow float64 references, straight from the formulas: they share no code with the library.

Groups are read by their public arguments alone; the action of each is written in pixel coordinates.
"""

import functools
import itertools
import math

import numpy as np
from numpy.typing import NDArray

from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, Group, PermutationGroup

Array = NDArray[np.float64]
Pixel = tuple[int, int]


@functools.lru_cache(maxsize=64)
def elements_of(group: PermutationGroup) -> list[tuple[int, ...]]:
    """The permutations of the group, in the order of a breadth-first walk from the identity."""
    found = [tuple(range(len(group.generators[0])))]
    for p in found:  # the list grows while it is walked
        for s in group.generators:
            product = tuple(s[p[i]] for i in range(len(p)))
            if product not in found:
                found.append(product)
    return found


def order(group: Group) -> int:
    match group:
        case CyclicRotation():
            return group.n
        case Dihedral():
            return 2 * group.n
        case CyclicTranslation():
            return group.n
        case DirectProduct():
            return order(group.first) * order(group.second)
        case PermutationGroup():
            return len(elements_of(group))
    raise NotImplementedError(group)


def compose(group: Group, g: int, h: int) -> int:
    """The number of the element that does h first, then g."""
    match group:
        case CyclicRotation() | CyclicTranslation():
            return (g + h) % group.n
        case Dihedral(n=n):
            r, m = g % n, g // n
            s, k = h % n, h // n
            return (r + (-s if m else s)) % n + n * ((m + k) % 2)
        case DirectProduct():
            size = order(group.second)
            first = compose(group.first, g // size, h // size)
            return first * size + compose(group.second, g % size, h % size)
        case PermutationGroup():
            elements = elements_of(group)
            p, q = elements[g], elements[h]
            return elements.index(tuple(p[q[i]] for i in range(len(p))))
    raise NotImplementedError(group)


@functools.lru_cache(maxsize=1024)
def inverse(group: Group, g: int) -> int:
    return next(h for h in range(order(group)) if compose(group, g, h) == 0)


def _rotated(turns: int, height: int, width: int, pixel: Pixel) -> Pixel:
    """Where the entry at `pixel` of the counter-clockwise turned image comes from; height, width before the turn."""
    i, j = pixel
    match turns % 4:
        case 0:
            return i, j
        case 1:
            return j, width - 1 - i
        case 2:
            return height - 1 - i, width - 1 - j
        case _:
            return height - 1 - j, i


def source(group: Group, g: int, height: int, width: int, pixel: Pixel) -> Pixel:
    """The pixel of x (height, width) that stands at `pixel` of `act(g, x)`."""
    i, j = pixel
    match group:
        case CyclicRotation(n=n):
            return _rotated(g * 4 // n, height, width, pixel)
        case Dihedral(n=n):
            i, j = _rotated((g % n) * 4 // n, height, width, pixel)
            return (i, width - 1 - j) if g // n else (i, j)
        case CyclicTranslation(n=n, dim=-1):
            return i, (j - g * (width // n)) % width
        case CyclicTranslation(n=n):
            return (i - g * (height // n)) % height, j
        case DirectProduct():
            size = order(group.second)
            middle = source(group.first, g // size, height, width, pixel)
            return source(group.second, g % size, height, width, middle)
        case PermutationGroup():
            return i, elements_of(group)[g].index(j)
    raise NotImplementedError(group)


@functools.lru_cache(maxsize=1024)
def sources(group: Group, g: int, height: int, width: int) -> NDArray[np.int64]:
    pixels = itertools.product(range(height), range(width))
    moved = [source(group, g, height, width, pixel) for pixel in pixels]
    return np.array([i * width + j for i, j in moved], np.int64)


def act(group: Group, g: int, x: NDArray) -> NDArray:  # type: ignore[type-arg]
    """The array (..., H, W), or (..., W), moved by g, entry by entry."""
    height = x.shape[-2] if x.ndim > 1 else 1
    flat = x.reshape(-1, height * x.shape[-1])
    index = sources(group, g, height, x.shape[-1])
    return np.stack([row[index] for row in flat]).reshape(x.shape) if flat.size else x


def act_regular(group: Group, g: int, f: NDArray) -> NDArray:  # type: ignore[type-arg]
    out = np.empty_like(f)
    for h in range(order(group)):
        plane = f[:, :, compose(group, inverse(group, g), h)]
        out[:, :, h] = act(group, g, plane) if f.ndim > 3 else plane
    return out


def lift_linear(x: Array, weight: Array, bias: Array | None, group: Group) -> Array:
    """`y[b, o, h] = <W_o, h^-1 · x_b> + bias_o`."""
    y = np.zeros((len(x), len(weight), order(group)))
    for b, o, h in np.ndindex(y.shape):
        y[b, o, h] = np.sum(weight[o] * act(group, inverse(group, h), x[b])) + (0 if bias is None else bias[o])
    return y


def group_linear(f: Array, weight: Array, bias: Array | None, group: Group) -> Array:
    """`y[b, o, h] = sum_{c,k} W[o, c, h^-1 k] f[b, c, k] + bias_o`."""
    size = order(group)
    y = np.zeros((len(f), len(weight), size))
    for h, k in itertools.product(range(size), repeat=2):
        u = compose(group, inverse(group, h), k)
        for b, o, c in itertools.product(range(len(f)), range(len(weight)), range(f.shape[1])):
            y[b, o, h] += weight[o, c, u] * f[b, c, k]
    return y if bias is None else y + bias[:, None]


def orbit_pool(f: Array, reduction: str) -> Array:
    """The fiber, axis 2, reduced number by number."""
    out = np.zeros(f.shape[:2] + f.shape[3:])
    for place in np.ndindex(out.shape):
        fiber = [float(f[(*place[:2], h, *place[2:])]) for h in range(f.shape[2])]
        match reduction:
            case "max":
                out[place] = math.nan if any(map(math.isnan, fiber)) else max(fiber)
            case "mean":
                out[place] = math.fsum(fiber) / len(fiber)
            case "norm":
                out[place] = math.sqrt(math.fsum(v * v for v in fiber))
            case "logsumexp":
                top = max(fiber)
                out[place] = top + math.log(math.fsum(math.exp(v - top) for v in fiber))
            case _:
                raise NotImplementedError(reduction)
    return out
