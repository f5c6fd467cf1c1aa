"""The rows of what every chain is made of, and of the optimizers of torch and fastai."""

from __future__ import annotations

import math
from typing import Any

import functopt as fo
from functopt import Transform
from registry.problem import Row, by_lr, matrices


def clipped_adamw() -> Transform:
    return fo.chain(fo.clip_by_global_norm(0.5), fo.adamw(lr=fo.cosine_decay_schedule(0.1, 20, alpha=0.1)))


def scheduled_decay() -> Transform:
    link = fo.add_decayed_weights(fo.linear_schedule(0.1, 0.0, 5))
    return fo.chain(link, fo.scale_by_adam(beta1=fo.linear_schedule(0.5, 0.9, 5)), fo.scale_by_lr(0.1))


def decayed_adafactor() -> Transform:
    # the decay of optax's form is not scaled by lr, so that here lr is a schedule
    return fo.adafactor(fo.constant_schedule(0.1), weight_decay=0.1, momentum=0.8, mask=matrices, **IN_OPTAX)


def lars() -> Transform:
    return fo.chain(fo.scale_by_trust_ratio(trust_coefficient=0.1, eps=1e-6), fo.trace(0.9), fo.scale_by_lr(0.1))


# Short memories (beta2 = 0.9), so that rectified Adam leaves its warm-up within the eight steps of the tests.
MEMORY: Any = {"beta1": 0.8, "beta2": 0.9}
IN_OPTAX: Any = {"form": "optax", "min_dim_size_to_factor": 2}

