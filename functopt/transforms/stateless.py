"""Links made of a plain function of the updates and the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from torch import Tensor

from functopt import tree
from functopt.base import Scope, Transform
from functopt.combine import combinator
from functopt.hypers import Hypers
from functopt.tree import Tree

__all__ = ["stateless", "stateless_with_tree_map"]


def _link_of(who: str, f: Any, scope: Scope, run: Callable[[Tree, Tree], Tree]) -> Transform:
    if not callable(f) or isinstance(f, Transform):
        raise TypeError(f"{who}: expected a function of (updates, params), got a {type(f).__name__}")
    if scope not in get_args(Scope):
        raise ValueError(f"{who}: scope must be one of {get_args(Scope)}, got {scope!r}")

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return run(updates, params), state

    return Transform(lambda params: (), transform, scopes=[(who, scope)])


@combinator
def stateless(f: Callable[[Tree, Tree], Tree], *, scope: Scope = "any") -> Transform:
    """Make a link of a function of the updates and the parameters: ``u ← f(u, p)``.

    A link with hypers or a state is written with the decorator :func:`link <functopt.link>`. To be pickled, the
    function must be one that can be imported.

    Args:
        f: ``(updates, params) -> updates``, a pure function of trees.
        scope: on what an entry of the result depends, as for :func:`link <functopt.link>`; it says how the link may
            be run, and the function must keep to it.

    Raises:
        TypeError: ``f`` is not a function.
        ValueError: there is no such scope.

    >>> tx = chain(stateless(lambda u, p: tree.map(torch.sign, u)), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    return _link_of("stateless", f, scope, f)


@combinator
def stateless_with_tree_map(f: Callable[[Tensor, Tensor], Tensor], *, scope: Scope = "matrix") -> Transform:
    """Make a link of a function of one leaf: ``u ← f(u, p)`` for each leaf ``u`` and its parameter ``p``.

    Args:
        f: ``(update, param) -> update``, a pure function of tensors.
        scope: as in :func:`stateless`; ``"element"``, if an entry of the result depends on the same entry only.

    Raises:
        TypeError: ``f`` is not a function.
        ValueError: there is no such scope.

    >>> tx = stateless_with_tree_map(lambda u, p: -0.1 * u * p.abs(), scope="element")
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.2000])}
    """
    return _link_of("stateless_with_tree_map", f, scope, lambda updates, params: tree.map(f, updates, params))
