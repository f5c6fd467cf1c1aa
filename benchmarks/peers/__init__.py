"""The contenders: the three ways in which an optimizer runs here, and everybody else's.

A module of this package offers ``build(form, optimizer, params, grads)``, which returns a :class:`Contender` or raises
``NotOfferedError`` where the peer has no such optimizer. All start from the same numbers and compute the same thing,
as far as the peers agree on it: ``tests/test_benchmarks.py`` compares their results.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import numpy as np

Arrays = list[np.ndarray]

# Hypers of all contenders.
LR = 1e-3
BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 0.01  # AdamW and LAMB
MOMENTUM, L2 = 0.9, 1e-4  # SGD
LION_BETAS = (0.9, 0.99)
MAX_NORM, EMA_DECAY = 1.0, 0.999  # the chain around AdamW

OPTIMIZERS = {
    "adamw": "AdamW",
    "sgd": "SGD with momentum",
    "lion": "Lion",
    "lamb": "LAMB",
    "adafactor": "Adafactor",
    "adafactor_optax": "Adafactor as optax's",  # which factors other axes, and not the small ones
    "chain": "clip + AdamW + EMA",
}

OURS = "functopt compiled"

CONTENDERS = {
    OURS: "ours",
    "functopt stateful compiled": "ours",
    "functopt stateful eager": "ours",
    "torch fused": "torch_optim",
    "torch foreach": "torch_optim",
    "torch for-loop": "torch_optim",
    "torch compiled": "torch_optim",
    "heavyball": "heavyball",
    "torchopt": "torchopt",
    "optimi": "optimi",
    "optimi foreach": "optimi",
    "optax": "optax",
}


@dataclass
class Contender:
    """An optimizer with its parameters: ``step`` updates them once and waits until that is done."""

    step: Callable[[], None]
    read: Callable[[], Arrays]  # the parameters
    prepare: Callable[[], None] = lambda: None  # what must be put back before a step, untimed


def build(name: str, optimizer: str, shapes: list[list[int]]) -> Contender:
    """Return a contender that updates tensors of these shapes.

    Raises:
        NotOfferedError: it has no such optimizer.
        ModuleNotFoundError: the peer is not installed.
    """
    module = import_module(f"benchmarks.peers.{CONTENDERS[name]}")
    return module.build(name, optimizer, _draw(shapes, 0, 0.02), _draw(shapes, 1, 0.01))


def _draw(shapes: list[list[int]], seed: int, scale: float) -> Arrays:
    """Return normal numbers; large arrays repeat a million of them, which takes a tenth of the time."""
    block = np.random.default_rng(seed).standard_normal(1 << 20, dtype=np.float32) * np.float32(scale)
    # a small array is a view of its block, of which a thousand would be kept
    return [np.resize(np.roll(block, -i), shape).copy() for i, shape in enumerate(shapes)]
