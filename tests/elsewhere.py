"""What other libraries call a thing that has another name here, or is not needed here: two tables of the catalog."""

from __future__ import annotations

AVERAGE = "`Ema`, whose mean is debiased"
GIVEN = "not needed: hypers are arguments of every step"
LINEAR_ALGEBRA = "`torch.linalg`"
LOSSES = "`torch.nn.functional`"
RANDOM = "`random.normal_like`, `random.uniform_like`"
TORCH = "torch's own functions on tensors"

# Names of optax 0.2.8 (optax, optax.transforms, contrib, schedules, projections, tree), but for types and losses.
OPTAX = {
    "GradientTransformation": "`Transform`",
    "GradientTransformationExtraArgs": "`Transform`",
    "MultiSteps": "`multi_steps`",
    "WrappedSchedule": GIVEN,
    "bias_correction": AVERAGE,
    "global_norm": "`tree.norm`",
    "init_empty_state": "a link without state returns its `transform` alone",
    "inject_hyperparams": GIVEN,
    "inject_stateful_hyperparams": GIVEN,
    "matrix_inverse_pth_root": LINEAR_ALGEBRA,
    "microbatch": "`multi_steps`, which adds up over steps; a loop over slices of the batch",
    "nnls": "`projections.projection_non_negative` after each step; `scipy.optimize.nnls`",
    "power_iteration": LINEAR_ALGEBRA,
    "safe_increment": "not needed: counters are int64",
    "safe_int32_increment": "not needed: counters are int64",
    "safe_norm": "`tree.norm`, whose derivative at 0 is 0",
    "safe_root_mean_squares": "`scale_by_param_block_rms`, whose derivative at 0 is 0",
    "scale_by_learning_rate": "`scale_by_lr`",
    "scale_gradient": "`x.detach() + s * (x - x.detach())`",
    "tree_map_params": "`tree.get`, `tree.set`: what belongs to a parameter has its path",
    "update_infinity_moment": "`scale_by_adamax`",
    "update_moment": AVERAGE,
    "update_moment_per_elem_norm": AVERAGE,
    "with_extra_args_support": "not needed: every transform takes extras, and those that it does not name do nothing",
    "tree.batch_shape": TORCH,
    "tree.bias_correction": AVERAGE,
    "tree.conj": TORCH,
    "tree.dtype": TORCH,
    "tree.get_all_with_path": "`tree.leaves_with_paths`",
    "tree.map_params": "`tree.get`, `tree.set`: what belongs to a parameter has its path",
    "tree.random_like": RANDOM,
    "tree.real": TORCH,
    "tree.split_key_like": RANDOM,
    "tree.unwrap_random_key_data": RANDOM,
    "tree.update_infinity_moment": "`scale_by_adamax`",
    "tree.update_moment": AVERAGE,
    "tree.update_moment_per_elem_norm": AVERAGE,
    "tree.vdot": "`tree.dot`",
}

# optax.losses, and what optax exports of it.
OPTAX_LOSSES = {
    "convex_kl_divergence", "cosine_distance", "cosine_similarity", "ctc_loss", "ctc_loss_with_forward_probs",
    "generalized_kl_divergence", "hinge_loss", "huber_loss", "kl_divergence", "l2_loss", "log_cosh", "multi_normal",
    "ntxent", "safe_softmax_cross_entropy", "sigmoid_binary_cross_entropy", "sigmoid_focal_loss", "smooth_labels",
    "softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels", "squared_error",
}  # fmt: skip

# Names of torch.optim, its lr_scheduler and swa_utils.
TORCH_OPTIM = {
    "Adadelta": "`adadelta`",
    "Adafactor": "`adafactor`",
    "Adagrad": "`adagrad`",
    "Adam": "`adam`",
    "AdamW": "`adamw`",
    "Adamax": "`adamax`",
    "ASGD": "`asgd`",
    "LBFGS": '`lbfgs(form="torch")`, which takes one of its inner steps',
    "Muon": "`muon`",
    "NAdam": "`nadam`",
    "Optimizer": "`StatefulOptimizer`",
    "RAdam": "`radam`",
    "RMSprop": "`rmsprop`",
    "Rprop": "`rprop`",
    "SGD": "`sgd`",
    "SparseAdam": "`sparse_adam`, whose gradients are dense and leave entries of exactly 0 alone",
    "swap_in_optimizer_params_and_state": "`update`, a function of parameters and state",
    "LambdaLR": "a named tuple with `__call__`",
    "MultiplicativeLR": "a named tuple with `__call__`; `product_schedule`",
    "StepLR": "`step_lr`",
    "MultiStepLR": "`multi_step_lr`",
    "ConstantLR": "`constant_lr`",
    "LinearLR": "`linear_lr`",
    "ExponentialLR": "`exponential_lr`",
    "SequentialLR": "`join_schedules`",
    "CosineAnnealingLR": "`cosine_annealing_lr`",
    "ChainedScheduler": "`product_schedule`",
    "ReduceLROnPlateau": "`reduce_on_plateau`",
    "CyclicLR": "`cyclic_lr`",
    "CosineAnnealingWarmRestarts": "`cosine_annealing_warm_restarts`",
    "OneCycleLR": "`one_cycle_lr`, `one_cycle_momentum`",
    "PolynomialLR": "`polynomial_lr`",
    "LRScheduler": "works on a `StatefulOptimizer`",
    "AveragedModel": "`average_params`, `swa_params`, `averaged_params`",
    "update_bn": "`update_bn`",
    "SWALR": "`swalr`",
    "get_ema_multi_avg_fn": "`average_params`",
    "get_swa_multi_avg_fn": "`swa_params`",
    "get_ema_avg_fn": "`average_params`",
    "get_swa_avg_fn": "`swa_params`",
}
