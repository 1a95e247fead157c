"""Blur pooling against slow references, its symmetry to the last bit, its derivatives and its refusals."""

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
from conv_laws import LAYOUTS, MODES, ROUNDING, has_quarter_turns, misses, worst
from equilayers.functional import avg_blur_pool2d, blur_pool2d, max_blur_pool2d
from equilayers.groups import Group
from refusals import assert_refused
from strategies import C4, D2, D4, filled, float_dtypes, rotations

Pool = Callable[..., Tensor]

POOLS: dict[str, Pool] = {"blur": blur_pool2d, "max": max_blur_pool2d, "avg": avg_blur_pool2d}
STRIDES = (1, 2, 3, 4)
CLOSE = {"atol": 1e-12, "rtol": 1e-12}
SKEW = [0.3, -0.1, 2.0, 0.5]  # weights of no symmetry

each_pool = pytest.mark.parametrize("pool", POOLS)
each_mode = pytest.mark.parametrize("mode", MODES)


def away(y: Tensor, expected: Tensor) -> float:
    assert y.shape == expected.shape
    return (y.double() - expected).abs().max().item() if y.numel() else 0.0


@pytest.mark.parametrize(("pool", "modes"), [("max", MODES), ("avg", MODES), *(("blur", (mode,)) for mode in MODES)])
def test_turns_and_mirrors_at_every_size(pool: str, modes: tuple[str, ...]) -> None:
    """To the last bit for sizes up to 64 and strides 1 to 4; modes, layouts, dtypes and features are drawn."""
    draw = random.Random(0).choice
    for size, stride in itertools.product((*range(1, 34), 47, 64), STRIDES):
        group, dtype, mode = draw((None, C4, None, D4)), draw((torch.float32, torch.float64)), draw(modes)
        first, then = (draw([*LAYOUTS.values()]) for _ in range(2))
        fiber = () if group is None else (group.order,)
        x = first(filled((2, 2, *fiber, size, size) if size < 20 else (1, 1, *fiber, size, size), dtype, size))
        model = partial(POOLS[pool], stride=stride, padding_mode=mode)
        assert misses(model, group or D4, x, then) == [], (size, stride, group, dtype, mode, first, then)


