"""Links that estimate how far the solution is, and step by that: D-Adaptation and Prodigy."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import accumulator_dtype, maximum, once, root, sqrt
from functopt.transforms.moments import squares
from functopt.transforms.totals import added, copied, displacement, total, totals
from functopt.tree import Tree

__all__ = ["ScaleByDadaptAdamState", "ScaleByProdigyState", "scale_by_dadapt_adam", "scale_by_prodigy"]


def _adam_lr(params: Tree, d: Tree, lr: Tree, mu: Tree, nu: Tree, *, debiased: bool) -> Tree:
    """Return ``d·lr``, by the weights of both averages times Adam's bias correction: 0-d, or one for each group."""
    if not debiased:
        return tree.map(lambda _, d, lr: d * lr, tree.scalars(params, d, lr), d, lr)
    groups = tree.scalars(params, d, lr, mu, nu)
    return tree.map(lambda _, d, lr, a, b: once(d * lr * sqrt(b) / a), groups, d, lr, mu, nu)


def _larger(d: Tree, numerator: Tensor, denominator: Tensor, factor: Tree = 1.0) -> Tree:
    """Return ``max(d, factor·numerator/denominator)``, and ``d`` as long as there is nothing to estimate it from."""
    # 1 stands in for 0, by which nothing is divided, so that derivatives there are 0 and not NaN
    seen = denominator > 0
    estimate = torch.where(seen, numerator / torch.where(seen, denominator, 1.0), 0.0)
    return tree.map(lambda d, f: maximum(d, f * estimate).to(d.dtype), d, factor)


@state_class
class ScaleByDadaptAdamState(NamedTuple):
    """Adam's averages, that of the steps of the gradient, and what the estimate is made of."""

    mu: Ema  # of steps, with the learning rate in them
    nu: Ema
    grad_sum: Tree
    estim_lr: Tree  # 0-d or one per group
    numerator_weighted: Tree  # likewise


@link(scope="tree")
def scale_by_dadapt_adam(
    lr=1.0, beta1=0.9, beta2=0.999, eps=1e-8, estim_lr0=1e-6, weight_decay=0.0, *, bias_correction: bool = True
) -> Any:
    """Take Adam's step with a learning rate that grows with the distance which the gradients prove: D-Adaptation.

    With ``λ = d·lr·√(1 - β2^t)/(1 - β1^t)`` and ``γ = √β2``, where ``d`` begins at ``estim_lr0``:
    ``n ← γ·n + (1 - γ)·λ·⟨g, s/(√v + eps)⟩``, ``s ← γ·s + (1 - γ)·λ·g``, ``m ← β1·m + (1 - β1)·λ·g``,
    ``v ← β2·v + (1 - β2)·g²``, ``u = -m/(√v + eps) - λ·weight_decay·p`` and ``d ← max(d, n/((1 - γ)·‖s‖₁))``, with
    sums over all leaves. Defazio & Mishchenko, "Learning-Rate-Free Learning by D-Adaptation" (2023).

    The learning rate is part of what is learnt, so that the updates are those of a whole optimizer: nothing is scaled
    afterwards.

    Args:
        lr: a factor, for schedules; the rate itself is found.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        estim_lr0: the first ``d``, which should be too small.
        weight_decay: factor of the decay; to decay some leaves only, a tree with 0 for the others.
        bias_correction: as optax; if false ``λ = d·lr``, the default of the authors' package.

    >>> tx = scale_by_dadapt_adam(estim_lr0=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """

    def init(params) -> ScaleByDadaptAdamState:
        mu, nu = Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True)
        d, n = tree.scalars(params, estim_lr0), tree.scalars(params, estim_lr0, beta2)
        return ScaleByDadaptAdamState(mu, nu, tree.zeros_like(params, accumulate=True), d, n)

    def transform(updates, state, params, lr, beta1, beta2, eps, estim_lr0, weight_decay):
        d = tree.map(maximum, state.estim_lr, estim_lr0)
        gamma = tree.map(lambda b: b**0.5, beta2)
        nu = state.nu.update(squares(updates), beta2)
        # of the steps, which are about to be made with it
        weight = tree.map(lambda w, b: b * w + (1 - b), state.mu.weight, beta1)
        rate = _adam_lr(params, d, lr, weight, nu.weight, debiased=bias_correction)
        steps = tree.map(lambda g, a: a * g, updates, rate)
        mu = state.mu.update(steps, beta1)

        pull = tree.map(lambda g, s, v, e: g * s / (root(v, e) + e), steps, state.grad_sum, state.nu.total, eps)
        groups = state.numerator_weighted
        n = tree.map(lambda n, x, c: (c * n + (1 - c) * x).to(n.dtype), groups, totals(pull, groups), gamma)
        s = tree.map(lambda s, g, c: (c * s + (1 - c) * g).to(s.dtype), state.grad_sum, steps, gamma)
        size = tree.map(lambda x, c: (1 - c) * x, tree.sums(tree.map(torch.abs, s)), gamma)

        step = lambda m, v, p, a, e, decay: -m / (root(v, e) + e) - a * decay * p
        out = tree.map(step, mu.total, nu.total, params, rate, eps, weight_decay)
        return out, ScaleByDadaptAdamState(mu, nu, s, _larger(d, added(n), added(size)), n)

    return init, transform


