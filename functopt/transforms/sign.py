"""Links of which only the sign of an average remains."""

from __future__ import annotations

from typing import Any, NamedTuple

from functopt import tree
from functopt.base import link, state_class
from functopt.ema import Ema
from functopt.numerics import lerp

__all__ = ["ScaleByLionState", "scale_by_lion", "scale_by_sign"]


@link(scope="element")
def scale_by_sign() -> Any:
    """Keep the sign of every entry: ``u ← sign(u)``, which is 0 for 0.

    Bernstein et al., "signSGD: Compressed Optimisation for Non-Convex Problems" (2018).

    >>> tx = scale_by_sign()
    >>> tx.transform({"w": torch.tensor([-0.5, 0.0])}, tx.init(params), params)[0]
    {'w': tensor([-1.,  0.])}
    """

    def transform(updates, state, params):
        return tree.map(lambda u: u.sign(), updates), state

    return transform


@state_class
class ScaleByLionState(NamedTuple):
    """The average of the gradients."""

    mu: Ema


@link(scope="element")
def scale_by_lion(beta1=0.9, beta2=0.99) -> Any:
    """Take the sign of an average that looks closer at the present gradient than the one that is kept: Lion.

    ``u = sign(β1·m + (1 - β1)·g)``, then ``m ← β2·m + (1 - β2)·g``, without bias correction. Chen et al., "Symbolic
    Discovery of Optimization Algorithms" (2023).

    Args:
        beta1: how much of the update is the past.
        beta2: what is kept of the average.

    >>> tx = chain(scale_by_lion(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """

    def init(params) -> ScaleByLionState:
        return ScaleByLionState(Ema.zeros(params, beta2))

    def transform(updates, state, params, beta1, beta2):
        out = tree.map(lambda g, m, b: lerp(m, g, 1 - b).sign(), updates, state.mu.total, beta1)
        return out, ScaleByLionState(state.mu.update(updates, beta2))

    return init, transform
