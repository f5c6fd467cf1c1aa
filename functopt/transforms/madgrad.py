"""MADGRAD: dual averaging, with the cube root of the sum of squares."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import accumulator_dtype
from functopt.tree import Tree

__all__ = ["ScaleByMadgradState", "scale_by_madgrad"]


@state_class
class ScaleByMadgradState(NamedTuple):
    """The number of steps taken, the weighted sums of gradients and of their squares, and where it all began."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    s: Tree
    nu: Tree
    x0: Tree


@link(scope="element")
def scale_by_madgrad(lr=1e-2, momentum=0.9, eps=1e-6) -> Any:
    """Step from where the training began, against the sum of all gradients: MADGRAD.

    With ``λ = (lr + eps)·√t``: ``s ← s + λ·g``, ``ν ← ν + λ·g²``, ``z = p₀ - s/(∛ν + eps)`` and
    ``p ← momentum·p + (1 - momentum)·z``. It has the learning rate in it, so no ``scale_by_lr`` follows. Defazio &
    Jelassi, "Adaptivity without Compromise: A Momentumized, Adaptive, Dual Averaged Gradient Method for Stochastic
    Optimization" (2021).

    Args:
        lr: learning rate. Where it is 0, so is ``λ``, as in the authors' program; optax then goes on with ``eps``.
        momentum: how much of the parameters stays where it is.
        eps: added to the cube root, and to the learning rate.

    >>> tx = scale_by_madgrad(lr=1.0, momentum=0.5)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([-0.3968, -0.5000])}
    """

    def init(params) -> ScaleByMadgradState:
        count = tree.counter(params)
        s, nu = (tree.zeros_like(params, accumulate=True) for _ in range(2))
        return ScaleByMadgradState(count, s, nu, tree.map(torch.clone, params))

    def transform(updates, state, params, lr, momentum, eps):
        def factor(s, lr, eps):
            lr = lr * torch.ones_like(state.count, dtype=s.dtype)
            return torch.where(lr == 0, 0.0, lr + eps) * (state.count + 1).to(s.dtype).sqrt()

        weights = tree.map(factor, state.s, lr, eps)
        s = tree.map(lambda s, g, w: s + w * g.to(s.dtype), state.s, updates, weights)
        nu = tree.map(lambda v, g, w: v + w * g.to(v.dtype).square(), state.nu, updates, weights)

        def step(p, x0, s, v, momentum, eps):
            z = x0 - s / (_cbrt(v) + eps)
            return (1 - momentum) * (z - p)

        out = tree.map(step, params, state.x0, s, nu, momentum, eps)
        return out, ScaleByMadgradState(state.count + 1, s, nu, state.x0)

    return init, transform


def _cbrt(x: Tensor) -> Tensor:
    """Return the cube root of ``x >= 0``, whose derivative is finite at 0 too."""
    return x.clamp_min(torch.finfo(accumulator_dtype(x.dtype)).tiny) ** (1 / 3)
