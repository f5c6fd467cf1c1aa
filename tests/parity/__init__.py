"""Agreement with optax: cases by family, the script that draws the data with the real optax (make), and the test."""

from __future__ import annotations

from typing import Any

from parity import adaptive, gating, links, matrix, search, simple, step_free, writing

FAMILIES: dict[str, Any] = {
    "adaptive": adaptive,
    "simple": simple,
    "step_free": step_free,
    "matrix": matrix,
    "search": search,
    "links": links,
    "gating": gating,
    "writing": writing,
}
