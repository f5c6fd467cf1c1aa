"""The rows of wrappers that own how parameters are written."""

from __future__ import annotations

from typing import Any

import functopt as fo
from functopt import Transform, tree
from functopt.combine import combinator
from registry.problem import Row, Tree, by_lr


@combinator
def with_gradient(tx: Transform) -> Transform:
    """Give an optimizer the gradient of ``f(q) = ⟨g, q - p⟩ + ½‖q - p‖²`` as a function, ``g`` the gradient given."""

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Any, **extras: Any) -> tuple[Tree, Tree]:
        grad_fn = lambda at, i: tree.map(lambda g, q, p: g + (q - p), updates, at, params)
        return tx._transform(updates, state, params, hypers, grad_fn=grad_fn, **extras)

    return Transform(tx._init, transform, hypers=tx.hypers, scopes=tx._scopes)


def momentum() -> Transform:
    """An optimizer without a learning rate: parameters that are projected or perturbed move without one."""
    return fo.chain(fo.trace(0.9), fo.scale(-0.1))


def noisy() -> Transform:
    return fo.chain(fo.add_noise(0.1, 0.55, 3), fo.sgd(0.1))


def simplex() -> Transform:
    return fo.projected(momentum(), fo.projection_simplex, scale=fo.constant_schedule(5.0))


ROUNDED = {
    "dtypes": "that the state has another dtype is what it is for",
    "differences": "a rounded state moves in steps, whose derivative is taken as that of what was rounded",
}

ROWS = [
    Row("projected", lambda: fo.projected(momentum(), fo.projection_box, lower=0.2, upper=1.1), lr_scales_all=False),
    Row(
        "projected/ball",
        lambda: fo.projected(fo.scale(-0.1), fo.projection_l2_ball, scale=4.0),
        couples=True,
        lr_scales_all=False,
    ),
    Row("projected/simplex", simplex, couples=True, lr_scales_all=False),
    Row("sam", lambda: fo.sam(momentum(), fo.sam_ascent(0.2)), couples=True, lr_scales_all=False),
    Row(
        "sam/opaque",
        lambda: with_gradient(fo.sam(fo.adamw(0.1), fo.asam_ascent(), sync_period=3, opaque_mode=True)),
        couples=True,
    ),
    Row("sam_ascent", lambda: by_lr(fo.sam_ascent(0.2)), couples=True),
    Row("asam_ascent", lambda: by_lr(fo.asam_ascent(0.2)), couples=True),
    Row("split_real_and_imaginary", lambda: fo.split_real_and_imaginary(fo.adamw(0.1))),
    Row("kahan", lambda: fo.kahan(fo.adamw(0.1))),
    # in float64 nothing is rounded, and what depends on the layout is the noise beside
    Row("stochastic_round", lambda: fo.stochastic_round(noisy(), seed=3), layout_invariant=False, couples=True),
    Row("cast_state", lambda: fo.cast_state(fo.adam(0.1)), layout_invariant=False, exceptions=ROUNDED),
    Row(
        "cast_state/stochastic",
        lambda: fo.cast_state(fo.adam(0.1), 3, stochastic=True),
        layout_invariant=False,
        couples=True,
        exceptions={**ROUNDED, "generated": "code of inductor rounds some entries of members the other way"},
    ),
    Row("swa_params", lambda: fo.chain(fo.sgd(0.1), fo.swa_params(2, 3))),
]
