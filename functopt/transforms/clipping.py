"""Links that bound the updates."""

from __future__ import annotations

from typing import Any

import torch

from functopt import tree
from functopt.base import link
from functopt.numerics import once

__all__ = ["clip", "clip_by_global_norm"]


@link(scope="element")
def clip(max_delta) -> Any:
    """Clip every entry: ``u ← min(max(u, -max_delta), max_delta)``.

    Args:
        max_delta: the largest magnitude an entry may have.

    >>> tx = clip(0.7)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.5000, 0.7000])}
    """

    def transform(updates, state, params, max_delta):
        return tree.map(lambda u, d: torch.clamp(u, -d, d), updates, max_delta), state

    return transform


@link(scope="tree")
def clip_by_global_norm(max_norm) -> Any:
    """Shrink all updates together so that their joint 2-norm is at most ``max_norm``.

    ``u ← u·max_norm/‖u‖`` if ``‖u‖ > max_norm``, else ``u`` unchanged, bit for bit; ``‖u‖`` runs over all leaves and is
    summed in float32 at least. torch's ``clip_grad_norm_`` divides by ``‖u‖ + 1e-6`` instead. Pascanu, Mikolov &
    Bengio, "On the difficulty of training recurrent neural networks" (2013).

    The extra ``updates_norm`` is ``‖u‖`` for a caller who knows it already, a 0-d tensor.

    Args:
        max_norm: the largest norm.

    >>> tx = clip_by_global_norm(1.0)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.4472, 0.8944])}
    """

    def transform(updates, state, params, max_norm, updates_norm=None):
        norm = tree.norm(updates) if updates_norm is None else updates_norm

        def factor(m):
            # 1 stands in for both where they are not used, so that derivatives are 0 there and not NaN
            over, one = norm > m, torch.ones_like(norm)
            return once(torch.where(over, m, one) / torch.where(over, norm, one))

        return tree.map(lambda u, factor: u * factor, updates, tree.map(factor, max_norm)), state

    return transform
