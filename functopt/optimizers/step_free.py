"""Recipes that find their learning rate, or average the need for its schedule away."""

from __future__ import annotations

from typing import Any

from functopt import tree
from functopt.base import Transform
from functopt.combine import chain, rename
from functopt.optimizers.common import Hyper, compose
from functopt.transforms.cocob import scale_by_cocob
from functopt.transforms.dadapt import scale_by_dadapt_adam, scale_by_prodigy
from functopt.transforms.decay import add_decayed_weights
from functopt.transforms.dog import scale_by_dog, scale_by_dowg
from functopt.transforms.momo import scale_by_momo, scale_by_momo_adam
from functopt.transforms.polyak import scale_by_polyak
from functopt.transforms.rms import scale_by_rms
from functopt.transforms.scaling import scale_by_lr
from functopt.wrappers.schedule_free import schedule_free

__all__ = [
    "cocob",
    "dadapt_adamw",
    "dog",
    "dowg",
    "momo",
    "momo_adam",
    "polyak_sgd",
    "prodigy",
    "schedule_free_adamw",
    "schedule_free_sgd",
]


def dog(
    lr: Hyper = 1.0,
    init_step: Hyper = 1e-6,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    init_step_type: str = "heuristic",
    mask: Any = None,
) -> Transform:
    """SGD whose step size is the distance it has come over the root of all squared gradients.

    ``g ← g + weight_decay·p``, ``r ← max(r, ‖p - p₀‖)``, ``G ← G + ‖g‖²``, ``p ← p - lr·r/√(G + eps)·g``. Ivgi, Hinder
    & Carmon, "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule" (2023), who advise to average the
    iterates: ``chain(dog(), average_params(0.999))``.

    Args:
        lr: a factor, for schedules; the rate itself is found.
        init_step: what the first step is made of, see :func:`scale_by_dog <functopt.scale_by_dog>`: 1e-6, or 1e-4 with
            batch normalisation.
        eps: added under the root.
        weight_decay: factor of the L2 term.
        init_step_type: what ``init_step`` is: ``"heuristic"``, ``"distance"`` or ``"learning_rate"``.
        mask: which leaves decay.

    Raises:
        ValueError: ``init_step_type`` has another value.

    >>> tx = dog(init_step=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8553, -2.2894])}
    """
    links = [scale_by_dog(init_step, eps, init_step_type=init_step_type)]
    return compose(links, lr, weight_decay, decoupled=False, mask=mask)


def dowg(
    lr: Hyper = 1.0,
    init_estim_sq_dist: Hyper = 1e-4,
    eps: Hyper = 1e-4,
    weight_decay: Hyper = 0.0,
    *,
    mask: Any = None,
) -> Transform:
    """SGD as :func:`dog`, with the gradients weighted by the distance at which they were met.

    ``g ← g + weight_decay·p``, ``d ← max(d, ‖p - p₀‖²)``, ``v ← v + d·‖g‖²``, ``p ← p - lr·d/(√v + eps)·g``. Khaled,
    Mishchenko & Jin, "DoWG Unleashed: An Efficient Universal Parameter-Free Gradient Descent Method" (2023).

    Args:
        lr: a factor, for schedules; the rate itself is found.
        init_estim_sq_dist: what ``d`` begins with. optax begins with ``eps`` unless told otherwise.
        eps: added to the denominator.
        weight_decay: factor of the L2 term.
        mask: which leaves decay.

    >>> tx = dowg(init_estim_sq_dist=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8586, -2.2828])}
    """
    return compose([scale_by_dowg(init_estim_sq_dist, eps)], lr, weight_decay, decoupled=False, mask=mask)


