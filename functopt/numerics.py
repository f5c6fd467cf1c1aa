"""Scalar arithmetic that is safe to differentiate, batch and run in low precision."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulator_dtype", "add_scaled", "lerp", "maximum", "minimum", "once", "root", "sqrt", "where"]


def sqrt(x: Tensor) -> Tensor:
    """Return the square root of ``x >= 0`` with a finite derivative everywhere.

    The derivative of sqrt is infinite at 0, which turns meta-gradients into NaN as soon as one gradient entry is
    exactly zero. Below the smallest normal number the argument is held there, where the derivative is taken as 0;
    the value then differs from the exact one by less than 1.1e-19 (float32) or 1.5e-154 (float64).
    """
    return x.clamp_min(torch.finfo(x.dtype).tiny).sqrt()


def root(x: Tensor, eps: float | Tensor) -> Tensor:
    """Return the square root of ``x >= 0`` to which ``eps`` is about to be added, so that something is divided by it.

    As :func:`sqrt`, but where ``eps`` is a positive number and nobody differentiates nothing can go wrong at 0: a pass
    over the entries less.
    """
    if isinstance(eps, (float, int)) and eps > 0 and not torch.is_grad_enabled():
        return x.sqrt()
    return sqrt(x)


def lerp(start: Tensor, end: Tensor, weight: float | Tensor) -> Tensor:
    """Return ``start + weight * (end - start)`` in the dtype of ``start``; ``weight`` may be a number or 0-d tensor."""
    if not isinstance(weight, Tensor):
        return torch.lerp(start, end.to(start.dtype), weight)
    # in float32 at least: rounded to bfloat16, 1 - 0.999 would be off by half a percent
    dtype = accumulator_dtype(start.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), weight.to(dtype)).to(start.dtype)


def minimum(x: Tensor, bound: float | Tensor) -> Tensor:
    """Return ``min(x, bound)`` where the bound may be a number or a tensor."""
    return torch.clamp(x, max=bound)  # pyright: ignore[reportCallIssue, reportArgumentType]


def maximum(x: Tensor, bound: float | Tensor) -> Tensor:
    """Return ``max(x, bound)`` where the bound may be a number or a tensor."""
    return torch.clamp(x, min=bound)  # pyright: ignore[reportCallIssue, reportArgumentType]


def add_scaled(x: Tensor, factor: float | Tensor, y: Tensor) -> Tensor:
    """Return ``x + factor * y``; in one pass if the factor is a number."""
    if isinstance(factor, (float, int)):
        if factor == 0 and x.shape == y.shape and x.dtype == y.dtype and not torch.compiler.is_compiling():
            return x  # no weight decay, mostly: a pass less
        if factor == 1 and not torch.compiler.is_compiling():
            return x + y  # which may be one pass with what x is made of
        return torch.add(x, y, alpha=factor)
    return x + factor * y


def where(condition: bool | Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Return ``x`` where the condition holds, else ``other``; the condition may be a bool of Python's."""
    if isinstance(condition, bool):
        return x if condition else other
    return torch.where(condition, x, other)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums and bookkeeping beside values of ``dtype``: real, and float32 at least."""
    if dtype.is_complex:
        dtype = dtype.to_real()
    return torch.promote_types(dtype, torch.float32)


def once(x: Tensor) -> Tensor:
    """Return ``x``, a small tensor that a larger one is about to be combined with, computed once.

    The compiler puts what ``x`` is made of into the loop over the larger tensor, where square roots and divisions of
    numbers are done again for every few entries. It never does so with the result of a reduction, unless it is very
    short; so this is one, of 16 terms of which 15 are zero. Outside a compiled function it does nothing.
    """
    if not torch.compiler.is_compiling():
        return x
    first = torch.arange(16, device=x.device) == 0
    return torch.where(first, x.unsqueeze(-1), 0).sum(-1)
