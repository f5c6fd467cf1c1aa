"""Cases of the comparison with optax: optimizers that divide by a running second moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import functopt as fo
from functopt import Transform
from parity.case import Case

# Memories that matter within the twenty steps.
DECAYS = {"b1": (0.5, 0.95), "b2": (0.8, 0.999)}
THIRD = {"b3": "beta3"}


def scaled(theirs: str, ours: Callable[..., Transform], **more: Any) -> Case:
    """Return the case of a link, after which a step is taken."""
    return Case(
        f"lambda **given: optax.chain({theirs}(**given), optax.scale(-0.05))",
        lambda **given: fo.chain(ours(**given), fo.scale_by_lr(0.05)),
        **more,
    )


CASES: dict[str, Case] = {
    "adamw": Case(
        "optax.adamw",
        fo.adamw,
        options={"learning_rate": 0.05, "weight_decay": 1e-4},
        draws={"b1": (0.5, 0.95), "b2": (0.8, 0.999), "eps": (1e-8, 1e-2), "weight_decay": (0.0, 0.2)},
    ),
    "nadamw": Case(
        "optax.nadamw",
        fo.nadamw,
        options={"learning_rate": 0.05},
        draws={**DECAYS, "eps": (1e-8, 1e-2), "weight_decay": (0.0, 0.2)},
    ),
    "adabelief": Case(
        "optax.adabelief",
        fo.adabelief,
        options={"learning_rate": 0.05},
        draws={**DECAYS, "eps": (1e-16, 1e-2), "eps_root": (1e-16, 1e-2)},
    ),
    "adabelief/nesterov": Case(
        "optax.adabelief",
        fo.adabelief,
        options={"learning_rate": 0.05, "nesterov": True},
        draws={**DECAYS, "eps": (1e-16, 1e-2), "eps_root": (1e-16, 1e-2)},
    ),
    "adamax": Case("optax.adamax", fo.adamax, {"learning_rate": 0.05}, draws={**DECAYS, "eps": (1e-8, 1e-2)}),
    "adamaxw": Case(
        "optax.adamaxw",
        fo.adamaxw,
        options={"learning_rate": 0.05},
        draws={**DECAYS, "eps": (1e-8, 1e-2), "weight_decay": (0.0, 0.2)},
    ),
    "adan": Case(
        "optax.adan",
        fo.adan,
        options={"learning_rate": 0.05},
        draws={**DECAYS, "b3": (0.8, 0.999), "eps": (1e-8, 1e-2), "eps_root": (1e-8, 1e-2), "weight_decay": (0.0, 0.2)},
        names=THIRD,
    ),
    "amsgrad": Case(
        "optax.amsgrad",
        fo.amsgrad,
        options={"learning_rate": 0.05},
        draws={**DECAYS, "eps": (1e-8, 1e-2), "eps_root": (1e-8, 1e-2)},
    ),
    "amsgrad/raw": Case(
        "optax.amsgrad",
        fo.amsgrad,
        options={"learning_rate": 0.05, "bias_correction_mu": False, "bias_correction_nu": False},
        draws={**DECAYS, "eps": (1e-8, 1e-2), "eps_root": (1e-8, 1e-2)},
    ),
    "novograd": Case(
        "optax.novograd",
        fo.novograd,
        options={"learning_rate": 0.05},
        draws={
            "b1": (0.5, 0.95),
            "b2": (0.2, 0.99),
            "eps": (1e-8, 1e-2),
            "eps_root": (1e-8, 1e-2),
            "weight_decay": (0.0, 0.2),
        },
    ),
    "yogi": Case("optax.yogi", fo.yogi, {"learning_rate": 0.05}, draws={**DECAYS, "eps": (1e-8, 1e-2)}),
    "acprop": Case(
        "optax.contrib.acprop",
        fo.acprop,
        options={"learning_rate": 0.05},
        draws={**DECAYS, "eps": (1e-16, 1e-2), "eps_root": (1e-16, 1e-2), "weight_decay": (0.0, 0.2)},
    ),
    "ademamix": Case(
        "optax.contrib.ademamix",
        fo.ademamix,
        options={"learning_rate": 0.05},
        draws={
            **DECAYS,
            "b3": (0.9, 0.9999),
            "alpha": (0.0, 8.0),
            "eps": (1e-8, 1e-2),
            "eps_root": (1e-8, 1e-2),
            "weight_decay": (0.0, 0.2),
        },
        names=THIRD,
    ),
    "ademamix/scheduled": Case(
        "lambda **options: optax.contrib.ademamix(**options, b3=optax.linear_schedule(0.8, 0.99, 10), "
        "alpha=optax.linear_schedule(0.0, 5.0, 10))",
        fo.ademamix,
        options={"learning_rate": 0.05},
        draws={"b1": (0.5, 0.95)},
        bridge={"beta3": fo.linear_schedule(0.8, 0.99, 10), "alpha": fo.linear_schedule(0.0, 5.0, 10)},
    ),
    "simplified_ademamix": Case(
        "optax.contrib.simplified_ademamix",
        fo.simplified_ademamix,
        options={"learning_rate": 0.001},
        draws={
            "b1": (0.5, 0.99),
            "b2": (0.8, 0.999),
            "alpha": (0.0, 100.0),
            "eps": (1e-8, 1e-2),
            "eps_root": (1e-8, 1e-2),
            "weight_decay": (0.0, 0.2),
        },
    ),
    "adopt": Case(
        "optax.contrib.adopt",
        fo.adopt,
        options={"learning_rate": 0.05},
        draws={"b1": (0.5, 0.95), "b2": (0.8, 0.9999), "eps": (1e-6, 0.3)},
    ),
    "adopt/nesterov": Case(
        "optax.contrib.adopt",
        fo.adopt,
        options={"learning_rate": 0.05, "nesterov": True},
        draws={"b1": (0.5, 0.95), "b2": (0.8, 0.9999), "eps": (1e-6, 0.3)},
    ),
    "adopt/unclipped": Case(
        "optax.contrib.adopt",
        fo.adopt,
        options={"learning_rate": 0.05, "use_clipping": False},
        draws={"b1": (0.5, 0.95), "b2": (0.8, 0.9999), "eps": (1e-6, 0.3)},
    ),
    "adopt/square_root": Case(
        "lambda **options: optax.contrib.adopt(**options, clip_value_fn=jnp.sqrt)",
        fo.adopt,
        options={"learning_rate": 0.05},
        draws={"b1": (0.5, 0.95), "b2": (0.8, 0.9999)},
        bridge={"clip_exponent": 0.5},
    ),
    "scale_by_stddev": scaled(
        "optax.scale_by_stddev",
        fo.scale_by_stddev,
        draws={"decay": (0.8, 0.99), "eps": (1e-8, 1e-2), "initial_scale": (0.1, 1.0)},
    ),
    "scale_by_stddev/debiased": scaled(
        "optax.scale_by_stddev",
        fo.scale_by_stddev,
        options={"eps_in_sqrt": False, "bias_correction": True, "eps": 1e-3, "initial_scale": 0.5},
        draws={"decay": (0.8, 0.99), "initial_scale": (0.1, 1.0)},
    ),
    "scale_by_rms": scaled(
        "optax.scale_by_rms",
        fo.scale_by_rms,
        draws={"decay": (0.8, 0.99), "eps": (1e-8, 1e-2), "initial_scale": (0.0, 1.0)},
        options={"decay": 0.9, "eps_in_sqrt": True},
    ),
    "scale_by_rms/debiased": scaled(
        "optax.scale_by_rms",
        fo.scale_by_rms,
        draws={"decay": (0.8, 0.99), "eps": (1e-8, 1e-2), "initial_scale": (0.0, 1.0)},
        options={"decay": 0.9, "eps_in_sqrt": True, "bias_correction": True},
    ),
    "scale_by_yogi": scaled(
        "optax.scale_by_yogi",
        fo.scale_by_yogi,
        draws={**DECAYS, "eps": (1e-8, 1e-2), "eps_root": (1e-8, 1e-2), "initial_accumulator_value": (1e-6, 1.0)},
    ),
    "scale_by_adan": scaled("optax.scale_by_adan", fo.scale_by_adan),
    "scale_by_novograd": scaled("optax.scale_by_novograd", fo.scale_by_novograd),
    "scale_by_ademamix": scaled("optax.contrib.scale_by_ademamix", fo.scale_by_ademamix),
}
