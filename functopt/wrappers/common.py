"""What wrappers check of what they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from functopt.base import Transform
from functopt.hypers import check_hyper

__all__ = ["check_inner", "check_state", "own_hypers", "with_updates"]


def check_inner(who: str, inner: Any, what: str = "inner") -> None:
    """Raise if what is wrapped is not a transform."""
    if not isinstance(inner, Transform):
        hint = "; call it to make one" if callable(inner) else ""
        raise TypeError(f"{who}: {what} is a {type(inner).__name__}, expected a Transform{hint}")


def own_hypers(who: str, inner: Transform, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hypers of a wrapper: those of what it wraps, and its own.

    Raises:
        ValueError: a number is out of range, or both have a hyper of one name.
    """
    for name, value in own.items():
        check_hyper(who, name, value)
        if name in inner._defaults:
            raise ValueError(f"{who}: {inner.name} has a hyper {name!r} too; rename that one")
    return {**inner._defaults, **own}


def with_updates(who: str, base: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hypers of a wrapper that learns from the updates of another optimizer.

    Raises:
        TypeError: that is no transform.
        ValueError: it has no updates to return, or a hyper of one of the wrapper's names.
    """
    check_inner(who, base, "base_optimizer")
    if base.writes:
        raise ValueError(f"{who}: {base.name} writes the parameters itself and has no updates to work with")
    return own_hypers(who, base, own)


def check_state(who: str, state: Any, cls: type) -> None:
    """Raise if a state is not one of a class."""
    if not isinstance(state, cls):
        raise ValueError(
            f"{who}: the state belongs to another optimizer: expected {cls.__name__}, got {type(state).__name__}. "
            "Use the state that init of this optimizer returned."
        )
