"""Links that hold updates back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.tree import Tree

__all__ = ["ApplyEveryState", "apply_every"]


@state_class
class ApplyEveryState(NamedTuple):
    """The number of steps, and the sum of the updates that are held back."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    grad_acc: Tree


@link(scope="element")
def apply_every(k=1) -> Any:
    """Hold updates back, and let their sum out at every ``k``-th step; at the others the update is zero.

    ``s ← s + u`` and ``u ← s`` if ``k`` divides ``t``, else 0; what was let out is dropped from ``s``. All other links
    of the chain go on at every step, so that this is not the same as a batch ``k`` times as large: ``multi_steps``
    around an optimizer is, and averages where this adds up. You et al., "Scaling SGD Batch Size to 32K for ImageNet
    Training" (2017).

    Args:
        k: steps from one release to the next, rounded to a whole number.

    >>> tx = chain(scale_by_lr(0.1), apply_every(2))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 1., -2.])}
    """

    def init(params) -> ApplyEveryState:
        return ApplyEveryState(tree.counter(params), tree.zeros_like(params))

    def transform(updates, state, params, k):
        count = state.count + 1
        total = tree.map(lambda s, u: (s + u).to(s.dtype), state.grad_acc, updates)
        out = tree.map(lambda s, k: torch.where(_due(count, k), s, 0.0), total, k)
        kept = tree.map(lambda s, k: torch.where(_due(count, k), 0.0, s), total, k)
        return out, ApplyEveryState(count, kept)

    return init, transform


def _due(count: Tensor, k: Any) -> Tensor:
    return count % (k.round() if isinstance(k, Tensor) else round(k)) == 0
