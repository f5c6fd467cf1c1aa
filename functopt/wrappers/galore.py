"""GaLore: an optimizer that works on projections of the gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import Transform, state_class
from functopt.combine import combinator
from functopt.dimensions import (
    DimensionNumbers,
    MuonDimensionNumbers,
    matrix_axes,
    only_matrices,
    spread_like,
    whole,
    with_matrices,
)
from functopt.hypers import Hypers
from functopt.linalg import row_major, singular_vectors
from functopt.numerics import accumulator_dtype, where
from functopt.periods import due
from functopt.transforms.adaptive import scale_by_adam
from functopt.tree import Tree
from functopt.wrappers.common import check_state, own_hypers

__all__ = ["GaLoreState", "scale_by_galore"]


@state_class
class GaLoreState(NamedTuple):
    """The number of steps taken, the basis of every matrix with ``()`` for other leaves, and the inner state."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    projector: Tree
    inner: Tree


_ADAM = scale_by_adam()
_SIDES = ("longer", "shorter")
_STORED = MuonDimensionNumbers(0, 1)


@combinator
def scale_by_galore(
    base_optimizer: Transform = _ADAM,
    update_proj_gap: Any = 200,
    scale: Any = 1.0,
    *,
    rank: int = 128,
    side: str = "longer",
    weight_dimension_numbers: DimensionNumbers = None,
) -> Transform:
    """Let an optimizer see matrices projected to few dimensions, so that its state is small.

    ``P`` are the ``rank`` leading singular vectors of ``g``, of one side, taken anew every ``update_proj_gap`` steps;
    ``u = scale·P·base(Pᵀ·g)``. Other leaves are the base optimizer's as they are. Zhao et al., "GaLore:
    Memory-Efficient LLM Training by Gradient Low-Rank Projection" (2024).

    The sign of a singular vector means nothing; here it is the one that turns least from the last basis, so that the
    averages in the state go on. In optax it is what the decomposition happens to return.

    Every step computes a decomposition, for which torch waits for a GPU, and most throw it away: which step it is, only
    the tensors know. A loop that knows it too says so by the extra ``refresh``: ``update(..., refresh=step % 200 ==
    0)`` with a Python bool computes it at those steps only.

    Args:
        base_optimizer: what works on projections. Of the parameters it sees projections too.
        update_proj_gap: steps between two decompositions; the first step makes one.
        scale: a factor for matrices (``α`` of the article, which has 0.25).
        rank: dimensions that are kept, or all if there are fewer.
        side: which axis of a matrix is projected: the ``"longer"`` as in optax, which keeps the state smallest, or the
            ``"shorter"`` as in the article, which keeps the basis smallest.
        weight_dimension_numbers: what is a matrix, and how: see :func:`scale_by_muon <functopt.scale_by_muon>`. By
            default every leaf with two axes, of which the first counts as the longer of two equal ones.

    Raises:
        TypeError: ``base_optimizer`` is no transform.
        ValueError: ``rank`` is not positive, ``side`` has another value, or the base optimizer has a hyper of the same
            name.

    >>> tx = scale_by_galore(trace(0.0), rank=1)
    >>> weights = {"w": torch.zeros(2, 2)}
    >>> tx.transform({"w": torch.tensor([[2.0, 0.0], [0.0, 1.0]])}, tx.init(weights), weights)[0]["w"] + 0
    tensor([[2., 0.],
            [0., 0.]])
    """
    if not isinstance(base_optimizer, Transform) or base_optimizer.writes:
        raise TypeError(f"scale_by_galore: base_optimizer is {base_optimizer!r}, expected a Transform with updates")
    if rank < 1:
        raise ValueError(f"scale_by_galore: rank must be positive, got {rank}")
    if side not in _SIDES:
        raise ValueError(f"scale_by_galore: side must be one of {_SIDES}, got {side!r}")
    hypers = own_hypers("scale_by_galore", base_optimizer, {"update_proj_gap": update_proj_gap, "scale": scale})

    def first(shape: torch.Size, a: Any) -> bool:
        inputs, outputs = a.sizes(shape)
        return inputs >= outputs if side == "longer" else inputs < outputs

    def turned(x: Tensor, a: Any) -> Tensor:
        """Return a leaf as a matrix, or a stack, of which the first axis is the one that is projected."""
        m = a.matrix(whole(x))
        return m if first(x.shape, a) else m.mT

    def axes_of(params: Tree) -> Tree:
        return matrix_axes("scale_by_galore", weight_dimension_numbers, params, _STORED)

    def project(values: Tree, projector: Tree, axes: Tree) -> Tree:
        low = lambda x, basis, a: (basis.mT @ turned(x, a).to(basis.dtype)).to(x.dtype)
        return with_matrices(values, tree.map(low, only_matrices(values, axes), projector, axes))

    def init(params: Tree) -> GaLoreState:
        axes = axes_of(params)

        def basis(p: Tensor, a: Any) -> Tensor:
            m = turned(p, a)
            dtype = accumulator_dtype(p.dtype)
            return m.new_zeros((*m.shape[:-1], min(rank, *m.shape[-2:])), dtype=dtype, requires_grad=False)

        projector = tree.map(basis, only_matrices(params, axes), axes)
        return GaLoreState(tree.counter(params), projector, base_optimizer._init(project(params, projector, axes)))

    def transform(
        updates: Tree, state: GaLoreState, params: Tree, hypers: Hypers, refresh: bool | None = None, **extras: Any
    ) -> tuple[Tree, GaLoreState]:
        check_state("scale_by_galore", state, GaLoreState)
        axes = axes_of(params)

        def follow(g: Tensor, basis: Tensor, a: Any, gap: Any) -> Tensor:
            if not basis.numel():
                return basis
            new = singular_vectors(turned(g, a).to(basis.dtype), basis.shape[-1])
            new = torch.where((new * basis).sum(-2, keepdim=True) < 0, -new, new)
            return row_major(where(due(state.count, gap, refresh), new, basis))

        projector = state.projector
        if refresh is not False:
            gap = hypers["update_proj_gap"]
            projector = tree.map(follow, only_matrices(updates, axes), projector, axes, gap)
        low, seen = project(updates, projector, axes), project(params, projector, axes)
        low, inner = base_optimizer._transform(low, state.inner, seen, hypers, **extras)

        def back(g: Tensor, p: Tensor, u: Tensor, basis: Tensor, a: Any, factor: Any) -> Tensor:
            m = (factor * (basis @ u.to(basis.dtype))).to(g.dtype)
            return spread_like(a.tensor(m if first(g.shape, a) else m.mT, g.shape), p)

        factor = hypers["scale"]
        out = tree.map(back, only_matrices(updates, axes), params, low, projector, axes, factor)
        return with_matrices(low, out), GaLoreState(state.count + 1, projector, inner)

    return Transform(
        init,
        transform,
        hypers=hypers,
        scopes=[*base_optimizer._scopes, ("scale_by_galore", "matrix")],
    )
