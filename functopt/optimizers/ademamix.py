"""Recipes with a fast and a slow memory of gradients: AdEMAMix and its simplified form."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.optimizers.common import Hyper, compose
from functopt.transforms.ademamix import scale_by_ademamix, scale_by_simplified_ademamix

__all__ = ["ademamix", "simplified_ademamix"]


def ademamix(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    beta3: Hyper = 0.9999,
    alpha: Hyper = 5.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    *,
    mask: Any = None,
) -> Transform:
    """Adam with a second, slow average of gradients in the numerator.

    ``p ← p - lr·((m̂ + alpha·s)/(√(v̂ + eps_root) + eps) + weight_decay·p)``, where ``s`` is the slow average, not
    debiased. Pagliardini, Ablin & Grangier, "The AdEMAMix Optimizer: Better, Faster, Older" (2024), who let ``alpha``
    grow from 0 and ``beta3`` from ``beta1`` over a run: give schedules for that.

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the fast mean.
        beta2: what is kept of the mean square.
        beta3: what is kept of the slow mean.
        alpha: how much of the slow mean is added.
        eps: added to the denominator.
        eps_root: added under the root.
        weight_decay: factor of the decay.
        mask: which leaves decay.

    >>> tx = ademamix(lr=0.1, alpha=linear_schedule(0.0, 5.0, 1000))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    links = [scale_by_ademamix(beta1, beta2, beta3, alpha, eps, eps_root)]
    return compose(links, lr, weight_decay, decoupled=True, mask=mask)


def simplified_ademamix(
    lr: Hyper = 1e-5,
    beta1: Hyper = 0.99,
    beta2: Hyper = 0.95,
    alpha: Hyper = 0.0,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    *,
    mask: Any = None,
) -> Transform:
    """AdEMAMix with one buffer: a sum of gradients, and more or less of the present one.

    ``m ← β1·m + g``, ``p ← p - lr·((m + alpha·g)/(√(v̂ + eps_root) + eps) + weight_decay·p)``. Since ``m`` is a sum, the
    learning rate is ``1 - β1`` times Adam's. Morwani et al., "Connections between Schedule-Free Optimizers, AdEMAMix,
    and Accelerated SGD Variants" (2025).

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the sum.
        beta2: what is kept of the mean square.
        alpha: how much of the present gradient is added.
        eps: added to the denominator.
        eps_root: added under the root.
        weight_decay: factor of the decay.
        mask: which leaves decay.

    >>> tx = simplified_ademamix(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    links = [scale_by_simplified_ademamix(beta1, beta2, alpha, eps, eps_root)]
    return compose(links, lr, weight_decay, decoupled=True, mask=mask)
