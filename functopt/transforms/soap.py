"""A link that runs Adam in the eigenbasis of Shampoo's preconditioner: SOAP."""

from __future__ import annotations

from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.dimensions import spread_like, whole
from functopt.ema import Ema
from functopt.linalg import eigenvectors, orthonormal, row_major
from functopt.numerics import accumulator_dtype, sqrt
from functopt.periods import due
from functopt.tree import Tree

__all__ = ["ScaleBySoapState", "scale_by_soap"]


@state_class
class ScaleBySoapState(NamedTuple):
    """The number of steps taken, Adam's averages, and for every axis of every leaf its factor and the basis."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Ema
    nu: Ema  # in the basis
    factors: Ema  # for every leaf a tuple: of an axis the average of g·gᵀ, or () if it is left alone
    basis: Tree  # likewise


def _rotate(x: Tensor, basis: tuple[Any, ...], *, back: bool = False) -> Tensor:
    for axis, q in enumerate(basis):
        if isinstance(q, Tensor):
            x = (x.movedim(axis, -1) @ (q.mT if back else q)).movedim(-1, axis)
    return x


@link(scope="matrix")
def scale_by_soap(
    beta1=0.95,
    beta2=0.95,
    eps=1e-8,
    shampoo_beta=0.95,
    precondition_frequency=10,
    *,
    max_precond_dim: int = 10000,
    precondition_1d: bool = False,
) -> Any:
    """Run Adam in a basis that turns slowly after the gradients: SOAP.

    For every axis of a leaf ``L ← β·L + (1 - β)·G·Gᵀ``, with the axis first in ``G`` and ``β = shampoo_beta``, and
    ``Q`` the eigenvectors of ``L``. With a gradient and its mean turned into the basis, ``g' = Q_Lᵀ·g·Q_R``: ``v ←
    β2·v + (1 - β2)·g'²`` and ``u = Q_L·(m'/(√v + eps))·Q_Rᵀ·√(1 - β2^t)/(1 - β1^t)``. Vyas et al., "SOAP: Improving and
    Stabilizing Shampoo using Adam" (2024).

    As the authors' program does, it takes the first gradient only for the basis, and moves nothing at that step. Every
    ``precondition_frequency`` steps after it the basis is followed by a power iteration and a QR decomposition, with
    the basis, and ``v`` with it, in the order of the eigenvalues that the old one sees. Where eigenvalues coincide
    (those that are zero, while few gradients have been seen) the basis is whatever the decomposition returns.

    Every step computes decompositions, for which torch waits for a GPU, and most throw them away: which step it is,
    only the tensors know. A loop that knows it too says so by the extra ``refresh``: ``update(..., refresh=step % 10 ==
    0)`` with a Python bool, True at the first step, computes them at those steps only.

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        shampoo_beta: what is kept of the factors (the authors' default is ``beta2``).
        precondition_frequency: steps between two bases.
        max_precond_dim: a longer axis is left alone, and so is a leaf whose axes all are.
        precondition_1d: whether a leaf with one axis has a basis too, and not Adam's step.

    >>> weights, tx = {"w": torch.zeros(2, 2)}, scale_by_soap()
    >>> slope = {"w": torch.tensor([[2.0, 1.0], [1.0, 2.0]])}
    >>> _, state = tx.transform(slope, tx.init(weights), weights)
    >>> slope = {"w": torch.tensor([[1.0, 0.0], [0.0, 3.0]])}
    >>> tx.transform(slope, state, weights)[0]["w"].round(decimals=4) + 0
    tensor([[0., 0.],
            [0., 2.]])
    """

    def axes(p: Tensor) -> tuple[bool, ...]:
        possible = p.numel() > 0 and (p.ndim > 1 or precondition_1d)
        return tuple(possible and n <= max_precond_dim for n in p.shape)

    def squares(p: Tensor) -> tuple[Any, ...]:
        dtype = accumulator_dtype(p.dtype)
        new = lambda n: whole(p).new_zeros((n, n), dtype=dtype, requires_grad=False)
        return tuple(new(n) if on else () for n, on in zip(p.shape, axes(p), strict=True))

    def outer(g: Tensor) -> tuple[Any, ...]:
        x = whole(g).to(accumulator_dtype(g.dtype))
        rows = [x.movedim(i, 0).flatten(1) if on and g.ndim > 1 else x.reshape(-1, 1) for i, on in enumerate(axes(g))]
        return tuple(m @ m.mT if on else () for m, on in zip(rows, axes(g), strict=True))

    def init(params) -> ScaleBySoapState:
        count = tree.counter(params)
        factors = Ema(tree.map(squares, params), tree.scalars(params, shampoo_beta))
        mu, nu = Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True)
        return ScaleBySoapState(count, mu, nu, factors, tree.map(squares, params))

    def transform(
        updates, state, params, beta1, beta2, eps, shampoo_beta, precondition_frequency, refresh: bool | None = None
    ):
        started = state.count > 0
        once_started = lambda new, old: tree.map(lambda n, o: torch.where(started, n, o), new, old)
        each = lambda hyper: tree.map(lambda _, h: h, updates, hyper)
        # the tree maps of optree, which take what lies below a leaf of the first tree as one value: a tuple

        def turn(x, p, basis):
            return spread_like(_rotate(whole(x).to(accumulator_dtype(x.dtype)), basis), p)

        mu = once_started(state.mu.update(updates, beta1), state.mu)
        factors = state.factors.update(optree.tree_map(outer, updates), shampoo_beta)
        squared = tree.map(torch.square, optree.tree_map(turn, updates, params, state.basis))
        nu = once_started(state.nu.update(squared, beta2), state.nu)

        def step(g, p, basis, m, v, w, z, eps):
            scale = sqrt(z) / torch.where(started, w, 1.0)
            x = turn(m, p, basis) / (sqrt(v) + eps) * scale
            return spread_like(_rotate(whole(x), basis, back=True), p).to(g.dtype)

        weights = (each(mu.weight), each(nu.weight), each(eps))
        out = optree.tree_map(step, updates, params, state.basis, mu.total, nu.total, *weights)
        basis = state.basis
        if refresh is not False:

            def follow(p, v, basis, factors, period):
                at = started & due(state.count, period, refresh)
                v, new = whole(v), []
                for axis, (q, a) in enumerate(zip(basis, factors, strict=True)):
                    if isinstance(q, Tensor):
                        order = (q * (a @ q)).sum(-2).argsort(descending=True, stable=True)
                        v = torch.where(at, v.index_select(axis, order), v)
                        later = torch.where(at, orthonormal(a @ q.index_select(-1, order)), q)
                        q = row_major(torch.where(started, later, eigenvectors(a)))
                    new.append(q)
                return spread_like(v, p), tuple(new)

            both = optree.tree_map(follow, params, nu.total, basis, factors.total, each(precondition_frequency))
            total, basis = (optree.tree_map(lambda _, pair, i=i: pair[i], params, both) for i in (0, 1))
            nu = nu._replace(total=total)
        return out, ScaleBySoapState(state.count + 1, mu, nu, factors, basis)

    return init, transform
