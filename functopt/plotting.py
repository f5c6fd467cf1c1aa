"""What all pictures share: axes of their own, and smoothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["new_axes", "smoothed"]


def new_axes(ax: Axes | None = None) -> Axes:
    """Return the axes given, or else those of a new figure, which no global list keeps alive."""
    if ax is not None:
        return ax
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'functopt[examples]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def smoothed(values: Any, decay: float) -> np.ndarray:
    """Return the debiased moving average along the first axis; NaN from the first value that is not finite.

    The average at ``t`` is ``sum(decay^(t-i)·v_i) / sum(decay^(t-i))`` over ``i <= t``.
    """
    values = np.asarray(values, dtype=np.float64)
    total, weight, rows = np.zeros(values.shape[1:]), 0.0, []
    for row in np.where(np.isfinite(values), values, np.nan):
        total, weight = decay * total + (1 - decay) * row, decay * weight + (1 - decay)
        rows.append(total / weight)
    return np.stack(rows) if rows else values
