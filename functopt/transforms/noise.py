"""Links that add noise, and the aggregation of the gradients of examples that noise makes private."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from functopt import random, tree
from functopt.base import link, state_class
from functopt.clipping import per_example_global_norm_clip
from functopt.dimensions import spread_like, whole
from functopt.numerics import accumulator_dtype, sqrt

__all__ = ["AddNoiseState", "DifferentiallyPrivateAggregateState", "add_noise", "differentially_private_aggregate"]


@state_class
class AddNoiseState(NamedTuple):
    """The number of steps, from which with the seed the noise follows."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]


@link
def add_noise(eta=0.01, gamma=0.55, seed=0) -> Any:
    """Add Gaussian noise whose variance falls with the steps: ``u ← u + N(0, eta/t^gamma)``.

    The noise is a function of the seed, the step, the leaf and the position in it: the same eager and compiled, other
    noise for every member of a sweep that varies the seed. Neelakantan et al., "Adding Gradient Noise Improves Learning
    for Very Deep Networks" (2015).

    Args:
        eta: the variance at the first step (the paper: 0.01, 0.3 or 1).
        gamma: how fast it falls.
        seed: a whole number (optax: ``key``, with other numbers).

    Raises:
        ValueError: the seed is a number that is not whole.

    >>> tx = chain(add_noise(seed=1), scale_by_lr(0.1))
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9510, -2.1039])}
    """

    def init(params) -> AddNoiseState:
        return AddNoiseState(tree.counter(params))

    def transform(updates, state, params, eta, gamma, seed):
        count = state.count + 1

        def noisy(u, n, e, g):
            return u + sqrt(e / count.to(accumulator_dtype(u.dtype)) ** g) * n

        noise = random.normal_like(params, seed, count, salt="add_noise")
        return tree.map(noisy, updates, noise, eta, gamma), AddNoiseState(count)

    return init, transform


@state_class
class DifferentiallyPrivateAggregateState(NamedTuple):
    """The number of steps, from which with the seed the noise follows."""

    count: Tensor  # 0-d, int64  # pyright: ignore[reportIncompatibleMethodOverride]


@link(scope="examples")
def differentially_private_aggregate(max_norm=1.0, noise_multiplier=1.0, seed=0) -> Any:
    """Make one gradient of the gradients of examples, so that no example can be told from it: clip, add up, add noise.

    ``u = (Σ_i g_i·min(1, max_norm/‖g_i‖) + N(0, (noise_multiplier·max_norm)²)) / B`` for ``B`` examples. Abadi et al.,
    "Deep Learning with Differential Privacy" (2016).

    It takes gradients with a leading axis of examples, as ``torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))``
    gives them, and stands first in a chain. Accumulating its results over several batches is not private. How much
    privacy a number of steps leaves has to be computed elsewhere, and whoever knows the seed knows the noise.

    Args:
        max_norm: the largest norm of an example (optax: ``l2_norm_clip``).
        noise_multiplier: the standard deviation of the noise, in units of ``max_norm``; neither has a default in optax.
        seed: a whole number, to be kept secret.

    Raises:
        ValueError: the gradients have no leading axis of one length in all leaves.

    >>> tx = chain(differentially_private_aggregate(max_norm=1.0, noise_multiplier=0.0), scale_by_lr(1.0))
    >>> tx.update({"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}, tx.init(params), params)[0]
    {'w': tensor([ 0.7000, -2.9000])}
    """

    def init(params) -> DifferentiallyPrivateAggregateState:
        return DifferentiallyPrivateAggregateState(tree.counter(params))

    def transform(updates, state, params, max_norm, noise_multiplier, seed):
        leaves, wanted = tree.leaves(updates), tree.leaves(params)
        got, shapes = [list(u.shape) for u in leaves], [list(p.shape) for p in wanted]
        if [shape[1:] for shape in got] != shapes or [] in got:
            raise ValueError(
                "differentially_private_aggregate: expected the gradients of examples, which have a leading axis "
                f"before {shapes}, got {got}. torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0)) gives them."
            )
        total, _ = per_example_global_norm_clip(tree.map(whole, updates), max_norm)
        noise = random.normal_like(params, seed, state.count, salt="differentially_private_aggregate")
        mean = lambda s, n, c, m: (spread_like(s, n) + m * c * n) / leaves[0].shape[0]
        out = tree.map(mean, total, noise, max_norm, noise_multiplier)
        return out, DifferentiallyPrivateAggregateState(state.count + 1)

    return init, transform
