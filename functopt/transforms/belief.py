"""Links with another second moment than the average of squares: AdaBelief, ACProp and Yogi."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.transforms.moments import begun_at, look_ahead, over_root, squares
from functopt.tree import Tree

__all__ = [
    "ScaleByAcpropState",
    "ScaleByBeliefState",
    "ScaleByYogiState",
    "scale_by_acprop",
    "scale_by_belief",
    "scale_by_yogi",
]


def _deviation(nu: Ema, grads: Tree, mu: Tree, beta2: Tree, eps_root: Tree) -> Ema:
    """Return the average of ``(g - m)²`` with one more in it, and ``eps_root`` added for good."""
    nu = nu.update(squares(tree.map(torch.sub, grads, mu)), beta2)
    return nu._replace(total=tree.map(lambda v, eps: v + eps, nu.total, eps_root))


@state_class
class ScaleByBeliefState(NamedTuple):
    """The averages of gradients and of squared deviations from it."""

    mu: Ema
    nu: Ema


@link(scope="element")
def scale_by_belief(beta1=0.9, beta2=0.999, eps=1e-16, eps_root=1e-16, *, nesterov: bool = False) -> Any:
    """Divide the running mean of the gradient by its typical deviation from that mean: AdaBelief.

    ``m ← β1·m + (1 - β1)·g``, ``s ← β2·s + (1 - β2)·(g - m)² + eps_root``, ``m̂ = m/(1 - β1^t)``, ``ŝ = s/(1 - β2^t)``,
    ``u = m̂ / (√ŝ + eps)``. Zhuang et al., "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients"
    (2020). ``eps_root`` goes into ``s`` at every step, and so comes up to ``eps_root/(1 - β2)``; the paper and its code
    have one number ``eps`` in both places (1e-8 in the paper, 1e-16 in the code, as in optax).

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the squared deviation.
        eps: added to the denominator.
        eps_root: added to the squared deviation, at every step.
        nesterov: look ahead by one step, as :func:`scale_by_adam <functopt.scale_by_adam>` does.

    >>> tx = chain(scale_by_belief(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8889, -2.1111])}
    """

    def init(params) -> ScaleByBeliefState:
        return ScaleByBeliefState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True))

    def transform(updates, state, params, beta1, beta2, eps, eps_root):
        mu = state.mu.update(updates, beta1)
        nu = _deviation(state.nu, updates, mu.total, beta2, eps_root)
        numerator = look_ahead(updates, mu, beta1) if nesterov else mu.mean
        return over_root(numerator, nu.mean, eps), ScaleByBeliefState(mu, nu)

    return init, transform


@state_class
class ScaleByAcpropState(NamedTuple):
    """The averages of gradients and of squared deviations from it."""

    mu: Ema
    nu: Ema


@link(scope="element")
def scale_by_acprop(beta1=0.9, beta2=0.999, eps=1e-16, eps_root=1e-16) -> Any:
    """Divide the gradient by its typical deviation from the mean, both as they were a step before: ACProp.

    ``u = g / (√ŝ + eps)`` with ``ŝ = s/(1 - β2^(t-1))``, which is 1 at the first step; after it ``s ← β2·s + (1 -
    β2)·(g - m)² + eps_root`` and ``m ← β1·m + (1 - β1)·g``. Since ``s`` does not know the gradient that it divides, the
    step is unbiased. Zhuang et al., "Momentum Centering and Asynchronous Update for Adaptive Gradient Methods" (2021).

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the squared deviation.
        eps: added to the denominator.
        eps_root: added to the squared deviation, at every step.

    >>> tx = chain(scale_by_acprop(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """

    def init(params) -> ScaleByAcpropState:
        return ScaleByAcpropState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True))

    def transform(updates, state, params, beta1, beta2, eps, eps_root):
        # 1 stands in for what is not there yet: for the average, and for its weight
        known = lambda v, w: torch.where(w > 0, v / torch.where(w > 0, w, 1.0), 1.0).to(v.dtype)
        out = over_root(updates, tree.map(known, state.nu.total, state.nu.weight), eps)
        nu = _deviation(state.nu, updates, state.mu.total, beta2, eps_root)
        return out, ScaleByAcpropState(state.mu.update(updates, beta1), nu)

    return init, transform


@state_class
class ScaleByYogiState(NamedTuple):
    """The average of gradients, and what follows their squares."""

    mu: Ema
    nu: Ema


@link(scope="element")
def scale_by_yogi(beta1=0.9, beta2=0.999, eps=1e-3, eps_root=0.0, initial_accumulator_value=1e-6) -> Any:
    """Adam whose second moment moves by a part of the new square, and not of the difference from it: Yogi.

    ``v ← v - (1 - β2)·sign(v - g²)·g²``, so that after large gradients it falls slowly; the rest is Adam:
    ``u = m̂ / (√(v̂ + eps_root) + eps)``, both debiased. Zaheer et al., "Adaptive Methods for Nonconvex Optimization"
    (2018).

    Args:
        beta1: what is kept of the mean.
        beta2: one minus the speed of the second moment.
        eps: added to the denominator.
        eps_root: added under the root.
        initial_accumulator_value: what both moments are at the start, ``m`` too, as in optax.

    >>> tx = chain(scale_by_yogi(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9004, -2.0999])}
    """

    def init(params) -> ScaleByYogiState:
        return ScaleByYogiState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True))

    def transform(updates, state, params, beta1, beta2, eps, eps_root, initial_accumulator_value):
        begun = lambda moment: begun_at(moment, initial_accumulator_value)
        mu = state.mu.update(updates, beta1)
        # the value towards which v moves by 1 - β2
        target = tree.map(lambda v, s: v - (v - s).sign() * s, begun(state.nu).total, squares(updates))
        nu = state.nu.update(target, beta2)
        return over_root(begun(mu).mean, begun(nu).mean, eps, eps_root), ScaleByYogiState(mu, nu)

    return init, transform
