"""fastai: a Learner with fit_one_cycle, layer groups, freezing, lr_find, save and load; against fastai's own Adam."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from client import close, data, load, net, weights
from torch import Tensor
from torch.nn.functional import cross_entropy

import functopt as fo
from functopt import StatefulOptimizer

# fastai's defaults, and its debiasing: the one for a constant momentum, though fit_one_cycle moves it
OURS = partial(StatefulOptimizer, tx=fo.adamw(beta2=0.99, eps=1e-5, weight_decay=0.01, debias="power"))

pytestmark = pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")  # Learner.load needs it


@pytest.fixture(scope="module")
def fastai() -> Any:
    names = "learner", "optimizer", "data.core", "data.load", "torch_core", "callback.core", "callback.schedule"
    more = "callback.progress", "callback.tracker", "callback.training"
    modules = load("fastai", *(f"fastai.{name}" for name in (*names, *more)))
    return SimpleNamespace(**{k: v for module in modules for k, v in vars(module).items()})


class Run:
    """A Learner on CPU, which keeps the loss of every step."""

    def __init__(self, fastai: Any, opt_func: Any, folder: Path, seed: int = 0, groups: bool = True, **options: Any):
        self.losses = []

        def loss(scores: Tensor, labels: Tensor) -> Tensor:
            exact = cross_entropy(scores, labels)
            if exact.requires_grad:
                self.losses.append(exact.item())
            return exact.float()  # which fastai's moving average of the losses takes; the network stays in float64

        loaders = [fastai.DataLoader(data(count, i), bs=16, num_workers=0) for i, count in enumerate((96, 32))]
        split = lambda model: fastai.L(model[0], model[1], model[3]).map(fastai.params)
        self.learn = fastai.Learner(
            fastai.DataLoaders(*loaders, device="cpu"),
            net(seed),
            loss,
            opt_func,
            path=folder,
            **{"splitter": split} if groups else {},
            **options,
        )
        self.learn.remove_cb(fastai.ProgressCallback)
        self.learn.logger = lambda row: None


def both(fastai: Any, folder: Path, **options: Any) -> tuple[Run, Run]:
    """Return a run with our optimizer, and one with fastai's."""
    return Run(fastai, OURS, folder, **options), Run(fastai, fastai.Adam, folder, **options)


def agree(ours: Run, theirs: Run, steps: int) -> None:
    assert len(ours.losses) == steps
    close(ours.losses, theirs.losses)
    close(weights(ours.learn.model), weights(theirs.learn.model), "weights")


@pytest.mark.parametrize("groups", [False, True], ids=["one group", "three groups"])
def test_one_cycle(fastai, tmp_path, groups):
    runs = both(fastai, tmp_path, groups=groups)
    for run in runs:
        run.learn.fit_one_cycle(4, 0.02)
    agree(*runs, steps=24)
    assert runs[0].learn.recorder.hps.keys() == {"lr", "mom"}
    for name in ("lr", "mom"):
        ours, theirs = (run.learn.recorder.hps[name] for run in runs)
        close(ours, theirs, name)


def test_one_cycle_against_a_wrapped_torch_optimizer(fastai, tmp_path):
    """Which decays everything; fastai's marks are not known to it."""
    adamw = partial(fastai.OptimWrapper, opt=partial(torch.optim.AdamW, betas=(0.9, 0.99), eps=1e-5))
    runs = [Run(fastai, opt, tmp_path, wd=0.1, wd_bn_bias=True) for opt in (OURS, adamw)]
    for run in runs:
        run.learn.fit_one_cycle(3, slice(1e-3, 0.02))
    agree(runs[0], runs[1], steps=18)


