"""Sums over all entries of a tree: one number of the whole, or one for each group that hypers tell apart."""

from __future__ import annotations

import functools
import operator

import optree
from torch import Tensor

from functopt import tree
from functopt.numerics import accumulator_dtype
from functopt.tree import Tree

__all__ = ["added", "copied", "displacement", "total", "totals"]


def added(scalars: Tree) -> Tensor:
    """Return the sum of a tree of scalars, such as :func:`tree.sums <functopt.tree.sums>` and ``tree.scalars`` make."""
    return functools.reduce(operator.add, [leaf.sum() for leaf in tree.leaves(scalars)])


def total(values: Tree) -> Tensor:
    """Return the sum of all entries of a tree, a 0-d tensor summed in float32 at least."""
    return added(tree.sums(values))


def totals(values: Tree, groups: Tree) -> Tree:
    """Return a tree like ``groups``, which ``tree.scalars`` made, with the sum of the entries below each of them."""
    sums = tree.sums(values)
    if tree.layout_of(groups) is not None:  # one for each leaf
        return sums
    return optree.tree_map(lambda _, below: added(below), groups, sums)


def displacement(start: Tree, params: Tree) -> Tree:
    """Return ``start - params``, in float32 at least: how far the parameters have come is small beside themselves."""
    return tree.map(lambda a, p: a.to(accumulator_dtype(p.dtype)) - p, start, params)


def copied(params: Tree) -> Tree:
    """Return the parameters as they are now, to be kept in a state."""
    return tree.map(lambda p: p.clone(), params)
