"""optimi: for-loop and foreach (its third form, Triton, has no CPU)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.peers import BETAS, EPS, L2, LION_BETAS, LR, MOMENTUM, WEIGHT_DECAY, Arrays, Contender
from benchmarks.peers.torch_optim import parameters, refill, torch_step, values
from benchmarks.worker import NotOfferedError


def build(form: str, optimizer: str, params: Arrays, grads: Arrays) -> Contender:
    """Return one of the forms; foreach takes the gradients as scratch, so they are put back before each step."""
    optimi: Any = import_module("optimi")
    variables, foreach = parameters(params, grads), form == "optimi foreach"
    if optimizer in ("adamw", "chain"):
        own = optimi.AdamW(variables, LR, BETAS, WEIGHT_DECAY, EPS, foreach=foreach, triton=False)
    elif optimizer == "sgd":
        own = optimi.SGD(variables, LR, MOMENTUM, L2, foreach=foreach, triton=False)
    elif optimizer == "lion":
        own = optimi.Lion(variables, LR, LION_BETAS, WEIGHT_DECAY, foreach=foreach, triton=False)
    else:
        raise NotOfferedError(f"optimi has no {optimizer}")
    step = torch_step(own.step, optimizer, variables, foreach)
    return Contender(step, lambda: values(variables), refill(variables, grads))
