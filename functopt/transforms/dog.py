"""Links whose step size is how far the parameters have come over how large the gradients have been: DoG and DoWG."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import maximum, once, sqrt
from functopt.transforms.moments import squares
from functopt.transforms.totals import copied, displacement
from functopt.tree import Tree

__all__ = [
    "ScaleByDistanceOverGradientsState",
    "ScaleByDogState",
    "ScaleByDowgState",
    "scale_by_distance_over_gradients",
    "scale_by_dog",
    "scale_by_dowg",
]


@state_class
class ScaleByDistanceOverGradientsState(NamedTuple):
    """Where each leaf began, and the numbers of each leaf."""

    init_params: Tree
    init_norm: Tree  # the 2-norm of the parameters at the start
    max_dist: Tree  # the farthest that they have been from there
    grad_sum_of_squares: Tree


@link(scope="leaf")
def scale_by_distance_over_gradients(reps_rel=1e-6, eps=1e-8, global_scale=1.0) -> Any:
    """Let every leaf find its own step size, the distance it has come over the root of its squared gradients: L-DoG.

    ``r ← max(r, ‖p - p₀‖)`` from ``r = reps_rel·(1 + ‖p₀‖)`` on, ``G ← G + ‖g‖²`` and
    ``u = global_scale·r/√(G + eps)·g``, leaf by leaf; :func:`scale_by_dog` does the same to all leaves together. Ivgi,
    Hinder & Carmon, "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule" (2023), who advise to
    average the iterates (:func:`average_params <functopt.average_params>`).

    Args:
        reps_rel: the first distance, as a part of the size of the leaf: 1e-6, or 1e-4 with batch normalisation.
        eps: added under the root.
        global_scale: a factor; -1 makes it an optimizer.

    >>> tx = scale_by_distance_over_gradients(reps_rel=0.1, global_scale=-1.0)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8553, -2.2894])}
    """

    def init(params) -> ScaleByDistanceOverGradientsState:
        zeros = (tree.sums(tree.zeros_like(params)) for _ in range(2))
        return ScaleByDistanceOverGradientsState(copied(params), tree.map(sqrt, tree.sums(squares(params))), *zeros)

    def transform(updates, state, params, reps_rel, eps, global_scale):
        dist = tree.map(sqrt, tree.sums(squares(displacement(state.init_params, params))))
        first = lambda r, size, d, part: maximum(maximum(r, d), part * (1 + size)).to(r.dtype)
        r = tree.map(first, state.max_dist, state.init_norm, dist, reps_rel)
        g_sum = tree.map(torch.add, state.grad_sum_of_squares, tree.sums(squares(updates)))
        factor = tree.map(lambda r, s, eps, scale: once(scale * r / sqrt(s + eps)), r, g_sum, eps, global_scale)
        new_state = ScaleByDistanceOverGradientsState(state.init_params, state.init_norm, r, g_sum)
        return tree.map(lambda u, q: q * u, updates, factor), new_state

    return init, transform


@state_class
class ScaleByDogState(NamedTuple):
    """Where the parameters began, and the numbers of all of them."""

    init_params: Tree
    init_norm: Tensor  # 0-d, the 2-norm of the parameters at the start
    max_dist: Tree  # 0-d or one per group: the farthest that they have been from there
    sum_sq_norm_grads: Tensor  # 0-d


_FIRST = ("heuristic", "distance", "learning_rate")


@link(scope="tree")
def scale_by_dog(init_step=1e-6, eps=1e-8, *, init_step_type: str = "heuristic") -> Any:
    """Scale by the distance from the start over the root of all squared gradients: DoG.

    ``r ← max(r, ‖p - p₀‖)``, ``G ← G + ‖g‖²`` and ``u = r/√(G + eps)·g``, with norms over all leaves. Ivgi, Hinder &
    Carmon, "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule" (2023).

    Args:
        init_step: what the first step is made of.
        eps: added under the root.
        init_step_type: what ``init_step`` is. ``"heuristic"``: ``r`` begins at ``init_step·(1 + ‖p₀‖)``;
            ``"distance"``: at ``init_step``; ``"learning_rate"``: at 0, and until a gradient has been seen
            ``u = init_step·g``. optax has both in one argument, as in ``("heuristic", 1e-6)``.

    Raises:
        ValueError: ``init_step_type`` has another value.

    >>> tx = chain(scale_by_dog(init_step=0.1), scale_by_lr(1.0))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8553, -2.2894])}
    """
    if init_step_type not in _FIRST:
        raise ValueError(f"scale_by_dog: init_step_type must be one of {_FIRST}, got {init_step_type!r}")

    def init(params) -> ScaleByDogState:
        return ScaleByDogState(copied(params), tree.norm(params), tree.scalars(params, init_step), tree.scalars(params))

    def transform(updates, state, params, init_step, eps):
        dist = tree.norm(displacement(state.init_params, params))
        start = {"heuristic": 1 + state.init_norm, "distance": 1.0, "learning_rate": 0.0}[init_step_type]
        r = tree.map(lambda r, step: maximum(maximum(r, dist), step * start).to(r.dtype), state.max_dist, init_step)
        before = state.sum_sq_norm_grads
        g_sum = before + tree.norm(updates).square()

        def rescale(u, r, step, eps):
            factor = r / sqrt(g_sum + eps)
            if init_step_type == "learning_rate":
                factor = torch.where(before == 0, step, factor)
            return once(factor) * u

        new_state = ScaleByDogState(state.init_params, state.init_norm, r, g_sum)
        return tree.map(rescale, updates, r, init_step, eps), new_state

    return init, transform


@state_class
class ScaleByDowgState(NamedTuple):
    """Where the parameters began, and the numbers of all of them."""

    init_params: Tree
    estim_sq_dist: Tree  # 0-d or one per group
    weighted_sq_norm_grads: Tree  # likewise


@link(scope="tree")
def scale_by_dowg(init_estim_sq_dist=1e-4, eps=1e-4) -> Any:
    """Scale by the squared distance from the start over the root of the gradients weighted by it: DoWG.

    ``d ← max(d, ‖p - p₀‖²)``, ``v ← v + d·‖g‖²`` and ``u = d/(√v + eps)·g``, with norms over all leaves. Khaled,
    Mishchenko & Jin, "DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent Method" (2023).

    Args:
        init_estim_sq_dist: what ``d`` begins with. optax begins with ``eps`` unless told otherwise.
        eps: added to the denominator.

    >>> tx = chain(scale_by_dowg(init_estim_sq_dist=0.1), scale_by_lr(1.0))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8586, -2.2828])}
    """

    def init(params) -> ScaleByDowgState:
        d, v = (tree.scalars(params, init_estim_sq_dist) for _ in range(2))
        return ScaleByDowgState(copied(params), d, v)

    def transform(updates, state, params, init_estim_sq_dist, eps):
        dist = tree.norm(displacement(state.init_params, params)).square()
        g_norm = tree.norm(updates).square()
        d = tree.map(lambda d, d0: maximum(maximum(d, dist), d0).to(d.dtype), state.estim_sq_dist, init_estim_sq_dist)
        v = tree.map(lambda v, d: v + d * g_norm, state.weighted_sq_norm_grads, d)
        out = tree.map(lambda u, d, v, eps: once(d / (sqrt(v) + eps)) * u, updates, d, v, eps)
        return out, ScaleByDowgState(state.init_params, d, v)

    return init, transform
