"""What schedules share: where a step stands, powers that are safe to differentiate, checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from functopt.tree import is_schedule

__all__ = ["Number", "as_tensor", "check_parts", "check_positive", "position", "power_of"]

Number = Any  # a number or a tensor


def as_tensor(step: Number) -> Tensor:
    """Return a step as a floating-point tensor."""
    if isinstance(step, Tensor):
        return step if step.is_floating_point() else step.to(torch.float64)
    return torch.tensor(step, dtype=torch.float64)


def position(step: Number, length: Number, begin: Number = 0.0) -> Tensor:
    """Return where a step stands in ``[begin, begin + length]``, from 0 to 1, and held there outside."""
    return ((as_tensor(step) - begin) / length).clamp(0.0, 1.0)


def power_of(base: Tensor, power: Number) -> Tensor:
    """Return ``base**power`` for ``base >= 0``, with a derivative of 0 at 0, where that of a root is infinite."""
    inside = base > 0
    return torch.where(inside, torch.where(inside, base, 1.0) ** power, base.detach() ** power)


def check_positive(who: str, **positive: Number) -> None:
    """Check plain numbers; tensors pass.

    Raises:
        ValueError: one is not positive.
    """
    for name, value in positive.items():
        if isinstance(value, (float, int)) and not value > 0:
            raise ValueError(f"{who}: {name} must be positive, got {value!r}")


def check_parts(who: str, schedules: Sequence[Any], numbers: Sequence[Number], what: str, count: int) -> None:
    """Check that the parts are schedules, and that there are as many numbers as they need.

    Raises:
        ValueError: there are no parts, or not as many numbers.
        TypeError: a part is not a schedule.
    """
    if not schedules or len(numbers) != count:
        raise ValueError(f"{who}: {len(schedules)} schedules need {count} {what}, got {len(numbers)}")
    for i, schedule in enumerate(schedules):
        if not is_schedule(schedule):
            raise TypeError(f"{who}: part {i} is a {type(schedule).__name__}, expected a schedule")
