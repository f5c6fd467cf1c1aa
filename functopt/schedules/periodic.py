"""Schedules that come again: restarts, waves and triangles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt.schedules.common import Number, as_tensor, check_positive
from functopt.schedules.joined import Join, join_schedules
from functopt.schedules.warmup import warmup_cosine_decay_schedule

__all__ = ["CosineRestarts", "CosineWave", "Cyclic", "cosine_restarts_schedule", "sgdr_schedule"]


class CosineRestarts(NamedTuple):
    """See :func:`cosine_restarts_schedule`."""

    init_value: Number
    end_value: Number
    first_steps: Number
    multiplier: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        at = as_tensor(step).clamp_min(0.0) / self.first_steps  # in lengths of the first cycle
        growth = self.multiplier + torch.zeros_like(at)
        even = growth == 1
        growth = torch.where(even, 2.0, growth)  # the series has another sum there
        begin = lambda n: torch.where(even, n, (growth**n - 1) / (growth - 1))
        cycle = torch.where(even, at, torch.log1p(at * (growth - 1)) / growth.log()).floor()
        cycle = cycle + (at >= begin(cycle + 1)).to(at.dtype) - (at < begin(cycle)).to(at.dtype)  # where log rounds
        position = (at - begin(cycle)) / torch.where(even, 1.0, growth**cycle)
        return self.end_value + (self.init_value - self.end_value) * 0.5 * (1 + torch.cos(math.pi * position))


class CosineWave(NamedTuple):
    """See :func:`cosine_annealing_lr`."""

    init_value: Number
    end_value: Number
    half_period: Number

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        left = 0.5 * (1 + torch.cos(math.pi * as_tensor(step) / self.half_period))
        return self.end_value + (self.init_value - self.end_value) * left


class Cyclic(NamedTuple):
    """See :func:`cyclic_lr`."""

    base_value: Number
    max_value: Number
    steps_up: Number
    steps_down: Number
    cycle_factor: Number  # of the height, with every cycle
    step_factor: Number  # with every step

    def __call__(self, step: Number) -> Tensor:
        """Return the value at a step."""
        at = as_tensor(step)
        length = self.steps_up + self.steps_down
        cycle = (at / length).floor()
        inside = at - cycle * length
        height = torch.where(inside <= self.steps_up, inside / self.steps_up, (length - inside) / self.steps_down)
        height = height * self.cycle_factor**cycle * self.step_factor**at
        return self.base_value + (self.max_value - self.base_value) * height


def cosine_restarts_schedule(
    init_value: Number, first_steps: Number = 1, multiplier: Number = 1, end_value: Number = 0.0
) -> CosineRestarts:
    """Fall from ``init_value`` to ``end_value`` along half a cosine and start again, for ever.

    The first cycle has ``first_steps``, each one after it ``multiplier`` times as many as the one before. torch's
    ``CosineAnnealingWarmRestarts``; Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017).

    >>> cosine_restarts_schedule(1.0, 10, 2)(20)  # in the middle of the second cycle
    tensor(0.5000, dtype=torch.float64)
    """
    check_positive("cosine_restarts_schedule", first_steps=first_steps)
    if isinstance(multiplier, (float, int)) and not multiplier >= 1:
        raise ValueError(f"cosine_restarts_schedule: multiplier must be at least 1, got {multiplier!r}")
    return CosineRestarts(init_value, end_value, first_steps, multiplier)


def sgdr_schedule(cosine_kwargs: Sequence[Mapping[str, Any]]) -> Join:
    """Run one :func:`warmup_cosine_decay_schedule` after the other, each with arguments of its own, as in optax.

    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017).

    >>> cycle = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 9}
    >>> sgdr_schedule([cycle, {**cycle, "peak_value": 0.5}])(11)
    tensor(0.5000, dtype=torch.float64)
    """
    cycles = [warmup_cosine_decay_schedule(**kwargs) for kwargs in cosine_kwargs]
    ends = [*itertools.accumulate(kwargs["decay_steps"] for kwargs in cosine_kwargs)]
    return join_schedules(cycles, ends[:-1])


torch.serialization.add_safe_globals([CosineRestarts, CosineWave, Cyclic])
