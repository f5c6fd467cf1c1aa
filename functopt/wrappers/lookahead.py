"""Lookahead: slow weights that follow the fast ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform, state_class
from functopt.combine import combinator, no_updates
from functopt.hypers import Hypers
from functopt.tree import Tree
from functopt.wrappers.common import check_inner, check_state, own_hypers

__all__ = ["LookaheadState", "lookahead"]


@state_class
class LookaheadState(NamedTuple):
    """The number of steps taken, the slow weights, and the state of the fast optimizer."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    slow: Tree
    inner: Tree


@combinator
def lookahead(fast_optimizer: Transform, sync_period: Any = 6, slow_step_size: Any = 0.5) -> Transform:
    """Let slow weights follow the fast ones, and pull the fast ones back to them every few steps.

    Every ``sync_period``-th step, after the fast step: ``slow ← slow + slow_step_size·(p - slow)``, then ``p ← slow``.
    The state of the fast optimizer goes on. Zhang et al., "Lookahead Optimizer: k steps forward, 1 step back" (2019),
    where these are ``k`` and ``α``. Defaults are fastai's; optax has none, and keeps the slow weights with the
    parameters.

    It writes the parameters itself, so it is the last of a chain: ``chain(clip_by_global_norm(1.0),
    lookahead(adam()))``.

    Args:
        fast_optimizer: any optimizer.
        sync_period: steps between synchronisations.
        slow_step_size: how far the slow weights go.

    Raises:
        TypeError: ``fast_optimizer`` is not a transform.
        ValueError: it has a hyper called ``sync_period`` or ``slow_step_size``.

    >>> tx = lookahead(sgd(lr=0.1), sync_period=1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9750, -2.0500])}
    """
    check_inner("lookahead", fast_optimizer, "fast_optimizer")
    own = own_hypers("lookahead", fast_optimizer, {"sync_period": sync_period, "slow_step_size": slow_step_size})

    def init(params: Tree) -> LookaheadState:
        count = tree.counter(params)
        return LookaheadState(count, tree.map(torch.clone, params), fast_optimizer._init(params))

    def write(grads: Tree, state: LookaheadState, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        check_state("lookahead", state, LookaheadState)
        fast, inner = fast_optimizer.run(grads, state.inner, params, hypers, **extras)
        count = state.count + 1

        def follow(slow: Tensor, p: Tensor, period: Any, step_size: Any) -> Tensor:
            return torch.where(count % period == 0, slow + step_size * (p - slow), slow).to(p.dtype)

        slow = tree.map(follow, state.slow, fast, hypers["sync_period"], hypers["slow_step_size"])
        fast = tree.map(lambda p, s, period: torch.where(count % period == 0, s, p), fast, slow, hypers["sync_period"])
        return fast, LookaheadState(count, slow, inner)

    return Transform(
        init,
        no_updates("lookahead"),
        write=write,
        hypers=own,
        scopes=[*fast_optimizer._scopes, ("lookahead", "element")],
    )
