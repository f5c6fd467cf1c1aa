"""Sophia: the mean of the gradient over an estimate of the curvature, clipped."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from functopt import tree
from functopt.base import Transform, state_class
from functopt.combine import combinator
from functopt.ema import Ema
from functopt.hypers import Hypers
from functopt.numerics import maximum, minimum, where
from functopt.periods import due
from functopt.transforms.hutchinson import hutchinson_estimator_diag_hessian
from functopt.tree import Tree
from functopt.wrappers.common import check_state, own_hypers

__all__ = ["SophiaState", "scale_by_sophia"]


@state_class
class SophiaState(NamedTuple):
    """The number of steps taken, the averages of gradients and of the Hessian's diagonal, and the estimator's state."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Ema
    nu: Ema
    hessian_fn_state: Tree


_HUTCHINSON = hutchinson_estimator_diag_hessian()


@combinator
def scale_by_sophia(
    hessian_diagonal_fn: Transform = _HUTCHINSON,
    beta1: Any = 0.965,
    beta2: Any = 0.99,
    eps: Any = 1e-8,
    gamma: Any = 0.01,
    clip_threshold: Any = 1.0,
    update_interval: Any = 10,
) -> Transform:
    """Divide the running mean of the gradient by the curvature, and clip what that gives entry by entry: Sophia.

    ``m ← β1·m + (1 - β1)·g``, ``u = clip(m̂ / max(γ·h, eps), clip_threshold)`` with ``m̂ = m/(1 - β1^t)``, then every
    ``update_interval`` steps, the first included, ``h ← β2·h + (1 - β2)·ĥ`` with the estimate ``ĥ``. Where ``h`` is
    nothing, as at the first step, or negative, the step is one of signs. Liu et al., "Sophia: A Scalable Stochastic
    Second-order Optimizer for Language Model Pre-training" (2024); the bias correction of ``m`` is optax's.

    Every step makes an estimate, and most throw it away: which step it is, only the tensors know. A loop that knows it
    too says so by the extra ``refresh``: ``update(..., refresh=step % 10 == 0)`` with a Python bool makes it at those
    steps only. The estimates are as good, with other random numbers.

    Args:
        hessian_diagonal_fn: a transform whose updates are the estimate; it gets the gradients and all extras.
        beta1: what is kept of the mean.
        beta2: what is kept of the curvature; estimates count, not steps.
        eps: the least that is divided by.
        gamma: how far the curvature is trusted: with more, fewer entries are clipped (a tenth to a half should not be).
        clip_threshold: the largest entry; infinity for none.
        update_interval: steps between two estimates.

    Raises:
        TypeError: ``hessian_diagonal_fn`` is no transform.
        ValueError: it has a hyper of the same name.

    >>> tx = scale_by_sophia()
    >>> tx.transform(grads, tx.init(params), params, value_fn=loss)[0]
    {'w': tensor([1., 1.])}
    """
    if not isinstance(hessian_diagonal_fn, Transform) or hessian_diagonal_fn.writes:
        raise TypeError(f"scale_by_sophia: hessian_diagonal_fn is {hessian_diagonal_fn!r}, expected a Transform")
    own = {
        "beta1": beta1, "beta2": beta2, "eps": eps, "gamma": gamma, "clip_threshold": clip_threshold,
        "update_interval": update_interval,
    }  # fmt: skip
    hypers = own_hypers("scale_by_sophia", hessian_diagonal_fn, own)

    def init(params: Tree) -> SophiaState:
        nu = Ema.zeros(params, beta2, update_interval, accumulate=True)
        return SophiaState(tree.counter(params), Ema.zeros(params, beta1), nu, hessian_diagonal_fn._init(params))

    def transform(
        updates: Tree, state: SophiaState, params: Tree, hypers: Hypers, refresh: bool | None = None, **extras: Any
    ) -> tuple[Tree, SophiaState]:
        check_state("scale_by_sophia", state, SophiaState)
        mu = state.mu.update(updates, hypers["beta1"])

        def rescale(g: Tensor, m: Tensor, h: Tensor, gamma: Any, eps: Any, threshold: Any) -> Tensor:
            return maximum(minimum(m / maximum(gamma * h, eps), threshold), -threshold).to(g.dtype)

        settings = (hypers[name] for name in ("gamma", "eps", "clip_threshold"))
        out = tree.map(rescale, updates, mu.mean, state.nu.total, *settings)

        nu, inner = state.nu, state.hessian_fn_state
        if refresh is not False:
            diagonal, inner = hessian_diagonal_fn._transform(updates, inner, params, hypers, **extras)
            new, period = nu.update(diagonal, hypers["beta2"]), hypers["update_interval"]
            pick = lambda new, old, k: where(due(state.count, k, refresh), new, old)
            nu = Ema(*(tree.map(pick, a, b, period) for a, b in zip(new, nu, strict=True)))
        return out, SophiaState(state.count + 1, mu, nu, inner)

    return Transform(
        init,
        transform,
        hypers=hypers,
        scopes=[*hessian_diagonal_fn._scopes, ("scale_by_sophia", "element")],
    )
