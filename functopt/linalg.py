"""Matrix functions that batch, compile and have finite derivatives: orthogonalisation, bases, roots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functopt.numerics import accumulator_dtype, maximum, sqrt

__all__ = ["NS_COEFFS", "eigenvectors", "orthogonalize", "orthonormal", "row_major", "singular_vectors"]

# The published coefficients of the Polar Express for singular values from 1e-3, before its safety factor.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)

NS_COEFFS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "standard": ((3.4445, -4.7750, 2.0315),),
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "polar_express": (*((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS), (1.875, -1.25, 0.375)),
}
"""Coefficients of Newton-Schulz iterations by name: of every step its own, and of those beyond the last one's."""

PRECONDITIONING = ("frobenius", "spectral", "aol", "schatten")

Coefficients = str | Sequence[float] | Sequence[Sequence[float]]


def ns_schedule(who: str, ns_coeffs: Coefficients, ns_steps: int | None) -> list[tuple[float, ...]]:
    """Return the coefficients of each step.

    Raises:
        ValueError: there is no set of that name, or a row does not have three numbers.
    """
    if isinstance(ns_coeffs, str):
        if ns_coeffs not in NS_COEFFS:
            raise ValueError(f"{who}: ns_coeffs must be one of {[*NS_COEFFS]} or numbers, got {ns_coeffs!r}")
        rows: Any = NS_COEFFS[ns_coeffs]
        own = 5
    else:
        rows = (ns_coeffs,) if ns_coeffs and isinstance(ns_coeffs[0], (float, int)) else ns_coeffs
        own = len(rows) if len(rows) > 1 else 5
    if not rows or any(len(row) != 3 for row in rows):
        raise ValueError(f"{who}: ns_coeffs must be three numbers, or rows of three, got {ns_coeffs!r}")
    return [tuple(rows[min(i, len(rows) - 1)]) for i in range(own if ns_steps is None else ns_steps)]


