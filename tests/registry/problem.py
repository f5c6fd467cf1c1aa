"""What a row of the registry says, and the small problem on which the property tests run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

import functopt as fo
from functopt import Transform, tree
from functopt.combine import combinator
from functopt.sharded import is_sharded

Tree = Any


@dataclass(frozen=True)
class Row:
    """An optimizer and what is true of it."""

    id: str  # the public name, then the form
    make: Callable[[], Transform]
    layout_invariant: bool = True  # False with trust ratios and masks
    couples: bool = False  # whether a leaf's step depends on other leaves, as with a global norm
    lr_scales_all: bool = True  # whether nothing moves when lr is 0
    ascends: bool = False  # whether it goes up the gradient
    # What it cannot do: the name of a property, as the tests give it to `rows`, and why.
    exceptions: Mapping[str, str] = field(default_factory=dict)


def matrices(params: Tree) -> Tree:
    """A mask: decay what has two dimensions, leave biases and gains alone."""
    return tree.map(lambda p: p.ndim > 1, params)


def by_lr(link: Transform, lr: float = 0.1) -> Transform:
    return fo.chain(link, fo.scale_by_lr(lr))


@combinator
def with_loss(tx: Transform) -> Transform:
    """Give an optimizer the extras that it needs: a loss whose gradient is the one that is given.

    ``f(q) = ⟨g, q - p⟩ + ½‖q - p‖² + ½‖p‖²`` at ``p``; the extras are ``value = f(p)``, ``value_fn = f``, ``grad = g``.
    """

    def extras(grads: Tree, params: Tree, given: dict[str, Any]) -> dict[str, Any]:
        def value_fn(at: Tree) -> torch.Tensor:
            terms = tree.map(lambda q, p, g: g * (q - p) + ((q - p).square() + p.square()) / 2, at, params, grads)
            # tree.sums, since the leaves may be spread over processes
            return torch.stack([part.sum() for part in tree.leaves(tree.sums(terms))]).sum()

        def value_and_grad(at: Tree) -> tuple[torch.Tensor, Tree]:
            return value_fn(at), tree.map(lambda q, p, g: g + (q - p), at, params, grads)

        if any(isinstance(p, FakeTensor) or is_sharded(p) for p in tree.leaves(params)):
            # torch 2.14 cannot go backward on a device that is not there, nor through a sum over several meshes
            value_fn.value_and_grad = value_and_grad  # pyright: ignore[reportFunctionMemberAccess]
        own = {"value": value_fn(params), "value_fn": value_fn, "grad": grads}
        return {**own, **given} if "value_fn" in given else {**given, **own}  # all of one loss

    def transform(updates: Tree, state: Tree, params: Tree, hypers: Any, **given: Any) -> tuple[Tree, Tree]:
        return tx._transform(updates, state, params, hypers, **extras(updates, params, given))

    def write(grads: Tree, state: Tree, params: Tree, hypers: Any, **given: Any) -> tuple[Tree, Tree]:
        return tx.run(grads, state, params, hypers, **extras(grads, params, given))

    scopes = [*tx._scopes, ("with_loss", "tree")]  # it is the loss of all parameters
    return Transform(tx._init, transform, write=write if tx.writes else None, hypers=tx.hypers, scopes=scopes)


# The problem

# A matrix, a vector, one number and a tensor of three dimensions, in nested containers.
SHAPES = {"body": {"weight": (4, 3), "bias": (3,)}, "head": {"gain": (), "kernel": (2, 3, 2)}}
STEPS = 8


def _leaves(seed: int, dtype: torch.dtype, shift: float) -> Tree:
    generator = torch.Generator().manual_seed(seed)

    def leaf(shape: tuple[int, ...]) -> torch.Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) + shift).to(dtype)

    return {group: {name: leaf(shape) for name, shape in below.items()} for group, below in SHAPES.items()}


def make_params(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tree:
    return _leaves(seed, dtype, shift=1.0)


def make_grads(seed: int = 0, dtype: torch.dtype = torch.float64, steps: int = STEPS) -> list[Tree]:
    """Gradients of several steps, which do not depend on the parameters."""
    return [_leaves(1000 * (seed + 1) + step, dtype, shift=0.3) for step in range(steps)]


def run(tx: Transform, params: Tree, grads: list[Tree], hypers: Any = None) -> tuple[Tree, Tree]:
    """All steps; ``hypers`` is one dictionary for all of them."""
    state = tx.init(params)
    for grad in grads:
        params, state = tx.update(grad, state, params, hypers)
    return params, state


def number_hypers(tx: Transform) -> dict[str, float]:
    """The hypers whose default is a number."""
    return {name: float(value) for name, value in tx._defaults.items() if isinstance(value, (float, int))}


# Hypers that are one value for all parameters.
WHOLE = {
    "every_k",
    "max_consecutive_errors",
    "max_squared_norm",
    "max_learning_rate",
    "tol",
    "atol",
    "rtol",
    "increase_factor",
    "decrease_factor",
    "slope_rtol",
    "curv_rtol",
    "approx_dec_rtol",
    "stepsize_precision",
    "truncation",
}


def moved(name: str, value: float, by: int) -> float:
    """Another legal value of a hyper: ``by`` counts the distance from the default."""
    if name.rpartition(".")[2] in (
        "sync_period",
        "k",
        "every_k",
        "seed",
        "swa_start",
        "swa_freq",
        "update_proj_gap",
        "precondition_frequency",
        "update_interval",
    ):
        return value + by
    return 0.95 * value + 0.01 * by
