"""Recipes: each is a short chain of links, and the paper it comes from.

Defaults are those of ``torch.optim`` where it has the optimizer, so that a migrated call trains the same; otherwise
optax's, or fastai's for what only fastai has.
"""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain, rename, sequence
from functopt.transforms.adaptive import (
    scale_by_adam,
    scale_by_nadam,
    scale_by_qhadam,
    scale_by_radam,
    scale_by_rms,
    scale_momentum_by_rms,
)
from functopt.transforms.decay import add_decayed_weights
from functopt.transforms.momentum import trace
from functopt.transforms.scaling import scale, scale_by_lr, set_to_zero
from functopt.transforms.trust import scale_by_larc, scale_by_trust_ratio
from functopt.wrappers.lookahead import lookahead

__all__ = [
    "adam",
    "adamw",
    "lamb",
    "larc",
    "lookahead",
    "nadam",
    "qhadam",
    "radam",
    "ranger",
    "rmsprop",
    "sgd",
]

Hyper = Any


def _compose(
    preconditioner: list[Transform],
    lr: Hyper,
    weight_decay: Hyper,
    *,
    decoupled: bool,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Chain a preconditioner with weight decay, after it (decoupled) or before it (L2), and the learning rate."""
    decay = [add_decayed_weights(weight_decay, mask=mask)]
    ascent = [scale(-1.0)] if maximize else []
    inner = [*preconditioner, *decay] if decoupled else [*decay, *preconditioner]
    return chain(*ascent, *inner, scale_by_lr(lr))


def _is_zero(value: Hyper) -> bool:
    return isinstance(value, (float, int)) and value == 0


def sgd(
    lr: Hyper = 1e-3,
    momentum: Hyper = 0.0,
    dampening: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    *,
    nesterov: bool = False,
    decoupled: bool = False,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Stochastic gradient descent with momentum, as ``torch.optim.SGD``.

    ``g ← g + weight_decay·p``, ``m ← momentum·m + (1 - dampening)·g`` (the first gradient enters whole), ``p ← p -
    lr·m``.

    Args:
        lr: learning rate.
        momentum: what is kept of the buffer. The number 0 leaves the buffer out, and with it the hyper: to sweep
            momentum from 0 on, give another default here.
        dampening: what is held back of each gradient after the first.
        weight_decay: factor of the decay.
        nesterov: ``p ← p - lr·(g + momentum·m)``.
        decoupled: decay the weights beside the momentum and not through it: fastai's ``decouple_wd``, SGDW.
        mask: which leaves decay, see :func:`add_decayed_weights <functopt.add_decayed_weights>`.
        maximize: ascend.

    Raises:
        ValueError: a number is out of range, or ``nesterov`` without momentum or with dampening.
    """
    plain = _is_zero(momentum)
    if nesterov and (plain or not _is_zero(dampening)):
        raise ValueError("sgd: nesterov needs momentum > 0 and dampening = 0")
    links = [] if plain else [trace(momentum, dampening, nesterov=nesterov)]
    return _compose(links, lr, weight_decay, decoupled=decoupled, mask=mask, maximize=maximize)


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
    """
    if momentum_of not in ("update", "gradient"):
        raise ValueError(f"rmsprop: momentum_of must be 'update' or 'gradient', got {momentum_of!r}")
    if _is_zero(momentum):
        links = [scale_by_rms(decay, eps, centered=centered)]
    elif momentum_of == "update":
        links = [scale_by_rms(decay, eps, centered=centered), trace(momentum)]
    elif centered:
        raise ValueError("rmsprop: centered goes with momentum_of='update' only")
    else:
        links = [scale_momentum_by_rms(momentum, decay, eps)]
    return _compose(links, lr, weight_decay, decoupled=decoupled, mask=mask, maximize=maximize)


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
    """
    links = [scale_by_adam(beta1, beta2, eps, nesterov=nesterov, debias=debias)]
    return _compose(links, lr, weight_decay, decoupled=False, mask=mask, maximize=maximize)


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
    """
    links = [scale_by_adam(beta1, beta2, eps, nesterov=nesterov, debias=debias)]
    return _compose(links, lr, weight_decay, decoupled=True, mask=mask, maximize=maximize)


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
    """
    if form == "torch":
        link = scale_by_nadam(beta1, beta2, eps, momentum_decay)
    elif form in _NADAM_FORMS:
        link = scale_by_adam(beta1, beta2, eps, nesterov=_NADAM_FORMS[form])
    else:
        raise ValueError(f"nadam: form must be one of {['torch', *_NADAM_FORMS]}, got {form!r}")
    return _compose([link], lr, weight_decay, decoupled=decoupled, mask=mask, maximize=maximize)


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
    """
    links = [
        scale_by_radam(beta1, beta2, eps, threshold=threshold, softplus_beta=softplus_beta, eps_debiased=eps_debiased)
    ]
    return _compose(links, lr, weight_decay, decoupled=decoupled, mask=mask, maximize=maximize)


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
    """
    return _compose([scale_by_qhadam(beta1, beta2, nu1, nu2, eps)], lr, weight_decay, decoupled=decoupled, mask=mask)


def _decay_first(lr: Hyper, weight_decay: Hyper, mask: Any, step: Transform) -> Transform:
    """Decay the weights as an optimizer of its own, then take a step whose norms are those of the decayed weights."""
    return sequence(chain(set_to_zero(), add_decayed_weights(weight_decay, mask=mask), scale_by_lr(lr)), step)


def larc(
    lr: Hyper = 1e-3,
    momentum: Hyper = 0.9,
    trust_coefficient: Hyper = 0.02,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    clip: bool = True,
    decoupled: bool = True,
    mask: Any = None,
) -> Transform:
    """Layer-wise adaptive rate control, in fastai's form and with its defaults. You et al. (2017).

    The weights decay first; the ratio of each leaf is then taken from the decayed weights (decoupled), or from the
    gradient to which the decay was added.

    Args:
        lr: learning rate.
        momentum: what is kept of the buffer.
        trust_coefficient: the trust in the layer.
        eps: added to the denominator.
        weight_decay: factor of the decay, which also enters the ratio.
        clip: never take a larger step than SGD would.
        decoupled: decay the weights, not the gradient.
        mask: which leaves decay.
    """
    ratio = scale_by_larc(momentum, trust_coefficient, eps, weight_decay, clip=clip)
    if decoupled:
        return _decay_first(lr, weight_decay, mask, chain(ratio, scale_by_lr(lr)))
    return chain(add_decayed_weights(weight_decay, mask=mask), ratio, scale_by_lr(lr))


def lamb(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    *,
    form: str = "paper",
    debias: str = "weight",
    decoupled: bool = True,
    mask: Any = None,
) -> Transform:
    """Adam with a layer-wise trust ratio. You et al., "Large Batch Optimization for Deep Learning" (2020).

    ``u = m̂/(√v̂ + eps) + weight_decay·p``, ``p ← p - lr·(‖p‖/‖u‖)·u``, leaf by leaf.

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        form: ``"paper"``: 2-norms, the decay inside ``u``, no cut, as in optax. ``"notebook"``: root mean squares, the
            ratio cut at 10, a leaf of zeros stays (fastai's notebook). ``"fastai"``: the same norms and cut, but the
            decay stands outside: the weights decay first, ``u`` is without it, and a leaf of zeros moves (fastai's
            library).
        debias: see :func:`scale_by_adam <functopt.scale_by_adam>`; it matters when the betas change between steps.
        decoupled: only for ``"fastai"``: if false the decay is added to the gradient.
        mask: which leaves decay.

    Raises:
        ValueError: ``form`` has another value, or ``decoupled=False`` with another form than ``"fastai"``.
    """
    if form not in ("paper", "notebook", "fastai"):
        raise ValueError(f"lamb: form must be 'paper', 'notebook' or 'fastai', got {form!r}")
    if form != "fastai" and not decoupled:
        raise ValueError("lamb: decoupled=False is for form='fastai'")
    moments, decay = scale_by_adam(beta1, beta2, eps, debias=debias), add_decayed_weights(weight_decay, mask=mask)
    if form == "paper":
        ratio = scale_by_trust_ratio()
    else:
        ratio = scale_by_trust_ratio(max_ratio=10.0, norm="rms", one_at_zero=form == "fastai")
    step = [rename(ratio, eps="trust_eps"), scale_by_lr(lr)]
    if form != "fastai":
        return chain(moments, decay, *step)
    return _decay_first(lr, weight_decay, mask, chain(moments, *step)) if decoupled else chain(decay, moments, *step)


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
    """
    fast = radam(
        lr, beta1, beta2, eps, weight_decay, softplus_beta=softplus_beta,
        eps_debiased=True, decoupled=decoupled, mask=mask,
    )  # fmt: skip
    return lookahead(fast, sync_period, slow_step_size)
