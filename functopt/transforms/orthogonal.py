"""Links that orthogonalise the momentum of matrices: Muon."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from functopt import tree
from functopt.base import link, state_class
from functopt.dimensions import (
    DimensionNumbers,
    MuonDimensionNumbers,
    matrix_axes,
    only_matrices,
    spread_like,
    whole,
    with_matrices,
)
from functopt.ema import Ema
from functopt.linalg import PRECONDITIONING, Coefficients, ns_schedule, orthogonalize
from functopt.numerics import lerp

__all__ = ["ScaleByMuonState", "scale_by_muon", "scale_by_shape"]


@state_class
class ScaleByMuonState(NamedTuple):
    """The average of the gradients of matrices, and ``()`` for other leaves."""

    mu: Ema


_STORED = {"torch": MuonDimensionNumbers(1, 0), "optax": MuonDimensionNumbers(0, 1)}
_FORMS = tuple(_STORED)


@link(scope="matrix")
def scale_by_muon(
    momentum=0.95,
    eps=1e-7,
    *,
    form: str = "torch",
    nesterov: bool = True,
    adaptive: bool = False,
    ns_coeffs: Coefficients = "standard",
    ns_steps: int | None = None,
    ns_dtype: torch.dtype | None = None,
    preconditioning: str = "frobenius",
    weight_dimension_numbers: DimensionNumbers = None,
) -> Any:
    """Orthogonalise the momentum of matrices; leave other leaves as they are.

    ``m ← momentum·m + (1 - momentum)·g`` and ``u = orthogonalize(momentum·m + (1 - momentum)·g)``, or without
    Nesterov's look-ahead ``orthogonalize(m)``. Jordan et al., "Muon: An optimizer for hidden layers in neural
    networks" (2024).

    Args:
        momentum: what is kept of the mean (optax: ``beta``).
        eps: beside the norm that is divided by.
        form: ``"torch"``: the mean is not debiased, and ``eps`` is the least norm. ``"optax"``: debiased, which shifts
            the look-ahead a little (``momentum·m/(1 - momentum^(t+1)) + (1 - momentum)·g/(1 - momentum^t)``), and
            ``eps`` is added to the norm (1e-8 there).
        nesterov: look ahead.
        adaptive: multiply by the product of the update with what it was made of, its dual norm. Bernstein & Newhouse,
            "Old Optimizer, New Norm: An Anthology" (2024).
        ns_coeffs: see :func:`orthogonalize <functopt.orthogonalize>`, as the next three.
        ns_steps: how many steps.
        ns_dtype: in which to orthogonalise; torch does it in ``torch.bfloat16``.
        preconditioning: what is divided by at first.
        weight_dimension_numbers: what is a matrix, and how: by default every leaf with two axes. Or
            :class:`MuonDimensionNumbers <functopt.MuonDimensionNumbers>`, for all leaves with two axes or more; a
            prefix tree of those, with None for what is no matrix; or a function from the parameters to one.

    Raises:
        ValueError: an option has another value, or axes do not fit the parameters.

    >>> weights = {"w": torch.eye(2)}
    >>> tx = scale_by_muon(ns_coeffs="polar_express", ns_steps=8)
    >>> tx.transform({"w": torch.tensor([[0.0, 3.0], [0.1, 0.0]])}, tx.init(weights), weights)[0]["w"].round(decimals=4)
    tensor([[0., 1.],
            [1., 0.]])
    """
    if form not in _FORMS:
        raise ValueError(f"scale_by_muon: form must be one of {_FORMS}, got {form!r}")
    if preconditioning not in PRECONDITIONING:
        raise ValueError(f"scale_by_muon: preconditioning must be one of {PRECONDITIONING}, got {preconditioning!r}")
    ns_schedule("scale_by_muon", ns_coeffs, ns_steps)
    as_torch = form == "torch"

    def init(params) -> ScaleByMuonState:
        axes = matrix_axes("scale_by_muon", weight_dimension_numbers, params)
        mu = Ema(tree.zeros_like(only_matrices(params, axes)), tree.scalars(params, momentum))
        return ScaleByMuonState(mu)

    def transform(updates, state, params, momentum, eps):
        axes = matrix_axes("scale_by_muon", weight_dimension_numbers, params)
        mu = state.mu.update(updates, momentum)

        def direction(g, p, m, w, b, eps, axes):
            if as_torch:
                m = lerp(g, m, b) if nesterov else m
            else:
                m = b * m / (b * w + (1 - b)) + (1 - b) * g / w if nesterov else m / w
            m = whole(m)
            # stored rows stay rows, which settles how a square matrix is rounded
            x = axes.matrix(m).mT if axes.swapped else axes.matrix(m)
            x = orthogonalize(
                x, eps, ns_coeffs=ns_coeffs, ns_steps=ns_steps, preconditioning=preconditioning,
                eps_as_floor=as_torch, dtype=ns_dtype,
            )  # fmt: skip
            u = axes.tensor(x.mT if axes.swapped else x, g.shape)
            return spread_like((m * u).sum() * u if adaptive else u, p)

        matrices = only_matrices(updates, axes)
        out = tree.map(direction, matrices, params, mu.total, mu.weight, momentum, eps, axes)
        return with_matrices(updates, out), ScaleByMuonState(mu)

    return init, transform


_RULES = {
    "original": lambda inputs, outputs: math.sqrt(max(1.0, outputs / inputs)),
    "match_rms_adamw": lambda inputs, outputs: math.sqrt(max(inputs, outputs)),
    "spectral_unclamped": lambda inputs, outputs: math.sqrt(outputs / inputs),
}


@link(scope="matrix")
def scale_by_shape(
    consistent_rms=1.0,
    *,
    form: str = "torch",
    adjust_lr_fn: str = "original",
    weight_dimension_numbers: DimensionNumbers = None,
) -> Any:
    """Scale matrices by a number that their shape tells, so that one learning rate serves all of them.

    ``u ← consistent_rms·√max(1, outputs/inputs)·u``, after Jordan et al., "Muon: An optimizer for hidden layers in
    neural networks" (2024). Leaves that are no matrices stay as they are.

    Args:
        consistent_rms: a factor.
        adjust_lr_fn: ``"original"``: as above. ``"match_rms_adamw"``: ``u ← consistent_rms·√max(inputs, outputs)·u``.
            The entries of an orthogonal matrix then have the root mean square ``consistent_rms``, and with 0.2 that of
            Adam's updates: Liu et al., "Muon is Scalable for LLM Training" (2025). In optax that is what a
            ``consistent_rms`` says. ``"spectral_unclamped"``: ``√(outputs/inputs)``: Bernstein, "Deriving Muon" (2025).
        form: which of two axes are the outputs if ``weight_dimension_numbers`` do not say: ``"torch"``, the first, as
            in ``torch.nn.Linear``; ``"optax"``, the second.
        weight_dimension_numbers: see :func:`scale_by_muon`.

    Raises:
        ValueError: an option has another value, or axes do not fit the parameters.

    >>> tx = scale_by_shape()
    >>> tx.transform({"w": torch.ones(4, 1)}, (), {"w": torch.ones(4, 1)})[0]["w"].mT
    tensor([[2., 2., 2., 2.]])
    """
    if form not in _FORMS:
        raise ValueError(f"scale_by_shape: form must be one of {_FORMS}, got {form!r}")
    if adjust_lr_fn not in _RULES:
        raise ValueError(f"scale_by_shape: adjust_lr_fn must be one of {[*_RULES]}, got {adjust_lr_fn!r}")

    def transform(updates, state, params, consistent_rms):
        axes = matrix_axes("scale_by_shape", weight_dimension_numbers, params, _STORED[form])

        def resize(u, a, factor):
            inputs, outputs = a.sizes(u.shape)
            return factor * _RULES[adjust_lr_fn](inputs, outputs) * u if a.reduction and u.numel() else u

        return tree.map(resize, updates, axes, consistent_rms), state

    return transform
