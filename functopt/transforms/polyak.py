"""The step size that a known least loss gives: Polyak's."""

from __future__ import annotations

from typing import Any

import torch

from functopt import tree
from functopt.base import link
from functopt.numerics import minimum, once

__all__ = ["NO_STEP", "scale_by_polyak"]

NO_STEP = torch.finfo(torch.float64).eps
"""Of gradients with a squared norm no larger than this nothing is left, and no step is taken."""

_VARIANTS = ("sps", "sps+")


@link(scope="tree")
def scale_by_polyak(f_min=0.0, max_learning_rate=1.0, eps=0.0, *, variant: str = "sps") -> Any:
    """Scale by Polyak's step size, with which a linear model of the loss would reach its least value.

    ``u = min((f - f_min)/(‖g‖² + eps), max_learning_rate)·g``, with the norm over all leaves; 0 where ``‖g‖² + eps``
    is no more than 2.2e-16. ``f`` is the extra ``value``. Loizou, Vaswani, Laradji & Lacoste-Julien, "Stochastic Polyak
    Step-size for SGD: An Adaptive Learning Rate for Fast Convergence" (2021).

    Args:
        f_min: the least value that the loss can have; 0 where a model can fit its data.
        max_learning_rate: a bound on the step size.
        eps: added to the denominator.
        variant: ``"sps"``; or ``"sps+"``, which takes no step where ``f < f_min``, and where ``"sps"`` ascends.
            Garrigos, Gower & Schaipp, "Function Value Learning" (2023).

    Raises:
        ValueError: ``variant`` has another value.
        TypeError: at the step: the extra ``value`` is missing.

    >>> tx = chain(scale_by_polyak(), scale_by_lr(1.0))
    >>> tx.update(grads, tx.init(params), params, value=torch.tensor(0.5))[0]
    {'w': tensor([ 0.8000, -2.4000])}
    """
    if variant not in _VARIANTS:
        raise ValueError(f"scale_by_polyak: variant must be one of {_VARIANTS}, got {variant!r}")

    def transform(updates, state, params, f_min, max_learning_rate, eps, value):
        square = tree.norm(updates).square()

        def rescale(u, f_min, cap, eps):
            gap, below = (value - f_min), square + eps
            gap = gap.clamp_min(0) if variant == "sps+" else gap
            # 1 stands in for a norm of 0, by which nothing is divided, so that derivatives there are 0 and not NaN
            moves = below > NO_STEP
            step = torch.where(moves, minimum(gap / torch.where(moves, below, 1.0), cap), 0.0)
            return once(step.to(square.dtype)) * u

        return tree.map(rescale, updates, f_min, max_learning_rate, eps), state

    return transform
