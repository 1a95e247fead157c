"""Products by either library agree, and layers whose products go through oneDNN keep their promise."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from conv_laws import Kind, each_kind, input_of, make, misses, square
from equilayers import _matmul as _products
from equilayers._matmul import matmul
from equilayers.groups import Group
from linear_laws import breaks, layers
from linear_laws import input_of as linear_input_of
from strategies import each_group, filled


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every product goes through oneDNN, on any processor; the number of products so far."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this build of torch has no oneDNN")
    count = [0]

    def onednn() -> bool:
        count[0] += 1
        return True

    monkeypatch.setattr(_products, "LARGE", 0)
    monkeypatch.setattr(_products, "_onednn", onednn)
    yield count
    assert count[0], "no product was asked for"


def matrix(rows: int, columns: int, layout: str, seed: int) -> Tensor:
    if layout == "transposed":
        return filled((columns, rows), torch.float32, seed).mT
    if layout == "part of a larger one":
        return filled((rows, columns + 3), torch.float32, seed)[:, 1:-2]
    return filled((rows, columns), torch.float32, seed)


LAYOUTS = st.sampled_from(["plain", "transposed", "part of a larger one"])


@given(rows=st.integers(1, 70), inner=st.integers(1, 70), columns=st.integers(1, 70), one=LAYOUTS, other=LAYOUTS)
def test_the_product_in_any_layout(asked: list[int], rows: int, inner: int, columns: int, one: str, other: str) -> None:
    a, b = matrix(rows, inner, one, 0), matrix(inner, columns, other, 1)
    found, expected = matmul(a, b), a.double() @ b.double()
    assert found.shape == expected.shape
    bound = (a.double().abs() @ b.double().abs()).max() * inner * torch.finfo(torch.float32).eps
    assert (found - expected).abs().max() <= bound


def test_what_stays_with_the_other_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_products, "_onednn", lambda: pytest.fail("oneDNN was asked for"))
    small, double = torch.randn(3, 4), torch.randn(200, 200, dtype=torch.float64)
    assert torch.equal(matmul(small, small.mT), small @ small.mT)
    assert torch.equal(matmul(double, double), double @ double)
    batched = torch.randn(2, 200, 200)
    assert torch.equal(matmul(batched, batched), batched @ batched)


def test_weights_that_onednn_gets_have_no_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product with a part of a larger matrix took it half a second."""
    given = []
    operation = lambda a, b, *rest: given.append(b) or a @ b.mT  # noqa: E731
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operation)
    monkeypatch.setattr(_products, "_onednn", lambda: True)
    monkeypatch.setattr(_products, "LARGE", 0)
    for layout in ("plain", "transposed", "part of a larger one"):
        a, b = matrix(8, 8, "plain", 0), matrix(8, 8, layout, 1)
        assert torch.equal(matmul(a, b), a @ b)
    assert [b.is_contiguous() or b.mT.is_contiguous() for b in given] == [True] * 3


def test_a_large_product_goes_to_the_faster_library(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(_products, "_onednn", lambda: seen.append(True) or False)
    a = torch.randn(200, 200)
    assert torch.equal(matmul(a, a), a @ a)
    assert seen == [True]


@each_group
@each_kind
def test_convolutions_keep_their_promise(asked: list[int], group: Group, kind: Kind) -> None:
    for size, kernel, stride, channels, features in ((6, 1, 1, 5, 4), (8, 3, 1, 17, 16), (13, 5, 2, 2, 33)):
        s = square(size, kernel, stride, padding=kernel // 2)
        layer = make(kind, group, channels, features, s, "fourier")
        assert misses(layer, group, input_of(layer, s.size, 3)) == []


@each_group
def test_linear_layers_keep_their_promise(asked: list[int], group: Group) -> None:
    for space, batch in (((3, 8, 8), 5), ((1, 7, 7), 33)):
        for layer, out in layers(group, space, torch.float32, "fourier"):
            assert breaks(layer, group, linear_input_of(layer, batch), out) == []
