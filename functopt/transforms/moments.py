"""What rules with running moments share."""

from __future__ import annotations

from typing import Any

from functopt import tree
from functopt.ema import Ema
from functopt.numerics import accumulator_dtype, root
from functopt.tree import Tree

__all__ = ["begun_at", "is_zero", "look_ahead", "over_root", "squares"]


def squares(grads: Tree) -> Tree:
    """Return the square of every entry, in float32 at least."""
    return tree.map(lambda g: g.to(accumulator_dtype(g.dtype)).square(), grads)


def begun_at(ema: Ema, start: Tree) -> Ema:
    """Return a damped average as if its sum had begun at ``start`` and not at 0.

    Of it ``1 - weight`` is left, which is ``decay^t``. That it is added here, and not kept in the state, makes it data.
    """
    if is_zero(start):
        return ema
    left = lambda t, w, s: t + ((1 - w) * s).to(t.dtype)
    return ema._replace(total=tree.map(left, ema.total, ema.weight, start))


def look_ahead(grads: Tree, mu: Ema, beta1: Tree) -> Tree:
    """Return ``β1·m/(1 - β1^(t+1)) + (1 - β1)·g/(1 - β1^t)``: Nesterov's numerator, as optax debiases it."""
    ahead = lambda g, m, w, b: b * m / (b * w + (1 - b)) + (1 - b) * g / w
    return tree.map(ahead, grads, mu.total, mu.weight, beta1)


def over_root(numerator: Tree, second: Tree, eps: Tree, eps_root: Tree = 0.0) -> Tree:
    """Return ``m / (√(v + eps_root) + eps)`` for the entries ``m`` of one tree and ``v`` of the other."""
    return tree.map(lambda m, v, e, r: m / (root(v if is_zero(r) else v + r, e) + e), numerator, second, eps, eps_root)


def is_zero(number: Any) -> bool:
    """Tell whether a hyper is the number 0, and not a tensor that may become another."""
    return isinstance(number, (float, int)) and number == 0
