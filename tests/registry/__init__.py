"""One table of every optimizer in the catalog: a new one is one row of a family, and gets every test.

The tests are of values, purity, dtypes, vmap, meta-gradients, compile, layout. What a row cannot do is in its
``exceptions``, and is expected to fail.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from registry import adaptive, basic, gating, links, matrix, search, simple, step_free, writing
from registry.problem import (
    SHAPES,
    STEPS,
    Row,
    by_lr,
    make_grads,
    make_params,
    matrices,
    moved,
    number_hypers,
    run,
    with_loss,
)

__all__ = [
    "BY_ID",
    "FAMILIES",
    "ROWS",
    "SHAPES",
    "STEPS",
    "Row",
    "basic",
    "by_lr",
    "make_grads",
    "make_params",
    "matrices",
    "moved",
    "number_hypers",
    "rows",
    "run",
    "with_loss",
]

FAMILIES = (basic, adaptive, simple, step_free, matrix, search, links, gating, writing)

ROWS: list[Row] = [row for family in FAMILIES for row in family.ROWS]

BY_ID = {row.id: row for row in ROWS}


def rows(*properties: str, only: Collection[str] = BY_ID) -> Any:
    """Parametrize a test of these properties by row; where a row says that it lacks one, the test has to fail."""
    params = []
    for row in (BY_ID[id] for id in only):
        reasons = [row.exceptions[name] for name in properties if name in row.exceptions]
        marks = [pytest.mark.xfail(reason=reason, strict=True) for reason in reasons]
        params.append(pytest.param(row, id=row.id, marks=marks))
    return pytest.mark.parametrize("row", params)
