"""Optimistic gradients: what the last step has seen is taken back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.tree import Tree

__all__ = ["ScaleByOptimisticGradientState", "scale_by_optimistic_gradient"]


@state_class
class ScaleByOptimisticGradientState(NamedTuple):
    """The number of steps taken, and what came in at the last one."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    previous_gradient: Tree


@link(scope="element")
def scale_by_optimistic_gradient(alpha=1.0, optimism=1.0) -> Any:
    """Add what has changed since the last gradient, as a guess of the next one.

    ``u = α·g + optimism·(g - g_last)``; at the first step ``u = α·g``. In games, where gradient descent circles around
    the solution, it converges. Mokhtari et al., "A Unified Analysis of Extra-gradient and Optimistic Gradient Methods
    for Saddle Point Problems: Proximal Point Approach" (2020).

    Args:
        alpha: factor of the gradient.
        optimism: factor of its change (optax: ``beta``).

    >>> tx = scale_by_optimistic_gradient(alpha=0.5)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.2500, 0.5000])}
    """

    def init(params) -> ScaleByOptimisticGradientState:
        count = tree.counter(params)
        return ScaleByOptimisticGradientState(count, tree.zeros_like(params))

    def transform(updates, state, params, alpha, optimism):
        change = lambda g, last: torch.where(state.count == 0, 0.0, g - last)
        changes = tree.map(change, updates, state.previous_gradient)
        out = tree.map(lambda g, c, alpha, o: alpha * g + o * c, updates, changes, alpha, optimism)
        kept = tree.map(lambda g, last: g.to(last.dtype), updates, state.previous_gradient)
        return out, ScaleByOptimisticGradientState(state.count + 1, kept)

    return init, transform
