"""Cases of the comparison with optax: optimizers of signs, sums and momentum."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import functopt as fo
from parity.case import Case

MASK = {"bias": False, "gain": False, "kernel": True, "square": True, "weight": True}
LR = {"learning_rate": 0.05}


def sm3_of_vectors(link: str, **given: Any) -> Any:
    """optax's SM3 cannot do parameters without an axis: here they have one."""
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    tx = getattr(optax, link)(**given)
    longer = lambda values: jax.tree.map(jnp.atleast_1d, values)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        new, state = tx.update(longer(updates), state, longer(params))
        return jax.tree.map(lambda n, u: n.reshape(u.shape), new, updates), state

    return optax.GradientTransformation(lambda params: tx.init(longer(params)), update)


def exact_adafactor(**given: Any) -> Any:
    """optax computes Adafactor's decay in float32, even in 64-bit mode, and keeps its momentum in that by default."""
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]
    from optax._src import factorized  # pyright: ignore[reportMissingImports]

    decay = lambda step, rate: 1 - jnp.asarray(step + 1, jnp.float64) ** -rate
    exact = functools.partial(factorized.scale_by_factored_rms, decay_rate_fn=decay)
    with mock.patch.object(factorized, "scale_by_factored_rms", exact):
        return optax.adafactor(**given, dtype_momentum=jnp.float64)


THEIRS = {"sm3_of_vectors": sm3_of_vectors, "exact_adafactor": exact_adafactor}


def by_lr(link: str) -> str:
    """What makes an optimizer of a link of theirs."""
    return f"lambda **given: optax.chain({link}(**given), optax.scale(-0.05))"


def ours_by_lr(link: Any) -> Any:
    return lambda **given: fo.chain(link(**given), fo.scale(-0.05))


RMSPROP: dict[str, Any] = {"momentum_of": "step"}
EPS = (1e-8, 1e-2)

