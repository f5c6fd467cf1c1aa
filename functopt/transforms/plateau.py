"""Smaller steps once the loss has stopped falling."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import maximum
from functopt.tree import Tree

__all__ = ["ReduceOnPlateauState", "reduce_on_plateau"]


@state_class
class ReduceOnPlateauState(NamedTuple):
    """What the updates are multiplied by, and what decides about it: numbers, one for each group of hypers."""

    scale: Tree
    best_value: Tree
    plateau_count: Tree  # values in a row that were no improvement
    cooldown_count: Tree  # values that are still to be passed over
    count: Tree  # values in the average
    avg_value: Tree


_MODES = ("min", "max")


@link(scope="element")
def reduce_on_plateau(
    factor=0.1,
    patience=10,
    rtol=1e-4,
    atol=0.0,
    cooldown=0,
    accumulation_size=1,
    min_scale=0.0,
    min_change=0.0,
    *,
    mode: str = "min",
) -> Any:
    """Multiply the updates by a scale that falls when ``value`` has stopped improving.

    ``v`` is the mean of the last ``accumulation_size`` values, and better than the best one so far, ``b``, if ``v <
    (1 - rtol)·b - atol``. After ``patience`` of them in a row that are not, ``s ← max(factor·s, min_scale)``, and the
    next ``cooldown`` of them are passed over; ``u ← s·u``, with ``s = 1`` at first. It stands last in a chain. It needs
    the extra ``value``, a loss or metric as a number or 0-d tensor.

    torch's ``ReduceLROnPlateau`` is the same rule with other words: its ``patience=n`` is ``n + 1`` here; ``threshold``
    is ``rtol`` in its ``threshold_mode="rel"`` and ``atol`` in ``"abs"`` (the other one 0); ``min_lr`` and ``eps`` are
    ``lr·min_scale`` and ``lr·min_change``. It acts on the steps after the value, optax's and this one on the same step.
    Schedules are older than papers about them; the rule is that of Keras' ``ReduceLROnPlateau``: Chollet et al.,
    "Keras" (2015).

    Args:
        factor: what the scale is multiplied by.
        patience: how many values without an improvement it takes.
        rtol: what counts as an improvement, relative to the best value.
        atol: the same as a difference.
        cooldown: values that are passed over after a reduction.
        accumulation_size: values that are averaged into one, for losses of minibatches. This and the other numbers of
            values are rounded to whole ones.
        min_scale: the smallest scale.
        min_change: a reduction by no more than this is not made.
        mode: ``"max"`` if a larger value is better: better is ``v > (1 + rtol)·b + atol``.

    Raises:
        ValueError: ``mode`` has another value, or ``factor`` is a number that is not between 0 and 1.
        TypeError: the extra ``value`` is missing.

    >>> tx = chain(sgd(lr=0.1), reduce_on_plateau(factor=0.5, patience=1))
    >>> _, state = tx.update(grads, tx.init(params), params, value=1.0)
    >>> tx.update(grads, state, params, value=1.0)[0]
    {'w': tensor([ 0.9750, -2.0500])}
    """
    if mode not in _MODES:
        raise ValueError(f"reduce_on_plateau: mode must be one of {_MODES}, got {mode!r}")
    if isinstance(factor, (float, int)) and not 0 < factor < 1:
        raise ValueError(f"reduce_on_plateau: factor must be between 0 and 1, got {factor!r}")
    sign = 1.0 if mode == "min" else -1.0
    hypers = (factor, patience, rtol, atol, cooldown, accumulation_size, min_scale, min_change)

    def init(params) -> ReduceOnPlateauState:
        number = lambda value: tree.scalars(params, *hypers, value=value)
        return ReduceOnPlateauState(number(1.0), number(sign * math.inf), *(number(0.0) for _ in range(4)))

    def transform(
        updates,
        state,
        params,
        factor,
        patience,
        rtol,
        atol,
        cooldown,
        accumulation_size,
        min_scale,
        min_change,
        value,
    ):
        each, old, where = tree.map, state, torch.where
        # numbers of values are compared halfway between two whole ones
        mean = each(lambda a, n: (a + (value - a) / (n + 1)).to(a.dtype), old.avg_value, old.count)
        full = each(lambda n, size: n + 1.5 > size, old.count, accumulation_size)
        bar = each(lambda b, r, a: sign * (1 - sign * r) * b - a, old.best_value, rtol, atol)
        better = each(lambda v, bar: sign * v < bar, mean, bar)
        # what is passed over after a reduction is no bad value, but may be the best one
        bad = each(lambda n, c, good: where(good | (c > 0), 0, n + 1), old.plateau_count, old.cooldown_count, better)
        hit = each(lambda n, most, full: full & (n + 0.5 > most), bad, patience, full)

        def reduced(s, factor, low, least, hit):
            smaller = maximum(s * factor, low)
            return where(hit & (s - smaller > least), smaller, s).to(s.dtype)

        scale = each(reduced, old.scale, factor, min_scale, min_change, hit)
        left = each(lambda c, most, hit: where(hit, most, (c - 1).clamp_min(0)), old.cooldown_count, cooldown, hit)
        new = ReduceOnPlateauState(
            scale=scale,
            best_value=each(lambda b, v, good, full: where(good & full, v, b), old.best_value, mean, better, full),
            plateau_count=each(
                lambda n, bad, hit, full: where(hit, 0, where(full, bad, n)), old.plateau_count, bad, hit, full
            ),
            cooldown_count=each(lambda c, left, full: where(full, left, c).to(c.dtype), old.cooldown_count, left, full),
            count=each(lambda n, full: where(full, 0, n + 1), old.count, full),
            avg_value=each(lambda v, full: where(full, 0, v), mean, full),
        )
        return each(lambda u, s: s * u, updates, scale), new

    return init, transform