def orthogonalize(
    x: Tensor,
    eps: float | Tensor = 1e-7,
    *,
    ns_coeffs: Coefficients = "standard",
    ns_steps: int | None = None,
    preconditioning: str = "frobenius",
    eps_as_floor: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return roughly the orthogonal matrix next to a matrix: its singular values are all made about 1.

    ``X ← X / (‖X‖ + eps)``, then at every step ``X ← a·X + (b·A + c·A²)·X`` with ``A = X·Xᵀ``: Newton and Schulz's
    iteration, with an odd polynomial of degree 5 of the singular values. Jordan et al., "Muon: An optimizer for hidden
    layers in neural networks" (2024).

    Args:
        x: a matrix, or a stack of matrices along the first axis.
        eps: added to the norm.
        ns_coeffs: ``(a, b, c)``, or a row of those for each step, or the name of a set. ``"standard"`` is steep at 0
            and leaves singular values between 0.7 and 1.2 after five steps. ``"dion"`` is Ahn et al., "Dion:
            Distributed Orthonormalized Updates" (2025). ``"polar_express"`` is optimal at every step and converges to
            1: Amsel et al., "The Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon
            Algorithm" (2025).
        ns_steps: how many steps; the last row is used for those beyond. By default as many as there are rows, and 5
            for a single row or a name.
        preconditioning: what ``X`` is divided by at first, so that its singular values are at most 1: its
            ``"frobenius"`` norm; its ``"spectral"`` norm, exact and slow; ``"schatten"``, the 4-norm of its singular
            values, which ``A`` tells (Grishina et al., "Accelerating Newton-Schulz Iteration for Orthogonalization via
            Chebyshev-type Polynomials", 2025); ``"aol"``, every row by the root of the sum of ``|A|`` in it (Boissin et
            al., "Turbo-Muon: Accelerating Orthogonality-Based Optimization with Pre-Conditioning", 2025).
        eps_as_floor: the norm is at least ``eps``, as in torch, instead of the sum of both.
        dtype: in which to compute, by default float32 at least. The iteration is made for ``torch.bfloat16``, in which
            torch's Muon does it: fast where matrix units are, with singular values off by a few percent.

    Raises:
        ValueError: an option has another value, or ``x`` is no matrix.

    >>> x = orthogonalize(torch.tensor([[3.0, 0.0], [0.0, 0.1]]), ns_coeffs="polar_express", ns_steps=8)
    >>> (x @ x.mT).round(decimals=4).abs()
    tensor([[1., 0.],
            [0., 1.]])
    """
    if preconditioning not in PRECONDITIONING:
        raise ValueError(f"orthogonalize: preconditioning must be one of {PRECONDITIONING}, got {preconditioning!r}")
    if x.ndim not in (2, 3):
        raise ValueError(f"orthogonalize: expected a matrix or a stack of matrices, got shape {list(x.shape)}")
    steps = ns_schedule("orthogonalize", ns_coeffs, ns_steps)
    if not x.numel():
        return x
    tall = x.shape[-2] > x.shape[-1]
    y = (x.mT if tall else x).to(dtype or accumulator_dtype(x.dtype))
    floor = lambda size: (maximum(size, eps) if eps_as_floor else size + eps).to(y.dtype)
    if preconditioning == "frobenius":
        y = y / floor(_norm(y).to(y.dtype))
    elif preconditioning == "spectral":
        wide = y.to(accumulator_dtype(y.dtype))
        y = y / floor(torch.linalg.svdvals(wide).amax(-1)[..., None, None])
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for i, (a, b, c) in enumerate(steps):
        gram = y @ y.mT
        if i == 0 and preconditioning in ("aol", "schatten"):
            size = gram.abs().sum(-1, keepdim=True) if preconditioning == "aol" else _norm(gram).to(y.dtype)
            s = 1 / sqrt(maximum(size, eps).to(y.dtype))
            y, gram = y * s, gram * s * s.mT
        y = add_product(y, add_product(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).to(x.dtype)


def _norm(x: Tensor) -> Tensor:
    return sqrt(x.to(accumulator_dtype(x.dtype)).square().sum((-2, -1), keepdim=True))


def row_major(x: Tensor) -> Tensor:
    """Return a tensor stored row by row, as new ones are: for another layout a step would be compiled again."""
    return x.flatten().view(x.shape)  # beside contiguous() this settles the strides of axes of length 1 too


# Bases. What LAPACK computes has derivatives that are infinite where two values coincide, as they all do at zero. Here
# the basis is computed from a constant, and then turned by what its first-order perturbation theory says of the
# difference between the matrix and that constant: by nothing, but with the right derivative, and none where values
# coincide and no basis is singled out.


def _inverse(gap: Tensor, size: Tensor) -> Tensor:
    """Return ``1/gap``, and 0 where the gap is nothing beside the size of what is compared, or is nothing at all."""
    apart = (gap.abs() > 8 * torch.finfo(gap.dtype).eps * size) & (gap.abs() > torch.finfo(gap.dtype).tiny)
    return torch.where(apart, 1 / torch.where(apart, gap, 1.0), 0.0)


def _constant(x: Tensor) -> Tensor:
    """Return ``x`` without a derivative, and with zeros where it is not finite, of which LAPACK would make an error."""
    return x.detach().nan_to_num(0.0, 0.0, 0.0)


def _moving(x: Tensor) -> Tensor:
    """Return zero, with the derivative of ``x``."""
    return x - x.detach()


def eigenvectors(a: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix as columns, those of large eigenvalues first."""
    values, q = torch.linalg.eigh(_constant(a))
    values, q = values.flip(-1), q.flip(-1)
    if not torch.is_grad_enabled():
        return q
    gaps = values.unsqueeze(-2) - values.unsqueeze(-1)
    return q + q @ (_inverse(gaps, values.abs().amax(-1)[..., None, None]) * _moving(q.mT @ a @ q))


def singular_vectors(x: Tensor, rank: int) -> Tensor:
    """Return the left singular vectors of the ``rank`` largest singular values as columns."""
    u, s, _ = torch.linalg.svd(_constant(x), full_matrices=False)
    if not torch.is_grad_enabled():
        return u[..., :rank]
    values, largest = s.square(), s.square().amax(-1)[..., None, None]
    turned = _moving(x @ (x.mT @ u))
    inside = u.mT @ turned
    gaps = values.unsqueeze(-2) - values.unsqueeze(-1)
    outside = (turned - u @ inside) * _inverse(values.unsqueeze(-2), largest)
    return (u + u @ (_inverse(gaps, largest) * inside) + outside)[..., :rank]


def orthonormal(a: Tensor) -> Tensor:
    """Return the orthonormal columns of a square matrix: the ``Q`` of its QR decomposition."""
    q, r = torch.linalg.qr(a.detach())
    if not torch.is_grad_enabled():
        return q
    identity = torch.eye(r.shape[-1], dtype=r.dtype, device=r.device)
    diagonal = (r * identity).sum(-2, keepdim=True)
    independent = _inverse(diagonal, diagonal.abs().amax(-1, keepdim=True)) != 0
    solvable = torch.where(independent | (identity == 0), r, 1.0)
    turned = torch.linalg.solve_triangular(solvable, _moving(q.mT @ a), upper=True, left=False)
    lower = torch.where(independent, turned, 0.0).tril(-1)
    return q + q @ (lower - lower.mT)
