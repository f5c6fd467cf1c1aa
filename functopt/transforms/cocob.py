"""A gambler who bets on the sign of every entry of the gradient: COCOB."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import maximum
from functopt.transforms.totals import copied, displacement
from functopt.tree import Tree

__all__ = ["ScaleByCocobState", "scale_by_cocob"]


@state_class
class ScaleByCocobState(NamedTuple):
    """Where the parameters began, and for every entry what the gambler knows."""

    init_particles: Tree
    cumulative_gradients: Tree  # θ, with the sign turned round
    scale: Tree  # L, the largest magnitude so far
    subgradients: Tree  # G, the sum of magnitudes
    reward: Tree  # what has been won


@link(scope="element")
def scale_by_cocob(alpha=100.0, eps=1e-8) -> Any:
    """Bet a part of what has been won so far on every entry of the gradient: COCOB, without a learning rate.

    ``L ← max(L, |g|)`` from ``L = eps`` on, ``G ← G + |g|``, ``R ← max(R - g·(p - p₀), 0)``, ``θ ← θ - g`` and
    ``p ← p₀ + θ·(L + R)/(L·max(G + L, alpha·L))``, entry by entry. Orabona & Tommasi, "Training Deep Networks without
    Learning Rates Through Coin Betting" (2017). The updates lead to the new parameters: nothing is scaled afterwards.

    Args:
        alpha: the larger, the smaller the first steps are.
        eps: the least ``L``, by which is divided.

    >>> tx = scale_by_cocob(alpha=10.0)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """

    def init(params) -> ScaleByCocobState:
        return ScaleByCocobState(copied(params), *(tree.zeros_like(params, accumulate=True) for _ in range(4)))

    def transform(updates, state, params, alpha, eps):
        back = displacement(state.init_particles, params)
        scale = tree.map(lambda s, g, eps: maximum(torch.maximum(s, g.abs()), eps), state.scale, updates, eps)
        total = tree.map(lambda s, g: s + g.abs(), state.subgradients, updates)
        reward = tree.map(lambda r, g, d: (r + g * d).clamp_min(0), state.reward, updates, back)
        theta = tree.map(lambda t, g: t - g, state.cumulative_gradients, updates)

        def bet(d, t, s, total, r, alpha):
            return d + t * (s + r) / (s * torch.maximum(total + s, alpha * s))

        out = tree.map(bet, back, theta, scale, total, reward, alpha)
        return out, ScaleByCocobState(state.init_particles, theta, scale, total, reward)

    return init, transform
