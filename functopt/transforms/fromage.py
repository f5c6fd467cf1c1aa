"""Fromage: a step along the sphere."""

from __future__ import annotations

from typing import Any

from functopt import tree
from functopt.base import link

__all__ = ["scale_by_fromage"]


@link(scope="element")
def scale_by_fromage(lr=1e-2) -> Any:
    """Step, and shrink what comes out, so that a step of the length of the parameters does not make them longer.

    ``p ← (p - lr·u)/√(1 + lr²)``. It has the learning rate in it, so no ``scale_by_lr`` follows; before it stands
    :func:`scale_by_trust_ratio <functopt.scale_by_trust_ratio>`. Bernstein et al., "On the distance between two neural
    networks and the stability of learning" (2020).

    Args:
        lr: learning rate.

    >>> tx = scale_by_fromage(0.75)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.5000, -2.2000])}
    """

    def transform(updates, state, params, lr):
        return tree.map(lambda u, p, lr: (p - lr * u) / (1 + lr * lr) ** 0.5 - p, updates, params, lr), state

    return transform
