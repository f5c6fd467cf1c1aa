"""The state of an optimizer taken apart by parameter, for parameters in a flat dict.

Such a state is any nesting in which a dict with exactly the parameters' keys holds one entry for each parameter; every
other tensor is shared by all of them. An entry may be a tensor or a nesting of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

from torch import Tensor

from functopt import tree
from functopt.tree import Tree

__all__ = ["SHARED", "entries", "map_entries", "select"]

SHARED = object()
"""The owner of what belongs to all parameters."""

Keys = AbstractSet[Any]


def entries(state: Tree, keys: Keys) -> dict[tuple[Any, str], Tensor]:
    """Return every tensor of a state by its owner, a parameter's key or ``SHARED``, and its name.

    A name is made of field names, such as ``"mu.total"``; positions in chains are in it only where they are needed.
    """
    found: dict[tuple[Any, tuple[Any, ...]], Tensor] = {}

    def collect(owner: Any, path: tuple[Any, ...], leaf: Tensor) -> Tensor:
        found[owner, path] = leaf
        return leaf

    map_entries(collect, state, keys)
    short = {path: ".".join(str(part) for part in path if not isinstance(part, int)) for _, path in found}
    names = [*short.values()]
    unique = {path: name if name and names.count(name) == 1 else tree.path_name(path) for path, name in short.items()}
    return {(owner, unique[path]): leaf for (owner, path), leaf in found.items()}


def select(state: Tree, keys: Keys, some: Keys) -> Tree:
    """Return the state of some of the parameters, with what is shared."""
    if isinstance(state, Tensor):
        return state
    if _is_by_parameter(state, keys):
        return {key: value for key, value in state.items() if key in some}
    if getattr(state, "by_label", False):
        return type(state)({label: select(part, keys, some) for label, part in state[0].items()})
    return _like(state, [select(child, keys, some) for _, child in tree.children(state)])


def map_entries(
    f: Callable[[Any, tuple[Any, ...], Tensor], Tensor],
    node: Tree,
    keys: Keys,
    owner: Any = SHARED,
    path: tuple[Any, ...] = (),
) -> Tree:
    """Map ``f(owner, path, tensor)`` over a state; a parameter's key is its owner and no part of the path."""
    if isinstance(node, Tensor):
        return f(owner, path, node)
    if owner is SHARED and _is_by_parameter(node, keys):
        return {key: map_entries(f, child, keys, key, path) for key, child in node.items()}
    if getattr(node, "by_label", False):  # its dict may have the parameters' keys, and is no entry for each of them
        parts = {label: map_entries(f, part, keys, owner, (*path, label)) for label, part in node[0].items()}
        return type(node)(parts)
    return _like(node, [map_entries(f, child, keys, owner, (*path, name)) for name, child in tree.children(node)])


def _is_by_parameter(node: Tree, keys: Keys) -> bool:
    return isinstance(node, dict) and node.keys() == keys


def _like(node: Tree, children: list[Tree]) -> Tree:
    return tree.rebuild(node, [key for key, _ in tree.children(node)], children)
