"""SM3: second moments in the memory of one vector for each axis."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import sqrt
from functopt.sharded import replicated
from functopt.tree import Tree

__all__ = ["ScaleBySm3State", "scale_by_sm3"]


@state_class
class ScaleBySm3State(NamedTuple):
    """The average of the scaled gradients, and for every leaf its accumulators."""

    mu: Ema
    accumulators: Tree  # at each leaf a tuple: one for each axis, of length 1 along the others


@link(scope="matrix")
def scale_by_sm3(beta1=0.9, accumulator_decay=1.0, eps=1e-8) -> Any:
    """Divide by the root of a bound on the sum of squared gradients that is kept by rows and by columns: SM3.

    With an accumulator ``a_k`` for each index of each axis: ``ν = min_k a_k + g²``, for every entry the least of its
    row, its column and so on; ``a_k ← max ν`` over the other axes; ``u = g/√(ν + eps)`` and the update is
    ``m ← β1·m + (1 - β1)·u``. A vector keeps its whole sum, which is AdaGrad. Anil et al., "Memory-Efficient Adaptive
    Optimization" (2019).

    Args:
        beta1: what is kept of the average of the scaled gradients.
        accumulator_decay: 1 for the sum; below it, ``ν = d·min_k a_k + (1 - d)·g²`` (optax's ``b2``).
        eps: added under the root.

    >>> tx = scale_by_sm3(beta1=0.0)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([1., 1.])}
    """

    def init(params) -> ScaleBySm3State:
        zeros = optree.tree_map(_margins, tree.zeros_like(params, accumulate=True))
        return ScaleBySm3State(Ema.zeros(params, beta1), zeros)

    def transform(updates, state, params, beta1, accumulator_decay, eps):
        fresh = tree.map(lambda _, d: _fresh(d), updates, accumulator_decay)
        kept = tree.map(lambda _, d: d, updates, accumulator_decay)
        # the tree map of optree, which takes what lies below a leaf of the first tree as one value
        nu = optree.tree_map(
            lambda g, parts, c, d: d * functools.reduce(torch.minimum, parts) + c * g.to(parts[0].dtype).square(),
            updates, state.accumulators, fresh, kept,
        )  # fmt: skip
        scaled = tree.map(lambda g, v, eps: g / sqrt(v + eps), updates, nu, eps)
        mu = state.mu.update(scaled, beta1)
        return mu.total, ScaleBySm3State(mu, optree.tree_map(_margins, nu))

    return init, transform


def _fresh(decay: float | Tensor) -> float | Tensor:
    """Return the weight of a new square: 1 in a sum, what the decay leaves in an average."""
    if isinstance(decay, Tensor):
        return torch.where(decay < 1, 1 - decay, 1.0)
    return 1 - decay if decay < 1 else 1.0


def _margins(x: Tensor) -> tuple[Tensor, ...]:
    """Return for each axis the largest entries along the others; a vector or a number itself."""
    if x.ndim < 2:
        return (x.clone(),)
    x = replicated(x)  # a process with an empty part of it has no largest entry
    largest = torch.amax if x.numel() else torch.sum  # of nothing: 0
    return tuple(largest(x, [j for j in range(x.ndim) if j != i], keepdim=True) for i in range(x.ndim))
