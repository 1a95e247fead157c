"""Every checker passes forty right models and none of forty subtly broken ones, in three precisions."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from confusion import CHECKERS, DTYPES, MEASURES, passed, row
from equilayers.testing import assert_invariant, locate_break
from right_and_broken import BROKEN, RIGHT

# What a measure cannot say: it takes one tensor, infinities have no distance, all samples are moved alike, and an
# equivariance error is relative to the whole output.
REFUSED = {name: ["dictionary of nested outputs"] for name in MEASURES}
REFUSED["`equivariance_error`, in float64"].append("the lowest number there is")
MIXING = ["samples that see each other", "batch statistics of pixels"]
UNSEEN = dict.fromkeys(MEASURES, MIXING)
UNSEEN["`equivariance_error`, in float64"] = [*MIXING, "a masked class"]


@pytest.mark.parametrize("checker", CHECKERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_right_models_pass_and_broken_ones_do_not(checker: str, dtype: torch.dtype) -> None:
    right, broken = passed(checker, dtype, RIGHT), passed(checker, dtype, BROKEN)
    assert [case for case in RIGHT if case not in right] == REFUSED.get(checker, [])
    assert broken == UNSEEN.get(checker, [])
    assert row(checker)[DTYPES.index(dtype)] == f"{len(right)}, {len(broken)}"


def test_there_are_forty_of_each() -> None:
    assert (len(RIGHT), len(BROKEN)) == (40, 40)


@pytest.mark.parametrize(
    ("case", "path", "name"), [(MIXING[0], "body.0", "Tensor.sub"), (MIXING[1], "body.1.module", "BatchNorm1d")]
)
def test_the_call_that_mixes_samples_is_located(case: str, path: str, name: str) -> None:
    found = locate_break(BROKEN[case].model(torch.float32), BROKEN[case].x(), "C4")
    assert found is not None
    assert (found.path, found.name, found.kind) == (path, name, "structural")
    assert "other samples of the batch" in found.why


class Table(nn.Module):
    """Weights that are no parameters: an invariant sum, and a hundredth that reads places."""

    def __init__(self, dtype: torch.dtype, wrong: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = (1 + wrong * torch.randn(64, 3, generator=generator)).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sort(1)[0].square() @ self.table if self.right else x.flatten(1).square() @ self.table

    right = False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_without_parameters(dtype: torch.dtype) -> None:
    """A copy in float64 is made of tables as well; where there is none, one unit of rounding is all that passes."""
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    right = Table(dtype, 1e-2)
    right.right = True
    for model in (right, right.forward, engine(right)):
        assert_invariant(model, x, "C4")
    with pytest.raises(AssertionError, match="is not invariant"):
        assert_invariant(Table(dtype, 1e-2), x, "C4")
    with pytest.raises(AssertionError, match=r"nothing was shown|is not invariant"):
        assert_invariant(engine(Table(dtype, 0.1)), x, "C4")


def engine(module: Table) -> Any:
    """The same as a function of one dtype alone."""
    table, right = module.table, module.right

    def run(x: Tensor) -> Tensor:
        if x.dtype != table.dtype:
            raise TypeError(f"no engine for {x.dtype}")
        x = x.flatten(1)
        return (x.sort(1)[0] if right else x).square() @ table

    return run
