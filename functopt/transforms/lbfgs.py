"""L-BFGS: the inverse Hessian from the last few differences of parameters and gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import tree
from functopt.base import link, state_class
from functopt.numerics import maximum
from functopt.objective import choose
from functopt.tree import Tree

__all__ = ["LbfgsPair", "ScaleByLbfgsState", "scale_by_lbfgs"]


@state_class
class LbfgsPair(NamedTuple):
    """What a step has left."""

    diff_params: Tree  # s
    diff_updates: Tree  # y
    weight: Tensor  # ρ = 1/⟨s, y⟩, or 0 where there is no pair yet


@state_class
class ScaleByLbfgsState(NamedTuple):
    """Where the last step started from, and the pairs of the steps before, the newest last."""

    count: Tensor  # steps taken, 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    params: Tree
    updates: Tree  # the gradient there
    memory: tuple[LbfgsPair, ...]


@link(scope="tree")
def scale_by_lbfgs(*, memory_size: int = 10, scale_init_precond: bool = True, form: str = "optax") -> Any:
    """Multiply the gradient by an estimate of the inverse Hessian from the last steps: L-BFGS.

    With ``s`` and ``y`` the differences of the parameters and of the gradients over a step, and ``ρ = 1/⟨s, y⟩``, ``H ←
    (I - ρ·s·yᵀ)·H·(I - ρ·y·sᵀ) + ρ·s·sᵀ`` for the last ``memory_size`` steps, oldest first, from ``H = γ·I`` on;
    ``u = H·g``. Here ``γ = ⟨s, y⟩/⟨y, y⟩`` of the newest pair, and ``min(1, 1/‖g‖)`` at the first step. Liu & Nocedal,
    "On the limited memory BFGS method for large scale optimization" (1989).

    The pair of a step is taken at the next one, so that what stands between, such as a line search, has had its say.
    ``H`` is positive definite if every ``⟨s, y⟩`` is positive, as it is after a search for the Wolfe conditions.

    Args:
        memory_size: pairs to keep, two trees like the parameters each.
        scale_init_precond: whether there is ``γ``, or else 1.
        form: ``"optax"`` takes a pair of every step with ``⟨s, y⟩ ≠ 0``. ``"torch"``, of ``torch.optim.LBFGS``, only
            where ``⟨s, y⟩ > 1e-10``, and has the 1-norm at the first step.

    Raises:
        ValueError: ``memory_size`` is less than 1, or ``form`` has another value.

    >>> tx = chain(scale_by_lbfgs(), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9553, -2.0894])}
    """
    if memory_size < 1:
        raise ValueError(f"scale_by_lbfgs: memory_size must be 1 or more, got {memory_size}")
    if form not in ("optax", "torch"):
        raise ValueError(f"scale_by_lbfgs: form must be 'optax' or 'torch', got {form!r}")

    def init(params) -> ScaleByLbfgsState:
        zeros = lambda: tree.zeros_like(params)
        memory = tuple(LbfgsPair(zeros(), zeros(), tree.scalars(params)) for _ in range(memory_size))
        count = torch.zeros_like(memory[0].weight, dtype=torch.int64)
        return ScaleByLbfgsState(count, zeros(), zeros(), memory)

    def transform(updates, state, params):
        s, y = (tree.map(torch.sub, *pair) for pair in ((params, state.params), (updates, state.updates)))
        sy = tree.dot(s, y)
        new = (state.count > 0) & (sy > 1e-10 if form == "torch" else sy != 0)
        # moved on, and not written around a ring: then the order is known when the program is made
        memory = choose(new, (*state.memory[1:], LbfgsPair(s, y, _inverse(sy, sy))), state.memory)
        u, alphas = updates, []
        for s, y, rho in reversed(memory):
            alphas.append(rho * tree.dot(s, u))
            u = _add(u, -alphas[-1], y)
        if scale_init_precond:
            _, y, rho = memory[-1]
            size = tree.dot(updates, tree.map(torch.sign, updates)) if form == "torch" else tree.norm(updates)
            first = torch.where(state.count > 0, 1, 1 / maximum(size, 1))
            gamma = _inverse(rho * tree.dot(y, y), first)
            u = tree.map(lambda u: (gamma * u).to(u.dtype), u)
        for s, y, rho in memory:
            u = _add(u, alphas.pop() - rho * tree.dot(y, u), s)
        start, gradient = tree.map(torch.clone, (params, updates))
        return u, ScaleByLbfgsState(state.count + 1, start, gradient, memory)

    return init, transform


def _inverse(x: Tensor, otherwise: Tensor) -> Tensor:
    return torch.where(x != 0, 1 / torch.where(x != 0, x, 1), otherwise)


def _add(u: Tree, factor: Tensor, x: Tree) -> Tree:
    return tree.map(lambda u, x: (u + factor * x).to(u.dtype), u, x)
