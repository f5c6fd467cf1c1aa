"""Draw the reference data for test_optax_parity.py and test_schedules.py with the real optax, in float64.

Run it by hand, in an environment of its own, from the root of the repository::

    python3 -m venv optaxenv && optaxenv/bin/pip install optax==0.2.8 jax==0.10.2
    optaxenv/bin/python tests/data/make_optax.py

It writes ``optax.npz`` (numbers) and ``optax.json`` (versions, and the call behind every case) beside itself. The calls
are optax's; the tests know the same cases in functopt's words under the same names.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, cast

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np
import optax  # pyright: ignore[reportMissingImports]
from optax._src import factorized  # pyright: ignore[reportMissingImports]

jax.config.update("jax_enable_x64", True)

STEPS = 30
SHAPES = {"bias": (3,), "weight": (4, 3)}
# Axes that are factored or too small for it, first or last or in the middle, and of one size.
BLOCKS = {"bias": (3,), "gain": (), "kernel": (3, 1, 2, 3), "square": (3, 3), "tall": (4, 2), "weight": (3, 2, 4)}
HERE = Path(__file__).parent
MASK = {"bias": False, "weight": True}

# optax's schedules compute with an int32 count in float32, even in 64-bit mode; given a float they are exact.
WARMUP = optax.warmup_cosine_decay_schedule(0.01, 0.1, 5, 25, 0.002)


def exact(schedule):
    return lambda count: schedule(jnp.asarray(count, jnp.float64))


def exact_decay(step, rate):
    # optax computes this too in float32, even in 64-bit mode
    return 1.0 - (jnp.asarray(step, jnp.float64) + 1.0) ** -rate


def capped_decay(step, rate):
    return jnp.minimum(exact_decay(step, rate), 0.7)


factorized.scale_by_factored_rms = functools.partial(factorized.scale_by_factored_rms, decay_rate_fn=exact_decay)


def lr(tx):
    return f"optax.chain({tx}, optax.scale_by_learning_rate(0.05))"


TRAJECTORIES = {
    "sgd": "optax.sgd(0.05)",
    "sgd/momentum": "optax.sgd(0.05, momentum=0.9)",
    "sgd/nesterov": "optax.sgd(0.05, momentum=0.9, nesterov=True)",
    "adam": "optax.adam(0.05, b1=0.8, b2=0.95, eps=1e-6)",
    "adam/eps_root": lr("optax.scale_by_adam(b1=0.8, b2=0.95, eps=1e-6, eps_root=1e-4)"),
    "nadam": "optax.adam(0.05, b1=0.8, b2=0.95, eps=1e-6, nesterov=True)",
    "nadamw": "optax.nadamw(0.05, b1=0.8, b2=0.95, weight_decay=0.1)",
    "adamw": "optax.adamw(0.05, weight_decay=0.1)",
    "adamw/mask": "optax.adamw(0.05, b1=0.8, b2=0.95, weight_decay=0.1, mask=MASK)",
    # thresholds that no rho meets exactly, since optax rectifies at equality and we above it
    "radam": "optax.radam(0.05, b1=0.8, b2=0.95, eps=1e-3, threshold=4.3)",
    "radam/late": "optax.radam(0.05, eps=1e-3)",
    "rms": lr("optax.scale_by_rms(decay=0.9, eps=1e-3, eps_in_sqrt=True)"),
    "rms/outside": lr("optax.scale_by_rms(decay=0.9, eps=1e-3, eps_in_sqrt=False)"),
    "rms/centered": lr("optax.scale_by_stddev(decay=0.9, eps=1e-3, eps_in_sqrt=True)"),
    "lamb": "optax.lamb(0.05, weight_decay=0.1)",
    "lamb/mask": "optax.lamb(0.05, b1=0.8, b2=0.95, weight_decay=0.1, mask=MASK)",
    "lion": "optax.lion(0.05)",
    "lion/mask": "optax.lion(0.05, b1=0.8, b2=0.95, weight_decay=0.1, mask=MASK)",
    "warmup": "optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(exact(WARMUP), weight_decay=0.1))",
    "clip": lr("optax.clip(0.3)"),
    "clip_by_global_norm": lr("optax.clip_by_global_norm(2.0)"),
    "clip_by_block_rms": lr("optax.clip_by_block_rms(0.9)"),
    "param_block_rms": lr("optax.scale_by_param_block_rms(1.0)"),
    "trace": lr("optax.trace(0.9)"),
    "trace/nesterov": lr("optax.trace(0.9, nesterov=True)"),
    "ema": lr("optax.ema(0.9, debias=True)"),
    "ema/raw": lr("optax.ema(0.9, debias=False)"),
    "trust_ratio": lr("optax.scale_by_trust_ratio()"),
    "trust_ratio/options": lr("optax.scale_by_trust_ratio(min_norm=2.5, trust_coefficient=0.3, eps=0.1)"),
    "decay/l2": lr("optax.chain(optax.add_decayed_weights(0.1), optax.scale_by_adam())"),
    "decay/mask": lr("optax.add_decayed_weights(0.1, mask=MASK)"),
    "lars": "optax.chain(optax.scale_by_trust_ratio(), optax.scale_by_learning_rate(0.05), optax.trace(0.9))",
    "scale": "optax.scale(-0.05)",
    "identity": lr("optax.identity()"),
}

FACTORED = {
    "factored_rms": lr("factorized.scale_by_factored_rms(min_dim_size_to_factor=3)"),
    "factored_rms/two": lr("factorized.scale_by_factored_rms(min_dim_size_to_factor=2, decay_rate=0.6, epsilon=0.1)"),
    "factored_rms/offset": lr("factorized.scale_by_factored_rms(step_offset=-5, min_dim_size_to_factor=2)"),
    "factored_rms/capped": lr("factorized.scale_by_factored_rms(min_dim_size_to_factor=2, decay_rate_fn=capped_decay)"),
    "factored_rms/small": lr("factorized.scale_by_factored_rms()"),
    "factored_rms/whole": lr("factorized.scale_by_factored_rms(factored=False, min_dim_size_to_factor=2)"),
    "adafactor": "optax.adafactor(0.05, min_dim_size_to_factor=2)",
    "adafactor/decay": "optax.adafactor(0.05, 2, clipping_threshold=1.2, momentum=0.8, dtype_momentum=jnp.float64, "
    "weight_decay_rate=0.01, weight_decay_mask=lambda params: {name: p.ndim > 1 for name, p in params.items()})",
    "adafactor/plain": "optax.adafactor(0.05, 2, 0.7, -3, False, None, eps=1e-3, factored=False)",
}

COUNTS = [*range(31), 0.5, 4.999, 5.001, 12.25, 24.9, 40.0, 1000.0]
SCHEDULES = {
    "constant": "optax.constant_schedule(0.3)",
    "linear": "optax.linear_schedule(0.1, 1.0, 10, transition_begin=3)",
    "linear/down": "optax.linear_schedule(1.0, 0.0, 20)",
    "polynomial": "optax.polynomial_schedule(1.0, 0.1, 2.0, 10, transition_begin=5)",
    "polynomial/root": "optax.polynomial_schedule(0.2, 1.0, 0.5, 20)",
    "cosine_decay": "optax.cosine_decay_schedule(0.5, 20)",
    "cosine_decay/alpha": "optax.cosine_decay_schedule(0.5, 20, alpha=0.1)",
    "cosine_decay/exponent": "optax.cosine_decay_schedule(0.5, 20, alpha=0.1, exponent=1.7)",
    "exponential": "optax.exponential_decay(0.5, 10, 0.3)",
    "exponential/begin": "optax.exponential_decay(0.5, 10, 0.3, transition_begin=5)",
    "join": "optax.join_schedules([optax.linear_schedule(0.0, 1.0, 5), optax.cosine_decay_schedule(1.0, 10), "
    "optax.exponential_decay(0.3, 5, 0.5)], [5, 15])",
    "onecycle": "optax.cosine_onecycle_schedule(20, 0.4, pct_start=0.25, div_factor=10.0, final_div_factor=100.0)",
    "onecycle/defaults": "optax.cosine_onecycle_schedule(20, 0.4)",
    "warmup_cosine": "optax.warmup_cosine_decay_schedule(0.01, 0.1, 5, 25, 0.002)",
    "warmup_cosine/exponent": "optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 30, 0.01, exponent=2.0)",
}


def trajectory(tx, params: Any, grads):
    state, rows = tx.init(params), {name: [] for name in params}
    for step in range(len(grads["bias"])):
        updates, state = tx.update({name: grads[name][step] for name in grads}, state, params)
        params = cast(Any, optax.apply_updates(params, updates))
        for name, value in params.items():
            rows[name].append(np.asarray(value))
    return {name: np.stack(values) for name, values in rows.items()}


def problem(shapes, seed, steps):
    draw = np.random.default_rng(seed)
    init = {name: 1 + 0.5 * draw.standard_normal(shape) for name, shape in shapes.items()}
    grads = {name: 0.3 + draw.standard_normal((steps, *shape)) for name, shape in shapes.items()}
    grads["bias"][7] = 0.0  # a leaf without a gradient, for trust ratios and clipping
    return init, grads


def main():
    arrays = {}
    for prefix, shapes, seed, steps, cases in (
        ("", SHAPES, 0, STEPS, TRAJECTORIES),
        ("factored/", BLOCKS, 1, STEPS // 2, FACTORED),
    ):
        init, grads = problem(shapes, seed, steps)
        arrays |= {f"{prefix}init/{name}": value for name, value in init.items()}
        arrays |= {f"{prefix}grads/{name}": value for name, value in grads.items()}
        jinit = {name: jnp.asarray(value) for name, value in init.items()}
        jgrads = {name: jnp.asarray(value) for name, value in grads.items()}
        for case, call in cases.items():
            for name, rows in trajectory(eval(call), jinit, jgrads).items():
                assert rows.dtype == np.float64
                arrays[f"{prefix}trajectory/{case}/{name}"] = rows
    arrays["counts"] = np.asarray(COUNTS, np.float64)
    for case, call in SCHEDULES.items():
        schedule = exact(eval(call))
        arrays[f"schedule/{case}"] = np.asarray([schedule(count) for count in COUNTS], np.float64)
    np.savez_compressed(HERE / "optax.npz", **arrays)
    facts = {
        "optax": optax.__version__,
        "jax": jax.__version__,
        "steps": STEPS,
        "trajectories": TRAJECTORIES,
        "factored": FACTORED,
        "schedules": SCHEDULES,
    }
    (HERE / "optax.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
