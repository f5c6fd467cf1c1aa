"""functopt: functional optimizers for PyTorch.

An optimizer is a pair of pure functions over pytrees, and its hyper-parameters are data passed at every step::

    import functopt as fo

    tx = fo.adamw(lr=1e-3)
    state = tx.init(params)
    params, state = tx.update(grads, state, params, {"lr": 3e-4})
"""

from functopt import nn, random, tree
from functopt.averaging import averaged_params, update_bn
from functopt.base import Transform, apply_updates, link, state_class
from functopt.checkpoint import save
from functopt.clipping import per_example_global_norm_clip, per_example_layer_norm_clip, unitwise_clip, unitwise_norm
from functopt.combine import chain, combinator, rename, scheduled, sequence
from functopt.compile import compile
from functopt.dimensions import GaLoreDimensionNumbers, MuonDimensionNumbers
from functopt.ema import Ema
from functopt.from_torch import from_torch
from functopt.groups import bias_and_norm, by_name, no_decay_on_bias_and_norm
from functopt.linalg import orthogonalize
from functopt.objective import value_and_grad_from_state
from functopt.optimizers import (
    acprop,
    adabelief,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adam_mini,
    adamax,
    adamaxw,
    adamw,
    adan,
    ademamix,
    adopt,
    amsgrad,
    asgd,
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    dpsgd,
    fromage,
    galore,
    lamb,
    laprop,
    larc,
    lars,
    lbfgs,
    lion,
    madgrad,
    mars,
    momo,
    momo_adam,
    muon,
    nadam,
    nadamw,
    noisy_sgd,
    nonlinear_cg,
    novograd,
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
    polyak_sgd,
    prodigy,
    qhadam,
    radam,
    ranger,
    rmsprop,
    rprop,
    schedule_free_adamw,
    schedule_free_sgd,
    sgd,
    sign_sgd,
    signum,
    simplified_ademamix,
    sm3,
    soap,
    sophia,
    sparse_adam,
    stable_adamw,
    tiger,
    yogi,
)
from functopt.projections import (
    projection_box,
    projection_halfspace,
    projection_hypercube,
    projection_hyperplane,
    projection_l1_ball,
    projection_l1_sphere,
    projection_l2_ball,
    projection_l2_sphere,
    projection_linf_ball,
    projection_non_negative,
    projection_simplex,
    projection_vector,
)
from functopt.schedules import (
    constant_lr,
    constant_schedule,
    cosine_annealing_lr,
    cosine_annealing_warm_restarts,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    cosine_restarts_schedule,
    cosine_schedule,
    cyclic_lr,
    exponential_decay,
    exponential_lr,
    exponential_schedule,
    flat_cosine_schedule,
    inverse_sqrt_schedule,
    join,
    join_schedules,
    linear_lr,
    linear_onecycle_schedule,
    linear_schedule,
    multi_step_lr,
    one_cycle_lr,
    one_cycle_momentum,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_lr,
    polynomial_schedule,
    power_schedule,
    product_schedule,
    scaled_schedule,
    sgdr_schedule,
    step_lr,
    swalr,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay_schedule,
)
from functopt.skipping import has_updated, skip_large_updates, skip_not_finite
from functopt.stateful import StatefulOptimizer
from functopt.sweep import Batches, SweepResult, choice, grid, log_uniform, sweep, uniform
from functopt.targets import incremental_update, periodic_update
from functopt.torch_state import from_torch_state_dict, to_torch_state_dict
from functopt.transforms.accumulation import apply_every
from functopt.transforms.adadelta import scale_by_adadelta
from functopt.transforms.adan import reduce_variance, scale_by_adan
from functopt.transforms.adaptive import (
    scale_by_adam,
    scale_by_nadam,
    scale_by_qhadam,
    scale_by_radam,
)
from functopt.transforms.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from functopt.transforms.asgd import average_iterates, scale_by_asgd, scale_by_inverse_time
from functopt.transforms.averaging import average_params, swa_params
from functopt.transforms.belief import scale_by_acprop, scale_by_belief, scale_by_yogi
from functopt.transforms.block import clip_by_block_rms, scale_by_param_block_norm, scale_by_param_block_rms
from functopt.transforms.blockwise import scale_by_adam_mini, scale_by_stable_adam
from functopt.transforms.clipping import adaptive_grad_clip, clip, clip_by_global_norm
from functopt.transforms.cocob import scale_by_cocob
from functopt.transforms.conjugate_gradient import scale_by_conjugate_gradient
from functopt.transforms.constraints import keep_params_nonnegative, zero_nans
from functopt.transforms.dadapt import scale_by_dadapt_adam, scale_by_prodigy
from functopt.transforms.decay import add_decayed_weights, shrink_weights
from functopt.transforms.dog import scale_by_distance_over_gradients, scale_by_dog, scale_by_dowg
from functopt.transforms.factored import scale_by_factored_rms, scale_by_relative_step
from functopt.transforms.fromage import scale_by_fromage
from functopt.transforms.hutchinson import hutchinson_estimator_diag_hessian
from functopt.transforms.laprop import scale_by_adopt, scale_by_laprop, scale_by_novograd
from functopt.transforms.lazy import scale_by_lazy_adam
from functopt.transforms.lbfgs import scale_by_lbfgs
from functopt.transforms.linesearch import scale_by_backtracking_linesearch
from functopt.transforms.madgrad import scale_by_madgrad
from functopt.transforms.maxima import scale_by_adamax, scale_by_amsgrad
from functopt.transforms.momentum import ema, trace
from functopt.transforms.momo import scale_by_momo, scale_by_momo_adam
from functopt.transforms.monitoring import measure_with_ema, monitor, snapshot
from functopt.transforms.noise import add_noise, differentially_private_aggregate
from functopt.transforms.normalize import centralize, normalize, normalize_by_update_norm
from functopt.transforms.optimistic import scale_by_optimistic_gradient
from functopt.transforms.orthogonal import scale_by_muon, scale_by_shape
from functopt.transforms.plateau import reduce_on_plateau
from functopt.transforms.polyak import scale_by_polyak
from functopt.transforms.rms import scale_by_rms, scale_by_stddev, scale_momentum_by_rms
from functopt.transforms.rprop import scale_by_rprop
from functopt.transforms.rss import scale_by_rss
from functopt.transforms.scaling import identity, scale, scale_by_lr, scale_by_schedule, set_to_zero
from functopt.transforms.sign import scale_by_lion, scale_by_sign
from functopt.transforms.sm3 import scale_by_sm3
from functopt.transforms.soap import scale_by_soap
from functopt.transforms.stateless import stateless, stateless_with_tree_map
from functopt.transforms.tiger import scale_by_tiger
from functopt.transforms.trust import scale_by_larc, scale_by_trust_ratio
from functopt.transforms.zoom import scale_by_zoom_linesearch
from functopt.tree import pack, ravel, unpack
from functopt.wrappers.accumulation import multi_steps
from functopt.wrappers.cautious import cautious
from functopt.wrappers.complex import split_real_and_imaginary
from functopt.wrappers.conditional import conditionally_mask, conditionally_transform
from functopt.wrappers.finite import apply_if_finite
from functopt.wrappers.flatten import flatten, stacked
from functopt.wrappers.galore import scale_by_galore
from functopt.wrappers.lookahead import lookahead
from functopt.wrappers.masking import freeze, masked, selective_transform
from functopt.wrappers.mechanize import mechanize
from functopt.wrappers.naming import named_chain
from functopt.wrappers.partition import multi_transform, partition
from functopt.wrappers.precision import cast_state, kahan, stochastic_round
from functopt.wrappers.projection import projected
from functopt.wrappers.sam import asam_ascent, sam, sam_ascent
from functopt.wrappers.schedule_free import eval_params, schedule_free, schedule_free_eval_params
from functopt.wrappers.sophia import scale_by_sophia

