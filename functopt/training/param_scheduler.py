"""Any hyper as a function of the position in training, from 0 at the first step to 1 at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor

from functopt.base import Transform
from functopt.schedules import Join, cosine_schedule, flat_cosine_schedule, join, scaled_schedule
from functopt.training.steering import hyper_name, steered
from functopt.tree import is_schedule

__all__ = ["ParamScheduler", "combine_scheds", "flat_cos", "hypers_at", "one_cycle"]


class ParamScheduler:
    """Set the hypers of every step by schedules over the whole of training: fastai's ``ParamScheduler``.

    Call :meth:`step` before each step of the optimizer. The position is the number of steps taken over
    ``total_steps``, so that it begins with 0 and ends just before 1.

    Args:
        target: a :class:`StatefulOptimizer <functopt.StatefulOptimizer>`, any of torch's optimizers, or a learner.
        schedules: for each hyper a schedule of length 1; a list of one for each group; a ``slice(first, last)`` of two,
            between which the groups lie as ``set_hypers`` spreads them; or a tree of schedules and numbers, where the
            hyper may be a tree. ``"mom"`` is ``momentum`` or ``beta1``, whichever the optimizer has.
        total_steps: how many steps there will be.

    Raises:
        KeyError: the optimizer has no hyper of a name.
        TypeError: ``target`` has no hypers, or a value is no schedule.
        ValueError: a list has not one schedule for each group.

    >>> scheduler = ParamScheduler(optimizer, one_cycle(1e-2), total_steps=1000)
    >>> for batch in batches:
    ...     scheduler.step()
    ...     loss_fn(model, batch).backward()
    ...     optimizer.step()
    """

    def __init__(self, target: Any, schedules: Mapping[str, Any], total_steps: int) -> None:
        if total_steps < 1:
            raise ValueError(f"ParamScheduler: total_steps must be at least 1, got {total_steps}")
        groups = steered(target, "ParamScheduler").hypers
        self.schedules = _named("ParamScheduler", schedules, list(groups[0]))
        for name, value in self.schedules.items():
            if _is_list(value) and len(value) not in (1, len(groups)):
                raise ValueError(
                    f"ParamScheduler: {name} has {len(value)} schedules, but there are {len(groups)} groups"
                )
            if len(groups) == 1:  # a learner without groups takes no list
                self.schedules[name] = (
                    value[0] if _is_list(value) else value.stop if isinstance(value, slice) else value
                )
        self.total_steps, self._target, self._count = total_steps, target, 0

    def step(self) -> None:
        """Set the hypers for the next step.

        Raises:
            ValueError: all steps are done, or a value is out of its range.
        """
        self.set_for(self._count)
        self._count += 1

    def set_for(self, step: int) -> None:
        """Set the hypers for the step of a number, counted from 0.

        Raises:
            ValueError: there is no such step, or a value is out of its range.
        """
        if not 0 <= step < self.total_steps:
            raise ValueError(f"ParamScheduler: there is no step {step}, total_steps is {self.total_steps}")
        values = {name: _number_at(value, step / self.total_steps) for name, value in self.schedules.items()}
        steered(self._target, "ParamScheduler").set_hypers(**values)

    def state_dict(self) -> dict[str, int]:
        """Return where the scheduler stands: ``count`` and ``total_steps``. The schedules are not part of it."""
        return {"count": self._count, "total_steps": self.total_steps}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go on from where a scheduler stood.

        Raises:
            ValueError: it was made for another number of steps, so that the position would jump.
        """
        if state_dict["total_steps"] != self.total_steps:
            raise ValueError(
                f"ParamScheduler: the saved state is of a run of {state_dict['total_steps']} steps, this one has "
                f"{self.total_steps}; make the scheduler with the same total_steps"
            )
        self._count = int(state_dict["count"])


class HypersAt(NamedTuple):
    """See :func:`hypers_at`."""

    schedules: dict[str, Any]
    total_steps: Any

    def __call__(self, step: Any) -> dict[str, Any]:
        """Return the hypers for a step."""
        if isinstance(step, Tensor) and not step.is_floating_point():
            step = step.double()  # a quotient of whole numbers would be float32
        return {name: _at(value, step / self.total_steps) for name, value in self.schedules.items()}


def hypers_at(schedules: Mapping[str, Any], total_steps: Any, tx: Transform | None = None) -> HypersAt:
    """Return a pure function from the step to the hypers: what :class:`ParamScheduler` sets, for ``tx.update``.

    It is a pytree of the numbers in the schedules. So it may be an argument of a compiled function, and vmapped or
    differentiated, and the numbers change without a recompile.

    Args:
        schedules: for each hyper a schedule of length 1, or a tree of schedules and numbers that is a prefix of the
            parameters.
        total_steps: how many steps there will be.
        tx: the optimizer, if the names are to be checked and ``"mom"`` to be ``momentum`` or ``beta1``.

    Returns:
        ``(step) -> hypers``. The step is a number or a 0-d tensor.

    Raises:
        KeyError: ``tx`` has no hyper of a name.
        TypeError: a value is no schedule, or is a list or slice: there are no groups in a pure optimizer.

    >>> hypers = hypers_at(one_cycle(1e-2), 1000, tx)
    >>> params, state = tx.update(grads, state, params, hypers(step))
    """
    named = _named("hypers_at", schedules, None if tx is None else list(tx._defaults))
    for name, value in named.items():
        if isinstance(value, slice) or _is_list(value):
            raise TypeError(f"hypers_at: {name} is a {type(value).__name__}; for a value per layer give a dict")
    return HypersAt(named, total_steps)