@given(
    rotations(),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.sampled_from(STRIDES), st.sampled_from(STRIDES)),
    st.sampled_from([*POOLS]),
    st.sampled_from(MODES),
    float_dtypes(),
    st.data(),
)
def test_turns_and_mirrors_of_any_map(
    group: Group,
    size: tuple[int, int],
    strides: tuple[int, int],
    pool: str,
    mode: str,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    """Maps and strides may differ along the axes, unless the group exchanges them."""
    if has_quarter_turns(group):
        size, strides = (size[0], size[0]), (strides[0], strides[0])
    first, then = (LAYOUTS[data.draw(st.sampled_from([*LAYOUTS]))] for _ in range(2))
    fiber = data.draw(st.sampled_from([(), (group.order,)]))
    more: dict[str, object] = {} if pool == "blur" else {"kernel_size": data.draw(st.integers(1, 5))}
    model = partial(POOLS[pool], stride=strides, padding_mode=mode, **more)
    assert misses(model, group, first(filled((2, 3, *fiber, *size), dtype)), then) == []


@each_pool
def test_turns_of_zeros_of_both_signs_and_of_extreme_numbers(pool: str) -> None:
    choices = ([0.0, -0.0, 1.0], [1e30, -1e30, 1.0, 1e8], [1e-38, -1e-40, 0.0], [float("inf"), 1.0, -2.0])
    for values, size, stride, mode in itertools.product(choices, (5, 6, 8), (1, 2, 3), MODES):
        x = torch.tensor(values)[torch.randint(len(values), (3, 2, size, size))]
        assert misses(partial(POOLS[pool], stride=stride, padding_mode=mode), D4, x) == [], (values, size, stride, mode)


@each_mode
def test_symmetric_weights_where_they_fit(mode: str) -> None:
    """With `exact` each number of taps, and symmetric weights of one's own, at the sizes that take them."""
    layouts = itertools.cycle([*LAYOUTS.values(), torch.clone])
    for weights in (*range(1, 8), [0.3, -0.1, 0.3], (0.7, 0.2, 0.2, 0.7), torch.tensor([1.5, 0.1, 3.0, 0.1, 1.5])):
        taps = weights if isinstance(weights, int) else len(weights)
        fitting = 0
        for size, stride in itertools.product(range(1, 10), STRIDES):
            if (size - 1 - stride * ((size - 1) // stride) + taps) % 2 == 0:
                continue
            fitting += 1
            model = partial(blur_pool2d, taps=weights, stride=stride, padding_mode=mode, exact=True)
            x = next(layouts)(filled((2, 2, size, size), torch.float32))
            assert misses(model, D4, x, next(layouts)) == [], (weights, size, stride)
        assert fitting >= 9


@each_mode
def test_the_symmetric_grid_by_loops(mode: str) -> None:
    """From one pixel on, where the padding wraps around or mirrors as often as it must."""
    for size, more, stride in itertools.product((1, 2, 3, 4, 5, 8, 9), (0, 3), (1, 2, 3, 4, 5)):
        x = filled((2, size, size + more), torch.float64, size)
        readings = slow.symmetric(size, stride), slow.symmetric(size + more, stride)
        y = blur_pool2d(x, stride=stride, padding_mode=mode)
        assert away(y, slow.blur(x, readings, (stride, stride), mode)) <= 1e-13, (size, stride)


@each_mode
@pytest.mark.parametrize("taps", range(1, 8))
def test_the_published_blur_pool(taps: int, mode: str) -> None:
    for size, stride in itertools.product((7, 8, 9, 12, 16, 21, 28, 33), STRIDES):
        x = filled((2, 3, size, size), torch.float32, size)
        y = blur_pool2d(x, taps, stride, mode)
        assert away(y, slow.depthwise(x, slow.PASCAL[taps], stride, mode).double()) <= 1e-6
        assert away(y, slow.depthwise(x.double(), slow.PASCAL[taps], stride, mode)) <= 1e-6
        precise = blur_pool2d(x.double(), taps, stride, mode)
        assert away(precise, slow.depthwise(x.double(), slow.PASCAL[taps], stride, mode)) <= 1e-14


@given(
    st.lists(st.floats(0.125, 2, width=32), min_size=1, max_size=9),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from(MODES),
    st.sampled_from([list, tuple, torch.tensor]),
)
def test_weights_of_ones_own(
    weights: list[float], size: tuple[int, int], strides: tuple[int, int], mode: str, kind: Callable[..., object]
) -> None:
    x = filled((2, *size), torch.float64)
    readings = tuple(slow.published(n, weights, s) for n, s in zip(size, strides, strict=True))
    y = blur_pool2d(x, kind(weights), list(strides), mode)
    assert away(y, slow.blur(x, readings, strides, mode)) <= 1e-13


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "circular"])
def test_windows_by_unfolding(mode: str) -> None:
    for size, stride, kernel in itertools.product((1, 2, 5, 8), (1, 2, 3), (1, 2, 3, 4, 6)):
        x = filled((2, 2, size, size + 1), torch.float64)
        for pool, reduce in ((max_blur_pool2d, Tensor.amax), (avg_blur_pool2d, Tensor.mean)):
            inner = reduce(slow.windows(x, kernel), (-2, -1))
            readings = tuple(slow.symmetric(n, stride) for n in inner.shape[-2:])
            y = pool(x, stride=stride, padding_mode=mode, kernel_size=kernel)
            assert away(y, slow.blur(inner, readings, (stride, stride), mode)) <= 1e-13, (size, stride, kernel)
            if size > kernel:
                y = pool(x, kernel, stride, taps=3, padding_mode=mode)
                assert away(y, blur_pool2d(inner, 3, stride, mode)) <= 1e-13


def test_padded_maxima_are_those_of_torch() -> None:
    """No maximum is taken from the padding, whatever stands at the border; the law holds bitwise."""
    for kernel, padding in ((2, 1), (3, 1), (5, 2)):
        for size in (1, 4, 5, 8):
            x = filled((2, 3, size, size), torch.float64) - 10
            dense = F.max_pool2d(x, kernel, 1, padding)
            for mode in ("zeros", "reflect", "replicate"):
                pool = partial(max_blur_pool2d, stride=2, padding_mode=mode, kernel_size=kernel, padding=padding)
                torch.testing.assert_close(pool(x), blur_pool2d(dense, stride=2, padding_mode=mode))
                assert all(torch.equal(pool(D4.act(g, x)), D4.act(g, pool(x))) for g in range(8))
    for padding, mode in ((2, "zeros"), (-1, "zeros"), (1, "circular")):
        with pytest.raises(ValueError, match="max_blur_pool2d: expected padding"):
            max_blur_pool2d(X, kernel_size=3, padding=padding, padding_mode=mode)


def test_circular_windows_go_around() -> None:
    """As many as there are pixels: so shifts by multiples of the stride commute, which they do not with fewer."""
    for (height, width), stride, kernel in itertools.product(((6, 6), (6, 12)), (1, 2, 3), (1, 2, 3, 4)):
        x = filled((2, 2, height, width), torch.float64)
        around = torch.cat((x, x[..., : kernel - 1, :]), -2)
        around = torch.cat((around, around[..., : kernel - 1]), -1)
        for pool, reduce in ((max_blur_pool2d, Tensor.amax), (avg_blur_pool2d, Tensor.mean)):
            read = partial(pool, stride=stride, padding_mode="circular", kernel_size=kernel)
            inner = reduce(slow.windows(around, kernel), (-2, -1))
            assert away(read(x, taps=3), blur_pool2d(inner, 3, stride, "circular")) <= 1e-13
            y = read(x)
            for dy, dx in ((1, 0), (0, 1), (1, 2)):
                moved = read(torch.roll(x, (stride * dy, stride * dx), (-2, -1)))
                assert torch.equal(moved, torch.roll(y, (dy, dx), (-2, -1)))


@each_pool
def test_gradients_turn_with_the_input(pool: str) -> None:
    for size, stride, mode in itertools.product((6, 7), (2, 3), MODES):
        model = partial(POOLS[pool], stride=stride, padding_mode=mode)
        loss = lambda x: model(x).pow(3).sum() / 3  # noqa: B023, E731
        for fiber in ((), (8,)):
            assert worst(grad(loss), D4, filled((2, 2, *fiber, size, size), torch.float32)) <= ROUNDING


DERIVED: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"auto, {mode}": partial(blur_pool2d, padding_mode=mode) for mode in MODES},
    **{f"3 taps, {mode}": partial(blur_pool2d, taps=3, padding_mode=mode) for mode in MODES},
    "auto, stride 3 and 1": partial(blur_pool2d, stride=(3, 1)),
    "exact skew": partial(blur_pool2d, taps=[1.0, 2.0, 0.5], stride=(2, 1), exact=True),
    "wrapped often": partial(blur_pool2d, taps=7, stride=4, padding_mode="circular"),
    "max": max_blur_pool2d,
    "max of 3": partial(max_blur_pool2d, kernel_size=3, stride=2, taps=2, padding_mode="zeros"),
    "avg": avg_blur_pool2d,
    "avg of 3": partial(avg_blur_pool2d, stride=1, padding_mode="replicate", kernel_size=3),
}

