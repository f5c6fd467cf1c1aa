"""What all pictures share: axes of their own, and smoothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Average", "new_axes", "smoothed"]


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


class Average:
    """A debiased moving average of numbers or arrays on the host, as :class:`Ema <functopt.Ema>` is one of tensors."""

    def __init__(self, decay: float) -> None:
        self.decay, self.total, self.weight = decay, 0.0, 0.0

    def update(self, value: Any) -> Any:
        """Take in one more value, and return the average."""
        self.total = self.decay * self.total + (1 - self.decay) * value
        self.weight = self.decay * self.weight + (1 - self.decay)
        return self.total / self.weight


def smoothed(values: Any, decay: float) -> np.ndarray:
    """Return the debiased moving average along the first axis; NaN from the first value that is not finite.

    The average at ``t`` is ``sum(decay^(t-i)·v_i) / sum(decay^(t-i))`` over ``i <= t``.
    """
    values = np.asarray(values, dtype=np.float64)
    average = Average(decay)
    rows = [average.update(row) for row in np.where(np.isfinite(values), values, np.nan)]
    return np.stack(rows) if rows else values
