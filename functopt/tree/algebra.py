"""Trees as vectors: sums, products, extremes, entry by entry and over all leaves.

Names are those of ``optax.tree``. The second operand of :func:`add`, :func:`sub`, :func:`mul` and :func:`div` may be a
prefix tree, a number or a 0-d tensor too.
"""

from __future__ import annotations

import operator
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from functopt.numerics import add_scaled
from functopt.tree.arithmetic import _reduced, sums
from functopt.tree.layout import unpack
from functopt.tree.walk import Tree, leaves, map

__all__ = [
    "add",
    "add_scale",
    "allclose",
    "cast",
    "cast_like",
    "clip",
    "div",
    "full_like",
    "max",
    "min",
    "mul",
    "ones_like",
    "scale",
    "sub",
    "sum",
    "where",
]


def add(tree_x: Tree, tree_y: Tree, *other_trees: Tree) -> Tree:
    """Return ``x + y``, and what else there is to add."""
    return map(lambda *leaves: reduce(operator.add, leaves), tree_x, tree_y, *other_trees)


def sub(tree_x: Tree, tree_y: Tree) -> Tree:
    """Return ``x - y``."""
    return map(operator.sub, tree_x, tree_y)


def mul(tree_x: Tree, tree_y: Tree) -> Tree:
    """Return ``x·y``, entry by entry."""
    return map(operator.mul, tree_x, tree_y)


def div(tree_x: Tree, tree_y: Tree) -> Tree:
    """Return ``x/y``, entry by entry."""
    return map(operator.truediv, tree_x, tree_y)


def scale(scalar: Tree, tree: Tree) -> Tree:
    """Return ``scalar·x``."""
    return map(lambda x, s: s * x, tree, scalar)


def add_scale(tree_x: Tree, scalar: Tree, tree_y: Tree) -> Tree:
    """Return ``x + scalar·y``."""
    return map(add_scaled, tree_x, scalar, tree_y)


def where(condition: Tree, tree_x: Tree, tree_y: Tree) -> Tree:
    """Return ``x`` where the condition holds, a bool, tensor or prefix tree of such, otherwise ``y``."""
    return map(lambda x, y, c: torch.where(torch.as_tensor(c, device=x.device), x, y), tree_x, tree_y, condition)


def clip(tree: Tree, min_value: Any = None, max_value: Any = None) -> Tree:
    """Return the tree with every entry brought into ``[min_value, max_value]``; None is no bound."""
    if min_value is None and max_value is None:
        return tree
    return map(lambda x: torch.clamp(x, min_value, max_value), tree)


def sum(tree: Tree) -> Tensor:
    """Return the sum of all entries, in float32 at least."""
    return reduce(operator.add, leaves(map(lambda s: s.sum(), sums(tree))))


def max(tree: Tree) -> Tensor:
    """Return the largest of all entries; leaves without entries do not count, and without any it is -infinity."""
    return _extreme(tree, torch.amax, torch.maximum, -torch.inf)


def min(tree: Tree) -> Tensor:
    """Return the least of all entries; leaves without entries do not count, and without any it is infinity."""
    return _extreme(tree, torch.amin, torch.minimum, torch.inf)


def _extreme(tree: Tree, of_leaf: Any, of_two: Any, of_nothing: float) -> Tensor:
    every = leaves(unpack(tree))
    found = [_reduced(of_leaf(leaf)) for leaf in every if leaf.numel()]
    return reduce(of_two, found) if found else every[0].new_full((), of_nothing)


def full_like(tree: Tree, fill_value: Any, dtype: torch.dtype | None = None) -> Tree:
    """Return a tree of one number, a plain one or a 0-d tensor."""
    return map(lambda x: torch.ones_like(x, dtype=dtype) * fill_value, tree)


def ones_like(tree: Tree, dtype: torch.dtype | None = None) -> Tree:
    """Return a tree of ones."""
    return map(lambda x: torch.ones_like(x, dtype=dtype), tree)


def cast(tree: Tree, dtype: torch.dtype | None) -> Tree:
    """Return the tree in another dtype; None leaves it as it is."""
    return tree if dtype is None else map(lambda x: x.to(dtype), tree)


def cast_like(tree: Tree, other_tree: Tree) -> Tree:
    """Return the tree with the dtypes of another."""
    return map(lambda x, other: x.to(other.dtype), tree, other_tree)


def allclose(a: Tree, b: Tree, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Tell whether two trees agree within ``atol + rtol·|b|``, entry by entry."""
    return all(leaves(map(lambda x, y: torch.allclose(x, y, rtol, atol, equal_nan), a, b)))