def polyak_sgd(
    lr: Hyper = 1.0,
    max_learning_rate: Hyper = 1.0,
    f_min: Hyper = 0.0,
    eps: Hyper = 0.0,
    *,
    variant: str = "sps",
    form: str = "paper",
) -> Transform:
    """SGD with Polyak's step size, which a known least value of the loss gives.

    ``p ← p - lr·min((f - f_min)/(‖g‖² + eps), max_learning_rate)·g``, where ``f`` is the extra ``value``: call
    ``update(..., value=loss)``. Loizou, Vaswani, Laradji & Lacoste-Julien, "Stochastic Polyak Step-size for SGD: An
    Adaptive Learning Rate for Fast Convergence" (2021).

    Args:
        lr: a factor, for schedules; optax's ``scaling``.
        max_learning_rate: a bound on the step size.
        f_min: the least value that the loss can have.
        eps: added to the denominator.
        variant: ``"sps"``, which ascends where ``f < f_min``, or ``"sps+"``, which then stays.
        form: ``"paper"``, as above. ``"optax"``, which scales first and takes the norm of ``lr·g``: twice the ``lr`` is
            half the step, against what its documentation says.

    Raises:
        ValueError: ``variant`` or ``form`` has another value.
        TypeError: at the step: the extra ``value`` is missing.

    >>> tx = polyak_sgd()
    >>> tx.update(grads, tx.init(params), params, value=torch.tensor(0.5))[0]
    {'w': tensor([ 0.8000, -2.4000])}
    """
    if form not in ("paper", "optax"):
        raise ValueError(f"polyak_sgd: form must be 'paper' or 'optax', got {form!r}")
    links = [scale_by_polyak(f_min, max_learning_rate, eps, variant=variant), scale_by_lr(lr)]
    return chain(*(links if form == "paper" else reversed(links)))


