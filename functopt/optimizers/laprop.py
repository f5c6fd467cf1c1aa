"""Recipes that divide first and average afterwards: LaProp, ADOPT and NovoGrad."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain
from functopt.optimizers.common import Hyper, compose
from functopt.transforms.laprop import scale_by_adopt, scale_by_laprop, scale_by_novograd
from functopt.transforms.scaling import scale_by_lr

__all__ = ["adopt", "laprop", "novograd"]


def laprop(
    lr: Hyper = 4e-4,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-15,
    weight_decay: Hyper = 0.0,
    *,
    mask: Any = None,
) -> Transform:
    """Adam with the order reversed: the momentum is that of divided gradients.

    ``m ← β1·m + (1 - β1)·g/(√v̂ + eps)``, ``p ← p - lr·(m̂ + weight_decay·p)``. Ziyin, Wang & Ueda, "LaProp: Separating
    Momentum and Adaptivity in Adam" (2020). The authors' code has ``lr`` inside the average, which is the same while it
    is constant, and does not multiply the decay by it.

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        mask: which leaves decay.

    >>> tx = laprop(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    return compose([scale_by_laprop(beta1, beta2, eps)], lr, weight_decay, decoupled=True, mask=mask)


def adopt(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.9999,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    clip_exponent: Hyper = 0.25,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    decoupled: bool = False,
    mask: Any = None,
) -> Transform:
    """Adam that divides by the second moment of the gradients before, and so converges with any ``beta2``.

    ``d = g/max(√v, eps)``, clipped to ``±t^clip_exponent``; ``m ← β1·m + (1 - β1)·d``, ``p ← p - lr·m``; last
    ``v ← β2·v + (1 - β2)·g²``. The first step only notes ``v = g²``. Taniguchi et al., "ADOPT: Modified Adam Can
    Converge with Any β2 with the Optimal Rate" (2024).

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: the least that is divided by.
        weight_decay: factor of the decay, which optax does not have.
        clip_exponent: how fast the bound of ``d`` grows.
        nesterov: look ahead by one step.
        use_clipping: if false, ``d`` is not clipped.
        decoupled: decay beside the preconditioner, not through it; the authors' code has both, and this default.
        mask: which leaves decay.

    >>> tx = adopt(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 1., -2.])}
    """
    links = [scale_by_adopt(beta1, beta2, eps, clip_exponent, nesterov=nesterov, use_clipping=use_clipping)]
    return compose(links, lr, weight_decay, decoupled=decoupled, mask=mask)


def novograd(
    lr: Hyper = 1e-2,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.25,
    eps: Hyper = 1e-6,
    eps_root: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    *,
    mask: Any = None,
) -> Transform:
    """Momentum of gradients that are divided by the running norm of their leaf.

    ``v ← β2·v + (1 - β2)·‖g‖²``, ``m ← β1·m + g/(√(v + eps_root) + eps) + weight_decay·p``, ``p ← p - lr·m``.
    Ginsburg et al., "Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks"
    (2019).

    Args:
        lr: learning rate.
        beta1: what is kept of the momentum (the paper: 0.95).
        beta2: what is kept of the squared norm (the paper: 0.98).
        eps: added to the denominator.
        eps_root: added under the root.
        weight_decay: factor of the decay, which goes through the momentum.
        mask: which leaves decay.

    >>> tx = novograd(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9553, -2.0894])}
    """
    return chain(scale_by_novograd(beta1, beta2, eps, eps_root, weight_decay, mask=mask), scale_by_lr(lr))
