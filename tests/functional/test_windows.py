"""Windows: against slices, put back, moved with the map, masked; the settings that are refused."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from equilayers.functional import (
    relative_position_bias,
    relative_position_orbits,
    window_mask,
    window_merge,
    window_partition,
)
from equilayers.groups import CyclicRotation, Dihedral, Group
from refusals import assert_refused
from strategies import filled, name

GROUPS: list[Group] = [CyclicRotation(2), CyclicRotation(4), Dihedral(1), Dihedral(2), Dihedral(4)]
SETTINGS = [((6, 6), 3, 0), ((9, 9), 3, 0), ((8, 8), 4, 2), ((8, 8), 8, 4), ((4, 4), 2, 1), ((5, 5), 1, 0)]
OBLONG = [((4, 8), 4, 2), ((9, 6), 3, 0)]

each_setting = pytest.mark.parametrize(("size", "w", "shift"), [*SETTINGS, *OBLONG])


@each_setting
def test_windows_are_slices(size: tuple[int, int], w: int, shift: int) -> None:
    f = filled((2, 3, 4, *size), torch.float32)
    rolled, windows = f.roll((-shift, -shift), (3, 4)), window_partition(f, w, shift)
    corners = [*itertools.product(range(2), range(0, size[0], w), range(0, size[1], w))]
    assert windows.shape == (len(corners), 3, 4, w, w)
    for window, (b, i, j) in zip(windows, corners, strict=True):
        assert torch.equal(window, rolled[b, :, :, i : i + w, j : j + w])
    assert torch.equal(window_merge(windows, size, shift), f)


def test_memory_order() -> None:
    f = filled((2, 6, 4, 4, 3), torch.float32).permute(0, 4, 3, 1, 2)  # as layers produce it, (B, H, W, |G|, C)
    for shift in (0, 1):
        windows = window_partition(f[..., :4, :], 2, shift)
        assert windows.permute(0, 3, 4, 2, 1).is_contiguous()
        assert window_merge(windows, 4, shift).permute(0, 3, 4, 2, 1).is_contiguous()
    assert window_partition(f[..., :4, :], 4).data_ptr() == f.data_ptr()
    tall = filled((1, 8, 4, 4, 3), torch.float32).permute(0, 4, 3, 1, 2)
    assert window_partition(tall, 4).data_ptr() == tall.data_ptr()  # one column of windows: nothing moves


@each_setting
def test_mask(size: tuple[int, int], w: int, shift: int) -> None:
    """Pairs in one window that are as far apart on the map as in the window."""
    mask = window_mask(size, w, shift, dtype=torch.float64)
    place = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")).view(1, 2, 1, *size)
    where = window_partition(place, w, shift).flatten(2)  # (K, 2, w^2), positions on the map
    inside = window_partition(place[..., :w, :w], w).flatten(2)
    apart, expected = (at[..., :, None] - at[..., None, :] for at in (where, inside))
    assert mask.dtype == torch.float64
    assert torch.equal(mask == 0, (apart == expected).all(1))
    assert torch.equal(mask.isinf(), mask != 0)
    assert (shift > 0) == bool(mask.isinf().any())


def windowed_attention(f: Tensor, group: Group, w: int, shift: int, weight: Tensor) -> Tensor:
    """One head: scores over channels and fiber, bias and mask."""
    size = f.shape[3], f.shape[4]
    x = window_partition(f, w, shift).flatten(3)
    scores = torch.einsum("bcgs,bcgt->bst", x, x).unflatten(0, (len(f), -1))
    scores = scores + relative_position_bias(weight, group, w) + window_mask(size, w, shift, dtype=f.dtype)
    y = torch.einsum("bst,bcgt->bcgs", scores.flatten(0, 1).softmax(-1), x).unflatten(3, (w, w))
    return window_merge(y, size, shift)


@pytest.mark.parametrize("group", GROUPS, ids=name)
def test_windows_move_with_the_map(group: Group) -> None:
    for size, w, shift in SETTINGS + ([] if group in (CyclicRotation(4), Dihedral(4)) else OBLONG):
        f = filled((2, 2, group.order, *size), torch.float64)
        weight = filled((int(relative_position_orbits(group, w).max()) + 1, 1), torch.float64)
        windows, y = window_partition(f, w, shift), windowed_attention(f, group, w, shift, weight)
        for g in range(1, group.order):
            moved = group.act_regular(g, f)
            found = {_key(window) for window in window_partition(moved, w, shift)}
            assert found == {_key(window) for window in group.act_regular(g, windows)}
            close = {"atol": 1e-12, "rtol": 0}
            torch.testing.assert_close(
                windowed_attention(moved, group, w, shift, weight), group.act_regular(g, y), **close
            )


def _key(window: Tensor) -> tuple[float, ...]:
    return tuple(window.flatten().tolist())


def test_a_lopsided_shift_would_be_found() -> None:
    group, f = CyclicRotation(4), filled((1, 1, 4, 8, 8), torch.float64)
    cut = lambda f: {_key(window) for window in window_partition(f.roll((-1, -1), (3, 4)), 4)}  # noqa: E731
    turned = group.act_regular(1, window_partition(f.roll((-1, -1), (3, 4)), 4))
    assert cut(group.act_regular(1, f)) != {_key(window) for window in turned}


@pytest.mark.parametrize("size", [(1, 2, 2, 4, 4), (1, 1, 2, 2, 4)])
def test_derivatives(size: tuple[int, ...]) -> None:
    f = filled(size, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: window_partition(f, 2, 1), f)
    v = window_partition(f, 2, 1).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: window_merge(v, size[3:], 1), v)


F = torch.zeros(2, 3, 4, 8, 8)
REFUSED: list[tuple[Callable[[], object], type[Exception], str, tuple[str, ...]]] = [
    (lambda: window_partition(F, 3), ValueError, "window_partition", ("H=8, W=8", "(9, 9)", "window_size=2")),
    (lambda: window_partition(F[..., :6], 4), ValueError, "window_partition", ("W=6", "(8, 8)", "window_size=2")),
    (lambda: window_partition(F, 4, 1), ValueError, "window_partition", ("got 1.", "shift=0 or shift=2")),
    (lambda: window_partition(F[..., :6, :6], 3, 1), ValueError, "window_partition", ("shift=0, or an even window",)),
    (lambda: window_partition(F, 4, -2), ValueError, "window_partition", ("shift >= 0",)),
    (lambda: window_partition(F, 0), ValueError, "window_partition", ("window_size >= 1",)),
    (lambda: window_partition(F, (4, 4)), TypeError, "window_partition", ("window_size to be an int",)),  # type: ignore[arg-type]
    (lambda: window_partition(F[0], 4), ValueError, "window_partition", ("(B, C, |G|, H, W)", "(3, 4, 8, 8)")),
    (lambda: window_merge(F, (8, 12)), ValueError, "window_merge", ("whole windows", "(8, 16)", "window_size=4")),
    (lambda: window_merge(F, 16), ValueError, "window_merge", ("a multiple of 4 windows", "got 2.")),
    (lambda: window_merge(F[..., :4], 8), ValueError, "window_merge", ("(B·K, C, |G|, w, w)",)),
    (lambda: window_mask((8, 8), 4, 3), ValueError, "window_mask", ("half of window_size=4",)),
]


@pytest.mark.parametrize(("call", "error", "caller", "words"), REFUSED)
def test_refusals(call: Callable[[], object], error: type[Exception], caller: str, words: tuple[str, ...]) -> None:
    assert_refused(call, error, caller, *words)
