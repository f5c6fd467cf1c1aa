"""Recipes: each is a short chain of links, and the paper it comes from.

Defaults are those of ``torch.optim`` where it has the optimizer, so that a migrated call trains the same; otherwise
optax's, or fastai's for what only fastai has.
"""

from functopt.optimizers.adaptive import adam, adamw, nadam, qhadam, radam, ranger, rmsprop
from functopt.optimizers.layerwise import adafactor, lamb, larc
from functopt.optimizers.momentum import lion, sgd

__all__ = ["adafactor", "adam", "adamw", "lamb", "larc", "lion", "nadam", "qhadam", "radam", "ranger", "rmsprop", "sgd"]
