"""Every refusal, by its type and its words, in the one form `<caller>: expected ..., got .... <What to do.>`."""

# ruff: noqa: B023 - every call is made at once

from collections.abc import Callable

import pytest
import torch

from equilayers.functional import group_linear, lift_linear, orbit_pool
from equilayers.groups import CyclicRotation, CyclicTranslation, Dihedral, DirectProduct, PermutationGroup
from equilayers.nn import GroupLinear, LiftingLinear, OrbitPool
from refusals import assert_refused
from strategies import C2, C4, D1, D4, S3, T3


def test_the_form_is_checked() -> None:
    def fail(message: str, error: type[Exception] = ValueError) -> Callable[[], object]:
        def call() -> None:
            raise error(message)

        return call

    good = "f: expected x to be 1, got 2. Pass 1."
    assert_refused(fail(good), ValueError, "f", "got 2")
    for bad in ("x must be 1", "f: expected x to be 1, got 2", "f: expected x to be 1. Pass 1.", "f: got 2. Pass 1."):
        with pytest.raises(AssertionError, match="not of the form"):
            assert_refused(fail(bad), ValueError, "f")
    for arguments in ((TypeError, "f"), (ValueError, "g"), (ValueError, "f", "got 3")):
        with pytest.raises(AssertionError):
            assert_refused(fail(good), *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [CyclicRotation, Dihedral])
def test_inexact_rotations(kind: Callable[[int], object]) -> None:
    for n in (3, 5, 6, 8, 360):
        words = ("1, 2 or 4", f"got {n}.", "exact for 1, 2, 4 alone", "interpolation=")
        assert_refused(lambda: kind(n), ValueError, kind.__name__, *words)


@pytest.mark.parametrize("kind", [CyclicRotation, Dihedral, CyclicTranslation])
def test_bad_orders(kind: Callable[[object], object]) -> None:
    for n in (0, -1):
        assert_refused(lambda: kind(n), ValueError, kind.__name__, "n >= 1", f"got {n}.")
    for n in (2.0, "4", None, True, [4]):
        assert_refused(lambda: kind(n), TypeError, kind.__name__, "n to be an int")


def test_bad_translation_axes() -> None:
    for dim in (0, 1, -3):
        assert_refused(lambda: CyclicTranslation(3, dim), ValueError, "CyclicTranslation", "-1 or -2", f"got {dim}.")
    for dim in (-1.0, "x", None, True):
        assert_refused(lambda: CyclicTranslation(3, dim), TypeError, "CyclicTranslation", "dim to be", repr(dim))


GENERATORS = [
    ([[0, 0, 1]], ValueError, "permutations of 0..2"),
    ([[1, 2, 3]], ValueError, "permutations of 0..2"),
    ([[1, 0], [1, 2, 0]], ValueError, "permutations of 0..1"),
    ([[]], ValueError, "permutations"),
    ([], ValueError, "at least one of generators"),
    ([[*range(1, 9), 0], [1, 0, *range(2, 9)]], ValueError, "at most 5040 elements"),
    (3, TypeError, "sequences of ints"),
    ([1, 0], TypeError, "sequences of ints"),
    (None, TypeError, "sequences of ints"),
    ([["a", "b"]], TypeError, "sequences of ints"),
    ([[1.5, 0.2]], TypeError, "sequences of ints"),
    (["10"], TypeError, "sequences of ints"),
]


@pytest.mark.parametrize(("generators", "error", "words"), GENERATORS, ids=str)
def test_bad_generators(generators: object, error: type[Exception], words: str) -> None:
    assert_refused(lambda: PermutationGroup(generators), error, "PermutationGroup", words)  # type: ignore[arg-type]


NOT_COMMUTING = [(C4, T3), (D4, C4), (C2, T3), (S3, S3), (T3, S3), (D1, CyclicTranslation(4))]


@pytest.mark.parametrize(("first", "second"), NOT_COMMUTING, ids=str)
def test_actions_that_do_not_commute(first: CyclicRotation, second: CyclicRotation) -> None:
    assert_refused(
        lambda: DirectProduct(first, second), ValueError, "DirectProduct", "commute", "only commuting actions"
    )


