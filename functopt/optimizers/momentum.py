"""Recipes that follow the gradient or its sign: SGD and Lion."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.optimizers.common import Hyper, compose, is_zero
from functopt.transforms.momentum import trace
from functopt.transforms.sign import scale_by_lion

__all__ = ["lion", "sgd"]


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
    lr·m``.

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
