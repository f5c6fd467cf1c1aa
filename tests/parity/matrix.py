"""Cases of the comparison with optax: optimizers that look at matrices, or at the curvature."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import functopt as fo
from parity.case import Case


def _jitted(tx: Any) -> Any:
    """The same, compiled once instead of at every step, of which loops are made."""
    import jax  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    return optax.GradientTransformation(tx.init, jax.jit(tx.update))


def _galore(**settings: Any) -> Any:
    """optax's GaLore, which decomposes in float32 whatever it is given, made to do so in float64."""
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import optax.contrib._galore as home  # pyright: ignore[reportMissingImports]

    home.jnp = SimpleNamespace(**{**vars(jnp), "float32": jnp.float64})
    return _jitted(home.galore(**settings))


def _by_rms() -> Any:
    """What works on projections and does not see their signs, which are those of the decomposition."""
    import optax  # pyright: ignore[reportMissingImports]

    return optax.scale_by_rms(decay=0.9, eps=1e-6)


def _with_obj_fn(tx: Any) -> Any:
    """Give Sophia the extra that it needs under its name."""
    import jax  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    once = jax.jit(
        lambda updates, state, params, loss: tx.update(updates, state, params, obj_fn=loss), static_argnums=3
    )

    def update(updates: Any, state: Any, params: Any = None, *, value_fn: Any = None, **extras: Any) -> Any:
        return once(updates, state, params, value_fn)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _scaled(tx: Any) -> Any:
    import optax  # pyright: ignore[reportMissingImports]

    return optax.chain(tx, optax.scale(-0.05))


def _muon_link(**settings: Any) -> Any:
    """optax's link, which takes matrices only."""
    import optax  # pyright: ignore[reportMissingImports]

    def numbers(updates: Any) -> Any:
        outside = lambda leaf: isinstance(leaf, optax.MaskedNode)
        return {k: leaf if outside(leaf) else optax.contrib.MuonDimensionNumbers() for k, leaf in updates.items()}

    inner = _scaled(optax.contrib.scale_by_muon(**settings, weight_dimension_numbers=numbers))
    labels = lambda params: {name: "muon" if leaf.ndim == 2 else "none" for name, leaf in params.items()}
    return _jitted(optax.partition({"muon": inner, "none": optax.scale(-0.05)}, labels))


def _our_muon_link(**settings: Any) -> fo.Transform:
    return fo.chain(fo.scale_by_muon(**settings), fo.scale(-0.05))


def _our_sophia_link(**settings: Any) -> fo.Transform:
    return fo.chain(fo.scale_by_sophia(**settings), fo.scale(-0.05))


THEIRS: dict[str, Any] = {
    "jitted": _jitted,
    "galore": _galore,
    "by_rms": _by_rms,
    "with_obj_fn": _with_obj_fn,
    "scaled": _scaled,
    "muon_link": _muon_link,
}

NAMES = {
    "beta": "momentum",
    "adam_b1": "adam_beta1",
    "adam_b2": "adam_beta2",
    "adam_learning_rate": "adam_lr",
    "weight_decay_mask": "mask",
}
MUON: dict[str, Any] = {"learning_rate": 0.05, "eps": 1e-8, "weight_decay": 0.0}  # our defaults are torch's
ADAM = {
    "adam_b1": (0.5, 0.95),
    "adam_b2": (0.8, 0.999),
    "adam_eps_root": (1e-8, 1e-3),
    "adam_weight_decay": (0.0, 0.2),
    "adam_learning_rate": (0.001, 0.1),
}
ALL = {"beta": (0.5, 0.99), "eps": (1e-8, 1e-2), "weight_decay": (0.0, 0.2), **ADAM}
ROWS = ((3.0, -3.5, 1.4), (2.5, -2.2, 0.7))
STACK = fo.MuonDimensionNumbers((0, 3), 2)
STORED = fo.MuonDimensionNumbers(0, 1)
SPECS = {"bias": None, "gain": None, "kernel": STACK, "square": STORED, "weight": STORED}
THEIR_SPECS = (
    "{'bias': None, 'gain': None, 'kernel': optax.contrib.MuonDimensionNumbers((0, 3), 2), "
    "'square': optax.contrib.MuonDimensionNumbers(), 'weight': optax.contrib.MuonDimensionNumbers()}"
)


