"""Momentum and Adam with a step size from a model of the loss: MoMo."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import accumulator_dtype, maximum, minimum, once, sqrt
from functopt.transforms.moments import squares
from functopt.transforms.polyak import NO_STEP
from functopt.transforms.totals import added
from functopt.tree import Tree

__all__ = ["ScaleByMomoState", "scale_by_momo", "scale_by_momo_adam"]


@state_class
class ScaleByMomoState(NamedTuple):
    """The averages of the gradient and of the linear models of the loss that it belongs to."""

    mu: Ema
    nu: Tree  # an Ema of squares, or ()
    model: Tree  # f - ⟨g, p⟩ in the average, 0-d or one per group
    lower_bound: Tree  # as estimated so far, 0-d or one per group; () if it is given


_FORMS = ("optax", "paper")


def _check(who: str, form: str) -> None:
    if form not in _FORMS:
        raise ValueError(f"{who}: form must be one of {_FORMS}, got {form!r}")


def _start(params: Tree, beta: Tree, lower_bound: Tree, nu: Tree, *, adapt: bool) -> ScaleByMomoState:
    bound = tree.scalars(params, beta, lower_bound) if adapt else ()
    return ScaleByMomoState(Ema.zeros(params, beta), nu, tree.scalars(params, beta), bound)


def _step(
    state: ScaleByMomoState,
    grads: Tree,
    params: Tree,
    value: Any,
    size: Tree,
    nu: Tree,
    lr: Tree,
    betas: tuple[Tree, Tree],
    lower_bound: Tree,
    weight_decay: Tree,
    *,
    adapt: bool,
    form: str,
) -> tuple[Tree, ScaleByMomoState]:
    """Return the updates and the new state.

    Args:
        size: what the mean is divided by, a tree like the parameters or 1.
        betas: what is kept of both averages, and what the new value is multiplied by.
    """
    mu = state.mu.update(grads, *betas)
    here = value - tree.dot(grads, params)
    model = tree.map(lambda f, b, c: (b * f + c * here).to(f.dtype), state.model, *betas)
    direction = tree.map(lambda m, d: m.to(accumulator_dtype(m.dtype)) / d, mu.total, size)
    lengths = tree.sums(tree.map(torch.mul, mu.total, direction))
    length, inner = added(lengths), tree.dot(mu.total, params)
    moves = length > NO_STEP
    divisor = torch.where(moves, length, 1.0)  # so that derivatives are 0 where no step is taken, and not NaN
    weight = mu.weight

    bound: Tree = lower_bound
    if adapt:  # the first bound is the one that is given
        first = lambda old, w, low: torch.where(w == 0, low, old)
        bound = tree.map(first, state.lower_bound, state.mu.weight, lower_bound)
    groups = tree.scalars(params, lr, weight_decay, weight, model, bound)

    def step_size(_, f, w, bound, low, lr, decay):
        grown = 1 + lr * decay
        if adapt:
            cap = grown * f + inner
            bound = torch.where(cap < grown * w * bound, maximum(cap / (2 * w * grown), low), bound)
        gain = (grown * (f - w * bound) + inner).clamp_min(0)
        return once(minimum(torch.where(moves, gain / divisor, 0.0), lr / w).to(length.dtype))

    tau = tree.map(step_size, groups, model, weight, bound, lower_bound, lr, weight_decay)

    def move(d, p, tau, lr, decay):
        shrink = 1 / (1 + lr * decay)
        return -lr * decay * shrink * p - (shrink * tau if form == "paper" else tau) * d

    out = tree.map(move, direction, params, tau, lr, weight_decay)
    if adapt:
        gained = added(tree.map(torch.mul, lengths, tau)) / 2
        reached = lambda old, f, w, low: maximum((f + inner - gained) / w, low).to(old.dtype)
        bound = tree.map(reached, state.lower_bound, model, weight, lower_bound)
    return out, ScaleByMomoState(mu, nu, model, bound if adapt else ())


@link(scope="tree")
def scale_by_momo(
    lr=1.0, beta=0.9, lower_bound=0.0, weight_decay=0.0, *, adapt_lower_bound: bool = False, form: str = "optax"
) -> Any:
    """Follow the momentum as far as an average of linear models of the loss stays above its lower bound: MoMo.

    ``m ← β·m + (1 - β)·g`` and ``c ← β·c + (1 - β)·(f - ⟨g, p⟩)``, from the first ``g`` and ``f - ⟨g, p⟩`` on; with
    ``w = 1 + lr·weight_decay``, ``τ = min(lr, max(w·(c - lower_bound) + ⟨m, p⟩, 0)/‖m‖²)`` and
    ``u = -τ·m - lr·weight_decay/w·p``. ``f`` is the extra ``value``. Schaipp, Ohana, Eickenberg, Defazio & Gower,
    "MoMo: Momentum Models for Adaptive Learning Rates" (2024).

    The learning rate is a bound on the step size, so that the updates are those of a whole optimizer: nothing is scaled
    afterwards. No step is taken where ``‖m‖²`` is no more than 2.2e-16.

    Args:
        lr: the largest step size.
        beta: what is kept of the averages.
        lower_bound: the least value that the loss can have.
        weight_decay: factor of the decay.
        adapt_lower_bound: estimate the bound on the way, from ``lower_bound`` on. The estimate may come to rest above
            the least value, and the steps with it, above all if the loss has no noise.
        form: ``"optax"``, as above; ``"paper"``, where the decay shrinks the step too: ``p ← (p - τ·m)/w``, with
            ``m/D`` for Adam, as in the authors' package.

    Raises:
        ValueError: ``form`` has another value.
        TypeError: at the step: the extra ``value`` is missing.

    >>> tx = scale_by_momo()
    >>> tx.update(grads, tx.init(params), params, value=torch.tensor(0.5))[0]
    {'w': tensor([ 0.8000, -2.4000])}
    """
    _check("scale_by_momo", form)

    def init(params) -> ScaleByMomoState:
        return _start(params, beta, lower_bound, (), adapt=adapt_lower_bound)

    def transform(updates, state, params, lr, beta, lower_bound, weight_decay, value):
        fresh = tree.map(lambda w, b: torch.where(w == 0, torch.ones_like(w), 1 - b), state.mu.weight, beta)
        return _step(
            state, updates, params, value, 1.0, (), lr, (beta, fresh), lower_bound, weight_decay,
            adapt=adapt_lower_bound, form=form,
        )  # fmt: skip

    return init, transform


@link(scope="tree")
def scale_by_momo_adam(
    lr=1e-2,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    lower_bound=0.0,
    weight_decay=0.0,
    *,
    adapt_lower_bound: bool = False,
    form: str = "optax",
) -> Any:
    """Follow Adam's direction as far as an average of linear models of the loss stays above its lower bound.

    ``m ← β1·m + (1 - β1)·g``, ``c ← β1·c + (1 - β1)·(f - ⟨g, p⟩)``, ``v ← β2·v + (1 - β2)·g²`` and
    ``D = √(v/(1 - β2^t)) + eps``; with ``b = 1 - β1^t`` and ``w = 1 + lr·weight_decay``,
    ``τ = min(lr/b, max(w·(c - b·lower_bound) + ⟨m, p⟩, 0)/⟨m, m/D⟩)`` and ``u = -τ·m/D - lr·weight_decay/w·p``. ``f``
    is the extra ``value``. Schaipp, Ohana, Eickenberg, Defazio & Gower, "MoMo: Momentum Models for Adaptive Learning
    Rates" (2024). As to the rest, see :func:`scale_by_momo`.

    Args:
        lr: the largest step size.
        beta1: what is kept of the means.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        lower_bound: the least value that the loss can have.
        weight_decay: factor of the decay.
        adapt_lower_bound: estimate the bound on the way, from ``lower_bound`` on. The estimate may come to rest above
            the least value, and the steps with it, above all if the loss has no noise.
        form: ``"optax"``, as above; ``"paper"``, where the decay shrinks the step too: ``p ← (p - τ·m)/w``, with
            ``m/D`` for Adam, as in the authors' package.

    Raises:
        ValueError: ``form`` has another value.
        TypeError: at the step: the extra ``value`` is missing.

    >>> tx = scale_by_momo_adam(lr=0.1)
    >>> tx.update(grads, tx.init(params), params, value=torch.tensor(0.5))[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    _check("scale_by_momo_adam", form)

    def init(params) -> ScaleByMomoState:
        nu = Ema.zeros(params, beta2, accumulate=True)
        return _start(params, beta1, lower_bound, nu, adapt=adapt_lower_bound)

    def transform(updates, state, params, lr, beta1, beta2, eps, lower_bound, weight_decay, value):
        nu = state.nu.update(squares(updates), beta2)
        size = tree.map(lambda v, e: sqrt(v) + e, nu.mean, eps)
        betas = beta1, tree.map(lambda b: 1 - b, beta1)
        return _step(
            state, updates, params, value, size, nu, lr, betas, lower_bound, weight_decay, adapt=adapt_lower_bound,
            form=form,
        )  # fmt: skip

    return init, transform
