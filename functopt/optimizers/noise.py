"""Recipes that add noise to the gradient."""

from __future__ import annotations

from functopt.base import Transform
from functopt.combine import chain
from functopt.optimizers.common import Hyper, is_zero
from functopt.transforms.momentum import trace
from functopt.transforms.noise import add_noise, differentially_private_aggregate
from functopt.transforms.scaling import scale_by_lr

__all__ = ["dpsgd", "noisy_sgd"]


def noisy_sgd(lr: Hyper = 3e-3, eta: Hyper = 0.01, gamma: Hyper = 0.55, seed: Hyper = 0) -> Transform:
    """Gradient descent with noise that falls with the steps: ``p ← p - lr·(g + N(0, eta/t^gamma))``.

    Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks" (2015).

    Args:
        lr: learning rate.
        eta: the variance of the noise at the first step.
        gamma: how fast it falls.
        seed: a whole number; with the step it gives the noise, see :func:`add_noise <functopt.add_noise>`.

    >>> tx = noisy_sgd(lr=0.1, seed=1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9510, -2.1039])}
    """
    return chain(add_noise(eta, gamma, seed), scale_by_lr(lr))


def dpsgd(
    lr: Hyper = 0.05,
    max_norm: Hyper = 1.0,
    noise_multiplier: Hyper = 1.0,
    seed: Hyper = 0,
    momentum: Hyper = 0.0,
    *,
    nesterov: bool = False,
) -> Transform:
    """Differentially private gradient descent: ``p ← p - lr·(Σ_i clip(g_i) + noise)/B``.

    It takes the gradients of the examples, with a leading axis; see :func:`differentially_private_aggregate
    <functopt.differentially_private_aggregate>`. Abadi et al., "Deep Learning with Differential Privacy" (2016). What
    is private depends on ``max_norm``, ``noise_multiplier`` and the number of steps; the defaults promise nothing.

    Args:
        lr: learning rate.
        max_norm: the largest norm of an example (optax: ``l2_norm_clip``).
        noise_multiplier: the standard deviation of the noise, in units of ``max_norm``.
        seed: a whole number, to be kept secret.
        momentum: what is kept of the buffer; the number 0 leaves it out, and with it the hyper.
        nesterov: look ahead.

    >>> tx = dpsgd(lr=0.1, noise_multiplier=0.0)
    >>> tx.update({"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}, tx.init(params), params)[0]
    {'w': tensor([ 0.9700, -2.0900])}
    """
    aggregate = differentially_private_aggregate(max_norm, noise_multiplier, seed)
    links = [] if is_zero(momentum) else [trace(momentum, nesterov=nesterov)]
    return chain(aggregate, *links, scale_by_lr(lr))
