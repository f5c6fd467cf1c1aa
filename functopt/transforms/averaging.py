"""Averages of the parameters themselves, kept beside the training."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from functopt import tree
from functopt.base import apply_updates, link, state_class
from functopt.ema import Ema
from functopt.numerics import accumulator_dtype

__all__ = ["AverageParamsState", "SwaParamsState", "average_params", "swa_params"]


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


@state_class
class SwaParamsState(NamedTuple):
    """The number of steps, and the mean of the parameters after some of them, in float32 at least."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    average: Ema  # its weight is the number of what is in it


@link(scope="element")
def swa_params(swa_start=0, swa_freq=1) -> Any:
    """Keep the plain mean of the parameters from some step on: stochastic weight averaging. Updates pass through.

    The parameters after the steps ``swa_start + swa_freq``, ``swa_start + 2·swa_freq``, ... are in it, as in
    ``torch.optim.swa_utils.AveragedModel`` when ``update_parameters`` is called there. Izmailov et al., "Averaging
    Weights Leads to Wider Optima and Better Generalization" (2018). It stands last in a chain, as
    :func:`average_params` does; :func:`averaged_params` reads it, :func:`swalr` is the learning rate to go with it, and
    :func:`update_bn` gives batch normalisation the statistics of the averaged model.

    Args:
        swa_start: steps before the averaging begins.
        swa_freq: every how many steps the parameters are taken.

    >>> tx = chain(sgd(swalr(0.1, 0.05)), swa_params(swa_start=100, swa_freq=10))
    >>> averaged_params(tx.init(params), params)  # nothing in it yet
    {'w': tensor([ 1., -2.])}
    """

    def init(params) -> SwaParamsState:
        count = tree.counter(params)
        return SwaParamsState(count, Ema.zeros(params, swa_start, swa_freq, accumulate=True))

    def transform(updates, state, params, swa_start, swa_freq):
        count = state.count + 1
        taken = lambda w, start, freq: ((count > start) & ((count - start) % freq == 0)).to(w.dtype)
        coefficient = tree.map(taken, state.average.weight, swa_start, swa_freq)
        average = state.average.update(apply_updates(params, updates), 1.0, coefficient)
        return updates, SwaParamsState(count, average)

    return init, transform
