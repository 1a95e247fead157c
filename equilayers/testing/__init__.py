r"""Tests of invariance for any model: is it, if not by how much, why, and which module is to blame."""

from equilayers.testing._assertions import assert_equivariant, assert_invariant, invariance_error
from equilayers.testing._check import Check
from equilayers.testing._comparison import compare as compare
from equilayers.testing._data_symmetry import DataSymmetry, GroupTest, data_symmetry
from equilayers.testing._diagnosis.actions import Action as Action
from equilayers.testing._diagnosis.actions import declared as declared
from equilayers.testing._diagnosis.layer_errors import LayerError, layer_errors
from equilayers.testing._diagnosis.locate import Break, locate_break, locate_breaks
from equilayers.testing._execution import undisturbed as undisturbed
from equilayers.testing._inputs import Inputs as Inputs
from equilayers.testing._outputs import outputs_of as outputs_of

__all__ = [
    "Break",
    "Check",
    "DataSymmetry",
    "GroupTest",
    "LayerError",
    "assert_equivariant",
    "assert_invariant",
    "data_symmetry",
    "invariance_error",
    "layer_errors",
    "locate_break",
    "locate_breaks",
]
