r"""Singular values of the Jacobian d output / d input, sample by sample, of any model.

Few outputs: one vector-Jacobian product for each, over the whole batch, then the small Gram matrix J J^T. Many outputs:
Golub-Kahan bidiagonalisation, which needs products with J and J^T only and keeps a few vectors.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from equilayers._checks import check_choice, check_int, refuse
from equilayers._modules import Model, evaluation
from equilayers.metrics._orbit import chunks, output_of
from equilayers.metrics._singular_values import BASIS, Linearised, SingularTriplets, gram, lanczos

METHODS = ("auto", "gram", "lanczos")
FEW = 64  # outputs up to which a product for each is the cheaper way
HELD_BYTES = 64_000_000  # of rows of the Jacobian, or of vectors, at once


def jacobian_spectral_norm(
    model: Model,
    x: Tensor,
    method: str = "auto",
    *,
    batch_size: int | None = None,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> Tensor:
    r"""sigma_max(J): how far the output moves for the worst small change of the input, per unit of its length.

    Args:
        model: any differentiable callable from (B, ...) to (B, ...) that treats samples apart; a module is run in eval
            mode and put back afterwards.
        x: inputs (B, ...), floating-point.
        method: "gram" (one product for each output), "lanczos" (products with J and J^T, memory of a few inputs and
            outputs), or "auto": the first up to 64 outputs.
        batch_size: samples that are worked on together, a bound on memory; all at once when None.
        tolerance: relative error of "lanczos"; a warning tells when it is not reached.
        seed: of the vectors "lanczos" starts from.

    Returns:
        (B,) of the dtype and device of x, in units of output per unit of input.

    Raises:
        TypeError: x is not floating-point.
        ValueError: an unknown method, or a model whose output does not depend on x by differentiable steps.

    Law: of a linear model `x -> A x` it is the largest singular value of A.

    Source: Moskalev et al. 2023, section 3.2 (arXiv:2308.03904); Golub and Kahan 1965, Calculating the singular values
        and pseudo-inverse of a matrix.
    """
    caller, limits = "jacobian_spectral_norm", _Limits(batch_size, tolerance, seed)
    return _triplets(caller, model, x, 1, method, limits, vectors=False).values[:, 0]


def jacobian_singular_values(
    model: Model,
    x: Tensor,
    k: int = 1,
    method: str = "auto",
    *,
    batch_size: int | None = None,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> SingularTriplets:
    r"""The k largest singular values of each sample's Jacobian with their vectors.

    The first input vector is the direction that the model is most sensitive to, a picture worth looking at.

    Args:
        model: any differentiable callable from (B, ...) to (B, ...) that treats samples apart.
        x: inputs (B, ...), floating-point.
        k: how many, at most the number of inputs and of outputs of a sample.
        method: as of `jacobian_spectral_norm`.
        batch_size: samples that are worked on together.
        tolerance: relative error of the values by "lanczos".
        seed: of the vectors "lanczos" starts from.

    Returns:
        `SingularTriplets`; a vector of a singular value of zero is arbitrary or zero.

    Raises:
        TypeError, ValueError: as `jacobian_spectral_norm`, and k out of range.
    """
    limits = _Limits(batch_size, tolerance, seed)
    return _triplets("jacobian_singular_values", model, x, k, method, limits, vectors=True)


class _Limits(NamedTuple):
    batch_size: int | None
    tolerance: float
    seed: int


def _triplets(
    caller: str, model: Model, x: Tensor, k: int, method: str, limits: _Limits, *, vectors: bool
) -> SingularTriplets:
    batch_size, tolerance, seed = limits
    check_choice(caller, "method", method, METHODS)
    check_int(caller, "k", k, 1)
    if not 0 < tolerance < 1:
        refuse(caller, "tolerance between 0 and 1", tolerance, "Pass 1e-6, for example.")
    parts, found, missed = chunks(caller, x, batch_size), [], 0
    with evaluation(model), torch.inference_mode(False), torch.enable_grad():
        outputs, inputs = _outputs(caller, model, x), math.prod(x.shape[1:])
        if k > min(inputs, outputs):
            refuse(caller, f"k <= {min(inputs, outputs)}, the rank of the Jacobian at most", k, "Ask for fewer.")
        few = method == "gram" or (method == "auto" and outputs <= FEW)
        kept = outputs * inputs if few else 2 * BASIS * (inputs + outputs)
        samples = max(1, HELD_BYTES // (kept * x.element_size()))
        for piece in (piece for part in parts for piece in part.split(samples)):
            linear = Linearised(caller, model, piece, twice=not few)
            if few:
                found.append(gram(linear, k, vectors))
                continue
            triplets, converged = lanczos(linear, k, tolerance, seed)
            found.append(triplets)
            missed += int((~converged).sum())
    if missed:
        text = f"{caller}: tolerance {tolerance:g} was not reached for {missed} of {len(x)} samples."
        warnings.warn(f"{text} Raise it, or take method='gram'.", stacklevel=3)
    return SingularTriplets(*(torch.cat(pieces) for pieces in zip(*found, strict=True)))


def _outputs(caller: str, model: Model, x: Tensor) -> int:
    r"""How many numbers the model makes of a sample."""
    with torch.no_grad():
        y = output_of(caller, model, x[:1])
    return math.prod(y.shape[1:])
