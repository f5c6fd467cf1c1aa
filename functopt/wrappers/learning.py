"""What wrappers check that learn from the updates of another optimizer."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.hypers import Hypers, check_hyper
from functopt.tree import Tree

__all__ = ["check_base", "check_state"]


def check_base(who: str, base: Any, own: Hypers) -> None:
    """Check what is wrapped, and the hypers that the wrapper adds.

    Raises:
        TypeError: it is no transform.
        ValueError: it has no updates to return, or a hyper of one of these names.
    """
    if not isinstance(base, Transform):
        raise TypeError(f"{who}: base_optimizer is a {type(base).__name__}, expected a Transform")
    if base.writes:
        raise ValueError(f"{who}: {base.name} writes the parameters itself and has no updates to work with")
    for name, value in own.items():
        check_hyper(who, name, value)
        if name in base._defaults:
            raise ValueError(f"{who}: {base.name} has a hyper {name!r} too; rename that one")


def check_state(who: str, state: Tree, cls: type) -> None:
    """Check that a state is the wrapper's.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(state, cls):
        raise ValueError(
            f"{who}: the state belongs to another optimizer: expected {cls.__name__}, got {type(state).__name__}. "
            "Use the state that init of this optimizer returned."
        )
