"""Recipes that look at matrices, or at the curvature: Muon, GaLore, SOAP and Sophia."""

from __future__ import annotations

from typing import Any

import torch

from functopt.base import Transform
from functopt.combine import chain, rename
from functopt.dimensions import DimensionNumbers, MatrixLeaves
from functopt.linalg import Coefficients
from functopt.optimizers.common import Hyper, compose
from functopt.transforms.adaptive import scale_by_adam
from functopt.transforms.decay import add_decayed_weights, shrink_weights
from functopt.transforms.hutchinson import hutchinson_estimator_diag_hessian
from functopt.transforms.orthogonal import scale_by_muon, scale_by_shape
from functopt.transforms.scaling import scale, scale_by_lr
from functopt.transforms.soap import scale_by_soap
from functopt.wrappers.galore import scale_by_galore
from functopt.wrappers.masking import masked
from functopt.wrappers.sophia import scale_by_sophia

__all__ = ["galore", "muon", "soap", "sophia"]


def muon(
    lr: Hyper = 1e-3,
    momentum: Hyper = 0.95,
    eps: Hyper = 1e-7,
    weight_decay: Hyper = 0.1,
    adam_beta1: Hyper = 0.9,
    adam_beta2: Hyper = 0.999,
    adam_eps_root: Hyper = 0.0,
    adam_weight_decay: Hyper = 0.0,
    adam_lr: Hyper | None = None,
    consistent_rms: Hyper | None = None,
    *,
    form: str = "torch",
    nesterov: bool = True,
    adaptive: bool = False,
    ns_coeffs: Coefficients = "standard",
    ns_steps: int | None = None,
    ns_dtype: torch.dtype | None = None,
    preconditioning: str = "frobenius",
    adjust_lr_fn: str = "original",
    muon_weight_dimension_numbers: DimensionNumbers = None,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Orthogonalised momentum for matrices, as ``torch.optim.Muon``, and AdamW for everything else, as in optax.

    ``m ← momentum·m + (1 - momentum)·g``, ``p ← p - lr·(√max(1, outputs/inputs)·orthogonalize(momentum·m + (1 -
    momentum)·g) + weight_decay·p)``. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).

    ``torch.optim.Muon`` refuses what is no matrix. It orthogonalises in bfloat16: to train bit for bit the same, give
    ``ns_dtype=torch.bfloat16``. Convolutions take part with
    ``muon_weight_dimension_numbers=MuonDimensionNumbers(reduction_axis=...)``, where the dots are meant as dots.

    Args:
        lr: learning rate; it multiplies the decay too.
        momentum: what is kept of the mean (optax: ``beta``).
        eps: beside the norm that is divided by, and in AdamW's denominator (optax: 1e-8).
        weight_decay: factor of the decay of matrices (optax: 0).
        adam_beta1: AdamW's, for other leaves, as the next three.
        adam_beta2: what is kept of the mean square.
        adam_eps_root: added under the root.
        adam_weight_decay: factor of the decay.
        adam_lr: learning rate of the other leaves; by default there is one for all.
        consistent_rms: a factor for matrices; by default 0.2 with ``"match_rms_adamw"``, else 1.
        form: ``"torch"`` or ``"optax"``, see :func:`scale_by_muon <functopt.scale_by_muon>` and :func:`scale_by_shape
            <functopt.scale_by_shape>`. The step is the same but for the first looks ahead, for ``eps``, and for the
            side on which a matrix has its outputs.
        nesterov: look ahead, also in AdamW.
        adaptive: see :func:`scale_by_muon <functopt.scale_by_muon>`.
        ns_coeffs: see :func:`orthogonalize <functopt.orthogonalize>`, as the next three.
        ns_steps: how many steps.
        ns_dtype: in which to orthogonalise, by default float32 at least.
        preconditioning: what is divided by at first.
        adjust_lr_fn: how the shape scales, see :func:`scale_by_shape <functopt.scale_by_shape>`.
        muon_weight_dimension_numbers: what is a matrix, and how, see :func:`scale_by_muon <functopt.scale_by_muon>`.
        mask: which of the matrices decay.
        maximize: ascend.

    Raises:
        ValueError: an option has another value, or axes do not fit the parameters.

    >>> tx, weights = muon(lr=0.1, weight_decay=0.0, ns_coeffs="polar_express", ns_steps=8), {"w": torch.eye(2)}
    >>> tx.update({"w": torch.tensor([[3.0, 0.0], [0.0, 0.1]])}, tx.init(weights), weights)[0]["w"].round(decimals=4)
    tensor([[0.9000, 0.0000],
            [0.0000, 0.9000]])
    """
    numbers = muon_weight_dimension_numbers
    matrices, others = MatrixLeaves(numbers), MatrixLeaves(numbers, others=True)
    if consistent_rms is None:
        consistent_rms = 0.2 if adjust_lr_fn == "match_rms_adamw" else 1.0
    orthogonal = scale_by_muon(
        momentum, eps, form=form, nesterov=nesterov, adaptive=adaptive, ns_coeffs=ns_coeffs, ns_steps=ns_steps,
        ns_dtype=ns_dtype, preconditioning=preconditioning, weight_dimension_numbers=numbers,
    )  # fmt: skip
    sized = scale_by_shape(consistent_rms, form=form, adjust_lr_fn=adjust_lr_fn, weight_dimension_numbers=numbers)
    adam = chain(
        scale_by_adam(adam_beta1, adam_beta2, eps, adam_eps_root, nesterov=nesterov),
        add_decayed_weights(adam_weight_decay),
    )
    own = {name: f"adam_{name}" for name in ("beta1", "beta2", "eps_root", "weight_decay")}
    decay = add_decayed_weights(weight_decay, mask=MatrixLeaves(numbers, mask))
    if adam_lr is None:
        steps = [scale_by_lr(lr)]
    else:
        steps = [masked(scale_by_lr(lr), matrices), masked(rename(scale_by_lr(adam_lr), lr="adam_lr"), others)]
    ascent = [scale(-1.0)] if maximize else []
    return chain(*ascent, orthogonal, sized, decay, masked(rename(adam, **own), others), *steps)


def galore(
    lr: Hyper = 1e-2,
    update_proj_gap: Hyper = 200,
    scale: Hyper = 1.0,
    weight_decay: Hyper = 0.0,
    *,
    rank: int = 128,
    base_optimizer: Transform | None = None,
    side: str = "longer",
    weight_dimension_numbers: DimensionNumbers = None,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Adam on gradients projected to few dimensions, so that its state is small, as in optax.

    ``p ← p - lr·(scale·P·adam(Pᵀ·g) + weight_decay·p)``, where ``P`` are the ``rank`` leading singular vectors of a
    gradient, taken anew every ``update_proj_gap`` steps. Zhao et al., "GaLore: Memory-Efficient LLM Training by
    Gradient Low-Rank Projection" (2024).

    Args:
        lr: learning rate; it multiplies the decay too.
        update_proj_gap: steps between two decompositions. Every step computes one unless it gets the extra ``refresh``:
            see :func:`scale_by_galore <functopt.scale_by_galore>`, also for the next two.
        scale: a factor for matrices.
        weight_decay: factor of the decay.
        rank: dimensions that are kept.
        base_optimizer: what works on projections, by default ``scale_by_adam()``; its hypers are those of the result.
        side: which axis is projected, the ``"longer"`` or the ``"shorter"`` (the article).
        weight_dimension_numbers: what is a matrix, and how.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx, weights = galore(lr=0.1, rank=1), {"w": torch.zeros(2, 2)}
    >>> tx.update({"w": torch.diag(torch.tensor([2.0, 1.0]))}, tx.init(weights), weights)[0]["w"].round(decimals=4) + 0
    tensor([[-0.1000,  0.0000],
            [ 0.0000,  0.0000]])
    """
    options = {"rank": rank, "side": side, "weight_dimension_numbers": weight_dimension_numbers}
    low_rank = scale_by_galore(base_optimizer or scale_by_adam(), update_proj_gap, scale, **options)
    return compose([low_rank], lr, weight_decay, decoupled=True, mask=mask, maximize=maximize)


