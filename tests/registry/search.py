"""The rows of second-order methods with a search along a line."""

from __future__ import annotations

from typing import Any

import functopt as fo
from functopt import Transform
from registry.problem import Row, by_lr, with_loss

# Few evaluations, since all of them are compiled. The losses of the rows are quadratic in a step: two points will do.
NEAR: Any = {"max_linesearch_steps": 3}


def searched(**options: Any) -> Transform:
    return fo.scale_by_zoom_linesearch(**{"initial_guess_strategy": "one", **NEAR, **options})


def lbfgs(**options: Any) -> Transform:
    return with_loss(fo.lbfgs(0.5, memory_size=2, linesearch=searched(), **options))


def conjugate(method: str) -> Transform:
    return by_lr(fo.scale_by_conjugate_gradient(method=method))


def along(search: Transform) -> Transform:
    return with_loss(fo.chain(fo.sgd(0.3), search))


ROWS: list[Row] = [
    Row("lbfgs", lbfgs, couples=True),
    Row("lbfgs/torch", lambda: fo.lbfgs(0.1, memory_size=3, form="torch", linesearch=None), couples=True),
    Row("nonlinear_cg", lambda: with_loss(fo.nonlinear_cg(0.45, linesearch=searched(curv_rtol=0.1))), couples=True),
    Row("scale_by_lbfgs", lambda: by_lr(fo.scale_by_lbfgs(memory_size=2, scale_init_precond=False)), couples=True),
    Row("scale_by_zoom_linesearch", lambda: along(fo.scale_by_zoom_linesearch(curv_rtol=0.1, **NEAR)), couples=True),
    Row(
        "scale_by_backtracking_linesearch",
        lambda: along(fo.scale_by_backtracking_linesearch(0.3, 0.5, 3.0, 40.0, max_backtracking_steps=3)),
        couples=True,
    ),
    Row(
        "scale_by_backtracking_linesearch/store",
        lambda: along(fo.scale_by_backtracking_linesearch(max_backtracking_steps=2, store_grad=True)),
        couples=True,
    ),
    *(
        Row(f"scale_by_conjugate_gradient/{method}", lambda method=method: conjugate(method), couples=True)
        for method in ("polak_ribiere_plus", "hager_zhang")
    ),
]
