"""functopt: functional optimizers for PyTorch.

An optimizer is a pair of pure functions over pytrees, and its hyper-parameters are data passed at every step::

    import functopt as fo

    tx = fo.adamw(lr=1e-3)
    state = tx.init(params)
    params, state = tx.update(grads, state, params, {"lr": 3e-4})
"""

from functopt import nn, tree
from functopt.base import Transform, apply_updates, link, state_class
from functopt.checkpoint import save
from functopt.combine import chain, combinator, rename, scheduled, sequence
from functopt.compile import compile
from functopt.ema import Ema
from functopt.from_torch import from_torch
from functopt.groups import bias_and_norm, by_name, no_decay_on_bias_and_norm
from functopt.optimizers import adafactor, adam, adamw, lamb, larc, lion, nadam, qhadam, radam, ranger, rmsprop, sgd
from functopt.schedules import (
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    cosine_restarts_schedule,
    cosine_schedule,
    exponential_decay,
    exponential_schedule,
    flat_cosine_schedule,
    join,
    join_schedules,
    linear_schedule,
    polynomial_schedule,
    power_schedule,
    scaled_schedule,
    sgdr_schedule,
    warmup_cosine_decay_schedule,
)
from functopt.stateful import StatefulOptimizer
from functopt.sweep import Batches, SweepResult, choice, grid, log_uniform, sweep, uniform
from functopt.torch_state import from_torch_state_dict, to_torch_state_dict
from functopt.transforms.adaptive import (
    scale_by_adam,
    scale_by_nadam,
    scale_by_qhadam,
    scale_by_radam,
    scale_by_rms,
    scale_momentum_by_rms,
)
from functopt.transforms.averaging import average_params
from functopt.transforms.block import clip_by_block_rms, scale_by_param_block_rms
from functopt.transforms.clipping import clip, clip_by_global_norm
from functopt.transforms.decay import add_decayed_weights, shrink_weights
from functopt.transforms.factored import scale_by_factored_rms, scale_by_relative_step
from functopt.transforms.momentum import ema, trace
from functopt.transforms.scaling import identity, scale, scale_by_lr, set_to_zero
from functopt.transforms.sign import scale_by_lion
from functopt.transforms.trust import scale_by_larc, scale_by_trust_ratio
from functopt.tree import pack, ravel, unpack
from functopt.wrappers.flatten import flatten, stacked
from functopt.wrappers.lookahead import lookahead

__version__ = "0.1.0"

__all__ = [
    "Batches",
    "Ema",
    "StatefulOptimizer",
    "SweepResult",
    "Transform",
    "adafactor",
    "adam",
    "adamw",
    "add_decayed_weights",
    "apply_updates",
    "average_params",
    "bias_and_norm",
    "by_name",
    "chain",
    "choice",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "combinator",
    "compile",
    "constant_schedule",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "cosine_restarts_schedule",
    "cosine_schedule",
    "ema",
    "exponential_decay",
    "exponential_schedule",
    "flat_cosine_schedule",
    "flatten",
    "from_torch",
    "from_torch_state_dict",
    "grid",
    "identity",
    "join",
    "join_schedules",
    "lamb",
    "larc",
    "linear_schedule",
    "link",
    "lion",
    "log_uniform",
    "lookahead",
    "nadam",
    "nn",
    "no_decay_on_bias_and_norm",
    "pack",
    "polynomial_schedule",
    "power_schedule",
    "qhadam",
    "radam",
    "ranger",
    "ravel",
    "rename",
    "rmsprop",
    "save",
    "scale",
    "scale_by_adam",
    "scale_by_factored_rms",
    "scale_by_larc",
    "scale_by_lion",
    "scale_by_lr",
    "scale_by_nadam",
    "scale_by_param_block_rms",
    "scale_by_qhadam",
    "scale_by_radam",
    "scale_by_relative_step",
    "scale_by_rms",
    "scale_by_trust_ratio",
    "scale_momentum_by_rms",
    "scaled_schedule",
    "scheduled",
    "sequence",
    "set_to_zero",
    "sgd",
    "sgdr_schedule",
    "shrink_weights",
    "stacked",
    "state_class",
    "sweep",
    "to_torch_state_dict",
    "trace",
    "tree",
    "uniform",
    "unpack",
    "warmup_cosine_decay_schedule",
]