def test_interpolating_groups_where_exact_ones_are_needed() -> None:
    c8 = CyclicRotation(8, interpolation="bilinear")
    assert_refused(lambda: LiftingLinear(c8, (8, 8), 3), ValueError, "LiftingLinear", "an exact group")
    assert_refused(lambda: DirectProduct(c8, T3), ValueError, "DirectProduct", "exact groups")


def test_products_of_arrays_that_cannot_be_the_same() -> None:
    fifths = PermutationGroup([[1, 2, 3, 4, 0]])
    assert_refused(lambda: DirectProduct(S3, fifths), ValueError, "DirectProduct", "last axis")
    assert_refused(lambda: DirectProduct(T3, fifths), ValueError, "DirectProduct", "multiple of 3", "got 5")
    for pair in ((C4, 3), (4.5, C4), (None, None)):
        make = lambda pair=pair: DirectProduct(*pair)  # noqa: E731
        assert_refused(make, TypeError, "DirectProduct", "group of equilayers.groups")


@pytest.mark.parametrize("group", [C4, D4, T3, S3, DirectProduct(C2, CyclicTranslation(2))], ids=repr)
def test_bad_elements(group: CyclicRotation) -> None:
    x, f = torch.zeros(6, 6), torch.zeros(2, 3, group.order)
    calls = {"act": lambda g: group.act(g, x), "act_regular": lambda g: group.act_regular(g, f)}
    calls |= {"inverse": group.inverse, "compose": lambda g: group.compose(0, g)}
    for method, call in calls.items():
        caller = f"{group!r}.{method}"
        for g in (-1, group.order):
            assert_refused(lambda: call(g), ValueError, caller, f"g in 0..{group.order - 1}", f"got {g}.")
        for g in (1.0, "1", None, True):
            assert_refused(lambda: call(g), TypeError, caller, "g to be an int")
    for method in (group.act, group.act_regular):
        assert_refused(lambda: method(1, [1.0]), TypeError, f"{group!r}.{method.__name__}", "torch.Tensor", "got list")


def test_bad_spaces() -> None:
    for group in (C4, D4):
        assert_refused(lambda: group.act(1, torch.zeros(4)), ValueError, f"{group!r}.act", "(..., H, W)")
        assert_refused(lambda: LiftingLinear(group, (4, 5), 3), ValueError, "LiftingLinear", "H == W")
    x = torch.zeros(2, 10, 10)
    for dim in (-1, -2):
        group = CyclicTranslation(3, dim)
        assert_refused(lambda: group.act(1, x), ValueError, f"{group!r}.act", f"axis {dim}", "multiple of 3", "got 10.")
        assert_refused(
            lambda: LiftingLinear(group, (10, 10), 3), ValueError, "LiftingLinear", "multiple of 3", "got 10."
        )
    low = CyclicTranslation(3, dim=-2)
    assert_refused(lambda: low.act(1, torch.zeros(6)), ValueError, f"{low!r}.act", "at least 2 axes")
    assert_refused(lambda: S3.act(1, torch.zeros(4)), ValueError, f"{S3!r}.act", "last axis 3")
    assert_refused(lambda: S3.act(1, torch.tensor(1.0)), ValueError, f"{S3!r}.act", "last axis 3")
    for shape in ((2, 3, 5), (2, 4), (4,)):
        assert_refused(lambda: C4.act_regular(1, torch.zeros(shape)), ValueError, f"{C4!r}.act_regular", "axis 2", "4")


