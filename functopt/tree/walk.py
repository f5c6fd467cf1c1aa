"""Walking trees: leaf by leaf with prefix broadcasting, node by node, and paths."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optree
from torch import Tensor

__all__ = [
    "children",
    "describe",
    "is_schedule",
    "layout_of",
    "leaves",
    "leaves_with_paths",
    "map",
    "path_name",
    "prefix_problem",
    "rebuild",
    "trim",
]

Tree = Any

_VALUES = (Tensor, float, int, str)  # what most leaves are


def map(f: Callable[..., Any], first: Tree, *rest: Tree) -> Tree:
    """Apply ``f`` leaf by leaf over ``first``, broadcasting every other argument to its structure.

    Args:
        f: called as ``f(leaf, *values)``, once for each leaf of ``first``.
        first: the tree that gives the result its structure.
        *rest: trees of the same structure, *prefix trees* (a value stands for the whole subtree below it), or plain
            numbers and tensors (one value for all leaves).

    Raises:
        ValueError: an argument is neither; the message names the first path that does not fit.

    >>> map(lambda x, y: x * y, {"a": [1, 2], "b": 3}, {"a": 10, "b": 100})
    {'a': [10, 20], 'b': 300}
    """
    return _map(f, first, rest, ())


def _map(f: Callable[..., Any], node: Tree, others: Sequence[Tree], path: tuple[Any, ...]) -> Tree:
    level = None if isinstance(node, _VALUES) else _one_level(node)
    if level is None:
        for i in range(len(others)):  # enumerate is a generator to torch.compile, and takes long to trace
            if not isinstance(others[i], _VALUES) and _one_level(others[i]) is not None:
                below = next(iter(optree.tree_paths(others[i])), None)
                what = "has no counterpart" if below is None else "is not expected there"
                raise _MismatchError(i + 2, (*path, *(below or ())), what)
        return f(node, *others)
    keys, children = level
    columns = [_below(others[i], node, keys, path, i + 2) for i in range(len(others))]
    rows = zip(keys, children, *columns, strict=True)
    new = [_map(f, child, values, (*path, key)) for key, child, *values in rows]
    return rebuild(node, keys, new)


def _below(tree: Tree, node: Tree, keys: Sequence[Any], path: tuple[Any, ...], position: int) -> Sequence[Tree]:
    """Return what a prefix tree has for each child of ``node``."""
    level = _one_level(tree)
    if level is None:
        return [tree] * len(keys)
    layout = layout_of(node)
    if layout is not None and type(tree) is not type(node) and layout_of(tree) in (None, layout):
        if type(tree) is layout.blocks:
            raise _MismatchError(position, path, "is not one number for each leaf")
        return layout.spread(tree, node)  # hypers and masks speak of the original tree
    own, children = level
    for key in keys:
        if key not in own:
            raise _MismatchError(position, (*path, key), "has no counterpart")
    for key in own:
        if key not in keys:
            raise _MismatchError(position, (*path, key), "is not expected there")
    if type(tree) is not type(node):
        raise _MismatchError(position, path, f"is a {type(tree).__name__}, expected a {type(node).__name__}")
    return [tree[key] for key in keys] if isinstance(tree, dict) else children


class _MismatchError(ValueError):
    """A tree that is no prefix: the position of the argument, where it does not fit, and what is wrong there."""

    def __init__(self, position: int, path: tuple[Any, ...], what: str) -> None:
        self.path, self.problem = path, f"{path_name(path)!r} {what}"
        super().__init__(f"tree.map: argument {position} does not fit the first tree: {self.problem}")


# Dicts, lists and tuples are taken apart here and not by optree: the stand-ins for it that torch 2.14 has inside
# torch.compile fail on trees of plain numbers, such as masks and hypers per layer, and take thrice as long to trace.


def _one_level(node: Tree) -> tuple[Sequence[Any], Sequence[Tree]] | None:
    """Return the keys and the children of a node, or None for a leaf; a schedule counts as a leaf."""
    if isinstance(node, _VALUES):
        return None
    if type(node) in (dict, OrderedDict, defaultdict):
        return list(node), list(node.values())
    if type(node) in (tuple, list):
        return list(range(len(node))), node
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return None if callable(node) else (list(node._fields), node)  # pyright: ignore[reportAttributeAccessIssue]
    if node is None:
        return (), ()
    other: Any = node
    if optree.tree_is_leaf(other):
        return None
    children, _, entries, _ = optree.tree_flatten_one_level(other)
    return list(entries), children


def children(node: Tree) -> list[tuple[Any, Tree]]:
    """Return the children of a node by key, index or field name; a leaf has none."""
    level = _one_level(node)
    return [] if level is None else [*zip(*level, strict=True)]


def rebuild(node: Tree, keys: Sequence[Any], children: Sequence[Any]) -> Tree:
    """Return a node like ``node`` with other children."""
    if isinstance(node, dict):
        new = node.copy()
        new.update(zip(keys, children, strict=True))
        return new
    if type(node) in (tuple, list):
        return type(node)(children)
    if isinstance(node, tuple):
        return type(node)(*children)
    if node is None:
        return None
    _, metadata, _, unflatten = optree.tree_flatten_one_level(node)
    return unflatten(metadata, children)


def prefix_problem(tree: Tree, full: Tree, *, exact: bool = False) -> str:
    """Say where ``tree`` stops being a prefix of ``full``, or with ``exact`` of its structure; empty if nowhere."""
    if not exact and _one_level(tree) is None:
        return ""
    layout = layout_of(full)
    if layout is not None and layout_of(tree) is None:
        full = layout.positions
    try:
        map(lambda *_: None, full, tree)
    except _MismatchError as mismatch:
        return mismatch.problem
    if exact:
        try:
            map(lambda *_: None, tree, full)
        except _MismatchError as mismatch:
            return f"{path_name(mismatch.path)!r} has no counterpart"
        if optree.tree_structure(tree) != optree.tree_structure(full):  # ordered dicts in another order
            return f"its containers differ: {describe(tree)} against {describe(full)}"
    return ""


def layout_of(node: Tree) -> Any:
    """Return the :class:`Layout <functopt.tree.Layout>` of a packed node, or None."""
    return getattr(type(node), "layout", None) if isinstance(node, tuple) else None


def trim(prefix: Tree, full: Tree) -> Tree:
    """Drop what ``full`` does not have from the dicts of a prefix tree, so that it may cover more than ``full``."""
    if isinstance(prefix, dict) and isinstance(full, dict):
        return type(prefix)({key: trim(below, full[key]) for key, below in prefix.items() if key in full})
    return prefix


def describe(tree: Tree) -> str:
    """Describe the structure of a tree on one short line, with ``*`` for each leaf."""
    text = str(optree.tree_structure(tree)).removeprefix("PyTreeSpec(").removesuffix(")")
    return text if len(text) <= 120 else text[:117] + "..."


def path_name(path: Sequence[Any]) -> str:
    """Join the keys of a path with dots; the path of a bare leaf is ``"(root)"``."""
    return ".".join(str(key) for key in path) or "(root)"


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves of a tree, depth first, dicts in the order of their keys."""
    return optree.tree_leaves(tree)


def leaves_with_paths(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` for every leaf, in the order of ``optree.tree_leaves``."""
    paths, leaves, _ = optree.tree_flatten_with_path(tree)
    for path, leaf in zip(paths, leaves, strict=True):
        yield path_name(path), leaf


def is_schedule(value: Any) -> bool:
    """Tell whether a hyper is a schedule: a named tuple that can be called with the step."""
    return isinstance(value, tuple) and hasattr(value, "_fields") and callable(value)
