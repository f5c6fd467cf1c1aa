"""Links that keep something from happening: NaN in the updates, negative parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.tree import Tree

__all__ = ["ZeroNansState", "keep_params_nonnegative", "zero_nans"]


@state_class
class ZeroNansState(NamedTuple):
    """Whether the last updates had a NaN in them, leaf by leaf."""

    found_nan: Tree  # 0-d bools, a tree like the parameters


@link(scope="leaf")
def zero_nans() -> Any:
    """Replace NaN by 0 in the updates; everything else, infinities too, passes through bit for bit.

    Which leaves had one is in the state: ``tree.get(state, "found_nan")``. A loss that gives NaN has a cause that this
    hides; it is meant for a rare overflow in long runs, and ``apply_if_finite`` skips the whole step instead.

    >>> tx = zero_nans()
    >>> tx.transform({"w": torch.tensor([torch.nan, 2.0])}, tx.init(params), params)[0]
    {'w': tensor([0., 2.])}
    """

    def found(updates):
        counts = tree.sums(tree.map(lambda u: u.isnan().to(u.dtype), updates))
        return tree.map(lambda n: n > 0, counts)

    def init(params) -> ZeroNansState:
        return ZeroNansState(found(tree.zeros_like(params)))

    def transform(updates, state, params):
        return tree.map(lambda u: torch.where(u.isnan(), 0.0, u), updates), ZeroNansState(found(updates))

    return init, transform


@link(scope="element")
def keep_params_nonnegative() -> Any:
    """Cut updates so that no parameter becomes negative: ``u ← -p`` where ``p + u < 0``, which writes an exact 0.

    It stands last in a chain, after the sign and the learning rate. Parameters that start negative are moved to 0 by
    the first step that would leave them negative. For other sets see the projections.

    >>> tx = chain(sgd(lr=4.0), keep_params_nonnegative())
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([0., 0.])}
    """

    def transform(updates, state, params):
        return tree.map(lambda u, p: torch.where(p + u < 0, -p, u), updates, params), state

    return transform
