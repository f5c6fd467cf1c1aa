"""The rows of links that clip, normalise, add noise and watch."""

from __future__ import annotations

from registry.problem import Row

ROWS: list[Row] = []
