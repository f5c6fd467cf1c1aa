"""Recipes that search along a line: L-BFGS and nonlinear conjugate gradients."""

from __future__ import annotations

from functopt.base import Transform
from functopt.combine import chain
from functopt.optimizers.common import Hyper
from functopt.transforms.conjugate_gradient import scale_by_conjugate_gradient
from functopt.transforms.lbfgs import scale_by_lbfgs
from functopt.transforms.scaling import scale_by_lr
from functopt.transforms.zoom import scale_by_zoom_linesearch

__all__ = ["lbfgs", "nonlinear_cg"]

_QUASI_NEWTON = scale_by_zoom_linesearch(initial_guess_strategy="one")
_CONJUGATE = scale_by_zoom_linesearch(curv_rtol=0.1)


def lbfgs(
    lr: Hyper = 1.0,
    *,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: Transform | None = _QUASI_NEWTON,
    form: str = "optax",
) -> Transform:
    """L-BFGS with a line search, as optax's.

    ``u = -lr·H·g`` with the estimate ``H`` of the inverse Hessian that :func:`scale_by_lbfgs <functopt.scale_by_lbfgs>`
    makes of the last steps, and ``p ← p + t·u`` with the ``t`` of the search. Liu & Nocedal, "On the limited memory
    BFGS method for large scale optimization" (1989).

    A step here is one iteration. A step of ``torch.optim.LBFGS(max_iter=20)`` is up to 20 of them; its ``history_size``
    is ``memory_size``. Without a search, ``lbfgs(form="torch", linesearch=None, memory_size=100)`` goes where it goes;
    with one, as long as both accept the first step that they try, for it brackets in another way (and stops at
    tolerances, which is up to the training loop here).

    Args:
        lr: multiplies the step that is tried first; the search does the rest.
        memory_size: how many steps are remembered, two trees like the parameters each.
        scale_init_precond: scale the identity that ``H`` starts from, see :func:`scale_by_lbfgs
            <functopt.scale_by_lbfgs>`.
        linesearch: what comes last, by default a zoom search of up to 20 evaluations that tries 1 first; it needs the
            extra ``value_fn``. None for none.
        form: ``"optax"`` or ``"torch"``, likewise.

    Raises:
        ValueError: ``memory_size`` or ``form`` has another value.
        TypeError: the extra ``value_fn`` is missing.

    >>> tx = lbfgs()
    >>> tx.update({"w": 2 * params["w"]}, tx.init(params), params, value_fn=loss)[0]
    {'w': tensor([ 0.5528, -1.1056])}
    """
    links = [scale_by_lbfgs(memory_size=memory_size, scale_init_precond=scale_init_precond, form=form), scale_by_lr(lr)]
    return chain(*links, *([] if linesearch is None else [linesearch]))


def nonlinear_cg(
    lr: Hyper = 1.0, *, method: str = "polak_ribiere_plus", linesearch: Transform | None = _CONJUGATE
) -> Transform:
    """Nonlinear conjugate gradients with a line search.

    ``d ← -g + β·d`` and ``p ← p + t·lr·d`` with the ``t`` of the search; for ``β`` see
    :func:`scale_by_conjugate_gradient <functopt.scale_by_conjugate_gradient>`. Gilbert & Nocedal, "Global Convergence
    Properties of Conjugate Gradient Methods for Optimization" (1992). It keeps two trees like the parameters, where
    L-BFGS keeps many, and needs better searches. Neither optax nor torch has it.

    Args:
        lr: multiplies the direction; the search does the rest.
        method: which ``β``.
        linesearch: what comes last, by default a zoom search of up to 20 evaluations that leaves a tenth of the slope
            and starts from the step before; it needs the extra ``value_fn``. None for none.

    Raises:
        ValueError: ``method`` has another value.
        TypeError: the extra ``value_fn`` is missing.

    >>> tx = nonlinear_cg()
    >>> tx.update({"w": 2 * params["w"]}, tx.init(params), params, value_fn=loss)[0]
    {'w': tensor([0., 0.])}
    """
    return chain(
        scale_by_conjugate_gradient(method=method), scale_by_lr(lr), *([] if linesearch is None else [linesearch])
    )
