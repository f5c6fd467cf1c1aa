"""Adam, and the links that rectify it, look ahead or mix the present gradient in."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import once, root, sqrt
from functopt.transforms.moments import is_zero, look_ahead, over_root, squares
from functopt.tree import Tree

__all__ = [
    "ScaleByAdamState",
    "ScaleByNadamState",
    "ScaleByQhadamState",
    "ScaleByRadamState",
    "scale_by_adam",
    "scale_by_nadam",
    "scale_by_qhadam",
    "scale_by_radam",
]


@state_class
class ScaleByAdamState(NamedTuple):
    """The averages of gradients and of squared gradients."""

    mu: Ema
    nu: Ema
    count: Tree  # steps taken, 0-d or one per group, if debiased by powers; else ()


_NESTEROV = (False, True, "same_step", "raw")


@link(scope="element")
def scale_by_adam(
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    eps_root=0.0,
    *,
    nesterov: bool | str = False,
    debias: str = "weight",
    damped: bool = True,
) -> Any:
    """Divide the running mean of the gradient by the root of its running mean square: Adam.

    ``m ← β1·m + (1 - β1)·g``, ``v ← β2·v + (1 - β2)·g²``, ``m̂ = m/(1 - β1^t)``, ``v̂ = v/(1 - β2^t)`` and
    ``u = m̂ / (√(v̂ + eps_root) + eps)``. Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015).

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        eps_root: added under the root.
        nesterov: look ahead by one step (Dozat, "Incorporating Nesterov Momentum into Adam", 2016). It says how the
            numerator ``β1·m + (1 - β1)·g`` is debiased: True, each term by its own step's weight,
            ``β1·m/(1 - β1^(t+1)) + (1 - β1)·g/(1 - β1^t)``, as in optax; ``"same_step"``, both by ``1 - β1^t``;
            ``"raw"``, not at all.
        debias: ``"weight"`` divides by the sum of the weights that are in the average. For a constant β it is
            ``1 - β^t``, and it stays right when β is scheduled. ``"power"`` divides by ``1 - β^t`` with the β of the
            present step whatever came before, as torch, optax and fastai do.
        damped: if false, ``m ← β1·m + g`` and ``v ← β2·v + g²``. Debiased by weight they are the same averages.

    Raises:
        ValueError: an option has another value, or two options do not go together.

    >>> tx = chain(scale_by_adam(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    if nesterov not in _NESTEROV:
        raise ValueError(f"scale_by_adam: nesterov must be one of {_NESTEROV}, got {nesterov!r}")
    if debias not in ("weight", "power"):
        raise ValueError(f"scale_by_adam: debias must be 'weight' or 'power', got {debias!r}")
    if not damped and (nesterov or debias == "power"):
        raise ValueError("scale_by_adam: nesterov and debias='power' need damped averages")

    def init(params) -> ScaleByAdamState:
        count = tree.scalars(params, beta1, beta2) if debias == "power" else ()
        return ScaleByAdamState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True), count)

    def transform(updates, state, params, beta1, beta2, eps, eps_root):
        coefficient = None if damped else 1.0
        mu = state.mu.update(updates, beta1, coefficient)
        nu = state.nu.update(squares(updates), beta2, coefficient)
        new_state = ScaleByAdamState(mu, nu, tree.map(lambda t: t + 1, state.count))
        if debias == "power":
            mu, nu = (
                e._replace(weight=tree.map(lambda t, b: 1 - b**t, new_state.count, beta))
                for e, beta in ((mu, beta1), (nu, beta2))
            )

        def ahead(g, m, w, b):
            return (b * m + (1 - b) * g) / (w if nesterov == "same_step" else 1.0)

        if not nesterov and is_zero(eps_root):  # m̂ / (√v̂ + eps) with both weights in one factor
            groups = tree.scalars(params, mu.weight, nu.weight, eps)
            factor = tree.map(lambda _, w, v: once(w / sqrt(v)), groups, mu.weight, nu.weight)
            floor = tree.map(lambda _, w, e: once(w * e), groups, mu.weight, eps)
            out = tree.map(lambda m, v, a, b, eps: m / (a * root(v, eps) + b), mu.total, nu.total, factor, floor, eps)
            return out, new_state
        if nesterov is True:
            m_hat = look_ahead(updates, mu, beta1)
        else:
            m_hat = tree.map(ahead, updates, mu.total, mu.weight, beta1) if nesterov else mu.mean
        return over_root(m_hat, nu.mean, eps, eps_root), new_state

    return init, transform


