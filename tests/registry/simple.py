"""The rows of optimizers of signs, sums and momentum."""

from __future__ import annotations

from registry.problem import Row

ROWS: list[Row] = []
