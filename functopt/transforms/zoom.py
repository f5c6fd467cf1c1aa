"""A line search for the strong Wolfe conditions: brackets a good step, then zooms in on it by interpolation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import minimum, sqrt
from functopt.objective import Line, choose, holds
from functopt.transforms.linesearch import check_numbers, violation
from functopt.tree import Tree

__all__ = ["ScaleByZoomLinesearchState", "ZoomLinesearchInfo", "scale_by_zoom_linesearch"]


@state_class
class ZoomLinesearchInfo(NamedTuple):
    """How the last search went."""

    num_linesearch_steps: Tensor  # evaluations of the loss and its gradient, int64
    decrease_error: Tensor  # by how much the decrease is not sufficient; 0 where it is
    curvature_error: Tensor  # by how much the slope is not flat enough


@state_class
class ScaleByZoomLinesearchState(NamedTuple):
    """The step that was found, the loss and the gradient where it leads, and how it was found."""

    learning_rate: Tensor
    value: Tensor
    grad: Tree
    info: ZoomLinesearchInfo


class _Point(NamedTuple):
    """A place on the line."""

    t: Tensor
    value: Tensor
    slope: Tensor


class _Search(NamedTuple):
    """A search on its way."""

    at: _Point  # the last place that was tried
    grad: Tree
    low: _Point  # once there is a bracket, its end with the lower loss; t may be larger than that of the other
    high: _Point
    third: _Point  # an end that the bracket had before
    safe: _Point  # a place where the loss decreases enough, the start if none
    safe_grad: Tree
    bracketed: Tensor
    stop: Tensor
    info: ZoomLinesearchInfo


@link(scope="tree")
def scale_by_zoom_linesearch(
    max_learning_rate=float("inf"),
    tol=0.0,
    increase_factor=2.0,
    slope_rtol=1e-4,
    curv_rtol=0.9,
    approx_dec_rtol=1e-6,
    stepsize_precision=1e-5,
    *,
    max_linesearch_steps: int = 20,
    initial_guess_strategy: str = "keep",
    approximate: bool = True,
) -> Any:
    """Scale the updates by a step that decreases the loss enough and flattens its slope: a strong Wolfe search.

    With ``φ(t) = f(p + t·u)``, a step ``t`` such that ``φ(t) ≤ φ(0) + slope_rtol·t·φ'(0) + tol`` and ``|φ'(t)| ≤
    curv_rtol·|φ'(0)| + tol``; ``u ← t·u``. The step grows by ``increase_factor`` until such a one must lie behind it,
    then the bracket is narrowed by cubic or quadratic interpolation, or by bisection where these end too close to an
    edge. Close to a minimum, where the loss is lost in rounding, ``φ'(t) ≤ (2·slope_rtol - 1)·φ'(0)`` and ``φ(t) ≤ φ(0)
    + approx_dec_rtol·|φ(0)|`` are a sufficient decrease too. Nocedal & Wright, "Numerical Optimization" (1999),
    algorithms 3.5 and 3.6; Hager & Zhang, "Algorithm 851: CG_DESCENT, a Conjugate Gradient Method with Guaranteed
    Descent" (2006).

    It stands after what makes the updates a descent direction, sign included: ``chain(sgd(1.0),
    scale_by_zoom_linesearch())``. Of a search that has failed the best step with a sufficient decrease is taken, else
    the last one, or none if the loss was not finite there; ``info`` in the state says so (optax would print it). After
    a step of 0 the next search starts at 1, where optax stays at 0.

    A search evaluates the loss with its gradient up to ``max_linesearch_steps`` times. Eagerly it ends when it is done
    (of members under ``vmap``: when all are), for which it waits for the device after each evaluation. Compiled, all
    evaluations are part of the graph, and members that are done keep what they have: choose few steps there.

    The state has ``learning_rate``, ``value``, ``grad`` (see :func:`value_and_grad_from_state
    <functopt.value_and_grad_from_state>`) and ``info``.

    Args:
        max_learning_rate: the largest step.
        tol: by how much the conditions may be violated.
        increase_factor: how the step grows until there is a bracket.
        slope_rtol: the part of the slope at 0 by which the loss must fall.
        curv_rtol: the part of the slope at 0 that may be left; with ``inf`` it need not become flatter.
        approx_dec_rtol: how close two losses are where the approximate condition is in force.
        stepsize_precision: a bracket of this length is not narrowed if a sufficient decrease has been found.
        max_linesearch_steps: evaluations at most.
        initial_guess_strategy: the first step tried: ``"keep"``, that of the search before; ``"one"``, 1, as suits
            directions of (quasi-)Newton methods.
        approximate: whether there is the approximate condition (optax: ``approx_dec_rtol=None``).

    Raises:
        ValueError: an option has another value, or a hyper differs between leaves.
        TypeError: the extra ``value_fn``, the loss as a function of the parameters, is missing, or does not return a
            0-d tensor. ``value`` and ``grad`` at the parameters spare an evaluation.

    >>> tx = chain(sgd(lr=1.0), scale_by_zoom_linesearch())
    >>> tx.update({"w": 2 * params["w"]}, tx.init(params), params, value_fn=loss)[0]
    {'w': tensor([0., 0.])}
    """
    if max_linesearch_steps < 1:
        raise ValueError(
            f"scale_by_zoom_linesearch: max_linesearch_steps must be 1 or more, got {max_linesearch_steps}"
        )
    if initial_guess_strategy not in ("keep", "one"):
        raise ValueError(
            f"scale_by_zoom_linesearch: initial_guess_strategy must be 'keep' or 'one', got {initial_guess_strategy!r}"
        )

    def init(params) -> ScaleByZoomLinesearchState:
        one, inf, other, another = (tree.scalars(params, value=value) for value in (1.0, *[torch.inf] * 3))
        info = ZoomLinesearchInfo(torch.zeros_like(one, dtype=torch.int64), other, another)
        return ScaleByZoomLinesearchState(one, inf, tree.zeros_like(params), info)

    def transform(
        updates,
        state,
        params,
        max_learning_rate,
        tol,
        increase_factor,
        slope_rtol,
        curv_rtol,
        approx_dec_rtol,
        stepsize_precision,
        value_fn,
        value=None,
        grad=None,
    ):
        hypers = (max_learning_rate, tol, increase_factor, slope_rtol, curv_rtol, approx_dec_rtol, stepsize_precision)
        check_numbers("scale_by_zoom_linesearch", hypers)
        like, line = state.learning_rate, Line(value_fn, params, updates)
        value, grad, slope = line.start(value, grad)
        start = _Point(torch.zeros_like(like), value.to(like.dtype), slope.to(like.dtype))
        guess = torch.where(like > 0, like, 1.0) if initial_guess_strategy == "keep" else torch.ones_like(like)

        def errors(p: _Point) -> tuple[Tensor, Tensor]:
            decrease = p.value - start.value - slope_rtol * p.t * start.slope
            if approximate:
                flat = p.slope - (2 * slope_rtol - 1) * start.slope
                higher = p.value - start.value - approx_dec_rtol * start.value.abs()
                decrease = torch.minimum(decrease, torch.maximum(flat, higher))
            return violation(decrease), violation(p.slope.abs() - curv_rtol * start.slope.abs())

        def step(s: _Search, first: bool, last: bool) -> _Search:
            outward = guess if first else increase_factor * s.at.t
            at_limit, outward = outward >= max_learning_rate, minimum(outward, max_learning_rate)
            t = torch.where(s.bracketed, _between(s.low, s.high, s.third), outward).to(like.dtype)
            t = torch.where(s.stop, s.at.t, t)  # known to be harmless
            value, grad, slope = line.value_and_grad(t)
            p = _Point(t, value, slope)
            decrease_error, curvature_error = errors(p)
            good = torch.maximum(decrease_error, curvature_error) <= tol
            # where there is a bracket p replaces one of its ends; where there is none, p and the place before are one
            # if p has gone too far: to a higher loss, or to a rising slope
            near = choose(s.bracketed, s.low, s.at)
            worse = (decrease_error > 0) | ((value >= near.value) & (s.bracketed | (not first)))
            rising = ~worse & (slope * torch.where(s.bracketed, s.high.t - s.low.t, 1) >= 0)
            low = choose(worse, near, p)
            high = choose(worse, p, choose(rising | ~s.bracketed, near, s.high))
            third = choose(s.bracketed, choose(worse | rising, s.high, s.low), low)
            found = s.bracketed | worse | rising | good
            safer = (decrease_error <= tol) & (~s.bracketed | (value < s.safe.value))
            safe, safe_grad = choose(safer, (p, grad), (s.safe, s.safe_grad))
            narrow = s.bracketed & ((s.high.t - s.low.t).abs() <= stepsize_precision) & (safe.t > 0)
            done = good | (at_limit & ~found)
            failed = ~done & (narrow | last)
            fall_back = failed & ((safe.t > 0) | decrease_error.isinf())
            at, grad = choose(fall_back, (safe, safe_grad), (p, grad))
            info = ZoomLinesearchInfo(s.info.num_linesearch_steps + 1, decrease_error, curvature_error)
            new = _Search(at, grad, low, high, third, safe, safe_grad, found, done | failed, info)
            return choose(~s.stop, new, s)

        no = torch.zeros_like(like, dtype=torch.bool)
        info = ZoomLinesearchInfo(torch.zeros_like(state.info.num_linesearch_steps), like, like)
        search = _Search(start, grad, start, start, start, start, grad, no, no, info)
        for k in range(max_linesearch_steps):
            search = step(search, k == 0, k == max_linesearch_steps - 1)
            if holds(search.stop):
                break
        return line.scaled(search.at.t), ScaleByZoomLinesearchState(
            search.at.t, search.at.value, search.grad, search.info
        )

    return init, transform


def _between(a: _Point, b: _Point, c: _Point) -> Tensor:
    """Return where to look between ``a`` and ``b``: at a minimum of a polynomial, else in the middle."""
    db, dc = b.t - a.t, c.t - a.t
    known = (dc != 0) & (db != dc)
    dc = torch.where(known, dc, -db)
    # φ(a + x) = φ(a) + φ'(a)·x + B·x² + A·x³, and fb = (φ(b) - φ(a) - φ'(a)·db)/db² = A·db + B; fc likewise
    fb, fc = (_ratio(p.value - a.value - a.slope * d, d * d) for p, d in ((b, db), (c, dc)))
    cubic = _ratio(fb - fc, db - dc)
    square = fb - cubic * db
    radical = square * square - 3 * cubic * a.slope
    root = sqrt(radical)
    # two forms of the same root of the derivative, each where it does not cancel
    x = torch.where(square > 0, _ratio(-a.slope, square + root), _ratio(root - square, 3 * cubic))
    y = _ratio(-a.slope, 2 * fb)

    def inside(x: Tensor, margin: float) -> Tensor:
        part = _ratio(x, db)
        return (part > margin) & (part < 1 - margin)

    x_fits = known & (radical >= 0) & inside(x, 0.2)
    return a.t + torch.where(x_fits, x, torch.where(inside(y, 0.1), y, db / 2))


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x / y``, and 0 with a derivative of 0 where ``y`` is so small that the derivative would be infinite."""
    known = y.abs() > torch.finfo(y.dtype).tiny ** 0.4
    return torch.where(known, x / torch.where(known, y, 1), 0)
