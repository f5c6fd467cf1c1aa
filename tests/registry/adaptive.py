"""The rows of optimizers that divide by a running second moment."""

from __future__ import annotations

from registry.problem import Row

ROWS: list[Row] = []
