"""Recipes with another second moment than the average of squares: AdaBelief, ACProp and Yogi."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain
from functopt.optimizers.common import Hyper, compose
from functopt.transforms.belief import scale_by_acprop, scale_by_belief, scale_by_yogi
from functopt.transforms.scaling import scale_by_lr

__all__ = ["acprop", "adabelief", "yogi"]


def adabelief(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    weight_decay: Hyper = 0.0,
    *,
    nesterov: bool = False,
    mask: Any = None,
) -> Transform:
    """Adam that trusts a gradient more, the closer it is to what was expected.

    ``s ← β2·s + (1 - β2)·(g - m)² + eps_root``, ``p ← p - lr·(m̂/(√ŝ + eps) + weight_decay·p)``. Zhuang et al.,
    "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients" (2020).

    The numbers ``eps`` are optax's, which are those of the authors' PyTorch code for Transformers. The paper has 1e-8
    for both; with small models and without the rectification that the code adds, 1e-16 can be too bold.

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the squared deviation.
        eps: added to the denominator.
        eps_root: added to the squared deviation, at every step.
        weight_decay: factor of the decay.
        nesterov: look ahead by one step.
        mask: which leaves decay.

    >>> tx = adabelief(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8889, -2.1111])}
    """
    links = [scale_by_belief(beta1, beta2, eps, eps_root, nesterov=nesterov)]
    return compose(links, lr, weight_decay, decoupled=True, mask=mask)


def acprop(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-16,
    eps_root: Hyper = 1e-16,
    weight_decay: Hyper = 0.0,
    *,
    mask: Any = None,
) -> Transform:
    """Follow the gradient divided by its typical deviation from the mean, as that was a step before.

    ``p ← p - lr·(g/(√ŝ + eps) + weight_decay·p)``, then ``s ← β2·s + (1 - β2)·(g - m)² + eps_root``. Zhuang et al.,
    "Momentum Centering and Asynchronous Update for Adaptive Gradient Methods" (2021).

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the squared deviation.
        eps: added to the denominator.
        eps_root: added to the squared deviation, at every step.
        weight_decay: factor of the decay.
        mask: which leaves decay.

    >>> tx = acprop(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    return compose([scale_by_acprop(beta1, beta2, eps, eps_root)], lr, weight_decay, decoupled=True, mask=mask)


def yogi(
    lr: Hyper = 1e-2,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-3,
    eps_root: Hyper = 0.0,
    initial_accumulator_value: Hyper = 1e-6,
) -> Transform:
    """Adam whose second moment changes slowly, so that the effective learning rate does not jump up.

    ``v ← v - (1 - β2)·sign(v - g²)·g²``, ``p ← p - lr·m̂/(√v̂ + eps)``. Zaheer et al., "Adaptive Methods for Nonconvex
    Optimization" (2018), whose learning rate and ``eps`` these are.

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: one minus the speed of the second moment.
        eps: added to the denominator.
        eps_root: added under the root.
        initial_accumulator_value: what both moments are at the start.

    >>> tx = yogi(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9004, -2.0999])}
    """
    return chain(scale_by_yogi(beta1, beta2, eps, eps_root, initial_accumulator_value), scale_by_lr(lr))