def test_bad_layer_arguments() -> None:
    makers: dict[str, Callable[..., object]] = {
        "LiftingLinear": lambda group=C4, out=3, **kw: LiftingLinear(group, (4, 4), out, **kw),
        "GroupLinear": lambda group=C4, out=3, **kw: GroupLinear(group, 5, out, **kw),
    }
    for caller, make in makers.items():
        for group in (4, 4.5, None, CyclicRotation):
            assert_refused(lambda: make(group), TypeError, caller, "group of equilayers.groups")
        assert_refused(lambda: make(out=0), ValueError, caller, "out_features >= 1", "got 0.")
        for out in (2.5, "3", None, True):
            assert_refused(lambda: make(out=out), TypeError, caller, "out_features to be an int")
        for algorithm in ("fft", "", None):
            assert_refused(
                lambda: make(algorithm=algorithm), ValueError, caller, "'auto', 'bitwise', 'orbit'", repr(algorithm)
            )
    assert_refused(lambda: GroupLinear(C4, 0, 3), ValueError, "GroupLinear", "in_features >= 1", "got 0.")
    assert_refused(lambda: LiftingLinear(C4, (0, 4, 4), 3), ValueError, "LiftingLinear", "in_shape", "got 0.")
    for shape in ([2.5], 2.5, None, True):
        assert_refused(lambda: LiftingLinear(T3, shape, 3), TypeError, "LiftingLinear", "in_shape")
    for reduction in ("sum", "", None):
        assert_refused(lambda: OrbitPool(reduction), ValueError, "OrbitPool", "'max', 'mean'", repr(reduction))
        assert_refused(lambda: orbit_pool(torch.zeros(1, 2, 4), reduction), ValueError, "orbit_pool", repr(reduction))


def test_bad_inputs() -> None:
    lifting, tied, pool = LiftingLinear(C4, (2, 4, 4), 3), GroupLinear(C4, 5, 3), OrbitPool()
    x, f = torch.zeros(1, 2, 4, 4), torch.zeros(1, 5, 4)
    for model, caller, good in ((lifting, "LiftingLinear", x), (tied, "GroupLinear", f), (pool, "orbit_pool", f)):
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
            assert_refused(lambda: model(good.to(dtype)), TypeError, caller, "floating-point", f"got {dtype}")
        assert_refused(lambda: model([1.0]), TypeError, caller, "torch.Tensor", "got list")
    for model, caller, good in ((lifting, "LiftingLinear", x), (tied, "GroupLinear", f)):
        assert_refused(lambda: model(good.double()), TypeError, caller, "torch.float32", "got torch.float64")
    for shape in ((1, 3, 4, 4), (1, 2, 5, 5), (2, 4, 4), (1, 1, 2, 4, 4), ()):
        assert_refused(
            lambda: lifting(torch.zeros(shape)), ValueError, "LiftingLinear", "(B, 2, 4, 4)", f"got {shape}."
        )
    assert_refused(
        lambda: tied(torch.zeros(1, 6, 4)), ValueError, "GroupLinear", "(B, 5, 4, *positions)", "got (1, 6, 4)"
    )
    for shape in ((1, 5, 3), (5, 4), (1, 5, 8)):
        assert_refused(
            lambda: tied(torch.zeros(shape)), ValueError, "GroupLinear", "axis 2 of length 4", f"got {shape}."
        )
    for shape in ((2, 3), (2, 3, 0), ()):
        assert_refused(lambda: pool(torch.zeros(shape)), ValueError, "orbit_pool", "(B, C, |G|)", f"got {shape}.")


@pytest.mark.parametrize("function", [lift_linear, group_linear])
def test_groups_of_the_functions(function: Callable[..., object]) -> None:
    x = torch.zeros(1, 4, 3)
    assert_refused(lambda: function(x, x, None, 4), TypeError, function.__name__, "group of equilayers.groups")


def test_inputs_that_were_never_lifted() -> None:
    maps = torch.zeros(2, 3, 8, 8)
    assert OrbitPool()(maps).shape == (2, 3, 8)  # may be features of tokens
    assert_refused(lambda: OrbitPool(group="C4")(maps), ValueError, "OrbitPool", "axis 2 of length 4", "(2, 3, 8, 8)")
    assert OrbitPool(group=C4)(torch.zeros(2, 3, 4, 8, 8)).shape == (2, 3, 8, 8)