def combine_scheds(pcts: Sequence[Any], scheds: Sequence[Any]) -> Join:
    """Run schedules one after the other, each for a fraction of training: fastai's name for :func:`functopt.join`.

    >>> combine_scheds([0.3, 0.7], [cosine_schedule(0.3, 0.6), cosine_schedule(0.6, 0.2)])
    """
    return join(pcts, scheds)


def one_cycle(
    lr_max: Any,
    pct_start: float = 0.25,
    div: float = 25.0,
    div_final: float = 1e5,
    momentum: tuple[float, float, float] | None = (0.95, 0.85, 0.95),
    *,
    transition_steps: Any = 1,
) -> dict[str, Any]:
    """Return the schedules of fastai's ``fit_one_cycle``: the learning rate rises and falls, momentum does the inverse.

    The learning rate goes from ``lr_max/div`` to ``lr_max`` in the fraction ``pct_start`` of training and then to
    ``lr_max/div_final``, momentum through its three values, all along half cosines. Smith & Topin, "Super-Convergence"
    (2018).

    Args:
        lr_max: a number, a tensor, or values to sweep over; or one for each group: a list, ``slice(first, last)``, or
            ``slice(last)`` for a tenth of it in all groups but the last; or a dict, a prefix tree of the parameters.
        pct_start: the fraction of training in which the learning rate rises.
        div: the highest learning rate over the first.
        div_final: the highest learning rate over the last.
        momentum: at the start, at ``pct_start`` and at the end; None leaves it alone.
        transition_steps: the length of the schedules; 1 for schedules by position.

    Returns:
        Schedules for ``"lr"`` and ``"mom"``, which is ``momentum`` or ``beta1``, whichever an optimizer has.

    >>> fo.sweep(loss_fn, params, fo.adam(), {"lr": one_cycle(fo.log_uniform(1e-4, 1e-1), transition_steps=500)["lr"]})
    """
    course = _two_cosines(pct_start, 1 / div, 1.0, 1 / div_final, transition_steps)
    schedules = {"lr": _per_group(lr_max, lambda lr: scaled_schedule(lr, course))}
    if momentum is not None:
        schedules["mom"] = _two_cosines(pct_start, *momentum, transition_steps)
    return schedules


def flat_cos(lr: Any, div_final: float = 1e5, pct_start: float = 0.75, *, transition_steps: Any = 1) -> dict[str, Any]:
    """Return the schedule of fastai's ``fit_flat_cos``: a flat learning rate that falls along half a cosine at the end.

    Args:
        lr: as in :func:`one_cycle`.
        div_final: the learning rate over the last.
        pct_start: the fraction of training in which it is flat.
        transition_steps: the length of the schedule; 1 for one by position.
    """
    return {"lr": _per_group(lr, lambda lr: flat_cosine_schedule(lr, transition_steps, 1 / div_final, pct_start))}


def _two_cosines(pct: float, start: float, middle: float, end: float, steps: Any) -> Join:
    return join([pct, 1 - pct], [cosine_schedule(start, middle), cosine_schedule(middle, end)], steps)


def _per_group(value: Any, make: Callable[[Any], Any]) -> Any:
    """Make a schedule of a value, of one for each group or layer, or of the ends of a slice."""
    if isinstance(value, slice):
        return slice(None if value.start is None else make(value.start), make(value.stop))
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim:
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _per_group(below, make) for name, below in value.items()}
    return [make(one) for one in value] if _is_list(value) else make(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not hasattr(value, "_fields")


def _named(who: str, schedules: Mapping[str, Any], known: Sequence[str] | None) -> dict[str, Any]:
    """Return the schedules under the names that the optimizer has, having looked that they are schedules."""
    named = {}
    for given, value in schedules.items():
        name = given if known is None else hyper_name(given, known, who)
        if name in named:
            raise ValueError(f"{who}: {given!r} is {name!r}, which has a schedule already")
        parts: Any = value
        if isinstance(value, slice):
            parts = [part for part in (value.start, value.stop) if part is not None]
        for leaf in optree.tree_leaves(parts, is_leaf=is_schedule):
            if not (is_schedule(leaf) or isinstance(leaf, (float, int, Tensor))):
                raise TypeError(
                    f"{who}: {given} is a {type(leaf).__name__}, expected a schedule, as cosine_schedule(...)"
                )
        named[name] = value
    return named


def _at(value: Any, position: Any) -> Any:
    look = lambda leaf: leaf(position) if is_schedule(leaf) else leaf
    return optree.tree_map(look, value, is_leaf=is_schedule)


def _number_at(value: Any, position: float) -> Any:
    """Return what ``set_hypers`` takes: numbers, or tensors where they are on another device."""
    if isinstance(value, slice):
        return slice(*(None if end is None else _number_at(end, position) for end in (value.start, value.stop)))
    plain = lambda leaf: leaf.item() if isinstance(leaf, Tensor) and leaf.device.type == "cpu" else leaf
    return optree.tree_map(plain, _at(value, torch.tensor(position, dtype=torch.float64)))
