"""The rows of optimizers that look at matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses import FakeTensor

import functopt as fo
from functopt import Transform, tree
from functopt.combine import combinator
from functopt.dimensions import MatrixLeaves, MuonDimensionNumbers
from functopt.sharded import is_sharded
from registry.problem import Row, Tree, by_lr, matrices

__all__ = ["ROWS", "MatrixLeaves", "MuonDimensionNumbers"]

# the matrix, and the tensor of three axes as a stack of two matrices
STACKED: Any = {"weight_dimension_numbers": MuonDimensionNumbers(-1, -2)}
MERGED: Any = {"weight_dimension_numbers": MuonDimensionNumbers(..., 0)}


@combinator
def with_curvature(tx: Transform) -> Transform:
    """Give an optimizer a loss whose gradient is the one that is given and whose Hessian is ``1 + 0.1·1ᵀ1``."""

    def extras(grads: Tree, params: Tree) -> dict[str, Any]:
        def value_fn(at: Tree) -> torch.Tensor:
            away = tree.map(lambda q, p: q - p, at, params)
            return tree.dot(away, grads) + tree.dot(away, away) / 2 + 0.05 * total(away).square()

        def total(values: Tree) -> torch.Tensor:
            return tree.dot(values, tree.map(torch.ones_like, values))

        def hessian_vector_product(at: Tree, v: Tree) -> Tree:
            return tree.map(lambda x: x + 0.1 * total(v), v)

        if any(isinstance(p, FakeTensor) or is_sharded(p) for p in tree.leaves(params)):
            # torch 2.14 goes backward neither on a device that is not there nor from several meshes
            value_fn.hessian_vector_product = hessian_vector_product  # pyright: ignore[reportFunctionMemberAccess]
        return {"value_fn": value_fn}

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Any, **given: Any) -> tuple[Tree, Tree]:
        return tx._transform(updates, state, params, hypers, **{**extras(updates, params), **given})

    return Transform(tx._init, transform, hypers=tx._defaults, scopes=tx._scopes)


def everything() -> Transform:
    return fo.muon(
        fo.constant_schedule(0.1), 0.8, 1e-3, adam_lr=0.05, adam_weight_decay=0.1, consistent_rms=0.3, form="optax",
        adjust_lr_fn="match_rms_adamw", ns_coeffs="dion", mask=matrices,
        muon_weight_dimension_numbers=STACKED["weight_dimension_numbers"],
    )  # fmt: skip


ROWS = [
    Row("muon", lambda: fo.muon(0.1), layout_invariant=False),
    Row("muon/optax", everything, layout_invariant=False, lr_scales_all=False),
    Row(
        "muon/schatten",
        lambda: fo.muon(0.1, nesterov=False, preconditioning="schatten", ns_steps=3, maximize=True),
        layout_invariant=False,
        ascends=True,
    ),
    Row("scale_by_muon", lambda: by_lr(fo.scale_by_muon(**MERGED)), layout_invariant=False),
    Row(
        "scale_by_muon/spectral",
        lambda: by_lr(fo.scale_by_muon(0.7, preconditioning="spectral", ns_coeffs="polar_express")),
        layout_invariant=False,
    ),
    Row(
        "scale_by_muon/aol",
        lambda: by_lr(fo.scale_by_muon(form="optax", preconditioning="aol", adaptive=True, nesterov=False, ns_steps=4)),
        layout_invariant=False,
    ),
    Row("scale_by_shape", lambda: by_lr(fo.scale_by_shape(**MERGED)), layout_invariant=False),
    Row("galore", lambda: fo.galore(0.1, 3, weight_decay=0.1, rank=2), layout_invariant=False),
    Row(
        "galore/shorter",
        lambda: fo.galore(0.1, 2, rank=1, side="shorter", base_optimizer=fo.trace(0.8), mask=matrices, maximize=True),
        layout_invariant=False,
        ascends=True,
    ),
    Row("scale_by_galore", lambda: by_lr(fo.scale_by_galore(rank=2, **STACKED)), layout_invariant=False),
    Row("soap", lambda: fo.soap(0.1, precondition_frequency=3), layout_invariant=False),
    Row(
        "soap/masked",
        lambda: fo.soap(0.1, max_precond_dim=3, mask=matrices, maximize=True),
        layout_invariant=False,
        ascends=True,
    ),
    Row(
        "scale_by_soap",
        lambda: by_lr(fo.scale_by_soap(shampoo_beta=0.8, precondition_frequency=2)),
        layout_invariant=False,
    ),
    Row(
        "sophia",
        lambda: with_curvature(fo.sophia(0.1, 0.8, 0.9, gamma=0.5, update_interval=3)),
        layout_invariant=False,
        couples=True,
    ),
    Row(
        "sophia/masked",
        lambda: with_curvature(fo.sophia(0.1, gamma=0.5, weight_decay=0.1, mask=matrices)),
        layout_invariant=False,
        couples=True,
    ),
    Row(
        "scale_by_sophia",
        lambda: with_curvature(by_lr(fo.scale_by_sophia(gamma=0.5, update_interval=2))),
        layout_invariant=False,
        couples=True,
    ),
    Row(
        "hutchinson_estimator_diag_hessian",
        lambda: with_curvature(by_lr(fo.hutchinson_estimator_diag_hessian())),
        layout_invariant=False,
        couples=True,
    ),
]
