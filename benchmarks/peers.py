r"""The peer libraries, importable beside today's numpy."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
import warnings
from itertools import accumulate
from typing import Any

from torch import nn


def import_escnn() -> types.ModuleType:
    r"""Import escnn 1.0.11 beside today's numpy and scikit-learn, for groups of the plane.

    It imports one function of lie_learn, whose wheel is compiled against numpy 1, for SO(3) only: an empty module
    replaces it. It prefers scikit-learn's `randomized_svd`, which no longer takes its `np.matrix`, over scipy's `svd`.

    Raises:
        ImportError: escnn or something else that it needs is not installed.
    """
    wigner = "lie_learn.representations.SO3.wigner_d"
    if wigner not in sys.modules and importlib.util.find_spec("lie_learn") is None:
        names = wigner.split(".")
        sys.modules |= {name: types.ModuleType(name) for name in accumulate(names, "{}.{}".format)}
        vars(sys.modules[wigner])["wigner_D_matrix"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        escnn = importlib.import_module("escnn")
    vars(escnn.group._numerical)["randomized_svd"] = None
    return escnn


def blur_pools(channels: int, taps: int) -> dict[str, nn.Module]:
    r"""The BlurPools of kornia and of antialiased-cnns, stride 2, where they are installed."""
    found: dict[str, nn.Module] = {}
    with contextlib.suppress(ImportError):
        from kornia.filters import BlurPool2D

        found["kornia"] = BlurPool2D(taps)
    with contextlib.suppress(ImportError):
        from antialiased_cnns import BlurPool

        found["antialiased-cnns"] = BlurPool(channels, filt_size=taps)
    return found


def escnn_convolution(group: str, fields_in: int, fields_out: int, kernel: int) -> Any:
    r"""escnn's R2Conv between regular fields of C_n or D_n."""
    library = import_escnn()
    space = {"C": library.gspaces.rot2dOnR2, "D": library.gspaces.flipRot2dOnR2}[group[0]](int(group[1:]))
    there, back = (library.nn.FieldType(space, count * [space.regular_repr]) for count in (fields_in, fields_out))
    return library.nn.R2Conv(there, back, kernel, padding=kernel // 2)
