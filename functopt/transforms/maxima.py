"""Links that divide by a maximum over the steps: Adamax and AMSGrad."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import maximum
from functopt.transforms.moments import over_root, squares
from functopt.tree import Tree

__all__ = ["ScaleByAdamaxState", "ScaleByAmsgradState", "scale_by_adamax", "scale_by_amsgrad"]


@state_class
class ScaleByAdamaxState(NamedTuple):
    """The average of gradients, and their decaying maximum."""

    mu: Ema
    nu: Tree  # like the parameters


@link(scope="element")
def scale_by_adamax(beta1=0.9, beta2=0.999, eps=1e-8) -> Any:
    """Divide the running mean of the gradient by its decaying maximum: Adamax, Adam in the infinity norm.

    ``m ← β1·m + (1 - β1)·g``, ``v ← max(β2·v, |g| + eps)`` and ``u = m/(1 - β1^t) / v``. torch and optax add ``eps`` to
    the gradient, as here; the paper has none. Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015).

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the maximum.
        eps: added to the size of the gradient.

    >>> tx = chain(scale_by_adamax(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """

    def init(params) -> ScaleByAdamaxState:
        return ScaleByAdamaxState(Ema.zeros(params, beta1), tree.zeros_like(params, accumulate=True))

    def transform(updates, state, params, beta1, beta2, eps):
        mu = state.mu.update(updates, beta1)
        larger = lambda v, g, b, eps: maximum(b * v, g.to(v.dtype).abs() + eps).to(v.dtype)
        nu = tree.map(larger, state.nu, updates, beta2, eps)
        return tree.map(torch.div, mu.mean, nu), ScaleByAdamaxState(mu, nu)

    return init, transform


@state_class
class ScaleByAmsgradState(NamedTuple):
    """The averages of Adam, and the largest second one so far."""

    mu: Ema
    nu: Ema
    nu_max: Tree  # like the parameters


_DEBIASED = (True, False, "after")


@link(scope="element")
def scale_by_amsgrad(
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    eps_root=0.0,
    *,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool | str = True,
) -> Any:
    """Adam that divides by the largest mean square so far, so that no step size grows: AMSGrad.

    With ``m``, ``v``, ``m̂``, ``v̂`` as in Adam: ``w ← max(w, v̂)`` and ``u = m̂ / (√(w + eps_root) + eps)``. Reddi, Kale &
    Kumar, "On the Convergence of Adam and Beyond" (2018), who have ``m`` and ``v`` there, without bias correction.

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        eps_root: added under the root.
        bias_correction_mu: if false, ``m`` takes the place of ``m̂``.
        bias_correction_nu: if false, ``w ← max(w, v)`` (the paper); ``"after"``: the same, and ``w`` is divided by
            ``1 - β2^t`` where it is used, as in ``torch.optim.Adam(amsgrad=True)``.

    Raises:
        ValueError: ``bias_correction_nu`` has another value.

    >>> tx = chain(scale_by_amsgrad(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    if bias_correction_nu not in _DEBIASED:
        raise ValueError(f"scale_by_amsgrad: bias_correction_nu must be one of {_DEBIASED}, got {bias_correction_nu!r}")

    def init(params) -> ScaleByAmsgradState:
        nu = Ema.zeros(params, beta2, accumulate=True)
        return ScaleByAmsgradState(Ema.zeros(params, beta1), nu, tree.zeros_like(params, accumulate=True))

    def transform(updates, state, params, beta1, beta2, eps, eps_root):
        mu = state.mu.update(updates, beta1)
        nu = state.nu.update(squares(updates), beta2)
        nu_max = tree.map(torch.maximum, state.nu_max, nu.mean if bias_correction_nu is True else nu.total)
        second = nu._replace(total=nu_max).mean if bias_correction_nu == "after" else nu_max
        out = over_root(mu.mean if bias_correction_mu else mu.total, second, eps, eps_root)
        return out, ScaleByAmsgradState(mu, nu, nu_max)

    return init, transform
