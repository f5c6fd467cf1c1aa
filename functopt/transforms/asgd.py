"""Averaged stochastic gradient descent: step sizes that fall by a power of the time, and an average that follows."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from functopt import tree
from functopt.base import apply_updates, link, state_class
from functopt.numerics import accumulator_dtype, lerp, maximum
from functopt.tree import Tree

__all__ = [
    "AverageIteratesState",
    "ScaleByAsgdState",
    "ScaleByInverseTimeState",
    "average_iterates",
    "scale_by_asgd",
    "scale_by_inverse_time",
]


@state_class
class ScaleByInverseTimeState(NamedTuple):
    """The number of steps taken."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]


@link(scope="element")
def scale_by_inverse_time(lr_decay=0.0) -> Any:
    """Let the updates fall like the inverse of the time: ``u ← u/(1 + lr_decay·t)``, with ``t`` from 0.

    This is what ``torch.optim.Adagrad`` does to its learning rate.

    Args:
        lr_decay: how fast they fall; at ``t = 1/lr_decay`` they are halved.

    >>> tx = scale_by_inverse_time(0.5)
    >>> tx.transform(grads, tx.init(params)._replace(count=torch.tensor(2)), params)[0]
    {'w': tensor([0.2500, 0.5000])}
    """

    def init(params) -> ScaleByInverseTimeState:
        return ScaleByInverseTimeState(tree.counter(params))

    def transform(updates, state, params, lr_decay):
        fall = lambda u, rate: u / (1 + rate * state.count.to(accumulator_dtype(u.dtype)))
        return tree.map(fall, updates, lr_decay), ScaleByInverseTimeState(state.count + 1)

    return init, transform


@state_class
class ScaleByAsgdState(NamedTuple):
    """The number of steps taken."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]


@link(scope="element")
def scale_by_asgd(lr=1e-2, lambd=1e-4, alpha=0.75) -> Any:
    """Descend on the regularised loss with a step size that falls by a power of the time, as ``torch.optim.ASGD``.

    ``η = lr/(1 + λ·lr·t)^α`` with ``t`` from 0, and ``u = -η·(g + λ·p)``. It has the learning rate in it, so no
    ``scale_by_lr`` follows. Bottou, "Large-Scale Machine Learning with Stochastic Gradient Descent" (2010).

    Args:
        lr: the first learning rate.
        lambd: λ, the strength of the regularisation, and with it how soon the step size falls.
        alpha: the power by which it falls.

    >>> tx = scale_by_asgd(0.1, lambd=1.0)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([-0.1500,  0.1000])}
    """

    def init(params) -> ScaleByAsgdState:
        return ScaleByAsgdState(tree.counter(params))

    def transform(updates, state, params, lr, lambd, alpha):
        def step(u, p, lr, lambd, alpha):
            eta = lr / (1 + lambd * lr * state.count.to(accumulator_dtype(u.dtype))) ** alpha
            return -eta * (u + lambd * p)

        return tree.map(step, updates, params, lr, lambd, alpha), ScaleByAsgdState(state.count + 1)

    return init, transform


@state_class
class AverageIteratesState(NamedTuple):
    """The number of steps taken, and the average of the parameters, in float32 at least."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    ax: Tree


@link(scope="element")
def average_iterates(t0=1e6) -> Any:
    """Keep the plain average of the parameters from some step on; the updates pass through bit for bit.

    ``a ← a + (p - a)/max(1, t - t0)``, with the *new* ``p`` and ``t`` from 0: up to there ``a`` is ``p``. It stands
    last in a chain. The average is read from the state: ``tree.get(state, "ax")``. For an average that forgets, see
    :func:`average_params <functopt.average_params>`. Polyak & Juditsky, "Acceleration of Stochastic Approximation by
    Averaging" (1992).

    Args:
        t0: the step with which averaging begins.

    >>> tx = chain(sgd(lr=0.1), average_iterates(t0=0))
    >>> tree.get(tx.update(grads, tx.init(params), params)[1], "ax")
    {'w': tensor([ 0.9500, -2.1000])}
    """

    def init(params) -> AverageIteratesState:
        return AverageIteratesState(tree.counter(params), tree.zeros_like(params, accumulate=True))

    def transform(updates, state, params, t0):
        follow = lambda a, p, t0: lerp(a, p, 1 / maximum(state.count.to(a.dtype) - t0, 1.0))
        ax = tree.map(follow, state.ax, apply_updates(params, updates), t0)
        return updates, AverageIteratesState(state.count + 1, ax)

    return init, transform
