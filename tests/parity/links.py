"""Cases of the comparison with optax: links that clip, normalise, hold back and average, and recipes made of them.

Noise is compared elsewhere, by its distribution: here its factor is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from registry.links import with_examples

import functopt as fo
from functopt import Transform, tree
from parity.case import Case

# In the words of the script that draws the data.
EXAMPLES = "optax.stateless(lambda u, p: jax.tree.map(lambda g: jnp.stack([0.5 * g, g, 1.5 * g]), u))"
ROOTS = "optax.stateless(lambda u, p: jax.tree.map(jnp.sqrt, u))"


def of_link(
    theirs: str,
    ours: Callable[..., Transform],
    options: Mapping[str, Any] | None = None,
    draws: Mapping[str, tuple[float, float]] | None = None,
    bridge: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
    *,
    before: str = "",
    ours_before: Callable[[Any, Any], Any] | None = None,
) -> Case:
    """Return the case of a link, after which a step is taken, and before which something may be done."""
    ahead = [] if ours_before is None else [fo.stateless(ours_before)]
    return Case(
        f"lambda **given: optax.chain({before}({theirs})(**given), optax.scale(-0.1))",
        lambda **given: fo.chain(*ahead, ours(**given), fo.scale_by_lr(0.1)),
        options=options or {},
        draws=draws or {},
        bridge=bridge or {},
        names=names or {},
    )


def roots(updates: Any, params: Any) -> Any:
    return tree.map(torch.sqrt, updates)


def scheduled(init_value: float, end_value: float, transition_steps: int) -> Transform:
    return fo.scale_by_schedule(fo.linear_schedule(init_value, end_value, transition_steps))


CASES: dict[str, Case] = {
    "clip": of_link("optax.clip", fo.clip, {"max_delta": 0.5}, {"max_delta": (0.1, 1.0)}),
    "clip_by_global_norm": of_link(
        "optax.clip_by_global_norm", fo.clip_by_global_norm, {"max_norm": 5.0}, {"max_norm": (0.1, 10.0)}
    ),
    "clip_by_block_rms": of_link(
        "optax.clip_by_block_rms", fo.clip_by_block_rms, {"threshold": 1.0}, {"threshold": (0.1, 2.0)}
    ),
    "adaptive_grad_clip": of_link(
        "optax.adaptive_grad_clip",
        fo.adaptive_grad_clip,
        {"clipping": 0.5},
        {"clipping": (0.1, 2.0), "eps": (1e-3, 1.0)},
        bridge={"form": "optax"},
    ),
    "adaptive_grad_clip/axis": of_link(
        "lambda clipping: optax.masked(optax.adaptive_grad_clip(clipping, axis=-1), {'bias': True, 'gain': False, "
        "'kernel': True, 'square': True, 'weight': True})",
        lambda clipping: fo.stateless_with_tree_map(
            lambda u, p: fo.adaptive_grad_clip(clipping, axis=-1).transform(u, (), p)[0] if p.ndim else u
        ),
        {"clipping": 0.5},
    ),
    "scale_by_param_block_norm": of_link(
        "optax.scale_by_param_block_norm", fo.scale_by_param_block_norm, {}, {"min_scale": (1e-3, 4.0)}
    ),
    "scale_by_param_block_rms": of_link(
        "optax.scale_by_param_block_rms", fo.scale_by_param_block_rms, {}, {"min_scale": (1e-3, 2.0)}
    ),
    "centralize": of_link("optax.centralize", fo.centralize),
    "normalize_by_update_norm": of_link(
        "optax.normalize_by_update_norm",
        fo.normalize_by_update_norm,
        {},
        {"scale_factor": (0.1, 10.0), "eps": (1e-6, 1.0)},
    ),
    "normalize": of_link("optax.contrib.normalize", fo.normalize),
    "apply_every": of_link("optax.apply_every", fo.apply_every, {"k": 3}),
    "keep_params_nonnegative": Case(
        "lambda step_size: optax.chain(optax.scale(step_size), optax.keep_params_nonnegative())",
        lambda step_size: fo.chain(fo.scale(step_size), fo.keep_params_nonnegative()),
        options={"step_size": -0.3},
        draws={"step_size": (-1.0, -0.1)},
    ),
    "zero_nans": of_link("optax.zero_nans", fo.zero_nans, before=f"{ROOTS}, ", ours_before=roots),
    "scale_by_schedule": of_link(
        "lambda **given: optax.scale_by_schedule(optax.linear_schedule(**given))",
        scheduled,
        {"init_value": 1.0, "end_value": 0.1, "transition_steps": 12},
        {"init_value": (0.1, 2.0), "end_value": (0.0, 1.0)},
    ),
    "trace": of_link("optax.trace", fo.trace, {"decay": 0.9}, {"decay": (0.1, 0.99)}, names={"decay": "momentum"}),
    "trace/nesterov": of_link(
        "optax.trace",
        fo.trace,
        {"decay": 0.9, "nesterov": True},
        {"decay": (0.1, 0.99)},
        names={"decay": "momentum"},
    ),
    "ema": of_link("optax.ema", fo.ema, {"decay": 0.9}, {"decay": (0.1, 0.99)}),
    "ema/raw": of_link("optax.ema", fo.ema, {"decay": 0.9, "debias": False}, {"decay": (0.1, 0.99)}),
    "add_decayed_weights": of_link(
        "optax.add_decayed_weights", fo.add_decayed_weights, {}, {"weight_decay": (0.01, 1.0)}
    ),
    "scale": of_link("optax.scale", fo.scale, {"step_size": 1.0}, {"step_size": (-0.5, 2.0)}),
    "named_chain": Case(
        "lambda **given: optax.named_chain(('second', optax.clip(0.5)), ('first', optax.adam(**given)))",
        lambda **given: fo.named_chain(("second", fo.clip(0.5)), ("first", fo.adam(**given))),
        options={"learning_rate": 0.1},
        draws={"learning_rate": (0.01, 0.2), "b1": (0.5, 0.95)},
    ),
    "noisy_sgd": Case(
        "optax.noisy_sgd",
        fo.noisy_sgd,
        options={"learning_rate": 0.1, "eta": 0.0, "key": 0},
        draws={"learning_rate": (0.01, 0.2), "gamma": (0.1, 1.0)},
        names={"key": "seed"},
    ),
    "dpsgd": Case(
        f"lambda **given: optax.chain({EXAMPLES}, optax.contrib.dpsgd(**given))",
        lambda **given: with_examples(fo.dpsgd(**given)),
        options={"learning_rate": 0.1, "l2_norm_clip": 6.0, "noise_multiplier": 0.0, "seed": 0},
        draws={"l2_norm_clip": (1.0, 20.0)},
        names={"l2_norm_clip": "max_norm"},
    ),
    "dpsgd/momentum": Case(
        f"lambda **given: optax.chain({EXAMPLES}, optax.contrib.dpsgd(**given))",
        lambda **given: with_examples(fo.dpsgd(**given)),
        options={
            "learning_rate": 0.1,
            "l2_norm_clip": 6.0,
            "noise_multiplier": 0.0,
            "seed": 0,
            "momentum": 0.9,
            "nesterov": True,
        },
        draws={"l2_norm_clip": (1.0, 20.0), "momentum": (0.1, 0.95)},
        names={"l2_norm_clip": "max_norm"},
    ),
}
