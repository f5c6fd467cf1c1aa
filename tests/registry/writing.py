"""The rows of wrappers that own how parameters are written."""

from __future__ import annotations

from registry.problem import Row

ROWS: list[Row] = []
