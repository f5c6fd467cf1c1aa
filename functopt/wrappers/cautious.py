"""Cautious updates: nothing moves against its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform
from functopt.combine import combinator
from functopt.hypers import Hypers
from functopt.numerics import accumulator_dtype, maximum, once
from functopt.tree import Tree
from functopt.wrappers.common import check_inner

__all__ = ["cautious"]

_RESCALE = ("mean", "paper", "none")


@combinator
def cautious(inner: Transform, *, rescale: str = "mean", descends: bool = True) -> Transform:
    """Leave out the entries of an update that go up the gradient of the present step.

    ``keep = [u·g < 0]`` and ``u ← u·keep / max(mean(keep), 1e-3)``, the mean by leaf: fewer entries take longer steps.
    Liang et al., "Cautious Optimizers: Improving Training with One Line of Code" (2024).

    Around a complete optimizer the whole update is masked, decoupled decay and all. To leave the decay alone, as the
    authors' code does, put it around the preconditioner: ``chain(cautious(scale_by_adam(), descends=False),
    add_decayed_weights(0.01), scale_by_lr(1e-3))``.

    Args:
        inner: any optimizer or link that returns updates.
        rescale: ``"mean"``, as above and in the authors' later code; ``"paper"``: by ``n/(Σ keep + 1)``, with ``n``
            entries in a leaf, the paper's algorithm; ``"none"``: not at all.
        descends: whether ``inner`` returns a descent step, as a complete optimizer does. A link before ``scale_by_lr``
            returns updates that go with the gradient: false, and ``keep = [u·g > 0]``.

    Raises:
        TypeError: ``inner`` is not a transform.
        ValueError: ``inner`` writes the parameters itself, or ``rescale`` has another value.

    >>> tx = cautious(sgd(lr=0.1, weight_decay=1.0))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.7000, -2.0000])}
    """
    check_inner("cautious", inner)
    if inner.writes:
        raise ValueError(
            f"cautious: {inner.name} writes the parameters itself and has no updates to mask: put cautious inside it."
        )
    if rescale not in _RESCALE:
        raise ValueError(f"cautious: rescale must be one of {_RESCALE}, got {rescale!r}")

    def keep(g: Tensor, u: Tensor) -> Tensor:
        return (u * g < 0 if descends else u * g > 0).to(accumulator_dtype(g.dtype))

    def factor(kept: Tree) -> Tree:
        if rescale == "mean":
            return tree.map(lambda mean: once(1 / maximum(mean, 1e-3)), tree.means(kept))
        size = tree.map(torch.ones_like, kept)
        return tree.map(lambda n, some: once(n / (some + 1)), tree.sums(size), tree.sums(kept))

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        out, state = inner._transform(updates, state, params, hypers, **extras)
        kept = tree.map(keep, updates, out)
        masked = tree.map(lambda u, k: torch.where(k > 0, u, 0.0), out, kept)
        if rescale != "none":
            masked = tree.map(lambda u, q: u * q, masked, factor(kept))
        return masked, state

    own = ("cautious", "element" if rescale == "none" else "leaf")
    return Transform(inner._init, transform, hypers=inner.hypers, scopes=[*inner._scopes, own])
