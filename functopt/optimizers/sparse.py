"""Recipes for gradients that are mostly zero."""

from __future__ import annotations

from functopt.base import Transform
from functopt.combine import chain
from functopt.optimizers.common import Hyper
from functopt.transforms.lazy import scale_by_lazy_adam
from functopt.transforms.scaling import scale, scale_by_lr

__all__ = ["sparse_adam"]


def sparse_adam(
    lr: Hyper = 1e-3, beta1: Hyper = 0.9, beta2: Hyper = 0.999, eps: Hyper = 1e-8, *, maximize: bool = False
) -> Transform:
    """Adam that leaves what has no gradient alone, and its averages too, as ``torch.optim.SparseAdam``.

    Gradients are dense here: an entry counts as absent if its gradient is exactly 0, where torch goes by the indices
    of a sparse tensor. Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015).

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        maximize: ascend.

    >>> tx = sparse_adam(lr=0.1)
    >>> tx.update({"w": torch.tensor([0.5, 0.0])}, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.0000])}
    """
    ascent = [scale(-1.0)] if maximize else []
    return chain(*ascent, scale_by_lazy_adam(beta1, beta2, eps), scale_by_lr(lr))
