"""Steps that are left out while gradients are not finite."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform, state_class
from functopt.combine import combinator
from functopt.objective import choose
from functopt.skipping import count_not_finite
from functopt.tree import Tree
from functopt.wrappers.common import check_inner, check_state, own_hypers
from functopt.wrappers.gate import Run, gate, one_value

__all__ = ["ApplyIfFiniteState", "apply_if_finite"]


@state_class
class ApplyIfFiniteState(NamedTuple):
    """How many of the last updates in a row were not finite, 0 if the last one was; how many in all; what is inside."""

    notfinite_count: Tensor  # 0-d, int64
    total_notfinite: Tensor  # 0-d, int64
    inner: Tree


@combinator(paces=True)
def apply_if_finite(inner: Transform, max_consecutive_errors: Any = 5) -> Transform:
    """Leave out a step whose updates hold an infinity or a NaN.

    With ``n`` the number of such updates in a row, the step is taken if all entries are finite or ``n >
    max_consecutive_errors``: a loss that stays NaN is not hidden for ever. A step that is left out moves nothing, not
    the parameters, the state of ``inner`` or its schedules. What happened stands in the state, on the device::

        tree.get(state, "notfinite_count"), tree.get(state, "total_notfinite")

    optax keeps ``last_finite`` beside these, which is ``notfinite_count == 0``. The loss scaling of torch's
    ``GradScaler`` leaves steps out in the same way: Micikevicius et al., "Mixed Precision Training" (2018).

    Args:
        inner: any optimizer.
        max_consecutive_errors: how many in a row are left out. optax has no default.

    Raises:
        TypeError: ``inner`` is not a transform.
        ValueError: it has a hyper of that name, too.

    >>> tx = apply_if_finite(sgd(lr=0.1))
    >>> tx.update({"w": torch.tensor([float("nan"), 1.0])}, tx.init(params), params)
    ({'w': tensor([ 1., -2.])}, ApplyIfFiniteState(notfinite_count=tensor(1), total_notfinite=tensor(1), inner=...))
    """
    check_inner("apply_if_finite", inner)

    def init(params: Tree) -> ApplyIfFiniteState:
        return ApplyIfFiniteState(tree.counter(params), tree.counter(params), inner._init(params))

    def step(run: Run, updates: Tree, state: Any, params: Tree, hypers: Any, extras: Any) -> tuple[Tree, Tree]:
        check_state("apply_if_finite", state, ApplyIfFiniteState)
        limit = one_value("apply_if_finite", "max_consecutive_errors", hypers["max_consecutive_errors"])
        finite = count_not_finite(updates) == 0
        in_a_row = torch.where(finite, 0, state.notfinite_count + 1)
        accepted = finite | (in_a_row > limit)
        # nothing is computed with what is left out: a NaN would come back as the derivative of what is not used
        usable = tree.map(lambda u: torch.where(accepted, u, 0), updates)
        out, new = run(usable, state.inner, params, hypers, **extras)
        nothing = params if inner.writes else tree.zeros_like(updates)
        total = state.total_notfinite + (~finite).to(torch.int64)
        inside = choose(accepted, new, state.inner)
        return choose(accepted, out, nothing), ApplyIfFiniteState(in_a_row, total, inside)

    hypers = own_hypers("apply_if_finite", inner, {"max_consecutive_errors": max_consecutive_errors})
    return gate(inner, step, init, hypers=hypers, scopes=[*inner._scopes, ("apply_if_finite", "tree")])
