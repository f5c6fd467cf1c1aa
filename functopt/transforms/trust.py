"""Layer-wise learning rates: links whose result depends on where one leaf ends and the next begins."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.masks import Mask, mask_of
from functopt.numerics import accumulator_dtype, maximum, minimum, once, sqrt, where
from functopt.tree import Tree

__all__ = ["ScaleByLarcState", "scale_by_larc", "scale_by_trust_ratio"]


def _squares(values: Tree, kind: str = "l2") -> Tree:
    """Return the sum, or the mean, of the squares of each leaf."""
    squares = tree.map(lambda x: x.to(accumulator_dtype(x.dtype)).square(), values)
    return tree.means(squares) if kind == "rms" else tree.sums(squares)


@link(scope="leaf")
def scale_by_trust_ratio(
    min_norm=0.0,
    trust_coefficient=1.0,
    eps=0.0,
    max_ratio=math.inf,
    *,
    norm: str = "l2",
    one_at_zero: bool = True,
    mask: Mask = None,
) -> Any:
    """Scale every leaf by the ratio of the norm of the parameters to that of the updates.

    ``u ← q·u`` with ``q = min(trust_coefficient·‖p‖/(‖u‖ + eps), max_ratio)``, leaf by leaf. You et al., "Large Batch
    Training of Convolutional Networks" (2017) and "Large Batch Optimization for Deep Learning" (2020).

    Args:
        min_norm: norms are raised to this at least.
        trust_coefficient: the trust in the layer.
        eps: added to the norm of the updates.
        max_ratio: the ratio is cut here (fastai: 10).
        norm: ``"l2"``, or ``"rms"`` for the root of the mean square, with which the size of a leaf does not matter.
        one_at_zero: if the parameters or the updates of a leaf are all zero, and ``min_norm`` too, the ratio is 1, so
            that a leaf that starts at zero can move (optax, fastai's library). If false, zero parameters give the
            ratio 0: the leaf stays where it is (fastai's notebook).
        mask: which leaves are scaled, as in :func:`add_decayed_weights <functopt.add_decayed_weights>`; the updates of
            the others pass through bit for bit.

    Raises:
        TypeError: an entry of the mask is not a bool.
        ValueError: ``norm`` has another value, or the mask is no prefix of the parameters.

    >>> tx = chain(scale_by_trust_ratio(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.2000])}
    """
    if norm not in ("l2", "rms"):
        raise ValueError(f"scale_by_trust_ratio: norm must be 'l2' or 'rms', got {norm!r}")

    def transform(updates, state, params, min_norm, trust_coefficient, eps, max_ratio):
        def ratio(of_updates, of_params, low, trust, eps, cut):
            # 1 stands in for a norm of 0, by which nothing is divided, so that derivatives there are 0 and not NaN
            divisor = sqrt(torch.where(of_updates == 0, 1.0, of_updates))
            ratio = minimum(trust * maximum(sqrt(of_params), low) / (maximum(divisor, low) + eps), cut)
            if one_at_zero:
                return torch.where((maximum(of_params, low) == 0) | (maximum(of_updates, low) == 0), 1.0, ratio)
            return torch.where(of_params == 0, 0.0, ratio)

        of_updates, of_params = _squares(updates, norm), _squares(params, norm)
        ratios = tree.map(ratio, of_updates, of_params, min_norm, trust_coefficient, eps, max_ratio)
        chosen = mask_of(mask, params, "scale_by_trust_ratio")
        return tree.map(lambda u, q, on: where(on, q * u, u), updates, tree.map(once, ratios), chosen), state

    return transform


@state_class
class ScaleByLarcState(NamedTuple):
    """The momentum buffer, and the last step's ratio of every leaf, to look at."""

    trace: Ema  # undamped: total is the buffer
    ratio: Tree  # 0-d, a tree like the parameters


@link(scope="leaf")
def scale_by_larc(momentum=0.9, trust_coefficient=0.02, eps=1e-8, weight_decay=0.0, *, clip: bool = True) -> Any:
    """Scale the momentum of every leaf by a ratio taken from its present gradient: LARC.

    ``m ← momentum·m + g``, ``q = trust_coefficient·‖p‖/(‖g‖ + weight_decay·‖p‖ + eps)`` and ``u = min(q, 1)·m``, or
    ``q·m`` if not clipped. The decay only enters the ratio here; chain it with the decay of your choice. You et al.,
    "Large Batch Training of Convolutional Networks" (2017), which scales the gradient *before* the momentum (LARS:
    ``chain(scale_by_trust_ratio(), trace())``); this order, and the clipping, are NVIDIA's and fastai's.

    Args:
        momentum: what is kept of the buffer.
        trust_coefficient: the trust in the layer.
        eps: added to the denominator.
        weight_decay: the decay that the ratio makes room for.
        clip: never take a larger step than without the ratio.

    >>> tx = chain(scale_by_larc(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9980, -2.0040])}
    """

    def init(params) -> ScaleByLarcState:
        return ScaleByLarcState(Ema.zeros(params, momentum), tree.sums(tree.zeros_like(params)))

    def transform(updates, state, params, momentum, trust_coefficient, eps, weight_decay):
        m = state.trace.update(updates, momentum, 1.0)

        def layer_ratio(of_params, of_grads, trust, eps, d):
            size = sqrt(of_params)
            ratio = trust * size / (sqrt(of_grads) + d * size + eps)
            return once((minimum(ratio, 1.0) if clip else ratio).to(of_params.dtype))

        ratio = tree.map(layer_ratio, _squares(params), _squares(updates), trust_coefficient, eps, weight_decay)
        return tree.map(lambda m, q: q * m, m.total, ratio), ScaleByLarcState(m, ratio)

    return init, transform
