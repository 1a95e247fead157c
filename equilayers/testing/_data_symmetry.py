r"""Is the data symmetric under a group? A classifier tries to tell images as they came from moved ones.

If the distribution of the images is invariant, an image is as likely as every element of its orbit, so whatever score a
classifier gives, the image itself has the highest of its orbit with probability 1 / |G|: the number of such images
among n that the classifier was not trained on is binomial, exactly, at every n.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equilayers._checks import check_choice, check_float, check_int, check_tensor, refuse
from equilayers.groups import Group, as_group

GROUPS = ("C2", "C4", "D1", "D2", "D4")
CLASSIFIERS = ("kernel", "cnn")
TRAINED = 2000  # images that a classifier is trained on, with their orbits, at most
SIDE = 32  # pixels that it sees, at most
GRID = 16  # pixels that the kernel sees, at most
FEATURES = 1024  # random features of the kernel
RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # by the largest eigenvalue
WIDTHS, STEPS = (16, 32, 64), 300  # of the network
BATCH = 250  # orbits at once
LEAST = 40  # images: fewer show nothing
Score = Callable[[Tensor], Tensor]  # of orbits (N, |G|, C, H, W), (N, |G|)


@dataclass(frozen=True)
class GroupTest:
    r"""What a classifier found about one group.

    group: its name. images: that the classifier was tested on. accuracy: share of them that it found among their
    orbits. chance: 1 / |G|. p_value: of at least this accuracy if the data are symmetric. bound: the accuracy is below
    it with the confidence of 1 - level, and so is what this classifier can tell. symmetric: whether nothing was found
    against the symmetry, all groups tested taken together.
    """

    group: str
    images: int
    accuracy: float
    chance: float
    p_value: float
    bound: float
    symmetric: bool

    def __str__(self) -> str:
        found = "nothing against it" if self.symmetric else "not symmetric"
        share = f"the original found among its orbit in {100 * self.accuracy:.1f} % of {self.images} images"
        return f"{self.group}: {found} ({share}, chance {100 * self.chance:.1f} %, p = {self.p_value:.2g})"


@dataclass(frozen=True)
class DataSymmetry:
    r"""Which groups the data may be symmetric under.

    tests: of each group, in the order asked for. level: the probability that any group is called not symmetric where
    the data are symmetric under all of them. classifier: what was trained.
    """

    tests: tuple[GroupTest, ...]
    level: float
    classifier: str

    @property
    def symmetric(self) -> tuple[str, ...]:
        r"""The groups that nothing was found against."""
        return tuple(test.group for test in self.tests if test.symmetric)

    @property
    def advice(self) -> str:
        r"""What to tie, and with which layers."""
        return _advice(self.symmetric, {test.group: round(1 / test.chance) for test in self.tests})

    def __str__(self) -> str:
        head = f"data symmetry, {self.classifier}, level {self.level:g} for all groups together"
        return "\n".join([head, *(f"  {test}" for test in self.tests), self.advice])


def _advice(symmetric: Sequence[str], orders: Mapping[str, int]) -> str:
    r"""What to tie where nothing speaks against these groups: the largest rotations and mirrors, and shifts."""
    if not symmetric:
        return "Tie nothing: the data tell an image from all that it was moved to. Invariance would cost."
    found = []
    plane = [name for name in symmetric if re.match(r"(C|D)\d+$|CyclicRotation|Dihedral", name)]
    shifts = [name for name in symmetric if re.match(r"T\d+(:-\d)?$|CyclicTranslation", name)]
    others = [name for name in symmetric if name not in (*plane, *shifts)]
    if plane:
        largest = max(orders[name] for name in plane)
        names = " or ".join(name for name in plane if orders[name] == largest)
        found.append(f"tie {names}, by equilayers.convert.to_equivariant or LiftingConv2d and GroupConv2d")
    if shifts:
        layers = "convolutions with circular padding, PolyphasePool2d for strides, a mean at the end"
        found.append(f"keep to shifts ({', '.join(shifts)}): {layers}")
    if others:
        found.append(f"tie {', '.join(others)}, by LiftingLinear and GroupLinear")
    words = "; ".join(found)
    return f"{words[0].upper()}{words[1:]}. Nothing in the data speaks against it, which is no proof."


def data_symmetry(
    x: Tensor,
    groups: Sequence[Group | str] = GROUPS,
    *,
    classifier: str = "kernel",
    level: float = 0.05,
    seed: int = 0,
) -> DataSymmetry:
    r"""Test under which groups the distribution of images is symmetric.

    Half of the images, at random, train a classifier to tell them from the rest of their orbits; the other half tests
    it. Large answers are right at the stated level whatever the classifier; one that is too weak finds nothing, so a
    group that is not rejected is not proven: `bound` says how well this classifier may do at most.

    Args:
        x: images (N, C, H, W), N >= 40, independent of each other: augmented copies of one image are not.
        groups: groups that act exactly on pixels, or their names: rotations, mirrors, cyclic shifts "T7", "T4:-2".
        classifier: "kernel", ridge regression on the pixels and 1,024 random features of a Gaussian kernel; or "cnn",
            three convolutions of 16 to 64 channels trained for about 300 steps. Both see at most 32 x 32 pixels and
            train on at most 2,000 images and their orbits.
        level: probability of a false alarm over all groups together (Holm's procedure).
        seed: of the split, the features, and the training.

    Returns:
        A `DataSymmetry`.

    Raises:
        TypeError: x is not floating-point, a group is none.
        ValueError: too few images, another shape, sizes that a group does not act on, an unknown classifier.

    Source: Lopez-Paz and Oquab 2017 (arXiv:1610.06545), on orbits; the symmetry of data sets by classifiers,
        arXiv:2510.01349; Holm 1979.
    """
    caller = "data_symmetry"
    check_float(caller, "x", check_tensor(caller, "x", x))
    if x.ndim != 4 or len(x) < LEAST:
        refuse(caller, f"x of shape (N, C, H, W), N >= {LEAST}", tuple(x.shape), "Fewer images show nothing.")
    if not bool(torch.isfinite(x).all()):
        refuse(caller, "x of finite numbers", "NaN or infinity", "Clean the images.")
    if not 0 < level < 1:
        refuse(caller, "level between 0 and 1", level, "It is the probability of a false alarm: 0.05, for example.")
    check_choice(caller, "classifier", classifier, CLASSIFIERS)
    check_int(caller, "seed", seed, 0)
    asked = [as_group(caller, group, exact=True) for group in groups]
    if not asked or any(group.order == 1 for group in asked):
        hint = "The trivial group moves nothing."
        refuse(caller, "groups of more than one element", [str(group) for group in groups], hint)
    for group in asked:
        group.check_stackable(tuple(x.shape[-group.space_ndim :]), caller)
    images = x.detach().float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = images[order[: len(x) // 2][:TRAINED]], images[order[len(x) // 2 :]]
    hits = [_found(group, train, test, classifier, seed) for group in asked]
    n = len(test)
    values = [binomial_tail(n, hit, 1 / group.order) for group, hit in zip(asked, hits, strict=True)]
    rejected = _implied(asked, _holm(values, level), images[:1])
    names = [group if isinstance(group, str) else repr(group) for group in groups]
    tests = tuple(
        GroupTest(name, n, hit / n, 1 / group.order, p, _upper_bound(n, hit, level), not out)
        for name, group, hit, p, out in zip(names, asked, hits, values, rejected, strict=True)
    )
    return DataSymmetry(tests, level, f"{classifier}, trained on {len(train)} images")


def _found(group: Group, train: Tensor, test: Tensor, classifier: str, seed: int) -> int:
    r"""How many of the test images have the highest score of their orbits; ties are broken at random."""
    generator = torch.Generator().manual_seed(seed)
    score = (_kernel if classifier == "kernel" else _network)(group, train, generator)
    scores = torch.cat([score(_orbits(group, part)) for part in test.split(BATCH)])
    near = scores >= scores.amax(1, keepdim=True) - 1e-5 * scores.abs().amax(1, keepdim=True)  # rounding is no winner
    drawn = torch.rand(scores.shape, generator=generator).where(near, torch.tensor(-1.0))
    return int((drawn.argmax(1) == 0).sum())


def _orbits(group: Group, x: Tensor) -> Tensor:
    r"""The orbits of images, (N, |G|, C, H, W), of at most SIDE pixels each way: cells that a rotation keeps."""
    orbits = group.orbit(x).transpose(0, 1).contiguous()
    return _shrunk(orbits, SIDE)


def _shrunk(x: Tensor, side: int) -> Tensor:
    size = min(x.shape[-2], side), min(x.shape[-1], side)
    return x if size == x.shape[-2:] else F.adaptive_avg_pool2d(x.flatten(0, 1), size).unflatten(0, x.shape[:2])


def _kernel(group: Group, train: Tensor, generator: torch.Generator) -> Score:
    r"""Ridge regression of who is the original of an orbit, on pixels and random features of a Gaussian kernel.

    Only differences within an orbit count, so the mean over it is subtracted in the fit. The bandwidth is the
    median distance of images; the ridge is the best of five on the last fifth of the images.
    """
    shown = _shrunk(_orbits(group, train[:BATCH]), GRID).flatten(2)[:, 0]
    scale = torch.pdist(shown[:200]).median().clamp(min=1e-12)
    frequencies = torch.randn(shown.shape[1], FEATURES, generator=generator) / scale
    phases = torch.rand(FEATURES, generator=generator) * 2 * math.pi

    def features(orbits: Tensor) -> Tensor:
        pixels = _shrunk(orbits, GRID).flatten(2)
        waves = torch.cos(pixels @ frequencies + phases)
        return torch.cat((pixels / scale, waves / FEATURES**0.5), 2).double()

    def differences(orbits: Tensor) -> Tensor:
        found = features(orbits)
        return found - found.mean(1, keepdim=True)

    held = max(1, len(train) // 5)
    fitted, n = train[:-held], group.order
    target = torch.full((n,), -1 / n)
    target[0] += 1
    gram = torch.zeros(2 * [shown.shape[1] + FEATURES], dtype=torch.float64)
    moment = torch.zeros(len(gram), dtype=torch.float64)
    for part in fitted.split(BATCH):
        made = differences(_orbits(group, part))
        gram += made.flatten(0, 1).mT @ made.flatten(0, 1)
        moment += (made * target[:, None]).sum((0, 1))
    values, vectors = torch.linalg.eigh(gram / len(fitted))
    along = vectors.mT @ (moment / len(fitted))
    floor = 1e-6 * float(features(_orbits(group, train[:1])).square().sum())  # below it differences are rounding
    choices = [vectors @ (along / (values.clamp(min=0) + ridge * max(float(values[-1]), floor))) for ridge in RIDGES]
    seen = torch.cat([differences(_orbits(group, part)) for part in train[-held:].split(BATCH)])
    right = [float(((seen @ w).argmax(1) == 0).double().mean()) for w in choices]
    best = choices[max(range(len(RIDGES)), key=right.__getitem__)]
    return lambda orbits: features(orbits) @ best  # with their mean, beside which rounding is small


def _network(group: Group, train: Tensor, generator: torch.Generator) -> Score:
    r"""A small convolutional network, trained to find the original of an orbit by cross-entropy."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        channels = (train.shape[1], *WIDTHS)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(1))
        centre, scale = train.mean(), train.std().clamp(min=1e-12)

        def score(orbits: Tensor) -> Tensor:
            scores: Tensor = model(((orbits - centre) / scale).flatten(0, 1))
            return scores.view(orbits.shape[:2])

        score(_orbits(group, train[:2]))  # makes the last layer
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
        for _ in range(STEPS):
            picked = torch.randint(len(train), (32,), generator=generator)
            scores = score(_orbits(group, train[picked]))
            optimizer.zero_grad()
            F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long)).backward()
            optimizer.step()
            schedule.step()
    model.eval().requires_grad_(False)
    return lambda orbits: score(orbits).double()