@state_class
class ScaleByNadamState(NamedTuple):
    """The averages of Adam, and where the momentum schedule stands."""

    mu: Ema
    nu: Ema
    fade: Tree  # 0.96^(t·momentum_decay), 0-d or one per group
    product: Tree  # product of the momenta so far, 0-d or one per group


@link(scope="element")
def scale_by_nadam(beta1=0.9, beta2=0.999, eps=1e-8, momentum_decay=4e-3) -> Any:
    """Adam with Nesterov momentum that grows by Dozat's schedule, as in ``torch.optim.NAdam``.

    ``μ_t = β1·(1 - 0.96^(t·momentum_decay)/2)`` and ``Π_t = μ_1···μ_t``; with Adam's ``m`` and ``v̂``,
    ``u = (μ_{t+1}·m/(1 - Π_{t+1}) + (1 - μ_t)·g/(1 - Π_t)) / (√v̂ + eps)``. With a constant ``μ = β1`` this is
    ``scale_by_adam(nesterov=True)``, which is optax's form. Dozat, "Incorporating Nesterov Momentum into Adam" (2016).

    Args:
        beta1: what is kept of the mean, and the momentum that the schedule tends to.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        momentum_decay: speed of the schedule.

    >>> tx = chain(scale_by_nadam(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8944, -2.1056])}
    """

    def init(params) -> ScaleByNadamState:
        ones = tree.scalars(params, beta1, momentum_decay, value=1.0)
        again = tree.scalars(params, beta1, momentum_decay, value=1.0)
        return ScaleByNadamState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True), ones, again)

    def transform(updates, state, params, beta1, beta2, eps, momentum_decay):
        mu = state.mu.update(updates, beta1)
        nu = state.nu.update(squares(updates), beta2)
        fade = tree.map(lambda f, psi: (f * 0.96**psi).to(f.dtype), state.fade, momentum_decay)
        now = tree.map(lambda f, b: b * (1 - 0.5 * f), fade, beta1)
        following = tree.map(lambda f, psi, b: b * (1 - 0.5 * f * 0.96**psi), fade, momentum_decay, beta1)
        product = tree.map(lambda p, mu: (p * mu).to(p.dtype), state.product, now)

        def ahead(g, m, v, eps, now, following, product):
            numerator = following / (1 - product * following) * m + (1 - now) / (1 - product) * g
            return numerator / (sqrt(v) + eps)

        out = tree.map(ahead, updates, mu.total, nu.mean, eps, now, following, product)
        return out, ScaleByNadamState(mu, nu, fade, product)

    return init, transform


@state_class
class ScaleByRadamState(NamedTuple):
    """The averages of Adam, and the total age of what is in the second one."""

    mu: Ema
    nu: Ema
    age: Tree  # sum of weight times age, with the structure of nu.weight


