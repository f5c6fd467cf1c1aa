"""Copies of parameters that follow them: target networks and Polyak averages, as plain functions."""

from __future__ import annotations

import torch
from torch import Tensor

from functopt import tree
from functopt.numerics import lerp
from functopt.tree import Tree

__all__ = ["incremental_update", "periodic_update"]


def incremental_update(new_tensors: Tree, old_tensors: Tree, step_size: Tree) -> Tree:
    """Return ``old + step_size·(new - old)``: a moving average of parameters, or a target network that follows softly.

    :func:`average_params <functopt.average_params>` does this inside an optimizer. Polyak & Juditsky, "Acceleration of
    Stochastic Approximation by Averaging" (1992).

    Args:
        new_tensors: the parameters.
        old_tensors: the average, whose dtypes are kept.
        step_size: how far it goes, a number, a 0-d tensor or a prefix tree of such.

    >>> incremental_update(params, {"w": torch.zeros(2)}, 0.1)
    {'w': tensor([ 0.1000, -0.2000])}
    """
    return tree.map(lambda old, new, s: lerp(old, new, s), old_tensors, new_tensors, step_size)


def periodic_update(new_tensors: Tree, old_tensors: Tree, steps: int | Tensor, update_period: int | Tensor) -> Tree:
    """Return the new tensors where the period divides ``steps``, otherwise the old ones: a hard target network.

    Grill et al., "Bootstrap Your Own Latent" (2020), Mnih et al., "Human-level Control through Deep Reinforcement
    Learning" (2015).

    Args:
        new_tensors: the parameters.
        old_tensors: the copy.
        steps: the number of the step, a number or a 0-d tensor.
        update_period: steps from one copy to the next.

    >>> periodic_update(params, {"w": torch.zeros(2)}, 10, 5)
    {'w': tensor([ 1., -2.])}
    """
    due = steps % update_period == 0
    if isinstance(due, Tensor):
        return tree.map(lambda new, old: torch.where(due, new, old).to(old.dtype), new_tensors, old_tensors)
    return tree.map(lambda new, old: (new if due else old).to(old.dtype), new_tensors, old_tensors)
