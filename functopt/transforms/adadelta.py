"""Adadelta: the ratio of two running means, that of the updates and that of the gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import sqrt
from functopt.transforms.moments import squares

__all__ = ["ScaleByAdadeltaState", "scale_by_adadelta"]


@state_class
class ScaleByAdadeltaState(NamedTuple):
    """The averages of squared gradients and of squared updates."""

    e_g: Ema
    e_x: Ema


@link(scope="element")
def scale_by_adadelta(rho=0.9, eps=1e-6) -> Any:
    """Scale by the root mean square of past updates over that of the gradients: Adadelta.

    ``E[g²] ← ρ·E[g²] + (1 - ρ)·g²``, ``u = √(E[u²] + eps)/√(E[g²] + eps)·g``, then
    ``E[u²] ← ρ·E[u²] + (1 - ρ)·u²``. Zeiler, "ADADELTA: An Adaptive Learning Rate Method" (2012).

    Args:
        rho: what is kept of the past in both averages.
        eps: added under both roots.

    >>> tx = scale_by_adadelta(eps=1e-4)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.0316, 0.0316])}
    """

    def init(params) -> ScaleByAdadeltaState:
        return ScaleByAdadeltaState(*(Ema.zeros(params, rho, accumulate=True) for _ in range(2)))

    def transform(updates, state, params, rho, eps):
        e_g = state.e_g.update(squares(updates), rho)
        ratio = lambda g, x, v, eps: sqrt(x + eps) / sqrt(v + eps) * g
        out = tree.map(ratio, updates, state.e_x.total, e_g.total, eps)
        return out, ScaleByAdadeltaState(e_g, state.e_x.update(squares(out), rho))

    return init, transform
