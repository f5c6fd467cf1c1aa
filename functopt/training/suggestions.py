"""Learning rates that the curve of a learning rate finder suggests, by the four rules of fastai."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["Suggestions", "minimum", "slide", "steep", "suggest", "valley"]


class Suggestions(NamedTuple):
    """What each rule suggests; None where it has no answer."""

    valley: float | None
    minimum: float | None
    steep: float | None
    slide: float | None


def suggest(lrs: Any, losses: Any) -> Suggestions:
    """Return the suggestions of all four rules.

    Args:
        lrs: learning rates, ascending.
        losses: the loss at each of them. What comes after the first value that is not finite is left out.

    Raises:
        ValueError: they are not two lists of the same length.
    """
    return Suggestions(*(rule(lrs, losses) for rule in (valley, minimum, steep, slide)))


def valley(lrs: Any, losses: Any) -> float | None:
    """Return the learning rate halfway down the longest valley.

    The valley is the longest falling subsequence of the losses, which may leave out points. Counted as if it had no
    gaps, it begins ``length`` points before its end; what is suggested lies a third of its length and half of another
    third behind that. fastai 2.8.12, ``valley``; ESRI's suggestion.

    Returns:
        A learning rate, or None if no three losses fall.
    """
    lrs, losses = _curve(lrs, losses)
    lengths = np.ones(len(losses), dtype=int)  # of the longest falling subsequence that ends at each point
    for i in range(1, len(losses)):
        lengths[i] += max(lengths[:i][losses[:i] > losses[i]], default=0)
    longest = max(lengths, default=0)
    if longest < 3:
        return None
    start = int(lengths.argmax()) - longest
    third = longest / 3
    return float(lrs[start + int(third) + int(third / 2)])


def minimum(lrs: Any, losses: Any) -> float | None:
    """Return a tenth of the learning rate where the loss is lowest. fastai 2.8.12, ``minimum``.

    Returns:
        A learning rate, or None if the loss never is below the first.
    """
    lrs, losses = _curve(lrs, losses)
    return float(lrs[losses.argmin()]) / 10 if _falls(losses) else None


def steep(lrs: Any, losses: Any) -> float | None:
    """Return the learning rate where the loss falls fastest, seen over the logarithm of the learning rate.

    The one with the smallest ``(loss_(i+1) - loss_i) / (log lr_(i+1) - log lr_i)``. fastai 2.8.12, ``steep``.

    Returns:
        A learning rate, or None if the loss never falls.
    """
    lrs, losses = _curve(lrs, losses)
    if len(losses) < 2:
        return None
    slopes = np.diff(losses) / np.diff(np.log(lrs))
    return float(lrs[slopes.argmin()]) if slopes.min() < 0 else None


def slide(lrs: Any, losses: Any, *, width: int = 15, threshold: float = 0.005) -> float | None:
    """Return the left end of an interval that slides down from where the loss explodes.

    The interval of ``width`` points moves to smaller learning rates while the slopes of the losses at its two ends,
    per point, differ by more than ``threshold``. fastai 2.8.12, ``slide``; Novetta's interval slide rule.

    Args:
        lrs: learning rates, ascending.
        losses: the loss at each of them.
        width: points from one end of the interval to the other.
        threshold: in units of the loss.

    Returns:
        A learning rate, or None if the curve is shorter than the interval or the loss never is below the first.
    """
    lrs, losses = _curve(lrs, losses)
    if len(losses) <= width or not _falls(losses):
        return None
    slopes = np.gradient(losses)
    left, right = len(losses) - 1 - width, len(losses) - 1
    found = left
    while left >= 0 and abs(slopes[right] - slopes[left]) > threshold:
        found = left
        left, right = left - 1, right - 1
    return float(lrs[found])


def _falls(losses: np.ndarray) -> bool:
    return len(losses) > 0 and int(losses.argmin()) > 0


def _curve(lrs: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays, up to the first loss that is not finite."""
    lrs, losses = np.asarray(lrs, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if lrs.ndim != 1 or lrs.shape != losses.shape:
        raise ValueError(f"suggest: expected a loss for each learning rate, got shapes {lrs.shape} and {losses.shape}")
    bad = np.flatnonzero(~np.isfinite(losses))
    end = bad[0] if len(bad) else len(losses)
    return lrs[:end], losses[:end]
