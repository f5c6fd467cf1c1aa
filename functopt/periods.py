"""Work that is done every few steps, where the number of steps is data."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["due"]


def due(count: Tensor, period: Any, refresh: bool | None) -> bool | Tensor:
    """Return whether work is due at a step.

    Args:
        count: the number of steps before.
        period: a number, rounded to a whole one, or a 0-d tensor.
        refresh: what the caller knows already, if not None.
    """
    if refresh is not None:
        return refresh
    return count % (period.round() if isinstance(period, Tensor) else round(period)) == 0