each_derived = pytest.mark.parametrize("function", DERIVED)


@each_derived
def test_gradcheck_and_gradgradcheck(function: str) -> None:
    for size in ((5, 4), (1, 3)):
        x = filled((1, 2, *size), torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(DERIVED[function], x)
        assert torch.autograd.gradgradcheck(DERIVED[function], x)


@each_derived
def test_functional_transforms_are_loops(function: str) -> None:
    call, x = DERIVED[function], filled((3, 2, 5, 5), torch.float64)
    torch.testing.assert_close(vmap(call)(x), call(x), **CLOSE)
    torch.testing.assert_close(vmap(call, 1, 1)(x), call(x), **CLOSE)
    torch.testing.assert_close(vmap(vmap(call))(x[:, None]), call(x)[:, None], **CLOSE)
    loss = lambda x: call(x).pow(2).sum()  # noqa: E731
    each = [torch.autograd.functional.jacobian(loss, sample) for sample in x]
    torch.testing.assert_close(vmap(grad(loss))(x), torch.stack(each), **CLOSE)
    jacobian = torch.autograd.functional.jacobian(call, x[0])
    torch.testing.assert_close(jacrev(call)(x[0]), jacobian, **CLOSE)
    torch.testing.assert_close(vmap(jacrev(call))(x)[0], jacobian, **CLOSE)
    hessian = torch.autograd.functional.hessian(loss, x[0, :1])
    torch.testing.assert_close(jacrev(grad(loss))(x[0, :1]), hessian, **CLOSE)


def test_equal_maxima_share_the_gradient() -> None:
    """As after a ReLU; what falls to a pixel does not depend on which side of the window it stands."""
    x = torch.ones(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    max_blur_pool2d(x, stride=1, taps=1).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 0.25))
    binary = torch.randint(0, 2, (2, 3, 7, 7)).double()
    assert worst(grad(lambda x: max_blur_pool2d(x, stride=2).sum()), D4, binary) <= ROUNDING