@link(scope="element")
def scale_by_radam(
    beta1=0.9, beta2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0, softplus_beta=0.0, *, eps_debiased: bool = False
) -> Any:
    """Adam that divides by the second moment only once enough of it has been seen: rectified Adam.

    With ``m̂``, ``v̂`` as in Adam, ``ρ∞ = 2/(1 - β2) - 1`` and ``ρ = ρ∞ - 2t·β2^t/(1 - β2^t)``:
    ``u = r·m̂ / (√v̂ + eps)`` where ``ρ > threshold``, else ``u = m̂``, with
    ``r = √((ρ - 4)(ρ - 2)ρ∞ / ((ρ∞ - 4)(ρ∞ - 2)ρ))``. Liu et al., "On the Variance of the Adaptive Learning Rate and
    Beyond" (2020), which rectifies where ``ρ > 4``; torch and fastai where ``ρ > 5``, optax where ``ρ ≥ 5``.

    ``ρ`` is computed as ``2·age - 1``, where ``age`` is the average age of the squared gradients in ``v``: the same
    number for a constant ``β2``, without the formula's cancellation, and meaningful when ``β2`` is scheduled.

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        eps_root: added under the root.
        threshold: where rectification begins.
        softplus_beta: if not 0, the denominator is smoothed to ``log(1 + exp(beta·d))/beta`` (fastai's ``beta``; d
            itself where ``beta·d > 20``).
        eps_debiased: where ``eps`` stands: ``√(v/(1 - β2^t)) + eps`` (optax, fastai), or if false
            ``(√v + eps)/√(1 - β2^t)``, as in ``torch.optim.RAdam``.

    >>> tx = chain(scale_by_radam(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """

    def init(params) -> ScaleByRadamState:
        nu = Ema.zeros(params, beta2, accumulate=True)
        return ScaleByRadamState(Ema.zeros(params, beta1), nu, tree.scalars(params, beta2))

    def transform(updates, state, params, beta1, beta2, eps, eps_root, threshold, softplus_beta):
        mu = state.mu.update(updates, beta1)
        nu = state.nu.update(squares(updates), beta2)
        # every sample grows older by one step, and a new one of age 1 comes in
        age = tree.map(lambda a, w, b: (b * a + w).to(a.dtype), state.age, nu.weight, beta2)

        def rectify(m, v, w, age, b, eps, eps_root, threshold, soft):
            rho = 2 * age / w - 1
            enough = rho > threshold
            # 5 stands in where r is not used, so that its derivative is 0 there and not NaN
            limit = torch.where(enough, (1 + b) / (1 - b), torch.full_like(rho, 5.0))
            rho = torch.where(enough, rho, 5.0)
            r = sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)).to(w.dtype)
            if eps_debiased:
                denominator = _softened(sqrt(v / w + eps_root) + eps, soft)
            else:
                denominator = _softened((sqrt(v + eps_root) + eps) / sqrt(w), soft)
            return torch.where(enough, r * m / denominator, m)

        out = tree.map(rectify, mu.mean, nu.total, nu.weight, age, beta2, eps, eps_root, threshold, softplus_beta)
        return out, ScaleByRadamState(mu, nu, age)

    return init, transform


def _softened(d: Tensor, beta: float | Tensor) -> Tensor:
    if isinstance(beta, (float, int)):
        return torch.nn.functional.softplus(d, beta, 20.0) if beta else d
    scaled = beta * d
    smooth = torch.log1p(torch.exp(scaled.clamp_max(20.0))) / torch.where(beta == 0, 1.0, beta)
    return torch.where((beta == 0) | (scaled > 20.0), d, smooth.to(d.dtype))


@state_class
class ScaleByQhadamState(NamedTuple):
    """The averages of Adam."""

    mu: Ema
    nu: Ema


@link(scope="element")
def scale_by_qhadam(beta1=0.9, beta2=0.999, nu1=1.0, nu2=1.0, eps=1e-8) -> Any:
    """Adam whose moments are mixed with the present gradient: quasi-hyperbolic Adam.

    ``u = ((1 - ν1)·g + ν1·m̂) / (√((1 - ν2)·g² + ν2·v̂) + eps)``; with ``ν1 = ν2 = 1`` it is Adam. Ma & Yarats,
    "Quasi-hyperbolic momentum and Adam for deep learning" (2019).

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        nu1: how much of the numerator is the mean.
        nu2: how much of the denominator is the mean square.
        eps: added to the denominator.

    >>> tx = chain(scale_by_qhadam(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """

    def init(params) -> ScaleByQhadamState:
        return ScaleByQhadamState(Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True))

    def transform(updates, state, params, beta1, beta2, nu1, nu2, eps):
        fresh = squares(updates)
        mu = state.mu.update(updates, beta1)
        nu = state.nu.update(fresh, beta2)

        def mix(g, s, m, v, nu1, nu2, eps):
            return ((1 - nu1) * g + nu1 * m) / (sqrt((1 - nu2) * s + nu2 * v) + eps)

        return tree.map(mix, updates, fresh, mu.mean, nu.mean, nu1, nu2, eps), ScaleByQhadamState(mu, nu)

    return init, transform
