"""Rounding to a narrower dtype: to the nearest number, or by chance, so that on average nothing is lost."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["narrowed", "round_stochastically"]


def narrowed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in another dtype, rounded to the nearest number; finite ones beyond its range to its largest."""
    if dtype.itemsize >= x.dtype.itemsize:
        return x.to(dtype)
    largest = torch.finfo(dtype).max
    return torch.where(x.isinf(), x, x.clamp(-largest, largest)).to(dtype)


def round_stochastically(x: Tensor, dtype: torch.dtype, noise: Tensor) -> Tensor:
    """Return ``x`` in another dtype, rounded up or down with the chances that make its expected value ``x``.

    Dtypes of 16 bits are rounded to, others cast to. The derivative is 1.

    Args:
        x: float32 or wider.
        dtype: of the result.
        noise: uniform in [0, 1), like ``x``.
    """
    near = narrowed(x, dtype)
    if dtype.itemsize != 2 or dtype.itemsize >= x.dtype.itemsize:
        return near
    error = (x - near.to(x.dtype)).detach()
    # the number beside, on the side of x: one more in the bits is one further from zero
    bits, sign = near.detach().view(torch.int16), error < 0
    away = torch.where((error > 0) == (near > 0), 1, -1)
    first = torch.where(sign, -(2**15) + 1, 1)  # beside zero
    beside = torch.where(near == 0, first, bits + away).to(torch.int16).view(dtype)
    step = beside - near.detach()  # exact
    return torch.where(noise * step.to(x.dtype).abs() < error.abs(), near + step, near)
