"""Weight decay. Where the link stands in the chain says which kind it is."""

from __future__ import annotations

from typing import Any

from functopt import tree
from functopt.base import Scope, link
from functopt.masks import Mask, mask_of
from functopt.numerics import add_scaled, where

__all__ = ["add_decayed_weights", "shrink_weights"]


def _scope(mask: Mask) -> Scope:
    return "element" if mask is None else "leaf"


@link(scope=_scope)
def add_decayed_weights(weight_decay=0.0, *, mask: Mask = None) -> Any:
    """Add a multiple of the parameters: ``u ← u + weight_decay·p``.

    *Before* a preconditioner this is L2 regularisation (its gradient goes through the preconditioner, as in Adam);
    *after* it, and before ``scale_by_lr``, it is decoupled weight decay (as in AdamW). Loshchilov & Hutter, "Decoupled
    Weight Decay Regularization" (2019).

    Args:
        weight_decay: the factor.
        mask: which leaves decay: a tree of bools that is a prefix of the parameters, or a function from the parameters
            to one. Where it is False the updates pass through bit for bit.

    Raises:
        TypeError: an entry of the mask is not a bool.
        ValueError: the mask is no prefix of the parameters.

    >>> tx = add_decayed_weights(0.1)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.6000, 0.8000])}
    """

    def transform(updates, state, params, weight_decay):
        chosen = mask_of(mask, params, "add_decayed_weights")
        decay = lambda u, p, d, on: where(on, add_scaled(u, d, p), u)
        return tree.map(decay, updates, params, weight_decay, chosen), state

    return transform


@link(scope=lambda mask, implicit: _scope(mask))
def shrink_weights(weight_decay=0.0, lr=1e-3, *, mask: Mask = None, implicit: bool = False) -> Any:
    """Shrink the parameters *after* the step: ``p ← (p + u)·(1 - lr·weight_decay)``.

    It stands last in a chain, after ``scale_by_lr``, whose ``lr`` it shares. ``add_decayed_weights`` decays the weights
    from before the step; the difference is ``lr·weight_decay·u``, of second order. This is the ``weight_decay`` stepper
    of fastai's notebook when it runs after the step.

    Args:
        weight_decay: the factor.
        lr: the learning rate.
        mask: as in :func:`add_decayed_weights`.
        implicit: ``p ← (p + u)/(1 + lr·weight_decay)``: the decay of the weights *to* which the step leads, a proximal
            step. It is what Adan has, and never overshoots.

    Raises:
        TypeError: an entry of the mask is not a bool.
        ValueError: the mask is no prefix of the parameters.

    >>> tx = chain(scale_by_lr(0.1), shrink_weights(0.1, 0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9405, -2.0790])}
    """

    def transform(updates, state, params, weight_decay, lr):
        chosen = mask_of(mask, params, "shrink_weights")

        def shrink(u, p, d, lr, on):
            lost = lr * d / (1 + lr * d) if implicit else lr * d
            return where(on, u - lost * (p + u), u)

        return tree.map(shrink, updates, params, weight_decay, lr, chosen), state

    return transform
