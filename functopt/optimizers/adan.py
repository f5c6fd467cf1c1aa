"""Recipes that look at how the gradient has changed since the last step: Adan and MARS."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain
from functopt.optimizers.common import Hyper, compose
from functopt.transforms.adan import reduce_variance, scale_by_adan
from functopt.transforms.adaptive import scale_by_adam
from functopt.transforms.decay import shrink_weights
from functopt.transforms.scaling import scale_by_lr

__all__ = ["adan", "mars"]


def adan(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.98,
    beta2: Hyper = 0.92,
    beta3: Hyper = 0.99,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    form: str = "optax",
    mask: Any = None,
) -> Transform:
    """Adam with Nesterov momentum made of the changes of the gradient.

    ``u = (m̂ + c·δ̂)/(√(n̂ + eps_root) + eps)``, ``p ← p - lr·(u + weight_decay·p)`` with ``c = 1 - β2``. Xie et al.,
    "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models" (2022), where ``c = β2``,
    ``eps_root = 0`` and ``p ← (p - lr·u)/(1 + lr·weight_decay)``: that is the form ``"paper"``.

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean change.
        beta3: what is kept of the mean square.
        eps: added to the denominator.
        eps_root: added under the root (the paper: 0).
        weight_decay: factor of the decay (the paper's runs: 0.02).
        form: ``"optax"`` or ``"paper"``, see :func:`scale_by_adan <functopt.scale_by_adan>`; the authors' code is the
            second.
        mask: which leaves decay.

    Raises:
        ValueError: a number is out of range, or ``form`` has another value.

    >>> tx = adan(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    link = scale_by_adan(beta1, beta2, beta3, eps, eps_root, form=form)
    if form == "paper":
        return chain(link, scale_by_lr(lr), shrink_weights(weight_decay, lr, mask=mask, implicit=True))
    return compose([link], lr, weight_decay, decoupled=True, mask=mask)


def mars(
    lr: Hyper = 3e-3,
    beta1: Hyper = 0.95,
    beta2: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    gamma: Hyper = 0.025,
    max_norm: Hyper = 1.0,
    *,
    form: str = "paper",
    mask: Any = None,
) -> Transform:
    """MARS-AdamW: Adam of gradients whose variance was reduced by how they have changed.

    ``c = g + gamma·β1/(1 - β1)·(g - g_last)``, shrunk by leaf to the norm ``max_norm`` at most, is the gradient of
    AdamW. Yuan et al., "MARS: Unleashing the Power of Variance Reduction for Training Large Models" (2024). The
    gradient of the present batch at the last parameters, if you give it as ``last_grad``, makes it the exact form.

    The authors' code takes plain AdamW for vectors: ``partition`` does that here.

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        gamma: how much of the correction is made.
        max_norm: the largest norm of a corrected leaf.
        form: of the first step, see :func:`reduce_variance <functopt.reduce_variance>`.
        mask: which leaves decay.

    Raises:
        ValueError: a number is out of range, or ``form`` has another value.

    >>> tx = mars(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    links = [reduce_variance(gamma, beta1, max_norm, form=form), scale_by_adam(beta1, beta2, eps)]
    return compose(links, lr, weight_decay, decoupled=True, mask=mask)
