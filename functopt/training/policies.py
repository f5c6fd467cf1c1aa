"""Whole courses of training: one-cycle, flat-then-cosine, and fine-tuning, as fastai has them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict, Unpack

from functopt.training.callbacks import Callback
from functopt.training.fit import fit
from functopt.training.learner import PureLearner, Trained
from functopt.training.param_scheduler import flat_cos, one_cycle
from functopt.training.recorder import Recorder

__all__ = ["FitOptions", "fine_tune", "fit_flat_cos", "fit_one_cycle"]


class PhaseOptions(TypedDict, total=False):
    """What is handed to every :func:`fit <functopt.training.fit>`."""

    metrics: Any
    callbacks: Callback | Sequence[Callback]
    steps_per_epoch: int | None
    progress: bool | None


class FitOptions(PhaseOptions, total=False):
    """What is handed to :func:`fit <functopt.training.fit>`."""

    recorder: Recorder | None
    resume: str | os.PathLike[str] | None


Momentum = tuple[float, float, float]


def fit_one_cycle(
    learner: Trained,
    train: Iterable[Any],
    valid: Iterable[Any] | None,
    epochs: int,
    lr_max: Any,
    *,
    pct_start: float = 0.25,
    div: float = 25.0,
    div_final: float = 1e5,
    momentum: Momentum | None = (0.95, 0.85, 0.95),
    **options: Unpack[FitOptions],
) -> Recorder:
    """Train with a learning rate that rises and falls, and momentum that does the inverse: fastai's ``fit_one_cycle``.

    See :func:`one_cycle <functopt.training.one_cycle>` for the schedules.

    Args:
        learner: what is trained.
        train: batches to train on.
        valid: batches to validate with, or None.
        epochs: how many.
        lr_max: the highest learning rate: a number; for groups a list, ``slice(first, last)`` or ``slice(last)``; in
            the pure form a prefix tree of numbers.
        pct_start: the fraction of training in which it rises.
        div: it begins at ``lr_max/div``.
        div_final: it ends at ``lr_max/div_final``.
        momentum: at the start, at the highest learning rate and at the end; None leaves it alone, as an optimizer
            without momentum needs.
        **options: ``metrics``, ``callbacks``, ``recorder``, ``steps_per_epoch``, ``progress`` and ``resume`` of
            :func:`fit <functopt.training.fit>`.

    Raises:
        KeyError: the optimizer has neither ``momentum`` nor ``beta1``.
    """
    schedule = one_cycle(lr_max, pct_start, div, div_final, momentum)
    return fit(learner, train, valid, epochs=epochs, schedule=schedule, **options)


def fit_flat_cos(
    learner: Trained,
    train: Iterable[Any],
    valid: Iterable[Any] | None,
    epochs: int,
    lr: Any,
    *,
    div_final: float = 1e5,
    pct_start: float = 0.75,
    **options: Unpack[FitOptions],
) -> Recorder:
    """Train with a flat learning rate that falls along half a cosine at the end: fastai's ``fit_flat_cos``.

    Args:
        learner: what is trained.
        train: batches to train on.
        valid: batches to validate with, or None.
        epochs: how many.
        lr: the learning rate, as in :func:`fit_one_cycle`.
        div_final: it ends at ``lr/div_final``.
        pct_start: the fraction of training in which it is flat.
        **options: as in :func:`fit_one_cycle`.
    """
    return fit(learner, train, valid, epochs=epochs, schedule=flat_cos(lr, div_final, pct_start), **options)


def fine_tune(
    learner: Trained,
    train: Iterable[Any],
    valid: Iterable[Any] | None,
    epochs: int,
    base_lr: float = 2e-3,
    *,
    freeze_epochs: int = 1,
    lr_mult: float = 100.0,
    pct_start: float = 0.3,
    div: float = 5.0,
    momentum: Momentum | None = (0.95, 0.85, 0.95),
    recorder: Recorder | None = None,
    **options: Unpack[PhaseOptions],
) -> Recorder:
    """Train the last group alone, then all with learning rates that fall towards the first: fastai's ``fine_tune``.

    ::

        freeze();    fit_one_cycle(freeze_epochs, slice(base_lr), pct_start=0.99)
        unfreeze();  fit_one_cycle(epochs, slice(base_lr/2/lr_mult, base_lr/2), pct_start, div)

    Both phases begin with a fresh state of the optimizer. Parameters with the mark ``force_train`` train in the first
    phase too; fastai sets it for those of normalisation layers:
    ``optimizer.mark(fo.bias_and_norm(model, bias=False), force_train=True)``.

    Args:
        learner: a :class:`Learner <functopt.training.Learner>` whose optimizer has at least two groups, the head last.
        train: batches to train on.
        valid: batches to validate with, or None.
        epochs: how many after the first phase.
        base_lr: the highest learning rate of the last group in the first phase, twice that of the second.
        freeze_epochs: how many of the first phase.
        lr_mult: the last group's learning rate over the first's, in the second phase.
        pct_start: the fraction of the second phase in which the learning rate rises.
        div: the second phase begins at a ``div``-th of its highest learning rate.
        momentum: as in :func:`fit_one_cycle`, for both phases.
        recorder: to go on with; by default a new one.
        **options: ``metrics``, ``callbacks``, ``steps_per_epoch`` and ``progress`` of
            :func:`fit <functopt.training.fit>`, for both phases. To resume one, take the two phases one by one.

    Returns:
        The recorder of both phases. If Ctrl-C ended the first, the groups are still frozen and there is no
        second.

    Raises:
        TypeError: the learner has no groups to freeze.
        ValueError: it has only one.
    """
    if isinstance(learner, PureLearner) or not hasattr(learner, "optimizer"):
        raise TypeError(
            "fine_tune: it freezes param groups, which a PureLearner has not. In the pure form a prefix tree of "
            "learning rates does it: fit_one_cycle(learner, train, valid, 1, {name: base_lr or, for the body, 0.0}, "
            "pct_start=0.99), and then another with small rates for the body"
        )
    optimizer: Any = learner.optimizer  # pyright: ignore[reportAttributeAccessIssue]
    recorder = Recorder() if recorder is None else recorder
    optimizer.freeze()
    optimizer.clear_state()
    fit_one_cycle(learner, train, valid, freeze_epochs, slice(base_lr), pct_start=0.99, momentum=momentum,
                  recorder=recorder, **options)  # fmt: skip
    if recorder.interrupted:
        return recorder
    optimizer.unfreeze()
    optimizer.clear_state()
    base_lr /= 2
    return fit_one_cycle(learner, train, valid, epochs, slice(base_lr / lr_mult, base_lr), pct_start=pct_start, div=div,
                         momentum=momentum, recorder=recorder, **options)  # fmt: skip