CASES: dict[str, Case] = {
    "adadelta": Case(
        "optax.adadelta",
        fo.adadelta,
        options={"learning_rate": 1.0},
        draws={"rho": (0.5, 0.99), "eps": (1e-6, 1e-1), "weight_decay": (0.0, 0.2)},
    ),
    "adadelta/mask": Case(
        "optax.adadelta",
        fo.adadelta,
        options={"learning_rate": 2.0, "weight_decay": 0.1, "weight_decay_mask": MASK},
        names={"weight_decay_mask": "mask"},
    ),
    "adagrad": Case(
        "optax.adagrad",
        fo.adagrad,
        options=LR | {"initial_accumulator_value": 0.1, "eps": 1e-7},
        draws={"learning_rate": (0.01, 0.3), "initial_accumulator_value": (0.0, 1.0), "eps": EPS},
        bridge={"eps_in_sqrt": True},
    ),
    "fromage": Case(
        "optax.fromage",
        fo.fromage,
        options=LR,
        draws={"learning_rate": (0.01, 0.3), "min_norm": (1e-6, 3.0)},
    ),
    "lars": Case(
        "optax.lars",
        fo.lars,
        options={"learning_rate": 1.0},
        draws={
            "learning_rate": (0.1, 1.0),
            "weight_decay": (0.0, 0.2),
            "trust_coefficient": (0.001, 0.1),
            "eps": (1e-8, 0.1),
            "momentum": (0.5, 0.95),
        },
    ),
    "lars/nesterov": Case("optax.lars", fo.lars, options={"learning_rate": 1.0, "nesterov": True}),
    "lars/masks": Case(
        "optax.lars",
        fo.lars,
        options=LR | {"weight_decay": 0.1, "weight_decay_mask": MASK, "trust_ratio_mask": MASK},
        names={"weight_decay_mask": "mask"},
    ),
    "lion": Case(
        "optax.lion",
        fo.lion,
        options=LR,
        draws={"b1": (0.5, 0.95), "b2": (0.8, 0.999), "weight_decay": (0.0, 0.2)},
    ),
    "lion/mask": Case("optax.lion", fo.lion, options=LR | {"weight_decay": 0.1, "mask": MASK}),
    "madgrad": Case(
        "optax.contrib.madgrad",
        fo.madgrad,
        options=LR,
        draws={
            "learning_rate": (0.001, 0.3),
            "momentum": (0.0, 0.95),
            "eps": (1e-6, 1e-2),
            "weight_decay": (0.0, 0.2),
        },
    ),
    "optimistic_adam": Case(
        "optax.optimistic_adam",
        fo.optimistic_adam,
        options=LR,
        draws={"optimism": (0.01, 0.1), "b1": (0.5, 0.95), "b2": (0.8, 0.999), "eps": EPS, "eps_root": EPS},
    ),
    "optimistic_adam/plain": Case("optax.optimistic_adam", fo.optimistic_adam, options=LR | {"nesterov": False}),
    "optimistic_adam_v2": Case(
        "optax.optimistic_adam_v2",
        fo.optimistic_adam_v2,
        options=LR,
        draws={
            "alpha": (0.1, 2.0),
            "beta": (0.1, 2.0),
            "b1": (0.5, 0.95),
            "b2": (0.8, 0.999),
            "eps": EPS,
            "eps_root": EPS,
        },
        names={"beta": "optimism"},
    ),
    "optimistic_adam_v2/plain": Case(
        "optax.optimistic_adam_v2", fo.optimistic_adam_v2, options=LR | {"nesterov": False}
    ),
    "optimistic_gradient_descent": Case(
        "optax.optimistic_gradient_descent",
        fo.optimistic_gradient_descent,
        options=LR,
        draws={"alpha": (0.1, 2.0), "beta": (0.0, 2.0)},
        names={"beta": "optimism"},
        problem="loss",
    ),
    "rmsprop": Case(
        "optax.rmsprop",
        fo.rmsprop,
        options=LR | {"decay": 0.9, "eps_in_sqrt": True},
        draws={"decay": (0.5, 0.99), "eps": EPS, "momentum": (0.1, 0.9), "initial_scale": (0.0, 1.0)},
        bridge=RMSPROP,
    ),
    "rmsprop/nesterov": Case(
        "optax.rmsprop",
        fo.rmsprop,
        options=LR | {"decay": 0.9, "momentum": 0.8, "nesterov": True, "eps_in_sqrt": False},
        bridge=RMSPROP,
    ),
    "rmsprop/centered": Case(
        "optax.rmsprop",
        fo.rmsprop,
        # at the first step the variance is 0, up to rounding
        options=LR | {"decay": 0.9, "eps": 1e-3, "centered": True, "bias_correction": True, "eps_in_sqrt": True},
        draws={"decay": (0.5, 0.99), "eps": (1e-4, 1e-2), "initial_scale": (0.0, 1.0), "momentum": (0.1, 0.9)},
        bridge=RMSPROP,
    ),
    "rprop": Case(
        "optax.rprop",
        fo.rprop,
        options=LR,
        draws={
            "learning_rate": (0.01, 0.1),
            "eta_minus": (0.2, 0.8),
            "eta_plus": (1.1, 2.0),
            "min_step_size": (0.001, 0.04),
            "max_step_size": (0.06, 0.2),
        },
        bridge={"form": "optax"},
    ),
    "rprop/loss": Case(
        "optax.rprop",
        fo.rprop,
        options={"learning_rate": 0.5, "max_step_size": 0.3},
        bridge={"form": "optax"},
        problem="loss",
    ),
    "sgd": Case("optax.sgd", fo.sgd, options=LR, draws={"learning_rate": (0.001, 0.3), "momentum": (0.1, 0.99)}),
    "sgd/nesterov": Case("optax.sgd", fo.sgd, options=LR | {"momentum": 0.9, "nesterov": True}, problem="loss"),
    "sign_sgd": Case("optax.sign_sgd", fo.sign_sgd, options=LR, draws={"learning_rate": (0.001, 0.3)}),
    "signum": Case("optax.signum", fo.signum, options=LR, draws={"beta": (0.1, 0.99)}),
    "sm3": Case("lambda **given: sm3_of_vectors('sm3', **given)", fo.sm3, options=LR, draws={"momentum": (0.1, 0.99)}),
    "scale_by_sm3": Case(
        "lambda **given: optax.chain(sm3_of_vectors('scale_by_sm3', **given), optax.scale(-0.05))",
        ours_by_lr(fo.scale_by_sm3),
        draws={"b1": (0.0, 0.99), "b2": (0.5, 0.99), "eps": EPS},
        names={"b2": "accumulator_decay"},
    ),
    "scale_by_adadelta": Case(
        by_lr("optax.scale_by_adadelta"), ours_by_lr(fo.scale_by_adadelta), draws={"rho": (0.5, 0.9)}
    ),
    "scale_by_rss": Case(
        by_lr("optax.scale_by_rss"),
        ours_by_lr(fo.scale_by_rss),
        draws={"initial_accumulator_value": (0.0, 1.0), "eps": EPS},
    ),
    "scale_by_rprop": Case(
        "lambda **given: optax.chain(optax.scale_by_rprop(**given), optax.scale(-1.0))",
        lambda **given: fo.chain(fo.scale_by_rprop(**given, delayed=True), fo.scale(-1.0)),
        options=LR,
    ),
    "scale_by_sign": Case(by_lr("optax.scale_by_sign"), ours_by_lr(fo.scale_by_sign)),
    "scale_by_optimistic_gradient": Case(
        by_lr("optax.scale_by_optimistic_gradient"),
        ours_by_lr(fo.scale_by_optimistic_gradient),
        draws={"alpha": (0.1, 2.0), "beta": (0.0, 2.0)},
        names={"beta": "optimism"},
    ),
    "scale_by_trust_ratio": Case(
        by_lr("optax.scale_by_trust_ratio"),
        ours_by_lr(fo.scale_by_trust_ratio),
        draws={"min_norm": (0.0, 5.0), "trust_coefficient": (0.1, 2.0), "eps": EPS},
    ),
    "adafactor": Case(
        "exact_adafactor",
        fo.adafactor,
        options=LR | {"min_dim_size_to_factor": 2},
        draws={"decay_rate": (0.5, 1.0), "clipping_threshold": (0.5, 2.0), "eps": (1e-30, 1e-3)},
        bridge={"form": "optax"},
    ),
    "adafactor/options": Case(
        "exact_adafactor",
        fo.adafactor,
        options=LR
        | {
            "min_dim_size_to_factor": 3,
            "multiply_by_parameter_scale": False,
            "momentum": 0.9,
            "weight_decay_rate": 0.01,
            "weight_decay_mask": MASK,
            "decay_offset": -3,
        },
        bridge={"form": "optax"},
        names={"weight_decay_rate": "weight_decay", "weight_decay_mask": "mask", "decay_offset": "step_offset"},
    ),
    "adafactor/whole": Case(
        "exact_adafactor", fo.adafactor, options=LR | {"factored": False}, bridge={"form": "optax"}
    ),
}
