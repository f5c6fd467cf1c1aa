"""Recipes that divide by a running second moment: RMSProp, Adam and their relatives."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.optimizers.common import Hyper, compose, is_zero
from functopt.transforms.adaptive import (
    scale_by_adam,
    scale_by_nadam,
    scale_by_qhadam,
    scale_by_radam,
    scale_by_rms,
    scale_momentum_by_rms,
)
from functopt.transforms.momentum import trace
from functopt.wrappers.lookahead import lookahead

__all__ = ["adam", "adamw", "nadam", "qhadam", "radam", "ranger", "rmsprop"]


def rmsprop(
    lr: Hyper = 1e-2,
    decay: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    momentum: Hyper = 0.0,
    *,
    centered: bool = False,
    momentum_of: str = "update",
    decoupled: bool = False,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """RMSProp, as ``torch.optim.RMSprop`` (whose ``alpha`` is ``decay`` here).

    ``v ← decay·v + (1 - decay)·g²``, ``p ← p - lr·g/(√v + eps)``. Tieleman & Hinton (2012).

    Args:
        lr: learning rate.
        decay: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        momentum: what is kept of the buffer; the number 0 leaves it out, and with it the hyper.
        centered: divide by the standard deviation.
        momentum_of: ``"update"``: the momentum of ``g/(√v + eps)`` (torch); ``"gradient"``: that of ``g``, divided
            afterwards (fastai).
        decoupled: decay beside the preconditioner (fastai's default), not through it (torch).
        mask: which leaves decay.
        maximize: ascend.

    Raises:
        ValueError: a number is out of range, or ``momentum_of`` has another value.

    >>> tx = rmsprop(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 1.7881e-07, -3.0000e+00])}
    """
    if momentum_of not in ("update", "gradient"):
        raise ValueError(f"rmsprop: momentum_of must be 'update' or 'gradient', got {momentum_of!r}")
    if is_zero(momentum):
        links = [scale_by_rms(decay, eps, centered=centered)]
    elif momentum_of == "update":
        links = [scale_by_rms(decay, eps, centered=centered), trace(momentum)]
    elif centered:
        raise ValueError("rmsprop: centered goes with momentum_of='update' only")
    else:
        links = [scale_momentum_by_rms(momentum, decay, eps)]
    return compose(links, lr, weight_decay, decoupled=decoupled, mask=mask, maximize=maximize)


def adam(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    nesterov: bool | str = False,
    debias: str = "weight",
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Adam with L2 regularisation, as ``torch.optim.Adam``.

    The decay is added to the gradient and goes through both averages; :func:`adamw` decays beside them. Kingma & Ba,
    "Adam: A Method for Stochastic Optimization" (2015).

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the L2 term.
        nesterov: see :func:`scale_by_adam <functopt.scale_by_adam>`.
        debias: likewise; it matters when the betas change between steps.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx = adam(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    links = [scale_by_adam(beta1, beta2, eps, nesterov=nesterov, debias=debias)]
    return compose(links, lr, weight_decay, decoupled=False, mask=mask, maximize=maximize)


def adamw(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-2,
    *,
    nesterov: bool | str = False,
    debias: str = "weight",
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Adam with decoupled weight decay, as ``torch.optim.AdamW``.

    ``p ← p - lr·(m̂/(√v̂ + eps) + weight_decay·p)``. Loshchilov & Hutter, "Decoupled Weight Decay Regularization"
    (2019).

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay (optax: 1e-4).
        nesterov: see :func:`scale_by_adam <functopt.scale_by_adam>`.
        debias: likewise; it matters when the betas change between steps.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx = adamw(lr=0.1, weight_decay=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8900, -2.0800])}
    """
    links = [scale_by_adam(beta1, beta2, eps, nesterov=nesterov, debias=debias)]
    return compose(links, lr, weight_decay, decoupled=True, mask=mask, maximize=maximize)


_NADAM_FORMS = {"optax": True, "article": "same_step", "article_raw": "raw"}


