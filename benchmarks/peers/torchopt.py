"""TorchOpt: its torch-like optimizers, which write in place."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.peers import BETAS, EPS, L2, LR, MOMENTUM, WEIGHT_DECAY, Arrays, Contender
from benchmarks.peers.torch_optim import parameters, refill, torch_step, values
from benchmarks.worker import NotOfferedError


def build(form: str, optimizer: str, params: Arrays, grads: Arrays) -> Contender:
    """Return TorchOpt's optimizer; its steps overwrite the gradients, so they are put back before each."""
    torchopt: Any = import_module("torchopt")
    variables = parameters(params, grads)
    if optimizer in ("adamw", "chain"):
        own = torchopt.AdamW(variables, LR, BETAS, EPS, WEIGHT_DECAY)
    elif optimizer == "sgd":
        own = torchopt.SGD(variables, LR, MOMENTUM, weight_decay=L2)
    else:
        raise NotOfferedError(f"TorchOpt has no {optimizer}")
    return Contender(torch_step(own.step, optimizer, variables), lambda: values(variables), refill(variables, grads))
