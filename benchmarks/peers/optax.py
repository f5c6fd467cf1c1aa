"""optax under jit, its parameters and state donated."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.peers import (
    BETAS,
    EMA_DECAY,
    EPS,
    L2,
    LION_BETAS,
    LR,
    MAX_NORM,
    MOMENTUM,
    WEIGHT_DECAY,
    Arrays,
    Contender,
)
from benchmarks.worker import NotOfferedError


def build(form: str, optimizer: str, params: Arrays, grads: Arrays) -> Contender:
    """Return optax's optimizer."""
    jax: Any = import_module("jax")
    optax: Any = import_module("optax")
    tx = _make(optax, optimizer)
    averaged = optimizer == "chain"

    def update(carry: Any, grads: Any) -> Any:
        params, state, average = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return params, state, optax.incremental_update(params, average, 1 - EMA_DECAY) if averaged else ()

    own, given = jax.device_put(params), jax.device_put(grads)
    average = jax.tree.map(jax.numpy.copy, own) if averaged else ()
    carry, compiled = (own, tx.init(own), average), jax.jit(update, donate_argnums=0)

    def step() -> None:
        nonlocal carry
        carry = jax.block_until_ready(compiled(carry, given))

    return Contender(step, lambda: [np.asarray(leaf) for leaf in carry[0]])


def _make(optax: Any, optimizer: str) -> Any:
    adam = {"b1": BETAS[0], "b2": BETAS[1], "eps": EPS, "weight_decay": WEIGHT_DECAY}
    makers = {
        "adamw": lambda: optax.adamw(LR, **adam),
        "sgd": lambda: optax.chain(optax.add_decayed_weights(L2), optax.sgd(LR, MOMENTUM)),
        "lion": lambda: optax.lion(LR, *LION_BETAS, weight_decay=WEIGHT_DECAY),
        "lamb": lambda: optax.lamb(LR, **adam),
        "adafactor_optax": lambda: optax.adafactor(LR),
        "chain": lambda: optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(LR, **adam)),
    }
    if optimizer not in makers:
        raise NotOfferedError(f"optax has no {optimizer} in this form")
    return makers[optimizer]()
