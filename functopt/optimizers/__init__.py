"""Recipes: each is a short chain of links, and the paper it comes from.

Defaults are those of ``torch.optim`` where it has the optimizer, so that a migrated call trains the same; otherwise
optax's, or fastai's for what only fastai has.
"""

from functopt.optimizers.adan import adan, mars
from functopt.optimizers.adaptive import adam, adamw, nadam, nadamw, qhadam, radam, ranger, rmsprop
from functopt.optimizers.ademamix import ademamix, simplified_ademamix
from functopt.optimizers.belief import acprop, adabelief, yogi
from functopt.optimizers.blockwise import adam_mini, stable_adamw
from functopt.optimizers.laprop import adopt, laprop, novograd
from functopt.optimizers.layerwise import (
    adafactor,
    fromage,
    lamb,
    larc,
    lars,
)
from functopt.optimizers.matrix import galore, muon, soap, sophia
from functopt.optimizers.maxima import adamax, adamaxw, amsgrad
from functopt.optimizers.momentum import (
    lion,
    optimistic_adam,
    optimistic_adam_v2,
    optimistic_gradient_descent,
    sgd,
)
from functopt.optimizers.noise import dpsgd, noisy_sgd
from functopt.optimizers.search import lbfgs, nonlinear_cg
from functopt.optimizers.sign import sign_sgd, signum, tiger
from functopt.optimizers.sparse import sparse_adam
from functopt.optimizers.step_free import (
    cocob,
    dadapt_adamw,
    dog,
    dowg,
    momo,
    momo_adam,
    polyak_sgd,
    prodigy,
    schedule_free_adamw,
    schedule_free_sgd,
)
from functopt.optimizers.sums import adadelta, adagrad, asgd, madgrad, rprop, sm3

__all__ = [
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
    "ademamix",
    "adopt",
    "amsgrad",
    "asgd",
    "cocob",
    "dadapt_adamw",
    "dog",
    "dowg",
    "dpsgd",
    "fromage",
    "galore",
    "lamb",
    "laprop",
    "larc",
    "lars",
    "lbfgs",
    "lion",
    "madgrad",
    "mars",
    "momo",
    "momo_adam",
    "muon",
    "nadam",
    "nadamw",
    "noisy_sgd",
    "nonlinear_cg",
    "novograd",
    "optimistic_adam",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "polyak_sgd",
    "prodigy",
    "qhadam",
    "radam",
    "ranger",
    "rmsprop",
    "rprop",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "sign_sgd",
    "signum",
    "simplified_ademamix",
    "sm3",
    "soap",
    "sophia",
    "sparse_adam",
    "stable_adamw",
    "tiger",
    "yogi",
]
