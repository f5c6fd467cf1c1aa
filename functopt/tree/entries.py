"""Entries of a state by name, through any nesting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from functopt.tree.walk import Tree, children, prefix_problem, rebuild

__all__ = ["get", "set"]


def _entries(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every node below ``tree`` with its path, children after their parent."""
    if path:
        yield path, tree
    for key, child in children(tree):
        yield from _entries(child, (*path, str(key)))


def _find(tree: Tree, name: str) -> tuple[tuple[str, ...], Any]:
    joined = [(".".join(path), path, node) for path, node in _entries(tree)]  # a key may have dots in it
    found = [(path, node) for full, path, node in joined if full == name]  # what is named in full is not ambiguous
    found = found or [(path, node) for full, path, node in joined if full.endswith("." + name)]
    if not found:
        names = sorted({path[-1] for path, _ in _entries(tree) if not path[-1].isdigit()})
        raise KeyError(f"no entry named {name!r}; the names in this tree are {names}")
    if len(found) > 1:
        paths = [".".join(path) for path, _ in found]
        raise KeyError(f"{name!r} names {len(found)} entries: {paths}; give more of the path, as in {paths[0]!r}")
    return found[0]


def get(tree: Tree, name: str) -> Any:
    """Return the entry called ``name``, however deeply it is nested.

    A name is a field of a named tuple, a key of a dict, an index, or the dotted end of a path: ``"mu"``,
    ``"mu.total"``, ``"mu.total.head.weight"``, ``"0.nu"``.

    Raises:
        KeyError: no entry has that name, or several have; the message lists them.
    """
    return _find(tree, name)[1]


def set(tree: Tree, entries: Mapping[str, Any] | None = None, /, **named: Any) -> Tree:
    """Return a copy of ``tree`` in which the named entries are replaced; ``tree`` itself stays as it is.

    Args:
        tree: any nesting of named tuples, dicts, tuples and lists.
        entries: values by name, for names with dots in them; names are read as in :func:`get`.
        **named: values by name.

    Raises:
        KeyError: as in :func:`get`.
        ValueError: a value has another structure than the entry it replaces.
    """
    for name, value in {**(entries or {}), **named}.items():
        path, old = _find(tree, name)
        problem = prefix_problem(value, old, exact=True)
        if problem:
            raise ValueError(f"tree.set: the new value of {name!r} has another structure: {problem}")
        tree = _replace(tree, path, value)
    return tree


def _replace(tree: Tree, path: tuple[str, ...], value: Any) -> Tree:
    if not path:
        return value
    head, rest = path[0], path[1:]
    parts = children(tree)
    new = [_replace(child, rest, value) if str(key) == head else child for key, child in parts]
    return rebuild(tree, [key for key, _ in parts], new)
