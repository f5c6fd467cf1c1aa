"""Recipes that add up what they have seen: AdaGrad, Adadelta, SM3, MADGRAD, averaged SGD and Rprop."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain, rename
from functopt.optimizers.common import Hyper, compose, is_zero
from functopt.transforms.adadelta import scale_by_adadelta
from functopt.transforms.asgd import average_iterates, scale_by_asgd, scale_by_inverse_time
from functopt.transforms.decay import add_decayed_weights
from functopt.transforms.madgrad import scale_by_madgrad
from functopt.transforms.rprop import scale_by_rprop
from functopt.transforms.rss import scale_by_rss
from functopt.transforms.scaling import scale, scale_by_lr
from functopt.transforms.sm3 import scale_by_sm3

__all__ = ["adadelta", "adagrad", "asgd", "madgrad", "rprop", "sm3"]


def adadelta(
    lr: Hyper = 1.0,
    rho: Hyper = 0.9,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    *,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Adadelta, as ``torch.optim.Adadelta`` and optax: the steps have the size that past steps had.

    ``v ← ρ·v + (1 - ρ)·g²``, ``u = √(x + eps)/√(v + eps)·g``, ``x ← ρ·x + (1 - ρ)·u²``, ``p ← p - lr·u``. Zeiler,
    "ADADELTA: An Adaptive Learning Rate Method" (2012).

    Args:
        lr: learning rate.
        rho: what is kept of both averages.
        eps: added under both roots; it is what the first steps are made of.
        weight_decay: factor of the L2 term.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx = adadelta(eps=1e-2)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.7327, -2.3015])}
    """
    return compose([scale_by_adadelta(rho, eps)], lr, weight_decay, decoupled=False, mask=mask, maximize=maximize)


