"""Cases of the comparison with optax: optimizers that find their learning rate, or average it away; see case.Case."""

from __future__ import annotations

from typing import Any

import functopt as fo
from functopt import Transform
from parity.case import Case

LR: Any = {"learning_rate": (0.3, 1.5)}
DECAY: Any = {"weight_decay": (0.0, 0.2)}
BETAS: Any = {"b1": (0.5, 0.95), "b2": (0.8, 0.999), "eps": (1e-8, 1e-2)}
D0: Any = {"estim_lr0": (1e-4, 1e-1)}
BOUND: Any = {"lower_bound": (-3.0, 1.0), "learning_rate": (0.05, 2.0), **DECAY}
MECHANIC: Any = {"s_init": (1e-4, 1e-1), "s_eps": (1e-8, 1e-3), "s_decay": (0.0, 0.2)}
FREE: Any = {"learning_rate": (0.05, 0.5), "b1": (0.5, 0.98), "weight_lr_power": (0.0, 3.0), **DECAY}

# optax takes some settings in pairs, and a leaf without dimensions gets one from its L-DoG
DOG = "lambda init_step, init_step_type='heuristic', **o: optax.contrib.dog(init_step=(init_step_type, init_step), **o)"
LDOG = (
    "lambda **o: optax.chain(optax.scale_by_distance_over_gradients(param_dtype=jnp.float64, global_scale=-1.0, **o), "
    "optax.stateless(lambda u, p: jax.tree.map(lambda a, b: a.reshape(b.shape), u, p)))"
)
BY_BETAS = "lambda b1=0.9, b2=0.999, **o: optax.contrib.{}(betas=(b1, b2), **o)"
MECHANIZED = (
    "lambda s_decay=1e-2, s_eps=1e-8, s_init=1e-6, num_betas=6, **o: "
    "optax.contrib.mechanize(optax.{}(**o), s_decay, s_eps, s_init, num_betas)"
)
AVERAGED = (
    "lambda learning_rate, b1=0.9, weight_lr_power=2.0, **o: "
    "optax.contrib.schedule_free(optax.lamb(learning_rate, **o), learning_rate, b1, weight_lr_power)"
)


def layerwise(**settings: Any) -> Transform:
    return fo.scale_by_distance_over_gradients(global_scale=-1.0, **settings)


def mechanized(base: Any) -> Any:
    def make(**settings: Any) -> Transform:
        own = {name: settings.pop(name) for name in ("s_decay", "s_eps", "s_init", "num_betas") if name in settings}
        return fo.mechanize(base(**settings), **own)

    return make


def averaged(lr: Any, beta1: float = 0.9, weight_lr_power: float = 2.0, **settings: Any) -> Transform:
    return fo.schedule_free(fo.lamb(lr, **settings), beta1, weight_lr_power)


def polyak(**settings: Any) -> Transform:
    return fo.chain(fo.scale_by_polyak(**settings), fo.scale(-1.0))


