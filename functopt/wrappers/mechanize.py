"""Mechanic: a learning rate found by betting on the updates of another optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform, state_class
from functopt.combine import combinator
from functopt.hypers import Hypers
from functopt.numerics import maximum, sqrt
from functopt.transforms.totals import copied, displacement
from functopt.tree import Tree
from functopt.wrappers.common import check_state, with_updates

__all__ = ["MechanizeState", "Tuner", "mechanize"]


@state_class
class Tuner(NamedTuple):
    """A gambler who forgets at a rate of his own; each entry is 0-d or one per group."""

    m: Tree  # the largest gain or loss
    v: Tree  # the sum of their squares
    r: Tree  # the reward
    s: Tree  # the bet, which is his share of the learning rate


@state_class
class MechanizeState(NamedTuple):
    """Where the parameters began, the gamblers, and the state of the inner optimizer."""

    x0: Tree
    tuners: tuple[Tuner, ...]
    inner: Tree


@combinator
def mechanize(
    base_optimizer: Transform, s_decay: Any = 1e-2, s_eps: Any = 1e-8, s_init: Any = 1e-6, *, num_betas: int = 6
) -> Transform:
    """Find the scale of the updates of any optimizer: Mechanic.

    The sum ``Δ = Σu`` of the updates is what the optimizer would have done by itself, and ``p = p₀ + s·Δ``. Of
    ``h = ⟨g + s_decay·s·(‖g‖/‖p‖)·p, -Δ⟩`` every gambler, with a ``β`` of 0.9, 0.99, ..., learns his bet ``sᵢ``:
    ``m ← max(β·m, |h| + s_eps)``, ``v ← β²·v + h²``, ``r ← β·r + clip(h, ±m)·sᵢ`` with the ``m`` from before, and
    ``sᵢ ← (s_init/num_betas·m + max(r, 0))/(√v + s_eps)``; ``s`` is their sum. Cutkosky, Defazio & Mehta, "Mechanic: A
    Learning Rate Tuner" (2023). ``Δ`` is not stored, but found from the parameters.

    Give the optimizer the learning rate 1, or a schedule with this as its largest value.

    Args:
        base_optimizer: any optimizer that does not write the parameters itself.
        s_decay: the decay, optax's ``weight_decay``; it steadies the scale and is none of the optimizer's.
        s_eps: optax's ``eps``.
        s_init: the first bet of every gambler.
        num_betas: how many there are.

    Raises:
        TypeError: ``base_optimizer`` is not a transform.
        ValueError: it writes the parameters itself, or has a hyper of one of these names; or ``num_betas`` is less
            than 1.

    >>> tx = mechanize(sgd(lr=1.0), s_init=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    own = {"s_decay": s_decay, "s_eps": s_eps, "s_init": s_init}
    merged = with_updates("mechanize", base_optimizer, own)
    if num_betas < 1:
        raise ValueError(f"mechanize: num_betas must be at least 1, got {num_betas!r}")
    betas = [1 - 0.1**i for i in range(1, num_betas + 1)]

    def init(params: Tree) -> MechanizeState:
        tuner = lambda: Tuner(*(tree.scalars(params, s_eps, s_init) for _ in range(4)))
        return MechanizeState(copied(params), tuple(tuner() for _ in betas), base_optimizer._init(params))

    def bet(tuner: Tuner, beta: float, s: Tree, h: Tensor, eps: Tree, first: Tree) -> Tuner:
        m = tree.map(lambda m, eps: maximum(beta * m, h.abs() + eps).to(m.dtype), tuner.m, eps)
        v = tree.map(lambda v: beta**2 * v + h.square(), tuner.v)
        r = tree.map(lambda r, m, s: beta * r + torch.clamp(h, -m, m) * s, tuner.r, tuner.m, s)

        def share(m: Tensor, v: Tensor, r: Tensor, eps: Any, first: Any) -> Tensor:
            return ((first / num_betas * m + r.clamp_min(0)) / (sqrt(v) + eps)).to(m.dtype)

        return Tuner(m, v, r, tree.map(share, m, v, r, eps, first))

    def transform(grads: Tree, state: MechanizeState, params: Tree, hypers: Hypers, **extras: Any) -> Any:
        check_state("mechanize", state, MechanizeState)
        updates, inner = base_optimizer._transform(grads, state.inner, params, hypers, **extras)
        decay, eps, first = (hypers[name] for name in own)
        # of the first step, at which nobody has seen anything
        start = lambda s, m, first: torch.where(m == 0, first, s).to(s.dtype)
        bets = [tree.map(start, tuner.s, tuner.m, first) for tuner in state.tuners]
        scale = tree.map(lambda *parts: sum(parts), *bets)

        back = displacement(state.x0, params)
        delta = tree.map(lambda d, s, eps: d / (s + eps), back, scale, eps)
        g_norm, p_norm = tree.norm(grads), tree.norm(params)
        decayed = lambda g, p, s, eps, decay: g + decay * s * g_norm / (p_norm + eps) * p
        h = tree.dot(tree.map(decayed, grads, params, scale, eps, decay), delta)

        pairs = zip(state.tuners, betas, bets, strict=True)
        tuners = tuple(bet(tuner, beta, s, h, eps, first) for tuner, beta, s in pairs)
        scale = tree.map(lambda *parts: sum(parts), *(tuner.s for tuner in tuners))
        out = tree.map(lambda back, d, u, s: back - s * (d - u), back, delta, updates, scale)
        return out, MechanizeState(state.x0, tuners, inner)

    return Transform(
        init,
        transform,
        hypers=merged,
        scopes=[*base_optimizer._scopes, ("mechanize", "tree")],
    )
