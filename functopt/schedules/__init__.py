"""Schedules: hypers that are functions of the step.

A schedule is a named tuple of numbers or tensors that can be called with the step, so it is a pytree: it passes through
``vmap`` and ``compile`` like any hyper, and its own settings can be swept and differentiated. Write your own the same
way::

    class InverseTime(NamedTuple):
        init_value: float

        def __call__(self, step):
            return self.init_value / (step + 1)

Every length in steps is 1 by default, so that what is given as the step is then a position in [0, 1].
"""

from functopt.schedules.basic import (
    Constant,
    Cosine,
    CosineDecay,
    Exponential,
    Geometric,
    InverseSqrt,
    Polynomial,
    Power,
    Staircase,
    constant_schedule,
    cosine_decay_schedule,
    cosine_schedule,
    exponential_decay,
    exponential_schedule,
    linear_schedule,
    polynomial_schedule,
    power_schedule,
)
from functopt.schedules.joined import (
    Join,
    PiecewiseConstant,
    Product,
    Scaled,
    cosine_onecycle_schedule,
    join,
    join_schedules,
    linear_onecycle_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    product_schedule,
    scaled_schedule,
)
from functopt.schedules.periodic import CosineRestarts, CosineWave, Cyclic, cosine_restarts_schedule, sgdr_schedule
from functopt.schedules.torch_forms import (
    constant_lr,
    cosine_annealing_lr,
    cosine_annealing_warm_restarts,
    cyclic_lr,
    exponential_lr,
    linear_lr,
    multi_step_lr,
    one_cycle_lr,
    one_cycle_momentum,
    polynomial_lr,
    step_lr,
    swalr,
)
from functopt.schedules.warmup import (
    flat_cosine_schedule,
    inverse_sqrt_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule,
)

__all__ = [
    "Constant",
    "Cosine",
    "CosineDecay",
    "CosineRestarts",
    "CosineWave",
    "Cyclic",
    "Exponential",
    "Geometric",
    "InverseSqrt",
    "Join",
    "PiecewiseConstant",
    "Polynomial",
    "Power",
    "Product",
    "Scaled",
    "Staircase",
    "constant_lr",
    "constant_schedule",
    "cosine_annealing_lr",
    "cosine_annealing_warm_restarts",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "cosine_restarts_schedule",
    "cosine_schedule",
    "cyclic_lr",
    "exponential_decay",
    "exponential_lr",
    "exponential_schedule",
    "flat_cosine_schedule",
    "inverse_sqrt_schedule",
    "join",
    "join_schedules",
    "linear_lr",
    "linear_onecycle_schedule",
    "linear_schedule",
    "multi_step_lr",
    "one_cycle_lr",
    "one_cycle_momentum",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polynomial_lr",
    "polynomial_schedule",
    "power_schedule",
    "product_schedule",
    "scaled_schedule",
    "sgdr_schedule",
    "step_lr",
    "swalr",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "warmup_stable_decay_schedule",
]
