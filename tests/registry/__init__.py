"""One table of every optimizer in the catalog: a new one is one row of a family, and gets every test.

The tests are of values, purity, dtypes, vmap, meta-gradients, compile, layout. What a row cannot do is in its
``exceptions``, and is expected to fail.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

import functopt as fo
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
    "FIRST",
    "RECIPES",
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

# One form of everything public, and of each recipe.
FIRST = list({row.id.split("/")[0]: row.id for row in reversed(ROWS)}.values())[::-1]
RECIPES = [id for id in FIRST if getattr(fo, id.split("/")[0]).__module__.startswith("functopt.optimizers")]


def rows(*properties: str, always: Collection[str] = BY_ID) -> Any:
    """Parametrize a test of these properties by row; where a row says that it lacks one, the test has to fail.

    Args:
        always: the rows that every run takes; the others are for ``pytest -m ""``, which takes its time.
    """
    params = []
    for row in ROWS:
        reasons = [row.exceptions[name] for name in properties if name in row.exceptions]
        marks = [pytest.mark.xfail(reason=reason, strict=True) for reason in reasons]
        marks += [] if row.id in always else [pytest.mark.exhaustive]
        params.append(pytest.param(row, id=row.id, marks=marks))
    return pytest.mark.parametrize("row", params)