@pytest.mark.parametrize("train_bn", [True, False])
@pytest.mark.parametrize("wd_bn_bias", [True, False])
def test_fine_tuning(fastai, tmp_path, wd_bn_bias, train_bn):
    """Frozen groups, then learning rates from a slice; normalisation trains or not, and decays or not."""
    runs = both(fastai, tmp_path, wd=0.5, wd_bn_bias=wd_bn_bias, train_bn=train_bn)
    for run in runs:
        start = [p.detach().clone() for p in run.learn.model.parameters()]
        run.learn.freeze()
        run.learn.fit_one_cycle(2, slice(0.02))
        moved = [not torch.equal(p, q) for p, q in zip(run.learn.model.parameters(), start, strict=True)]
        assert moved == [False, train_bn, train_bn, True, True]
        run.learn.unfreeze()
        run.learn.fit_one_cycle(2, slice(1e-3, 0.02), moms=(0.9, 0.8, 0.9))
    agree(*runs, steps=24)
    assert len({run.learn.opt.frozen_idx for run in runs}) == 1
    for ours, theirs in zip(*(run.learn.opt.hypers for run in runs), strict=True):
        for name in ("lr", "mom", "sqr_mom", "wd", "eps"):
            close(ours[name], theirs[name], name)


def test_fine_tune_freeze_to_and_other_schedules(fastai, tmp_path):
    runs = both(fastai, tmp_path)
    for run in runs:
        run.learn.fine_tune(1, 0.01)
        run.learn.freeze_to(-2)
        run.learn.model.zero_grad()  # to None: with the zeros that fastai's zero_grad leaves, what is frozen decays on
        run.learn.fit_flat_cos(1, slice(1e-3, 1e-2))
        run.learn.fit_sgdr(1, 1, 0.01)
        run.learn.fit(1, [1e-3, 2e-3, 3e-3], wd=0.1, cbs=[fastai.GradientClip(0.3), fastai.GradientAccumulation(32)])
    agree(*runs, steps=30)


def test_parameters_that_the_splitter_leaves_out(fastai, tmp_path):
    """The usual splitter takes what is trainable; fastai then marks the biases of the others too."""
    runs = both(fastai, tmp_path, groups=False, wd=0.5)
    for run in runs:
        run.learn.model[3].bias.requires_grad_(False)
        run.learn.fit(2, 0.02)
    agree(*runs, steps=12)


def test_the_learning_rate_finder(fastai, tmp_path):
    """It trains with growing rates, and puts model and optimizer back."""
    runs = both(fastai, tmp_path)
    found = []
    for run in runs:
        run.learn.fit(1, 1e-3)
        before = weights(run.learn.model)
        found.append(run.learn.lr_find(end_lr=1.0, num_it=50, show_plot=False).valley)
        assert torch.equal(before, weights(run.learn.model))
        run.learn.fit_one_cycle(1, found[-1])
    close(found[0], found[1], "suggested learning rate")
    agree(*runs, steps=len(runs[1].losses))
    assert len(runs[0].losses) > 12 + 20


def test_training_resumes_from_a_saved_model(fastai, tmp_path):
    """In the middle of a cycle, from what SaveModelCallback has written after its second epoch."""
    unbroken, resumed = Run(fastai, OURS, tmp_path), Run(fastai, OURS, tmp_path, seed=1)
    unbroken.learn.fit_one_cycle(4, 0.02, cbs=fastai.SaveModelCallback(every_epoch=True, with_opt=True))
    resumed.learn.load("model_1", with_opt=True)
    resumed.learn.fit_one_cycle(4, 0.02, start_epoch=2)
    assert resumed.losses == unbroken.losses[12:]
    assert torch.equal(weights(resumed.learn.model), weights(unbroken.learn.model))


def test_a_saved_optimizer_comes_back(fastai, tmp_path):
    """With learning rates per group and the marks; training on from there is the same bit for bit."""
    first, second = Run(fastai, OURS, tmp_path), Run(fastai, OURS, tmp_path, seed=1)
    first.learn.fit(1, slice(1e-3, 1e-2), wd=0.3)
    first.learn.save("here")
    second.learn.load("here")
    assert second.learn.opt.hypers == first.learn.opt.hypers
    for run in (first, second):
        run.learn.fit(2, slice(1e-3, 1e-2), wd=0.3)
    assert second.losses == first.losses[6:]
    assert torch.equal(weights(first.learn.model), weights(second.learn.model))
