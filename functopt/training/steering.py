"""The hypers of whatever trains, read and set in one way: optimizers of this library and of torch, and learners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from functopt.combine import ScheduledState
from functopt.control import GroupControl, our_name
from functopt.hypers import check_hyper, unknown_hyper
from functopt.stateful import StatefulOptimizer

__all__ = ["Steered", "hyper_name", "steered", "steps_taken"]


class Steered(Protocol):
    """Something with hypers: one mapping for each group."""

    @property
    def hypers(self) -> Sequence[Mapping[str, Any]]:
        """The hypers of every group: values to read."""
        ...

    def set_hypers(self, **values: Any) -> None:
        """Set hypers for the steps that follow."""


class _Plain(GroupControl):
    """The hypers of one of torch's optimizers that has no methods for it, as ``from_torch`` gives them."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.param_groups, self._name = optimizer.param_groups, type(optimizer).__name__
        self._defaults = optimizer.defaults

    def _hyper_names(self) -> list[str]:
        number = lambda value: isinstance(value, (float, int, Tensor)) and not isinstance(value, bool)
        names = [name for name, value in self._defaults.items() if number(value)]
        return names + (["beta1", "beta2"] if "betas" in self._defaults else [])

    def _check_hyper(self, name: str, value: Any) -> None:
        check_hyper(self._name, name, value, schedules=False)

    def set_hypers(self, **values: Any) -> None:
        before = [dict(group) for group in self.param_groups]
        super().set_hypers(**values)
        for group, old in zip(self.param_groups, before, strict=True):
            for name, value in group.items():
                if isinstance(old[name], Tensor) and isinstance(value, float):  # for a compiled step it stays a tensor
                    group[name] = torch.full_like(old[name], value)


def steered(target: Any, who: str) -> Steered:
    """Return what reads and sets the hypers of an optimizer or learner.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(target, torch.optim.Optimizer):
        target = getattr(target, "optimizer", target)  # accelerate's stand around another
        return target if isinstance(target, GroupControl) else _Plain(target)
    if hasattr(target, "set_hypers"):
        return target
    raise TypeError(f"{who}: expected an optimizer or a learner, got a {type(target).__name__}")


def steps_taken(target: Any) -> Tensor | None:
    """Return the step counter that schedules among an optimizer's or learner's hypers are called with, if it has one.

    It is found without a look at the rest of the state: whatever counts steps stands on top of all else.
    """
    optimizer = getattr(target, "optimizer", target)
    state = optimizer._inner.state if isinstance(optimizer, StatefulOptimizer) else getattr(target, "state", None)
    return state.count if isinstance(state, ScheduledState) else None


def hyper_name(name: str, known: Sequence[str], who: str) -> str:
    """Return the optimizer's own name for a hyper; fastai's ``mom`` is its ``momentum`` or ``beta1``.

    Raises:
        KeyError: it has none; the message lists those it has.
    """
    own = our_name(name, known)
    if own in known:
        return own
    hint = " one_cycle(..., momentum=None) leaves momentum alone." if name == "mom" else ""
    raise KeyError(unknown_hyper(name, known, f"{who}: the optimizer") + hint)
