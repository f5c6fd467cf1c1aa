"""What wrappers share that take the step of another transform only under a condition, which is data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
from torch import Tensor

from functopt.base import Transform
from functopt.hypers import Hypers, same_value
from functopt.tree import Tree, is_schedule

__all__ = ["Run", "gate", "one_value"]

Run = Callable[..., tuple[Tree, Tree]]


def one_value(who: str, name: str, value: Any) -> Any:
    """Return the value of a hyper that is one for all parameters, even if it is given for each of them."""
    found: list[Any] = optree.tree_leaves(value, is_leaf=is_schedule)
    if any(isinstance(leaf, Tensor) and leaf.ndim for leaf in found) or not all(_same(found[0], v) for v in found):
        raise ValueError(f"{who}: {name} is one value for all parameters, got a tree of different ones")
    return found[0]


def _same(a: Any, b: Any) -> bool:
    return a is b or (not (isinstance(a, Tensor) or isinstance(b, Tensor)) and same_value(a, b))


def gate(inner: Transform, step: Callable[..., tuple[Tree, Tree]], init: Callable[[Tree], Tree], **fields: Any) -> Any:
    """Make a wrapper that writes the parameters itself if what it wraps does.

    Args:
        inner: what is wrapped.
        step: ``(run, updates, state, params, hypers, extras) -> (result, state)``, where ``run`` is the step of
            ``inner``; the result is what that returns, updates or new parameters.
        init: of the wrapper.
        **fields: hypers, scopes and rebind of the wrapper.
    """

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return step(inner._transform, updates, state, params, hypers, extras)

    def write(grads: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        return step(inner.run, grads, state, params, hypers, extras)

    return Transform(init, transform, write=write if inner.writes else None, **fields)
