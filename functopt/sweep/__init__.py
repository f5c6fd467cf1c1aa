"""Train many members at once: search spaces, the batched engine, and what comes out of it."""

from functopt.sweep.batches import Batches
from functopt.sweep.engine import sweep
from functopt.sweep.result import SweepResult
from functopt.sweep.space import choice, grid, log_uniform, uniform

__all__ = ["Batches", "SweepResult", "choice", "grid", "log_uniform", "sweep", "uniform"]
