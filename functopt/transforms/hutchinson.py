"""A link that estimates the diagonal of the Hessian: Hutchinson's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.random import rademacher_like

__all__ = ["HutchinsonState", "hutchinson_estimator_diag_hessian"]


@state_class
class HutchinsonState(NamedTuple):
    """How many estimates were made."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]


@link(scope="any")
def hutchinson_estimator_diag_hessian(seed=0) -> Any:
    """Replace the updates by an estimate of the diagonal of the Hessian, without bias but with much noise.

    ``u = r ⊙ H·r`` with random signs ``r``, other ones at every call. Hutchinson, "A Stochastic Estimator of the Trace
    of the Influence Matrix for Laplacian Smoothing Splines" (1990).

    It needs the extra ``value_fn``, the loss as a function of the parameters (optax: ``obj_fn``, which is taken too),
    and differentiates it twice. A loss that knows better, or that cannot be differentiated twice, has a method
    ``hessian_vector_product(params, vectors)`` for it; that may be a Gauss-Newton product.

    Args:
        seed: of the random signs, a whole number; members of a sweep may have their own.

    Raises:
        TypeError: there is neither ``value_fn`` nor ``obj_fn``.

    >>> tx = hutchinson_estimator_diag_hessian()
    >>> tx.transform(grads, tx.init(params), params, value_fn=loss)[0]
    {'w': tensor([2., 2.])}
    """

    def init(params) -> HutchinsonState:
        return HutchinsonState(tree.counter(params))

    def transform(updates, state, params, seed, value_fn: Callable | None = None, obj_fn: Callable | None = None):
        loss = value_fn or obj_fn
        if loss is None:
            raise TypeError(
                "hutchinson_estimator_diag_hessian needs the extra 'value_fn', the loss as a function of the "
                "parameters: call update(..., value_fn=...)"
            )
        signs = rademacher_like(params, seed, state.count, salt="hutchinson")

        along = getattr(loss, "hessian_vector_product", None)
        if along is None:
            slope = lambda at: tree.dot(torch.func.grad(loss)(at), signs)
            along = lambda at, signs: torch.func.grad(slope)(at)
        return tree.map(torch.mul, along(params, signs), signs), HutchinsonState(state.count + 1)

    return init, transform
