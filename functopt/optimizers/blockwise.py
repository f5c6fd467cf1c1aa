"""Recipes between Adam and one step size for each leaf: Adam-mini and StableAdamW."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain
from functopt.optimizers.common import Hyper, compose
from functopt.transforms.blockwise import scale_by_adam_mini, scale_by_stable_adam
from functopt.transforms.scaling import scale_by_lr

__all__ = ["adam_mini", "stable_adamw"]


def adam_mini(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    blocks: Any = "leaf",
    mask: Any = None,
) -> Transform:
    """AdamW with one second moment for each block of parameters, in half of its memory.

    ``v ← β2·v + (1 - β2)·mean(g²)`` by block, ``p ← p - lr·(m̂/(√v̂ + eps) + weight_decay·p)``. Zhang et al., "Adam-mini:
    Use Fewer Learning Rates To Gain More" (2024).

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        blocks: what is a block: ``"leaf"``, ``"row"``, ``"entry"`` or a number of parts of the first axis, for all
            leaves or as a tree; see :func:`scale_by_adam_mini <functopt.scale_by_adam_mini>`.
        mask: which leaves decay.

    Raises:
        ValueError: a number is out of range, or ``blocks`` do not fit the parameters.

    >>> tx = adam_mini(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9368, -2.1265])}
    """
    return compose([scale_by_adam_mini(beta1, beta2, eps, blocks=blocks)], lr, weight_decay, decoupled=True, mask=mask)


def stable_adamw(
    lr: Hyper = 2e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.99,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 1e-2,
    clipping_threshold: Hyper = 1.0,
    *,
    mask: Any = None,
) -> Transform:
    """AdamW with Adafactor's update clipping: no clipping of gradients is needed, and no loss spikes come.

    ``lr' = lr/max(1, √mean(g²/max(v̂, eps²))/clipping_threshold)``, by leaf, and AdamW with it. Wortsman et al., "Stable
    and low-precision training for large-scale vision-language models" (2023). The numbers are those of ``optimi``, but
    for ``lr``, which it does not have: that is the paper's.

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        clipping_threshold: from which ratio on steps are smaller.
        mask: which leaves decay.

    >>> tx = stable_adamw(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8990, -2.0980])}
    """
    link = scale_by_stable_adam(beta1, beta2, eps, weight_decay, clipping_threshold, mask=mask)
    return chain(link, scale_by_lr(lr))
