"""The rows of optimizers that look at matrices."""

from __future__ import annotations

from registry.problem import Row

ROWS: list[Row] = []
