"""Second moments in the memory of their margins, and the step sizes that go with them: what Adafactor is made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import accumulator_dtype, lerp, maximum, sqrt
from functopt.tree import Tree

__all__ = [
    "FactoredMoment",
    "ScaleByFactoredRmsState",
    "ScaleByRelativeStepState",
    "scale_by_factored_rms",
    "scale_by_relative_step",
]


@state_class
class FactoredMoment(NamedTuple):
    """The averages of squared gradients: for every leaf its row and column, or all of it, and ``()`` for the rest."""

    row: Tree  # averaged over the first axis of the two, which has the length 1 here
    column: Tree  # averaged over the second
    full: Tree  # like the parameters


@state_class
class ScaleByFactoredRmsState(NamedTuple):
    """The number of steps taken, and the averages."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    nu: FactoredMoment


_AXES = ("largest", "last")
_ROW, _COLUMN, _FULL = range(3)


@link(scope="matrix")
def scale_by_factored_rms(
    decay_rate=0.8,
    step_offset=0,
    eps=1e-30,
    max_decay=1.0,
    *,
    factored: bool = True,
    min_dim_size_to_factor: int = 128,
    axes: str = "largest",
    eps_as_floor: bool = False,
) -> Any:
    """Divide by the root of a running mean square of which only the means of rows and columns are kept: Adafactor.

    With ``β = min(1 - t^-decay_rate, max_decay)``, which is 0 at the first step, and ``s = g² + eps``:
    ``R ← β·R + (1 - β)·mean_columns(s)``, ``C ← β·C + (1 - β)·mean_rows(s)``, ``v = R·C / mean(R)`` and ``u = g/√v``.
    A leaf that is not factored keeps ``v ← β·v + (1 - β)·s`` whole. Shazeer & Stern, "Adafactor: Adaptive Learning
    Rates with Sublinear Memory Cost" (2018).

    The defaults are optax's; ``torch.optim.Adafactor`` is ``eps=0, min_dim_size_to_factor=1, axes="last",
    eps_as_floor=True``.

    Args:
        decay_rate: how fast the memory grows.
        step_offset: subtracted from the number of the step ``t`` (which is taken as 1 up to there), for a state that
            comes from earlier training.
        eps: added to the squares.
        max_decay: a bound on ``β``, so that the memory stays finite. Zhai et al., "Scaling Vision Transformers"
            (2022), use 0.999; in optax that is a ``decay_rate_fn``.
        factored: if false, no leaf is factored.
        min_dim_size_to_factor: both axes must be at least this long.
        axes: which two axes are factored, ``"largest"`` or ``"last"``.
        eps_as_floor: ``eps`` is not added to the squares but is the least that is divided by, as in torch:
            ``v = R·C / max(mean(R), eps)`` and ``u = g / max(√v, eps)``; 0 then stands for the precision of the dtype
            (torch's ``None``).

    Raises:
        ValueError: ``axes`` has another value.

    >>> tx = chain(scale_by_factored_rms(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    if axes not in _AXES:
        raise ValueError(f"scale_by_factored_rms: axes must be one of {_AXES}, got {axes!r}")

    def means_over(shape: Sequence[int]) -> tuple[int, ...]:
        """Return the axis over which the row is a mean, and that of the column; nothing for a leaf kept whole."""
        order = sorted(range(len(shape)), key=lambda i: shape[i] if axes == "largest" else i)
        largest = factored and len(shape) > 1 and min(shape[i] for i in order[-2:]) >= min_dim_size_to_factor
        return (order[-1], order[-2]) if largest else ()

    def zeros(p: Tensor, piece: int) -> Tensor | tuple[()]:
        over, shape = means_over(p.shape), list(p.shape)
        if bool(over) == (piece == _FULL):
            return ()
        if over:
            shape[over[piece]] = 1
        return p.new_zeros(shape, dtype=accumulator_dtype(p.dtype), requires_grad=False)

    def floor(x: Tensor, eps: Any) -> Tensor:
        return maximum(x, eps) if eps_as_floor else x

    def follow(g: Tensor, old: Any, fresh: Tensor, eps: Any, piece: int) -> Tensor | tuple[()]:
        if isinstance(old, tuple):
            return ()
        squares = g.to(old.dtype).square()
        if piece != _FULL:
            squares = squares.mean(means_over(g.shape)[piece], keepdim=True)
        return lerp(old, squares if eps_as_floor else squares + eps, fresh)

    def rescale(g: Tensor, row: Any, column: Any, full: Any, eps: Any) -> Tensor:
        if isinstance(full, Tensor):
            size = sqrt(full)
        else:  # by the two roots, since the product of a small row and a small column may be too small for its dtype
            size = sqrt(row / floor(row.mean(means_over(g.shape)[1], keepdim=True), eps)) * sqrt(column)
        return g / floor(size, eps)

    def init(params) -> ScaleByFactoredRmsState:
        count = tree.counter(params)
        pieces = (tree.map(lambda p, piece=piece: zeros(p, piece), params) for piece in (_ROW, _COLUMN, _FULL))
        return ScaleByFactoredRmsState(count, FactoredMoment(*pieces))

    def transform(updates, state, params, decay_rate, step_offset, eps, max_decay):
        count = state.count + 1

        def coefficient(g, rate, offset, cap):
            t = (count - offset).to(accumulator_dtype(g.dtype))
            return maximum(torch.where(t > 0, t, 1.0) ** -rate, 1 - cap)

        fresh = tree.map(coefficient, updates, decay_rate, step_offset, max_decay)
        eps = tree.map(lambda g, e: _precise(g, e) if eps_as_floor else e, updates, eps)
        # the tree maps of optree, which take what lies below a leaf of the first tree as one value: a tensor or ()
        nu = FactoredMoment(
            *(
                optree.tree_map(functools.partial(follow, piece=piece), updates, old, fresh, eps)
                for piece, old in enumerate(state.nu)
            )
        )
        return optree.tree_map(rescale, updates, *nu, eps), ScaleByFactoredRmsState(count, nu)

    return init, transform


def _precise(like: Tensor, eps: float | Tensor) -> float | Tensor:
    """Return ``eps``, or where it is 0 the precision in which moments of ``like`` are kept."""
    precision = torch.finfo(accumulator_dtype(like.dtype)).eps
    return torch.where(eps == 0, precision, eps) if isinstance(eps, Tensor) else eps or precision


@state_class
class ScaleByRelativeStepState(NamedTuple):
    """The number of steps taken."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]


@link(scope="element")
def scale_by_relative_step(lr=1e-2) -> Any:
    """Let the learning rate fall like ``1/√t`` once it is above: ``u ← u / max(1, lr·√t)``.

    It stands before ``scale_by_lr``, whose ``lr`` it shares: the product is ``min(lr, 1/√t)``, the relative step size
    of Shazeer & Stern (2018), who have ``lr = 0.01``.

    Args:
        lr: the learning rate.

    >>> tx = scale_by_relative_step()
    >>> tx.transform(grads, tx.init(params), params)[0]
    {'w': tensor([0.5000, 1.0000])}
    """

    def init(params) -> ScaleByRelativeStepState:
        return ScaleByRelativeStepState(tree.counter(params))

    def transform(updates, state, params, lr):
        count = state.count + 1

        def slow(u, lr):
            return u / maximum(lr * count.to(accumulator_dtype(u.dtype)).sqrt(), 1.0)

        return tree.map(slow, updates, lr), ScaleByRelativeStepState(count)

    return init, transform