def cocob(
    lr: Hyper = 1.0, alpha: Hyper = 100.0, eps: Hyper = 1e-8, weight_decay: Hyper = 0.0, *, mask: Any = None
) -> Transform:
    """Bet on the sign of every entry of the gradient: no learning rate at all.

    With ``g ← lr·(g + weight_decay·p)``: ``L ← max(L, |g|)``, ``G ← G + |g|``, ``R ← max(R - g·(p - p₀), 0)``,
    ``θ ← θ - g``, ``p ← p₀ + θ·(L + R)/(L·max(G + L, alpha·L))``. Orabona & Tommasi, "Training Deep Networks without
    Learning Rates Through Coin Betting" (2017).

    Args:
        lr: a factor of the gradient. The rule does not care for the gradient's size, so it matters where it changes.
        alpha: the larger, the smaller the first steps are.
        eps: the least ``L``, by which is divided.
        weight_decay: factor of the L2 term.
        mask: which leaves decay.

    >>> tx = cocob(alpha=10.0)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    return chain(
        add_decayed_weights(weight_decay, mask=mask), scale_by_lr(lr, flip_sign=False), scale_by_cocob(alpha, eps)
    )


def dadapt_adamw(
    lr: Hyper = 1.0,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    estim_lr0: Hyper = 1e-6,
    weight_decay: Hyper = 0.0,
    *,
    bias_correction: bool = True,
) -> Transform:
    """AdamW that finds its learning rate by D-Adaptation.

    ``p ← p - m/(√v + eps) - λ·weight_decay·p`` with ``λ = d·lr·√(1 - β2^t)/(1 - β1^t)``, where ``m`` is the average of
    ``λ·g`` and ``d`` is a growing lower bound of the distance to the solution, by
    :func:`scale_by_dadapt_adam <functopt.scale_by_dadapt_adam>`. Defazio & Mishchenko, "Learning-Rate-Free Learning by
    D-Adaptation" (2023).

    Args:
        lr: a factor, for schedules; the rate itself is found.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        estim_lr0: the first ``d``, which should be too small.
        weight_decay: factor of the decay; to decay some leaves only, a tree with 0 for the others.
        bias_correction: as optax; if false ``λ = d·lr``, the default of the authors' package.

    >>> tx = dadapt_adamw(estim_lr0=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    return chain(scale_by_dadapt_adam(lr, beta1, beta2, eps, estim_lr0, weight_decay, bias_correction=bias_correction))


def prodigy(
    lr: Hyper = 1.0,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    beta3: Hyper = None,
    eps: Hyper = 1e-8,
    estim_lr0: Hyper = 1e-6,
    estim_lr_coef: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    *,
    safeguard_warmup: bool = False,
    bias_correction: bool = True,
) -> Transform:
    """AdamW that finds its learning rate, faster than :func:`dadapt_adamw` does.

    ``p ← p - λ·(m/(√v + d·eps) + weight_decay·p)`` with ``λ = d·lr·√(1 - β2^t)/(1 - β1^t)``, where ``m`` and ``v`` are
    the averages of ``d·g`` and of its square, and ``d`` is a growing lower bound of the distance to the solution, by
    :func:`scale_by_prodigy <functopt.scale_by_prodigy>`. Mishchenko & Defazio, "Prodigy: An Expeditiously Adaptive
    Parameter-Free Learner" (2024).

    Args:
        lr: a factor, for schedules; the rate itself is found.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        beta3: what is kept of the sums of which the estimate is made; by default the root of ``beta2`` as given here.
        eps: added to the denominator.
        estim_lr0: the first ``d``, which should be too small.
        estim_lr_coef: a factor of the estimate.
        weight_decay: factor of the decay; to decay some leaves only, a tree with 0 for the others.
        safeguard_warmup: keep a warm-up of ``lr`` from making the estimate too large.
        bias_correction: as optax; if false ``λ = d·lr``, the default of the authors' package.

    >>> tx = prodigy(estim_lr0=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    beta3 = tree.map(lambda b: b**0.5, beta2) if beta3 is None else beta3
    options: Any = {"safeguard_warmup": safeguard_warmup, "bias_correction": bias_correction}
    return chain(scale_by_prodigy(lr, beta1, beta2, beta3, eps, estim_lr0, estim_lr_coef, weight_decay, **options))


def momo(
    lr: Hyper = 1.0,
    beta: Hyper = 0.9,
    lower_bound: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    *,
    adapt_lower_bound: bool = False,
    form: str = "optax",
) -> Transform:
    """SGD with momentum whose step size a model of the loss bounds.

    ``p ← p/(1 + lr·weight_decay) - τ·m`` with ``τ`` at most ``lr``, and no larger than what takes an average of linear
    models of the loss to its lower bound, see :func:`scale_by_momo <functopt.scale_by_momo>`. The loss is the extra
    ``value``: call ``update(..., value=loss)``. Schaipp, Ohana, Eickenberg, Defazio & Gower, "MoMo: Momentum Models for
    Adaptive Learning Rates" (2024).

    Args:
        lr: the largest step size.
        beta: what is kept of the averages.
        lower_bound: the least value that the loss can have.
        weight_decay: factor of the decay.
        adapt_lower_bound: estimate the bound on the way, from ``lower_bound`` on. The estimate may come to rest above
            the least value, and the steps with it, above all if the loss has no noise.
        form: ``"optax"``, as above; ``"paper"``, where the decay shrinks the step too, as in the authors' package.

    Raises:
        ValueError: ``form`` has another value.
        TypeError: at the step: the extra ``value`` is missing.

    >>> tx = momo()
    >>> tx.update(grads, tx.init(params), params, value=torch.tensor(0.5))[0]
    {'w': tensor([ 0.8000, -2.4000])}
    """
    options: Any = {"adapt_lower_bound": adapt_lower_bound, "form": form}
    return chain(scale_by_momo(lr, beta, lower_bound, weight_decay, **options))


def momo_adam(
    lr: Hyper = 1e-2,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    lower_bound: Hyper = 0.0,
    weight_decay: Hyper = 0.0,
    *,
    adapt_lower_bound: bool = False,
    form: str = "optax",
) -> Transform:
    """Adam whose step size a model of the loss bounds.

    ``p ← p/(1 + lr·weight_decay) - τ·m/(√v̂ + eps)`` with ``τ`` at most ``lr/(1 - β1^t)``, see
    :func:`scale_by_momo_adam <functopt.scale_by_momo_adam>`. The loss is the extra ``value``: call
    ``update(..., value=loss)``. Schaipp, Ohana, Eickenberg, Defazio & Gower, "MoMo: Momentum Models for Adaptive
    Learning Rates" (2024).

    Args:
        lr: the largest step size.
        beta1: what is kept of the means.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        lower_bound: the least value that the loss can have.
        weight_decay: factor of the decay.
        adapt_lower_bound: estimate the bound on the way, from ``lower_bound`` on. The estimate may come to rest above
            the least value, and the steps with it, above all if the loss has no noise.
        form: ``"optax"``, as above; ``"paper"``, where the decay shrinks the step too, as in the authors' package.

    Raises:
        ValueError: ``form`` has another value.
        TypeError: at the step: the extra ``value`` is missing.

    >>> tx = momo_adam(lr=0.1)
    >>> tx.update(grads, tx.init(params), params, value=torch.tensor(0.5))[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    options: Any = {"adapt_lower_bound": adapt_lower_bound, "form": form}
    return chain(scale_by_momo_adam(lr, beta1, beta2, eps, lower_bound, weight_decay, **options))


def schedule_free_sgd(
    lr: Hyper = 1.0,
    beta1: Hyper = 0.9,
    weight_decay: Hyper = 0.0,
    weight_lr_power: Hyper = 2.0,
    warmup_steps: Hyper = 0,
    *,
    warmup_from_zero: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
) -> Transform:
    """SGD that averages its iterates and needs no schedule.

    ``z ← z - lr·(g + weight_decay·y)``, ``x ← x + c·(z - x)``, ``y ← β1·x + (1 - β1)·z``, where ``y`` are the
    parameters and ``x`` is what to evaluate: ``eval_params(state, params)``. Defazio et al., "The Road Less Scheduled"
    (2024).

    Args:
        lr: learning rate.
        beta1: how close to the average gradients are taken, in (0, 1).
        weight_decay: factor of the decay.
        weight_lr_power: how little small learning rates count, see :func:`schedule_free <functopt.schedule_free>`.
        warmup_steps: steps over which ``lr`` grows to its value.
        warmup_from_zero: as in optax the first of them is none. The authors begin with ``lr/warmup_steps``.
        mask: which leaves decay.
        state_dtype: the dtype of ``z``, if it is not that of the parameters.

    >>> tx = schedule_free_sgd(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9500, -2.1000])}
    """
    options: Any = {"warmup_from_zero": warmup_from_zero, "state_dtype": state_dtype}
    inner = compose([], lr, weight_decay, decoupled=False, mask=mask)
    return rename(schedule_free(inner, beta1, weight_lr_power, warmup_steps, **options), beta="beta1")


def schedule_free_adamw(
    lr: Hyper = 0.0025,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    weight_lr_power: Hyper = 2.0,
    warmup_steps: Hyper = 0,
    *,
    warmup_from_zero: bool = False,
    mask: Any = None,
    state_dtype: Any = None,
) -> Transform:
    """AdamW that averages its iterates in the place of momentum and needs no schedule.

    ``z ← z - lr·(g/(√v̂ + eps) + weight_decay·y)``, ``x ← x + c·(z - x)``, ``y ← β1·x + (1 - β1)·z``, where ``y`` are
    the parameters and ``x`` is what to evaluate: ``eval_params(state, params)``. Defazio et al., "The Road Less
    Scheduled" (2024).

    A further hyper, ``initial_scale``, is that of :func:`scale_by_rms <functopt.scale_by_rms>`: 0.

    Args:
        lr: learning rate.
        beta1: how close to the average gradients are taken, in (0, 1).
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        weight_lr_power: how little small learning rates count, see :func:`schedule_free <functopt.schedule_free>`.
        warmup_steps: steps over which ``lr`` grows to its value.
        warmup_from_zero: as in optax the first of them is none. The authors begin with ``lr/warmup_steps``.
        mask: which leaves decay.
        state_dtype: the dtype of ``z``, if it is not that of the parameters.

    >>> tx = schedule_free_adamw(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    options: Any = {"warmup_from_zero": warmup_from_zero, "state_dtype": state_dtype}
    preconditioner = rename(scale_by_rms(beta2, eps, bias_correction=True), decay="beta2")
    inner = compose([preconditioner], lr, weight_decay, decoupled=True, mask=mask)
    return rename(schedule_free(inner, beta1, weight_lr_power, warmup_steps, **options), beta="beta1")