@pytest.mark.parametrize(
    "shape", [(7, 6), (3, 7, 6), (2, 3, 4, 7, 6), (2, 1, 2, 2, 7, 6), (0, 3, 7, 6), (0, 3, 4, 7, 6), (2, 0, 7, 6)]
)
@each_pool
def test_any_number_of_axes(pool: str, shape: tuple[int, ...]) -> None:
    x = filled(shape, torch.float64)
    for taps in ("auto", 3):
        y = POOLS[pool](x, taps=taps)
        assert y.shape == (*shape[:-2], *y.shape[-2:])
        flat = x.reshape(-1, 1, 7, 6)
        expected = torch.stack([POOLS[pool](sample, taps=taps) for sample in flat]) if len(flat) else y
        assert torch.equal(y.reshape(expected.shape), expected) or away(y.reshape(expected.shape), expected) <= 1e-14


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_pool
def test_half_precision_is_reckoned_in_single(pool: str, dtype: torch.dtype) -> None:
    for taps in ("auto", 3):
        x = filled((2, 3, 8, 8), dtype)
        y = POOLS[pool](x, taps=taps)
        assert y.dtype == dtype
        expected = POOLS[pool](x.double(), taps=taps)
        # The mean of the windows is rounded to x's dtype before it is blurred.
        assert away(y, expected) <= 2 * torch.finfo(dtype).eps * expected.abs().max().item()
    large = torch.full((1, 1, 8, 8), 60000.0, dtype=torch.float16)
    assert torch.equal(POOLS[pool](large), large[..., :4, :4] if pool == "blur" else POOLS[pool](large))
    assert POOLS[pool](large).isfinite().all()
    assert misses(POOLS[pool], D4, filled((2, 2, 7, 7), dtype)) == []


@each_pool
def test_published_taps_and_plain_striding_are_found(pool: str) -> None:
    """What the law is for: three taps on an even map, and no blur at all, break every element of the group."""
    diagonal = 5  # the one mirror that keeps a lopsided square grid
    x = filled((2, 2, 8, 8) if pool == "blur" else (2, 2, 9, 9), torch.float64)
    found = misses(partial(POOLS[pool], taps=3), D4, x)
    assert set(found) >= {1, 2, 3, 4, 6, 7}
    assert worst(partial(POOLS[pool], taps=3), D4, x) > 1e10
    assert set(misses(lambda x: x[..., ::2, ::2], D4, x)) <= {1, 2, 3, 4, 6, 7} | {diagonal}
    if pool == "max":
        assert misses(lambda x: F.max_pool2d(x, 2), D4, x) != []
    # On maps of the other parity three taps are symmetric, and right to rounding.
    y = x[..., :-1, :-1]
    assert worst(partial(POOLS[pool], taps=3), D4, y) <= ROUNDING


@each_mode
@each_pool
def test_densely_within_rounding(pool: str, mode: str) -> None:
    """The same symmetric samples by a convolution."""
    for size, stride, dtype in itertools.product((1, 3, 8, 17), (1, 2, 3), (torch.float32, torch.float64)):
        x = filled((2, 2, size, size), dtype, size)
        for y, group in ((x, D4), (x.unsqueeze(2).repeat(1, 1, 4, 1, 1), C4)):
            model = partial(POOLS[pool], stride=stride, padding_mode=mode)
            dense = partial(model, algorithm="dense")
            assert away(dense(y), model(y).double()) <= 8 * torch.finfo(dtype).eps * y.abs().max().item()
            assert worst(dense, group, y) <= ROUNDING, (size, stride, dtype)
    assert misses(dense, D4, filled((4, 5, 33, 33), torch.float32)) != []


