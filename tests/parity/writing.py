"""Cases of the comparison with optax: wrappers that own how parameters are written, and schedules."""

from __future__ import annotations

from typing import Any

import functopt as fo
from parity.case import Case


def course(name: str, draws: Any = None, **options: Any) -> Case:
    """A schedule as the learning rate of plain descent, so that every step shows one of its values."""
    make = getattr(fo, name)
    return Case(f"(lambda **kw: optax.sgd(optax.{name}(**kw)))", lambda **kw: fo.sgd(make(**kw)), options, draws or {})


def projected(projection: str, draws: Any = None, **options: Any) -> Case:
    """A projection after every step of descent with momentum."""
    function = getattr(fo, projection)
    return Case(
        f"(lambda **kw: projected({projection!r}, **kw))",
        lambda **kw: fo.projected(fo.sgd(0.2, 0.9), function, **kw),
        options,
        draws or {},
        problem="loss",
    )


def their_projected(projection: str, **settings: Any) -> Any:
    """Return descent with a projection in the words of optax, where the user's loop projects."""
    import jax  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    inner = optax.sgd(0.2, momentum=0.9)
    project = getattr(optax.projections, projection.replace("hypercube", "box"))

    def update(grads: Any, state: Any, params: Any) -> Any:
        updates, state = inner.update(grads, state, params)
        given = settings
        if projection in ("projection_box", "projection_hypercube"):
            # whatever its documentation says, beside a tree it takes no numbers; a hypercube fails on every tree
            bounds = {"lower": settings.get("lower", 0.0), "upper": settings.get("upper", settings.get("scale", 1.0))}
            given = {name: optax.tree.full_like(params, bound) for name, bound in bounds.items()}
        new = project(optax.apply_updates(params, updates), **given)
        return jax.tree.map(lambda n, p: n - p, new, params), state

    made: Any = optax.GradientTransformation
    return made(inner.init, update)


def their_sam(optimizer: Any, adversary: Any, **options: Any) -> Any:
    """Return optax's sam with a gradient for its opaque mode, from the loss that the problem gives."""
    import jax  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    inner = optax.contrib.sam(optimizer, adversary, **options)

    def update(grads: Any, state: Any, params: Any, *, value_fn: Any, **extras: Any) -> Any:
        return inner.update(grads, state, params, grad_fn=lambda at, i: jax.grad(value_fn)(at))

    made: Any = optax.GradientTransformationExtraArgs
    return made(inner.init, update)


THEIRS: dict[str, Any] = {"projected": their_projected, "sam": their_sam}


def sam(**options: Any) -> Case:
    """The paper's adversary."""
    return Case(
        "(lambda learning_rate, b1, radius, **kw: sam(optax.adam(learning_rate, b1), "
        "optax.chain(optax.contrib.normalize(), optax.sgd(radius)), **kw))",
        lambda lr, beta1, radius, **kw: fo.sam(fo.adam(lr, beta1), fo.sam_ascent(radius), **kw),
        {"learning_rate": 0.1, "b1": 0.9, "radius": 0.05, **options},
        {"learning_rate": (0.01, 0.2), "b1": (0.5, 0.95), "radius": (0.01, 0.5)},
        problem="loss",
    )


def sam_with_momentum(**options: Any) -> Case:
    """An adversary with a state."""
    return Case(
        "(lambda learning_rate, radius, **kw: sam(optax.sgd(learning_rate, 0.9), optax.sgd(radius, 0.8), **kw))",
        lambda lr, radius, **kw: fo.sam(
            fo.sgd(lr, 0.9),
            fo.rename(fo.chain(fo.trace(0.8), fo.scale_by_lr(radius)), lr="radius", momentum="adv_momentum"),
            **kw,
        ),
        {"learning_rate": 0.05, "radius": 0.05, **options},
        {"learning_rate": (0.01, 0.1), "radius": (0.01, 0.1)},
        problem="loss",
    )


WRAPPERS: dict[str, Case] = {
    "sam": sam(),
    "sam/period": sam(sync_period=4),
    "sam/momentum": sam_with_momentum(sync_period=3),
    "sam/kept": sam_with_momentum(sync_period=3, reset_state=False),
    "sam/opaque": sam(opaque_mode=True),
    "sam/opaque_kept": sam_with_momentum(sync_period=3, reset_state=False, opaque_mode=True),
    "projection_non_negative": projected("projection_non_negative"),
    "projection_box": projected(
        "projection_box", draws={"lower": (-0.5, 0.2), "upper": (0.3, 1.2)}, lower=-0.2, upper=0.5
    ),
    "projection_hypercube": projected("projection_hypercube", draws={"scale": (0.3, 1.2)}),
    "projection_linf_ball": projected("projection_linf_ball", draws={"scale": (0.3, 1.2)}),
    **{
        name: projected(name, draws={"scale": (0.5, 9.0)})
        for name in (
            "projection_simplex",
            "projection_l1_sphere",
            "projection_l1_ball",
            "projection_l2_sphere",
            "projection_l2_ball",
        )
    },
}