def soap(
    lr: Hyper = 3e-3,
    beta1: Hyper = 0.95,
    beta2: Hyper = 0.95,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-2,
    shampoo_beta: Hyper | None = None,
    precondition_frequency: Hyper = 10,
    *,
    max_precond_dim: int = 10000,
    precondition_1d: bool = False,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Adam in the eigenbasis of Shampoo's preconditioner, with the authors' defaults.

    ``p ← (p - lr·Q_L·adam(Q_Lᵀ·g·Q_R)·Q_Rᵀ)·(1 - lr·weight_decay)``. Vyas et al., "SOAP: Improving and Stabilizing
    Shampoo using Adam" (2024). Neither torch nor optax has it.

    The first step makes a basis and only decays (the authors' program does not even that).

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        weight_decay: factor of the decay.
        shampoo_beta: what is kept of the preconditioner; by default the ``beta2`` that is given here.
        precondition_frequency: steps between two bases. Every step computes one unless it gets the extra ``refresh``:
            see :func:`scale_by_soap <functopt.scale_by_soap>`, also for the next two.
        max_precond_dim: a longer axis is left alone.
        precondition_1d: whether a leaf with one axis has a basis too.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx, weights = soap(lr=0.1), {"w": torch.ones(2, 2)}
    >>> tx.update({"w": torch.ones(2, 2)}, tx.init(weights), weights)[0]["w"]
    tensor([[0.9990, 0.9990],
            [0.9990, 0.9990]])
    """
    options = {"max_precond_dim": max_precond_dim, "precondition_1d": precondition_1d}
    factor = beta2 if shampoo_beta is None else shampoo_beta
    rotated = scale_by_soap(beta1, beta2, eps, factor, precondition_frequency, **options)
    ascent = [scale(-1.0)] if maximize else []
    return chain(*ascent, rotated, scale_by_lr(lr), shrink_weights(weight_decay, lr, mask=mask))


def sophia(
    lr: Hyper = 1e-4,
    beta1: Hyper = 0.965,
    beta2: Hyper = 0.99,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-4,
    gamma: Hyper = 0.01,
    clip_threshold: Hyper = 1.0,
    update_interval: Hyper = 10,
    *,
    hessian_diagonal_fn: Transform | None = None,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Divide the mean of the gradient by an estimate of the curvature, and clip it, as in optax.

    ``p ← p - lr·(clip(m̂ / max(γ·h, eps), clip_threshold) + weight_decay·p)``. Liu et al., "Sophia: A Scalable
    Stochastic Second-order Optimizer for Language Model Pre-training" (2024), whose learning rate it has.

    It needs the extra ``value_fn``, the loss as a function of the parameters.

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the curvature.
        eps: the least that is divided by.
        weight_decay: factor of the decay.
        gamma: how far the curvature is trusted.
        clip_threshold: the largest entry; infinity for none.
        update_interval: steps between two estimates. Every step makes one unless it gets the extra ``refresh``: see
            :func:`scale_by_sophia <functopt.scale_by_sophia>`.
        hessian_diagonal_fn: what makes the estimate, by default
            :func:`hutchinson_estimator_diag_hessian <functopt.hutchinson_estimator_diag_hessian>`, whose ``seed`` is a
            hyper of the result.
        mask: which leaves decay.
        maximize: ascend: of ``value_fn`` it needs the negative, since it divides by the curvature of what is minimised.

    >>> tx = sophia(lr=0.1, weight_decay=0.0)
    >>> tx.update(grads, tx.init(params), params, value_fn=loss)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    estimate = hessian_diagonal_fn or hutchinson_estimator_diag_hessian()
    curved = scale_by_sophia(estimate, beta1, beta2, eps, gamma, clip_threshold, update_interval)
    return compose([curved], lr, weight_decay, decoupled=True, mask=mask, maximize=maximize)
