"""The rows of wrappers that choose what is updated, and when."""

from __future__ import annotations

from registry.problem import Row

ROWS: list[Row] = []