CASES: dict[str, Case] = {
    "scale_by_distance_over_gradients": Case(
        LDOG,
        layerwise,
        draws={
            "reps_rel": (1e-4, 1e-1),
            "eps": (1e-8, 1e-1),
        },
    ),
    "dog": Case(DOG, fo.dog, {"init_step": 1e-6}, {"init_step": (1e-4, 1e-1), "eps": (1e-8, 1e-1), **LR, **DECAY}),
    "dog, distance": Case(
        DOG, fo.dog, {"init_step": 0.01, "init_step_type": "distance"}, {"init_step": (1e-4, 1e-1), **LR}
    ),
    "dog, learning_rate": Case(
        DOG, fo.dog, {"init_step": 0.01, "init_step_type": "learning_rate"}, {"init_step": (1e-4, 1e-1), **LR}
    ),
    "dowg": Case(
        "optax.contrib.dowg", fo.dowg, draws={"init_estim_sq_dist": (1e-4, 1e-1), "eps": (1e-6, 1e-2), **LR, **DECAY}
    ),
    "cocob": Case("optax.contrib.cocob", fo.cocob, draws={"alpha": (2.0, 200.0), "eps": (1e-8, 1.0), **LR, **DECAY}),
    "scale_by_cocob": Case("optax.contrib.scale_by_cocob", fo.scale_by_cocob, draws={"alpha": (2.0, 200.0)}),
    "scale_by_polyak": Case(
        "lambda **o: optax.chain(optax.scale_by_polyak(**o), optax.scale(-1.0))",
        polyak,
        draws={"f_min": (-2.0, 2.0), "max_learning_rate": (0.05, 2.0), "eps": (1e-6, 1.0)},
        problem="loss",
    ),
    "polyak_sgd": Case(
        "optax.polyak_sgd",
        fo.polyak_sgd,
        draws={"f_min": (-2.0, 2.0), "max_learning_rate": (0.05, 2.0), "eps": (1e-6, 1.0), "scaling": (0.5, 1.5)},
        bridge={"form": "optax"},
        names={"scaling": "lr"},
        problem="loss",
    ),
    "polyak_sgd, sps+": Case(
        "optax.polyak_sgd",
        fo.polyak_sgd,
        {"variant": "sps+", "f_min": 30.0},
        {"f_min": (10.0, 40.0), "max_learning_rate": (0.05, 2.0)},
        problem="loss",
    ),
    "dadapt_adamw": Case(BY_BETAS.format("dadapt_adamw"), fo.dadapt_adamw, draws={**LR, **BETAS, **D0, **DECAY}),
    "prodigy": Case(
        BY_BETAS.format("prodigy"), fo.prodigy, draws={"estim_lr_coef": (0.5, 2.0), **LR, **BETAS, **D0, **DECAY}
    ),
    "prodigy, safeguarded": Case(
        BY_BETAS.format("prodigy"),
        fo.prodigy,
        {"safeguard_warmup": True, "beta3": 0.9},
        {"beta3": (0.5, 0.99), **LR, **D0},
    ),
    "momo": Case("optax.contrib.momo", fo.momo, draws={"beta": (0.5, 0.95), **BOUND}, problem="loss"),
    "momo, adapted": Case(
        "optax.contrib.momo",
        fo.momo,
        {"adapt_lower_bound": True},
        {"beta": (0.5, 0.95), **BOUND},
        problem="loss",
    ),
    "momo_adam": Case("optax.contrib.momo_adam", fo.momo_adam, draws={**BETAS, **BOUND}, problem="loss"),
    "momo_adam, adapted": Case(
        "optax.contrib.momo_adam", fo.momo_adam, {"adapt_lower_bound": True}, {**BETAS, **BOUND}, problem="loss"
    ),
    "schedule_free": Case(AVERAGED, averaged, {"learning_rate": 0.1, "weight_decay": 0.0}, FREE),
    "schedule_free_sgd": Case("optax.contrib.schedule_free_sgd", fo.schedule_free_sgd, draws=FREE),
    "schedule_free_sgd, warmed up": Case(
        "optax.contrib.schedule_free_sgd",
        fo.schedule_free_sgd,
        {"warmup_steps": 7},
        FREE,
        bridge={"warmup_from_zero": True},
    ),
    "schedule_free_adamw": Case(
        "optax.contrib.schedule_free_adamw",
        fo.schedule_free_adamw,
        draws={**FREE, "b2": (0.8, 0.999), "eps": (1e-8, 1e-2)},
    ),
    "schedule_free_adamw, warmed up": Case(
        "optax.contrib.schedule_free_adamw",
        fo.schedule_free_adamw,
        {"warmup_steps": 5},
        FREE,
        bridge={"warmup_from_zero": True},
    ),
    "mechanize, sgd": Case(MECHANIZED.format("sgd"), mechanized(fo.sgd), {"learning_rate": 1.0}, {**LR, **MECHANIC}),
    "mechanize, adamw": Case(
        MECHANIZED.format("adamw"),
        mechanized(fo.adamw),
        {"learning_rate": 1.0, "weight_decay": 1e-4, "num_betas": 3},
        {**LR, **DECAY, **MECHANIC},
    ),
}