def nadam(
    lr: Hyper = 2e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    momentum_decay: Hyper = 4e-3,
    *,
    form: str = "torch",
    decoupled: bool = False,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Adam with Nesterov momentum. Dozat, "Incorporating Nesterov Momentum into Adam" (2016).

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        momentum_decay: speed of the momentum schedule; only the form ``"torch"`` has one, and this hyper.
        form: ``"torch"``: with the paper's momentum schedule, as ``torch.optim.NAdam``
            (:func:`scale_by_nadam <functopt.scale_by_nadam>`). ``"optax"``: constant momentum, each term of the
            numerator debiased by its own step's weight. ``"article"``: constant momentum, ``(β1·m + (1 - β1)·g)/(1 -
            β1^t)``. ``"article_raw"``: the same without debiasing, which is what fastai's article computes line by
            line.
        decoupled: decay beside the preconditioner, not through it.
        mask: which leaves decay.
        maximize: ascend.

    Raises:
        ValueError: ``form`` has another value.

    >>> tx = nadam(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8944, -2.1056])}
    """
    if form == "torch":
        link = scale_by_nadam(beta1, beta2, eps, momentum_decay)
    elif form in _NADAM_FORMS:
        link = scale_by_adam(beta1, beta2, eps, nesterov=_NADAM_FORMS[form])
    else:
        raise ValueError(f"nadam: form must be one of {['torch', *_NADAM_FORMS]}, got {form!r}")
    return compose([link], lr, weight_decay, decoupled=decoupled, mask=mask, maximize=maximize)


def radam(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    threshold: Hyper = 5.0,
    softplus_beta: Hyper = 0.0,
    *,
    eps_debiased: bool = False,
    decoupled: bool = False,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Rectified Adam, as ``torch.optim.RAdam``. Liu et al., "On the Variance of the Adaptive Learning Rate" (2020).

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        threshold: where rectification begins (the paper: 4).
        softplus_beta: smoothing of the denominator (fastai's ``beta``), none if 0.
        eps_debiased: where ``eps`` stands, see :func:`scale_by_radam <functopt.scale_by_radam>`; true in optax and
            fastai.
        decoupled: decay beside the preconditioner, not through it.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx = radam(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    links = [
        scale_by_radam(beta1, beta2, eps, threshold=threshold, softplus_beta=softplus_beta, eps_debiased=eps_debiased)
    ]
    return compose(links, lr, weight_decay, decoupled=decoupled, mask=mask, maximize=maximize)


def qhadam(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.999,
    beta2: Hyper = 0.999,
    nu1: Hyper = 0.7,
    nu2: Hyper = 1.0,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    decoupled: bool = True,
    mask: Any = None,
) -> Transform:
    """Quasi-hyperbolic Adam, with fastai's defaults. Ma & Yarats (2019), who recommend them.

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        nu1: how much of the numerator is the mean.
        nu2: how much of the denominator is the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        decoupled: decay beside the preconditioner, not through it.
        mask: which leaves decay.

    >>> tx = qhadam(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    return compose([scale_by_qhadam(beta1, beta2, nu1, nu2, eps)], lr, weight_decay, decoupled=decoupled, mask=mask)


def ranger(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.95,
    beta2: Hyper = 0.99,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.01,
    sync_period: Hyper = 6,
    slow_step_size: Hyper = 0.5,
    softplus_beta: Hyper = 0.0,
    *,
    decoupled: bool = True,
    mask: Any = None,
) -> Transform:
    """Lookahead around rectified Adam, with fastai's defaults. Wright, "Ranger" (2019).

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        sync_period: steps between synchronisations of the slow weights.
        slow_step_size: how far the slow weights go.
        softplus_beta: smoothing of the denominator, none if 0.
        decoupled: decay beside the preconditioner, not through it.
        mask: which leaves decay.

    >>> tx = ranger(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9490, -2.0980])}
    """
    fast = radam(
        lr, beta1, beta2, eps, weight_decay, softplus_beta=softplus_beta,
        eps_debiased=True, decoupled=decoupled, mask=mask,
    )  # fmt: skip
    return lookahead(fast, sync_period, slow_step_size)
