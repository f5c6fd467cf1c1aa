"""Parameters and states in 16 bits that do not lose what is smaller than their last digit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from functopt import random, tree
from functopt.base import Transform, state_class
from functopt.combine import combinator, no_updates
from functopt.hypers import Hypers, check_hyper, same_value
from functopt.numerics import accumulator_dtype
from functopt.rounding import narrowed, round_stochastically
from functopt.tree import Tree
from functopt.wrappers.common import check_inner, check_state

__all__ = ["CastStateState", "KahanState", "StochasticRoundState", "cast_state", "kahan", "stochastic_round"]


def _check_returns(who: str, inner: Transform) -> None:
    check_inner(who, inner)
    if inner.writes:
        raise ValueError(
            f"{who}: {inner.name} writes the parameters itself, so there is nothing left to write: put {who}() around "
            f"the optimizer inside {inner.name}"
        )


def _seeded(who: str, inner: Transform, seed: Any) -> dict[str, Any]:
    """Return the hypers of an optimizer and a seed, which it may share."""
    check_hyper(who, "seed", seed)
    if not same_value(inner.hypers.get("seed", seed), seed):
        raise ValueError(f"{who}: {inner.name} has another seed, {inner.hypers['seed']!r}; rename that one")
    return {**inner.hypers, "seed": seed}


@state_class
class KahanState(NamedTuple):
    """What rounding has kept from the parameters so far, in their dtype, and the state of the optimizer."""

    compensation: Tree
    inner: Tree


@combinator
def kahan(inner: Transform) -> Transform:
    """Add up the steps with compensation, so that steps smaller than the last digit of a parameter are not lost.

    ``y = u + c``, ``p' = p + y`` rounded to the dtype of ``p``, ``c' = y - (p' - p)``: what was rounded off comes with
    the next step. ``p + c`` has about twice the digits of ``p``, so that bfloat16 trains like float32 with 4 bytes a
    parameter. Kahan, "Further Remarks on Reducing Truncation Errors" (1965); for training, Zamirai et al., "Revisiting
    BFloat16 Training" (2020).

    It writes the parameters itself, so it is the last of a chain.

    Args:
        inner: an optimizer that returns updates. It sees the rounded parameters.

    Raises:
        TypeError: ``inner`` is not a transform.
        ValueError: it writes the parameters itself.

    >>> tx, p = kahan(sgd(lr=1e-3)), torch.ones(1, dtype=torch.bfloat16)
    >>> tx.update(p, tx.init(p), p)[1].compensation  # what 1 - 0.001 has lost, which is 1 there
    tensor([-0.0010], dtype=torch.bfloat16)
    """
    _check_returns("kahan", inner)

    def init(params: Tree) -> KahanState:
        return KahanState(tree.zeros_like(params), inner._init(params))

    def write(grads: Tree, state: KahanState, params: Tree, hypers: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        check_state("kahan", state, KahanState)
        updates, after = inner._transform(grads, state.inner, params, hypers, **extras)
        due = tree.map(lambda c, u: c + u.to(accumulator_dtype(c.dtype)), state.compensation, updates)
        new = tree.map(lambda p, y: (p + y).to(p.dtype), params, due)
        left = tree.map(lambda p, n, y: (y - (n.to(y.dtype) - p)).to(p.dtype), params, new, due)
        return new, KahanState(left, after)

    return Transform(
        init,
        no_updates("kahan"),
        write=write,
        hypers=inner.hypers,
        scopes=[*inner._scopes, ("kahan", "element")],
    )


@state_class
class StochasticRoundState(NamedTuple):
    """The number of steps, from which with the seed the rounding follows, and the state of the optimizer."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    inner: Tree


@combinator
def stochastic_round(inner: Transform, seed: Any = 0) -> Transform:
    """Round the new parameters up or down by chance, so that steps smaller than their last digit count on average.

    ``p' = p + u`` in float32, then one of the two neighbours of that in the dtype of ``p``, each with the chance that
    makes the expected value ``p + u``. It concerns parameters of 16 bits; others are written as always. No memory is
    needed, and the noise is averaged out by the steps; :func:`kahan` is exact. Gupta et al., "Deep Learning with
    Limited Numerical Precision" (2015).

    It writes the parameters itself, so it is the last of a chain.

    Args:
        inner: an optimizer that returns updates. It may have a hyper ``seed`` too and then shares it.
        seed: a whole number.

    Raises:
        TypeError: ``inner`` is not a transform.
        ValueError: it writes the parameters itself, or has another seed.

    >>> tx, p = stochastic_round(sgd(lr=1e-3)), torch.ones(4000, dtype=torch.bfloat16)
    >>> tx.update(p, tx.init(p), p)[0].float().mean()  # of numbers that are 1 or 0.9961
    tensor(0.9990)
    """
    _check_returns("stochastic_round", inner)
    hypers = _seeded("stochastic_round", inner, seed)

    def init(params: Tree) -> StochasticRoundState:
        count = tree.counter(params)
        return StochasticRoundState(count, inner._init(params))

    def write(grads: Tree, state: Any, params: Tree, values: Hypers, **extras: Any) -> tuple[Tree, Tree]:
        check_state("stochastic_round", state, StochasticRoundState)
        updates, after = inner._transform(grads, state.inner, params, values, **extras)
        exact = tree.map(lambda p, u: p.to(accumulator_dtype(p.dtype)) + u, params, updates)
        noise = random.uniform_like(exact, values["seed"], state.count, salt="stochastic_round")
        new = tree.map(lambda p, x, r: round_stochastically(x, p.dtype, r), params, exact, noise)
        return new, StochasticRoundState(state.count + 1, after)

    return Transform(
        init,
        no_updates("stochastic_round"),
        write=write,
        hypers=hypers,
        scopes=[*inner._scopes, ("stochastic_round", "any")],  # the noise is that of a leaf
    )


@state_class
class CastStateState(NamedTuple):
    """The number of steps, from which with the seed the rounding follows, and the state of the optimizer."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]
    inner: Tree


@combinator
def cast_state(
    inner: Transform,
    seed: Any = 0,
    *,
    dtype: torch.dtype = torch.bfloat16,
    only: Sequence[str] = (),
    stochastic: bool = False,
) -> Transform:
    """Keep the state of any optimizer in fewer bits between steps, and compute with it in float32 at least.

    ``AdamW`` then takes 4 bytes a parameter instead of 8. What is cast: floating-point tensors that have dimensions
    and are wider than ``dtype``; counts and the weights of averages stay as they are. A second moment that decays by
    less than 1/256 a step stands still in bfloat16 if it is rounded to the nearest: cast only the first moment then, or
    round by chance. Numbers beyond the range of ``dtype`` become its largest. Dettmers et al., "8-bit Optimizers via
    Block-wise Quantization" (2022) go further.

    Args:
        inner: any optimizer.
        seed: for stochastic rounding, a whole number; else it is not a hyper.
        dtype: of what is kept.
        only: names of entries of the state, such as ``("mu", "trace")``; what is below other names is not cast.
        stochastic: round up or down by chance, as :func:`stochastic_round` does, not to the nearest; for 16 bits.

    Raises:
        TypeError: ``inner`` is not a transform, or ``dtype`` is no floating-point dtype.
        ValueError: no entry of the state has one of the names in ``only``, or ``inner`` has another seed.

    >>> tx = cast_state(adamw(), only=["mu"])
    >>> tree.get(tx.init(params), "mu.total")
    {'w': tensor([0., 0.], dtype=torch.bfloat16)}
    """
    check_inner("cast_state", inner)
    if not dtype.is_floating_point:
        raise TypeError(f"cast_state: dtype is {dtype}, expected a floating-point dtype")
    hypers = _seeded("cast_state", inner, seed) if stochastic else inner.hypers

    def narrow(state: Tree, round: Callable[[Tensor, int], Tensor]) -> Tree:
        number = itertools.count()  # of what is cast: however many weights stand beside, it gets the same noise
        wider = lambda leaf: leaf.is_floating_point() and leaf.ndim and leaf.numel() and leaf.itemsize > dtype.itemsize
        return _map_named(lambda leaf: round(leaf, next(number)) if wider(leaf) else leaf, state, only)

    def init(params: Tree) -> Tree:
        state = inner._init(params)
        for name in only:
            if not _has(state, name):
                raise ValueError(f"cast_state: no entry of the state of {inner.name} is called {name!r}")
        cast = narrow(state, lambda leaf, _: leaf.to(dtype))
        count = tree.counter(params)
        return CastStateState(count, cast) if stochastic else cast

    def around(step: Callable[..., tuple[Tree, Tree]]) -> Callable[..., tuple[Tree, Tree]]:
        def run(updates: Tree, state: Tree, params: Tree, values: Hypers, **extras: Any) -> tuple[Tree, Tree]:
            if stochastic:
                check_state("cast_state", state, CastStateState)
            kept = state.inner if stochastic else state
            widest = max((p.dtype for p in tree.leaves(params)), key=lambda dtype: dtype.itemsize)
            wide = accumulator_dtype(widest)
            kept = _map_named(lambda leaf: leaf.to(wide) if leaf.dtype == dtype and leaf.ndim else leaf, kept, only)
            out, kept = step(updates, kept, params, values, **extras)
            if not stochastic:
                return out, narrow(kept, lambda leaf, _: narrowed(leaf, dtype))

            def by_chance(leaf: Tensor, i: int) -> Tensor:
                noise = random.uniform(leaf, values["seed"], state.count, i, salt="cast_state")
                return round_stochastically(leaf, dtype, noise)

            return out, CastStateState(state.count + 1, narrow(kept, by_chance))

        return run

    return Transform(
        init,
        around(inner._transform),
        write=around(inner.run) if inner.writes else None,
        hypers=hypers,
        scopes=[
            *inner._scopes,
            ("cast_state", "any" if stochastic else "matrix"),
        ],  # what has no dimensions is not cast
    )


def _map_named(f: Callable[[Tensor], Tensor], state: Tree, only: Sequence[str]) -> Tree:
    """Map over the leaves that stand below one of the names; without names, over all."""
    if isinstance(state, Tensor):
        return state if only else f(state)
    parts = tree.children(state)
    below = [_map_named(f, child, () if key in only else only) for key, child in parts]
    return tree.rebuild(state, [key for key, _ in parts], below) if parts else state


def _has(state: Tree, name: str) -> bool:
    return any(key == name or _has(child, name) for key, child in tree.children(state))
