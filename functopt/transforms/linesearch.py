"""A line search that backtracks until the loss decreases enough, and what searches share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import minimum
from functopt.objective import Line, choose, holds
from functopt.tree import Tree

__all__ = [
    "BacktrackingLinesearchInfo",
    "ScaleByBacktrackingLinesearchState",
    "check_numbers",
    "scale_by_backtracking_linesearch",
    "violation",
]


def check_numbers(who: str, hypers: Iterable[Any]) -> None:
    """Check that hypers are the same for all leaves, where there is one number for all of them.

    Raises:
        ValueError: one is a tree.
    """
    for value in hypers:
        if not isinstance(value, (float, int, Tensor)):
            raise ValueError(f"{who}: its hypers are the same for all leaves, expected numbers, got {value!r}")


def violation(excess: Tensor) -> Tensor:
    """Return by how much a condition is violated: 0 if it holds, infinity if that cannot be told."""
    return torch.where(excess.isnan(), torch.inf, excess.clamp_min(0))


@state_class
class BacktrackingLinesearchInfo(NamedTuple):
    """How the last search went."""

    num_linesearch_steps: Tensor  # evaluations of the loss, int64
    decrease_error: Tensor  # by how much the decrease is not sufficient; 0 where it is


@state_class
class ScaleByBacktrackingLinesearchState(NamedTuple):
    """The step that was found, the loss (and with ``store_grad`` the gradient) where it leads, and how it was found."""

    learning_rate: Tensor
    value: Tensor
    grad: Tree  # or ()
    info: BacktrackingLinesearchInfo


@link(scope="tree")
def scale_by_backtracking_linesearch(
    slope_rtol=1e-4,
    decrease_factor=0.8,
    increase_factor=1.5,
    max_learning_rate=1.0,
    atol=0.0,
    rtol=0.0,
    *,
    max_backtracking_steps: int = 15,
    store_grad: bool = False,
) -> Any:
    """Scale the updates by a step that decreases the loss enough, found by making it smaller: an Armijo search.

    With ``φ(t) = f(p + t·u)``, the first ``t`` of ``t₀, decrease_factor·t₀, decrease_factor²·t₀, ...`` such that ``φ(t)
    ≤ (1 + rtol)·φ(0) + slope_rtol·t·φ'(0) + atol``, where ``t₀ = min(increase_factor·t, max_learning_rate)`` of the
    ``t`` before; ``u ← t·u``. Armijo, "Minimization of functions having Lipschitz continuous first partial derivatives"
    (1966); for batches: Vaswani et al., "Painless Stochastic Gradient" (2019).

    It stands after what makes the updates a descent direction, sign included: ``chain(sgd(1.0),
    scale_by_backtracking_linesearch())``. If no step is good enough the last one is taken, and none if the loss was not
    finite there; ``info`` in the state says so (optax would print it). After a step of 0 the next search starts at 1,
    where optax stays at 0. For when it ends see :func:`scale_by_zoom_linesearch <functopt.scale_by_zoom_linesearch>`.

    The state has ``learning_rate``, ``value``, ``grad`` and ``info``.

    Args:
        slope_rtol: the part of the slope at 0 by which the loss must fall.
        decrease_factor: by which the step is made smaller.
        increase_factor: by which the step before is made larger to begin with; with ``inf`` every search begins at
            ``max_learning_rate``.
        max_learning_rate: the largest step.
        atol: by how much the condition may be violated.
        rtol: the same, as a part of the loss.
        max_backtracking_steps: how often the step is made smaller at most.
        store_grad: keep the gradient where the step leads, for :func:`value_and_grad_from_state
            <functopt.value_and_grad_from_state>`: an evaluation more.

    Raises:
        ValueError: ``max_backtracking_steps`` is negative, or a hyper differs between leaves.
        TypeError: the extra ``value_fn``, the loss as a function of the parameters, is missing, or does not return a
            0-d tensor. ``value`` and ``grad`` at the parameters spare an evaluation.

    >>> tx = chain(sgd(lr=1.0), scale_by_backtracking_linesearch())
    >>> tx.update({"w": 2 * params["w"]}, tx.init(params), params, value_fn=loss)[0]
    {'w': tensor([-0.6000,  1.2000])}
    """
    if max_backtracking_steps < 0:
        raise ValueError(
            f"scale_by_backtracking_linesearch: max_backtracking_steps must not be negative, got "
            f"{max_backtracking_steps}"
        )

    def init(params) -> ScaleByBacktrackingLinesearchState:
        one, inf, other = (tree.scalars(params, value=value) for value in (1.0, torch.inf, torch.inf))
        info = BacktrackingLinesearchInfo(torch.zeros_like(one, dtype=torch.int64), other)
        return ScaleByBacktrackingLinesearchState(one, inf, tree.zeros_like(params) if store_grad else (), info)

    def transform(
        updates,
        state,
        params,
        slope_rtol,
        decrease_factor,
        increase_factor,
        max_learning_rate,
        atol,
        rtol,
        value_fn,
        value=None,
        grad=None,
    ):
        hypers = (slope_rtol, decrease_factor, increase_factor, max_learning_rate, atol, rtol)
        check_numbers("scale_by_backtracking_linesearch", hypers)
        before, line = state.learning_rate, Line(value_fn, params, updates)
        value, _, slope = line.start(value, grad)
        t = torch.where(before > 0, increase_factor * before, 1.0)
        t = minimum(t, max_learning_rate).to(before.dtype)
        found, error = t * 0 + value.to(before.dtype), torch.full_like(t, torch.inf)
        count, done = torch.zeros_like(state.info.num_linesearch_steps), torch.zeros_like(t, dtype=torch.bool)
        for k in range(max_backtracking_steps + 1):
            t = torch.where(done, t, (decrease_factor if k else 1) * t).to(t.dtype)
            at = line.value(t)
            excess = violation(at - (1 + rtol) * value - t * slope_rtol * slope)
            found, error, count = choose(~done, (at, excess, count + 1), (found, error, count))
            done = done | (error <= atol)
            if holds(done):
                break
        t, found = choose(error.isinf(), (t * 0, value), (t, found))
        new_grad = ()
        if store_grad:
            found, new_grad, _ = line.value_and_grad(t)
        info = BacktrackingLinesearchInfo(count, error)
        return line.scaled(t), ScaleByBacktrackingLinesearchState(t, found.to(t.dtype), new_grad, info)

    return init, transform
