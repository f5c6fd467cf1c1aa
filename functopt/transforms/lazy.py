"""Adam that does nothing where no gradient has arrived."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import once, sqrt
from functopt.transforms.moments import squares
from functopt.tree import Tree

__all__ = ["ScaleByLazyAdamState", "scale_by_lazy_adam"]


@state_class
class ScaleByLazyAdamState(NamedTuple):
    """The averages of the gradients and of their squares, each of those that were not 0."""

    mu: Ema
    nu: Ema


@link(scope="element")
def scale_by_lazy_adam(beta1=0.9, beta2=0.999, eps=1e-8) -> Any:
    """Adam on the entries whose gradient is not exactly 0; the others and their averages stay as they are.

    Where ``g ≠ 0``: ``m ← β1·m + (1 - β1)·g``, ``v ← β2·v + (1 - β2)·g²`` and ``u = √(1 - β2^t)/(1 - β1^t)·m/(√v +
    eps)``, with the number ``t`` of all steps. It is for embeddings, of which a batch uses a few rows, and what
    ``torch.optim.SparseAdam`` does with sparse gradients. Kingma & Ba, "Adam: A Method for Stochastic Optimization"
    (2015).

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.

    >>> tx = scale_by_lazy_adam()
    >>> tx.transform({"w": torch.tensor([0.5, 0.0])}, tx.init(params), params)[0]
    {'w': tensor([1.0000, 0.0000])}
    """

    def init(params) -> ScaleByLazyAdamState:
        return ScaleByLazyAdamState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True))

    def transform(updates, state, params, beta1, beta2, eps):
        def follow(old: Ema, values: Tree, decay: Tree) -> Ema:
            new = old.update(values, decay)
            keep = lambda g, n, o: torch.where(g != 0, n, o)
            return new._replace(total=tree.map(keep, updates, new.total, old.total))

        mu, nu = follow(state.mu, updates, beta1), follow(state.nu, squares(updates), beta2)
        groups = tree.scalars(params, mu.weight, nu.weight)
        debias = tree.map(lambda _, w, v: once(sqrt(v) / w), groups, mu.weight, nu.weight)

        def step(g, m, v, factor, eps):
            return torch.where(g != 0, factor * m / (sqrt(v) + eps), 0.0)

        return tree.map(step, updates, mu.total, nu.total, debias, eps), ScaleByLazyAdamState(mu, nu)

    return init, transform
