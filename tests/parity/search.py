"""Cases of the comparison with optax: L-BFGS and line searches, on the loss."""

from __future__ import annotations

import functopt as fo
from parity.case import Case


def zoom_sgd(approx_dec_rtol: float | None = 1e-6, **options: object) -> fo.Transform:
    # None is how optax leaves the approximate condition out
    criterion = {"approximate": False} if approx_dec_rtol is None else {"approx_dec_rtol": approx_dec_rtol}
    return fo.chain(fo.sgd(1.0), fo.scale_by_zoom_linesearch(**criterion, **options))  # pyright: ignore[reportArgumentType]


def backtracking_sgd(**options: object) -> fo.Transform:
    return fo.chain(fo.sgd(1.0), fo.scale_by_backtracking_linesearch(**options))  # pyright: ignore[reportArgumentType]


def backtracking_lbfgs(**options: object) -> fo.Transform:
    search = fo.scale_by_backtracking_linesearch(max_backtracking_steps=20, increase_factor=float("inf"))
    return fo.lbfgs(linesearch=search, **options)  # pyright: ignore[reportArgumentType]


ZOOM = "(lambda **o: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(**o)))"
BACK = "(lambda **o: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(**o)))"
BACK_LBFGS = (
    "(lambda **o: optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(20, increase_factor=jnp.inf), **o))"
)
CRITERIA = {
    "increase_factor": (1.2, 5.0),
    "slope_rtol": (1e-5, 1e-2),
    "curv_rtol": (0.05, 0.9),
    "approx_dec_rtol": (1e-8, 1e-4),
    "stepsize_precision": (1e-8, 1e-4),
}
FIXED = {"learning_rate": 0.05, "linesearch": None}

CASES: dict[str, Case] = {
    "lbfgs": Case("optax.lbfgs", fo.lbfgs, problem="loss", jit=True, draws={"learning_rate": (0.5, 1.5)}),
    "lbfgs/rosenbrock": Case("optax.lbfgs", fo.lbfgs, problem="rosenbrock", jit=True),
    "zoom/rosenbrock": Case(ZOOM, zoom_sgd, problem="rosenbrock", jit=True, options={"max_linesearch_steps": 30}),
    "lbfgs/short": Case("optax.lbfgs", fo.lbfgs, problem="loss", jit=True, options={"memory_size": 2}),
    "lbfgs/unscaled": Case("optax.lbfgs", fo.lbfgs, problem="loss", jit=True, options={"scale_init_precond": False}),
    "lbfgs/fixed": Case("optax.lbfgs", fo.lbfgs, problem="loss", jit=True, options=FIXED),
    "lbfgs/backtracking": Case(BACK_LBFGS, backtracking_lbfgs, problem="loss", jit=True, options={"memory_size": 5}),
    "zoom": Case(ZOOM, zoom_sgd, problem="loss", jit=True, options={"max_linesearch_steps": 15}, draws=CRITERIA),
    "zoom/one": Case(
        ZOOM,
        zoom_sgd,
        problem="loss",
        jit=True,
        options={"max_linesearch_steps": 30, "initial_guess_strategy": "one", "max_learning_rate": 0.7},
        draws={"tol": (0.0, 1e-3), "curv_rtol": (0.001, 0.9)},
    ),
    "zoom/few": Case(ZOOM, zoom_sgd, problem="loss", jit=True, options={"max_linesearch_steps": 3, "curv_rtol": 0.01}),
    "zoom/armijo": Case(
        ZOOM,
        zoom_sgd,
        problem="loss",
        jit=True,
        options={"max_linesearch_steps": 20, "approx_dec_rtol": None},
    ),
    "backtracking": Case(
        BACK,
        backtracking_sgd,
        problem="loss",
        jit=True,
        options={"max_backtracking_steps": 15},
        draws={
            "slope_rtol": (1e-4, 0.5),
            "decrease_factor": (0.3, 0.9),
            "increase_factor": (1.0, 3.0),
            "max_learning_rate": (0.1, 2.0),
            "atol": (0.0, 1e-2),
            "rtol": (0.0, 1e-2),
        },
    ),
    "backtracking/store": Case(
        BACK, backtracking_sgd, problem="loss", jit=True, options={"max_backtracking_steps": 2, "store_grad": True}
    ),
}
