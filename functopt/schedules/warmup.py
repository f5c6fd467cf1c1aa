"""The usual schedules with a warm-up before, or a flat part."""

from __future__ import annotations

from typing import Any

from functopt.schedules.basic import (
    Cosine,
    InverseSqrt,
    Power,
    constant_schedule,
    cosine_schedule,
    exponential_decay,
    linear_schedule,
    power_schedule,
)
from functopt.schedules.common import Number, check_positive
from functopt.schedules.joined import Join, Scaled, join, join_schedules, scaled_schedule

__all__ = [
    "flat_cosine_schedule",
    "inverse_sqrt_schedule",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "warmup_stable_decay_schedule",
]


def warmup_constant_schedule(init_value: Number, peak_value: Number, warmup_steps: Number) -> Power:
    """Warm up linearly to ``peak_value``, and stay there: :func:`linear_schedule` under the name it has in optax.

    >>> warmup_constant_schedule(0.0, 0.1, 10)(50)
    tensor(0.1000, dtype=torch.float64)
    """
    check_positive("warmup_constant_schedule", warmup_steps=warmup_steps)
    return linear_schedule(init_value, peak_value, warmup_steps)


def _warm(who: str, init_value: Number, peak_value: Number, warmup_steps: Number, schedule: Any) -> Join:
    none = isinstance(warmup_steps, (float, int)) and warmup_steps == 0
    check_positive(who, warmup_steps=1 if none else warmup_steps)
    warmup = constant_schedule(peak_value) if none else linear_schedule(init_value, peak_value, warmup_steps)
    return join_schedules([warmup, schedule], [warmup_steps])


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

    >>> warmup_cosine_decay_schedule(0.0, 1.0, 10, 100)(55)
    tensor(0.5000, dtype=torch.float64)
    """
    check_positive("warmup_cosine_decay_schedule", decay_after_warmup=decay_steps - warmup_steps)
    decay = Cosine(peak_value, end_value, exponent, decay_steps - warmup_steps)
    return _warm("warmup_cosine_decay_schedule", init_value, peak_value, warmup_steps, decay)


def warmup_exponential_decay_schedule(
    init_value: Number,
    peak_value: Number,
    warmup_steps: Number,
    transition_steps: Number,
    decay_rate: Number,
    transition_begin: Number = 0,
    *,
    staircase: bool = False,
    end_value: Number = None,
) -> Join:
    """Warm up linearly, then decay exponentially: :func:`exponential_decay` from ``peak_value`` on, with its arguments.

    Its steps, ``transition_begin`` too, count from the end of the warm-up.

    >>> warmup_exponential_decay_schedule(0.0, 1.0, 10, 20, 0.5)(30)
    tensor(0.5000, dtype=torch.float64)
    """
    decay = exponential_decay(
        peak_value, transition_steps, decay_rate, transition_begin, staircase=staircase, end_value=end_value
    )
    return _warm("warmup_exponential_decay_schedule", init_value, peak_value, warmup_steps, decay)


def warmup_stable_decay_schedule(
    peak_value: Number,
    warmup_steps: Number,
    stable_steps: Number,
    decay_steps: Number,
    init_value: Number = 0.0,
    end_value: Number = 0.0,
    *,
    decay: str = "linear",
) -> Join:
    """Warm up linearly, stay, and fall at the end: the training can be prolonged from any point before the fall.

    Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies" (2024).

    Args:
        peak_value: from the end of the warm-up on.
        warmup_steps: steps of the warm-up.
        stable_steps: steps at ``peak_value``.
        decay_steps: steps of the fall.
        init_value: at step 0.
        end_value: at the end, and from then on.
        decay: the shape of the fall, with ``s`` from 0 to 1: ``"linear"``; ``"cosine"``; ``"sqrt"``, ``1 - √s``, which
            Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (2024) prefer.

    Raises:
        ValueError: ``decay`` has another value, or a number of steps is not positive.

    >>> warmup_stable_decay_schedule(1.0, 10, 80, 10)(95)
    tensor(0.5000, dtype=torch.float64)
    """
    who = "warmup_stable_decay_schedule"
    powers = {"linear": 1.0, "sqrt": 0.5}
    if decay not in (*powers, "cosine"):
        raise ValueError(f"{who}: decay must be 'linear', 'cosine' or 'sqrt', got {decay!r}")
    check_positive(who, stable_steps=stable_steps, decay_steps=decay_steps)
    if decay == "cosine":
        fall: Any = cosine_schedule(peak_value, end_value, decay_steps)
    else:
        fall = power_schedule(peak_value, end_value, powers[decay], decay_steps)
    stable = join_schedules([constant_schedule(peak_value), fall], [stable_steps])
    return _warm(who, init_value, peak_value, warmup_steps, stable)


def inverse_sqrt_schedule(
    peak_value: Number, warmup_steps: Number, init_value: Number = 0.0, timescale: Number = None
) -> Join:
    """Warm up linearly, then fall with the inverse square root of the step.

    ``peak·step/warmup_steps``, then ``peak·√(warmup_steps/step)``. With ``peak = 1/√(d·warmup_steps)`` it is the
    schedule of Vaswani et al., "Attention Is All You Need" (2017), known as Noam's.

    Args:
        peak_value: at the end of the warm-up.
        warmup_steps: steps of the warm-up.
        init_value: at step 0.
        timescale: how slowly it falls: ``peak/√(1 + (step - warmup_steps)/timescale)``; by default ``warmup_steps``.

    >>> inverse_sqrt_schedule(1.0, 100)(400)
    tensor(0.5000, dtype=torch.float64)
    """
    timescale = warmup_steps if timescale is None else timescale
    check_positive("inverse_sqrt_schedule", timescale=timescale)
    return _warm("inverse_sqrt_schedule", init_value, peak_value, warmup_steps, InverseSqrt(peak_value, timescale))


def flat_cosine_schedule(
    init_value: Number, transition_steps: Number = 1, alpha: Number = 0.0, pct_start: float = 0.75
) -> Scaled:
    """Stay at ``init_value`` for ``pct_start`` of the steps, then fall to ``alpha·init_value`` along half a cosine.

    fastai's ``fit_flat_cos``.

    >>> flat_cosine_schedule(1.0, 80)(70)
    tensor(0.5000, dtype=torch.float64)
    """
    parts = [constant_schedule(1.0), cosine_schedule(1.0, alpha)]
    return scaled_schedule(init_value, join([pct_start, 1 - pct_start], parts, transition_steps))
