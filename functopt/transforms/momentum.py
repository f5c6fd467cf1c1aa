"""Links that average over the steps: trace, ema."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema

__all__ = ["EmaState", "TraceState", "ema", "trace"]


@state_class
class TraceState(NamedTuple):
    """The momentum buffer."""

    trace: Ema  # undamped: total is the buffer


@link(scope="element")
def trace(momentum=0.9, dampening=0.0, *, nesterov: bool = False, accumulator_dtype: torch.dtype | None = None) -> Any:
    """Accumulate a trace of past updates: classic (heavy-ball) momentum.

    ``m ← momentum·m + (1 - dampening)·u``, and the update is ``m``, or ``u + momentum·m`` with Nesterov's look-ahead.
    The first update enters whole, whatever the dampening, as in ``torch.optim.SGD``. For an average damped from the
    first step on, use ``ema(decay, debias=False)``. Polyak (1964); Sutskever et al., "On the importance of
    initialization and momentum in deep learning" (2013).

    Args:
        momentum: what is kept of the trace.
        dampening: what is held back of every update after the first.
        nesterov: look ahead.
        accumulator_dtype: the dtype in which the trace is kept; by default that of the parameters.

    >>> tx = trace(0.9)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.5000, 1.0000])}
    """

    def init(params) -> TraceState:
        return TraceState(Ema.zeros(params, momentum, dampening, dtype=accumulator_dtype))

    def transform(updates, state, params, momentum, dampening):
        # undamped it is a number, so that eager steps have less to do
        held = lambda w, d: 1.0 if isinstance(d, (float, int)) and d == 0 else 1 - d * (w != 0).to(w.dtype)
        coefficient = tree.map(held, state.trace.weight, dampening)
        new = state.trace.update(updates, momentum, coefficient)
        ahead = lambda u, t, m: u + m * t
        return tree.map(ahead, updates, new.total, momentum) if nesterov else new.total, TraceState(new)

    return init, transform


@state_class
class EmaState(NamedTuple):
    """The moving average of the updates."""

    ema: Ema


@link(scope="element")
def ema(decay=0.9, *, debias: bool = True, accumulator_dtype: torch.dtype | None = None) -> Any:
    """Replace the updates by their exponential moving average: ``m ← decay·m + (1 - decay)·u``.

    Args:
        decay: what is kept of the past.
        debias: divide by the sum of the weights, ``1 - decay^t`` for a constant decay, so that the first updates are
            not too small. Kingma & Ba, "Adam" (2015).
        accumulator_dtype: the dtype in which the average is kept; by default that of the parameters.

    >>> tx = ema(0.9, debias=False)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.0500, 0.1000])}
    """

    def init(params) -> EmaState:
        return EmaState(Ema.zeros(params, decay, dtype=accumulator_dtype))

    def transform(updates, state, params, decay):
        new = state.ema.update(updates, decay)
        return (new.mean if debias else new.total), EmaState(new)

    return init, transform
