"""The rows of optimizers that find their learning rate, or average it away."""

from __future__ import annotations

from typing import Any

import functopt as fo
from functopt import Transform
from registry.problem import Row, by_lr, matrices, with_loss


def signed(link: Transform) -> Transform:
    return fo.chain(link, fo.scale(-1.0))


def coupled(id: str, make: Any, **flags: Any) -> Row:
    return Row(id, make, couples=True, **flags)


# First guesses that are larger than the defaults, with which these rules hardly move in the few steps of the tests.
D0: Any = {"estim_lr0": 0.05}
MEMORY: Any = {"beta1": 0.8, "beta2": 0.9}

ROWS = [
    Row(
        "scale_by_distance_over_gradients",
        lambda: fo.scale_by_distance_over_gradients(0.05, 1e-2, global_scale=-1.0),
        layout_invariant=False,
        lr_scales_all=False,
    ),
    coupled("scale_by_dog", lambda: by_lr(fo.scale_by_dog(0.05, 1e-2))),
    coupled("scale_by_dowg", lambda: by_lr(fo.scale_by_dowg(0.05))),
    coupled("scale_by_polyak", lambda: with_loss(by_lr(fo.scale_by_polyak()))),
    Row("scale_by_cocob", lambda: fo.scale_by_cocob(10.0), lr_scales_all=False),
    coupled("scale_by_dadapt_adam", lambda: fo.scale_by_dadapt_adam(**MEMORY, **D0, bias_correction=False)),
    coupled("scale_by_prodigy", lambda: fo.scale_by_prodigy(**MEMORY, **D0, bias_correction=False)),
    coupled("scale_by_momo", lambda: with_loss(fo.scale_by_momo(0.1))),
    coupled("scale_by_momo/adapted", lambda: with_loss(fo.scale_by_momo(0.5, adapt_lower_bound=True))),
    coupled("scale_by_momo_adam", lambda: with_loss(fo.scale_by_momo_adam(0.1))),
    coupled("scale_by_momo_adam/adapted", lambda: with_loss(fo.scale_by_momo_adam(0.5, adapt_lower_bound=True))),
    coupled("dog", lambda: fo.dog(0.9, 0.05, weight_decay=0.1)),
    coupled("dog/distance", lambda: fo.dog(0.9, 0.1, init_step_type="distance")),
    coupled(
        "dog/learning_rate",
        lambda: fo.dog(init_step=0.02, init_step_type="learning_rate", weight_decay=0.1, mask=matrices),
        layout_invariant=False,
    ),
    coupled("dowg", lambda: fo.dowg(init_estim_sq_dist=0.05, weight_decay=0.1)),
    coupled("polyak_sgd", lambda: with_loss(fo.polyak_sgd())),
    coupled("polyak_sgd/optax", lambda: with_loss(fo.polyak_sgd(0.5, 0.3, variant="sps+", form="optax"))),
    Row("cocob", lambda: fo.cocob(alpha=10.0, weight_decay=0.1)),
    coupled("dadapt_adamw", lambda: fo.dadapt_adamw(**D0, weight_decay=0.1)),
    coupled("prodigy", lambda: fo.prodigy(**D0)),
    coupled("prodigy/safeguard", lambda: fo.prodigy(**MEMORY, beta3=0.9, **D0, safeguard_warmup=True)),
    coupled("momo", lambda: with_loss(fo.momo(0.1, weight_decay=0.1))),
    coupled("momo/paper", lambda: with_loss(fo.momo(0.1, weight_decay=0.1, form="paper"))),
    coupled("momo_adam", lambda: with_loss(fo.momo_adam(0.1, weight_decay=0.1))),
    Row("schedule_free", lambda: fo.schedule_free(fo.adamw(0.1, beta1=0.0, weight_decay=0.1))),
    Row(
        "schedule_free/lamb",
        lambda: fo.schedule_free(fo.lamb(0.1), 0.8, 1.5, warmup_steps=3.5),
        layout_invariant=False,
    ),
    Row("schedule_free_sgd", lambda: fo.schedule_free_sgd(0.1, weight_decay=0.1)),
    Row("schedule_free_adamw", lambda: fo.schedule_free_adamw(0.1, beta2=0.9, eps=1e-2)),
    Row(
        "schedule_free_adamw/optax",
        lambda: fo.schedule_free_adamw(0.1, weight_decay=0.1, warmup_steps=3.5, warmup_from_zero=True, mask=matrices),
        layout_invariant=False,
    ),
    coupled("mechanize", lambda: fo.mechanize(fo.sgd(0.1), s_init=0.05)),
    coupled("mechanize/adamw", lambda: fo.mechanize(fo.adamw(0.1), s_init=0.05, num_betas=3)),
]
