"""The shapes of ``torch.optim.lr_scheduler``, under torch's names and with its arguments and defaults.

A learning rate stands where torch has the optimizer. What torch does to momentum beside is a schedule of its own: a
scheduler here is a hyper like any other.

======================================  ================================================================================
``LambdaLR``, ``MultiplicativeLR``      a NamedTuple with ``__call__(step)``, see :mod:`functopt.schedules`
``SequentialLR``                        :func:`join_schedules`
``ChainedScheduler``                    :func:`product_schedule`
``ReduceLROnPlateau``                   depends on the loss, and is no schedule: :func:`reduce_on_plateau`
======================================  ================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

from functopt.schedules.basic import (
    Cosine,
    Exponential,
    Polynomial,
    Power,
    Staircase,
    cosine_schedule,
    exponential_decay,
    linear_schedule,
    polynomial_schedule,
)
from functopt.schedules.common import Number, check_positive
from functopt.schedules.joined import Join, PiecewiseConstant, interpolate
from functopt.schedules.periodic import CosineRestarts, CosineWave, Cyclic, cosine_restarts_schedule

__all__ = [
    "constant_lr",
    "cosine_annealing_lr",
    "cosine_annealing_warm_restarts",
    "cyclic_lr",
    "exponential_lr",
    "linear_lr",
    "multi_step_lr",
    "one_cycle_lr",
    "one_cycle_momentum",
    "polynomial_lr",
    "step_lr",
    "swalr",
]

_STRATEGIES = {"cos": "cosine", "linear": "linear"}


def step_lr(lr: Number, step_size: Number, gamma: Number = 0.1) -> Exponential | Staircase:
    """Multiply by ``gamma`` every ``step_size`` steps: torch's ``StepLR``, and ``exponential_decay`` as a staircase.

    >>> step_lr(1.0, 30, 0.5)(60)
    tensor(0.2500, dtype=torch.float64)
    """
    return exponential_decay(lr, step_size, gamma, staircase=True)


def multi_step_lr(lr: Number, milestones: Sequence[Number], gamma: Number = 0.1) -> PiecewiseConstant:
    """Multiply by ``gamma`` at each milestone, twice at one that is given twice: torch's ``MultiStepLR``.

    >>> multi_step_lr(1.0, [30, 80], 0.5)(80)
    tensor(0.2500, dtype=torch.float64)
    """
    return PiecewiseConstant(lr, tuple(milestones), (gamma,) * len(milestones))


def constant_lr(lr: Number, factor: Number = 1 / 3, total_iters: Number = 5) -> PiecewiseConstant:
    """Begin at ``factor·lr`` and go to ``lr`` after ``total_iters`` steps: torch's ``ConstantLR``.

    >>> constant_lr(1.0, 0.5)(4)
    tensor(0.5000, dtype=torch.float64)
    """
    return PiecewiseConstant(lr * factor, (total_iters,), (1 / factor,))


def linear_lr(lr: Number, start_factor: Number = 1 / 3, end_factor: Number = 1.0, total_iters: Number = 5) -> Power:
    """Go from ``start_factor·lr`` to ``end_factor·lr`` in a straight line: torch's ``LinearLR``.

    >>> linear_lr(1.0, 0.5, total_iters=10)(5)
    tensor(0.7500, dtype=torch.float64)
    """
    return linear_schedule(lr * start_factor, lr * end_factor, total_iters)


def exponential_lr(lr: Number, gamma: Number) -> Exponential | Staircase:
    """Multiply by ``gamma`` at every step: torch's ``ExponentialLR``.

    >>> exponential_lr(1.0, 0.5)(3)
    tensor(0.1250, dtype=torch.float64)
    """
    return exponential_decay(lr, 1, gamma)


def polynomial_lr(lr: Number, total_iters: Number = 5, power: Number = 1.0) -> Polynomial:
    """Fall to 0 as a power of the time left: torch's ``PolynomialLR``, and ``polynomial_schedule`` to 0.

    >>> polynomial_lr(1.0, 10, 2.0)(5)
    tensor(0.2500, dtype=torch.float64)
    """
    return polynomial_schedule(lr, 0.0, power, total_iters)


def cosine_annealing_lr(lr: Number, T_max: Number, eta_min: Number = 0.0) -> CosineWave:
    """Follow a cosine between ``lr`` and ``eta_min``, beyond ``T_max`` up again: torch's ``CosineAnnealingLR``.

    ``eta_min + (lr - eta_min)·(1 + cos(π·step/T_max))/2``. :func:`cosine_decay_schedule` stays at the end.

    >>> cosine_annealing_lr(1.0, 10)(15)
    tensor(0.5000, dtype=torch.float64)
    """
    check_positive("cosine_annealing_lr", T_max=T_max)
    return CosineWave(lr, eta_min, T_max)


def cosine_annealing_warm_restarts(
    lr: Number, T_0: Number, T_mult: Number = 1, eta_min: Number = 0.0
) -> CosineRestarts:
    """Fall along half a cosine and start again: ``cosine_restarts_schedule`` under torch's name.

    >>> cosine_annealing_warm_restarts(1.0, 10)(15)
    tensor(0.5000, dtype=torch.float64)
    """
    return cosine_restarts_schedule(lr, T_0, T_mult, eta_min)


def cyclic_lr(
    base_lr: Number,
    max_lr: Number,
    step_size_up: Number = 2000,
    step_size_down: Number = None,
    *,
    mode: str = "triangular",
    gamma: Number = 1.0,
) -> Cyclic:
    """Go up to ``max_lr`` and down to ``base_lr`` in straight lines, again and again: torch's ``CyclicLR``.

    Smith, "Cyclical Learning Rates for Training Neural Networks" (2017). The momentum that torch cycles inversely is
    ``cyclic_lr(max_momentum, base_momentum, ...)`` with the same further arguments.

    Args:
        base_lr: where each cycle begins and ends.
        max_lr: its height.
        step_size_up: steps up.
        step_size_down: steps down; by default as many.
        mode: ``"triangular"``: all cycles are as high; ``"triangular2"``: each half as high as the one before;
            ``"exp_range"``: the height is multiplied by ``gamma`` at every step.
        gamma: for ``"exp_range"``.

    Raises:
        ValueError: ``mode`` has another value, or a number of steps is not positive.

    >>> cyclic_lr(0.0, 1.0, 10, mode="triangular2")(30)
    tensor(0.5000, dtype=torch.float64)
    """
    if mode not in ("triangular", "triangular2", "exp_range"):
        raise ValueError(f"cyclic_lr: mode must be 'triangular', 'triangular2' or 'exp_range', got {mode!r}")
    down = step_size_up if step_size_down is None else step_size_down
    check_positive("cyclic_lr", step_size_up=step_size_up, step_size_down=down)
    by_cycle, by_step = 0.5 if mode == "triangular2" else 1.0, gamma if mode == "exp_range" else 1.0
    return Cyclic(base_lr, max_lr, step_size_up, down, by_cycle, by_step)


def one_cycle_lr(
    max_lr: Number,
    total_steps: Number,
    pct_start: Number = 0.3,
    div_factor: Number = 25.0,
    final_div_factor: Number = 1e4,
    *,
    anneal_strategy: str = "cos",
    three_phase: bool = False,
) -> Join:
    """Rise to ``max_lr`` and fall again: torch's ``OneCycleLR``, whose phases end *at* their last step.

    From ``max_lr/div_factor`` to ``max_lr`` at step ``pct_start·total_steps - 1``, then to
    ``max_lr/(div_factor·final_div_factor)`` at the last one, ``total_steps - 1``. Smith & Topin, "Super-Convergence:
    Very Fast Training of Neural Networks Using Large Learning Rates" (2018).

    Args:
        max_lr: the highest value.
        total_steps: steps in all.
        pct_start: the fraction of steps in which it rises.
        div_factor: the highest value over the first.
        final_div_factor: the first value over the last.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        three_phase: fall as long as it rose, back to the first value, and only then to the last.

    Raises:
        ValueError: ``anneal_strategy`` has another value, or ``total_steps`` is not positive.

    >>> one_cycle_lr(1.0, 100)(29)
    tensor(1., dtype=torch.float64)
    """
    first = max_lr / div_factor
    values = [first, max_lr, *([first] if three_phase else []), first / final_div_factor]
    return _one_cycle("one_cycle_lr", values, total_steps, pct_start, anneal_strategy)


def one_cycle_momentum(
    total_steps: Number,
    base_momentum: Number = 0.85,
    max_momentum: Number = 0.95,
    pct_start: Number = 0.3,
    *,
    anneal_strategy: str = "cos",
    three_phase: bool = False,
) -> Join:
    """Let the momentum do the inverse of :func:`one_cycle_lr`, as torch's ``OneCycleLR`` does beside.

    The arguments are those of :func:`one_cycle_lr`; from ``max_momentum`` to ``base_momentum`` and back.

    >>> one_cycle_momentum(100)(29)
    tensor(0.8500, dtype=torch.float64)
    """
    values = [max_momentum, base_momentum, *([max_momentum] if three_phase else []), max_momentum]
    return _one_cycle("one_cycle_momentum", values, total_steps, pct_start, anneal_strategy)


def _one_cycle(who: str, values: list[Number], total: Number, pct: Number, strategy: str) -> Join:
    check_positive(who, total_steps=total)
    if strategy not in _STRATEGIES:
        raise ValueError(f"{who}: anneal_strategy must be 'cos' or 'linear', got {strategy!r}")
    turns = [pct * total - 1, *([2 * pct * total - 2] if len(values) == 4 else []), total - 1]
    return interpolate(who, _STRATEGIES[strategy], turns, values)


def swalr(lr: Number, swa_lr: Number, anneal_epochs: Number = 10, *, anneal_strategy: str = "cos") -> Cosine | Power:
    """Go from ``lr`` to the constant ``swa_lr`` of weight averaging: torch's ``SWALR``.

    Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization" (2018). What came before is
    another part of a :func:`join_schedules`, at whose end ``lr`` is.

    Args:
        lr: at the start.
        swa_lr: at the end, and from then on.
        anneal_epochs: steps from one to the other.
        anneal_strategy: ``"cos"`` or ``"linear"``.

    Raises:
        ValueError: ``anneal_strategy`` has another value, or ``anneal_epochs`` is not positive.

    >>> swalr(1.0, 0.0)(5)
    tensor(0.5000, dtype=torch.float64)
    """
    if anneal_strategy not in _STRATEGIES:
        raise ValueError(f"swalr: anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}")
    return (cosine_schedule if anneal_strategy == "cos" else linear_schedule)(lr, swa_lr, anneal_epochs)
