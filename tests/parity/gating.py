"""Cases of the comparison with optax: wrappers that choose what is updated, and when."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

import functopt as fo
from parity.case import Case

THEIRS = {"functools": functools}

LR: Any = {"learning_rate": (0.01, 0.2)}
MASK = {"bias": True, "gain": False, "kernel": True, "square": False, "weight": True}
LABELS = {"bias": "plain", "gain": "plain", "kernel": "clipped", "square": "still", "weight": "clipped"}


class Poison(NamedTuple):
    """NaN at every third step, in two that follow each other, and after the last one that counts; else 1."""

    last: int

    def __call__(self, step: Tensor) -> Tensor:
        return torch.where((step % 3 == 1) | (step == 8) | (step >= self.last), torch.nan, torch.ones_like(step))


def not_third(step: Tensor) -> Tensor:
    return step % 3 != 2


def while_large(step: Tensor, value: Tensor, **others: Any) -> Tensor:
    return value > 10.0


THEIR_POISON = "optax.scale_by_schedule(lambda t: jnp.where((t % 3 == 1) | (t == 8) | (t >= {last}), jnp.nan, 1.0))"
THEIR_STEPS = "optax.MultiSteps({inner}, {k}, accumulator_dtype=jnp.float64{more}).gradient_transformation()"


def accumulated(inner: str, k: str, more: str = "") -> str:
    return f"(lambda **hypers: {THEIR_STEPS.format(inner=inner, k=k, more=more)})"


def falling(learning_rate: float) -> Any:
    return fo.linear_schedule(learning_rate, 0.0, 6)


def parts(lr: float, beta1: float) -> fo.Transform:
    clipped = fo.chain(fo.clip_by_global_norm(0.5), fo.adam(lr, beta1))
    return fo.partition({"clipped": clipped, "plain": fo.sgd(2 * lr, 0.9), "still": fo.set_to_zero()}, LABELS)


def plateau(lr: float, **hypers: Any) -> fo.Transform:
    return fo.chain(fo.sgd(lr, 0.9), fo.reduce_on_plateau(**hypers))


jitted: Any = functools.partial(Case, jit=True)  # their conditions would be compiled anew at every step otherwise

CASES: dict[str, Case] = {
    "multi_steps": jitted(
        accumulated("optax.adam(**hypers)", "3"),
        lambda **hypers: fo.multi_steps(fo.adam(**hypers), 3),
        options={"learning_rate": 0.1},
        draws=LR,
    ),
    "multi_steps/sum": jitted(
        accumulated("optax.sgd(**hypers, momentum=0.9)", "4", ", use_grad_mean=False"),
        lambda lr: fo.multi_steps(fo.sgd(lr, 0.9), 4, use_grad_mean=False),
        options={"learning_rate": 0.1},
        draws=LR,
    ),
    "multi_steps/scheduled": jitted(
        accumulated(
            "optax.adam(optax.linear_schedule(hypers['learning_rate'], 0.0, 6))", "lambda n: jnp.minimum(1 + n, 3)"
        ),
        lambda lr: fo.multi_steps(fo.adam(falling(lr)), fo.linear_schedule(1.0, 3.0, 2)),
        options={"learning_rate": 0.1},
    ),
    "multi_steps/skip_not_finite": jitted(
        f"(lambda learning_rate: optax.chain({THEIR_POISON.format(last=15)}, "
        "optax.MultiSteps(optax.adam(learning_rate), 2, should_skip_update_fn=optax.skip_not_finite, "
        "accumulator_dtype=jnp.float64).gradient_transformation()))",
        lambda lr: fo.chain(
            fo.scale(Poison(15)), fo.multi_steps(fo.adam(lr), 2, should_skip_update_fn=fo.skip_not_finite)
        ),
        options={"learning_rate": 0.1},
    ),
    "multi_steps/skip_large_updates": jitted(
        accumulated(
            "optax.adam(hypers['learning_rate'])",
            "2",
            ", should_skip_update_fn=functools.partial(optax.skip_large_updates, "
            "max_squared_norm=hypers['max_squared_norm'])",
        ),
        lambda lr, max_squared_norm: fo.multi_steps(
            fo.adam(lr), 2, should_skip_update_fn=fo.skip_large_updates, max_squared_norm=max_squared_norm
        ),
        options={"learning_rate": 0.1, "max_squared_norm": 45.0},
        draws={"max_squared_norm": (35.0, 60.0)},
    ),
    "apply_if_finite": jitted(
        f"(lambda learning_rate: optax.chain({THEIR_POISON.format(last=18)}, "
        "optax.apply_if_finite(optax.adam(optax.linear_schedule(learning_rate, 0.0, 6)), 2)))",
        lambda lr: fo.chain(fo.scale(Poison(18)), fo.apply_if_finite(fo.adam(falling(lr)), 2)),
        options={"learning_rate": 0.1},
    ),
    "conditionally_transform": jitted(
        "(lambda **hypers: optax.chain(optax.conditionally_transform(optax.scale_by_adam(**hypers), "
        "lambda t: t % 3 != 2), optax.scale(-0.1)))",
        lambda **hypers: fo.chain(fo.conditionally_transform(fo.scale_by_adam(**hypers), not_third), fo.scale(-0.1)),
        draws={"b1": (0.5, 0.95), "b2": (0.8, 0.999)},
    ),
    "conditionally_transform/value": jitted(
        "(lambda learning_rate: optax.conditionally_transform(optax.adam(learning_rate), "
        "lambda t, value, **_: value > 10.0, forward_extra_args=True))",
        lambda lr: fo.conditionally_transform(fo.adam(lr), while_large, forward_extra_args=True),
        options={"learning_rate": 0.1},
        problem="loss",
    ),
    "conditionally_mask": jitted(
        "(lambda learning_rate: optax.conditionally_mask(optax.adam(optax.linear_schedule(learning_rate, 0.0, 6)), "
        "lambda t: t % 3 != 2))",
        lambda lr: fo.conditionally_mask(fo.adam(falling(lr)), not_third),
        options={"learning_rate": 0.1},
    ),
    "masked": jitted(
        f"(lambda **hypers: optax.chain(optax.masked(optax.scale_by_adam(**hypers), {MASK}), optax.scale(-0.1)))",
        lambda **hypers: fo.chain(fo.masked(fo.scale_by_adam(**hypers), MASK), fo.scale(-0.1)),
        draws={"b1": (0.5, 0.95), "b2": (0.8, 0.999), "eps": (1e-8, 1e-2)},
    ),
    "masked/norm": jitted(
        f"(lambda max_norm: optax.chain(optax.masked(optax.clip_by_global_norm(max_norm), {MASK}), optax.sgd(0.1)))",
        lambda max_norm: fo.chain(fo.masked(fo.clip_by_global_norm(max_norm), MASK), fo.sgd(0.1)),
        draws={"max_norm": (0.5, 5.0)},
        options={"max_norm": 2.0},
    ),
    "partition": jitted(
        "(lambda learning_rate, b1: optax.partition({'clipped': optax.chain(optax.clip_by_global_norm(0.5), "
        "optax.adam(learning_rate, b1)), 'plain': optax.sgd(2 * learning_rate, 0.9), 'still': optax.set_to_zero()}, "
        f"{LABELS}))",
        parts,
        options={"learning_rate": 0.1, "b1": 0.9},
        draws={**LR, "b1": (0.5, 0.95)},
    ),
    "freeze": jitted(
        f"(lambda **hypers: optax.chain(optax.adam(**hypers), optax.freeze({MASK})))",
        lambda **hypers: fo.chain(fo.adam(**hypers), fo.freeze(MASK)),
        draws=LR,
        options={"learning_rate": 0.1},
    ),
    "selective_transform": jitted(
        f"(lambda **hypers: optax.selective_transform(optax.adam(**hypers), freeze_mask={MASK}))",
        lambda **hypers: fo.selective_transform(fo.adam(**hypers), freeze_mask=MASK),
        draws=LR,
        options={"learning_rate": 0.1},
    ),
    "reduce_on_plateau": jitted(
        "(lambda learning_rate, **hypers: optax.chain(optax.sgd(learning_rate, 0.9), "
        "optax.contrib.reduce_on_plateau(**hypers)))",
        plateau,
        options={"learning_rate": 0.3, "patience": 2},
        draws={"factor": (0.2, 0.9), "rtol": (1e-4, 0.1), "atol": (1e-4, 0.5)},
        problem="loss",
        wide_counts=False,  # its conditions want the types that they have
    ),
    "reduce_on_plateau/cooldown": jitted(
        "(lambda learning_rate, **hypers: optax.chain(optax.sgd(learning_rate, 0.9), "
        "optax.contrib.reduce_on_plateau(**hypers)))",
        plateau,
        options={"learning_rate": 0.3, "patience": 1, "cooldown": 2, "accumulation_size": 2, "min_scale": 0.2},
        draws={"factor": (0.2, 0.9), "rtol": (1e-2, 0.3)},
        problem="loss",
        wide_counts=False,  # its conditions want the types that they have
    ),
}
