"""Links that measure each leaf by its root mean square."""

from __future__ import annotations

from typing import Any

from functopt import tree
from functopt.base import link
from functopt.numerics import accumulator_dtype, maximum, sqrt
from functopt.tree import Tree

__all__ = ["clip_by_block_rms", "scale_by_param_block_rms"]


def _rms(values: Tree) -> Tree:
    """Return the root mean square of each leaf, in float32 at least."""
    return tree.map(sqrt, tree.means(tree.map(lambda x: x.to(accumulator_dtype(x.dtype)).square(), values)))


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
        return tree.map(lambda u, r, d: u / maximum(r / d, 1.0), updates, _rms(updates), threshold), state

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
        return tree.map(lambda u, r, low: u * maximum(r, low), updates, _rms(params), min_scale), state

    return transform