def binomial_tail(n: int, hits: int, chance: float) -> float:
    r"""The probability of at least so many hits in n trials."""
    k = torch.arange(hits, n + 1, dtype=torch.float64)
    logs = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    logs = logs + k * math.log(chance) + (n - k) * math.log1p(-chance)
    return min(1.0, float(logs.exp().sum()))


def _upper_bound(n: int, hits: int, level: float) -> float:
    r"""The largest chance at which so few hits have a probability of `level` (Clopper and Pearson 1934)."""
    low, high = hits / n, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        few = 1 - binomial_tail(n, hits + 1, middle) if 0 < middle < 1 else 0.0
        low, high = (middle, high) if few > level else (low, middle)
    return high


def _implied(groups: Sequence[Group], rejected: list[bool], x: Tensor) -> list[bool]:
    r"""With a group every one that contains it is rejected: its moves of numbered pixels are among the other's."""
    places = torch.arange(x.numel()).view(x.shape)
    moves = [{tuple(group.act(g, places).flatten().tolist()) for g in range(group.order)} for group in groups]
    return [any(out and part <= whole for out, part in zip(rejected, moves, strict=True)) for whole in moves]


def _holm(values: Sequence[float], level: float) -> list[bool]:
    r"""Which are rejected: the smallest, one after the other, at level / (how many are left)."""
    rejected = [False] * len(values)
    for left, i in zip(range(len(values), 0, -1), sorted(range(len(values)), key=values.__getitem__), strict=True):
        if values[i] > level / left:
            break
        rejected[i] = True
    return rejected
