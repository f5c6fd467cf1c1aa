"""Tiger: signs of the momentum, as large as the parameters are."""

from __future__ import annotations

from typing import Any, NamedTuple

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.masks import Mask, mask_of
from functopt.numerics import sqrt, where
from functopt.transforms.moments import squares

__all__ = ["ScaleByTigerState", "scale_by_tiger"]


@state_class
class ScaleByTigerState(NamedTuple):
    """The average of the gradients."""

    mu: Ema


@link(scope="leaf")
def scale_by_tiger(beta=0.965, weight_decay=0.01, vector_scale=0.5, *, mask: Mask = None) -> Any:
    """Take the sign of the momentum, scaled by the root mean square of the parameters: Tiger.

    ``m ← β·m + (1 - β)·g`` and ``u = rms(p)·(sign(m) + weight_decay·p)`` for matrices, ``u = vector_scale·sign(m)`` for
    biases and gains. Su, "Tiger: A Tight-fisted Optimizer" (2023), whose program tells them apart by name, takes the
    root mean square of embeddings row by row, and shrinks the parameters where a gradient is NaN.

    A matrix of zeros stays where it is.

    Args:
        beta: what is kept of the momentum.
        weight_decay: factor of the decay, relative to the scale.
        vector_scale: the scale of what is not decayed.
        mask: what counts as a matrix, as in :func:`add_decayed_weights <functopt.add_decayed_weights>`; by default
            everything.

    Raises:
        TypeError: an entry of the mask is not a bool.
        ValueError: the mask is no prefix of the parameters.

    >>> tx = scale_by_tiger()
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([1.5970, 1.5495])}
    """

    def init(params) -> ScaleByTigerState:
        return ScaleByTigerState(Ema.zeros(params, beta))

    def transform(updates, state, params, beta, weight_decay, vector_scale):
        mu = state.mu.update(updates, beta)
        chosen = mask_of(mask, params, "scale_by_tiger")
        sizes = tree.means(squares(params))

        def step(m, p, s, d, scale, on):
            return where(on, sqrt(s) * (m.sign() + d * p), scale * m.sign())

        return tree.map(step, mu.total, params, sizes, weight_decay, vector_scale, chosen), ScaleByTigerState(mu)

    return init, transform
