"""Links whose numerator is the sum of a fast and a slow memory of gradients: AdEMAMix and its simplified form."""

from __future__ import annotations

from typing import Any, NamedTuple

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.transforms.moments import over_root, squares

__all__ = [
    "ScaleByAdemamixState",
    "ScaleBySimplifiedAdemamixState",
    "scale_by_ademamix",
    "scale_by_simplified_ademamix",
]


@state_class
class ScaleByAdemamixState(NamedTuple):
    """The fast and the slow average of gradients, and that of squares."""

    mu: Ema
    slow: Ema
    nu: Ema


@link(scope="element")
def scale_by_ademamix(beta1=0.9, beta2=0.999, beta3=0.9999, alpha=6.0, eps=1e-8, eps_root=0.0) -> Any:
    """Adam with a second, slow average of gradients in the numerator: AdEMAMix.

    ``m ← β1·m + (1 - β1)·g``, ``s ← β3·s + (1 - β3)·g``, ``v ← β2·v + (1 - β2)·g²`` and ``u = (m̂ + alpha·s) / (√(v̂ +
    eps_root) + eps)``; the slow ``s`` is not debiased, and so fills itself slowly. Pagliardini, Ablin & Grangier, "The
    AdEMAMix Optimizer: Better, Faster, Older" (2024), who let ``alpha`` and ``beta3`` grow: both may be schedules.

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        beta3: what is kept of the slow mean.
        alpha: how much of the slow mean is added (5 in the recipe, as in optax).
        eps: added to the denominator.
        eps_root: added under the root.

    >>> tx = chain(scale_by_ademamix(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8999, -2.1001])}
    """

    def init(params) -> ScaleByAdemamixState:
        nu = Ema.zeros(params, beta2, accumulate=True)
        return ScaleByAdemamixState(Ema.zeros(params, beta1), Ema.zeros(params, beta3), nu)

    def transform(updates, state, params, beta1, beta2, beta3, alpha, eps, eps_root):
        mu, slow = state.mu.update(updates, beta1), state.slow.update(updates, beta3)
        nu = state.nu.update(squares(updates), beta2)
        mixed = tree.map(lambda m, a, s: m + a * s, mu.mean, alpha, slow.total)
        return over_root(mixed, nu.mean, eps, eps_root), ScaleByAdemamixState(mu, slow, nu)

    return init, transform


@state_class
class ScaleBySimplifiedAdemamixState(NamedTuple):
    """The sum of gradients, and the average of squares."""

    trace: Ema  # undamped: total is the buffer
    nu: Ema


@link(scope="element")
def scale_by_simplified_ademamix(beta1=0.99, beta2=0.95, alpha=0.0, eps=1e-8, eps_root=0.0) -> Any:
    """Divide a sum of gradients, with more or less weight on the present one, by their root mean square.

    ``m ← β1·m + g``, without ``1 - β1``, ``v ← β2·v + (1 - β2)·g²``, ``u = (m + alpha·g) / (√(v̂ + eps_root) + eps)``.
    Morwani et al., "Connections between Schedule-Free Optimizers, AdEMAMix, and Accelerated SGD Variants" (2025).

    Args:
        beta1: what is kept of the sum.
        beta2: what is kept of the mean square.
        alpha: how much of the present gradient is added: 0 for a constant learning rate, more with a decaying one.
        eps: added to the denominator.
        eps_root: added under the root.

    >>> tx = chain(scale_by_simplified_ademamix(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """

    def init(params) -> ScaleBySimplifiedAdemamixState:
        return ScaleBySimplifiedAdemamixState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True))

    def transform(updates, state, params, beta1, beta2, alpha, eps, eps_root):
        m = state.trace.update(updates, beta1, 1.0)
        nu = state.nu.update(squares(updates), beta2)
        mixed = tree.map(lambda m, a, g: m + a * g, m.total, alpha, updates)
        return over_root(mixed, nu.mean, eps, eps_root), ScaleBySimplifiedAdemamixState(m, nu)

    return init, transform
