"""Rprop: a step size for every entry, which grows while the gradient keeps its sign."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import accumulator_dtype, maximum, minimum
from functopt.tree import Tree

__all__ = ["ScaleByRpropState", "scale_by_rprop"]


@state_class
class ScaleByRpropState(NamedTuple):
    """The step sizes as multiples of lr, and the sign of the last gradient: 0 where the one before was against it."""

    size: Tree
    prev: Tree


@link(scope="element")
def scale_by_rprop(
    lr=1e-2, eta_minus=0.5, eta_plus=1.2, min_step_size=1e-6, max_step_size=50.0, *, delayed: bool = False
) -> Any:
    """Go by a step size of each entry in the direction of the sign of its gradient: Rprop.

    Where ``g`` has the sign of the last gradient, ``Δ ← η⁺·Δ``; where it has turned, ``Δ ← η⁻·Δ`` and ``g ← 0``, also
    for the next comparison; ``Δ`` stays between the least and the largest step size and begins at ``lr``. The update
    is ``u = Δ·sign(g)``. Riedmiller & Braun, "A direct adaptive method for faster backpropagation learning: the RPROP
    algorithm" (1993).

    The state has ``Δ/lr``, so that ``lr`` is data: a schedule scales all steps, and with 0 nothing moves. For a
    constant ``lr`` it is the rule above.

    Args:
        lr: the first step size.
        eta_minus: factor of a step size after a turn.
        eta_plus: factor of a step size without.
        min_step_size: the least step size.
        max_step_size: the largest step size.
        delayed: emit the update of the *last* step, and 0 where the sign of the gradient has turned since, as
            ``optax.scale_by_rprop`` does; the first update is then 0. A step size is kept within bounds only when it
            changes there.

    >>> tx = scale_by_rprop(0.1)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.1000, 0.1000])}
    """

    def init(params) -> ScaleByRpropState:
        one = lambda p: torch.ones_like(p, dtype=accumulator_dtype(p.dtype), requires_grad=False)
        return ScaleByRpropState(tree.map(one, params), tree.zeros_like(params))

    def transform(updates, state, params, lr, eta_minus, eta_plus, min_step_size, max_step_size):
        turn = tree.map(lambda g, prev: g.sign() * prev, updates, state.prev)

        def resize(size, turn, lr, minus, plus, low, high):
            step = lr * size
            new = torch.where(turn > 0, step * plus, torch.where(turn < 0, step * minus, step))
            new = size * minimum(maximum(new, low), high) / torch.where(step == 0, 1.0, step)
            return torch.where((step == 0) | (turn == 0) if delayed else step == 0, size, new).to(size.dtype)

        size = tree.map(resize, state.size, turn, lr, eta_minus, eta_plus, min_step_size, max_step_size)
        sign = tree.map(lambda g, turn: torch.where(turn < 0, 0.0, g.sign()), updates, turn)
        go = lambda turn, size, prev, lr: torch.where(turn < 0, 0.0, lr * size * prev)
        out = tree.map(go, turn, state.size, state.prev, lr) if delayed else tree.map(go, turn, size, sign, lr)
        return out, ScaleByRpropState(size, sign)

    return init, transform
