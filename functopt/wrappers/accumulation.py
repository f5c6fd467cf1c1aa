"""One step for several gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Scope, Transform, state_class
from functopt.combine import combinator
from functopt.ema import Ema
from functopt.hypers import unknown_hyper
from functopt.numerics import accumulator_dtype
from functopt.objective import choose
from functopt.skipping import skip_large_updates, skip_not_finite
from functopt.tree import Tree, is_schedule
from functopt.wrappers.common import check_inner, check_state, own_hypers
from functopt.wrappers.gate import Run, gate, one_value

__all__ = ["MultiStepsState", "multi_steps"]

Skip = Callable[..., tuple[Tensor, Tree]]


@state_class
class MultiStepsState(NamedTuple):
    """The gradients since the last step, how many steps there were, and what the skip function said last."""

    mini_step: Tensor  # 0-d, int64: gradients accumulated since the last step
    gradient_step: Tensor  # 0-d, int64: steps of the inner optimizer
    acc_grads: Ema  # undamped: total is the sum, mean the mean
    skip_state: Tree
    inner: Tree


# What a skip function may look at; one that is not among these may look at anything.
_SCOPES: dict[Any, Scope] = {None: "element", skip_not_finite: "tree", skip_large_updates: "tree"}


@combinator(paces=True)
def multi_steps(
    inner: Transform,
    every_k: Any = 1,
    *,
    use_grad_mean: bool = True,
    should_skip_update_fn: Skip | None = None,
    **skip_hypers: Any,
) -> Transform:
    """Accumulate gradients, and take a step with their mean after every ``every_k`` of them.

    ``a ← a + g`` at each call; at the k-th, ``u ← inner(a/k)`` and ``a ← 0``, at the others ``u = 0``. The state of
    ``inner``, its counters and its schedules go by its own steps. Sums are kept in float32 at least. This is optax's
    ``MultiSteps``. Unlike ``apply_every``, which adds *updates* up, it shows ``inner`` what a large batch would.

    Args:
        inner: any optimizer.
        every_k: gradients for a step: a number, or a schedule of the steps that were taken. A number between two whole
            ones is rounded.
        use_grad_mean: if false, the step is taken with the sum.
        should_skip_update_fn: leaves gradients out as if they had never come: a function ``(updates, gradient_step,
            params) -> (should_skip, state)`` of a 0-d tensor of bool and a tree to be looked at in ``skip_state``.
            :func:`skip_not_finite` and :func:`skip_large_updates` are such functions. What it has for further arguments
            are hypers.
        **skip_hypers: the defaults of these, as ``max_squared_norm=100.0``.

    Raises:
        TypeError: ``inner`` is not a transform, or the function returns something else than a 0-d tensor of bool.
        KeyError: the function has no argument of a name.
        ValueError: ``every_k`` is less than 1 or not the same for all parameters.

    >>> tx = multi_steps(sgd(lr=0.1), every_k=2)
    >>> tx.update(grads, tx.update(grads, tx.init(params), params)[1], params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    check_inner("multi_steps", inner)
    own = {"every_k": every_k, **_skip_hypers(should_skip_update_fn, skip_hypers)}
    hypers = own_hypers("multi_steps", inner, own)
    scope = _SCOPES.get(should_skip_update_fn, "any")

    def skip_of(updates: Tree, at: Tensor, params: Tree, values: Any) -> tuple[Any, Tree]:
        if should_skip_update_fn is None:
            return None, ()
        given = {name: one_value("multi_steps", name, values[name]) for name in own if name != "every_k"}
        skip, state = should_skip_update_fn(updates, at, params, **given)
        if not isinstance(skip, Tensor) or skip.ndim or skip.dtype != torch.bool:
            got = f"{skip.dtype}{list(skip.shape)}" if isinstance(skip, Tensor) else type(skip).__name__
            raise TypeError(f"multi_steps: should_skip_update_fn must return a 0-d tensor of bool first, got {got}")
        return skip, state

    def init(params: Tree) -> MultiStepsState:
        _, skip_state = skip_of(tree.zeros_like(params), tree.counter(params), params, dict.fromkeys(own, 0.0))
        skip_state = tree.map(torch.clone, skip_state)  # the function may have returned one tensor twice
        acc = Ema.zeros(params, every_k, accumulate=True)
        return MultiStepsState(tree.counter(params), tree.counter(params), acc, skip_state, inner._init(params))

    def step(run: Run, updates: Tree, state: Any, params: Tree, hypers: Any, extras: Any) -> tuple[Tree, Tree]:
        check_state("multi_steps", state, MultiStepsState)
        k = one_value("multi_steps", "every_k", hypers["every_k"])
        if is_schedule(k):
            k = k(state.gradient_step.to(accumulator_dtype(tree.leaves(params)[0].dtype)))
        skip, skip_state = skip_of(updates, state.gradient_step, params, hypers)
        taken = torch.ones_like(state.mini_step, dtype=torch.bool) if skip is None else ~skip
        if skip is not None:
            updates = tree.map(lambda u: torch.where(skip, 0, u), updates)
        acc = state.acc_grads.update(updates, 1.0, 1.0)
        emit = state.mini_step + 1.5 > k
        grads = tree.map(lambda a, u: a.to(u.dtype), acc.mean if use_grad_mean else acc.total, updates)
        out, new = run(grads, state.inner, params, hypers, **extras)
        nothing = params if inner.writes else tree.zeros_like(updates)
        if skip is not None:
            emit = emit & taken
            acc = choose(taken, acc, state.acc_grads)
        acc = tree.map(lambda a: torch.where(emit, 0, a), acc)
        mini_step = torch.where(emit, 0, state.mini_step + taken.to(torch.int64))
        gradient_step = state.gradient_step + emit.to(torch.int64)
        inside = choose(emit, new, state.inner)
        return choose(emit, out, nothing), MultiStepsState(mini_step, gradient_step, acc, skip_state, inside)

    def rebind(new: dict[str, Any]) -> Transform:
        again = inner.with_hypers(**{name: value for name, value in new.items() if name not in own})
        values = {name: new.get(name, value) for name, value in own.items()}
        return multi_steps(
            again, use_grad_mean=use_grad_mean, should_skip_update_fn=should_skip_update_fn, **values
        )  # fmt: skip

    tx = gate(inner, step, init, hypers=hypers, rebind=rebind, scopes=[*inner._scopes, ("multi_steps", scope)])
    paced = {name for name in inner._defaults if inner.takes_schedule(name)}
    tx.__dict__["_paced"] = frozenset({"every_k", *paced})
    return tx


def _skip_hypers(function: Skip | None, given: dict[str, Any]) -> dict[str, Any]:
    """Return the hypers of a skip function: its arguments after the first three."""
    parameters = [] if function is None else [*inspect.signature(function).parameters.values()][3:]
    known = {parameter.name: parameter.default for parameter in parameters}
    for name in given:
        if name not in known:
            raise KeyError(unknown_hyper(name, ["every_k", *known], "multi_steps"))
    for name, default in known.items():
        if default is inspect.Parameter.empty and name not in given:
            raise TypeError(f"multi_steps: {getattr(function, '__name__', function)} needs {name}=...")
    return {**known, **given}
