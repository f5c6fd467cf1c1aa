"""The rows of optimizers that find their learning rate, or average it away."""

from __future__ import annotations

from registry.problem import Row

ROWS: list[Row] = []