__version__ = "0.1.0"

__all__ = [
    "Batches",
    "Ema",
    "GaLoreDimensionNumbers",
    "MuonDimensionNumbers",
    "StatefulOptimizer",
    "SweepResult",
    "Transform",
    "acprop",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adam_mini",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "adaptive_grad_clip",
    "add_decayed_weights",
    "add_noise",
    "ademamix",
    "adopt",
    "amsgrad",
    "apply_every",
    "apply_if_finite",
    "apply_updates",
    "asam_ascent",
    "asgd",
    "average_iterates",
    "average_params",
    "averaged_params",
    "bias_and_norm",
    "by_name",
    "cast_state",
    "cautious",
    "centralize",
    "chain",
    "choice",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "cocob",
    "combinator",
    "compile",
    "conditionally_mask",
    "conditionally_transform",
    "constant_lr",
    "constant_schedule",
    "cosine_annealing_lr",
    "cosine_annealing_warm_restarts",
    "cosine_decay_schedule",
    "cosine_onecycle_schedule",
    "cosine_restarts_schedule",
    "cosine_schedule",
    "cyclic_lr",
    "dadapt_adamw",
    "differentially_private_aggregate",
    "dog",
    "dowg",
    "dpsgd",
    "ema",
    "eval_params",
    "exponential_decay",
    "exponential_lr",
    "exponential_schedule",
    "flat_cosine_schedule",
    "flatten",
    "freeze",
    "from_torch",
    "from_torch_state_dict",
    "fromage",
    "galore",
    "grid",
    "has_updated",
    "hutchinson_estimator_diag_hessian",
    "identity",
    "incremental_update",
    "inverse_sqrt_schedule",
    "join",
    "join_schedules",
    "kahan",
    "keep_params_nonnegative",
    "lamb",
    "laprop",
    "larc",
    "lars",
    "lbfgs",
    "linear_lr",
    "linear_onecycle_schedule",
    "linear_schedule",
    "link",
    "lion",
    "log_uniform",
    "lookahead",
    "madgrad",
    "mars",
    "masked",
    "measure_with_ema",
    "mechanize",
    "momo",
    "momo_adam",
    "monitor",
    "multi_step_lr",
    "multi_steps",
    "multi_transform",
    "muon",
    "nadam",
    "nadamw",
    "named_chain",
    "nn",
    "no_decay_on_bias_and_norm",
    "noisy_sgd",
    "nonlinear_cg",
    "normalize",
    "normalize_by_update_norm",
    "novograd",
    "one_cycle_lr",
    "one_cycle_momentum",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "orthogonalize",
    "pack",
    "partition",
    "per_example_global_norm_clip",
    "per_example_layer_norm_clip",
    "periodic_update",
    "piecewise_constant_schedule",
    "piecewise_interpolate_schedule",
    "polyak_sgd",
    "polynomial_lr",
    "polynomial_schedule",
    "power_schedule",
    "prodigy",
    "product_schedule",
    "projected",
    "projection_box",
    "projection_halfspace",
    "projection_hypercube",
    "projection_hyperplane",
    "projection_l1_ball",
    "projection_l1_sphere",
    "projection_l2_ball",
    "projection_l2_sphere",
    "projection_linf_ball",
    "projection_non_negative",
    "projection_simplex",
    "projection_vector",
    "qhadam",
    "radam",
    "random",
    "ranger",
    "ravel",
    "reduce_on_plateau",
    "reduce_variance",
    "rename",
    "rmsprop",
    "rprop",
    "sam",
    "sam_ascent",
    "save",
    "scale",
    "scale_by_acprop",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adam_mini",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_asgd",
    "scale_by_backtracking_linesearch",
    "scale_by_belief",
    "scale_by_cocob",
    "scale_by_conjugate_gradient",
    "scale_by_dadapt_adam",
    "scale_by_distance_over_gradients",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_factored_rms",
    "scale_by_fromage",
    "scale_by_galore",
    "scale_by_inverse_time",
    "scale_by_laprop",
    "scale_by_larc",
    "scale_by_lazy_adam",
    "scale_by_lbfgs",
    "scale_by_lion",
    "scale_by_lr",
    "scale_by_madgrad",
    "scale_by_momo",
    "scale_by_momo_adam",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_novograd",
    "scale_by_optimistic_gradient",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_polyak",
    "scale_by_prodigy",
    "scale_by_qhadam",
    "scale_by_radam",
    "scale_by_relative_step",
    "scale_by_rms",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_shape",
    "scale_by_sign",
    "scale_by_simplified_ademamix",
    "scale_by_sm3",
    "scale_by_soap",
    "scale_by_sophia",
    "scale_by_stable_adam",
    "scale_by_stddev",
    "scale_by_tiger",
    "scale_by_trust_ratio",
    "scale_by_yogi",
    "scale_by_zoom_linesearch",
    "scale_momentum_by_rms",
    "scaled_schedule",
    "schedule_free",
    "schedule_free_adamw",
    "schedule_free_eval_params",
    "schedule_free_sgd",
    "scheduled",
    "selective_transform",
    "sequence",
    "set_to_zero",
    "sgd",
    "sgdr_schedule",
    "shrink_weights",
    "sign_sgd",
    "signum",
    "simplified_ademamix",
    "skip_large_updates",
    "skip_not_finite",
    "sm3",
    "snapshot",
    "soap",
    "sophia",
    "sparse_adam",
    "split_real_and_imaginary",
    "stable_adamw",
    "stacked",
    "state_class",
    "stateless",
    "stateless_with_tree_map",
    "step_lr",
    "stochastic_round",
    "swa_params",
    "swalr",
    "sweep",
    "tiger",
    "to_torch_state_dict",
    "trace",
    "tree",
    "uniform",
    "unitwise_clip",
    "unitwise_norm",
    "unpack",
    "update_bn",
    "value_and_grad_from_state",
    "warmup_constant_schedule",
    "warmup_cosine_decay_schedule",
    "warmup_exponential_decay_schedule",
    "warmup_stable_decay_schedule",
    "yogi",
    "zero_nans",
]
