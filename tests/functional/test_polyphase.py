"""Polyphase pooling: shifts, turns and mirrors to the last bit, ties of every kind, derivatives, refusals."""

import itertools
import math
import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jacrev, vmap

import blur_reference as slow
from conv_laws import LAYOUTS
from equilayers.functional import polyphase_pool2d, polyphase_unpool2d
from equilayers.groups import Group
from refusals import assert_refused
from strategies import D4, each_group, filled, float_dtypes

Pair = tuple[int, int]
Pool = Callable[[Tensor], Tensor]

NORMS = (1.0, 2.0, 3.0, math.inf)
DTYPES = (torch.float32, torch.float64)
CLOSE = {"atol": 1e-12, "rtol": 1e-12}
# Size, stride and how many axes: all that the stride divides.
MAPS: list[tuple[Pair, Pair, int]] = [
    ((8, 8), (2, 2), 4),
    ((9, 9), (3, 3), 5),
    ((8, 12), (4, 4), 4),
    ((10, 16), (2, 2), 5),
    ((33, 39), (3, 3), 4),
    ((32, 40), (4, 4), 5),
    ((12, 9), (2, 3), 4),
    ((15, 8), (1, 4), 5),
]

each_norm = pytest.mark.parametrize("norm", NORMS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def maps_of(size: Pair, axes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return filled((3, 2, *[4] * (axes - 4), *size), dtype, seed)


def shifts_of(size: Pair, stride: Pair) -> list[Pair]:
    """Every shift of a small map; of a large one, all residues and some that go further."""
    if size[0] * size[1] <= 150:
        return [*itertools.product(*map(range, size))]
    near = itertools.product(*(range(s) for s in stride))
    return [*near, (stride[0] + 1, size[1] - 1), (size[0] - 1, stride[1]), (size[0] // 2, size[1] // 2), (-1, -3)]


def misses_shifts(pool: Pool, x: Tensor, stride: Pair, layout: Callable[[Tensor], Tensor] = torch.clone) -> list[Pair]:
    """The shifts for which `pool(roll(x))` is not `pool(x)`, rolled by ((i + dy) // s, (j + dx) // s), bit by bit."""
    y, choice = pool(x)
    broken = []
    for dy, dx in shifts_of(x.shape[-2:], stride):
        moved, _ = pool(layout(x.roll((dy, dx), (-2, -1))))
        for kept, expected, (i, j) in zip(moved, y, choice.tolist(), strict=True):
            if not torch.equal(kept, expected.roll(((i + dy) // stride[0], (j + dx) // stride[1]), (-2, -1))):
                broken.append((dy, dx))
    return broken


def is_some_shift(kept: Tensor, expected: Tensor) -> bool:
    return any(torch.equal(kept.nan_to_num(7), moved.nan_to_num(7)) for moved in slow.cyclic_shifts(expected))


def is_some_image(kept: Tensor, expected: Tensor, group: Group, feature: bool) -> bool:
    """Whether one map is another, shifted and moved by some element of the group."""
    move = group.act_regular if feature else group.act
    return any(is_some_shift(kept, move(g, expected[None])[0]) for g in range(group.order))


@each_dtype
@each_norm
@pytest.mark.parametrize(("size", "stride", "axes"), MAPS, ids=str)
def test_every_shift(size: Pair, stride: Pair, axes: int, norm: float, dtype: torch.dtype) -> None:
    pool = partial(polyphase_pool2d, stride=stride, norm=norm, return_choice=True)
    first, then = (LAYOUTS[random.Random(f"{size}{norm}{i}").choice([*LAYOUTS])] for i in range(2))
    assert misses_shifts(pool, first(maps_of(size, axes, dtype)), stride, then) == []


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
    st.one_of(st.sampled_from(NORMS), st.floats(1, 9)),
    float_dtypes(),
    st.integers(0, 999),
)
def test_shifts_of_any_map(stride: Pair, counts: Pair, shift: Pair, norm: float, dtype: torch.dtype, seed: int) -> None:
    size = tuple(s * n for s, n in zip(stride, counts, strict=True))
    x = filled((2, 3, *size), dtype, seed)
    (y, choice), moved = (polyphase_pool2d(x, stride, norm, return_choice=True), x.roll(shift, (-2, -1)))
    z, then = polyphase_pool2d(moved, stride, norm, return_choice=True)
    where = choice + torch.tensor(shift)
    assert torch.equal(then, where % torch.tensor(stride))
    for kept, expected, at in zip(z, y, where.div(torch.tensor(stride), rounding_mode="floor"), strict=True):
        assert torch.equal(kept, expected.roll(at.tolist(), (-2, -1)))


@each_norm
@each_group
def test_shifts_after_turns_and_mirrors(group: Group, norm: float) -> None:
    """The joint law: what is kept is the same, turned and shifted, whatever the parity of the map and of its half."""
    sizes = [(8, 8), (9, 9), (10, 10), (15, 15)] if group.n == 4 else [(8, 12), (9, 15), (10, 6), (15, 9)]
    for size, (dtype, feature) in itertools.product(sizes, zip(DTYPES, (False, True), strict=True)):
        stride = 2 if size[0] % 2 == 0 else 3
        x = filled((2, 2, *([group.order] if feature else []), *size), dtype)
        move = group.act_regular if feature else group.act
        y = polyphase_pool2d(x, stride, norm)
        for g in range(group.order):
            turned = move(g, x)
            assert torch.equal(polyphase_pool2d(turned, stride, norm), move(g, y))
            for shift in ((1, 0), (0, 1), (size[0] - 1, 2), (3, 5)):
                z = polyphase_pool2d(turned.roll(shift, (-2, -1)), stride, norm)
                assert all(is_some_shift(a, b) for a, b in zip(z, move(g, y), strict=True))


@each_norm
def test_the_largest_component_is_kept(norm: float) -> None:
    for (size, stride, axes), dtype in itertools.product(MAPS[:5], DTYPES):
        for scale in (1, 1e20, 1e-20):
            x = (scale * maps_of(size, axes, torch.float64)).to(dtype)
            y, choice = polyphase_pool2d(x, stride, norm, return_choice=True)
            assert choice.shape == (3, 2)
            assert choice.dtype == torch.int64
            for kept, sample, at in zip(y, x, choice.tolist(), strict=True):
                keys = slow.norms(sample.double() / scale, stride, norm)
                assert keys[tuple(at)] >= max(keys.values()) * (1 - 1e-5)
                assert torch.equal(kept, sample[..., at[0] :: stride[0], at[1] :: stride[1]])
            assert torch.equal(y, slow.polyphase(x, choice, stride))
    for i, j in itertools.product(range(2), repeat=2):  # where powers of the numbers vanish
        tiny = 1e-38 * filled((4, 1, 8, 8), torch.float32)
        tiny[..., i::2, j::2] *= 50
        assert polyphase_pool2d(tiny, 2, norm, return_choice=True)[1].tolist() == [[i, j]] * 4


def test_samples_are_chosen_one_by_one() -> None:
    """Small ones and large, which are taken in blocks, alone and together."""
    for size, count in ((8, 40), (64, 5), (160, 3)):
        x = filled((count, 3, size, size), torch.float32)
        x[1] *= 1e-3
        x[2] *= 1e9
        y, choice = polyphase_pool2d(x, return_choice=True)
        assert len({tuple(at) for at in choice.tolist()}) > 1
        for i in range(count):
            alone, at = polyphase_pool2d(x[i : i + 1], return_choice=True)
            assert torch.equal(alone[0], y[i])
            assert torch.equal(at[0], choice[i])
        spoilt = x.clone()
        spoilt[0, 0, 3, 4] = float("nan")
        assert torch.equal(polyphase_pool2d(spoilt)[1:], y[1:])


def periodic(period: int) -> Tensor:
    """Components of a periodic image may be shifts of each other; any of them will do."""
    return filled((3, 2, period, period), torch.float32).repeat(1, 1, 12 // period, 12 // period)


def of_values(*values: float) -> Tensor:
    return torch.tensor(values)[torch.randint(len(values), (3, 1, 12, 12))]


def symmetric(move: Callable[[Tensor], Tensor]) -> Tensor:
    """What is kept of such an image may come mirrored, where two components are mirror images of each other."""
    whole = torch.randint(-9, 9, (4, 1, 12, 12)).float()  # sums of whole numbers are symmetric to the bit
    return whole + move(whole)


TIED: dict[str, Callable[[], Tensor]] = {
    **{
        f"values {values}": partial(of_values, *values)
        for values in (
            (0.0, 1.0),
            (0.0, -0.0, 1.0),
            (-1.0, 1.0),
            (0.3,),
            (0.0,),
            (-0.0, 0.0),
            (1e30, 1e-38),
            (1e-38, -1e-40),
            (1e38, 3e38),
        )
    },
    **{f"period {period}": partial(periodic, period) for period in (1, 2, 3, 4, 6)},
    "periodic rows": lambda: filled((3, 2, 12, 3), torch.float32).repeat(1, 1, 1, 4),
    "mirrored": lambda: symmetric(lambda x: x.flip(-1)),
    "upside down": lambda: symmetric(lambda x: x.flip(-2)),
    "half turned": lambda: symmetric(lambda x: x.flip(-2, -1)),
    "transposed": lambda: symmetric(lambda x: x.mT),
    "turned": lambda: symmetric(lambda x: sum(D4.act(g, x) for g in (1, 2, 3))),
    "all of D4": lambda: symmetric(lambda x: D4.orbit(x)[1:].sum(0)),
}


@pytest.mark.parametrize("image", TIED)
def test_images_whose_norms_tie(image: str) -> None:
    """The law holds up to a shift of what is kept, and up to the turn."""
    for size, stride, norm, dtype in (
        (12, 2, 2.0, torch.float32),
        (6, 2, 1.0, torch.float64),
        (12, 3, 3.0, torch.float32),
        (12, 4, math.inf, torch.float64),
    ):
        x = TIED[image]().to(dtype)[..., :size, :size]
        y = polyphase_pool2d(x, stride, norm)
        shifted = torch.stack([*slow.cyclic_shifts(y)])
        images = D4.orbit(shifted).flatten(0, 1)
        for g, shift in itertools.product(range(D4.order), ((0, 0), (1, 0), (0, 1), (2, 3))):
            z = polyphase_pool2d(D4.act(g, x).roll(shift, (-2, -1)), stride, norm)
            same = (z == (images if g else shifted)).flatten(2).all(2)  # by the image and by the sample
            assert bool(same.any(0).all()), (size, stride, g, shift)


def components_of_equal_norm(norm: float, dtype: torch.dtype, count: int = 6) -> Tensor:
    """Images whose four components hold the same numbers in another order: norms equal, contents unrelated."""
    x = torch.zeros(count, 1, 6, 6, dtype=dtype)
    for sample in x:
        numbers = torch.rand(9, dtype=dtype)
        for i, j in itertools.product(range(2), repeat=2):
            sample[0, i::2, j::2] = numbers[torch.randperm(9)].view(3, 3)
    return x


@pytest.mark.parametrize("norm", [*NORMS, 2.7])
def test_ties_of_the_same_numbers_in_another_order(norm: float) -> None:
    for dtype, layout in itertools.product(DTYPES, LAYOUTS.values()):
        x = components_of_equal_norm(norm, dtype)
        y = polyphase_pool2d(x, 2, norm)
        for g, shift in itertools.product(range(8), ((0, 0), (3, 2))):
            z = polyphase_pool2d(layout(D4.act(g, x).roll(shift, (-2, -1))), 2, norm)
            expected = D4.act(g, y)
            assert all(is_some_shift(a, b) for a, b in zip(z, expected, strict=True)), (g, shift, dtype)


@each_dtype
@each_norm
def test_not_a_number_and_infinity(norm: float, dtype: torch.dtype) -> None:
    """They are kept or left with the pixels around them, and a shift does not change which."""
    for values in ([float("nan")], [float("inf")], [float("-inf"), float("inf")], [float("nan"), float("inf")]):
        x = filled((4, 2, 6, 6), dtype)
        x[:3].flatten(1)[torch.arange(3), torch.tensor([5, 20, 41])] = torch.tensor((values * 3)[:3], dtype=dtype)
        clean = polyphase_pool2d(x[3:], 2, norm)
        y, choice = polyphase_pool2d(x, 2, norm, return_choice=True)
        assert torch.equal(y[3:], clean)
        for dy, dx in itertools.product(range(6), repeat=2):
            z, _ = polyphase_pool2d(x.roll((dy, dx), (-2, -1)), 2, norm, return_choice=True)
            for kept, expected, (i, j) in zip(z, y, choice.tolist(), strict=True):
                moved = expected.roll(((i + dy) // 2, (j + dx) // 2), (-2, -1))
                assert torch.equal(kept.nan_to_num(7, 8, -8), moved.nan_to_num(7, 8, -8)), values
    everywhere = torch.full((1, 1, 4, 4), float("nan"), dtype=dtype)
    assert polyphase_pool2d(everywhere, 2, norm).isnan().all()
    assert polyphase_pool2d(torch.full_like(everywhere, float("inf")), 2, norm).eq(float("inf")).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    x = maps_of((8, 12), 4, dtype).requires_grad_()
    pool = partial(polyphase_pool2d, return_choice=True)
    assert misses_shifts(pool, x.detach(), (2, 2)) == []
    y = polyphase_pool2d(x)
    assert torch.equal(y, polyphase_pool2d(x.float()).to(dtype))
    assert torch.autograd.grad(y.sum(), x)[0].dtype == dtype


def test_zeros_of_both_signs_are_equal() -> None:
    x = torch.randint(0, 2, (6, 2, 8, 8)).float()
    signed = torch.where((x == 0) & (torch.rand(x.shape) < 0.5), -x, x)
    assert signed.signbit().any()
    for norm in NORMS:
        first, then = (polyphase_pool2d(image, 2, norm, return_choice=True)[1] for image in (x, signed))
        assert torch.equal(first, then)


@each_dtype
def test_unpooling_is_the_way_back(dtype: torch.dtype) -> None:
    for size, stride, axes in MAPS:
        x = maps_of(size, axes, dtype)
        y, choice = polyphase_pool2d(x, stride, return_choice=True)
        back = polyphase_unpool2d(y, choice, stride)
        assert back.shape == x.shape
        assert back.dtype == dtype
        assert torch.equal(polyphase_pool2d(back, stride), y)
        assert torch.equal(slow.polyphase(back, choice, stride), y)
        assert torch.equal(back, torch.where(back != 0, x, 0))
        assert (back != 0).sum() == y.numel()
        z = maps_of(size, axes, dtype, seed=1)
        kept = slow.polyphase(z, choice, stride)
        torch.testing.assert_close((back * z).sum(), (y * kept).sum())  # one is the transpose of the other
        for shift in ((1, 0), (2, 3)):
            moved = polyphase_unpool2d(*polyphase_pool2d(x.roll(shift, (-2, -1)), stride, return_choice=True), stride)
            assert torch.equal(moved, back.roll(shift, (-2, -1)))


def test_maps_that_the_stride_does_not_divide_go_around() -> None:
    for size, stride in ((7, 2), (8, 3), (1, 2), (5, 4), (2, 4)):
        x = filled((3, 2, size, size), torch.float32)
        y, choice = polyphase_pool2d(x, stride, exact=False, return_choice=True)
        count = math.ceil(size / stride)
        around = torch.arange(count * stride) % size
        whole = x[..., around, :][..., around]
        assert torch.equal(y, slow.polyphase(whole, choice, (stride, stride)))
        assert torch.equal(y, polyphase_pool2d(whole, stride))
    x = filled((2, 2, 8, 8), torch.float32)
    assert torch.equal(polyphase_pool2d(x, exact=False), polyphase_pool2d(x))


@pytest.mark.parametrize("shape", [(1, 2, 4, 6), (2, 1, 2, 4, 4)])
def test_derivatives(shape: tuple[int, ...]) -> None:
    """Of any order, and under torch.func as by loops."""
    x = filled((3, *shape), torch.float64)
    sample = x[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(polyphase_pool2d, sample)
    assert torch.autograd.gradgradcheck(polyphase_pool2d, sample)
    assert torch.autograd.gradcheck(lambda x: polyphase_pool2d(x, (4, 2), exact=False), sample)
    y, choice = polyphase_pool2d(sample, return_choice=True)
    assert not choice.requires_grad
    back = lambda y: polyphase_unpool2d(y, choice)  # noqa: E731
    assert torch.autograd.gradcheck(back, y.detach().requires_grad_())
    assert torch.autograd.gradgradcheck(back, y.detach().requires_grad_())

    each = torch.stack([polyphase_pool2d(part) for part in x])
    assert torch.equal(vmap(polyphase_pool2d)(x), each)
    assert torch.equal(vmap(polyphase_pool2d, 2, 2)(x.movedim(0, 2)), each.movedim(0, 2))
    assert torch.equal(vmap(vmap(polyphase_pool2d))(x[None])[0], each)
    choices = vmap(lambda x: polyphase_pool2d(x, return_choice=True)[1])(x)
    assert torch.equal(choices, torch.stack([polyphase_pool2d(part, return_choice=True)[1] for part in x]))
    loss = lambda x: polyphase_pool2d(x).pow(3).sum()  # noqa: E731
    gradients = torch.stack([torch.autograd.functional.jacobian(loss, part) for part in x])
    torch.testing.assert_close(vmap(grad(loss))(x), gradients, **CLOSE)
    jacobian = torch.autograd.functional.jacobian(polyphase_pool2d, x[0])
    torch.testing.assert_close(jacrev(polyphase_pool2d)(x[0]), jacobian, **CLOSE)
    torch.testing.assert_close(vmap(jacrev(polyphase_pool2d))(x)[0], jacobian, **CLOSE)
    hessian = torch.autograd.functional.hessian(loss, x[0])
    torch.testing.assert_close(jacrev(grad(loss))(x[0]), hessian, **CLOSE)
    there_and_back = lambda x: polyphase_unpool2d(*polyphase_pool2d(x, return_choice=True))  # noqa: E731
    assert torch.equal(vmap(there_and_back)(x), torch.stack([there_and_back(part) for part in x]))
    many = torch.stack([y, -y]).detach()
    assert torch.equal(vmap(back)(many), torch.stack([back(y), back(-y)]))


def test_poolings_without_the_law_are_found() -> None:
    """Plain striding, max pooling and blur lose a shift; a choice by float sums loses it where norms are close."""
    x = filled((3, 2, 8, 8), torch.float64)
    zero = torch.zeros(3, 2, dtype=torch.int64)
    for broken in (lambda x: x[..., ::2, ::2], lambda x: F.max_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2)):
        found = misses_shifts(lambda x, broken=broken: (broken(x), zero), x, (2, 2))
        assert {(dy, dx) for dy, dx in shifts_of((8, 8), (2, 2)) if dy % 2 or dx % 2} == set(found)
        y, z = broken(x), broken(x.roll(1, -1))
        assert not any(is_some_image(a, b, D4, feature=False) for a, b in zip(z, y, strict=True))

    def naive(x: Tensor) -> Tensor:
        parts = torch.stack([part for _, part in slow.components(x[0], (2, 2))])
        return parts[parts.flatten(1).norm(dim=1).argmax()][None]

    tied = components_of_equal_norm(2.0, torch.float32, 30)
    agree = [is_some_shift(naive(s[None].roll((1, 1), (-2, -1)))[0], naive(s[None])[0]) for s in tied]
    assert not all(agree)


X = torch.zeros(2, 1, 8, 8)
REFUSED: list[tuple[dict[str, object], type[Exception], tuple[str, ...]]] = [
    ({"stride": 0}, ValueError, ("stride >= 1", "got 0.")),
    ({"stride": (2, -1)}, ValueError, ("stride >= 1", "got -1.")),
    ({"stride": 2.0}, TypeError, ("stride to be an int", "2.0")),
    ({"stride": (2,)}, ValueError, ("stride to be an int or a pair",)),
    ({"norm": 0.5}, ValueError, ("norm to be a number >= 1", "got 0.5.")),
    ({"norm": -math.inf}, ValueError, ("norm to be a number >= 1", "got -inf.")),
    ({"norm": math.nan}, ValueError, ("norm to be a number >= 1", "got nan.")),
    *(({"norm": norm}, TypeError, ("norm to be",)) for norm in ("2", None, [2.0])),
    ({"stride": 3}, ValueError, ("H to be a multiple of the stride 3", "got 8.", "6 or 9", "exact=False")),
    ({"stride": (2, 5)}, ValueError, ("W to be a multiple of the stride 5", "got 8.", "5 or 10")),
    ({"stride": 16}, ValueError, ("H to be a multiple of the stride 16", "pad it to 16,")),
    ({"x": X.int()}, TypeError, ("x to be floating-point", "torch.int32")),
    ({"x": None}, TypeError, ("x to be a torch.Tensor", "NoneType")),
    ({"x": torch.zeros(8, 8)}, ValueError, ("x of shape (B, C, H, W)", "(8, 8)")),
    ({"x": torch.zeros(1, 1, 0, 8)}, ValueError, ("x of shape (B, C, H, W)", "(1, 1, 0, 8)")),
]


@pytest.mark.parametrize(("settings", "error", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_every_refusal_by_its_words(
    settings: dict[str, object], error: type[Exception], words: tuple[str, ...]
) -> None:
    assert_refused(partial(polyphase_pool2d, **({"x": X} | settings)), error, "polyphase_pool2d", *words)


def test_empty_batches() -> None:
    x = torch.zeros(0, 3, 8, 12, requires_grad=True)
    y, choice = polyphase_pool2d(x, return_choice=True)
    assert (y.shape, choice.shape) == ((0, 3, 4, 6), (0, 2))
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    assert polyphase_unpool2d(y, choice).shape == x.shape


def test_unpooling_refuses_choices_that_do_not_fit() -> None:
    caller, choice = "polyphase_unpool2d", torch.zeros(2, 2, dtype=torch.int64)
    shape, within = "choice of shape (2, 2) and dtype torch.int64", "choice within the stride (2, 2)"
    for wrong in (choice[:1], choice[0], choice.repeat(1, 2), choice.int(), choice.float()):
        assert_refused(partial(polyphase_unpool2d, X, wrong), ValueError, caller, shape, str(wrong.dtype))
    for wrong in (choice - 1, choice + 2):
        assert_refused(partial(polyphase_unpool2d, X, wrong), ValueError, caller, within)
    assert_refused(partial(polyphase_unpool2d, X, choice + torch.tensor([0, 2]), (3, 2)), ValueError, caller, "(3, 2)")
    assert_refused(partial(polyphase_unpool2d, X, choice, 0), ValueError, caller, "stride >= 1")
    assert_refused(partial(polyphase_unpool2d, X[0, 0], choice), ValueError, caller, "y of shape")
    for y, wrong in ((X, [[0, 0], [1, 1]]), (X, None), (None, choice)):
        assert_refused(partial(polyphase_unpool2d, y, wrong), TypeError, caller)
