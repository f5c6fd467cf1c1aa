"""Links that divide first and average afterwards: LaProp, ADOPT and NovoGrad."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import lerp, maximum, sqrt
from functopt.transforms.decay import Mask, add_decayed_weights
from functopt.transforms.moments import over_root, squares
from functopt.tree import Tree

__all__ = [
    "ScaleByAdoptState",
    "ScaleByLapropState",
    "ScaleByNovogradState",
    "scale_by_adopt",
    "scale_by_laprop",
    "scale_by_novograd",
]


@state_class
class ScaleByLapropState(NamedTuple):
    """The averages of divided gradients and of squared gradients."""

    mu: Ema
    nu: Ema


@link(scope="element")
def scale_by_laprop(beta1=0.9, beta2=0.999, eps=1e-15) -> Any:
    """Average the gradient divided by its root mean square, where Adam divides the average: LaProp.

    ``v ← β2·v + (1 - β2)·g²``, ``m ← β1·m + (1 - β1)·g/(√v̂ + eps)`` and ``u = m̂``, both debiased. Momentum and the
    second moment do not disturb each other, so that any pair of betas is stable. Ziyin, Wang & Ueda, "LaProp:
    Separating Momentum and Adaptivity in Adam" (2020).

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.

    >>> tx = chain(scale_by_laprop(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """

    def init(params) -> ScaleByLapropState:
        return ScaleByLapropState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True))

    def transform(updates, state, params, beta1, beta2, eps):
        nu = state.nu.update(squares(updates), beta2)
        mu = state.mu.update(over_root(updates, nu.mean, eps), beta1)
        return mu.mean, ScaleByLapropState(mu, nu)

    return init, transform


def _first_whole(ema: Ema, values: Tree, decay: Tree) -> Ema:
    """Return the average with one more value in it, where the first one enters whole and the weight is 1 ever after."""
    coefficient = tree.map(lambda w, d: 1 - d * (w > 0).to(w.dtype), ema.weight, decay)
    return ema.update(values, decay, coefficient)


@state_class
class ScaleByAdoptState(NamedTuple):
    """The number of steps taken, and the averages of divided gradients and of squared gradients."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Ema
    nu: Ema


@link(scope="element")
def scale_by_adopt(
    beta1=0.9, beta2=0.9999, eps=1e-6, clip_exponent=0.25, *, nesterov: bool = False, use_clipping: bool = True
) -> Any:
    """Average gradients divided by the root mean square of those *before* them: ADOPT.

    At the first step only ``v = g²`` is noted and ``u = 0``. After it, with ``t`` = 1, 2, ...: ``d = g/max(√v, eps)``,
    clipped to ``±t^clip_exponent``, ``m ← β1·m + (1 - β1)·d``, ``u = m`` and last ``v ← β2·v + (1 - β2)·g²``. It
    converges with any ``β2``. Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any β2 with the Optimal Rate"
    (2024).

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: the least that is divided by.
        clip_exponent: how fast the bound of ``d`` grows (optax: a function, ``clip_value_fn``).
        nesterov: ``u = β1·m + (1 - β1)·d``, with the new ``m``.
        use_clipping: if false, ``d`` is not clipped.

    >>> tx = chain(scale_by_adopt(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 1., -2.])}
    """

    def init(params) -> ScaleByAdoptState:
        count = tree.counter(params)
        return ScaleByAdoptState(count, Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True))

    def transform(updates, state, params, beta1, beta2, eps, clip_exponent):
        started = state.count > 0

        def divide(g, v, eps, exponent):
            # 1 stands in for what is not there yet, so that derivatives are 0 and not NaN
            d = g / maximum(sqrt(torch.where(started, v, 1.0).to(v.dtype)), eps)
            if use_clipping:
                bound = torch.where(started, state.count, 1).to(v.dtype) ** exponent
                d = torch.clamp(d, -bound, bound)
            return torch.where(started, d, 0.0).to(v.dtype)

        divided = tree.map(divide, updates, state.nu.total, eps, clip_exponent)
        mu = state.mu.update(divided, beta1)
        out = tree.map(lambda m, d, b: lerp(m, d, 1 - b), mu.total, divided, beta1) if nesterov else mu.total
        return out, ScaleByAdoptState(state.count + 1, mu, _first_whole(state.nu, squares(updates), beta2))

    return init, transform


@state_class
class ScaleByNovogradState(NamedTuple):
    """The momentum buffer, and the average of the squared norm of every leaf."""

    trace: Ema  # undamped: total is the buffer
    nu: Ema  # total: 0-d, a tree like the parameters


@link(scope="leaf")
def scale_by_novograd(beta1=0.9, beta2=0.25, eps=1e-8, eps_root=0.0, weight_decay=0.0, *, mask: Mask = None) -> Any:
    """Take the momentum of gradients divided by the running norm of their leaf: NovoGrad.

    ``v ← β2·v + (1 - β2)·‖g‖²``, by leaf, and ``‖g‖²`` itself at the first step; without ``1 - β1``,
    ``m ← β1·m + g/(√(v + eps_root) + eps) + weight_decay·p``; ``u = m``. Ginsburg et al., "Stochastic Gradient Methods
    with Layer-wise Adaptive Moments for Training of Deep Networks" (2019), with ``β1 = 0.95`` and ``β2 = 0.98``.

    Args:
        beta1: what is kept of the momentum.
        beta2: what is kept of the squared norm.
        eps: added to the denominator.
        eps_root: added under the root.
        weight_decay: factor of the decay, which goes through the momentum.
        mask: which leaves decay, see :func:`add_decayed_weights <functopt.add_decayed_weights>`.

    >>> tx = chain(scale_by_novograd(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9553, -2.0894])}
    """
    decay = add_decayed_weights(mask=mask)

    def init(params) -> ScaleByNovogradState:
        norms = tree.sums(tree.zeros_like(params))
        return ScaleByNovogradState(Ema.zeros(params, beta1), Ema(norms, tree.scalars(params, beta2)))

    def transform(updates, state, params, beta1, beta2, eps, eps_root, weight_decay):
        nu = _first_whole(state.nu, tree.sums(squares(updates)), beta2)
        divided = over_root(updates, nu.total, eps, eps_root)
        decayed, _ = decay.transform(divided, (), params, {"weight_decay": weight_decay})
        trace = state.trace.update(decayed, beta1, 1.0)
        return trace.total, ScaleByNovogradState(trace, nu)

    return init, transform
