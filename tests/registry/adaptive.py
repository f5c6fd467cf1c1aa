"""The rows of optimizers that divide by a running second moment."""

from __future__ import annotations

from typing import Any

import functopt as fo
from functopt import Transform, tree
from registry.problem import Row, by_lr, matrices

# Slow memories become fast enough to matter within the steps of the tests.
FAST: Any = {"beta1": 0.8, "beta2": 0.9}


def halves(params: Any) -> Any:
    """Blocks: the two halves of a matrix that has them, rows elsewhere."""
    return tree.map(lambda p: 2 if p.ndim == 2 and p.shape[0] % 2 == 0 else "row", params)


def warmed_up() -> Transform:
    slow = fo.linear_schedule(0.8, 0.95, 5)
    return fo.ademamix(0.1, beta3=slow, alpha=fo.linear_schedule(0.0, 2.0, 5), weight_decay=0.1)


def cautious_adamw() -> Transform:
    link = fo.cautious(fo.scale_by_adam(**FAST), rescale="paper", descends=False)
    return fo.chain(link, fo.add_decayed_weights(0.1, mask=matrices), fo.scale_by_lr(0.1))


ROWS: list[Row] = [
    Row("adam/amsgrad", lambda: fo.adam(0.1, **FAST, weight_decay=0.1, amsgrad=True)),
    Row("adamw/amsgrad", lambda: fo.adamw(0.1, **FAST, amsgrad=True)),
    Row("amsgrad", lambda: fo.amsgrad(0.1, **FAST)),
    Row("amsgrad/paper", lambda: fo.amsgrad(0.1, **FAST, bias_correction_mu=False, bias_correction_nu=False)),
    Row("adamax", lambda: fo.adamax(0.1)),
    Row("adamax/l2", lambda: fo.adamax(0.1, weight_decay=0.1, maximize=True), ascends=True),
    Row("adamaxw", lambda: fo.adamaxw(0.1, weight_decay=0.1)),
    Row("adabelief", lambda: fo.adabelief(0.1)),
    Row("adabelief/nesterov", lambda: fo.adabelief(0.1, **FAST, eps=1e-8, weight_decay=0.1, nesterov=True)),
    Row("acprop", lambda: fo.acprop(0.1, weight_decay=0.1)),
    Row("yogi", lambda: fo.yogi(0.1, initial_accumulator_value=0.1)),
    Row("adan", lambda: fo.adan(0.1)),
    Row("adan/paper", lambda: fo.adan(0.1, eps_root=0.0, weight_decay=0.1, form="paper")),
    Row("mars", lambda: fo.mars(0.1, weight_decay=0.1), layout_invariant=False),
    Row("mars/code", lambda: fo.mars(0.1, gamma=0.1, max_norm=2.0, form="code"), layout_invariant=False),
    Row("ademamix", lambda: fo.ademamix(0.05, beta3=0.99)),
    Row("ademamix/warmed_up", warmed_up),
    Row("simplified_ademamix", lambda: fo.simplified_ademamix(0.01, beta1=0.9)),
    Row("simplified_ademamix/alpha", lambda: fo.simplified_ademamix(0.01, 0.9, 0.9, 2.0, weight_decay=0.1)),
    Row("laprop", lambda: fo.laprop(0.1)),
    Row("adopt", lambda: fo.adopt(0.1)),
    Row("adopt/l2", lambda: fo.adopt(0.1, **FAST, weight_decay=0.1, nesterov=True)),
    Row("adopt/unclipped", lambda: fo.adopt(0.1, weight_decay=0.1, use_clipping=False, decoupled=True)),
    Row("novograd", lambda: fo.novograd(0.03), layout_invariant=False),
    Row("novograd/masked", lambda: fo.novograd(0.03, weight_decay=0.1, mask=matrices), layout_invariant=False),
    Row("nadamw", lambda: fo.nadamw(0.1)),
    Row("nadamw/torch", lambda: fo.nadamw(0.1, weight_decay=0.1, form="torch")),
    Row("adam_mini", lambda: fo.adam_mini(0.1), layout_invariant=False),
    Row("adam_mini/rows", lambda: fo.adam_mini(0.1, weight_decay=0.1, blocks="row"), layout_invariant=False),
    Row("stable_adamw", lambda: fo.stable_adamw(0.1), layout_invariant=False),
    Row("stable_adamw/masked", lambda: fo.stable_adamw(0.1, weight_decay=0.1, mask=matrices), layout_invariant=False),
    Row("cautious", lambda: fo.cautious(fo.adamw(0.1)), layout_invariant=False),
    Row("cautious/paper", cautious_adamw, layout_invariant=False),
    Row("cautious/none", lambda: fo.cautious(fo.sgd(0.1, 0.9), rescale="none")),
    Row("scale_by_stddev", lambda: by_lr(fo.scale_by_stddev(0.8, 1e-6))),
    Row(
        "scale_by_stddev/debiased",
        lambda: by_lr(fo.scale_by_stddev(0.9, 1e-3, 0.1, eps_in_sqrt=False, bias_correction=True)),
    ),
    Row("scale_by_amsgrad", lambda: by_lr(fo.scale_by_amsgrad(eps_root=1e-8))),
    Row("scale_by_adamax", lambda: by_lr(fo.scale_by_adamax())),
    Row("scale_by_belief", lambda: by_lr(fo.scale_by_belief())),
    Row("scale_by_acprop", lambda: by_lr(fo.scale_by_acprop())),
    Row("scale_by_yogi", lambda: by_lr(fo.scale_by_yogi(**FAST, eps_root=1e-8, initial_accumulator_value=0.2))),
    Row("scale_by_adan", lambda: by_lr(fo.scale_by_adan(form="paper"))),
    Row("reduce_variance", lambda: by_lr(fo.reduce_variance(gamma=0.1)), layout_invariant=False),
    Row("scale_by_ademamix", lambda: by_lr(fo.scale_by_ademamix(beta3=0.99, eps_root=1e-8))),
    Row("scale_by_simplified_ademamix", lambda: by_lr(fo.scale_by_simplified_ademamix(0.9, eps_root=1e-8), 0.01)),
    Row("scale_by_laprop", lambda: by_lr(fo.scale_by_laprop())),
    Row("scale_by_adopt", lambda: by_lr(fo.scale_by_adopt())),
    Row("scale_by_novograd", lambda: by_lr(fo.scale_by_novograd(weight_decay=0.1), 0.03), layout_invariant=False),
    Row("scale_by_adam_mini", lambda: by_lr(fo.scale_by_adam_mini()), layout_invariant=False),
    Row("scale_by_adam_mini/parts", lambda: by_lr(fo.scale_by_adam_mini(blocks=halves)), layout_invariant=False),
    Row("scale_by_stable_adam", lambda: by_lr(fo.scale_by_stable_adam(weight_decay=0.1)), layout_invariant=False),
]