ROWS = [
    Row("sgd", lambda: fo.sgd(0.1)),
    Row("sgd/l2", lambda: fo.sgd(0.1, weight_decay=0.1)),
    Row("sgd/momentum", lambda: fo.sgd(0.1, 0.9, 0.2, 0.1)),
    Row("sgd/nesterov", lambda: fo.sgd(0.1, 0.9, nesterov=True)),
    Row("sgd/decoupled", lambda: fo.sgd(0.1, 0.9, weight_decay=0.1, decoupled=True)),
    Row("sgd/masked", lambda: fo.sgd(0.1, 0.9, weight_decay=0.1, mask=matrices), layout_invariant=False),
    Row("sgd/maximize", lambda: fo.sgd(0.1, 0.9, maximize=True), ascends=True),
    Row("rmsprop", lambda: fo.rmsprop(0.1)),
    Row("rmsprop/centered", lambda: fo.rmsprop(0.1, 0.9, centered=True)),
    Row("rmsprop/momentum", lambda: fo.rmsprop(0.1, 0.9, weight_decay=0.1, momentum=0.9, centered=True)),
    Row("rmsprop/gradient", lambda: fo.rmsprop(0.1, 0.9, momentum=0.9, momentum_of="gradient", decoupled=True)),
    Row("adam", lambda: fo.adam(0.1)),
    Row("adam/l2", lambda: fo.adam(0.1, weight_decay=0.1, nesterov=True)),
    Row("adam/power", lambda: fo.adam(0.1, **MEMORY, debias="power", maximize=True), ascends=True),
    Row("adamw", lambda: fo.adamw(0.1)),
    Row("adamw/masked", lambda: fo.adamw(0.1, weight_decay=0.1, mask=matrices), layout_invariant=False),
    Row("nadam", lambda: fo.nadam(0.1)),
    Row("nadam/optax", lambda: fo.nadam(0.1, form="optax")),
    Row("nadam/article", lambda: fo.nadam(0.1, form="article", weight_decay=0.1, decoupled=True)),
    Row("nadam/article_raw", lambda: fo.nadam(0.1, form="article_raw")),
    Row("radam", lambda: fo.radam(0.1, **MEMORY)),
    Row("radam/optax", lambda: fo.radam(0.1, **MEMORY, eps_debiased=True, softplus_beta=20.0)),
    Row("radam/decoupled", lambda: fo.radam(0.1, **MEMORY, weight_decay=0.1, decoupled=True)),
    Row("qhadam", lambda: fo.qhadam(0.1, nu2=0.9, weight_decay=0.1)),
    Row("lion", lambda: fo.lion(0.1)),
    Row(
        "lion/masked",
        lambda: fo.lion(0.1, **MEMORY, weight_decay=0.1, mask=matrices, maximize=True),
        layout_invariant=False,
        ascends=True,
    ),
    Row(
        "adafactor", lambda: fo.adafactor(0.45), layout_invariant=False
    ),  # with which 1/√t takes over at the fifth step
    Row(
        "adafactor/decoupled",
        lambda: fo.adafactor(0.1, 0.6, 1e-3, 0.1, math.inf, maximize=True),
        layout_invariant=False,
        ascends=True,
    ),
    Row("adafactor/optax", lambda: fo.adafactor(0.1, eps=1e-3, step_offset=-2, **IN_OPTAX), layout_invariant=False),
    Row("adafactor/momentum", decayed_adafactor, layout_invariant=False, lr_scales_all=False),
    Row("larc", lambda: fo.larc(0.1, weight_decay=0.1), layout_invariant=False),
    Row("larc/unclipped", lambda: fo.larc(0.1, clip=False, decoupled=False, weight_decay=0.1), layout_invariant=False),
    Row("lamb", lambda: fo.lamb(0.1, weight_decay=0.1), layout_invariant=False),
    Row("lamb/notebook", lambda: fo.lamb(0.1, weight_decay=0.1, form="notebook"), layout_invariant=False),
    Row("lamb/fastai", lambda: fo.lamb(0.1, weight_decay=0.1, form="fastai"), layout_invariant=False),
    Row("lamb/fastai_l2", lambda: fo.lamb(0.1, form="fastai", decoupled=False), layout_invariant=False),
    Row("lookahead", lambda: fo.lookahead(fo.adam(0.1), sync_period=2)),
    Row("lookahead/lamb", lambda: fo.lookahead(fo.lamb(0.1), sync_period=3), layout_invariant=False),
    Row("ranger", lambda: fo.ranger(0.1, **MEMORY, sync_period=3)),
    Row("ranger/softplus", lambda: fo.ranger(0.1, **MEMORY, softplus_beta=50.0)),
    Row("chain/warm", clipped_adamw, couples=True, lr_scales_all=False),  # its lr is a schedule
    Row("chain/scheduled", scheduled_decay),
    Row("chain/lars", lars, layout_invariant=False),
    Row("chain/empty", fo.chain, lr_scales_all=False),
    Row("scheduled", lambda: fo.scheduled(fo.adam(0.1, debias="power"))),
    Row("sequence", lambda: fo.sequence(fo.sgd(0.1, 0.9), fo.adam(0.1))),
    Row("rename", lambda: by_lr(fo.rename(fo.ema(0.8), decay="ema_decay"))),
    Row("identity", fo.identity, lr_scales_all=False),
    Row("set_to_zero", lambda: by_lr(fo.set_to_zero())),
    Row("scale", lambda: fo.scale(-0.1), lr_scales_all=False),
    Row("scale_by_lr", lambda: fo.scale_by_lr(0.1, flip_sign=False)),
    Row("clip", lambda: by_lr(fo.clip(0.5))),
    Row("clip_by_global_norm", lambda: by_lr(fo.clip_by_global_norm(0.5)), couples=True),
    Row("clip_by_global_norm/inf", lambda: by_lr(fo.clip_by_global_norm(math.inf)), couples=True),
    Row("clip_by_block_rms", lambda: by_lr(fo.clip_by_block_rms(0.9)), layout_invariant=False),
    Row("scale_by_param_block_rms", lambda: by_lr(fo.scale_by_param_block_rms(0.9)), layout_invariant=False),
    Row("add_decayed_weights", lambda: by_lr(fo.add_decayed_weights(0.1, mask=matrices)), layout_invariant=False),
    Row("shrink_weights", lambda: fo.chain(fo.scale_by_lr(0.1), fo.shrink_weights(0.1, 0.1))),
    Row(
        "shrink_weights/masked",
        lambda: fo.chain(fo.scale_by_lr(0.1), fo.shrink_weights(0.1, 0.1, mask=matrices)),
        layout_invariant=False,
    ),
    Row("trace", lambda: by_lr(fo.trace(0.9, 0.3, nesterov=True))),
    Row("ema", lambda: by_lr(fo.ema(0.9))),
    Row("ema/raw", lambda: by_lr(fo.ema(0.9, debias=False))),
    Row("scale_by_rms", lambda: by_lr(fo.scale_by_rms(0.9, 1e-6, eps_in_sqrt=True))),
    Row("scale_by_rms/centered", lambda: by_lr(fo.scale_by_rms(0.9, 1e-6, eps_in_sqrt=True, centered=True))),
    Row("scale_momentum_by_rms", lambda: by_lr(fo.scale_momentum_by_rms())),
    Row("scale_by_adam", lambda: by_lr(fo.scale_by_adam(eps_root=1e-8, nesterov="same_step"))),
    Row("scale_by_adam/undamped", lambda: by_lr(fo.scale_by_adam(damped=False))),
    Row("scale_by_nadam", lambda: by_lr(fo.scale_by_nadam(momentum_decay=0.1))),
    Row("scale_by_radam", lambda: by_lr(fo.scale_by_radam(**MEMORY, eps_root=1e-8, threshold=4.0))),
    Row("scale_by_qhadam", lambda: by_lr(fo.scale_by_qhadam(nu1=0.7, nu2=0.9))),
    Row("scale_by_lion", lambda: by_lr(fo.scale_by_lion())),
    Row(
        "scale_by_factored_rms",
        lambda: by_lr(fo.scale_by_factored_rms(min_dim_size_to_factor=2)),
        layout_invariant=False,
    ),
    Row(
        "scale_by_factored_rms/last",
        lambda: by_lr(fo.scale_by_factored_rms(0.6, eps=0.3, axes="last", min_dim_size_to_factor=2, eps_as_floor=True)),
        layout_invariant=False,
    ),
    Row("scale_by_relative_step", lambda: fo.chain(fo.scale_by_relative_step(0.45), fo.scale_by_lr(0.45))),
    Row("average_params", lambda: fo.chain(fo.adamw(0.1), fo.average_params(0.9))),
    Row("average_params/first", lambda: fo.chain(fo.sgd(0.1), fo.average_params(0.9, start="first"))),
    Row(
        "average_params/initial",
        lambda: fo.chain(fo.lamb(0.1), fo.average_params(0.9, start="initial")),
        layout_invariant=False,
    ),
    Row("scale_by_trust_ratio", lambda: by_lr(fo.scale_by_trust_ratio()), layout_invariant=False),
    Row(
        "scale_by_trust_ratio/rms",
        lambda: by_lr(fo.scale_by_trust_ratio(0.01, 0.5, 1e-6, 10.0, norm="rms", one_at_zero=False)),
        layout_invariant=False,
    ),
    Row("scale_by_larc", lambda: by_lr(fo.scale_by_larc(weight_decay=0.1)), layout_invariant=False),
]
