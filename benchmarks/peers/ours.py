"""functopt: a packed tree compiled with donation, and StatefulOptimizer, compiled and eager."""

from __future__ import annotations

from collections.abc import Callable

import functopt as fo
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
from benchmarks.peers.torch_optim import parameters, tensors, values

TRANSFORMS: dict[str, Callable[[], fo.Transform]] = {
    "adamw": lambda: fo.adamw(LR, *BETAS, EPS, WEIGHT_DECAY),
    "sgd": lambda: fo.sgd(LR, MOMENTUM, weight_decay=L2),
    "lion": lambda: fo.lion(LR, *LION_BETAS, weight_decay=WEIGHT_DECAY),
    "lamb": lambda: fo.lamb(LR, *BETAS, EPS, WEIGHT_DECAY),
    "adafactor": lambda: fo.adafactor(LR),
    "adafactor_optax": lambda: fo.adafactor(LR, form="optax"),
    "chain": lambda: fo.chain(fo.clip_by_global_norm(MAX_NORM), TRANSFORMS["adamw"](), fo.average_params(EMA_DECAY)),
}


def build(form: str, optimizer: str, params: Arrays, grads: Arrays) -> Contender:
    """Return one of the forms."""
    tx = TRANSFORMS[optimizer]()
    if form.startswith("functopt stateful"):
        own = parameters(params, grads)
        stateful = fo.StatefulOptimizer(own, tx, **({"compile": True} if form.endswith("compiled") else {}))
        return Contender(stateful.step, lambda: values(own))
    if optimizer.startswith("adafactor"):  # its factors are of matrices: leaves of one shape go together
        stacks, unstack = fo.tree.by_shape(tensors(params))
        return _compiled(fo.stacked(tx), stacks, fo.tree.by_shape(tensors(grads))[0], unstack)
    return _compiled(tx, fo.pack(tensors(params)), fo.pack(tensors(grads)), fo.unpack)


def _compiled(tx: fo.Transform, params: fo.tree.Tree, grads: fo.tree.Tree, unpack: Callable) -> Contender:
    state = tx.init(params)
    update = fo.compile(lambda params, state, grads, hypers: tx.update(grads, state, params, hypers), donate=(0, 1))

    def step() -> None:
        update(params, state, grads, {"lr": LR})  # in place of params and state

    return Contender(step, lambda: [leaf.numpy() for leaf in unpack(params)])
