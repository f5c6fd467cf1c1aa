"""Recipes that go by the sign: every entry moves by the learning rate."""

from __future__ import annotations

from typing import Any

from functopt import tree
from functopt.base import Transform
from functopt.combine import chain, rename
from functopt.optimizers.common import Hyper
from functopt.transforms.momentum import ema
from functopt.transforms.scaling import scale_by_lr
from functopt.transforms.sign import scale_by_sign
from functopt.transforms.tiger import scale_by_tiger
from functopt.tree import Tree

__all__ = ["sign_sgd", "signum", "tiger", "with_two_axes"]


def sign_sgd(lr: Hyper = 1e-3) -> Transform:
    """Descend by the sign of the gradient: ``p ← p - lr·sign(g)``.

    Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems" (2018).

    Args:
        lr: learning rate: how far every entry moves.

    >>> tx = sign_sgd(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    return chain(scale_by_sign(), scale_by_lr(lr))


def signum(lr: Hyper = 1e-3, beta: Hyper = 0.9) -> Transform:
    """Descend by the sign of the momentum: ``m ← β·m + (1 - β)·g``, ``p ← p - lr·sign(m)``.

    Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems" (2018). With ``beta=0`` it is
    :func:`sign_sgd`, with a decay and another ``beta`` in the update it is :func:`lion <functopt.lion>`.

    Args:
        lr: learning rate: how far every entry moves.
        beta: what is kept of the momentum.

    >>> tx = signum(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    return chain(rename(ema(beta, debias=False), decay="beta"), scale_by_sign(), scale_by_lr(lr))


def tiger(
    lr: Hyper = 1e-3,
    beta: Hyper = 0.965,
    weight_decay: Hyper = 0.01,
    vector_scale: Hyper = 0.5,
    *,
    mask: Any = None,
) -> Transform:
    """Lion with one average, and steps relative to the size of the parameters.

    ``m ← β·m + (1 - β)·g``; ``p ← p - lr·rms(p)·(sign(m) + weight_decay·p)`` for matrices, ``p ← p -
    lr·vector_scale·sign(m)`` for biases and gains. Su, "Tiger: A Tight-fisted Optimizer" (2023); see
    :func:`scale_by_tiger <functopt.scale_by_tiger>` for what is left out.

    Args:
        lr: learning rate, relative to the size of the parameters.
        beta: what is kept of the momentum.
        weight_decay: factor of the decay.
        vector_scale: the size that biases and gains are taken to have.
        mask: what counts as a matrix; by default what has two axes or more.

    >>> tx = tiger(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.0500])}
    """
    chosen = with_two_axes if mask is None else mask
    return chain(scale_by_tiger(beta, weight_decay, vector_scale, mask=chosen), scale_by_lr(lr))


def with_two_axes(params: Tree) -> Tree:
    """Return the mask of what has two axes or more."""
    return tree.map(lambda p: p.ndim > 1, params)
