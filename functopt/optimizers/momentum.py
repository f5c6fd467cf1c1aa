"""Recipes that follow the gradient, its change or its sign: SGD, optimistic descent and Lion."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain, rename
from functopt.optimizers.common import Hyper, compose, is_zero
from functopt.transforms.adaptive import scale_by_adam
from functopt.transforms.momentum import trace
from functopt.transforms.optimistic import scale_by_optimistic_gradient
from functopt.transforms.scaling import scale, scale_by_lr
from functopt.transforms.sign import scale_by_lion

__all__ = ["lion", "optimistic_adam", "optimistic_adam_v2", "optimistic_gradient_descent", "sgd"]


def sgd(
    lr: Hyper = 1e-3,
    momentum: Hyper = 0.0,
    dampening: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    *,
    nesterov: bool = False,
    decoupled: bool = False,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``.

    ``g ← g + weight_decay·p``, ``m ← momentum·m + (1 - dampening)·g`` (the first gradient enters whole), ``p ← p -
    lr·m``. Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013).

    Args:
        lr: learning rate.
        momentum: what is kept of the buffer. The number 0 leaves the buffer out, and with it the hyper: to sweep
            momentum from 0 on, give another default here.
        dampening: what is held back of each gradient after the first.
        weight_decay: factor of the decay.
        nesterov: ``p ← p - lr·(g + momentum·m)``.
        decoupled: decay the weights beside the momentum and not through it: fastai's ``decouple_wd``, SGDW.
        mask: which leaves decay, see :func:`add_decayed_weights <functopt.add_decayed_weights>`.
        maximize: ascend.

    Raises:
        ValueError: a number is out of range, or ``nesterov`` without momentum or with dampening.

    >>> tx = sgd(lr=0.1, momentum=0.9)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    plain = is_zero(momentum)
    if nesterov and (plain or not is_zero(dampening)):
        raise ValueError("sgd: nesterov needs momentum > 0 and dampening = 0")
    links = [] if plain else [trace(momentum, dampening, nesterov=nesterov)]
    return compose(links, lr, weight_decay, decoupled=decoupled, mask=mask, maximize=maximize)


def lion(
    lr: Hyper = 1e-4,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.99,
    weight_decay: Hyper = 1e-3,
    *,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Sign descent with two averages, with the paper's learning rate and optax's other defaults.

    ``p ← p - lr·(sign(β1·m + (1 - β1)·g) + weight_decay·p)``, ``m ← β2·m + (1 - β2)·g``. Every entry moves by ``lr``,
    so that the learning rate is 3 to 10 times smaller than AdamW's, and the decay as much larger. Chen et al.,
    "Symbolic Discovery of Optimization Algorithms" (2023).

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: how much of the update is the past.
        beta2: what is kept of the average.
        weight_decay: factor of the decay.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx = lion(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8999, -2.0998])}
    """
    return compose([scale_by_lion(beta1, beta2)], lr, weight_decay, decoupled=True, mask=mask, maximize=maximize)


def optimistic_gradient_descent(lr: Hyper = 1e-3, alpha: Hyper = 1.0, optimism: Hyper = 1.0) -> Transform:
    """Gradient descent that expects the next gradient to differ from this one as this one did from the last.

    ``p ← p - lr·(α·g + optimism·(g - g_last))``. Mokhtari et al., "A Unified Analysis of Extra-gradient and Optimistic
    Gradient Methods for Saddle Point Problems: Proximal Point Approach" (2020).

    Args:
        lr: learning rate.
        alpha: factor of the gradient.
        optimism: factor of its change (optax: ``beta``).

    >>> tx = optimistic_gradient_descent(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    return chain(scale_by_optimistic_gradient(alpha, optimism), scale_by_lr(lr))


def optimistic_adam_v2(
    lr: Hyper = 1e-3,
    alpha: Hyper = 1.0,
    optimism: Hyper = 1.0,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    nesterov: bool | str = True,
) -> Transform:
    """Optimistic descent along Adam's updates, for games such as GANs.

    ``p ← p - lr·(α·u + optimism·(u - u_last))`` with Adam's ``u``. Daskalakis et al., "Training GANs with Optimism"
    (2018), where both are 1 and Adam is without Nesterov's look-ahead; with it is optax's default.

    Args:
        lr: learning rate.
        alpha: factor of the update.
        optimism: factor of its change (optax: ``beta``).
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        eps_root: added under the root.
        nesterov: see :func:`scale_by_adam <functopt.scale_by_adam>`.

    >>> tx = optimistic_adam_v2(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8526, -2.1474])}
    """
    moments = scale_by_adam(beta1, beta2, eps, eps_root, nesterov=nesterov)
    return chain(moments, scale_by_optimistic_gradient(alpha, optimism), scale_by_lr(lr))


def optimistic_adam(
    lr: Hyper = 1e-3,
    optimism: Hyper | None = None,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    nesterov: bool | str = True,
) -> Transform:
    """Optimistic Adam whose optimism is a rate of its own, not a multiple of the learning rate.

    ``p ← p - lr·u - optimism·(u - u_last)`` with Adam's ``u``. Daskalakis et al., "Training GANs with Optimism" (2018).
    :func:`optimistic_adam_v2` is the form that optax goes on with.

    Args:
        lr: learning rate.
        optimism: factor of the change of the update; with None this is :func:`optimistic_adam_v2`, where it is ``lr``
            times a hyper of this name.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        eps_root: added under the root.
        nesterov: see :func:`scale_by_adam <functopt.scale_by_adam>`.

    >>> tx = optimistic_adam(lr=0.1, optimism=0.01)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8526, -2.1474])}
    """
    if optimism is None:
        return optimistic_adam_v2(lr, 1.0, 1.0, beta1, beta2, eps, eps_root, nesterov=nesterov)
    moments = scale_by_adam(beta1, beta2, eps, eps_root, nesterov=nesterov)
    return chain(moments, rename(scale_by_optimistic_gradient(lr, optimism), alpha="lr"), scale(-1.0))
