r"""The largest singular values of a linear map that is known by its products alone, for a batch of samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from equilayers._checks import refuse
from equilayers._matmul import onednn_products
from equilayers._modules import Model
from equilayers.metrics._orbit import output_of, outside_inference

BASIS, ROUNDS = 24, 30  # vectors on either side, at least; restarts, at most
# Steps whose backward passes for all outputs are one product: autograd can batch them, and gains by it. Of
# convolutions it makes grouped ones, which are slower than one after the other.
BATCHED = {
    *("torch::autograd::AccumulateGrad", "AddmmBackward0", "MmBackward0", "TBackward0"),
    *("CloneBackward0", "ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0"),
    *("ReluBackward0", "LeakyReluBackward0", "EluBackward0", "GeluBackward0", "SiluBackward0", "SoftplusBackward0"),
    *("TanhBackward0", "SigmoidBackward0", "HardtanhBackward0"),
}


class SingularTriplets(NamedTuple):
    r"""The k largest singular values of each sample's Jacobian, largest first, and their vectors.

    values: (B, k). inputs: (B, k, *in_shape), right singular vectors, directions of the input. outputs:
    (B, k, *out_shape), left singular vectors, directions of the output. `J inputs_i = values_i outputs_i`.
    """

    values: Tensor
    inputs: Tensor
    outputs: Tensor


class Linearised:
    r"""The model at x as a linear map of flat samples: products (B, N) -> (B, K) and back, without the Jacobian.

    J^T u is a backward pass; J v is the derivative of that by u, for which `twice` keeps a graph of it.
    """

    def __init__(self, caller: str, model: Model, x: Tensor, *, twice: bool) -> None:
        self.x = outside_inference(x).detach().requires_grad_()
        with onednn_products(x):
            self.y = output_of(caller, model, self.x)
        if not _depends(self.y, self.x):
            hint = "It may be detached, rounded or an argmax on the way."
            refuse(caller, "a model whose output depends on x by differentiable steps", "one without a gradient", hint)
        if twice:
            self.u = torch.zeros_like(self.y, requires_grad=True)
            (self.back,) = torch.autograd.grad(self.y, self.x, self.u, create_graph=True, materialize_grads=True)

    def transposed(self, u: Tensor) -> Tensor:
        r"""J^T u of u (B, K)."""
        given = u.reshape(self.y.shape)
        (v,) = torch.autograd.grad(self.y, self.x, given, retain_graph=True, materialize_grads=True)
        return v.flatten(1)

    def rows(self) -> Tensor:
        r"""The Jacobians themselves, (B, K, N)."""
        size, outputs = self.y.flatten(1).shape
        units = torch.eye(outputs, dtype=self.y.dtype, device=self.y.device)[:, None].expand(-1, size, -1)
        if {step.name() for step in _steps(self.y)} <= BATCHED:
            with onednn_products(self.x):
                units = units.reshape(outputs, *self.y.shape)
                (J,) = torch.autograd.grad(self.y, self.x, units, retain_graph=True, is_grads_batched=True)
            return J.flatten(2).transpose(0, 1)
        return torch.stack([self.transposed(unit) for unit in units], 1)

    def forward(self, v: Tensor) -> Tensor:
        r"""J v of v (B, N)."""
        if not self.back.requires_grad:  # no step of the model has a derivative
            return self.y.new_zeros(self.y.shape).flatten(1)
        given = v.reshape(self.x.shape)
        (u,) = torch.autograd.grad(self.back, self.u, given, retain_graph=True, materialize_grads=True)
        return u.flatten(1)


def _steps(y: Tensor) -> set[Any]:
    r"""All steps that autograd recorded on the way to y."""
    seen, waiting = set(), [y.grad_fn]
    while waiting:
        step = waiting.pop()
        if step is not None and step not in seen:
            seen.add(step)
            waiting += [before for before, _ in step.next_functions]
    return seen


def _depends(y: Tensor, x: Tensor) -> bool:
    r"""Whether autograd has a path from y back to the leaf x."""
    return any(getattr(step, "variable", None) is x for step in _steps(y))


def gram(linear: Linearised, k: int, vectors: bool) -> SingularTriplets:
    r"""From the rows of the Jacobian: sigma^2 are the eigenvalues of J J^T."""
    x, J = linear.x.detach(), linear.rows()
    finite = J.flatten(1).isfinite().all(1, keepdim=True)
    J = torch.where(finite[:, :, None], J, 0)  # LAPACK refuses NaN
    if not vectors:  # rounding of the largest eigenvalue is halved by the root
        J = J.to(torch.promote_types(x.dtype, torch.float32))
        values = torch.linalg.eigvalsh((J @ J.mT).double())[:, -1:].clamp_min(0).sqrt()
        return SingularTriplets(torch.where(finite, values, torch.nan).to(x.dtype), x[:, :0], linear.y.detach()[:, :0])
    J = J.double()
    squares, left = torch.linalg.eigh(J @ J.mT)
    values, left = squares[:, -k:].flip(1).clamp_min(0).sqrt(), left[:, :, -k:].flip(2).mT
    values = torch.where(finite, values, torch.nan)
    right = left @ J / torch.where(values > 0, values, 1)[:, :, None]
    return _shaped(linear, values, right, left)


def _shaped(linear: Linearised, values: Tensor, right: Tensor, left: Tensor) -> SingularTriplets:
    dtype, k = linear.x.dtype, values.shape[1]
    inputs, outputs = right.to(dtype), left.to(dtype)
    shapes = (-1, k, *linear.x.shape[1:]), (-1, k, *linear.y.shape[1:])
    return SingularTriplets(values.to(dtype), inputs.view(shapes[0]), outputs.view(shapes[1]))


def lanczos(linear: Linearised, k: int, tolerance: float, seed: int) -> tuple[SingularTriplets, Tensor]:
    r"""Golub-Kahan bidiagonalisation with full reorthogonalisation and thick restarts; who converged, (B,).

    With orthonormal columns V and U: `J V = U S` and `J^T U = V S^T + w e^T`. A singular value of the small S is one
    of J up to |w| times the last entry of its left vector, squared and divided by the gap to the next.

    Source: Baglama and Reichel 2005, Augmented implicitly restarted Lanczos bidiagonalization methods.
    """
    x, y = linear.x, linear.y
    size, inputs, outputs = len(x), x[:1].numel(), y[:1].numel()
    basis = min(inputs, outputs + 1, max(BASIS, 2 * k + 8))
    kept = max(1, min(k + 6, basis - 1))
    start = torch.randn(inputs, generator=torch.Generator().manual_seed(seed), dtype=x.dtype, device="cpu").to(x.device)
    right = [_normal(start.expand(size, -1))[0]]
    left: list[Tensor] = []
    small = torch.zeros(size, basis, basis, dtype=torch.float64, device=x.device)
    for last_round in (*[False] * (ROUNDS - 1), True):
        while len(left) < basis:
            j = len(left)
            u, along = _orthogonal(linear.forward(right[-1]), left)
            u, length = _normal(u, small)
            small[:, :j, j], small[:, j, j] = along, length
            left.append(u)
            w, beta = _normal(_orthogonal(linear.transposed(u), right)[0], small)
            right.append(w)
        P, values, Q = torch.linalg.svd(small)
        last = beta[:, None] * P[:, -1, :].abs()
        gaps = (values[:, :k] - torch.cat((values, values.new_zeros(size, 1)), 1)[:, 1 : k + 1]).clamp_min(1e-300)
        errors = torch.minimum(last[:, :k], last[:, :k].square() / gaps)
        converged = (errors <= tolerance * values[:, :1]).all(1)
        if last_round or converged.all():
            break
        left = _combined(left, P[:, :, :kept])
        right = [*_combined(right[:-1], Q.mT[:, :, :kept]), right[-1]]
        small = torch.zeros_like(small)
        small[:, range(kept), range(kept)] = values[:, :kept]
    lefts, rights = _combined(left, P[:, :, :k]), _combined(right[:-1], Q.mT[:, :, :k])
    return _shaped(linear, values[:, :k], torch.stack(rights, 1), torch.stack(lefts, 1)), converged


def _orthogonal(v: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    r"""Vectors v (B, N) without their parts along the basis, and these (B, j): twice, as once leaves rounding."""
    if not basis:
        return v, v.new_zeros(len(v), 0).double()
    columns = torch.stack(basis, 1)
    total = torch.zeros(len(v), len(basis), dtype=torch.float64, device=v.device)
    for _ in range(2):
        along = (columns @ v[:, :, None]).squeeze(2)
        v = v - (along[:, None] @ columns).squeeze(1)
        total += along
    return v, total


def _normal(v: Tensor, small: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""Vectors v (B, N) divided by their lengths, and these, float64.

    Zero where only rounding is left, next to the entries of `small`: no more directions are to be had.
    """
    length = torch.linalg.vector_norm(v, dim=1, dtype=torch.float64)
    least = 0.0 if small is None else 16 * torch.finfo(v.dtype).eps * small.abs().amax((1, 2))
    length = torch.where(length > least, length, 0)
    return torch.where(length > 0, 1 / length, 0).to(v.dtype)[:, None] * v, length


def _combined(columns: list[Tensor], weights: Tensor) -> list[Tensor]:
    r"""The combinations of columns (B, N) by weights (B, j, k)."""
    stacked = torch.stack(columns, 2)
    return list((stacked @ weights.to(stacked.dtype)).unbind(2))
