"""HeavyBall, with what it compiles by default."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.peers import BETAS, EPS, L2, LR, MOMENTUM, WEIGHT_DECAY, Arrays, Contender
from benchmarks.peers.torch_optim import parameters, torch_step, values
from benchmarks.worker import NotOfferedError


def build(form: str, optimizer: str, params: Arrays, grads: Arrays) -> Contender:
    """Return HeavyBall's optimizer; its steps drop the gradients, so they are put back before each."""
    heavyball: Any = import_module("heavyball")
    variables = parameters(params, grads)
    kept = [param.grad for param in variables]
    if optimizer in ("adamw", "chain"):
        own = heavyball.AdamW(variables, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    elif optimizer == "sgd":
        own = heavyball.SGD(variables, lr=LR, beta=MOMENTUM, weight_decay=L2)
    else:
        raise NotOfferedError(f"HeavyBall has no {optimizer}")

    def prepare() -> None:
        for param, grad in zip(variables, kept, strict=True):
            param.grad = grad

    return Contender(torch_step(own.step, optimizer, variables), lambda: values(variables), prepare)
