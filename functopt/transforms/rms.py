"""Links that divide by the root of a running mean square alone: RMSProp and its forms."""

from __future__ import annotations

from typing import Any, NamedTuple

from functopt import tree
from functopt.base import Transform, link, state_class
from functopt.ema import Ema
from functopt.numerics import root, sqrt
from functopt.transforms.moments import begun_at, squares
from functopt.tree import Tree

__all__ = [
    "ScaleByMomentumOverRmsState",
    "ScaleByRmsState",
    "scale_by_rms",
    "scale_by_stddev",
    "scale_momentum_by_rms",
]


@state_class
class ScaleByRmsState(NamedTuple):
    """The average of squared gradients, and of gradients if centered."""

    nu: Ema
    mu: Tree  # an Ema, or () if not centered


@link(scope="element")
def scale_by_rms(
    decay=0.99,
    eps=1e-8,
    initial_scale=0.0,
    *,
    centered: bool = False,
    eps_in_sqrt: bool = False,
    bias_correction: bool = False,
) -> Any:
    """Divide by the root of the running mean square: RMSProp.

    ``v ← decay·v + (1 - decay)·g²`` and ``u = g / (√v + eps)``. Tieleman & Hinton, "Lecture 6.5 - RMSProp" (2012);
    centered: Graves, "Generating sequences with recurrent neural networks" (2013).

    The defaults are those of ``torch.optim.RMSprop``; optax's ``scale_by_rms`` has ``decay=0.9, eps_in_sqrt=True``.

    Args:
        decay: what is kept of the past.
        eps: added to the denominator.
        initial_scale: what ``v`` is at the start.
        centered: divide by the standard deviation: ``√(v - m²)``, where ``m`` is the running mean of ``g``.
        eps_in_sqrt: ``u = g / √(v + eps)``.
        bias_correction: divide ``v`` and ``m`` by ``1 - decay^t``.

    >>> tx = chain(scale_by_rms(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 1.7881e-07, -3.0000e+00])}
    """

    def init(params) -> ScaleByRmsState:
        nu = Ema.zeros(params, decay, accumulate=True)
        return ScaleByRmsState(nu, Ema.zeros(params, decay, accumulate=True) if centered else ())

    def transform(updates, state, params, decay, eps, initial_scale):
        nu = state.nu.update(squares(updates), decay)
        begun = begun_at(nu, initial_scale)
        mu, variance = (), begun.mean if bias_correction else begun.total
        if centered:
            mu = state.mu.update(updates, decay)
            variance = tree.map(lambda v, m: v - m.square(), variance, mu.mean if bias_correction else mu.total)

        def rescale(g, v, eps):
            return g / sqrt(v + eps) if eps_in_sqrt else g / (sqrt(v) + eps)

        return tree.map(rescale, updates, variance, eps), ScaleByRmsState(nu, mu)

    return init, transform


def scale_by_stddev(
    decay: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: Any = 0.0,
    *,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> Transform:
    """Divide by the running standard deviation: centered RMSProp, with optax's defaults.

    ``v ← decay·v + (1 - decay)·g²``, ``m ← decay·m + (1 - decay)·g`` and ``u = g / √(v - m² + eps)``. Graves,
    "Generating sequences with recurrent neural networks" (2013).

    Args:
        decay: what is kept of the past.
        eps: added under the root.
        initial_scale: what ``v`` is at the start.
        eps_in_sqrt: if false, ``u = g / (√(v - m²) + eps)``.
        bias_correction: divide ``v`` and ``m`` by ``1 - decay^t``.

    >>> tx = chain(scale_by_stddev(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.6667, -2.3333])}
    """
    return scale_by_rms(
        decay, eps, initial_scale, centered=True, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction
    )


@state_class
class ScaleByMomentumOverRmsState(NamedTuple):
    """The momentum buffer and the average of squared gradients."""

    trace: Ema  # undamped: total is the buffer
    nu: Ema


@link(scope="element")
def scale_momentum_by_rms(momentum=0.9, decay=0.99, eps=1e-8) -> Any:
    """Divide the momentum of the *gradient* by its root mean square: fastai's RMSProp with momentum.

    ``m ← momentum·m + g``, ``v ← decay·v + (1 - decay)·g²``, ``u = m / (√v + eps)``. ``torch.optim.RMSprop`` instead
    takes the momentum of ``g / (√v + eps)``: that is ``chain(scale_by_rms(), trace())``.

    Args:
        momentum: what is kept of the buffer.
        decay: what is kept of the mean square.
        eps: added to the denominator.

    >>> tx = chain(scale_momentum_by_rms(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 1.7881e-07, -3.0000e+00])}
    """

    def init(params) -> ScaleByMomentumOverRmsState:
        return ScaleByMomentumOverRmsState(Ema.zeros(params, momentum), Ema.zeros(params, decay, accumulate=True))

    def transform(updates, state, params, momentum, decay, eps):
        m = state.trace.update(updates, momentum, 1.0)
        nu = state.nu.update(squares(updates), decay)
        out = tree.map(lambda m, v, eps: m / (root(v, eps) + eps), m.total, nu.total, eps)
        return out, ScaleByMomentumOverRmsState(m, nu)

    return init, transform
