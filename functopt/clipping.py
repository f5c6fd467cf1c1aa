"""Clipping of gradients as plain functions of tensors and trees: by unit, and by example."""

from __future__ import annotations

import torch
from torch import Tensor

from functopt import tree
from functopt.numerics import accumulator_dtype, maximum, sqrt
from functopt.tree import Tree

__all__ = [
    "per_example_global_norm_clip",
    "per_example_layer_norm_clip",
    "shrinking",
    "unitwise_clip",
    "unitwise_norm",
]


def shrinking(norm: Tensor, max_norm: float | Tensor) -> Tensor:
    """Return the factor that brings a norm down to ``max_norm``, and 1 if it is below."""
    # 1 stands in for both where they are not used, so that derivatives are 0 there and not NaN
    over, one = norm > max_norm, torch.ones_like(norm)
    return torch.where(over, max_norm, one) / torch.where(over, norm, one)


# By unit


def unitwise_norm(x: Tensor, axis: int | tuple[int, ...] | None = None, *, form: str = "torch") -> Tensor:
    """Return the 2-norm of each unit of a tensor, with axes of length 1 where it was summed over.

    Args:
        x: weights, or their gradient.
        axis: the axes of a unit; by default what the form says.
        form: ``"torch"``: a unit is what belongs to one index of the first axis, as weights of ``torch.nn`` have their
            outputs first; vectors and numbers are one unit. ``"optax"``: outputs last. A unit is axis 0 of two or three
            axes, all but the last of four or five; what is a vector but for axes of length 1 is one unit.

    Raises:
        ValueError: ``form`` has another value, or optax's knows no units of so many axes.

    >>> unitwise_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor([[5.],
            [1.]])
    """
    if axis is None:
        axis = _unit(x, form)
    return sqrt(x.to(accumulator_dtype(x.dtype)).square().sum(axis, keepdim=True))


def _unit(x: Tensor, form: str) -> tuple[int, ...]:
    axes = tuple(range(x.ndim))
    if form == "torch":
        return axes[1:] if x.ndim > 1 else axes
    if form != "optax":
        raise ValueError(f"unitwise_norm: form must be 'torch' or 'optax', got {form!r}")
    if sum(size != 1 for size in x.shape) <= 1:
        return axes
    if x.ndim > 5:
        raise ValueError(f"unitwise_norm: optax has no units for shape {list(x.shape)}; give axis")
    return axes[:1] if x.ndim < 4 else axes[:-1]


def unitwise_clip(g_norm: Tensor, max_norm: float | Tensor, grad: Tensor, div_eps: float | Tensor = 1e-6) -> Tensor:
    """Shrink the units of a gradient whose norm is not below ``max_norm``; the others stay as they are, bit for bit.

    Args:
        g_norm: the norm of each unit, from :func:`unitwise_norm`.
        max_norm: the largest norm, for all units or for each.
        grad: the gradient.
        div_eps: the least that is divided by.

    >>> unitwise_clip(torch.tensor([5.0, 1.0]), 2.0, torch.tensor([5.0, 1.0]))
    tensor([2., 1.])
    """
    return grad * torch.where(g_norm < max_norm, 1.0, max_norm / maximum(g_norm, div_eps))


# By example


def _examples(grads: Tree, who: str) -> int:
    leaves = tree.leaves(grads)
    sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in leaves}
    if len(sizes) != 1 or 0 in sizes:
        shapes = [list(leaf.shape) for leaf in leaves]
        raise ValueError(f"{who}: expected gradients with a leading axis of examples, the same for all, got {shapes}")
    return sizes.pop()


def per_example_global_norm_clip(grads: Tree, max_norm: Tree) -> tuple[Tree, Tensor]:
    """Clip the gradient of each example by its norm over all leaves, and add them up.

    ``Σ_i g_i·min(1, max_norm/‖g_i‖)``. Abadi et al., "Deep Learning with Differential Privacy" (2016).

    Args:
        grads: a tree whose leaves have a leading axis of examples, as ``torch.func.vmap(torch.func.grad(loss),
            in_dims=(None, 0))`` gives them.
        max_norm: the largest norm of an example (optax: ``l2_norm_clip``), a number, a 0-d tensor or a prefix tree.

    Returns:
        ``(sum, number of examples that were clipped)``.

    Raises:
        ValueError: there is no leading axis of one length in all leaves.

    >>> per_example_global_norm_clip(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), 1.0)
    (tensor([0.6000, 1.8000]), tensor(1))
    """
    _examples(grads, "per_example_global_norm_clip")
    norms = torch.func.vmap(tree.norm)(grads)
    factors = tree.map(lambda m: shrinking(norms, m), max_norm)
    total = tree.map(lambda g, f: torch.tensordot(f.to(g.dtype), g, 1), grads, factors)
    return total, torch.stack([f < 1 for f in tree.leaves(factors)]).any(0).sum()


def per_example_layer_norm_clip(grads: Tree, max_norm: float | Tensor, *, uniform: bool = True) -> tuple[Tree, Tree]:
    """Clip the gradient of each example leaf by leaf, and add them up.

    The largest norm of a leaf is ``max_norm/√K`` for ``K`` leaves, or ``max_norm·√(d/D)`` for ``d`` of all ``D``
    entries, so that the norm over all leaves is at most ``max_norm``. McMahan et al., "Learning Differentially Private
    Recurrent Language Models" (2018).

    Args:
        grads: as in :func:`per_example_global_norm_clip`.
        max_norm: the largest norm of an example over all leaves (optax: ``global_l2_norm_clip``).
        uniform: the same for every leaf; otherwise by the number of entries.

    Returns:
        ``(sums, numbers of examples that were clipped)``, two trees.

    Raises:
        ValueError: there is no leading axis of one length in all leaves.

    >>> per_example_layer_norm_clip({"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}, 1.0)
    ({'w': tensor([0.6000, 1.8000])}, {'w': tensor(1)})
    """
    _examples(grads, "per_example_layer_norm_clip")
    total = tree.size(grads)

    def clipped(which: int) -> Tree:
        def clip(g: Tensor) -> Tensor:
            part = 1 / len(tree.leaves(grads)) if uniform else g.numel() / total
            return per_example_global_norm_clip(g, max_norm * part**0.5)[which]

        return tree.map(clip, grads)

    return clipped(0), clipped(1)
