"""Arithmetic on whole trees: reductions, bookkeeping scalars, a leading axis of members."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import optree
import torch
from torch import Tensor

from functopt.numerics import accumulator_dtype, sqrt
from functopt.sharded import is_sharded
from functopt.tree.checks import check_same
from functopt.tree.walk import Tree, children, is_schedule, layout_of, leaves, map

__all__ = [
    "counter",
    "dot",
    "is_expanded",
    "means",
    "member",
    "norm",
    "owned",
    "replicate",
    "scalars",
    "size",
    "stack",
    "sums",
    "zeros_like",
]


def zeros_like(params: Tree, dtype: torch.dtype | None = None, *, accumulate: bool = False) -> Tree:
    """Return a tree of zeros; with ``accumulate`` its leaves are float32 at least."""
    return map(
        lambda p: torch.zeros_like(p, dtype=accumulator_dtype(p.dtype) if accumulate else dtype, requires_grad=False),
        params,
    )


def scalars(params: Tree, *hypers: Tree, value: float = 0.0) -> Tree:
    """Return 0-d bookkeeping tensors with the structure of the hypers: one, or one for each group that they tell apart.

    They live on the device of the parameters that they stand for and are float32 at least. Beside packed parameters
    hypers that tell leaves apart give the scalars of all leaves in one tensor.

    Args:
        params: the parameters.
        *hypers: numbers, 0-d tensors, schedules or prefix trees of ``params`` with those at the leaves. Where they
            differ in structure, the result has one scalar for each leaf of ``params``.
        value: what the scalars hold.
    """
    like: Tree = hypers[0] if hypers else value
    structures = [optree.tree_structure(hyper, is_leaf=is_schedule) for hyper in hypers]
    layout = layout_of(params)
    if layout is not None and any(children(hyper) for hyper in hypers):
        return layout.full(value)
    if any(structure != structures[0] for structure in structures):
        like = params
    return optree.tree_map(lambda _, below: _scalar(below, value), like, params, is_leaf=is_schedule)


def _scalar(below: Tree, value: float) -> Tree:
    found = leaves(below)
    if not found:  # left out by a mask
        return below
    like = found[0]
    return like.new_full((), value, dtype=accumulator_dtype(like.dtype), requires_grad=False)


def counter(params: Tree) -> Tensor:
    """Return a counter of steps at 0: a 0-d tensor of int64 on the device of the parameters."""
    return leaves(params)[0].new_zeros((), dtype=torch.int64, requires_grad=False)


def sums(tree: Tree) -> Tree:
    """Return a tree with the sum of each leaf, a 0-d tensor, summed in float32 at least.

    Of a packed tree these are its scalars. What ``sums`` returns goes back to the leaves by :func:`map`, which
    broadcasts it there: ``map(lambda u, s: u / s, updates, sums(updates))``.
    """
    layout = layout_of(tree)
    if layout is not None:
        return layout.sums(tree)
    return map(lambda leaf: _reduced(leaf.sum(dtype=accumulator_dtype(leaf.dtype))), tree)


def means(tree: Tree) -> Tree:
    """Return a tree with the mean of each leaf, as :func:`sums` does; that of an empty leaf is 0."""
    layout = layout_of(tree)
    if layout is not None:
        return layout.means(tree)
    return map(lambda leaf: _reduced(leaf.sum(dtype=accumulator_dtype(leaf.dtype))) / max(leaf.numel(), 1), tree)


def _reduced(total: Tensor) -> Tensor:
    """Return the sum of a sharded tensor with the part of every process in it, as a plain tensor."""
    return total.full_tensor() if is_sharded(total) else total  # pyright: ignore[reportAttributeAccessIssue]


def norm(tree: Tree, ord: float = 2, *, squared: bool = False) -> Tensor:
    """Return the norm of all entries of a tree, a 0-d tensor summed in float32 at least.

    Its derivative at zero is 0.

    Args:
        tree: the tree, not empty.
        ord: 2, or 1 for the sum of magnitudes, or infinity for the largest magnitude.
        squared: return the square of the norm.

    Raises:
        ValueError: the tree has no leaves, or ``ord`` is another number.
    """
    if ord != 2:
        size = _other_norm(map(torch.abs, tree), ord)
        return size.square() if squared else size
    layout = layout_of(tree)
    if layout is None:
        parts = leaves(map(_sum_of_squares, tree))
    else:
        parts = leaves(layout.row_sums(map(lambda leaf: leaf.to(accumulator_dtype(leaf.dtype)).square(), tree)))
    if not parts:
        raise ValueError("tree.norm: the tree has no leaves")
    totals: dict[Any, Tensor] = {}  # what is spread over the same processes is added before it is reduced
    for part in parts:
        mesh = part.device_mesh if is_sharded(part) else None  # pyright: ignore[reportAttributeAccessIssue]
        totals[mesh] = totals[mesh] + part.sum() if mesh in totals else part.sum()
    total, *others = [_reduced(total) for total in totals.values()]
    for other in others:
        total = total + other
    return total if squared else sqrt(total)


def _other_norm(magnitudes: Tree, ord: float) -> Tensor:
    if ord not in (1, math.inf):
        raise ValueError(f"tree.norm: ord must be 1, 2 or infinity, got {ord!r}")
    layout = layout_of(magnitudes)
    if ord == 1:
        parts, together = [part.sum() for part in leaves(sums(magnitudes))], torch.add
    else:
        every = leaves(magnitudes if layout is None else layout.unpack(magnitudes))
        parts, together = [_reduced(leaf.amax()) for leaf in every if leaf.numel()], torch.maximum
    if not parts:
        raise ValueError("tree.norm: the tree has no entries")
    return functools.reduce(together, parts)


def dot(tree: Tree, other: Tree) -> Tensor:
    """Return the inner product of two trees, a 0-d tensor summed over all entries in float32 at least."""
    products = map(lambda x, y: x.to(accumulator_dtype(x.dtype)) * y, tree, other)
    return functools.reduce(torch.add, [part.sum() for part in leaves(sums(products))])


CHUNK = 1 << 18  # entries that are squared at once, so that the squares stay in the cache


def _sum_of_squares(leaf: Tensor) -> Tensor:
    dtype = accumulator_dtype(leaf.dtype)
    if torch.compiler.is_compiling() or leaf.numel() <= CHUNK or not leaf.is_contiguous() or is_sharded(leaf):
        return leaf.to(dtype).square().sum()
    return torch.stack([part.to(dtype).square().sum() for part in leaf.view(-1).split(CHUNK)]).sum()


def size(tree: Tree) -> int:
    """Return the number of scalars in a tree; padding of packed trees does not count."""
    layout = layout_of(tree)
    return layout.size if layout is not None else sum(leaf.numel() for leaf in leaves(tree))


def is_expanded(leaf: Tensor) -> bool:
    """Tell whether several entries of a tensor share one place in memory."""
    return any(stride == 0 and size > 1 for stride, size in zip(leaf.stride(), leaf.shape, strict=True))


def owned(tree: Tree, *others: Tree) -> Tree:
    """Return a tree in which every leaf owns its memory, so that it can be written to.

    Leaves that are expanded views, or that share memory with another leaf or with one of ``others``, are copied.
    """
    taken = {leaf.untyped_storage()._cdata for other in others for leaf in leaves(other)}

    def own(leaf: Tensor) -> Tensor:
        if is_expanded(leaf) or leaf.untyped_storage()._cdata in taken:
            leaf = leaf.clone(memory_format=torch.contiguous_format)
        taken.add(leaf.untyped_storage()._cdata)
        return leaf.detach()

    return map(own, tree)


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
