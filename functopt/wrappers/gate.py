"""What wrappers share that take the step of another transform only under a condition, which is data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optree
from torch import Tensor

from functopt.base import Transform
from functopt.hypers import Hypers, check_hyper, same_value
from functopt.tree import Tree, is_schedule

__all__ = ["check_inner", "check_state", "gate", "one_value", "own_hypers"]

Run = Callable[..., tuple[Tree, Tree]]


def check_inner(who: str, inner: Any) -> None:
    """Raise if what is wrapped is not a transform."""
    if not isinstance(inner, Transform):
        hint = "; call it to make one" if callable(inner) else ""
        raise TypeError(f"{who}: inner is a {type(inner).__name__}, expected a Transform{hint}")


def own_hypers(who: str, inner: Transform, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hypers of a wrapper: those of what it wraps, and its own."""
    for name, value in own.items():
        check_hyper(who, name, value)
        if name in inner._defaults:
            raise ValueError(f"{who}: {inner.name} has a hyper {name!r} too; rename that one")
    return {**inner._defaults, **own}


def check_state(who: str, state: Any, cls: type) -> None:
    """Raise if a state is not one of a class."""
    if not isinstance(state, cls):
        raise ValueError(
            f"{who}: the state belongs to another optimizer: expected {cls.__name__}, got {type(state).__name__}. "
            "Use the state that init of this optimizer returned."
        )


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
