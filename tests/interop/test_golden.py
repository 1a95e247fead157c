"""Our layers against what escnn computed once and for all: no escnn is needed to compare."""

import copy
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equilayers.groups import CyclicRotation, Dihedral, Group
from equilayers.nn import GroupConv2d, LiftingConv2d, OrbitPool
from golden import make_escnn

with np.load(make_escnn.GOLDEN, allow_pickle=False) as _archive:
    ARRAYS: dict[str, NDArray[Any]] = dict(_archive)
CASES: list[dict[str, Any]] = json.loads(str(ARRAYS.pop("cases")))
VERSIONS: dict[str, str] = json.loads(str(ARRAYS.pop("versions")))
GROUPS: dict[str, Group] = {repr(group): group for group in (CyclicRotation(4), Dihedral(4))}


def network(group: Group) -> nn.Sequential:
    """The network of tests/golden/make_escnn.py, of our layers and torch's."""
    return nn.Sequential(
        *(LiftingConv2d(group, 2, 4, 5, padding=2, bias=False), nn.BatchNorm3d(4), nn.ReLU(inplace=True)),
        *(GroupConv2d(group, 4, 4, 3, stride=2, padding=1), nn.BatchNorm3d(4), nn.ELU()),
        nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        *(GroupConv2d(group, 4, 4, 3, padding=1), nn.BatchNorm3d(4, momentum=0.3), nn.ReLU()),
        *(GroupConv2d(group, 4, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), OrbitPool("max")),
    )


def load(number: int) -> tuple[nn.Module, Group, Tensor, Tensor]:
    """The layer of a case with its state, its group, and what goes in and came out."""
    settings = dict(CASES[number])
    kind, group = settings.pop("layer"), GROUPS[settings.pop("group")]
    layers = {"LiftingConv2d": LiftingConv2d, "GroupConv2d": GroupConv2d, "network": network}
    layer = layers[kind](group, **settings).eval()
    own = {k.removeprefix(f"{number}."): torch.from_numpy(v) for k, v in ARRAYS.items() if k.startswith(f"{number}.")}
    x, y = own.pop("x"), own.pop("y")
    layer.load_state_dict({name.removeprefix("state."): value for name, value in own.items()}, strict=True)
    return layer, group, x, y


def off(layer: nn.Module, x: Tensor, y: Tensor) -> float:
    """The largest error, relative to the largest output."""
    with torch.no_grad():
        ours = layer(x)
    assert ours.shape == y.shape
    return float((ours.double() - y.double()).abs().max() / y.double().abs().max())


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{CASES[n]['layer']}-{CASES[n]['group']}-{n}")
def test_agrees_with_what_escnn_computed(number: int) -> None:
    layer, group, x, y = load(number)
    assert off(layer, x, y) <= 1e-5
    assert off(layer.double(), x.double(), y) <= 1e-5
    for g in range(1, group.order):  # turned input, wrongly ordered fiber: each is noticed
        assert off(layer, group.act(g, x).double(), y) > 1e-2
        if x.ndim == 5:
            assert off(layer, x.roll(g, 2).double(), y) > 1e-2
        if y.ndim == 5:
            assert off(layer, x.double(), y.roll(g, 2)) > 1e-2
    for name, value in layer.state_dict().items():  # and every entry of the state counts
        if value.is_floating_point():
            changed = copy.deepcopy(layer)
            changed.state_dict()[name].mul_(1.5)
            assert off(changed, x.double(), y) > 1e-3, name


def test_the_file_is_small_complete_and_says_where_it_is_from() -> None:
    assert make_escnn.GOLDEN.stat().st_size < 300_000
    assert set(VERSIONS) == {"escnn", "torch", "numpy", "python"}
    assert VERSIONS["escnn"] == "1.0.11"
    kinds = {(case["layer"], case["group"]) for case in CASES}
    assert kinds == {(layer, group) for layer in ("LiftingConv2d", "GroupConv2d", "network") for group in GROUPS}
    assert {case["kernel_size"] for case in CASES if "kernel_size" in case} == {3, 5}
    assert all(np.isfinite(array).all() for array in ARRAYS.values())


def test_the_file_can_be_made_again(escnn: types.ModuleType, tmp_path: Path) -> None:
    files = [tmp_path / "first.npz", tmp_path / "second.npz"]
    for file in files:
        make_escnn.write(file)
    assert sorted(tmp_path.iterdir()) == files
    assert files[0].read_bytes() == files[1].read_bytes()
    with np.load(files[0], allow_pickle=False) as archive:
        again = dict(archive)
    assert json.loads(str(again.pop("cases"))) == CASES
    assert json.loads(str(again.pop("versions")))["escnn"] == VERSIONS["escnn"]
    assert {name: array.shape for name, array in again.items()} == {name: a.shape for name, a in ARRAYS.items()}
