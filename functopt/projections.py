"""Projections onto sets: the nearest point of the set, as pure functions of a tree.

They can be differentiated and mapped over members; what a set is described by (bounds, a radius) may be tensors. To
keep the parameters of an optimizer in a set, see :func:`projected <functopt.projected>`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from functopt import tree
from functopt.numerics import accumulator_dtype, maximum, minimum
from functopt.sharded import is_sharded
from functopt.tree import Tree

__all__ = [
    "projection_box",
    "projection_halfspace",
    "projection_hypercube",
    "projection_hyperplane",
    "projection_l1_ball",
    "projection_l1_sphere",
    "projection_l2_ball",
    "projection_l2_sphere",
    "projection_linf_ball",
    "projection_non_negative",
    "projection_simplex",
    "projection_vector",
]

Number = Any


def projection_non_negative(tree: Tree) -> Tree:
    """Return the nearest tree without negative entries: ``max(p, 0)``.

    >>> projection_non_negative(params)
    {'w': tensor([1., 0.])}
    """
    return _map(lambda p: p.clamp_min(0), tree)


def projection_box(tree: Tree, lower: Tree, upper: Tree) -> Tree:
    """Return the nearest tree between two bounds: ``min(max(p, lower), upper)``.

    Args:
        tree: what is projected.
        lower: a number, or a tree like ``tree`` or a prefix of it.
        upper: as ``lower``.

    >>> projection_box(params, -1.0, 0.5)
    {'w': tensor([ 0.5000, -1.0000])}
    """
    return _map(lambda p, low, high: minimum(maximum(p, low), high), tree, lower, upper)


def projection_hypercube(tree: Tree, scale: Tree = 1.0) -> Tree:
    """Return the nearest tree with entries from 0 to ``scale``.

    >>> projection_hypercube(params, 0.5)
    {'w': tensor([0.5000, 0.0000])}
    """
    return projection_box(tree, 0.0, scale)


def projection_linf_ball(tree: Tree, scale: Tree = 1.0) -> Tree:
    """Return the nearest tree with entries from ``-scale`` to ``scale``.

    >>> projection_linf_ball(params)
    {'w': tensor([ 1., -1.])}
    """
    return _map(lambda p, scale: minimum(maximum(p, -scale), scale), tree, scale)


def projection_simplex(tree: Tree, scale: Number = 1.0) -> Tree:
    """Return the nearest tree whose entries are not negative and add up to ``scale``, all leaves taken together.

    ``max(p - θ, 0)``, with the ``θ`` that makes the sum right. Held et al., "Validation of Subgradient Optimization"
    (1974); Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions" (2008).

    >>> projection_simplex({"a": torch.tensor([2.0, 1.5]), "b": torch.tensor(0.0)})
    {'a': tensor([0.7500, 0.2500]), 'b': tensor(0.)}
    """
    largest, theta = _threshold(tree, scale)
    return _map(lambda p: (p - largest - theta).clamp_min(0), tree)


def projection_l1_sphere(tree: Tree, scale: Number = 1.0) -> Tree:
    """Return the nearest tree whose magnitudes add up to ``scale``: the simplex of the magnitudes, with the old signs.

    Entries that are 0 stay 0, so that of a tree of zeros nothing is near.

    >>> projection_l1_sphere(params)
    {'w': tensor([ 0., -1.])}
    """
    sizes = _map(torch.abs, tree)
    largest, theta = _threshold(sizes, scale)
    return _map(lambda p: p.sign() * (p.abs() - largest - theta).clamp_min(0), tree)


def projection_l1_ball(tree: Tree, scale: Number = 1.0) -> Tree:
    """Return the nearest tree whose magnitudes add up to ``scale`` at most.

    Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions" (2008).

    >>> projection_l1_ball(params, 2.0)
    {'w': tensor([ 0.5000, -1.5000])}
    """
    inside = _total(_map(torch.abs, tree)) <= scale
    return _map(lambda p, on_sphere: torch.where(inside, p, on_sphere), tree, projection_l1_sphere(tree, scale))


def projection_l2_sphere(tree: Tree, scale: Tree = 1.0) -> Tree:
    """Return the nearest tree of 2-norm ``scale``, all leaves taken together: ``p·scale/‖p‖``.

    >>> projection_l2_sphere({"w": torch.tensor([3.0, -4.0])})
    {'w': tensor([ 0.6000, -0.8000])}
    """
    norm = _norm(tree)
    return _map(lambda p, scale: p * (scale / norm), tree, scale)


def projection_l2_ball(tree: Tree, scale: Tree = 1.0) -> Tree:
    """Return the nearest tree of 2-norm ``scale`` at most, all leaves taken together: ``p·scale/max(‖p‖, scale)``.

    >>> projection_l2_ball({"w": torch.tensor([3.0, -4.0])}, 2.5)
    {'w': tensor([ 1.5000, -2.0000])}
    """
    norm = _norm(tree)
    return _map(lambda p, scale: p * (scale / maximum(norm, scale)), tree, scale)


def projection_vector(x: Tree, a: Tree) -> Tree:
    """Return the nearest multiple of a tree: ``⟨x, a⟩/⟨a, a⟩·a``.

    Args:
        x: what is projected.
        a: a tree like ``x``, or a prefix of it: the number 1 gives every entry their mean.

    >>> projection_vector(params, 1.0)
    {'w': tensor([-0.5000, -0.5000])}
    """
    a = _full(a, x)
    along = tree.dot(x, a) / tree.dot(a, a)
    return _map(lambda x, a: along * a, x, a)


def projection_hyperplane(x: Tree, a: Tree, b: Number) -> Tree:
    """Return the nearest tree with ``⟨a, x⟩ = b``: ``x + (b - ⟨a, x⟩)/⟨a, a⟩·a``.

    Args:
        x: what is projected.
        a: a tree like ``x``, or a prefix of it: with the number 1, ``b`` is the sum of all entries.
        b: a number.

    >>> projection_hyperplane(params, 1.0, 0.0)
    {'w': tensor([ 1.5000, -1.5000])}
    """
    a = _full(a, x)
    along = (b - tree.dot(x, a)) / tree.dot(a, a)
    return _map(lambda x, a: x + along * a, x, a)


def projection_halfspace(x: Tree, a: Tree, b: Number) -> Tree:
    """Return the nearest tree with ``⟨a, x⟩ ≤ b``; the arguments are those of :func:`projection_hyperplane`.

    >>> projection_halfspace(params, 1.0, 0.0)
    {'w': tensor([ 1., -2.])}
    """
    a = _full(a, x)
    along = minimum((b - tree.dot(x, a)) / tree.dot(a, a), 0.0)
    return _map(lambda x, a: x + along * a, x, a)


def _map(f: Any, first: Tree, *rest: Tree) -> Tree:
    """Map in the dtype of the first tree, also beside wider bounds."""
    return tree.map(lambda p, *others: f(p, *others).to(p.dtype), first, *rest)


def _total(values: Tree) -> Tensor:
    return functools.reduce(torch.add, [part.sum() for part in tree.leaves(tree.sums(values))])


def _norm(values: Tree) -> Tensor:
    norm = tree.norm(values)
    return maximum(norm, torch.finfo(norm.dtype).tiny)


def _full(a: Tree, like: Tree) -> Tree:
    return tree.map(lambda x, a: torch.zeros_like(x) + a, like, a)


def _threshold(values: Tree, scale: Number) -> tuple[Tensor, Tensor]:
    """Return two numbers to take from all entries, so that those that stay positive add up to ``scale``.

    The first is the largest entry, beside which ``scale`` could be lost in rounding.
    """
    leaves = [_whole(leaf).reshape(-1) for leaf in tree.leaves(tree.unpack(values))]  # padding would take part
    ordered = torch.cat([leaf.to(accumulator_dtype(leaf.dtype)) for leaf in leaves]).sort(descending=True)[0]
    largest = ordered[:1].sum().detach()
    ordered = ordered - largest
    ranks = torch.arange(1, len(ordered) + 1, device=ordered.device)
    positive = ordered * ranks > ordered.cumsum(0) - scale
    return largest, (torch.where(positive, ordered, 0).sum() - scale) / positive.sum()


def _whole(leaf: Tensor) -> Tensor:
    return leaf.full_tensor() if is_sharded(leaf) else leaf  # pyright: ignore[reportAttributeAccessIssue]
