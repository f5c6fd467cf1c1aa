"""The rows of optimizers of signs, sums and momentum."""

from __future__ import annotations

from typing import Any

import functopt as fo
from functopt import Transform, tree
from functopt.optimizers.sign import with_two_axes  # noqa: F401 - reprs are read with it
from registry.problem import Row, by_lr, matrices


def optimism() -> Transform:
    # which is not a part of the learning rate, so that here lr is a schedule
    return fo.optimistic_adam(fo.constant_schedule(0.1), 0.05, nesterov=False)


def not_numbers(params: Any) -> Any:
    return tree.map(lambda p: p.numel() > 1, params)


# Its authors' step is lr·rms(p)·weight_decay·p beside the sign: no bound on the parameters keeps it finite.
UNBOUNDED = {"large": "the decay is relative to the size of the parameters, and grows with its square"}
IN_OPTAX: dict[str, Any] = {"initial_accumulator_value": 0.1, "eps": 1e-7, "eps_in_sqrt": True}

ROWS = [
    Row("adadelta", lambda: fo.adadelta(eps=1e-2)),
    Row("adadelta/l2", lambda: fo.adadelta(0.5, 0.8, 1e-3, 0.1, maximize=True), ascends=True),
    Row("adagrad", lambda: fo.adagrad(0.3)),
    Row("adagrad/decay", lambda: fo.adagrad(0.3, 0.1, 0.1, 0.2, maximize=True), ascends=True),
    Row("adagrad/optax", lambda: fo.adagrad(0.3, **IN_OPTAX)),
    Row("asgd", lambda: fo.asgd(0.1)),
    Row("asgd/averaged", lambda: fo.asgd(0.1, 0.1, t0=2.5, weight_decay=0.1, maximize=True), ascends=True),
    Row("fromage", lambda: fo.fromage(0.1), layout_invariant=False),
    Row("lars", lambda: fo.lars(1.0, trust_coefficient=0.02), layout_invariant=False),
    Row(
        "lars/masked",
        lambda: fo.lars(0.1, 0.1, 0.1, 1e-6, nesterov=True, mask=matrices, trust_ratio_mask=matrices),
        layout_invariant=False,
    ),
    Row("madgrad", lambda: fo.madgrad(0.1)),
    Row("madgrad/l2", lambda: fo.madgrad(0.1, 0.5, 0.1, maximize=True), ascends=True),
    Row("optimistic_adam", lambda: fo.optimistic_adam(0.1)),
    Row("optimistic_adam/optimism", optimism, lr_scales_all=False),
    Row("optimistic_adam_v2", lambda: fo.optimistic_adam_v2(0.1, 0.9, 0.5, eps_root=1e-8)),
    Row("optimistic_gradient_descent", lambda: fo.optimistic_gradient_descent(0.1, optimism=0.5)),
    Row("rmsprop/optax", lambda: fo.rmsprop(0.1, 0.9, momentum=0.9, momentum_of="step", nesterov=True)),
    Row("rprop", lambda: fo.rprop(0.1)),
    Row("rprop/optax", lambda: fo.rprop(0.1, max_step_size=0.15, form="optax", maximize=True), ascends=True),
    Row("sign_sgd", lambda: fo.sign_sgd(0.1)),
    Row("signum", lambda: fo.signum(0.1)),
    Row("sm3", lambda: fo.sm3(0.3), layout_invariant=False),
    Row("sparse_adam", lambda: fo.sparse_adam(0.1)),
    Row("tiger", lambda: fo.tiger(0.1), layout_invariant=False, exceptions=UNBOUNDED),
    Row("tiger/masked", lambda: fo.tiger(0.1, mask=not_numbers), layout_invariant=False, exceptions=UNBOUNDED),
    Row("average_iterates", lambda: fo.chain(fo.sgd(0.1), fo.average_iterates(2.5))),
    Row("scale_by_adadelta", lambda: by_lr(fo.scale_by_adadelta())),
    Row("scale_by_asgd", lambda: fo.scale_by_asgd(0.1, 0.2)),
    Row("scale_by_fromage", lambda: fo.scale_by_fromage(0.1)),
    Row("scale_by_inverse_time", lambda: by_lr(fo.scale_by_inverse_time(0.1))),
    Row("scale_by_lazy_adam", lambda: by_lr(fo.scale_by_lazy_adam(0.8, 0.9))),
    Row("scale_by_madgrad", lambda: fo.scale_by_madgrad(0.1)),
    Row("scale_by_optimistic_gradient", lambda: by_lr(fo.scale_by_optimistic_gradient())),
    Row("scale_by_rprop", lambda: fo.chain(fo.scale_by_rprop(0.2), fo.scale(-1.0))),
    Row("scale_by_rss", lambda: by_lr(fo.scale_by_rss())),
    Row("scale_by_sign", lambda: by_lr(fo.scale_by_sign(), 0.2)),
    Row("scale_by_sm3", lambda: by_lr(fo.scale_by_sm3()), layout_invariant=False),
    Row("scale_by_sm3/averaged", lambda: by_lr(fo.scale_by_sm3(0.5, 0.9)), layout_invariant=False),
    Row("scale_by_tiger", lambda: by_lr(fo.scale_by_tiger(0.8)), layout_invariant=False, exceptions=UNBOUNDED),
    Row(
        "scale_by_trust_ratio/masked",
        lambda: by_lr(fo.scale_by_trust_ratio(0.5, mask=matrices)),
        layout_invariant=False,
    ),
]
