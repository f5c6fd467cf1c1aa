"""AdaGrad: the root of the sum of all squared gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import sqrt
from functopt.tree import Tree

__all__ = ["ScaleByRssState", "scale_by_rss"]


@state_class
class ScaleByRssState(NamedTuple):
    """The sum of the squared gradients, without the value that it begins with."""

    sum_of_squares: Tree


@link(scope="element")
def scale_by_rss(initial_accumulator_value=0.1, eps=1e-7, *, eps_in_sqrt: bool = True) -> Any:
    """Divide by the root of the sum of all squared gradients so far: AdaGrad.

    ``s ← s + g²`` and ``u = g/√(s + eps)``, where ``s`` begins at ``initial_accumulator_value``. Duchi et al.,
    "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization" (2011).

    The defaults are optax's. The value at the beginning is added at every step and is not in the state, so that it is
    data like any hyper: it may be swept, or differentiated.

    Args:
        initial_accumulator_value: where the sum begins.
        eps: added under the root.
        eps_in_sqrt: if false, ``u = g/(√s + eps)``, as in ``torch.optim.Adagrad``.

    >>> tx = scale_by_rss(0.75)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.5000, 0.7559])}
    """

    def init(params) -> ScaleByRssState:
        return ScaleByRssState(tree.zeros_like(params, accumulate=True))

    def transform(updates, state, params, initial_accumulator_value, eps):
        total = tree.map(lambda s, g: s + g.to(s.dtype).square(), state.sum_of_squares, updates)

        def rescale(g, s, first, eps):
            return g / sqrt(s + first + eps) if eps_in_sqrt else g / (sqrt(s + first) + eps)

        return tree.map(rescale, updates, total, initial_accumulator_value, eps), ScaleByRssState(total)

    return init, transform
