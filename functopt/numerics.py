"""Scalar arithmetic that is safe to differentiate, batch and run in low precision."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulator_dtype", "lerp", "maximum", "minimum", "sqrt"]


def sqrt(x: Tensor) -> Tensor:
    """Return the square root of ``x >= 0`` with a finite derivative everywhere.

    The derivative of sqrt is infinite at 0, which turns meta-gradients into NaN as soon as one gradient entry is
    exactly zero. Below the smallest normal number the argument is held there, where the derivative is taken as 0;
    the value then differs from the exact one by less than 1.1e-19 (float32) or 1.5e-154 (float64).
    """
    return x.clamp_min(torch.finfo(x.dtype).tiny).sqrt()


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


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums and bookkeeping beside values of ``dtype``: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
