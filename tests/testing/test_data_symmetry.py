"""Is the data symmetric: verdicts on images of known symmetry, and false alarms at the stated level."""

import math

import pytest
import torch
from torch import Tensor

from equilayers.groups import CyclicRotation, Dihedral, Group, group_from_name
from equilayers.testing import _data_symmetry, data_symmetry
from equilayers.testing._data_symmetry import _holm, _upper_bound, binomial_tail

GROUPS = ("C2", "C4", "D1", "D2", "D4")


def strokes(count: int, seed: int = 0) -> Tensor:
    """Noise with a shape of no symmetry in it, an F."""
    x = torch.randn(count, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    x[..., 2:10, 3] += 2
    x[..., 2, 3:9] += 2
    x[..., 5, 3:7] += 2
    return x


@pytest.fixture(autouse=True)
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifiers of a size that these images need, but for one test of the whole kernel."""
    if "full size" not in request.node.name:
        monkeypatch.setattr(_data_symmetry, "FEATURES", 64)


def turned(x: Tensor, group: Group, seed: int = 1) -> Tensor:
    elements = torch.randint(group.order, (len(x),), generator=torch.Generator().manual_seed(seed))
    return torch.stack([group.act(int(g), image) for g, image in zip(elements, x, strict=True)])


@pytest.mark.parametrize(
    ("moved", "holds"),
    [
        (None, set()),
        pytest.param("C4", {"C2", "C4"}, id="full size"),
        ("D1", {"D1"}),
        ("D2", {"C2", "D1", "D2"}),
        ("D4", set(GROUPS)),
    ],
)
def test_verdicts(moved: str | None, holds: set[str]) -> None:
    x = strokes(200) if moved is None else turned(strokes(200), group_from_name(moved))
    found = data_symmetry(x, GROUPS, level=0.01)
    assert set(found.symmetric) == holds, str(found)
    assert ("Tie nothing" in found.advice) == (not holds)
    for test in found.tests:
        assert test.images == 100
        assert test.accuracy <= test.bound <= 1
        assert test.chance == 1 / group_from_name(test.group).order


def test_network() -> None:
    found = data_symmetry(turned(strokes(200), Dihedral(1)), ("D1", "C2"), classifier="cnn", level=0.01)
    assert found.symmetric == ("D1",), str(found)


def test_shifts_and_rectangles() -> None:
    """What rolls around the edge is found, and what does not is not; oblong images have the groups that keep them."""
    x = torch.randn(120, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    assert data_symmetry(x, ("T6", "D2")).symmetric == ("T6", "D2")
    x[..., 0] += 1
    assert data_symmetry(x, ("T6", "T4:-2")).symmetric == ("T4:-2",)
    with pytest.raises(ValueError, match="data_symmetry: expected"):
        data_symmetry(x, ("C4",))


def test_false_alarms_come_at_the_stated_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """On symmetric data, 50 times: at a level of 0.2, binomial with mean 10; more than 18 has a chance below 0.3 %."""
    monkeypatch.setattr(_data_symmetry, "FEATURES", 16)
    alarms = 0
    for seed in range(50):
        x = turned(strokes(40, seed), Dihedral(4), seed)[..., 2:10, 2:10]
        alarms += len(data_symmetry(x, ("C2", "D1", "D4"), level=0.2, seed=seed).symmetric) < 3
    assert alarms <= 18


def test_symmetric_images_are_ties() -> None:
    """Images that the group leaves alone: the original is any of its orbit, not the first."""
    x = torch.randn(200, 1, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 6, 6)
    (found,) = data_symmetry(x, [CyclicRotation(4)]).tests
    assert found.symmetric
    assert found.accuracy < 0.45


def test_statistics() -> None:
    """The tail and the bound against sums of binomials; Holm's procedure by its definition."""
    for n, hits, chance in (10, 3, 0.25), (40, 0, 0.5), (40, 40, 0.125), (7, 7, 0.5):
        direct = sum(math.comb(n, k) * chance**k * (1 - chance) ** (n - k) for k in range(hits, n + 1))
        assert binomial_tail(n, hits, chance) == pytest.approx(direct)
    bound = _upper_bound(20, 5, 0.05)
    assert sum(math.comb(20, k) * bound**k * (1 - bound) ** (20 - k) for k in range(6)) == pytest.approx(0.05)
    assert _upper_bound(5, 5, 0.05) == 1
    assert _holm([0.04, 0.01, 0.02], 0.05) == [True, True, True]
    assert _holm([0.04, 0.03, 0.02], 0.05) == [False, False, False]
    assert _holm([0.3, 0.01], 0.05) == [False, True]


@pytest.mark.parametrize(
    ("x", "settings", "words"),
    [
        (torch.zeros(39, 1, 4, 4), {}, "N >= 40"),
        (torch.zeros(50, 4, 4), {}, "N, C, H, W"),
        (torch.full((50, 1, 4, 4), math.nan), {}, "finite"),
        (torch.zeros(50, 1, 4, 4), {"level": 1.0}, "level between 0 and 1"),
        (torch.zeros(50, 1, 4, 4), {"classifier": "svm"}, "classifier"),
        (torch.zeros(50, 1, 4, 4), {"groups": ["C1"]}, "more than one element"),
        (torch.zeros(50, 1, 4, 4), {"groups": ["T3"]}, "data_symmetry: expected"),
    ],
)
def test_errors(x: Tensor, settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        data_symmetry(x, **settings)
    with pytest.raises(TypeError, match="floating-point"):
        data_symmetry(torch.zeros(50, 1, 4, 4, dtype=torch.int))
