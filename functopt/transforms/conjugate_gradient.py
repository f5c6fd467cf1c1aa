"""Nonlinear conjugate gradients: each direction is the gradient and a part of the direction before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import minimum
from functopt.transforms.linesearch import check_numbers
from functopt.tree import Tree

__all__ = ["METHODS", "ScaleByConjugateGradientState", "scale_by_conjugate_gradient"]


@state_class
class ScaleByConjugateGradientState(NamedTuple):
    """The gradient and the direction of the last step."""

    updates: Tree
    direction: Tree


# β from the gradients g and h, before and now, and the direction u: d = -u is that of the papers, y = h - g.
# Every product goes to a function of two trees, so that the formulas stay readable.


def _fletcher_reeves(g: Tree, h: Tree, u: Tree, truncation: Any) -> Tensor:
    return _ratio(tree.dot(h, h), tree.dot(g, g))


def _polak_ribiere_plus(g: Tree, h: Tree, u: Tree, truncation: Any) -> Tensor:
    return _ratio(tree.dot(h, _sub(h, g)), tree.dot(g, g)).clamp_min(0)


def _hestenes_stiefel(g: Tree, h: Tree, u: Tree, truncation: Any) -> Tensor:
    y = _sub(h, g)
    return _ratio(tree.dot(h, y), -tree.dot(u, y))


def _dai_yuan(g: Tree, h: Tree, u: Tree, truncation: Any) -> Tensor:
    return _ratio(tree.dot(h, h), -tree.dot(u, _sub(h, g)))


def _hager_zhang(g: Tree, h: Tree, u: Tree, truncation: Any) -> Tensor:
    y = _sub(h, g)
    dy = -tree.dot(u, y)
    beta = _ratio(tree.dot(y, h) + 2 * tree.dot(u, h) * _ratio(tree.dot(y, y), dy), dy)
    return torch.maximum(beta, -_ratio(torch.ones_like(dy), tree.norm(u) * minimum(tree.norm(g), truncation)))


METHODS: dict[str, Callable[..., Tensor]] = {
    "fletcher_reeves": _fletcher_reeves,
    "polak_ribiere_plus": _polak_ribiere_plus,
    "hestenes_stiefel": _hestenes_stiefel,
    "dai_yuan": _dai_yuan,
    "hager_zhang": _hager_zhang,
}


@link(scope="tree")
def scale_by_conjugate_gradient(truncation=0.01, *, method: str = "polak_ribiere_plus") -> Any:
    """Add a part of the direction before to the gradient: nonlinear conjugate gradients.

    ``u ← g + β·u``, and ``u ← g`` at the first step and wherever it would not descend (``⟨u, g⟩ ≤ 0``). With ``g₀`` the
    gradient before, ``y = g - g₀`` and ``d = -u`` of the step before, ``β`` by method is:

    - ``"fletcher_reeves"``: ``⟨g, g⟩/⟨g₀, g₀⟩``. Fletcher & Reeves, "Function minimization by conjugate gradients"
      (1964).
    - ``"polak_ribiere_plus"``: ``max(0, ⟨g, y⟩/⟨g₀, g₀⟩)``, which starts anew by itself. Gilbert & Nocedal, "Global
      Convergence Properties of Conjugate Gradient Methods for Optimization" (1992).
    - ``"hestenes_stiefel"``: ``⟨g, y⟩/⟨d, y⟩``. Hestenes & Stiefel, "Methods of Conjugate Gradients for Solving Linear
      Systems" (1952).
    - ``"dai_yuan"``: ``⟨g, g⟩/⟨d, y⟩``. Dai & Yuan, "A Nonlinear Conjugate Gradient Method with a Strong Global
      Convergence Property" (1999).
    - ``"hager_zhang"``: ``⟨y - 2·d·⟨y, y⟩/⟨d, y⟩, g⟩/⟨d, y⟩``, and ``-1/(‖d‖·min(truncation, ‖g₀‖))`` at least. Hager &
      Zhang, "A New Conjugate Gradient Method with Guaranteed Descent and an Efficient Line Search" (2005).

    On a quadratic, with exact searches along the line, all of them are the linear method, done after as many steps as
    there are parameters. Neither optax nor torch has it.

    Args:
        truncation: for ``"hager_zhang"`` only, see there.
        method: which ``β``.

    Raises:
        ValueError: ``method`` has another value, or ``truncation`` differs between leaves.

    >>> tx = chain(scale_by_conjugate_gradient(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    if method not in METHODS:
        raise ValueError(f"scale_by_conjugate_gradient: method must be one of {[*METHODS]}, got {method!r}")

    def init(params) -> ScaleByConjugateGradientState:
        return ScaleByConjugateGradientState(tree.zeros_like(params), tree.zeros_like(params))

    def transform(updates, state, params, truncation):
        check_numbers("scale_by_conjugate_gradient", [truncation])
        g, u = state
        beta = METHODS[method](g, updates, u, truncation)
        u = tree.map(lambda h, u: (h + beta * u).to(u.dtype), updates, u)
        descends = tree.dot(u, updates) > 0
        u = tree.map(lambda u, h: torch.where(descends, u, h), u, updates)
        return u, ScaleByConjugateGradientState(tree.map(torch.clone, updates), u)

    return init, transform


def _sub(x: Tree, y: Tree) -> Tree:
    return tree.map(torch.sub, x, y)


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x / y``, and 0 where ``y`` is 0."""
    return torch.where(y != 0, x / torch.where(y != 0, y, 1), 0)
