"""Schedule-free learning: an average of the iterates in the place of a schedule that decays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform, state_class
from functopt.combine import combinator
from functopt.hypers import Hypers
from functopt.numerics import accumulator_dtype, maximum, minimum
from functopt.transforms.moments import is_zero
from functopt.tree import Tree
from functopt.wrappers.common import check_state, with_updates

__all__ = ["ScheduleFreeState", "eval_params", "schedule_free", "schedule_free_eval_params"]


@state_class
class ScheduleFreeState(NamedTuple):
    """The iterates of the inner optimizer, how they are averaged, and its state."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    z: Tree  # like the parameters
    beta: Tree  # with which the parameters were mixed, 0-d or one per group
    max_lr: Tree  # the largest so far, 0-d for each leaf
    weight_sum: Tree  # likewise
    inner: Tree


@combinator
def schedule_free(
    base_optimizer: Transform,
    beta: Any = 0.9,
    weight_lr_power: Any = 2.0,
    warmup_steps: Any = 0,
    *,
    warmup_from_zero: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Transform:
    """Average the iterates of any optimizer, and take gradients between them and their average.

    The parameters are ``y``. ``z ← z + u`` with the updates that the optimizer makes of the gradient at ``y``, then
    ``x ← (1 - c)·x + c·z`` with ``c = w/Σw`` and ``w = (largest lr so far)^weight_lr_power``, and
    ``y ← (1 - β)·z + β·x``, all from the same start. ``x`` is what to evaluate and to keep:
    ``eval_params(state, params)`` reads it at any time. It is not stored, but found from ``y`` and ``z``. Defazio et
    al., "The Road Less Scheduled" (2024).

    The optimizer should have no momentum of its own, for which ``β`` stands in: ``schedule_free(adamw(beta1=0.0))``.
    Its ``lr`` is also that of the weights; optax has to be told it again (``learning_rate``), and calls ``β`` ``b1``.
    Where a schedule is given for ``lr`` the weight of a step has the ``lr`` of that step, as the authors have it; in
    optax it has that of the next one.

    Args:
        base_optimizer: any optimizer with a hyper ``lr`` that does not write the parameters itself.
        beta: how close to the average gradients are taken, in (0, 1).
        weight_lr_power: how little the small learning rates of a warm-up count.
        warmup_steps: steps over which ``lr`` grows to its value: step ``t`` has ``lr·min(1, t/warmup_steps)``; 0 for
            none.
        warmup_from_zero: the first step counts as ``t = 0``, and is none, as in optax's ``schedule_free_sgd``; the
            weights keep counting from 1.
        state_dtype: the dtype of ``z``, if it is not that of the parameters.

    Raises:
        TypeError: ``base_optimizer`` is not a transform.
        ValueError: it has no ``lr``, or writes the parameters itself, or has a hyper of one of these names; or
            ``beta`` is 0.

    >>> tx = schedule_free(sgd(lr=0.1))
    >>> params, state = tx.update(grads, tx.init(params), params)
    >>> eval_params(state, params)
    {'w': tensor([ 0.9500, -2.1000])}
    """
    own = {"beta": beta, "weight_lr_power": weight_lr_power, "warmup_steps": warmup_steps}
    merged = with_updates("schedule_free", base_optimizer, own)
    if "lr" not in base_optimizer._defaults:
        raise ValueError(f"schedule_free: {base_optimizer.name} has no hyper 'lr', by which iterates are weighted")
    if is_zero(beta):
        raise ValueError("schedule_free: beta must be greater than 0: the average is found from the parameters")

    def init(params: Tree) -> ScheduleFreeState:
        count = tree.counter(params)
        z = tree.map(lambda p: p.to(state_dtype or p.dtype, copy=True), params)
        mixed, inner = tree.scalars(params, beta, value=1.0), base_optimizer._init(params)
        max_lr, weight_sum = (tree.sums(tree.zeros_like(params)) for _ in range(2))
        return ScheduleFreeState(count, z, mixed, max_lr, weight_sum, inner)

    def warm(lr: Tree, steps: Tree, count: Tensor, params: Tree) -> Tree:
        if is_zero(steps):
            return lr

        def part(like: Tensor, lr: Any, steps: Any) -> Tensor:
            steps = torch.as_tensor(steps, dtype=like.dtype, device=like.device)
            part = minimum(count.to(like.dtype) / torch.where(steps > 0, steps, 1.0), 1.0)
            return lr * torch.where(steps > 0, part, 1.0)

        return tree.map(part, tree.scalars(params, lr, steps), lr, steps)

    def transform(grads: Tree, state: ScheduleFreeState, params: Tree, hypers: Hypers, **extras: Any) -> Any:
        check_state("schedule_free", state, ScheduleFreeState)
        count = state.count + 1
        lr, steps = hypers["lr"], hypers["warmup_steps"]
        base_lr = warm(lr, steps, state.count if warmup_from_zero else count, params)
        updates, inner = base_optimizer._transform(grads, state.inner, params, {**hypers, "lr": base_lr}, **extras)

        max_lr = tree.map(lambda old, lr: maximum(old, lr).to(old.dtype), state.max_lr, warm(lr, steps, count, params))
        weight = tree.map(lambda lr, power: (lr**power).to(lr.dtype), max_lr, hypers["weight_lr_power"])
        weight_sum = tree.map(torch.add, state.weight_sum, weight)
        # 1 stands in for 0, as long as no step has had a weight
        share = tree.map(lambda w, s: w / torch.where(s == 0, 1.0, s), weight, weight_sum)

        z = tree.map(lambda z, u: (z + u).to(z.dtype), state.z, updates)

        def mix(y: Tensor, old: Tensor, z: Tensor, before: Tensor, beta: Any, share: Tensor) -> Tensor:
            y, old, z = (t.to(accumulator_dtype(y.dtype)) for t in (y, old, z))
            # from z on, so that nothing moves by rounding where all three are the same
            return (z - y) + beta * (1 - share) * ((y - old) / before - (z - old))

        out = tree.map(mix, params, state.z, z, state.beta, hypers["beta"], share)
        new_beta = tree.map(lambda old, beta: torch.zeros_like(old) + beta, state.beta, hypers["beta"])
        return out, ScheduleFreeState(count, z, new_beta, max_lr, weight_sum, inner)

    return Transform(
        init,
        transform,
        hypers=merged,
        scopes=[*base_optimizer._scopes, ("schedule_free", "element")],
    )


def eval_params(state: Tree, params: Tree) -> Tree:
    """Return the parameters to evaluate and to keep: what :func:`schedule_free` has averaged.

    ``x = z + (y - z)/β``. Nothing is switched and nothing is changed: training goes on from ``params``. optax calls it
    ``schedule_free_eval_params``.

    Args:
        state: the state of an optimizer with one ``schedule_free`` in it, at any depth.
        params: the parameters that belong to it, ``y``.

    Raises:
        ValueError: there is no schedule-free state, or more than one.

    >>> tx = schedule_free_sgd(lr=0.1)
    >>> eval_params(tx.init(params), params)
    {'w': tensor([ 1., -2.])}
    """
    found = [*_states(state)]
    if len(found) != 1:
        raise ValueError(f"eval_params: expected a state with one ScheduleFreeState in it, found {len(found)}")
    own = found[0]

    def x(y: Tensor, z: Tensor, beta: Tensor) -> Tensor:
        y, z = (t.to(accumulator_dtype(y.dtype)) for t in (y, z))
        return z + (y - z) / beta

    return tree.map(lambda y, z, beta: x(y, z, beta).to(y.dtype), params, own.z, own.beta)


schedule_free_eval_params = eval_params


def _states(state: Tree) -> Iterator[ScheduleFreeState]:
    if isinstance(state, ScheduleFreeState):
        yield state
    else:
        for _, child in tree.children(state):
            yield from _states(child)
