"""Schedules of one piece: a constant, powers, cosines, exponentials, an inverse square root."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt.schedules.common import Number, as_tensor, check_positive, position, power_of

__all__ = [
    "Constant",
    "Cosine",
    "CosineDecay",
    "Exponential",
    "Geometric",
    "InverseSqrt",
    "Polynomial",
    "Power",
    "Staircase",
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_schedule",
    "exponential_decay",
    "exponential_schedule",
    "linear_schedule",
    "polynomial_schedule",
    "power_schedule",
]


class Constant(NamedTuple):
    """See :func:`constant_schedule`."""

    value: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return self.value + 0.0 * as_tensor(step)


class Power(NamedTuple):
    """See :func:`linear_schedule`, :func:`power_schedule`."""

    init_value: Number
    end_value: Number
    power: Number
    transition_steps: Number
    transition_begin: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        at = position(step, self.transition_steps, self.transition_begin)
        return self.init_value + (self.end_value - self.init_value) * power_of(at, self.power)


class Polynomial(NamedTuple):
    """See :func:`polynomial_schedule`."""

    init_value: Number
    end_value: Number
    power: Number
    transition_steps: Number
    transition_begin: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        left = 1 - position(step, self.transition_steps, self.transition_begin)
        return self.end_value + (self.init_value - self.end_value) * power_of(left, self.power)


class Cosine(NamedTuple):
    """See :func:`cosine_schedule`."""

    init_value: Number
    end_value: Number
    exponent: Number
    transition_steps: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        left = 0.5 * (1 + torch.cos(math.pi * position(step, self.transition_steps)))
        return self.end_value + (self.init_value - self.end_value) * power_of(left, self.exponent)


class CosineDecay(NamedTuple):
    """See :func:`cosine_decay_schedule`."""

    init_value: Number
    decay_steps: Number
    alpha: Number
    exponent: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return Cosine(self.init_value, self.alpha * self.init_value, self.exponent, self.decay_steps)(step)


class Exponential(NamedTuple):
    """See :func:`exponential_decay`."""

    init_value: Number
    decay_rate: Number
    transition_steps: Number
    transition_begin: Number
    end_value: Any = ()  # () if there is no bound

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        elapsed = (as_tensor(step) - self.transition_begin).clamp_min(0.0) / self.transition_steps
        value = self.init_value * self.decay_rate**elapsed
        if isinstance(self.end_value, tuple):
            return value
        end = self.end_value + torch.zeros_like(value)
        falls = torch.as_tensor(self.decay_rate < 1, device=value.device)
        return torch.where(falls, torch.maximum(value, end), torch.minimum(value, end))


class Staircase(NamedTuple):
    """A schedule that is looked up only every few steps: see :func:`exponential_decay`."""

    schedule: Any
    length: Number  # of a stair
    begin: Number  # of the first stair

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return self.schedule(self.begin + ((as_tensor(step) - self.begin) / self.length).floor() * self.length)


class Geometric(NamedTuple):
    """See :func:`exponential_schedule`."""

    init_value: Number
    end_value: Number
    transition_steps: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return self.init_value * (self.end_value / self.init_value) ** position(step, self.transition_steps)


class InverseSqrt(NamedTuple):
    """``init_value / √(1 + step/timescale)``; see :func:`inverse_sqrt_schedule`."""

    init_value: Number
    timescale: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return self.init_value * (1 + as_tensor(step).clamp_min(0.0) / self.timescale) ** -0.5


def constant_schedule(value: Number) -> Constant:
    """Return the same value at every step.

    >>> constant_schedule(0.1)(1000)
    tensor(0.1000, dtype=torch.float64)
    """
    return Constant(value)


def linear_schedule(
    init_value: Number, end_value: Number, transition_steps: Number = 1, transition_begin: Number = 0
) -> Power:
    """Go from ``init_value`` to ``end_value`` in a straight line, and stay there.

    ``init + (end - init)·s`` with ``s = (step - transition_begin)/transition_steps``, held to [0, 1].

    >>> linear_schedule(1.0, 0.0, 10)(4)
    tensor(0.6000, dtype=torch.float64)
    """
    return power_schedule(init_value, end_value, 1.0, transition_steps, transition_begin)


def power_schedule(
    init_value: Number, end_value: Number, power: Number, transition_steps: Number = 1, transition_begin: Number = 0
) -> Power:
    """Go from ``init_value`` to ``end_value`` as a power of the time elapsed: fastai's ``SchedPoly``.

    ``init + (end - init)·s^power``, with ``s`` as in :func:`linear_schedule`: a power above 1 begins slowly.

    >>> power_schedule(0.0, 1.0, 2.0, 10)(5)
    tensor(0.2500, dtype=torch.float64)
    """
    check_positive("power_schedule", transition_steps=transition_steps)
    return Power(init_value, end_value, power, transition_steps, transition_begin)


def polynomial_schedule(
    init_value: Number, end_value: Number, power: Number, transition_steps: Number = 1, transition_begin: Number = 0
) -> Polynomial:
    """Go from ``init_value`` to ``end_value`` as a power of the time *left*, as in optax.

    ``end + (init - end)·(1 - s)^power``, with ``s`` as in :func:`linear_schedule`: a power above 1 begins fast.

    >>> polynomial_schedule(0.0, 1.0, 2.0, 10)(5)
    tensor(0.7500, dtype=torch.float64)
    """
    check_positive("polynomial_schedule", transition_steps=transition_steps)
    return Polynomial(init_value, end_value, power, transition_steps, transition_begin)


def cosine_schedule(init_value: Number, end_value: Number, transition_steps: Number = 1) -> Cosine:
    """Go from ``init_value`` to ``end_value`` along half a cosine, and stay there: fastai's ``SchedCos``.

    ``end + (init - end)·(1 + cos(π·s))/2`` with ``s = step/transition_steps``, held to [0, 1].

    >>> cosine_schedule(1.0, 0.0, 9)(3)
    tensor(0.7500, dtype=torch.float64)
    """
    check_positive("cosine_schedule", transition_steps=transition_steps)
    return Cosine(init_value, end_value, 1.0, transition_steps)


def cosine_decay_schedule(
    init_value: Number, decay_steps: Number = 1, alpha: Number = 0.0, exponent: Number = 1.0
) -> CosineDecay:
    """Decay from ``init_value`` to ``alpha·init_value`` along half a cosine.

    ``init·((1 - alpha)·((1 + cos(π·s))/2)^exponent + alpha)``. Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent
    with Warm Restarts" (2017).

    >>> cosine_decay_schedule(1.0, 9, alpha=0.2)(9)
    tensor(0.2000, dtype=torch.float64)
    """
    check_positive("cosine_decay_schedule", decay_steps=decay_steps)
    return CosineDecay(init_value, decay_steps, alpha, exponent)


def exponential_decay(
    init_value: Number,
    transition_steps: Number,
    decay_rate: Number,
    transition_begin: Number = 0,
    *,
    staircase: bool = False,
    end_value: Number = None,
) -> Exponential | Staircase:
    """Multiply by ``decay_rate`` every ``transition_steps``.

    ``init·decay_rate^((step - transition_begin)/transition_steps)``, and ``init`` before ``transition_begin``.

    Args:
        init_value: at the start.
        transition_steps: steps in which it is multiplied by ``decay_rate`` once.
        decay_rate: positive.
        transition_begin: steps before the decay begins.
        staircase: multiply at the end of every ``transition_steps``, not a little at each step.
        end_value: never go below it, if the rate is less than 1, else never above.

    >>> exponential_decay(1.0, 10, 0.5, staircase=True)(29)
    tensor(0.2500, dtype=torch.float64)
    """
    check_positive("exponential_decay", transition_steps=transition_steps, decay_rate=decay_rate)
    bound = () if end_value is None else end_value
    decay = Exponential(init_value, decay_rate, transition_steps, transition_begin, bound)
    return Staircase(decay, transition_steps, transition_begin) if staircase else decay


def exponential_schedule(init_value: Number, end_value: Number, transition_steps: Number = 1) -> Geometric:
    """Go from ``init_value`` to ``end_value`` by a constant factor: fastai's ``SchedExp``, and its LR finder's course.

    ``init·(end/init)^s`` with ``s = step/transition_steps``, held to [0, 1]. Both values are positive.

    >>> exponential_schedule(0.01, 1.0, 10)(5)
    tensor(0.1000, dtype=torch.float64)
    """
    check_positive(
        "exponential_schedule", transition_steps=transition_steps, init_value=init_value, end_value=end_value
    )
    return Geometric(init_value, end_value, transition_steps)


torch.serialization.add_safe_globals(
    [Constant, Cosine, CosineDecay, Exponential, Geometric, InverseSqrt, Polynomial, Power, Staircase]
)
