"""Every checker passes forty right models and none of forty subtly broken ones, in three precisions."""

import pytest
import torch

from confusion import CHECKERS, DTYPES, MEASURES, passed, row
from equilayers.testing import locate_break
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
