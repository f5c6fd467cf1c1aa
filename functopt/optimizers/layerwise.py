"""Recipes whose step is relative to the size of each leaf: LARS, LARC, LAMB, Fromage and Adafactor."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain, rename, sequence
from functopt.optimizers.common import Hyper, compose, is_zero
from functopt.transforms.adaptive import scale_by_adam
from functopt.transforms.block import clip_by_block_rms, scale_by_param_block_rms
from functopt.transforms.decay import add_decayed_weights
from functopt.transforms.factored import scale_by_factored_rms, scale_by_relative_step
from functopt.transforms.fromage import scale_by_fromage
from functopt.transforms.momentum import ema, trace
from functopt.transforms.scaling import scale, scale_by_lr, set_to_zero
from functopt.transforms.trust import scale_by_larc, scale_by_trust_ratio

__all__ = ["adafactor", "fromage", "lamb", "larc", "lars"]


def adafactor(
    lr: Hyper = 1e-2,
    decay_rate: Hyper = 0.8,
    eps: Hyper | None = None,
    weight_decay: Hyper = 0.0,
    clipping_threshold: Hyper = 1.0,
    min_scale: Hyper = 1e-3,
    momentum: Hyper = 0.0,
    step_offset: Hyper = 0,
    *,
    form: str = "torch",
    factored: bool = True,
    min_dim_size_to_factor: int | None = None,
    multiply_by_parameter_scale: bool = True,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Adam's scaling in sublinear memory: of second moments only the means of rows and columns are kept.

    ``û = g/√v`` with the factored ``v`` of :func:`scale_by_factored_rms <functopt.scale_by_factored_rms>`, shrunk to
    ``rms(û) ≤ clipping_threshold`` and scaled by ``max(rms(p), min_scale)``, leaf by leaf. Shazeer & Stern,
    "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (2018).

    Args:
        lr: learning rate, relative to the size of the parameters.
        decay_rate: how fast the memory of ``v`` grows (torch: ``-beta2_decay``).
        eps: by default what the form says.
        weight_decay: factor of the decay.
        clipping_threshold: the largest root mean square of ``û`` (torch: ``d``); infinity for none.
        min_scale: the least scale (torch: ``eps[1]``).
        momentum: what is kept of the average of the scaled ``û``; the number 0 leaves it out, and with it the hyper.
        step_offset: see :func:`scale_by_factored_rms <functopt.scale_by_factored_rms>`.
        form: ``"torch"``: as ``torch.optim.Adafactor``. The last two axes are factored, ``eps`` is the least that is
            divided by (default 0: the precision of the dtype), the step is ``min(lr, 1/√t)`` and the decay
            ``lr·weight_decay·p``. ``"optax"``: as ``optax.adafactor``. The two largest axes are factored if they are
            long enough, ``eps`` is added to the squares (default: 1e-30), the step is ``lr`` and the decay
            ``weight_decay·p``, without ``lr``.
        factored: if false, ``v`` is kept whole.
        min_dim_size_to_factor: both axes must be at least this long; by default 1 in torch's form, 128 in optax's.
        multiply_by_parameter_scale: if false, ``lr`` is absolute, and there is no ``min_scale``.
        mask: which leaves decay.
        maximize: ascend.

    Raises:
        ValueError: ``form`` has another value.

    >>> tx = adafactor(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8419, -2.1581])}
    """
    if form not in ("torch", "optax"):
        raise ValueError(f"adafactor: form must be 'torch' or 'optax', got {form!r}")
    as_torch = form == "torch"
    own_eps, own_size = (0.0, 1) if as_torch else (1e-30, 128)
    moments = scale_by_factored_rms(
        decay_rate,
        step_offset,
        own_eps if eps is None else eps,
        factored=factored,
        min_dim_size_to_factor=own_size if min_dim_size_to_factor is None else min_dim_size_to_factor,
        axes="last" if as_torch else "largest",
        eps_as_floor=as_torch,
    )
    clipped = [moments, rename(clip_by_block_rms(clipping_threshold), threshold="clipping_threshold")]
    sized = [scale_by_param_block_rms(min_scale)] if multiply_by_parameter_scale else []
    if not is_zero(momentum):
        sized.append(rename(ema(momentum, debias=False), decay="momentum"))
    if as_torch:
        links = [*clipped, *sized, scale_by_relative_step(lr)]
        return compose(links, lr, weight_decay, decoupled=True, mask=mask, maximize=maximize)
    ascent = [scale(-1.0)] if maximize else []
    decay = add_decayed_weights(weight_decay, mask=mask)
    return chain(*ascent, *clipped, scale_by_lr(lr, flip_sign=False), *sized, decay, scale(-1.0))


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
    """Layer-wise adaptive rate control, in fastai's form and with its defaults.

    You et al., "Large Batch Training of Convolutional Networks" (2017). The weights decay first; the ratio of each leaf
    is then taken from the decayed weights (decoupled), or from the gradient to which the decay was added.

    Args:
        lr: learning rate.
        momentum: what is kept of the buffer.
        trust_coefficient: the trust in the layer.
        eps: added to the denominator.
        weight_decay: factor of the decay, which also enters the ratio.
        clip: never take a larger step than SGD would.
        decoupled: decay the weights, not the gradient.
        mask: which leaves decay.

    >>> tx = larc(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9980, -2.0040])}
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
    """Adam with a layer-wise trust ratio.

    You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes" (2020).

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

    >>> tx = lamb(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8419, -2.1581])}
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


def lars(
    lr: Hyper = 0.1,
    weight_decay: Hyper = 0.0,
    trust_coefficient: Hyper = 1e-3,
    eps: Hyper = 0.0,
    momentum: Hyper = 0.9,
    *,
    nesterov: bool = False,
    mask: Any = None,
    trust_ratio_mask: Any = None,
) -> Transform:
    """Layer-wise adaptive rate scaling: momentum SGD whose steps are a part of the size of each leaf.

    ``g ← g + weight_decay·p``, ``m ← momentum·m + lr·trust_coefficient·‖p‖/(‖g‖ + eps)·g``, leaf by leaf, and
    ``p ← p - m``. You et al., "Large Batch Training of Convolutional Networks" (2017).

    The learning rate stands before the momentum, so that a change of it acts gradually.

    Args:
        lr: learning rate.
        weight_decay: factor of the L2 term.
        trust_coefficient: the part of its size that a leaf moves by where ``lr`` is 1.
        eps: added to the norm of the gradient.
        momentum: what is kept of the buffer.
        nesterov: look ahead.
        mask: which leaves decay.
        trust_ratio_mask: which leaves are scaled; the others take plain steps of ``lr``. Biases and gains mostly do.

    >>> tx = lars()
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9999, -2.0002])}
    """
    ratio = scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps, mask=trust_ratio_mask)
    return chain(
        add_decayed_weights(weight_decay, mask=mask), ratio, scale_by_lr(lr), trace(momentum, nesterov=nesterov)
    )


def fromage(lr: Hyper = 1e-2, min_norm: Hyper = 1e-6) -> Transform:
    """Steps as long as a part of each leaf, made shorter again afterwards, with the paper's learning rate.

    ``p ← (p - lr·‖p‖/‖g‖·g)/√(1 + lr²)``, leaf by leaf. Bernstein et al., "On the distance between two neural networks
    and the stability of learning" (2020).

    Args:
        lr: learning rate.
        min_norm: both norms are raised to this at least.

    >>> tx = fromage(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8955, -2.1891])}
    """
    return chain(scale_by_trust_ratio(min_norm), scale_by_fromage(lr))
