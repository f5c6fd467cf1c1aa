"""Links that take out of the updates what does not matter: their size, their mean."""

from __future__ import annotations

from typing import Any

from functopt import tree
from functopt.base import Transform, link
from functopt.numerics import once

__all__ = ["centralize", "normalize", "normalize_by_update_norm"]


@link(scope="matrix")
def centralize() -> Any:
    """Subtract from the updates their mean over all axes but the first: ``u ← u - mean(u)``, row by row.

    The first axis of weights of ``torch.nn`` is that of the outputs, so that it is the mean over what feeds one of
    them; vectors and numbers stay as they are. Yong et al., "Gradient Centralization: A New Optimization Technique for
    Deep Neural Networks" (2020).

    >>> tx = centralize()
    >>> tx.transform(torch.tensor([[1.0, 3.0], [4.0, 6.0]]), (), torch.zeros(2, 2))[0]
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """

    def transform(updates, state, params):
        inner = lambda u: u - u.mean(tuple(range(1, u.ndim)), keepdim=True) if u.ndim > 1 else u
        return tree.map(inner, updates), state

    return transform


@link(scope="tree")
def normalize_by_update_norm(scale_factor=1.0, eps=1e-6) -> Any:
    """Divide all updates by their joint 2-norm: ``u ← scale_factor·u/(‖u‖ + eps)``.

    ``‖u‖`` runs over all leaves and is summed in float32 at least; zeros stay zeros, whatever ``eps``. Hazan, Levy &
    Shalev-Shwartz, "Beyond Convexity: Stochastic Quasi-Convex Optimization" (2015).

    The extra ``updates_norm`` is ``‖u‖`` for a caller who knows it already, a 0-d tensor.

    Args:
        scale_factor: the norm that the updates get.
        eps: added to the norm.

    >>> tx = chain(normalize_by_update_norm(), scale_by_lr(1.0))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.5528, -2.8944])}
    """

    def transform(updates, state, params, scale_factor, eps, updates_norm=None):
        norm = tree.norm(updates) if updates_norm is None else updates_norm
        divisor = tree.map(lambda e: once(norm + e), eps)  # tree.norm is never 0
        return tree.map(lambda u, s, d: u * (s / d), updates, scale_factor, divisor), state

    return transform


def normalize() -> Transform:
    """Divide all updates by their joint 2-norm: ``u ← u/‖u‖``; zeros stay zeros (optax: NaN).

    This is ``optax.contrib.normalize``, the ascent of sharpness-aware minimisation. Foret et al., "Sharpness-Aware
    Minimization for Efficiently Improving Generalization" (2021).

    >>> tx = chain(normalize(), scale_by_lr(1.0))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.5528, -2.8944])}
    """
    return normalize_by_update_norm(1.0, 0.0)
