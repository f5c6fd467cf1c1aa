"""Transforms that are applied at some steps only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform, apply_updates, state_class
from functopt.combine import combinator
from functopt.objective import choose
from functopt.tree import Tree
from functopt.wrappers.common import check_inner, check_state
from functopt.wrappers.gate import Run, gate

__all__ = ["ConditionallyMaskState", "ConditionallyTransformState", "conditionally_mask", "conditionally_transform"]

Condition = Callable[..., Tensor | bool]


@state_class
class ConditionallyTransformState(NamedTuple):
    """The number of steps so far, and the state of what is inside."""

    step: Tensor  # 0-d, int64
    inner: Tree


@state_class
class ConditionallyMaskState(NamedTuple):
    """The number of steps so far, and the state of what is inside."""

    step: Tensor  # 0-d, int64
    inner: Tree


def _conditionally(who: str, inner: Transform, condition: Condition, forward: bool, cls: Any) -> Transform:
    check_inner(who, inner)
    if not callable(condition):
        raise TypeError(f"{who}: should_transform_fn is a {type(condition).__name__}, expected a function of the step")
    passes, named = cls is ConditionallyTransformState, _extras_of(condition) if forward else frozenset()

    def init(params: Tree) -> Tree:
        return cls(tree.counter(params), inner._init(params))

    def step(run: Run, updates: Tree, state: Any, params: Tree, hypers: Any, extras: Any) -> tuple[Tree, Tree]:
        check_state(who, state, cls)
        should: Any = condition(state.step, **{name: extras[name] for name in named & extras.keys()})
        if isinstance(should, bool):
            should = torch.full_like(state.step, should, dtype=torch.bool)
        if not isinstance(should, Tensor) or should.ndim or should.dtype != torch.bool:
            got = f"{should.dtype}{list(should.shape)}" if isinstance(should, Tensor) else type(should).__name__
            raise TypeError(f"{who}: should_transform_fn must return a bool or a 0-d tensor of one, got {got}")
        out, new = run(updates, state.inner, params, hypers, **extras)
        if inner.writes:
            other = apply_updates(params, updates) if passes else params
        else:
            other = updates if passes else tree.zeros_like(updates)
        return choose(should, out, other), cls(state.step + 1, choose(should, new, state.inner))

    return gate(inner, step, init, hypers=inner._defaults, scopes=[*inner._scopes, (who, "element")])


def _extras_of(condition: Condition) -> frozenset[str]:
    """Return the names of the extras that a condition looks at: its arguments after the step."""
    parameters = [*inspect.signature(condition).parameters.values()][1:]
    return frozenset(p.name for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD)


@combinator(paces=True)
def conditionally_transform(
    inner: Transform, should_transform_fn: Condition, forward_extra_args: bool = False
) -> Transform:
    """Apply a transform at some steps only; at the others the updates pass through, and its state stays.

    ``u ← inner(u)`` where ``should_transform_fn(step)``, else ``u``. Schedules inside go by the steps that are taken.

    Args:
        inner: any transform.
        should_transform_fn: gets the number of steps so far, a 0-d tensor of int64, and returns a 0-d tensor of bool.
        forward_extra_args: give it those extras of the step too that it names, such as ``value``.

    Raises:
        TypeError: ``inner`` is not a transform, or the function returns something else.

    >>> tx = conditionally_transform(scale(0.5), lambda step: step >= 1)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.5000, 1.0000])}
    """
    who = "conditionally_transform"
    return _conditionally(who, inner, should_transform_fn, forward_extra_args, ConditionallyTransformState)


@combinator(paces=True)
def conditionally_mask(inner: Transform, should_transform_fn: Condition, forward_extra_args: bool = False) -> Transform:
    """Apply a transform at some steps only; at the others the updates are zero, and its state stays.

    ``u ← inner(u)`` where ``should_transform_fn(step)``, else 0. Schedules inside go by the steps that are taken.

    Args:
        inner: any transform.
        should_transform_fn: as in :func:`conditionally_transform`.
        forward_extra_args: as there.

    Raises:
        TypeError: ``inner`` is not a transform, or the function returns something else.

    >>> tx = conditionally_mask(sgd(lr=0.1), lambda step, value: value > 1, forward_extra_args=True)
    >>> tx.update(grads, tx.init(params), params, value=torch.tensor(0.5))[0]
    {'w': tensor([ 1., -2.])}
    """
    return _conditionally(
        "conditionally_mask", inner, should_transform_fn, forward_extra_args, ConditionallyMaskState
    )  # fmt: skip
