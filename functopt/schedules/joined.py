"""Schedules made of schedules: one after the other, scaled, multiplied; and those that go through given values."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt.schedules.basic import constant_schedule, cosine_schedule, linear_schedule
from functopt.schedules.common import Number, as_tensor, check_parts, check_positive

__all__ = [
    "Join",
    "PiecewiseConstant",
    "Product",
    "Scaled",
    "cosine_onecycle_schedule",
    "interpolate",
    "join",
    "join_schedules",
    "linear_onecycle_schedule",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "product_schedule",
    "scaled_schedule",
]


class Join(NamedTuple):
    """See :func:`join`, :func:`join_schedules`."""

    schedules: tuple[Any, ...]
    starts: tuple[Number, ...]
    lengths: tuple[Number, ...]  # what one unit of a part's own step is

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        step = as_tensor(step)
        value: Tensor | None = None
        for schedule, start, length in zip(self.schedules, self.starts, self.lengths, strict=True):
            part = schedule((step - start) / length)
            value = part if value is None else torch.where(step >= start, part, value)
        assert value is not None
        return value


class PiecewiseConstant(NamedTuple):
    """See :func:`piecewise_constant_schedule`."""

    init_value: Number
    boundaries: tuple[Number, ...]
    scales: tuple[Number, ...]

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        step = as_tensor(step)
        value = self.init_value + 0.0 * step
        for boundary, scale in zip(self.boundaries, self.scales, strict=True):
            value = torch.where(step >= boundary, value * scale, value)
        return value


class Scaled(NamedTuple):
    """See :func:`scaled_schedule`."""

    factor: Number
    schedule: Any

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return self.factor * self.schedule(step)


class Product(NamedTuple):
    """See :func:`product_schedule`."""

    schedules: tuple[Any, ...]

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        return functools.reduce(operator.mul, (schedule(step) for schedule in self.schedules))


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

    >>> join([0.3, 0.7], [cosine_schedule(0.3, 0.6), cosine_schedule(0.6, 0.2)], transition_steps=1000)(300)
    tensor(0.6000, dtype=torch.float64)
    """
    check_parts("join", schedules, fractions, "fractions", len(schedules))
    check_positive("join", transition_steps=transition_steps, **{f"fractions[{i}]": f for i, f in enumerate(fractions)})
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

    >>> join_schedules([linear_schedule(0.0, 1.0, 5), cosine_decay_schedule(1.0, 10)], [5])(10)
    tensor(0.5000, dtype=torch.float64)
    """
    check_parts("join_schedules", schedules, boundaries, "boundaries", len(schedules) - 1)
    numbers = [boundary for boundary in boundaries if isinstance(boundary, (float, int))]
    if numbers != sorted(numbers):
        raise ValueError(f"join_schedules: the boundaries must ascend, got {list(boundaries)}")
    return Join(tuple(schedules), (0.0, *boundaries), (1.0,) * len(schedules))


def scaled_schedule(factor: Number, schedule: Any) -> Scaled:
    """Multiply a schedule: one course for all layers, of another height for each, or a height to sweep over.

    With a schedule of your own it is torch's ``LambdaLR``.

    >>> scaled_schedule(0.1, linear_schedule(1.0, 0.0, 10))(5)
    tensor(0.0500, dtype=torch.float64)
    """
    check_parts("scaled_schedule", [schedule], [factor], "factor", 1)
    return Scaled(factor, schedule)


def product_schedule(*schedules: Any) -> Product:
    """Multiply schedules with each other: torch's ``ChainedScheduler``.

    There all but one of them are factors, which begin at 1 (``constant_lr(1.0, ...)``, ``linear_lr(1.0, ...)``).

    >>> product_schedule(linear_schedule(0.0, 1.0, 10), constant_schedule(0.5))(5)
    tensor(0.2500, dtype=torch.float64)
    """
    check_parts("product_schedule", schedules, (), "numbers", 0)
    return Product(schedules)


# Through given values


def piecewise_constant_schedule(
    init_value: Number, boundaries_and_scales: Mapping[Number, Number] | None = None
) -> PiecewiseConstant:
    """Multiply by a factor at each of some steps, and stay there until the next.

    The value is ``init_value`` times all scales whose boundary is at or before the step.

    Args:
        init_value: before the first boundary.
        boundaries_and_scales: factors, not negative, by the step from which they apply.

    Raises:
        ValueError: a scale is negative.

    >>> piecewise_constant_schedule(1.0, {100: 0.1, 200: 0.5})(200)
    tensor(0.0500, dtype=torch.float64)
    """
    boundaries, scales = _sorted("piecewise_constant_schedule", boundaries_and_scales)
    return PiecewiseConstant(init_value, boundaries, scales)


def piecewise_interpolate_schedule(
    interpolate_type: str, init_value: Number, boundaries_and_scales: Mapping[Number, Number] | None = None
) -> Join:
    """Go along straight lines or half cosines from one value to the next.

    The values are those that :func:`piecewise_constant_schedule` has from each boundary on.

    Args:
        interpolate_type: ``"linear"`` or ``"cosine"``.
        init_value: at step 0.
        boundaries_and_scales: factors, not negative, by the step at which they are reached.

    Raises:
        ValueError: a scale is negative, or the type has another value.

    >>> piecewise_interpolate_schedule("linear", 1.0, {10: 0.5, 20: 0.1})(15)
    tensor(0.2750, dtype=torch.float64)
    """
    boundaries, scales = _sorted("piecewise_interpolate_schedule", boundaries_and_scales)
    values = [*itertools.accumulate(scales, lambda value, scale: value * scale, initial=init_value)]
    return interpolate("piecewise_interpolate_schedule", interpolate_type, boundaries, values)


def _sorted(who: str, scales: Mapping[Number, Number] | None) -> tuple[tuple[Number, ...], tuple[Number, ...]]:
    pairs = sorted((scales or {}).items(), key=lambda pair: pair[0])
    for boundary, scale in pairs:
        if isinstance(scale, (float, int)) and not scale >= 0:
            raise ValueError(f"{who}: the scale at {boundary} must not be negative, got {scale!r}")
    return tuple(boundary for boundary, _ in pairs), tuple(scale for _, scale in pairs)


def interpolate(who: str, kind: str, ends: Sequence[Number], values: Sequence[Number]) -> Join:
    """Return a schedule through one value more than there are ends of pieces; the first is that at step 0."""
    shapes = {"linear": linear_schedule, "cosine": cosine_schedule}
    if kind not in shapes:
        raise ValueError(f"{who}: must be linear or cosine, got {kind!r}")
    parts, starts, begin = [], [], 0
    for end, first, last in zip(ends, values[:-1], values[1:], strict=True):
        if isinstance(begin, Tensor) or isinstance(end, Tensor) or end != begin:
            parts.append(shapes[kind](first, last, end - begin))
            starts.append(begin)
        begin = end
    parts.append(constant_schedule(values[-1]))
    return join_schedules(parts, [*starts, begin][1:])


def linear_onecycle_schedule(
    transition_steps: Number,
    peak_value: Number,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: Number = 25.0,
    final_div_factor: Number = 1e4,
) -> Join:
    """Rise to ``peak_value``, fall as far as it rose, and then almost to zero, along straight lines: one cycle.

    From ``peak/div_factor`` up to ``peak`` in ``pct_start·transition_steps`` steps, back to ``peak/div_factor`` at
    ``pct_final·transition_steps``, then down to ``peak/(div_factor·final_div_factor)``. Smith & Topin,
    "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates" (2018). If
    ``transition_steps`` is an integer, so are the other boundaries, rounded down, as in optax.

    >>> linear_onecycle_schedule(100, 1.0)(30)
    tensor(1., dtype=torch.float64)
    """
    check_positive("linear_onecycle_schedule", transition_steps=transition_steps)
    ends = [_boundary(pct, transition_steps) for pct in (pct_start, pct_final)]
    start = peak_value / div_factor
    values = [start, peak_value, start, start / final_div_factor]
    return interpolate("linear_onecycle_schedule", "linear", [*ends, transition_steps], values)


def cosine_onecycle_schedule(
    transition_steps: Number,
    peak_value: Number,
    pct_start: float = 0.3,
    div_factor: Number = 25.0,
    final_div_factor: Number = 1e4,
) -> Join:
    """Rise to ``peak_value`` and fall again, along half cosines: the one-cycle policy.

    From ``peak/div_factor`` up to ``peak`` in ``pct_start·transition_steps`` steps (rounded down if
    ``transition_steps`` is an integer, as in optax), then down to ``peak/(div_factor·final_div_factor)``. Smith &
    Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates" (2018). torch's
    ``OneCycleLR``, :func:`one_cycle_lr`, has its peak one step earlier.

    >>> cosine_onecycle_schedule(100, 1.0)(65)
    tensor(0.5000, dtype=torch.float64)
    """
    check_positive("cosine_onecycle_schedule", transition_steps=transition_steps)
    ends, start = [_boundary(pct_start, transition_steps), transition_steps], peak_value / div_factor
    return interpolate("cosine_onecycle_schedule", "cosine", ends, [start, peak_value, start / final_div_factor])


def _boundary(fraction: Number, steps: Number) -> Number:
    return (
        math.floor(fraction * steps)
        if isinstance(steps, int) and isinstance(fraction, (float, int))
        else fraction * steps
    )


torch.serialization.add_safe_globals([Join, PiecewiseConstant, Product, Scaled])
