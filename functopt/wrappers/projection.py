"""Parameters that are kept in a set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
from torch import Tensor

from functopt import projections
from functopt.base import Scope, Transform
from functopt.combine import combinator, no_updates
from functopt.hypers import Hypers
from functopt.tree import Tree, is_schedule, layout_of
from functopt.wrappers.common import check_inner, own_hypers

__all__ = ["projected"]

_BY_ENTRY = (
    projections.projection_non_negative,
    projections.projection_box,
    projections.projection_hypercube,
    projections.projection_linf_ball,
)


@combinator
def projected(inner: Transform, projection: Callable[..., Tree], **settings: Any) -> Transform:
    """Project the parameters onto a set after every step: projected gradient descent.

    ``p ← P(p + u)``, where ``u`` is the step of the optimizer. Goldstein, "Convex Programming in Hilbert Space" (1964).

    It writes the parameters itself, so it is the last of a chain. The parameters at the start are not projected.

    Args:
        inner: any optimizer.
        projection: ``projection(tree, **settings)``, one of :mod:`functopt.projections` or a function of your own.
        **settings: its further arguments. Numbers, 0-d tensors, schedules and trees of such are hypers under their
            names; what holds larger tensors (the ``a`` of a hyperplane) is a constant.

    Raises:
        TypeError: ``inner`` is not a transform, or ``projection`` not a function.
        ValueError: the optimizer has a hyper with the name of a setting.

    >>> tx = projected(sgd(0.1), projection_l2_ball, scale=1.0)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.4122, -0.9111])}
    """
    check_inner("projected", inner)
    if not callable(projection):
        raise TypeError(f"projected: projection is a {type(projection).__name__}, expected a function of a tree")
    hypers = {name: value for name, value in settings.items() if _is_hyper(value)}
    constants = {name: value for name, value in settings.items() if name not in hypers}
    merged = own_hypers("projected", inner, hypers)

    def write(grads: Tree, state: Tree, params: Tree, values: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        params, state = inner.run(grads, state, params, values, **extras)
        return projection(params, **constants, **{name: values[name] for name in hypers}), state

    def rebind(new: dict[str, Any]) -> Transform:
        own = {name: new[name] for name in hypers if name in new}
        below = inner.with_hypers(**{name: value for name, value in new.items() if name not in own})
        return projected(below, projection, **{**settings, **own})

    return Transform(
        inner._init,
        no_updates("projected"),
        write=write,
        hypers=merged,
        rebind=rebind,
        scopes=[*inner._scopes, ("projected", "any" if constants else _scope(projection))],
    )


def _scope(projection: Callable[..., Tree]) -> Scope:
    """Return on what an entry depends; one of a user's projection may depend on anything."""
    if projection in _BY_ENTRY:
        return "element"
    return "tree" if projection.__module__ == projections.__name__ else "any"


def _is_hyper(value: Any) -> bool:
    if layout_of(value) is not None:  # numbers by leaf, beside packed parameters
        return True
    leaves = optree.tree_leaves(value, is_leaf=is_schedule)
    return all(
        is_schedule(leaf) or isinstance(leaf, (float, int)) or (isinstance(leaf, Tensor) and not leaf.ndim)
        for leaf in leaves
    )