@state_class
class ScaleByProdigyState(NamedTuple):
    """Adam's averages, where the parameters began, and what the estimate is made of."""

    mu: Ema  # of d·g
    nu: Ema  # of its square
    grad_sum: Tree
    params0: Tree
    estim_lr: Tree  # 0-d or one per group
    numerator_weighted: Tree  # likewise


@link(scope="tree")
def scale_by_prodigy(
    lr=1.0,
    beta1=0.9,
    beta2=0.999,
    beta3=0.999**0.5,
    eps=1e-8,
    estim_lr0=1e-6,
    estim_lr_coef=1.0,
    weight_decay=0.0,
    *,
    safeguard_warmup: bool = False,
    bias_correction: bool = True,
) -> Any:
    """Take Adam's step with a learning rate that grows with the distance which the gradients prove: Prodigy.

    With ``λ = d·lr·√(1 - β2^t)/(1 - β1^t)``, where ``d`` begins at ``d₀ = estim_lr0``:
    ``m ← β1·m + (1 - β1)·d·g``, ``v ← β2·v + (1 - β2)·(d·g)²``, ``n ← β3·n + (d/d₀)·λ·⟨g, p₀ - p⟩``,
    ``s ← β3·s + (d/d₀)·λ·g``, ``d ← max(d, estim_lr_coef·n/‖s‖₁)``, with sums over all leaves, and then
    ``u = -λ·(m/(√v + d·eps) + weight_decay·p)`` with the ``λ`` from before. Mishchenko & Defazio, "Prodigy: An
    Expeditiously Adaptive Parameter-Free Learner" (2024).

    The learning rate is part of what is learnt, so that the updates are those of a whole optimizer: nothing is scaled
    afterwards.

    Args:
        lr: a factor, for schedules; the rate itself is found.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        beta3: what is kept of the sums of which the estimate is made; usually ``√β2``.
        eps: added to the denominator.
        estim_lr0: the first ``d``, which should be too small.
        estim_lr_coef: a factor of the estimate.
        weight_decay: factor of the decay; to decay some leaves only, a tree with 0 for the others.
        safeguard_warmup: ``s ← β3·s + (d/d₀)·d·g``, so that a warm-up does not make the estimate too large.
        bias_correction: as optax; if false ``λ = d·lr``, the default of the authors' package.

    >>> tx = scale_by_prodigy(estim_lr0=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """

    def init(params) -> ScaleByProdigyState:
        mu, nu = Ema.zeros(params, beta1), Ema.zeros(params, beta2, accumulate=True)
        d, n = tree.scalars(params, estim_lr0), tree.scalars(params, estim_lr0, beta3)
        return ScaleByProdigyState(mu, nu, tree.zeros_like(params, accumulate=True), copied(params), d, n)

    def transform(updates, state, params, lr, beta1, beta2, beta3, eps, estim_lr0, estim_lr_coef, weight_decay):
        d = tree.map(maximum, state.estim_lr, estim_lr0)
        scaled = tree.map(lambda g, d: d * g.to(accumulator_dtype(g.dtype)), updates, d)
        mu, nu = state.mu.update(scaled, beta1), state.nu.update(squares(scaled), beta2)
        rate = _adam_lr(params, d, lr, mu.weight, nu.weight, debiased=bias_correction)

        back = displacement(state.params0, params)
        pull = tree.map(lambda g, x, a, d0: a / d0 * g * x, scaled, back, rate, estim_lr0)
        groups = state.numerator_weighted
        n = tree.map(lambda n, x, b: (b * n + x).to(n.dtype), groups, totals(pull, groups), beta3)
        collect = lambda s, g, a, b, d0: (b * s + a / d0 * g).to(s.dtype)
        s = tree.map(collect, state.grad_sum, scaled, d if safeguard_warmup else rate, beta3, estim_lr0)
        new_d = _larger(d, added(n), total(tree.map(torch.abs, s)), estim_lr_coef)

        def step(m, v, p, a, d, e, decay):
            return -a * (m / (sqrt(v) + d * e) + decay * p)

        out = tree.map(step, mu.total, nu.total, params, rate, new_d, eps, weight_decay)
        return out, ScaleByProdigyState(mu, nu, s, state.params0, new_d, n)

    return init, transform
