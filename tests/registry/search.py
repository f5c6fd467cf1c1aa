"""The rows of second-order methods with a search along a line."""

from __future__ import annotations

from registry.problem import Row

ROWS: list[Row] = []
