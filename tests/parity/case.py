"""What a case of the comparison with optax is, and the problems that both sides solve."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from functopt import Transform

STEPS = 20
DRAWN = 3  # settings drawn for each case, beside the defaults

# Axes that can be factored or orthogonalised, a square, a vector and one number.
SHAPES = {"bias": (3,), "gain": (), "kernel": (3, 1, 2, 3), "square": (3, 3), "weight": (4, 3)}

# optax's names of arguments in our words; a case may have more of them.
NAMES = {"learning_rate": "lr", "b1": "beta1", "b2": "beta2"}


@dataclass(frozen=True)
class Case:
    """An optimizer of optax, ours, and the settings at which both are run.

    ``theirs`` is evaluated where ``optax``, ``jax`` and ``jnp`` are known, by the script only, and called with
    ``options`` and what is drawn; ours is called with the same under our names, and with ``bridge`` beside.
    """

    theirs: str
    ours: Callable[..., Transform]
    options: Mapping[str, Any] = field(default_factory=dict)  # for both sides, in optax's names
    draws: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # ranges, in optax's names
    bridge: Mapping[str, Any] = field(default_factory=dict)  # for ours only, where our defaults are torch's
    names: Mapping[str, str] = field(default_factory=dict)  # further names: theirs to ours
    problem: str = "given"  # "given" gradients, or one of LOSSES: then value, grad and value_fn are given as extras too
    wide_counts: bool = True  # let optax count steps in int64, so that it computes with them in float64
    jit: bool = False  # compile their step: the loop of a search would be compiled anew at every step otherwise


def settings(name: str, case: Case) -> list[dict[str, Any]]:
    """Return what the optimizer of a case is called with, in optax's names: the defaults, and drawn settings."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    out = [dict(case.options)]
    for _ in range(DRAWN if case.draws else 0):
        drawn = {}
        for hyper, (low, high) in case.draws.items():
            if low > 0 and high / low >= 30:  # over orders of magnitude
                drawn[hyper] = math.exp(draw.uniform(math.log(low), math.log(high)))
            else:
                drawn[hyper] = draw.uniform(low, high)
        out.append({**case.options, **drawn})
    return out


def ours(case: Case, setting: Mapping[str, Any]) -> Transform:
    """Return our optimizer at a setting."""
    names = {**NAMES, **case.names}
    return case.ours(**{names.get(name, name): value for name, value in setting.items()}, **case.bridge)


def start() -> dict[str, np.ndarray]:
    """Return the parameters at the start, of both problems."""
    draw = np.random.default_rng(0)
    return {name: np.asarray(1 + 0.5 * draw.standard_normal(shape)) for name, shape in SHAPES.items()}


def given_gradients() -> list[dict[str, np.ndarray]]:
    """Return gradients that do not depend on the parameters; those of one leaf are zero at one step."""
    draw = np.random.default_rng(1)
    out = [
        {name: np.asarray(0.3 + draw.standard_normal(shape)) for name, shape in SHAPES.items()} for _ in range(STEPS)
    ]
    out[7]["bias"] = np.zeros(SHAPES["bias"])
    return out


def rosenbrock_of(params: Any, cos: Callable[[Any], Any]) -> Any:
    """Return the loss of a third problem: Rosenbrock's chain along the last axis, and the gain by itself."""
    total: Any = (1 - params["gain"]) ** 2
    for name in ("bias", "kernel", "square", "weight"):
        x, y = params[name][..., :-1], params[name][..., 1:]
        total = total + (100 * (y - x**2) ** 2 + (1 - x) ** 2).sum()
    return total


def loss_of(params: Any, cos: Callable[[Any], Any]) -> Any:
    """Return the loss of the other problem: ``Σ a·(p + a)²/2 + 0.3·cos 2p``, with ``a`` from 0.5 to 2 by leaf."""
    total: Any = 0.0
    for i, name in enumerate(sorted(SHAPES)):
        a = 0.5 + 1.5 * i / (len(SHAPES) - 1)
        total = total + (0.5 * a * (params[name] + a) ** 2 + 0.3 * cos(2 * params[name])).sum()
    return total


LOSSES = {"loss": loss_of, "rosenbrock": rosenbrock_of}