X = torch.zeros(1, 1, 8, 8)
REFUSED: list[tuple[dict[str, object], type[Exception], tuple[str, ...]]] = [
    ({"stride": 0}, ValueError, ("stride >= 1", "got 0.")),
    ({"stride": (2, 0)}, ValueError, ("stride >= 1", "got 0.")),
    ({"stride": 1.5}, TypeError, ("stride to be an int", "1.5")),
    ({"stride": (1, 2, 3)}, ValueError, ("stride to be an int or a pair",)),
    ({"taps": 0}, ValueError, ("taps in 1..7", "got 0.")),
    ({"taps": 8}, ValueError, ("taps in 1..7", "got 8.")),
    ({"taps": "many"}, ValueError, ("taps to be 'auto'", "'many'")),
    ({"taps": 2.5}, TypeError, ("taps to be an int", "2.5")),
    ({"taps": None}, TypeError, ("taps", "None")),
    ({"taps": True}, TypeError, ("taps", "True")),
    ({"taps": [1.0, -1.0]}, ValueError, ("do not sum to zero", "(1.0, -1.0)")),
    ({"taps": torch.tensor([1.0, -2.0, 1.0])}, ValueError, ("do not sum to zero",)),
    ({"taps": []}, ValueError, ("taps to be finite weights", "()")),
    *(({"taps": [1.0, float(w)]}, ValueError, ("taps to be finite weights", w)) for w in ("nan", "inf")),
    *(({"taps": w}, ValueError, ("taps to be",)) for w in (torch.ones(2, 2), torch.tensor(3.0), ["a"], [1.0, None])),
    ({"padding_mode": "constant"}, ValueError, ("'zeros', 'reflect', 'replicate', 'circular'", "'constant'")),
    ({"algorithm": "fourier"}, ValueError, ("algorithm in {'auto', 'bitwise', 'dense'}", "'fourier'")),
    ({"x": X.long()}, TypeError, ("x to be floating-point", "torch.int64")),
    ({"x": [[1.0]]}, TypeError, ("x to be a torch.Tensor", "list")),
    ({"x": torch.zeros(5)}, ValueError, ("x of shape (..., H, W)", "(5,)")),
    ({"x": torch.zeros(1, 1, 0, 5)}, ValueError, ("H and W positive", "(1, 1, 0, 5)")),
]


@each_pool
def test_every_refusal_by_its_words(pool: str) -> None:
    for settings, error, words in REFUSED:
        call = partial(POOLS[pool], **({"x": X} | settings))
        assert_refused(call, error, f"{pool}_blur_pool2d".removeprefix("blur_"), *words)
    if pool != "blur":
        assert_refused(partial(POOLS[pool], X, kernel_size=0), ValueError, f"{pool}_blur_pool2d", "kernel_size >= 1")
        assert_refused(partial(POOLS[pool], X, kernel_size="2"), TypeError, f"{pool}_blur_pool2d", "kernel_size")


@pytest.mark.parametrize(("taps", "size", "parity"), [(2, 7, "odd"), (3, 8, "even"), (4, 9, "odd"), (5, 6, "even")])
def test_taps_that_cannot_be_symmetric_name_two_that_can(taps: int, size: int, parity: str) -> None:
    for shape in ((1, 1, size, 12 + size % 2), (1, 1, 12 + size % 2, size)):
        x = filled(shape, torch.float32)
        words = f"{parity} number of taps", f"H={shape[2]} and stride=2", f"got {taps}."
        assert_refused(
            lambda x=x: blur_pool2d(x, taps, exact=True), ValueError, "blur_pool2d", *words, f"{taps - 1} or {taps + 1}"
        )
        for works in (taps - 1, taps + 1, "auto"):
            assert misses(partial(blur_pool2d, taps=works, exact=True), D2, x) == []
        assert misses(partial(blur_pool2d, taps=taps), D2, x) != []


def test_the_taps_that_a_refusal_names_can_be_had() -> None:
    for taps in (1, 7):
        with pytest.raises(ValueError, match="Take") as caught:
            blur_pool2d(X, taps, exact=True)
        named = [int(word) for word in str(caught.value).split("Take ")[1].split() if word.isdigit()]
        assert len(named) == len({*named}) > 0
        for works in named:
            blur_pool2d(X, works, exact=True)


def test_infinite_gradients_stay_where_they_are() -> None:
    x, v = torch.ones(1, 1, 5, 5, requires_grad=True), torch.ones(1, 1, 3, 3)
    v[..., 0, 0] = math.inf
    (gradient,) = torch.autograd.grad(blur_pool2d(x, padding_mode="zeros"), x, v)
    assert not gradient.isnan().any()
