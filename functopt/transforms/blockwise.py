"""Links between Adam and one step size for each leaf: Adam-mini and StableAdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Scope, link, state_class
from functopt.ema import Ema
from functopt.numerics import maximum, once, sqrt
from functopt.transforms.decay import Mask, add_decayed_weights
from functopt.transforms.moments import over_root, squares
from functopt.tree import Tree

__all__ = ["ScaleByAdamMiniState", "ScaleByStableAdamState", "scale_by_adam_mini", "scale_by_stable_adam"]


@state_class
class ScaleByAdamMiniState(NamedTuple):
    """The average of gradients, and for every block that of their mean square."""

    mu: Ema
    nu: Ema  # total: a tree like the parameters, of 0-d tensors or, with blocks given, of one entry for each block


Blocks = Tree | Callable[[Tree], Tree]


def _blocks_scope(blocks: Blocks) -> Scope:
    return "leaf" if blocks == "leaf" else "matrix"


@link(scope=_blocks_scope)
def scale_by_adam_mini(beta1=0.9, beta2=0.999, eps=1e-8, *, blocks: Blocks = "leaf") -> Any:
    """Adam with one second moment for each block of parameters: Adam-mini, in half of Adam's memory.

    ``m ← β1·m + (1 - β1)·g``, ``v ← β2·v + (1 - β2)·mean(g²)`` with one ``v`` for every block, ``u = m̂ / (√v̂ + eps)``.
    Zhang et al., "Adam-mini: Use Fewer Learning Rates To Gain More" (2024).

    The paper's blocks for a Transformer: the rows of embeddings, of the output layer, of values, projections and
    feed-forward layers; the heads of queries and keys; whole leaves elsewhere.

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        blocks: what is a block: ``"leaf"``, ``"row"`` (what has the same first index), ``"entry"`` (that is Adam), or a
            number of equal parts of the first axis, such as the number of heads. One of these for all leaves, a prefix
            tree of the parameters with them at the leaves, or a function from the parameters to one.

    Raises:
        ValueError: an entry of ``blocks`` is none of these, or does not divide the first axis of the leaf.

    >>> tx = chain(scale_by_adam_mini(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9368, -2.1265])}
    """

    def kinds(params: Tree) -> Tree:
        chosen = blocks(params) if callable(blocks) else tree.trim(blocks, params)
        problem = tree.prefix_problem(chosen, params)
        if problem:
            raise ValueError(f"scale_by_adam_mini: blocks are no prefix of params: {problem}")
        return tree.map(lambda p, kind: _checked(p.shape, kind), params, chosen)

    def init(params) -> ScaleByAdamMiniState:
        if blocks == "leaf":
            zeros = tree.sums(tree.zeros_like(params))
        else:
            wide = tree.zeros_like(params, accumulate=True)
            zeros = tree.map(lambda z, kind: z.new_zeros(_means_shape(_parted(z, kind), kind)), wide, kinds(params))
        return ScaleByAdamMiniState(Ema.zeros(params, beta1), Ema(zeros, tree.scalars(params, beta2)))

    def transform(updates, state, params, beta1, beta2, eps):
        mu = state.mu.update(updates, beta1)
        if blocks == "leaf":
            nu = state.nu.update(tree.means(squares(updates)), beta2)
            return over_root(mu.mean, nu.mean, eps), ScaleByAdamMiniState(mu, nu)
        kind = kinds(params)
        nu = state.nu.update(tree.map(_means, tree.map(_parted, squares(updates), kind), kind), beta2)
        out = over_root(tree.map(_parted, mu.mean, kind), nu.mean, eps)
        return tree.map(lambda u, g: u.reshape(g.shape), out, updates), ScaleByAdamMiniState(mu, nu)

    return init, transform


Kind = str | int  # the blocks of one leaf

_KINDS = ("leaf", "row", "entry")


def _checked(shape: torch.Size, kind: Any) -> Kind:
    rows = shape[0] if shape else 1
    if kind not in _KINDS and (not isinstance(kind, int) or isinstance(kind, bool) or kind < 1 or rows % kind):
        raise ValueError(
            f"scale_by_adam_mini: blocks must be one of {_KINDS} or a number that divides the first axis, got {kind!r} "
            f"for a leaf of shape {list(shape)}"
        )
    return kind


def _parted(leaf: Tensor, kind: Kind) -> Tensor:
    """Return a leaf with an axis for its parts before the others, if it has any."""
    return leaf.unflatten(0, (kind, leaf.shape[0] // kind)) if isinstance(kind, int) and leaf.ndim else leaf


def _means_shape(parted: Tensor, kind: Kind) -> list[int]:
    kept = {"leaf": 0, "entry": parted.ndim}.get(str(kind), 1)  # the first axes
    return [size if axis < kept else 1 for axis, size in enumerate(parted.shape)]


def _means(squares: Tensor, kind: Kind) -> Tensor:
    axes = [axis for axis, size in enumerate(_means_shape(squares, kind)) if size != squares.shape[axis]]
    if not axes:
        return squares
    sums = squares.sum(axes, keepdim=True)
    return sums / max(squares.numel() // max(sums.numel(), 1), 1)


@state_class
class ScaleByStableAdamState(NamedTuple):
    """The averages of gradients and of squared gradients."""

    mu: Ema
    nu: Ema


@link(scope="leaf")
def scale_by_stable_adam(
    beta1=0.9, beta2=0.99, eps=1e-6, weight_decay=0.0, clipping_threshold=1.0, *, mask: Mask = None
) -> Any:
    """Adam that takes smaller steps in a leaf whose gradients are larger than its second moment knows: StableAdamW.

    With ``m̂``, ``v̂`` as in Adam and ``r = √mean(g²/max(v̂, eps²))``, by leaf:
    ``u = (m̂/(√v̂ + eps) + weight_decay·p) / max(1, r/clipping_threshold)``. It is Adam with the update clipping of
    Adafactor. Wortsman et al., "Stable and low-precision training for large-scale vision-language models" (2023).

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        clipping_threshold: the ratio from which on steps are smaller.
        mask: which leaves decay, see :func:`add_decayed_weights <functopt.add_decayed_weights>`.

    >>> tx = chain(scale_by_stable_adam(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    decay = add_decayed_weights(mask=mask)

    def init(params) -> ScaleByStableAdamState:
        return ScaleByStableAdamState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True))

    def transform(updates, state, params, beta1, beta2, eps, weight_decay, clipping_threshold):
        mu = state.mu.update(updates, beta1)
        nu = state.nu.update(squares(updates), beta2)
        adam = over_root(mu.mean, nu.mean, eps)
        decayed, _ = decay.transform(adam, (), params, {"weight_decay": weight_decay})
        relative = tree.map(lambda s, v, e: s / maximum(v, e * e), squares(updates), nu.mean, eps)
        shrink = lambda mean, most: once(1 / maximum(sqrt(mean) / most, 1.0))
        factor = tree.map(shrink, tree.means(relative), clipping_threshold)
        return tree.map(lambda u, q: q * u, decayed, factor), ScaleByStableAdamState(mu, nu)

    return init, transform
