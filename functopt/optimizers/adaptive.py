"""Recipes that divide by a running mean square: RMSProp, Adam, and Adam rectified or looking ahead."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain
from functopt.optimizers.common import Hyper, compose, is_zero
from functopt.transforms.adaptive import (
    scale_by_adam,
    scale_by_nadam,
    scale_by_qhadam,
    scale_by_radam,
)
from functopt.transforms.maxima import scale_by_amsgrad
from functopt.transforms.momentum import trace
from functopt.transforms.rms import scale_by_rms, scale_momentum_by_rms
from functopt.wrappers.lookahead import lookahead

__all__ = ["adam", "adamw", "nadam", "nadamw", "qhadam", "radam", "ranger", "rmsprop"]


def rmsprop(
    lr: Hyper = 1e-2,
    decay: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    momentum: Hyper = 0.0,
    *,
    centered: bool = False,
    momentum_of: str = "update",
    nesterov: bool = False,
    eps_in_sqrt: bool = False,
    initial_scale: float = 0.0,
    bias_correction: bool = False,
    decoupled: bool = False,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """RMSProp, as ``torch.optim.RMSprop`` (whose ``alpha`` is ``decay`` here).

    ``v ← decay·v + (1 - decay)·g²``, ``p ← p - lr·g/(√v + eps)``. Tieleman & Hinton, "Lecture 6.5 - RMSProp" (2012).

    ``optax.rmsprop(lr, momentum=m)`` is ``rmsprop(lr, 0.9, momentum=m, momentum_of="step", eps_in_sqrt=True)``.

    Args:
        lr: learning rate.
        decay: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        momentum: what is kept of the buffer; the number 0 leaves it out, and with it the hyper.
        centered: divide by the standard deviation.
        momentum_of: ``"update"``: the momentum of ``g/(√v + eps)`` (torch); ``"step"``: that of ``lr·g/(√v + eps)``, so
            that a change of ``lr`` acts gradually (optax); ``"gradient"``: that of ``g``, divided afterwards (fastai).
        nesterov: look ahead with the momentum.
        eps_in_sqrt: divide by ``√(v + eps)``.
        initial_scale: what ``v`` is at the start.
        bias_correction: divide ``v`` by ``1 - decay^t``.
        decoupled: decay beside the preconditioner (fastai's default), not through it (torch).
        mask: which leaves decay.
        maximize: ascend.

    Raises:
        ValueError: a number is out of range, ``momentum_of`` has another value, or an option does not go with it.

    >>> tx = rmsprop(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 1.7881e-07, -3.0000e+00])}
    """
    if momentum_of not in ("update", "step", "gradient"):
        raise ValueError(f"rmsprop: momentum_of must be 'update', 'step' or 'gradient', got {momentum_of!r}")
    options: dict[str, Any] = {"centered": centered, "eps_in_sqrt": eps_in_sqrt, "bias_correction": bias_correction}
    options["initial_scale"] = initial_scale
    links = [scale_by_rms(decay, eps, **options)]
    look_back = [] if is_zero(momentum) else [trace(momentum, nesterov=nesterov)]
    if look_back and momentum_of == "gradient":
        if nesterov or any(options.values()):
            wrong = "nesterov" if nesterov else next(name for name, value in options.items() if value)
            raise ValueError(f"rmsprop: {wrong} goes with momentum_of='update' or 'step' only")
        links, look_back = [scale_momentum_by_rms(momentum, decay, eps)], []
    before, after = (links, look_back) if momentum_of == "step" else ([*links, *look_back], [])
    return chain(compose(before, lr, weight_decay, decoupled=decoupled, mask=mask, maximize=maximize), *after)


def _adam(beta1: Hyper, beta2: Hyper, eps: Hyper, *, nesterov: bool | str, debias: str, amsgrad: bool) -> Transform:
    if not amsgrad:
        return scale_by_adam(beta1, beta2, eps, nesterov=nesterov, debias=debias)
    if nesterov or debias != "weight":
        raise ValueError("adam: amsgrad goes without nesterov and with debias='weight' only")
    return scale_by_amsgrad(beta1, beta2, eps, bias_correction_nu="after")


def adam(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    nesterov: bool | str = False,
    debias: str = "weight",
    amsgrad: bool = False,
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
        amsgrad: divide by the largest second moment so far, as torch does; :func:`amsgrad` has the other forms.
        mask: which leaves decay.
        maximize: ascend.

    Raises:
        ValueError: a number is out of range, or ``amsgrad`` goes with ``nesterov`` or ``debias``.

    >>> tx = adam(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    links = [_adam(beta1, beta2, eps, nesterov=nesterov, debias=debias, amsgrad=amsgrad)]
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
    amsgrad: bool = False,
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
        amsgrad: divide by the largest second moment so far, as torch does; :func:`amsgrad` has the other forms.
        mask: which leaves decay.
        maximize: ascend.

    Raises:
        ValueError: a number is out of range, or ``amsgrad`` goes with ``nesterov`` or ``debias``.

    >>> tx = adamw(lr=0.1, weight_decay=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8900, -2.0800])}
    """
    links = [_adam(beta1, beta2, eps, nesterov=nesterov, debias=debias, amsgrad=amsgrad)]
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


def nadamw(
    lr: Hyper = 2e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-4,
    momentum_decay: Hyper = 4e-3,
    *,
    form: str = "optax",
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """:func:`nadam` with decoupled weight decay, in optax's form unless said otherwise.

    ``p ← p - lr·((β1·m/(1 - β1^(t+1)) + (1 - β1)·g/(1 - β1^t))/(√v̂ + eps) + weight_decay·p)``. Dozat, "Incorporating
    Nesterov Momentum into Adam" (2016); Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (2019).

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        momentum_decay: speed of the momentum schedule, of the form ``"torch"`` only.
        form: as in :func:`nadam`; ``"torch"`` is ``torch.optim.NAdam(decoupled_weight_decay=True)``.
        mask: which leaves decay.
        maximize: ascend.

    Raises:
        ValueError: a number is out of range, or ``form`` has another value.

    >>> tx = nadamw(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8526, -2.1473])}
    """
    return nadam(
        lr, beta1, beta2, eps, weight_decay, momentum_decay, form=form, decoupled=True, mask=mask, maximize=maximize
    )


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
    """Rectified Adam, as ``torch.optim.RAdam``.

    Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (2020).

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
    """Quasi-hyperbolic Adam, with fastai's defaults.

    Ma & Yarats, "Quasi-hyperbolic momentum and Adam for deep learning" (2019), who recommend them.

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
