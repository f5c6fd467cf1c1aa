"""Links that measure each leaf by its norm or its root mean square."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from functopt import tree
from functopt.base import link
from functopt.numerics import accumulator_dtype, maximum, sqrt
from functopt.tree import Tree

__all__ = ["clip_by_block_rms", "scale_by_param_block_norm", "scale_by_param_block_rms"]


def _root(values: Tree, of: Callable[[Tree], Tree] = tree.means) -> Tree:
    """Return the root of the mean, or of the sum, of the squares of each leaf, in float32 at least."""
    return tree.map(sqrt, of(tree.map(lambda x: x.to(accumulator_dtype(x.dtype)).square(), values)))


@link(scope="leaf")
def clip_by_block_rms(threshold) -> Any:
    """Shrink every leaf so that its root mean square is at most ``threshold``.

    ``u ← u / max(1, rms(u)/threshold)``, leaf by leaf; what is below stays as it is, bit for bit. Shazeer & Stern,
    "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (2018).

    Args:
        threshold: the largest root mean square.

    >>> tx = clip_by_block_rms(0.5)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.3162, 0.6325])}
    """

    def transform(updates, state, params, threshold):
        return tree.map(lambda u, r, d: u / maximum(r / d, 1.0), updates, _root(updates), threshold), state

    return transform


@link(scope="leaf")
def scale_by_param_block_rms(min_scale=1e-3) -> Any:
    """Scale every leaf by the root mean square of its parameters: ``u ← max(rms(p), min_scale)·u``.

    The learning rate is then relative to the size of the parameters. Shazeer & Stern (2018).

    Args:
        min_scale: with less, parameters that start at zero would stay there.

    >>> tx = scale_by_param_block_rms()
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.7906, 1.5811])}
    """

    def transform(updates, state, params, min_scale):
        return tree.map(lambda u, r, low: u * maximum(r, low), updates, _root(params), min_scale), state

    return transform


@link(scope="leaf")
def scale_by_param_block_norm(min_scale=1e-3) -> Any:
    """Scale every leaf by the norm of its parameters: ``u ← max(‖p‖, min_scale)·u``.

    You et al., "Large Batch Training of Convolutional Networks" (2017), whose rate is proportional to that norm.

    Args:
        min_scale: with less, parameters that start at zero would stay there.

    >>> tx = chain(scale_by_param_block_norm(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8882, -2.2236])}
    """

    def transform(updates, state, params, min_scale):
        scale = lambda u, n, low: u * maximum(n, low)
        return tree.map(scale, updates, _root(params, tree.sums), min_scale), state

    return transform
