"""Slow float64 versions of the measures, one sample and one pixel at a time: they share no code with the library."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from equilayers.groups import Group
from reference import Array, act, inverse, order

NumpyModel = Callable[[Array], Array]  # one sample to its logits (K,)
Compare = Callable[[Array, Array], float]


def orbit_mean(compare: Compare, model: NumpyModel, x: Array, group: Group, include_identity: bool = False) -> float:
    """The mean of `compare(f(x), f(gx))` over samples and elements."""
    values = []
    for sample in x:
        for g in range(0 if include_identity else 1, order(group)):
            values.append(compare(model(sample), model(act(group, g, sample[None])[0])))
    return math.fsum(values) / len(values)


def logit_gap(f: Array, fg: Array) -> float:
    """`1/2 ||f - fg||^2`."""
    return math.fsum((float(a) - float(b)) ** 2 for a, b in zip(f, fg, strict=True)) / 2


def normalized_gap(f: Array, fg: Array) -> float:
    """`||f - fg||^2 / ||f||^2`."""
    return 2 * logit_gap(f, fg) / math.fsum(float(a) ** 2 for a in f)


def softmax(f: Array) -> list[float]:
    weights = [math.exp(float(a) - float(max(f))) for a in f]
    return [w / math.fsum(weights) for w in weights]


def divergence(f: Array, fg: Array) -> float:
    """`sum_k p_k log(p_k / q_k)` in nats."""
    return math.fsum(p * math.log(p / q) for p, q in zip(softmax(f), softmax(fg), strict=True))


def same_class(f: Array, fg: Array) -> float:
    place = [max(range(len(v)), key=lambda k: float(v[k])) for v in (f, fg)]
    return float(place[0] == place[1])


def cosine(m: Array, n: Array) -> float:
    """Cosine of the angle between two maps; 1 for two zero maps, 0 for a zero map and another."""
    a, b = [float(v) for v in m.flat], [float(v) for v in n.flat]
    sizes = [math.sqrt(math.fsum(v * v for v in w)) for w in (a, b)]
    if sizes[0] == 0 or sizes[1] == 0:
        return float(sizes[0] == sizes[1])
    return math.fsum(p * q for p, q in zip(a, b, strict=True)) / sizes[0] / sizes[1]


def threshold(m: Array, share: float = 0.9) -> Array:
    """One map, with 0 in place of values under `share` of its maximum."""
    top = max(float(v) for v in m.flat)
    return np.array([float(v) if float(v) >= share * top else 0.0 for v in m.flat]).reshape(m.shape)


def gaussian(m: Array, circular: bool) -> Array:
    """A map (H, W) blurred by 3x3 pixels of a Gaussian with sigma 1 whose weights add up to 1."""
    height, width = m.shape
    taps = {(i, j): math.exp(-(i * i + j * j) / 2) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    whole = math.fsum(taps.values())
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            for (di, dj), tap in taps.items():
                inside = 0 <= i + di < height and 0 <= j + dj < width
                if circular or inside:
                    out[i, j] += tap / whole * m[(i + di) % height, (j + dj) % width]
    return out


def saliency(attribution: Array, circular: bool) -> Array:
    """Maps (B, C, H, W) from attributions: absolute value, threshold per sample, Gaussian per channel."""
    kept = [threshold(np.abs(sample)) for sample in attribution]
    return np.stack([np.stack([gaussian(channel, circular) for channel in sample]) for sample in kept])


def similarity(maps: NumpyModel, x: Array, group: Group, include_identity: bool = False) -> float:
    """The mean of `cos(m(x), g^-1 · m(gx))` over samples and elements; maps: (C, H, W) to (C, H, W)."""
    values = []
    for sample in x:
        for g in range(0 if include_identity else 1, order(group)):
            moved = maps(act(group, g, sample[None])[0])
            values.append(cosine(maps(sample), act(group, inverse(group, g), moved[None])[0]))
    return math.fsum(values) / len(values)


def gradient(model: Callable[[Tensor], Tensor], x: Tensor, target: Tensor) -> Tensor:
    """The plain gradient of the target logit: a user's own saliency."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(model(x).gather(1, target[:, None]).sum(), x)[0]


Place = tuple[int, int]


def rolled(sample: Array, shift: Place) -> Array:
    """One image (C, H, W) whose content went down and right around the torus."""
    channels, height, width = sample.shape
    out = np.zeros_like(sample)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                out[c, (i + shift[0]) % height, (j + shift[1]) % width] = sample[c, i, j]
    return out


def window(sample: Array, size: Place, shift: Place) -> Array:
    """The window of one image (C, H, W) in which its content stands lower and more to the right than in the middle."""
    top, left = ((n - k) // 2 - s for n, k, s in zip(sample.shape[1:], size, shift, strict=True))
    assert top >= 0
    assert left >= 0
    out = np.zeros((sample.shape[0], *size))
    for c in range(len(sample)):
        for i in range(size[0]):
            for j in range(size[1]):
                out[c, i, j] = sample[c, top + i, left + j]
    return out


def wobble(model: NumpyModel, views: list[Array]) -> float:
    """The largest change of the probability that the first view gives to its own class."""
    first = softmax(model(views[0]))
    c = first.index(max(first))
    return max(abs(softmax(model(view))[c] - first[c]) for view in views)


def relative_distance(f: Array, fg: Array) -> float:
    """`||f - fg|| / ||f||`; 0 where both are zero."""
    gap = math.sqrt(math.fsum((float(a) - float(b)) ** 2 for a, b in zip(f.flat, fg.flat, strict=True)))
    size = math.sqrt(math.fsum(float(a) ** 2 for a in f.flat))
    return gap / size if gap or size else 0.0


def warped(image: Array, tau: Array) -> Array:
    """One image (H, W) read at `u - tau(u)`, bilinear, the border going on for ever."""
    height, width = image.shape

    def pixel(i: int, j: int) -> float:
        return float(image[min(max(i, 0), height - 1), min(max(j, 0), width - 1)])

    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y, x = i - float(tau[0, i, j]), j - float(tau[1, i, j])
            top, left = math.floor(y), math.floor(x)
            for di in (0, 1):
                for dj in (0, 1):
                    weight = (1 - abs(y - top - di)) * (1 - abs(x - left - dj))
                    out[i, j] += weight * pixel(top + di, left + dj)
    return out


def steepness(tau: Array) -> float:
    """The largest singular value of a gradient made of one-sided differences that share a pixel."""
    _, height, width = tau.shape
    found = 0.0
    for i in range(height):
        for j in range(width):
            downs = [tau[:, i + s, j] * s - tau[:, i, j] * s for s in (-1, 1) if 0 <= i + s < height]
            rights = [tau[:, i, j + s] * s - tau[:, i, j] * s for s in (-1, 1) if 0 <= j + s < width]
            for down in downs or [np.zeros(2)]:
                for right in rights or [np.zeros(2)]:
                    found = max(found, float(np.linalg.svd(np.stack((down, right), 1))[1][0]))
    return found
