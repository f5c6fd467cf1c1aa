"""Links that bound the updates."""

from __future__ import annotations

from typing import Any

import torch

from functopt import tree
from functopt.base import link
from functopt.clipping import shrinking, unitwise_clip, unitwise_norm
from functopt.numerics import maximum, once

__all__ = ["adaptive_grad_clip", "clip", "clip_by_global_norm"]


@link(scope="element")
def clip(max_delta) -> Any:
    """Clip every entry: ``u ← min(max(u, -max_delta), max_delta)``.

    Args:
        max_delta: the largest magnitude an entry may have.

    >>> tx = clip(0.7)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.5000, 0.7000])}
    """

    def transform(updates, state, params, max_delta):
        return tree.map(lambda u, d: torch.clamp(u, -d, d), updates, max_delta), state

    return transform


@link(scope="tree")
def clip_by_global_norm(max_norm) -> Any:
    """Shrink all updates together so that their joint 2-norm is at most ``max_norm``.

    ``u ← u·max_norm/‖u‖`` if ``‖u‖ > max_norm``, else ``u`` unchanged, bit for bit; ``‖u‖`` runs over all leaves and is
    summed in float32 at least. torch's ``clip_grad_norm_`` divides by ``‖u‖ + 1e-6`` instead. Pascanu, Mikolov &
    Bengio, "On the difficulty of training recurrent neural networks" (2013).

    The extra ``updates_norm`` is ``‖u‖`` for a caller who knows it already, a 0-d tensor.

    Args:
        max_norm: the largest norm.

    >>> tx = clip_by_global_norm(1.0)
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.4472, 0.8944])}
    """

    def transform(updates, state, params, max_norm, updates_norm=None):
        norm = tree.norm(updates) if updates_norm is None else updates_norm
        factor = tree.map(lambda m: once(shrinking(norm, m)), max_norm)
        return tree.map(lambda u, factor: u * factor, updates, factor), state

    return transform


@link(scope="matrix")
def adaptive_grad_clip(
    clipping=0.01, eps=1e-3, *, axis: int | tuple[int, ...] | None = None, form: str = "torch"
) -> Any:
    """Shrink the updates of every unit so that their norm is at most a part of the norm of its parameters.

    ``u ← u·c/‖u‖`` with ``c = clipping·max(‖p‖, eps)`` if ``‖u‖ ≥ c``, unit by unit. A unit is what feeds one output: a
    row of a matrix, a filter of a convolution; vectors are one unit. Brock et al., "High-Performance Large-Scale Image
    Recognition Without Normalization" (2021).

    Args:
        clipping: the largest ratio of the norms (optax has no default; the paper: 0.01).
        eps: the least norm of parameters, so that a unit that starts at zero can move.
        axis: the axes of a unit; by default what the form says.
        form: ``"torch"``, for weights with their outputs first, or ``"optax"``, with their outputs last: see
            :func:`unitwise_norm <functopt.unitwise_norm>`.

    Raises:
        ValueError: ``form`` has another value.

    >>> tx = chain(adaptive_grad_clip(0.1), scale_by_lr(1.0))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.2000])}
    """
    if form not in ("torch", "optax"):
        raise ValueError(f"adaptive_grad_clip: form must be 'torch' or 'optax', got {form!r}")

    def transform(updates, state, params, clipping, eps):
        def shrink(u, p, c, e):
            size, largest = (unitwise_norm(x, axis, form=form) for x in (u, p))
            return unitwise_clip(size, c * maximum(largest, e), u)

        return tree.map(shrink, updates, params, clipping, eps), state

    return transform
