"""Cases of the comparison with optax: optimizers that divide by a running second moment."""

from __future__ import annotations

import functopt as fo
from parity.case import Case

CASES: dict[str, Case] = {
    "adamw": Case(
        "optax.adamw",
        fo.adamw,
        options={"learning_rate": 0.05, "weight_decay": 1e-4},
        draws={"b1": (0.5, 0.95), "b2": (0.8, 0.999), "eps": (1e-8, 1e-2), "weight_decay": (0.0, 0.2)},
    ),
}
