"""Schedules: hypers that are functions of the step.

A schedule is a named tuple of numbers or tensors that can be called with the step, so it is a pytree: it passes through
``vmap`` and ``compile`` like any hyper, and its own settings can be swept and differentiated. Write your own the same
way::

    class InverseSqrt(NamedTuple):
        init_value: float

        def __call__(self, step):
            return self.init_value * (step + 1) ** -0.5

Every length in steps is 1 by default, so that what is given as the step is then a position in [0, 1].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt.tree import is_schedule

__all__ = [
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "cosine_restarts_schedule",
    "cosine_schedule",
    "exponential_decay",
    "exponential_schedule",
    "flat_cosine_schedule",
    "join",
    "join_schedules",
    "linear_schedule",
    "polynomial_schedule",
    "power_schedule",
    "scaled_schedule",
    "sgdr_schedule",
    "warmup_cosine_decay_schedule",
]

Number = Any  # a number or a tensor


def _as_tensor(step: Number) -> Tensor:
    if isinstance(step, Tensor):
        return step if step.is_floating_point() else step.to(torch.float64)
    return torch.tensor(step, dtype=torch.float64)


def _position(step: Number, length: Number, begin: Number = 0.0) -> Tensor:
    """Return where a step stands in ``[begin, begin + length]``, from 0 to 1, and held there outside."""
    return ((_as_tensor(step) - begin) / length).clamp(0.0, 1.0)


def _check(who: str, **positive: Number) -> None:
    for name, value in positive.items():
        if isinstance(value, (float, int)) and not value > 0:
            raise ValueError(f"{who}: {name} must be positive, got {value!r}")


class Constant(NamedTuple):
    """See :func:`constant_schedule`."""

    value: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return self.value + 0.0 * _as_tensor(step)


class Power(NamedTuple):
    """See :func:`linear_schedule`, :func:`power_schedule`."""

    init_value: Number
    end_value: Number
    power: Number
    transition_steps: Number
    transition_begin: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        position = _position(step, self.transition_steps, self.transition_begin)
        return self.init_value + (self.end_value - self.init_value) * position**self.power


class Polynomial(NamedTuple):
    """See :func:`polynomial_schedule`."""

    init_value: Number
    end_value: Number
    power: Number
    transition_steps: Number
    transition_begin: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        left = 1 - _position(step, self.transition_steps, self.transition_begin)
        return self.end_value + (self.init_value - self.end_value) * left**self.power


class Cosine(NamedTuple):
    """See :func:`cosine_schedule`."""

    init_value: Number
    end_value: Number
    exponent: Number
    transition_steps: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        position = _position(step, self.transition_steps)
        left = 0.5 * (1 + torch.cos(math.pi * position))
        return self.end_value + (self.init_value - self.end_value) * left**self.exponent


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

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        elapsed = (_as_tensor(step) - self.transition_begin).clamp_min(0.0) / self.transition_steps
        return self.init_value * self.decay_rate**elapsed


class Geometric(NamedTuple):
    """See :func:`exponential_schedule`."""

    init_value: Number
    end_value: Number
    transition_steps: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return self.init_value * (self.end_value / self.init_value) ** _position(step, self.transition_steps)


class Join(NamedTuple):
    """See :func:`join`, :func:`join_schedules`."""

    schedules: tuple[Any, ...]
    starts: tuple[Number, ...]
    lengths: tuple[Number, ...]  # what one unit of a part's own step is

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        step = _as_tensor(step)
        value: Tensor | None = None
        for schedule, start, length in zip(self.schedules, self.starts, self.lengths, strict=True):
            part = schedule((step - start) / length)
            value = part if value is None else torch.where(step >= start, part, value)
        assert value is not None
        return value


class Scaled(NamedTuple):
    """See :func:`scaled_schedule`."""

    factor: Number
    schedule: Any

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return self.factor * self.schedule(step)


class CosineRestarts(NamedTuple):
    """See :func:`cosine_restarts_schedule`."""

    init_value: Number
    end_value: Number
    first_steps: Number
    multiplier: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        at = _as_tensor(step).clamp_min(0.0) / self.first_steps  # in lengths of the first cycle
        growth = self.multiplier + torch.zeros_like(at)
        even = growth == 1
        growth = torch.where(even, 2.0, growth)  # the series has another sum there
        begin = lambda n: torch.where(even, n, (growth**n - 1) / (growth - 1))
        cycle = torch.where(even, at, torch.log1p(at * (growth - 1)) / growth.log()).floor()
        cycle = cycle + (at >= begin(cycle + 1)).to(at.dtype) - (at < begin(cycle)).to(at.dtype)  # where log rounds
        position = (at - begin(cycle)) / torch.where(even, 1.0, growth**cycle)
        return self.end_value + (self.init_value - self.end_value) * 0.5 * (1 + torch.cos(math.pi * position))


def constant_schedule(value: Number) -> Constant:
    """Return the same value at every step.

    >>> constant_schedule(0.1)(5)
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

    >>> power_schedule(0.0, 1.0, 2.0)(0.5)
    tensor(0.2500, dtype=torch.float64)
    """
    _check("power_schedule", transition_steps=transition_steps)
    return Power(init_value, end_value, power, transition_steps, transition_begin)


def polynomial_schedule(
    init_value: Number, end_value: Number, power: Number, transition_steps: Number = 1, transition_begin: Number = 0
) -> Polynomial:
    """Go from ``init_value`` to ``end_value`` as a power of the time *left*, as in optax.

    ``end + (init - end)·(1 - s)^power``, with ``s`` as in :func:`linear_schedule`: a power above 1 begins fast.

    >>> polynomial_schedule(1.0, 0.0, 2.0, 10)(5)
    tensor(0.2500, dtype=torch.float64)
    """
    _check("polynomial_schedule", transition_steps=transition_steps)
    return Polynomial(init_value, end_value, power, transition_steps, transition_begin)


def cosine_schedule(init_value: Number, end_value: Number, transition_steps: Number = 1) -> Cosine:
    """Go from ``init_value`` to ``end_value`` along half a cosine, and stay there: fastai's ``SchedCos``.

    ``end + (init - end)·(1 + cos(π·s))/2`` with ``s = step/transition_steps``, held to [0, 1].

    >>> cosine_schedule(1.0, 0.0)(0.5)
    tensor(0.5000, dtype=torch.float64)
    """
    _check("cosine_schedule", transition_steps=transition_steps)
    return Cosine(init_value, end_value, 1.0, transition_steps)


def cosine_decay_schedule(
    init_value: Number, decay_steps: Number = 1, alpha: Number = 0.0, exponent: Number = 1.0
) -> CosineDecay:
    """Decay from ``init_value`` to ``alpha·init_value`` along half a cosine.

    ``init·((1 - alpha)·((1 + cos(π·s))/2)^exponent + alpha)``. Loshchilov & Hutter, "SGDR" (2017).

    >>> schedule = cosine_decay_schedule(0.1, decay_steps=10)
    >>> schedule(0), schedule(5)
    (tensor(0.1000, dtype=torch.float64), tensor(0.0500, dtype=torch.float64))
    """
    _check("cosine_decay_schedule", decay_steps=decay_steps)
    return CosineDecay(init_value, decay_steps, alpha, exponent)


def exponential_decay(
    init_value: Number, transition_steps: Number, decay_rate: Number, transition_begin: Number = 0
) -> Exponential:
    """Multiply by ``decay_rate`` every ``transition_steps``.

    ``init·decay_rate^((step - transition_begin)/transition_steps)``, and ``init`` before ``transition_begin``.

    >>> exponential_decay(0.1, 10, 0.5)(20)
    tensor(0.0250, dtype=torch.float64)
    """
    _check("exponential_decay", transition_steps=transition_steps, decay_rate=decay_rate)
    return Exponential(init_value, decay_rate, transition_steps, transition_begin)


def exponential_schedule(init_value: Number, end_value: Number, transition_steps: Number = 1) -> Geometric:
    """Go from ``init_value`` to ``end_value`` by a constant factor: fastai's ``SchedExp``, and the course of its LR
    finder.

    ``init·(end/init)^s`` with ``s = step/transition_steps``, held to [0, 1]. Both values are positive.

    >>> exponential_schedule(1.0, 0.01)(0.5)
    tensor(0.1000, dtype=torch.float64)
    """
    _check("exponential_schedule", transition_steps=transition_steps, init_value=init_value, end_value=end_value)
    return Geometric(init_value, end_value, transition_steps)


def _check_parts(who: str, schedules: Sequence[Any], numbers: Sequence[Number], what: str, count: int) -> None:
    if not schedules or len(numbers) != count:
        raise ValueError(f"{who}: {len(schedules)} schedules need {count} {what}, got {len(numbers)}")
    for i, schedule in enumerate(schedules):
        if not is_schedule(schedule):
            raise TypeError(f"{who}: part {i} is a {type(schedule).__name__}, expected a schedule")


def join(fractions: Sequence[Number], schedules: Sequence[Any], transition_steps: Number = 1) -> Join:
    """Run schedules one after the other, each for a fraction of the whole: fastai's ``combine_scheds``.

    Part ``i`` covers the positions from ``sum(fractions[:i])`` on, and sees its own position in [0, 1], so its parts
    are schedules of length 1. At a boundary the later part applies.

    Args:
        fractions: positive, adding up to 1.
        schedules: as many.
        transition_steps: steps of the whole.

    Raises:
        ValueError: the fractions are not positive, do not add up to 1, or are not as many as the schedules.

    >>> schedule = join([0.3, 0.7], [cosine_schedule(0.3, 1.0), cosine_schedule(1.0, 0.0)])
    >>> schedule(0.3)
    tensor(1., dtype=torch.float64)
    """
    _check_parts("join", schedules, fractions, "fractions", len(schedules))
    _check("join", transition_steps=transition_steps, **{f"fractions[{i}]": f for i, f in enumerate(fractions)})
    if not math.isclose(sum(fractions), 1.0, rel_tol=1e-9):
        raise ValueError(f"join: the fractions must add up to 1, got {sum(fractions)!r}")
    starts = tuple(sum(fractions[:i]) * transition_steps for i in range(len(fractions)))
    return Join(tuple(schedules), starts, tuple(fraction * transition_steps for fraction in fractions))


def join_schedules(schedules: Sequence[Any], boundaries: Sequence[Number]) -> Join:
    """Run schedules one after the other, changing at the given steps; each counts its steps from its own start.

    Args:
        schedules: the parts.
        boundaries: the step at which each part but the first begins, in ascending order.

    Raises:
        ValueError: there are not as many boundaries as changes, or they do not ascend.

    >>> schedule = join_schedules([linear_schedule(0.0, 1.0, 5), constant_schedule(1.0)], [5])
    >>> schedule(2), schedule(7)
    (tensor(0.4000, dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    _check_parts("join_schedules", schedules, boundaries, "boundaries", len(schedules) - 1)
    numbers = [boundary for boundary in boundaries if isinstance(boundary, (float, int))]
    if numbers != sorted(numbers):
        raise ValueError(f"join_schedules: the boundaries must ascend, got {list(boundaries)}")
    return Join(tuple(schedules), (0.0, *boundaries), (1.0,) * len(schedules))


def cosine_onecycle_schedule(
    transition_steps: Number,
    peak_value: Number,
    pct_start: float = 0.3,
    div_factor: Number = 25.0,
    final_div_factor: Number = 1e4,
) -> Join:
    """Rise to ``peak_value`` and fall again, along half cosines: the one-cycle policy.

    From ``peak/div_factor`` up to ``peak`` in ``pct_start·transition_steps`` steps, then down to
    ``peak/(div_factor·final_div_factor)``. Smith & Topin, "Super-Convergence" (2018). torch's ``OneCycleLR`` has its
    peak one step earlier (its phases end *at* their last step).

    >>> schedule = cosine_onecycle_schedule(10, peak_value=0.1)
    >>> schedule(3)
    tensor(0.1000, dtype=torch.float64)
    """
    _check("cosine_onecycle_schedule", transition_steps=transition_steps)
    start = peak_value / div_factor
    parts = [cosine_schedule(start, peak_value), cosine_schedule(peak_value, start / final_div_factor)]
    return join([pct_start, 1 - pct_start], parts, transition_steps)


def warmup_cosine_decay_schedule(
    init_value: Number,
    peak_value: Number,
    warmup_steps: Number,
    decay_steps: Number,
    end_value: Number = 0.0,
    exponent: Number = 1.0,
) -> Join:
    """Warm up linearly, then decay along half a cosine.

    From ``init_value`` to ``peak_value`` in ``warmup_steps``, then to ``end_value`` at step ``decay_steps``, which
    includes the warm-up, as in optax.

    Raises:
        ValueError: ``decay_steps`` is not greater than ``warmup_steps``.

    >>> schedule = warmup_cosine_decay_schedule(0.0, 0.1, 5, 25)
    >>> schedule(0), schedule(5)
    (tensor(0., dtype=torch.float64), tensor(0.1000, dtype=torch.float64))
    """
    none = isinstance(warmup_steps, (float, int)) and warmup_steps == 0
    _check(
        "warmup_cosine_decay_schedule",
        warmup_steps=1 if none else warmup_steps,
        decay_after_warmup=decay_steps - warmup_steps,
    )
    warmup = constant_schedule(peak_value) if none else linear_schedule(init_value, peak_value, warmup_steps)
    return join_schedules([warmup, Cosine(peak_value, end_value, exponent, decay_steps - warmup_steps)], [warmup_steps])


def flat_cosine_schedule(
    init_value: Number, transition_steps: Number = 1, alpha: Number = 0.0, pct_start: float = 0.75
) -> Scaled:
    """Stay at ``init_value`` for ``pct_start`` of the steps, then fall to ``alpha·init_value`` along half a cosine.

    fastai's ``fit_flat_cos``.

    >>> schedule = flat_cosine_schedule(1.0, 0.75)
    >>> schedule(0.5), schedule(1.0)
    (tensor(1., dtype=torch.float64), tensor(0., dtype=torch.float64))
    """
    parts = [constant_schedule(1.0), cosine_schedule(1.0, alpha)]
    return scaled_schedule(init_value, join([pct_start, 1 - pct_start], parts, transition_steps))


def cosine_restarts_schedule(
    init_value: Number, first_steps: Number = 1, multiplier: Number = 1, end_value: Number = 0.0
) -> CosineRestarts:
    """Fall from ``init_value`` to ``end_value`` along half a cosine and start again, for ever.

    The first cycle has ``first_steps``, each one after it ``multiplier`` times as many as the one before. torch's
    ``CosineAnnealingWarmRestarts``; Loshchilov & Hutter, "SGDR" (2017).

    >>> schedule = cosine_restarts_schedule(0.1, 10)
    >>> schedule(0), schedule(5), schedule(10)
    (tensor(0.1000, dtype=torch.float64), tensor(0.0500, dtype=torch.float64), tensor(0.1000, dtype=torch.float64))
    """
    _check("cosine_restarts_schedule", first_steps=first_steps)
    if isinstance(multiplier, (float, int)) and not multiplier >= 1:
        raise ValueError(f"cosine_restarts_schedule: multiplier must be at least 1, got {multiplier!r}")
    return CosineRestarts(init_value, end_value, first_steps, multiplier)


def sgdr_schedule(cosine_kwargs: Sequence[Mapping[str, Any]]) -> Join:
    """Run one :func:`warmup_cosine_decay_schedule` after the other, each with arguments of its own, as in optax.

    >>> schedule = sgdr_schedule([{"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 5, "decay_steps": 10}])
    >>> schedule(5)
    tensor(1., dtype=torch.float64)
    """
    cycles = [warmup_cosine_decay_schedule(**kwargs) for kwargs in cosine_kwargs]
    ends = [*itertools.accumulate(kwargs["decay_steps"] for kwargs in cosine_kwargs)]
    return join_schedules(cycles, ends[:-1])


def scaled_schedule(factor: Number, schedule: Any) -> Scaled:
    """Multiply a schedule: one course for all layers, of another height for each, or a height to sweep over.

    >>> scaled_schedule(0.5, linear_schedule(0.0, 1.0))(1.0)
    tensor(0.5000, dtype=torch.float64)
    """
    _check_parts("scaled_schedule", [schedule], [factor], "factor", 1)
    return Scaled(factor, schedule)


# A schedule may be a hyper of a param group, and so a part of a state_dict that torch.load(weights_only=True) reads.
torch.serialization.add_safe_globals(
    [Constant, Power, Polynomial, Cosine, CosineDecay, CosineRestarts, Exponential, Geometric, Join, Scaled]
)
