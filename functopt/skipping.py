"""Which gradients :func:`multi_steps <functopt.multi_steps>` leaves out, and whether it took a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from functopt import tree
from functopt.numerics import accumulator_dtype
from functopt.tree import Tree

__all__ = ["count_not_finite", "has_updated", "skip_large_updates", "skip_not_finite"]


def count_not_finite(values: Tree) -> Tensor:
    """Return how many entries of a tree are infinite or NaN, a 0-d tensor."""
    flags = tree.map(lambda x: (~x.isfinite()).to(accumulator_dtype(x.dtype)), values)
    return torch.stack([total.sum().to(torch.float32) for total in tree.leaves(tree.sums(flags))]).sum()


def skip_not_finite(updates: Tree, gradient_step: Tensor, params: Tree) -> tuple[Tensor, Tree]:
    """Leave out gradients that hold an infinity or a NaN: for :func:`multi_steps`.

    Returns:
        ``(should_skip, state)``; the state has ``should_skip`` and the number of such entries, ``num_not_finite``.

    >>> skip_not_finite({"w": torch.tensor([float("inf"), 1.0])}, 0, params)[1]
    {'should_skip': tensor(True), 'num_not_finite': tensor(1)}
    """
    count = count_not_finite(updates)
    return count > 0, {"should_skip": count > 0, "num_not_finite": count.to(torch.int64)}


def skip_large_updates(
    updates: Tree, gradient_step: Tensor, params: Tree, max_squared_norm: Any
) -> tuple[Tensor, Tree]:
    """Leave out gradients whose squared norm is not below ``max_squared_norm``: for :func:`multi_steps`.

    Returns:
        ``(should_skip, state)``, where the state has ``should_skip`` and ``norm_squared``. A norm that is NaN is left
        out too.

    >>> skip_large_updates(grads, 0, params, max_squared_norm=1.5)[1]
    {'should_skip': tensor(False), 'norm_squared': tensor(1.2500)}
    """
    squared = tree.norm(updates).square()
    return ~(squared < max_squared_norm), {"should_skip": ~(squared < max_squared_norm), "norm_squared": squared}


def has_updated(state: Tree) -> Tensor:
    """Tell whether the last call of :func:`multi_steps` took a step: a 0-d tensor, true once it did.

    Args:
        state: its state, or one that holds it.

    >>> tx = multi_steps(sgd(lr=0.1), every_k=1)
    >>> has_updated(tx.init(params)), has_updated(tx.update(grads, tx.init(params), params)[1])
    (tensor(False), tensor(True))
    """
    return (tree.get(state, "mini_step") == 0) & (tree.get(state, "gradient_step") > 0)
