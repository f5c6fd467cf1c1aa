"""Averages of the parameters themselves, kept beside the training."""

from __future__ import annotations

from typing import Any, NamedTuple

from functopt import tree
from functopt.base import apply_updates, link, state_class
from functopt.ema import Ema
from functopt.numerics import accumulator_dtype

__all__ = ["AverageParamsState", "average_params"]


@state_class
class AverageParamsState(NamedTuple):
    """The moving average of the parameters, in float32 at least."""

    average: Ema


_STARTS = ("zero", "first", "initial")


@link(scope="element")
def average_params(decay=0.999, *, start: str = "zero") -> Any:
    """Keep an exponential moving average of the parameters; the updates pass through bit for bit.

    ``a ← decay·a + (1 - decay)·p`` with the *new* ``p``, in the dtype in which it is written. So it stands last in a
    chain: updates that a later link changed would not be those of the average. The average is read from the state::

        tx = chain(adamw(1e-3), average_params(0.999))
        ...
        averaged = tree.get(state, "average").mean

    Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992).

    Args:
        decay: what is kept of the past.
        start: where the average begins. ``"zero"``: nowhere; the mean is divided by the sum of its weights, so that it
            is an average of what was seen and of nothing else. ``"first"``: at the parameters after the first step, as
            ``torch.optim.swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn(decay)`` called after every step.
            ``"initial"``: at the parameters before the first step, as timm's ``ModelEma``.

    Raises:
        ValueError: ``start`` has another value.

    >>> tx = chain(sgd(lr=0.1), average_params(0.9))
    >>> _, state = tx.update(grads, tx.init(params), params)
    >>> tree.get(state, "average").mean
    {'w': tensor([ 0.9500, -2.1000])}
    """
    if start not in _STARTS:
        raise ValueError(f"average_params: start must be one of {_STARTS}, got {start!r}")

    def init(params) -> AverageParamsState:
        if start != "initial":
            return AverageParamsState(Ema.zeros(params, decay, accumulate=True))
        copy = tree.map(lambda p: p.to(accumulator_dtype(p.dtype), copy=True), params)
        return AverageParamsState(Ema(copy, tree.scalars(params, decay, value=1.0)))

    def transform(updates, state, params, decay):
        if start == "first":
            decay = tree.map(lambda w, d: d * (w != 0).to(w.dtype), state.average.weight, decay)
        return updates, AverageParamsState(state.average.update(apply_updates(params, updates), decay))

    return init, transform
