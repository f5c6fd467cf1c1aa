"""Pytrees: what optree lacks.

Every tree here is an `optree <https://optree.readthedocs.io>`_ tree: nested dicts, tuples, lists and named tuples with
tensors (or numbers) at the leaves. A *path* is the dotted names that lead to a leaf, such as ``"head.weight"``.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from functopt.numerics import accumulator_dtype, sqrt

__all__ = [
    "check_same",
    "children",
    "get",
    "leaves",
    "leaves_with_paths",
    "map",
    "member",
    "norm",
    "ravel",
    "rebuild",
    "replicate",
    "scalars",
    "set",
    "size",
    "stack",
    "zeros_like",
]

Tree = Any


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
    level = _one_level(node)
    if level is None:
        for position, other in enumerate(others, 2):
            if _one_level(other) is not None:
                below = next(iter(optree.tree_paths(other)), None)
                what = "has no counterpart" if below is None else "is not expected there"
                raise _MismatchError(position, (*path, *(below or ())), what)
        return f(node, *others)
    keys, children = level
    columns = [_below(other, node, keys, path, position) for position, other in enumerate(others, 2)]
    new = [
        _map(f, child, [column[i] for column in columns], (*path, key))
        for i, (key, child) in enumerate(zip(keys, children, strict=True))
    ]
    return rebuild(node, keys, new)


def _below(tree: Tree, node: Tree, keys: Sequence[Any], path: tuple[Any, ...], position: int) -> Sequence[Tree]:
    """Return what a prefix tree has for each child of ``node``."""
    level = _one_level(tree)
    if level is None:
        return [tree] * len(keys)
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
    if isinstance(node, (Tensor, float, int)) or is_schedule(node):
        return None
    if type(node) in (dict, OrderedDict, defaultdict):
        return list(node), list(node.values())
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return list(node._fields), node  # pyright: ignore[reportAttributeAccessIssue]
    if type(node) in (tuple, list):
        return list(range(len(node))), node
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


def check_same(tree: Tree, params: Tree, what: str) -> None:
    """Check that ``tree`` has the structure, shapes, dtypes and devices of ``params``.

    Raises:
        ValueError: it does not; the message names ``what`` and the first path that differs.
    """
    leaves, spec = optree.tree_flatten(tree)
    wanted, expected = optree.tree_flatten(params)
    if spec != expected:
        hint = _none_hint(tree, what)
        raise ValueError(f"{what}: the tree does not match params: {prefix_problem(tree, params, exact=True)}.{hint}")
    for i, (leaf, param) in enumerate(zip(leaves, wanted, strict=True)):
        if _facts_of(leaf) != _facts_of(param):
            path = path_name(optree.tree_paths(params)[i])
            raise ValueError(f"{what}: at {path!r} expected {_facts(param)}, got {_facts(leaf)}.")


def _none_hint(tree: Tree, what: str) -> str:
    paths, leaves, _ = optree.tree_flatten_with_path(tree, none_is_leaf=True)
    missing = [path_name(path) for path, leaf in zip(paths, leaves, strict=True) if leaf is None]
    if not missing:
        return ""
    return (
        f" The {what} at {missing[0]!r} is None: give zeros there, leave that parameter out of the trees, or use "
        "StatefulOptimizer, which skips parameters without a gradient."
    )


def _facts_of(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device, tensor.layout


def _facts(tensor: Tensor) -> str:
    kind = "" if tensor.layout is torch.strided else "sparse "
    return f"{kind}{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device}"


def check_params(params: Tree, who: str) -> None:
    """Check that a tree can be optimized: not empty, every leaf a dense floating-point tensor.

    Raises:
        ValueError: the tree has no leaves.
        TypeError: a leaf is not a tensor, or is an integer, complex or sparse one; the message names its path.
    """
    leaves = optree.tree_leaves(params)
    if not leaves:
        raise ValueError(f"{who}: params has no leaves; give a tree with at least one tensor.")
    for i, leaf in enumerate(leaves):
        problem = ""
        if not isinstance(leaf, Tensor):
            problem = f"a {type(leaf).__name__}"
        elif not leaf.is_floating_point():
            problem = f"a {str(leaf.dtype).removeprefix('torch.')} tensor"
        elif leaf.layout is not torch.strided:
            problem = "a sparse tensor"
        if problem:
            path = path_name(optree.tree_paths(params)[i])
            raise TypeError(f"{who}: the leaf at {path!r} is {problem}; expected a dense floating-point tensor.")


# State entries by name


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


# Arithmetic


def zeros_like(params: Tree, dtype: torch.dtype | None = None, *, accumulate: bool = False) -> Tree:
    """Return a tree of zeros; with ``accumulate`` its leaves are float32 at least."""
    return map(
        lambda p: torch.zeros_like(p, dtype=accumulator_dtype(p.dtype) if accumulate else dtype, requires_grad=False),
        params,
    )


def is_schedule(value: Any) -> bool:
    """Tell whether a hyper is a schedule: a named tuple that can be called with the step."""
    return isinstance(value, tuple) and hasattr(value, "_fields") and callable(value)


def scalars(params: Tree, *hypers: Tree, value: float = 0.0) -> Tree:
    """Return 0-d bookkeeping tensors with the structure of the hypers: one, or one for each group that they tell apart.

    They live on the device of the parameters that they stand for and are float32 at least.

    Args:
        params: the parameters.
        *hypers: numbers, 0-d tensors, schedules or prefix trees of ``params`` with those at the leaves. Where they
            differ in structure, the result has one scalar for each leaf of ``params``.
        value: what the scalars hold.
    """
    like: Tree = hypers[0] if hypers else value
    structures = [optree.tree_structure(hyper, is_leaf=is_schedule) for hyper in hypers]
    if any(structure != structures[0] for structure in structures):
        like = params
    return optree.tree_map(
        lambda _, below: _scalar(optree.tree_leaves(below)[0], value), like, params, is_leaf=is_schedule
    )


def _scalar(like: Tensor, value: float) -> Tensor:
    return like.new_full((), value, dtype=accumulator_dtype(like.dtype), requires_grad=False)


def norm(tree: Tree) -> Tensor:
    """Return the 2-norm of all entries of a tree, a 0-d tensor summed in float32 at least.

    Its derivative at zero is 0.
    """
    leaves = optree.tree_leaves(tree)
    if not leaves:
        raise ValueError("tree.norm: the tree has no leaves")
    squares = [leaf.to(accumulator_dtype(leaf.dtype)).square().sum() for leaf in leaves]
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    return sqrt(total)


def size(tree: Tree) -> int:
    """Return the number of scalars in a tree."""
    return sum(leaf.numel() for leaf in optree.tree_leaves(tree))


# A leading axis of members


def stack(trees: Sequence[Tree]) -> Tree:
    """Stack trees of one structure into one whose leaves have a leading axis: the inverse of :func:`member`.

    Raises:
        ValueError: there are none, or their structures or shapes differ.
    """
    if not trees:
        raise ValueError("tree.stack: no trees to stack")
    for i, tree in enumerate(trees[1:], 1):
        check_same(tree, trees[0], f"tree.stack: tree {i}")
    return map(lambda *leaves: torch.stack(leaves), trees[0], *trees[1:])


def member(tree: Tree, index: int) -> Tree:
    """Return one member of a stacked tree, as views."""
    return map(lambda leaf: leaf[index], tree)


def replicate(tree: Tree, count: int) -> Tree:
    """Return ``count`` copies of a tree along a new leading axis; every copy owns its memory."""
    return map(lambda leaf: leaf.detach().expand(count, *leaf.shape).clone(), tree)


# Flat vectors


def ravel(tree: Tree) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Concatenate all leaves into one vector, and return it with the function that goes back.

    Args:
        tree: tensors. If they share a dtype and device the result is one vector, otherwise a dict of vectors keyed
            by both, as ``"float32 on cpu"`` (a flat vector, or a dict of them, is a pytree too: any layout-invariant
            optimizer runs on it).

    Returns:
        ``(flat, unravel)``, where ``unravel(flat)`` has the structure of ``tree`` and its leaves are views of ``flat``.

    Raises:
        ValueError: the tree has no leaves.
    """
    leaves, spec = optree.tree_flatten(tree)
    if not leaves:
        raise ValueError("tree.ravel: the tree has no leaves")
    keys = [f"{str(leaf.dtype).removeprefix('torch.')} on {leaf.device}" for leaf in leaves]
    shapes = [leaf.shape for leaf in leaves]
    groups = {key: [i for i, k in enumerate(keys) if k == key] for key in sorted({*keys})}
    flat = {key: torch.cat([leaves[i].reshape(-1) for i in indices]) for key, indices in groups.items()}
    single = len(flat) == 1
    positions = optree.tree_unflatten(spec, range(len(leaves)))

    def unravel(flat: Tree) -> Tree:
        vectors = {keys[0]: flat} if single else flat
        parts: list[Any] = [None] * len(shapes)
        for key, indices in groups.items():
            pieces = vectors[key].split([shapes[i].numel() for i in indices])
            for i, piece in zip(indices, pieces, strict=True):
                parts[i] = piece.view(shapes[i])
        return map(lambda i: parts[i], positions)

    return (flat[keys[0]] if single else flat), unravel