def muon(
    options: Any = None,
    draws: Any = None,
    bridge: Any = None,
    theirs: str = "(lambda **k: jitted(optax.contrib.muon(**k)))",
) -> Case:
    return Case(theirs, fo.muon, {**MUON, **(options or {})}, draws or {}, {"form": "optax", **(bridge or {})}, NAMES)


CASES: dict[str, Case] = {
    "muon": muon(draws=ALL),
    "muon/steps": muon({"ns_steps": 3, "ns_coeffs": (3.0, -3.5, 1.4)}),
    "muon/rows": muon({"ns_steps": 2, "ns_coeffs": ROWS}),
    "muon/dion": muon({"ns_coeffs": "dion"}),
    "muon/adaptive": muon(
        {
            "nesterov": False,
            "adaptive": True,
            "weight_decay_mask": {"square": True, "weight": False, "bias": True, "gain": True, "kernel": True},
        },
    ),
    "muon/spectral": muon({"preconditioning": "spectral", "eps": 1e-3}),
    "muon/aol": muon({"preconditioning": "aol"}),
    "muon/schatten": muon({"preconditioning": "schatten"}),
    "muon/rms": muon({"consistent_rms": 0.2}, {"consistent_rms": (0.1, 1.0)}, {"adjust_lr_fn": "match_rms_adamw"}),
    "muon/stacks": muon(
        {},
        {},
        {"muon_weight_dimension_numbers": SPECS},
        f"(lambda **k: jitted(optax.contrib.muon(muon_weight_dimension_numbers={THEIR_SPECS}, **k)))",
    ),
    "scale_by_muon": Case("muon_link", _our_muon_link, {"eps": 1e-8}, {}, {"form": "optax"}, NAMES),
    "galore": Case(
        "galore", fo.galore, {"learning_rate": 0.05, "rank": 2}, {"scale": (0.1, 2.0), "weight_decay": (0.0, 0.2)}
    ),
    "galore/wide": Case("galore", fo.galore, {"learning_rate": 0.05}),
    "galore/gap": Case(
        "(lambda **k: galore(base_optimizer=by_rms(), **k))",
        fo.galore,
        {"learning_rate": 0.05, "rank": 1, "update_proj_gap": 4},
        bridge={"base_optimizer": fo.scale_by_rms(0.9, 1e-6, eps_in_sqrt=True)},
    ),
    "galore/merged": Case(
        "(lambda **k: galore(weight_dimension_numbers={'bias': None, 'gain': None, 'square': None, 'weight': None, "
        "'kernel': optax.contrib.GaLoreDimensionNumbers((3, 1), (0, 2))}, **k))",
        fo.galore,
        {"learning_rate": 0.05, "rank": 2},
        bridge={
            "weight_dimension_numbers": {**dict.fromkeys(SPECS), "kernel": fo.GaLoreDimensionNumbers((3, 1), (0, 2))}
        },
    ),
    "sophia": Case(
        "(lambda **k: with_obj_fn(optax.contrib.sophia(**k)))",
        fo.sophia,
        {"learning_rate": 0.05},
        {
            "b1": (0.5, 0.95),
            "b2": (0.3, 0.9),
            "eps": (1e-8, 1e-2),
            "gamma": (5.0, 50.0),  # less, and nearly everything is clipped
            "weight_decay": (0.0, 0.2),
            "clip_threshold": (0.3, 10.0),
        },
        problem="loss",
    ),
    "sophia/often": Case(
        "(lambda **k: with_obj_fn(optax.contrib.sophia(**k)))",
        fo.sophia,
        {"learning_rate": 0.05, "update_interval": 3, "gamma": 10.0, "b2": 0.5},
        problem="loss",
    ),
    "scale_by_sophia": Case(
        "(lambda **k: scaled(with_obj_fn(optax.contrib._sophia.scale_by_sophia(**k))))",
        _our_sophia_link,
        {"update_interval": 4, "gamma": 20.0, "clip_threshold": 5.0},
        problem="loss",
    ),
    "hutchinson_estimator_diag_hessian": Case(
        "(lambda: scaled(with_obj_fn(optax.contrib.hutchinson_estimator_diag_hessian())))",
        lambda: fo.chain(fo.hutchinson_estimator_diag_hessian(), fo.scale(-0.05)),
        problem="loss",
    ),
}
