"""Recipes that divide by a maximum over the steps: Adamax and AMSGrad."""

from __future__ import annotations

from typing import Any

from functopt.base import Transform
from functopt.combine import chain
from functopt.optimizers.common import Hyper, compose
from functopt.transforms.maxima import scale_by_adamax, scale_by_amsgrad
from functopt.transforms.scaling import scale_by_lr

__all__ = ["adamax", "adamaxw", "amsgrad"]


def adamax(
    lr: Hyper = 2e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 0.0,
    *,
    mask: Any = None,
    maximize: bool = False,
) -> Transform:
    """Adam in the infinity norm with L2 regularisation, as ``torch.optim.Adamax``.

    ``v ← max(β2·v, |g| + eps)``, ``p ← p - lr·m̂/v``. Kingma & Ba, "Adam: A Method for Stochastic Optimization" (2015).

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the maximum.
        eps: added to the size of the gradient.
        weight_decay: factor of the L2 term.
        mask: which leaves decay.
        maximize: ascend.

    >>> tx = adamax(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    links = [scale_by_adamax(beta1, beta2, eps)]
    return compose(links, lr, weight_decay, decoupled=False, mask=mask, maximize=maximize)


def adamaxw(
    lr: Hyper = 2e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    weight_decay: Hyper = 1e-4,
    *,
    mask: Any = None,
) -> Transform:
    """Adam in the infinity norm with decoupled weight decay.

    ``v ← max(β2·v, |g| + eps)``, ``p ← p - lr·(m̂/v + weight_decay·p)``. Kingma & Ba, "Adam: A Method for Stochastic
    Optimization" (2015); Loshchilov & Hutter, "Decoupled Weight Decay Regularization" (2019).

    Args:
        lr: learning rate; it multiplies the decay too.
        beta1: what is kept of the mean.
        beta2: what is kept of the maximum.
        eps: added to the size of the gradient.
        weight_decay: factor of the decay.
        mask: which leaves decay.

    >>> tx = adamaxw(lr=0.1, weight_decay=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.8900, -2.0800])}
    """
    return compose([scale_by_adamax(beta1, beta2, eps)], lr, weight_decay, decoupled=True, mask=mask)


def amsgrad(
    lr: Hyper = 1e-3,
    beta1: Hyper = 0.9,
    beta2: Hyper = 0.999,
    eps: Hyper = 1e-8,
    eps_root: Hyper = 0.0,
    *,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool | str = True,
) -> Transform:
    """Adam that divides by the largest second moment so far.

    ``w ← max(w, v̂)``, ``p ← p - lr·m̂/(√(w + eps_root) + eps)``. Reddi, Kale & Kumar, "On the Convergence of Adam and
    Beyond" (2018). torch's form is ``adam(amsgrad=True)``, or ``bias_correction_nu="after"`` here; the paper's is with
    both corrections false.

    Args:
        lr: learning rate.
        beta1: what is kept of the mean.
        beta2: what is kept of the mean square.
        eps: added to the denominator.
        eps_root: added under the root.
        bias_correction_mu: see :func:`scale_by_amsgrad <functopt.scale_by_amsgrad>`.
        bias_correction_nu: likewise.

    Raises:
        ValueError: a number is out of range, or ``bias_correction_nu`` has another value.

    >>> tx = amsgrad(lr=0.1)
    >>> tx.update(grads, tx.init(params), params)[0]
    {'w': tensor([ 0.9000, -2.1000])}
    """
    link = scale_by_amsgrad(
        beta1, beta2, eps, eps_root, bias_correction_mu=bias_correction_mu, bias_correction_nu=bias_correction_nu
    )
    return chain(link, scale_by_lr(lr))
