"""Links that look at how the gradient has changed since the last step: Adan and MARS."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import maximum, once, sqrt
from functopt.transforms.moments import over_root, squares
from functopt.tree import Tree

__all__ = ["ReduceVarianceState", "ScaleByAdanState", "reduce_variance", "scale_by_adan"]


def _kept(grads: Tree, like: Tree) -> Tree:
    """Return a copy, since the gradients themselves are the caller's, who may write into them."""
    return tree.map(lambda g, old: g.to(old.dtype, copy=True), grads, like)


@state_class
class ScaleByAdanState(NamedTuple):
    """The averages of gradients, of their changes and of squares, and the last gradient."""

    mu: Ema
    delta: Ema
    nu: Ema
    grad: Tree  # like the parameters


@link(scope="element")
def scale_by_adan(beta1=0.98, beta2=0.92, beta3=0.99, eps=1e-8, eps_root=0.0, *, form: str = "optax") -> Any:
    """Adam with Nesterov momentum made of the changes of the gradient: Adan.

    With ``d = g - g_last``, which is 0 at the first step: ``m ← β1·m + (1 - β1)·g``, ``δ ← β2·δ + (1 - β2)·d``,
    ``n ← β3·n + (1 - β3)·(g + c·d)²`` and ``u = (m̂ + c·δ̂) / (√(n̂ + eps_root) + eps)``, with all three debiased. Xie et
    al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models" (2022).

    In the paper ``c`` is one minus the weight of a new change, so ``β2`` here and in the authors' code. optax has
    ``1 - β2`` with the same ``β2``: it looks 0.08 steps ahead, where Adan looks 0.92.

    Args:
        beta1: what is kept of the mean.
        beta2: what is kept of the mean change.
        beta3: what is kept of the mean square.
        eps: added to the denominator.
        eps_root: added under the root.
        form: ``"optax"``: ``c = 1 - β2``; ``"paper"``: ``c = β2``.

    Raises:
        ValueError: ``form`` has another value.

    >>> tx = chain(scale_by_adan(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """

    if form not in ("optax", "paper"):
        raise ValueError(f"scale_by_adan: form must be 'optax' or 'paper', got {form!r}")

    def init(params) -> ScaleByAdanState:
        moments = Ema.zeros(params, beta1), Ema.zeros(params, beta2), Ema.zeros(params, beta3, accumulate=True)
        return ScaleByAdanState(*moments, tree.zeros_like(params))

    def transform(updates, state, params, beta1, beta2, beta3, eps, eps_root):
        add = lambda x, b, d: x + (b if form == "paper" else 1 - b) * d
        change = _change(updates, state.grad, state.mu.weight)
        mu = state.mu.update(updates, beta1)
        delta = state.delta.update(change, beta2)
        nu = state.nu.update(squares(tree.map(add, updates, beta2, change)), beta3)
        out = over_root(tree.map(add, mu.mean, beta2, delta.mean), nu.mean, eps, eps_root)
        return out, ScaleByAdanState(mu, delta, nu, _kept(updates, state.grad))

    return init, transform


def _change(grads: Tree, last: Tree, steps: Tree) -> Tree:
    """Return ``g - g_last``, and 0 where ``steps`` is: at the first one."""
    return tree.map(lambda g, old, t: torch.where(t > 0, g - old, 0.0).to(g.dtype), grads, last, steps)


@state_class
class ReduceVarianceState(NamedTuple):
    """The number of steps taken, and the last gradient."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    grad: Tree  # like the parameters


_FIRST = ("paper", "code")


@link(scope="leaf")
def reduce_variance(gamma=0.025, beta1=0.95, max_norm=1.0, *, form: str = "paper") -> Any:
    """Add a part of the change of the gradient, so that its average has less noise: what MARS puts before Adam.

    ``c = g + gamma·β1/(1 - β1)·(g - g_last)`` and ``u = c / max(1, ‖c‖/max_norm)``, the norm by leaf. Yuan et al.,
    "MARS: Unleashing the Power of Variance Reduction for Training Large Models" (2024).

    In the paper's exact form ``g_last`` is the gradient of the *present* batch at the *last* parameters: give it as the
    extra ``last_grad``. Without it, it is the gradient of the last step, which costs no second backward pass.

    Args:
        gamma: how much of the correction is made; with 1 it is that of STORM.
        beta1: what is kept of the mean that comes after it.
        max_norm: the largest norm of a leaf.
        form: ``"paper"``: there is no change at the first step; ``"code"``: it is ``g``, as in the authors' code, where
            the last gradient is 0 then.

    Raises:
        ValueError: ``form`` has another value.

    >>> tx = chain(reduce_variance(max_norm=2.0), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    if form not in _FIRST:
        raise ValueError(f"reduce_variance: form must be one of {_FIRST}, got {form!r}")

    def init(params) -> ReduceVarianceState:
        count = tree.counter(params)
        return ReduceVarianceState(count, tree.zeros_like(params))

    def transform(updates, state, params, gamma, beta1, max_norm, last_grad=None):
        steps = state.count + 1 if form == "code" or last_grad is not None else state.count
        change = _change(updates, state.grad if last_grad is None else last_grad, steps)
        corrected = tree.map(lambda g, d, c, b: g + c * b / (1 - b) * d, updates, change, gamma, beta1)
        norm = tree.map(sqrt, tree.sums(squares(corrected)))
        shrink = tree.map(lambda n, most: once(1 / maximum(n / most, 1.0)), norm, max_norm)
        out = tree.map(lambda c, q: q * c, corrected, shrink)
        return out, ReduceVarianceState(state.count + 1, _kept(updates, state.grad))

    return init, transform