def adagrad(
    lr: Hyper = 1e-2,
    lr_decay: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    initial_accumulator_value: Hyper = 0.0,
    eps: Hyper = 1e-10,
    *,
    eps_in_sqrt: bool = False,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """AdaGrad, as ``torch.optim.Adagrad``.

    ``s ← s + g²``, ``p ← p - lr/(1 + lr_decay·t)·g/(√s + eps)``, with ``t`` from 0. Duchi et al., "Adaptive Subgradient
    Methods for Online Learning and Stochastic Optimization" (2011).

    ``optax.adagrad`` is ``adagrad(lr, initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True)``.

    Args:
        lr: learning rate.
        lr_decay: how fast it falls by itself; the number 0 leaves this out, and with it the hyper.
        weight_decay: factor of the L2 term.
        initial_accumulator_value: where ``s`` begins.
        eps: added to the denominator.
        eps_in_sqrt: divide by ``√(s + eps)``.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx = adagrad(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    falling = [] if is_zero(lr_decay) else [scale_by_inverse_time(lr_decay)]
    links = [scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt), *falling]
    return compose(links, lr, weight_decay, decoupled=False, mask=mask, maximize=maximize)


def asgd(
    lr: Hyper = 1e-2,
    lambd: Hyper = 1e-4,
    alpha: Hyper = 0.75,
    t0: Hyper = 1e6,
    weight_decay: Hyper = 0.0,
    *,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Averaged stochastic gradient descent, as ``torch.optim.ASGD``.

    ``η = lr/(1 + λ·lr·t)^α``, ``p ← p - η·(g + λ·p)``, ``a ← a + (p - a)/max(1, t - t0)``, with ``t`` from 0. Training
    goes on at ``p``; the averaged parameters are ``tree.get(state, "ax")``. Polyak & Juditsky, "Acceleration of
    Stochastic Approximation by Averaging" (1992).

    Args:
        lr: the first learning rate.
        lambd: λ, the strength of the regularisation, and with it how soon ``η`` falls.
        alpha: the power by which it falls.
        t0: the step with which averaging begins. With torch's default, ``a`` is ``p`` for a million steps.
        weight_decay: factor of a further L2 term, which leaves ``η`` as it is.
        mask: which leaves have that term.
        maximize: ascend.

    >>> tx = asgd(lr=0.1, t0=0)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    ascent = [scale(-1.0)] if maximize else []
    links = [scale_by_asgd(lr, lambd, alpha), average_iterates(t0)]
    return chain(*ascent, add_decayed_weights(weight_decay, mask=mask), *links)


def madgrad(
    lr: Hyper = 1e-2,
    momentum: Hyper = 0.9,
    weight_decay: Hyper = 0.0,
    eps: Hyper = 1e-6,
    *,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """MADGRAD: dual averaging with the cube root of the sum of squares, with the authors' learning rate.

    ``λ = (lr + eps)·√t``, ``s ← s + λ·g``, ``ν ← ν + λ·g²``, ``z = p₀ - s/(∛ν + eps)`` and
    ``p ← momentum·p + (1 - momentum)·z``. Defazio & Jelassi, "Adaptivity without Compromise: A Momentumized, Adaptive,
    Dual Averaged Gradient Method for Stochastic Optimization" (2021).

    Args:
        lr: learning rate.
        momentum: how much of the parameters stays where it is.
        weight_decay: factor of the L2 term.
        eps: added to the cube root, and to the learning rate.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx = madgrad(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9829, -2.0215])}
    """
    ascent = [scale(-1.0)] if maximize else []
    return chain(*ascent, add_decayed_weights(weight_decay, mask=mask), scale_by_madgrad(lr, momentum, eps))


def rprop(
    lr: Hyper = 1e-2,
    eta_minus: Hyper = 0.5,
    eta_plus: Hyper = 1.2,
    min_step_size: Hyper = 1e-6,
    max_step_size: Hyper = 50.0,
    *,
    form: str = "torch",
    maximize: bool = False,
) -> Transform:
    """Rprop, for gradients of the whole data: only their signs count.

    ``Δ ← η⁺·Δ`` where the gradient keeps its sign, ``Δ ← η⁻·Δ`` and no step where it has turned, ``p ← p - Δ·sign(g)``;
    see :func:`scale_by_rprop <functopt.scale_by_rprop>`. Riedmiller & Braun, "A direct adaptive method for faster
    backpropagation learning: the RPROP algorithm" (1993).

    Args:
        lr: the first step size.
        eta_minus: factor after a turn (torch: ``etas[0]``).
        eta_plus: factor without (torch: ``etas[1]``).
        min_step_size: the least step size (torch: ``step_sizes[0]``).
        max_step_size: the largest (torch: ``step_sizes[1]``).
        form: ``"torch"``: as ``torch.optim.Rprop``, without backtracking: iRprop⁻ of Igel & Hüsken (2003). ``"optax"``:
            as ``optax.rprop``, which makes each step one step later, and so none at the first.
        maximize: ascend.

    Raises:
        ValueError: ``form`` has another value.

    >>> tx = rprop(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    if form not in ("torch", "optax"):
        raise ValueError(f"rprop: form must be 'torch' or 'optax', got {form!r}")
    link = scale_by_rprop(lr, eta_minus, eta_plus, min_step_size, max_step_size, delayed=form == "optax")
    return chain(link, scale(1.0 if maximize else -1.0))


def sm3(lr: Hyper = 0.1, momentum: Hyper = 0.9) -> Transform:
    """AdaGrad in the memory of one vector for each axis of a tensor, with momentum.

    ``ν = min_k a_k + g²``, for every entry the least of its row, its column and so on; ``a_k ← max ν`` over the other
    axes; ``m ← momentum·m + (1 - momentum)·g/√(ν + 1e-8)``, ``p ← p - lr·m``. Anil et al., "Memory-Efficient Adaptive
    Optimization" (2019).

    Args:
        lr: learning rate.
        momentum: what is kept of the average of the scaled gradients.

    >>> tx = sm3()
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9900, -2.0100])}
    """
    return chain(rename(scale_by_sm3(momentum), beta1="momentum"), scale_by_lr(lr))
