"""torch.optim: for-loop, foreach, fused, and compiled with the learning rate in a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import BETAS, EMA_DECAY, EPS, L2, LR, MAX_NORM, MOMENTUM, WEIGHT_DECAY, Arrays, Contender
from benchmarks.worker import NotOfferedError

FORMS: dict[str, dict[str, Any]] = {
    "torch for-loop": {"foreach": False},
    "torch foreach": {"foreach": True},
    "torch fused": {"fused": True},
    "torch compiled": {"foreach": False},  # a tensor for the rate goes with it only, on a CPU
}


def build(form: str, optimizer: str, params: Arrays, grads: Arrays) -> Contender:
    """Return one of the forms."""
    variables, options, compiled = parameters(params, grads), FORMS[form], form == "torch compiled"
    own = _make(optimizer, variables, torch.tensor(LR) if compiled else LR, options)
    step = torch_step(own.step, optimizer, variables, options.get("foreach"))
    return Contender(torch.compile(step) if compiled else step, lambda: values(variables))


def parameters(params: Arrays, grads: Arrays) -> list[torch.nn.Parameter]:
    """Return parameters with their gradients."""
    out = [torch.nn.Parameter(tensor) for tensor in tensors(params)]
    for param, grad in zip(out, tensors(grads), strict=True):
        param.grad = grad
    return out


def tensors(arrays: Arrays) -> list[Tensor]:
    """Return tensors in memory of torch's own, whose alignment its kernels count on; NumPy's is less."""
    return [torch.from_numpy(array).clone() for array in arrays]


def values(params: list[torch.nn.Parameter]) -> Arrays:
    """Return what parameters hold."""
    return [param.detach().numpy() for param in params]


def refill(params: list[torch.nn.Parameter], grads: Arrays) -> Callable[[], None]:
    """Return what puts gradients back that a step has overwritten."""
    kept = tensors(grads)

    def prepare() -> None:
        for param, grad in zip(params, kept, strict=True):
            assert param.grad is not None
            param.grad.copy_(grad)

    return prepare


def torch_step(
    step: Callable[[], Any], optimizer: str, params: list[torch.nn.Parameter], foreach: bool | None = None
) -> Callable[[], Any]:
    """Return the step; for the chain between torch's clipping and an average of the parameters."""
    if optimizer != "chain":
        return step
    averages = [param.detach().clone() for param in params]
    foreach_lerp: Any = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
    new: list[Tensor] = [param.detach() for param in params]

    def chain() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=foreach)
        step()
        if foreach is False:
            for average, param in zip(averages, new, strict=True):
                average.lerp_(param, 1 - EMA_DECAY)
        else:
            foreach_lerp(averages, new, 1 - EMA_DECAY)  # as AveragedModel does

    return chain


def _make(optimizer: str, params: list[torch.nn.Parameter], lr: Any, form: dict[str, Any]) -> torch.optim.Optimizer:
    if optimizer in ("adamw", "chain"):
        return torch.optim.AdamW(params, lr, BETAS, EPS, WEIGHT_DECAY, **form)
    if optimizer == "sgd":
        return torch.optim.SGD(params, lr, MOMENTUM, weight_decay=L2, **form)
    if optimizer == "adafactor" and "fused" not in form:
        return torch.optim.Adafactor(params, lr, **form)
    raise NotOfferedError(f"torch.optim has no such {optimizer}")
