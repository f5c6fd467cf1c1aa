"""What trains with an optimizer: a recorder, schedules by position, the learning rate finder, a loop, checkpoints.

Every piece works alone in a loop of one's own, with a :class:`StatefulOptimizer <functopt.StatefulOptimizer>` or with a
purely functional optimizer::

    from functopt import training

    learner = training.Learner(model, fo.StatefulOptimizer(model.parameters(), fo.adamw()), F.cross_entropy)
    lr = training.lr_find(learner, train).suggestions.valley
    recorder = training.fit_one_cycle(learner, train, valid, epochs=5, lr_max=lr, metrics=training.accuracy)
    recorder.plot_loss().figure.savefig("loss.png")
"""

from functopt.training.callbacks import Callback, CancelBatch, CancelEpoch, CancelFit
from functopt.training.fit import fit
from functopt.training.learner import Learner, PureLearner, Trained
from functopt.training.lr_find import LRCurve, lr_find, ramp
from functopt.training.lr_sweep import LRSweep, lr_sweep, pure_loss
from functopt.training.metrics import Gathered, Mean, Metric, accuracy, validate
from functopt.training.param_scheduler import ParamScheduler, combine_scheds, flat_cos, hypers_at, one_cycle
from functopt.training.plot import compare, plot_schedule
from functopt.training.policies import fine_tune, fit_flat_cos, fit_one_cycle
from functopt.training.preserved import preserved
from functopt.training.random import random_state, set_random_state
from functopt.training.recorder import Recorder
from functopt.training.run import Run
from functopt.training.run_checkpoint import Checkpoint
from functopt.training.suggestions import Suggestions, suggest

__all__ = [
    "Callback",
    "CancelBatch",
    "CancelEpoch",
    "CancelFit",
    "Checkpoint",
    "Gathered",
    "LRCurve",
    "LRSweep",
    "Learner",
    "Mean",
    "Metric",
    "ParamScheduler",
    "PureLearner",
    "Recorder",
    "Run",
    "Suggestions",
    "Trained",
    "accuracy",
    "combine_scheds",
    "compare",
    "fine_tune",
    "fit",
    "fit_flat_cos",
    "fit_one_cycle",
    "flat_cos",
    "hypers_at",
    "lr_find",
    "lr_sweep",
    "one_cycle",
    "plot_schedule",
    "preserved",
    "pure_loss",
    "ramp",
    "random_state",
    "set_random_state",
    "suggest",
    "validate",
]