VALUES: Any = {"init_value": (0.01, 0.5), "end_value": (0.01, 0.5)}
LENGTHS: Any = {"transition_steps": (5.0, 15.0), "transition_begin": (0.0, 5.0)}
DECAY: Any = {"decay_rate": (0.1, 0.9), **LENGTHS}
WARM: Any = {"init_value": (0.0, 0.1), "peak_value": (0.1, 0.5), "warmup_steps": (2.0, 8.0)}
STEPS: Any = {4: 0.5, 9: 2.0, 15: 0.1}
CYCLES: Any = [
    {"init_value": 0.0, "peak_value": 0.5, "warmup_steps": 2, "decay_steps": 8, "end_value": 0.1},
    {"init_value": 0.1, "peak_value": 0.3, "warmup_steps": 1, "decay_steps": 6, "end_value": 0.02, "exponent": 2.0},
    {"init_value": 0.02, "peak_value": 0.2, "warmup_steps": 1, "decay_steps": 5},
]

SCHEDULES: dict[str, Case] = {
    "constant_schedule": course("constant_schedule", {"value": (0.01, 0.5)}, value=0.1),
    "linear_schedule": course(
        "linear_schedule", {**VALUES, **LENGTHS}, init_value=0.5, end_value=0.0, transition_steps=9
    ),
    "polynomial_schedule": course(
        "polynomial_schedule",
        {**VALUES, **LENGTHS, "power": (0.4, 3.0)},
        init_value=0.5,
        end_value=0.01,
        power=2.0,
        transition_steps=10,
    ),
    "exponential_decay": course("exponential_decay", DECAY, init_value=0.5, transition_steps=5, decay_rate=0.3),
    "exponential_decay/staircase": course(
        "exponential_decay", DECAY, init_value=0.5, transition_steps=4, decay_rate=0.3, staircase=True
    ),
    "exponential_decay/end": course(
        "exponential_decay", DECAY, init_value=0.5, transition_steps=5, decay_rate=0.3, end_value=0.1
    ),
    "exponential_decay/rising": course(
        "exponential_decay",
        {"decay_rate": (1.1, 2.0)},
        init_value=0.1,
        transition_steps=5,
        decay_rate=1.5,
        end_value=0.2,
        staircase=True,
    ),
    "cosine_decay_schedule": course(
        "cosine_decay_schedule",
        {"init_value": (0.1, 0.5), "decay_steps": (10.0, 25.0), "alpha": (0.0, 0.3), "exponent": (0.5, 2.0)},
        init_value=0.5,
        decay_steps=15,
    ),
    "piecewise_constant_schedule": course(
        "piecewise_constant_schedule", {"init_value": (0.1, 0.5)}, init_value=0.3, boundaries_and_scales=STEPS
    ),
    "piecewise_interpolate_schedule": course(
        "piecewise_interpolate_schedule",
        {"init_value": (0.1, 0.5)},
        interpolate_type="linear",
        init_value=0.3,
        boundaries_and_scales=STEPS,
    ),
    "piecewise_interpolate_schedule/cosine": course(
        "piecewise_interpolate_schedule",
        {"init_value": (0.1, 0.5)},
        interpolate_type="cosine",
        init_value=0.3,
        boundaries_and_scales=STEPS,
    ),
    "linear_onecycle_schedule": course(
        "linear_onecycle_schedule",
        {"pct_start": (0.2, 0.5), "pct_final": (0.6, 0.9), "div_factor": (2.0, 50.0), "final_div_factor": (2.0, 1e4)},
        transition_steps=18,
        peak_value=0.5,
    ),
    "cosine_onecycle_schedule": course(
        "cosine_onecycle_schedule",
        {"pct_start": (0.2, 0.5), "div_factor": (2.0, 50.0), "final_div_factor": (2.0, 1e4)},
        transition_steps=18,
        peak_value=0.5,
    ),
    "warmup_constant_schedule": course(
        "warmup_constant_schedule", WARM, init_value=0.0, peak_value=0.3, warmup_steps=5
    ),
    "warmup_cosine_decay_schedule": course(
        "warmup_cosine_decay_schedule",
        {**WARM, "decay_steps": (12.0, 25.0), "end_value": (0.0, 0.1), "exponent": (0.5, 2.0)},
        init_value=0.0,
        peak_value=0.3,
        warmup_steps=5,
        decay_steps=17,
    ),
    "warmup_exponential_decay_schedule": course(
        "warmup_exponential_decay_schedule",
        {**WARM, **DECAY, "end_value": (0.01, 0.05)},
        init_value=0.0,
        peak_value=0.3,
        warmup_steps=5,
        transition_steps=4,
        decay_rate=0.5,
    ),
    "warmup_exponential_decay_schedule/staircase": course(
        "warmup_exponential_decay_schedule",
        {**WARM, **DECAY},
        init_value=0.0,
        peak_value=0.3,
        warmup_steps=5,
        transition_steps=4,
        decay_rate=0.5,
        staircase=True,
    ),
    "sgdr_schedule": course("sgdr_schedule", cosine_kwargs=CYCLES),
    "join_schedules": Case(
        "(lambda first, last: optax.sgd(optax.join_schedules([optax.linear_schedule(first, last, 5), "
        "optax.cosine_decay_schedule(last, 8), optax.exponential_decay(first, 5, 0.5)], [4, 12])))",
        lambda first, last: fo.sgd(
            fo.join_schedules(
                [
                    fo.linear_schedule(first, last, 5),
                    fo.cosine_decay_schedule(last, 8),
                    fo.exponential_decay(first, 5, 0.5),
                ],
                [4, 12],
            )
        ),
        {"first": 0.1, "last": 0.5},
        {"first": (0.1, 0.5), "last": (0.1, 0.5)},
    ),
}

CASES: dict[str, Case] = {**WRAPPERS, **SCHEDULES}
