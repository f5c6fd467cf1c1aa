"""Links that only multiply: by a number, by the learning rate, by nothing at all."""

from __future__ import annotations

from typing import Any

from functopt import tree
from functopt.base import Transform, link
from functopt.combine import scheduled
from functopt.tree import is_schedule

__all__ = ["identity", "scale", "scale_by_lr", "scale_by_schedule", "set_to_zero"]


@link(scope="element")
def identity() -> Any:
    """Leave the updates as they are.

    >>> tx = identity()
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.5000, 1.0000])}
    """

    def transform(updates, state, params):
        return updates, state

    return transform


@link(scope="element")
def set_to_zero() -> Any:
    """Replace the updates by zeros, to begin a chain whose rule does not depend on the gradient.

    ``chain(set_to_zero(), add_decayed_weights(0.01), scale_by_lr(1e-3))`` is weight decay as an optimizer of its own.

    >>> tx = set_to_zero()
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0., 0.])}
    """

    def transform(updates, state, params):
        return tree.zeros_like(updates), state

    return transform


@link(scope="element")
def scale(step_size) -> Any:
    """Multiply the updates by a factor: ``u ← step_size·u``. A negative factor turns a gradient into a descent.

    >>> tx = scale(-0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """

    def transform(updates, state, params, step_size):
        return tree.map(lambda u, s: s * u, updates, step_size), state

    return transform


@link(scope="element")
def scale_by_lr(lr=1e-3, *, flip_sign: bool = True) -> Any:
    """Multiply by the learning rate and turn the direction around: ``u ← -lr·u``.

    This is optax's ``scale_by_learning_rate`` and the last link of nearly every chain.

    Args:
        lr: learning rate; a negative number is refused.
        flip_sign: if false, ``u ← +lr·u``, which ascends.

    >>> tx = scale_by_lr(0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    sign = -1.0 if flip_sign else 1.0

    def transform(updates, state, params, lr):
        return tree.map(lambda u, lr: sign * lr * u, updates, lr), state

    return transform


def scale_by_schedule(step_size: Any) -> Transform:
    """Multiply the updates by a schedule: ``u ← step_size(t)·u``, with ``t`` from 0.

    It is ``scheduled(scale(step_size))``. For the learning rate give the schedule as ``lr`` to any recipe, which turns
    the direction around.

    Args:
        step_size: a schedule; its settings are data as any hyper, so that they can be swept. A plain function is
            none: write it as a NamedTuple with a ``__call__(step)``.

    Raises:
        TypeError: it is no schedule.

    >>> tx = scale_by_schedule(linear_schedule(-0.1, 0.0, 10))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    if not is_schedule(step_size):
        raise TypeError(
            f"scale_by_schedule: expected a schedule, got a {type(step_size).__name__}. A number goes to scale(...); a "
            "function is no schedule: write it as a NamedTuple with a __call__(step)."
        )
    return scheduled(scale(step_size))
