"""Medians with their spread, and contenders measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

PAUSE = 0.05  # seconds


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the 10th and 90th percentile."""
    if len(values) < 2:
        return {"median": values[0], "p10": values[0], "p90": values[0], "repeats": 1}
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1], "repeats": len(values)}


def in_turn(repetition: Mapping[str, Callable[[], float]], repeats: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Return each contender's figures, taken round robin so that a drift of the machine hits all alike.

    Threads of the contender before may still be spinning, so each one waits a little first.
    """
    figures: dict[str, list[float]] = {name: [] for name in repetition}
    for i in range(warm_up + repeats):
        for name, measure in repetition.items():
            time.sleep(PAUSE)
            figure = measure()
            if i >= warm_up:
                figures[name].append(figure)
    return figures


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Summarise ours over theirs, each round by itself."""
    return summary([mine / other for mine, other in zip(ours, theirs, strict=True)])


def target(what: str, value: float, limit: float, *, at_least: bool = False) -> dict[str, Any]:
    """Return one line about a target: what, its limit, what was measured, and whether it holds."""
    reached = value >= limit if at_least else value <= limit
    return {"what": what, "target": f"{'>=' if at_least else '<='} {limit:g}", "value": value, "reached": reached}
