"""The loop: it is the one that it stands for, its moments come in order, and it ends well, however it ends."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from said import words
from side_by_side import same
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import functopt as fo
from functopt.training.callbacks import MOMENTS, Callback, CancelBatch, CancelEpoch, CancelFit
from functopt.training.fit import fit
from functopt.training.learner import Learner, PureLearner
from functopt.training.metrics import accuracy
from functopt.training.policies import fine_tune, fit_flat_cos, fit_one_cycle
from functopt.training.recorder import Recorder

sys.path.insert(0, str(Path(__file__).parent / "clients"))

RTOL = 1e-12


@pytest.fixture(autouse=True)
def signals():
    """Let Ctrl-C be handled as in a terminal: a shell lets what runs in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def net(seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).double()


def data(count: int = 40, seed: int = 0) -> TensorDataset:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TensorDataset(x, (x[:, :3].sum(1) > 0).long() + (x[:, 0] > 0).long())


def loaders(count: int = 40, shuffle: bool = False) -> tuple[DataLoader, DataLoader]:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(data(count), 8, shuffle=shuffle, generator=generator), DataLoader(data(20, 1), 16)


def stateful(tx: fo.Transform | None = None, model: Any = None) -> Learner:
    model = net() if model is None else model
    return Learner(model, fo.StatefulOptimizer(model.parameters(), tx or fo.adamw(0.02)), cross_entropy)


def pure(tx: fo.Transform | None = None) -> PureLearner:
    return PureLearner(net(), tx or fo.adamw(0.02), cross_entropy)


both = pytest.mark.parametrize("make", [stateful, pure])


class Log(Callback):
    """Writes down the moments, and does something at some."""

    def __init__(self, **actions: Any) -> None:
        self.moments: list[str] = []
        self.actions = actions

    def note(self, moment: str, run: Any) -> None:
        self.moments.append(moment)
        if moment in self.actions:
            self.actions[moment](run)


for moment in MOMENTS:
    setattr(Log, moment, lambda self, run, moment=moment: self.note(moment, run))


def do(error: type[Exception], when: Any = lambda run: True) -> Any:
    def action(run: Any) -> None:
        if when(run):
            raise error

    return action


# What it computes


@both
def test_it_is_the_loop_it_stands_for(make):
    model, (train, _) = net(), loaders(shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    losses, rows = [], []
    for _ in range(3):
        model.train()
        for x, y in train:
            loss = cross_entropy(model(x), y)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        x, y = data(20, 1).tensors
        scores = model(x)
        rows.append((cross_entropy(scores, y).item(), (scores.argmax(1) == y).double().mean().item()))
    learner = make()
    recorder = fit(learner, *loaders(shuffle=True), epochs=3, metrics=accuracy)
    np.testing.assert_allclose(recorder.losses, losses, rtol=1e-10)
    found = [(row["valid_loss"], row["accuracy"]) for row in recorder.epochs]
    np.testing.assert_allclose(found, rows, rtol=1e-10)
    assert [(row["epoch"], row["step"]) for row in recorder.epochs] == [(0, 5), (1, 10), (2, 15)]
    assert not recorder.interrupted
    averages = [np.average(losses[:n], weights=0.98 ** np.arange(n)[::-1]) for n in (5, 10, 15)]
    np.testing.assert_allclose([row["train_loss"] for row in recorder.epochs], averages, rtol=1e-10)
    assert learner.model.training


def test_both_learners_give_the_same_losses():
    schedule = {"lr": fo.cosine_schedule(0.05, 0.001), "mom": fo.linear_schedule(0.95, 0.8)}
    recorders = [fit(make(), *loaders(), epochs=4, schedule=schedule, metrics=accuracy) for make in (stateful, pure)]
    np.testing.assert_allclose(recorders[0].losses, recorders[1].losses, rtol=RTOL)
    for name in ("lr", "beta1", "weight_decay"):
        np.testing.assert_array_equal(recorders[0].hypers[name], recorders[1].hypers[name])
    for rows in zip(*(recorder.epochs for recorder in recorders), strict=True):
        assert rows[0] == pytest.approx(rows[1], rel=RTOL)


@both
def test_a_schedule_goes_by_position_over_all_steps(make):
    steps = np.arange(15) / 15
    recorder = fit(make(), loaders()[0], epochs=3, schedule={"lr": fo.cosine_schedule(0.05, 0.01)})
    np.testing.assert_allclose(recorder.hypers["lr"], 0.01 + 0.04 * (1 + np.cos(math.pi * steps)) / 2, rtol=1e-14)
    with pytest.raises(KeyError, match="no hyper 'lrr'"):
        fit(make(), loaders()[0], epochs=3, schedule={"lrr": fo.cosine_schedule(0.05, 0.01)})


def test_a_recorder_is_gone_on_with():
    learner, recorder = stateful(), Recorder()
    for _ in range(2):
        assert fit(learner, *loaders(), epochs=1, recorder=recorder) is recorder
    assert len(recorder) == 10
    assert [row["step"] for row in recorder.epochs] == [5, 10]


class Transfers(TorchDispatchMode):
    """Counts how often Python asks a tensor for its value."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@both
def test_no_step_waits_for_the_device(make):
    batches, seen = [*loaders()[0]], []
    with Transfers() as transfers:
        log = Log(begin_batch=lambda run: seen.append(transfers.count), after_batch=lambda run: run.running_loss)
        fit(make(), batches, epochs=2, callbacks=log)
    assert seen[:5] == [0] * 5
    assert len({*seen[5:]}) == 1


# Moments


@both
def test_moments_come_in_order_and_know_where_they_are(make):
    seen = []
    log = Log(**{m: lambda run, m=m: seen.append((m, run.epoch, run.step, run.position)) for m in MOMENTS})
    train, valid = loaders()
    fit(make(), [*train][:2], valid, epochs=2, callbacks=[log])
    batch = ["begin_batch", "after_loss", "after_step", "after_batch"]
    epoch = ["begin_epoch", *batch, *batch, "begin_validate", "after_epoch"]
    assert log.moments == ["begin_fit", *epoch, *epoch, "after_fit"]
    at = lambda moment: [place for name, *place in seen if name == moment]
    assert at("begin_batch") == [[0, 0, 0.0], [0, 1, 0.25], [1, 2, 0.5], [1, 3, 0.75]]
    assert at("after_batch") == [[0, 1, 0.25], [0, 2, 0.5], [1, 3, 0.75], [1, 4, 1.0]]
    assert at("after_epoch") == [[0, 2, 0.5], [1, 4, 1.0]]


def test_callbacks_are_called_by_their_order():
    called = []
    logs = [Log(begin_fit=lambda run, i=i: called.append(i)) for i in range(3)]
    logs[0].order, logs[2].order = 7, -1
    fit(stateful(), loaders()[0], epochs=1, callbacks=logs)
    assert called == [2, 1, 0]


def test_a_cancelled_batch_takes_no_step():
    for moment in ("begin_batch", "after_loss"):
        learner = stateful(fo.sgd(0.1))
        before = [p.detach().clone() for p in learner.model.parameters()]
        log = Log(**{moment: do(CancelBatch, lambda run: run.step != 2)})
        recorder = fit(learner, loaders()[0], epochs=1, callbacks=log)
        assert log.moments.count("after_batch") == 5
        assert log.moments.count("after_step") == len(recorder) == 1 if moment == "begin_batch" else True
        assert any(not torch.equal(p, q) for p, q in zip(before, learner.model.parameters(), strict=True))


@both
def test_after_loss_a_loss_may_be_replaced(make):
    def penalise(run: Any) -> None:
        run.loss = run.loss + 0.1 * sum(p.square().sum() for p in run.learner.model.parameters())

    learner = make(fo.sgd(0.1))
    if isinstance(learner, PureLearner):
        with pytest.raises(ValueError, match="what is added to it goes into loss_fn"):
            fit(learner, loaders()[0], epochs=1, callbacks=Log(after_loss=penalise))
        return
    recorder = fit(learner, loaders()[0], epochs=1, callbacks=Log(after_loss=penalise))
    model = net()
    optimizer, losses = torch.optim.SGD(model.parameters(), 0.1), []
    for x, y in loaders()[0]:
        loss = cross_entropy(model(x), y) + 0.1 * sum(p.square().sum() for p in model.parameters())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(recorder.losses, losses, rtol=RTOL)


@both
def test_cancelled_epochs_and_runs(make):
    log = Log(after_batch=do(CancelEpoch, lambda run: run.step == 2))
    schedule = {"lr": fo.linear_schedule(0.0, 1e-3)}
    recorder = fit(make(), *loaders(), epochs=3, callbacks=log, schedule=schedule)
    assert [log.moments.count(m) for m in ("begin_validate", "after_epoch", "after_fit")] == [2, 3, 1]
    assert [row["epoch"] for row in recorder.epochs] == [1, 2]
    np.testing.assert_allclose(recorder.lrs * 15e3, [0, 1, *range(5, 15)], atol=1e-12)  # by position, as the next began
    for moment in MOMENTS[:-1]:
        log = Log(**{moment: do(CancelFit)})
        recorder = fit(make(), *loaders(), epochs=3, callbacks=log)
        assert log.moments[-2:] == [moment, "after_fit"]
        assert not recorder.interrupted


@both
@pytest.mark.parametrize("moment", MOMENTS)
def test_after_fit_comes_after_an_error_too(make, moment):
    log, other = Log(**{moment: do(ZeroDivisionError)}), Log()
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        fit(make(), *loaders(), epochs=1, callbacks=[log, other], recorder=recorder)
    assert [own.moments.count("after_fit") for own in (log, other)] == [1, 1]
    assert len(recorder.losses) == len(recorder)


def test_misspelt_callbacks():
    with pytest.raises(TypeError, match="no moment 'after_bach'; there are begin_fit"):
        type("Mine", (Callback,), {"after_bach": lambda self, run: None})
    with pytest.raises(TypeError, match="a callback is a type, expected a Callback; call it"):
        fit(stateful(), loaders()[0], epochs=1, callbacks=[Log])  # pyright: ignore[reportArgumentType]


# Data


@both
def test_data_without_a_length(make):
    batches = [*loaders()[0]]
    want = fit(make(), batches, epochs=2).losses
    forever = itertools.cycle(batches)
    with pytest.raises(TypeError) as error:
        fit(make(), forever, epochs=2)
    words(error, "cycle", "no length", "steps_per_epoch")
    assert (fit(make(), forever, epochs=2, steps_per_epoch=5).losses == want).all()
    assert next(forever)[0] is batches[0][0]  # not one more was drawn
    assert (fit(make(), batches, epochs=2, steps_per_epoch=3).losses[:3] == want[:3]).all()


def test_data_of_another_length_than_said():
    batches = [*loaders()[0]]

    class Wrong(list):
        length = 4

        def __len__(self) -> int:
            return self.length

    with pytest.raises(ValueError, match="length of 4, but gave more"):
        fit(stateful(), Wrong(batches), epochs=1)
    with pytest.raises(ValueError, match="gave 5 batches, expected 7"):
        fit(stateful(), batches, epochs=1, steps_per_epoch=7)
    with pytest.raises(ValueError, match="no training batches"):
        fit(stateful(), [], epochs=1)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        fit(stateful(), batches, epochs=0)


# Progress


def test_progress_says_where_it_stands(capsys):
    fit(stateful(), *loaders(), epochs=2, metrics=accuracy, progress=True)
    said = capsys.readouterr().err
    for word in ("epoch 1/2: train_loss 1", "epoch 2/2: train_loss 1", "accuracy 0.", "10/10", "loss 1"):
        assert word in said, said
    fit(stateful(), *loaders(), epochs=2)
    assert capsys.readouterr() == ("", "")


def test_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"pip install 'functopt\[examples\]'"):
        fit(stateful(), loaders()[0], epochs=1, progress=True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fit(stateful(), loaders()[0], epochs=1)


# Against fastai

ADAMW = partial(fo.adamw, beta2=0.99, eps=1e-5, weight_decay=0.01, debias="power")  # fastai's defaults


@pytest.fixture(scope="module")
def fastai() -> Any:
    from client import load  # pyright: ignore[reportMissingImports]

    names = "learner", "optimizer", "data.core", "data.load", "torch_core", "callback.core", "callback.schedule"
    modules = load("fastai", *(f"fastai.{name}" for name in (*names, "callback.progress", "callback.training")))
    return SimpleNamespace(**{k: v for module in modules for k, v in vars(module).items()})


class Theirs:
    """fastai's Learner on the same model and data, with its own Adam."""

    def __init__(self, fastai: Any, folder: Path, **options: Any) -> None:
        self.losses, self.valid, self.hypers = [], [], []
        run = self

        def loss(scores: Tensor, labels: Tensor) -> Tensor:
            exact = cross_entropy(scores, labels)
            if exact.requires_grad:
                run.losses.append(exact.item())
                run.hypers.append([[h["lr"], h["mom"]] for h in run.learn.opt.hypers])
            else:
                run.valid.append(exact.item())
            return exact.float()  # which its moving average of the losses takes

        loaders = [fastai.DataLoader(data(count, i), bs=16, num_workers=0) for i, count in enumerate((96, 16))]
        split = lambda model: fastai.L(model[0], model[1], model[3]).map(fastai.params)
        options = {"splitter": split, "wd": 0.5, **options}
        self.learn = fastai.Learner(
            fastai.DataLoaders(*loaders, device="cpu"), net(), loss, fastai.Adam, path=folder, **options
        )
        self.learn.remove_cb(fastai.ProgressCallback)
        self.learn.logger = lambda row: None


@pytest.fixture
def exact_schedules(fastai, monkeypatch) -> None:
    """Let fastai work out positions in float64, instead of float32: the hypers are then the same to rounding."""
    schedule = sys.modules["fastai.callback.schedule"]
    monkeypatch.setattr(schedule, "tensor", partial(torch.tensor, dtype=torch.float64))


def ours(train_bn: bool = True) -> tuple[Any, Any, Any]:
    model = net()
    groups: Any = [list(part.named_parameters(prefix=name)) for name, part in model.named_children() if name != "2"]
    optimizer = fo.StatefulOptimizer([{"params": group} for group in groups], ADAMW(weight_decay=0.5))
    optimizer.mark(fo.bias_and_norm(model), do_wd=False)
    if train_bn:
        optimizer.mark(fo.bias_and_norm(model, bias=False), force_train=True)
    return Learner(model, optimizer, cross_entropy), DataLoader(data(96), 16), DataLoader(data(16, 1), 16)


def agree(recorder: Recorder, theirs: Theirs, epochs: int) -> None:
    close = partial(np.testing.assert_allclose, rtol=RTOL)
    assert len(theirs.losses) == 6 * epochs
    found = np.stack([recorder.hypers["lr"], recorder.hypers["beta1"]], axis=-1)
    close(found, np.array(theirs.hypers))
    close(recorder.losses, theirs.losses)
    close([row["valid_loss"] for row in recorder.epochs], theirs.valid)


@pytest.mark.parametrize("lr", [0.02, slice(0.02), slice(1e-3, 0.02), [1e-3, 2e-3, 0.02]], ids=str)
@pytest.mark.parametrize("policy", ["fit_one_cycle", "fit_flat_cos"])
def test_policies_are_fastais(fastai, exact_schedules, tmp_path, policy, lr):
    theirs, (learner, train, valid) = Theirs(fastai, tmp_path), ours()
    getattr(theirs.learn, policy)(4, lr)
    recorder = {"fit_one_cycle": fit_one_cycle, "fit_flat_cos": fit_flat_cos}[policy](learner, train, valid, 4, lr)
    agree(recorder, theirs, 4)


def test_policies_with_other_settings_are_fastais(fastai, exact_schedules, tmp_path):
    theirs, (learner, train, valid) = Theirs(fastai, tmp_path), ours()
    theirs.learn.fit_one_cycle(3, 0.03, div=10.0, div_final=1e3, pct_start=0.4, moms=(0.9, 0.7, 0.8))
    theirs.learn.fit_flat_cos(2, 0.01, div_final=50, pct_start=0.5)
    recorder = fit_one_cycle(
        learner, train, valid, 3, 0.03, div=10, div_final=1e3, pct_start=0.4, momentum=(0.9, 0.7, 0.8)
    )
    fit_flat_cos(learner, train, valid, 2, 0.01, div_final=50, pct_start=0.5, recorder=recorder)
    agree(recorder, theirs, 5)


@pytest.mark.parametrize("train_bn", [True, False])
@pytest.mark.parametrize("options", [{}, {"freeze_epochs": 2, "lr_mult": 10, "pct_start": 0.5, "div": 3.0}], ids=str)
def test_fine_tuning_is_fastais(fastai, exact_schedules, tmp_path, train_bn, options):
    theirs, (learner, train, valid) = Theirs(fastai, tmp_path, train_bn=train_bn), ours(train_bn)
    theirs.learn.fine_tune(3, 0.01, **options)
    frozen = []
    log = Log(begin_epoch=lambda run: frozen.append([p.requires_grad for p in run.learner.model.parameters()]))
    recorder = fine_tune(learner, train, valid, 3, 0.01, callbacks=log, **options)
    phases = [options.get("freeze_epochs", 1), 3]
    agree(recorder, theirs, sum(phases))
    assert frozen == [[False, train_bn, train_bn, True, True]] * phases[0] + [[True] * 5] * 3
    for mine, its in zip(learner.model.state_dict().values(), theirs.learn.model.state_dict().values(), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-10)


def test_the_row_of_an_epoch_is_fastais(fastai, exact_schedules, tmp_path):
    rows = []
    theirs, (learner, train, valid) = Theirs(fastai, tmp_path, metrics=fastai.AvgMetric(accuracy)), ours()
    theirs.learn.logger = rows.append
    theirs.learn.fit_one_cycle(3, 0.02)
    recorder = fit_one_cycle(learner, train, valid, 3, 0.02, metrics=accuracy)
    found = [[row[name] for name in ("epoch", "train_loss", "valid_loss", "accuracy")] for row in recorder.epochs]
    wanted = [[row[0], *row[1:4]] for row in rows[-3:]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)  # theirs are in float32


def test_policies_in_the_pure_form():
    tx = ADAMW(weight_decay=0.1)
    learner, (train, valid) = PureLearner(net(), tx, cross_entropy), loaders()
    tree = {name: 1e-3 if name.startswith("0.") else 0.02 for name in learner.params}
    recorder = fit_one_cycle(learner, train, valid, 2, tree)
    model = net()
    groups = [[model[0].weight], [*model[1].parameters(), *model[3].parameters()]]
    grouped = Learner(model, fo.StatefulOptimizer(groups, tx), cross_entropy)
    want = fit_one_cycle(grouped, *loaders(), 2, [1e-3, 0.02])
    np.testing.assert_allclose(recorder.losses, want.losses, rtol=RTOL)
    np.testing.assert_array_equal(recorder.lines("lr")["3.bias"], want.hypers["lr"][:, 1])
    with pytest.raises(TypeError) as error:
        fine_tune(learner, train, valid, 2)  # pyright: ignore[reportArgumentType]
    words(error, "PureLearner", "prefix tree")


def test_policies_say_what_is_wrong():
    with pytest.raises(ValueError, match="only one group"):
        fine_tune(stateful(), *loaders(), 1)
    with pytest.raises(TypeError, match="metric"):
        fit_one_cycle(stateful(), *loaders(), 1, 0.1, metric=accuracy)  # pyright: ignore[reportCallIssue]
    bare = fo.scale_by_lr(0.1)
    with pytest.raises(KeyError, match="mom"):
        fit_one_cycle(stateful(bare), *loaders(), 1, 0.1)
    assert len(fit_one_cycle(stateful(bare), *loaders(), 1, 0.1, momentum=None)) == 5


# Ctrl-C

TRIALS = 24


class Slow(Callback):
    """Lets steps take a while, half of it within the step."""

    def after_loss(self, run: Any) -> None:
        time.sleep(0.002)

    def after_batch(self, run: Any) -> None:
        time.sleep(0.001)


def interrupted_run(kind: str, write: int) -> None:
    """Train until interrupted; then say whether model and recorder agree, in a process of its own."""
    ok = b"?"
    try:
        learner: Any = {"stateful": stateful, "pure": pure}[kind]()
        log = Log(begin_fit=lambda run: os.write(write, b"s"))
        recorder = fit(learner, *loaders(), epochs=10_000, callbacks=[Slow(), log])
        steps = len(recorder.losses)
        again: Any = {"stateful": stateful, "pure": pure}[kind]()
        batches = [*loaders()[0]]
        again.train()
        losses = []
        for step in range(steps):
            loss = again.loss(batches[step % 5])
            losses.append(loss.item())
            again.step(loss)
        whole = same(again.state_dict(), learner.state_dict()) and losses == recorder.losses.tolist()
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ok = b"y" if whole and recorder.interrupted and default and log.moments[-1] == "after_fit" else b"n"
        goes_on = fit(learner, loaders()[0], epochs=1, recorder=recorder)
        ok = ok if not goes_on.interrupted and len(goes_on.losses) == steps + 5 else b"g"
    finally:
        os.write(write, ok)
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["stateful", "pure"])
def test_ctrl_c_leaves_whole_steps(kind):
    """Real signals at random moments, some of them in the middle of a step or of validation."""
    fit({"stateful": stateful, "pure": pure}[kind](), *loaders(), epochs=1)
    rng = random.Random(0)
    for _ in range(TRIALS):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            interrupted_run(kind, write)
        os.close(write)
        assert os.read(read, 1) == b"s"
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGINT)
        assert os.read(read, 1) == b"y"
        os.close(read)
        os.waitpid(pid, 0)


def test_ctrl_c_waits_for_the_step_and_says_so(capsys):
    log = Log(after_loss=lambda run: os.kill(os.getpid(), signal.SIGINT) if run.step == 2 else None)
    recorder = fit(stateful(), *loaders(), epochs=2, callbacks=log)
    assert recorder.interrupted
    assert log.moments[-3:] == ["after_step", "after_batch", "after_fit"]
    assert len(recorder) == 3
    assert capsys.readouterr().err == "fit: interrupted after step 3 of 10, which is whole\n"
    log = Log(begin_validate=lambda run: os.kill(os.getpid(), signal.SIGINT))
    recorder = fit(stateful(), *loaders(), epochs=2, callbacks=log)
    assert (recorder.interrupted, len(recorder), recorder.epochs) == (True, 5, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_at_the_very_end_is_not_lost(capsys):
    log = Log(after_epoch=lambda run: os.kill(os.getpid(), signal.SIGINT))
    assert fit(stateful(), loaders()[0], epochs=1, callbacks=log).interrupted
    assert "after step 5 of 5" in capsys.readouterr().err


def test_a_second_ctrl_c_raises_at_once():
    twice = lambda run: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)]
    log = Log(after_loss=twice)
    with pytest.raises(KeyboardInterrupt):
        fit(stateful(), *loaders(), epochs=2, callbacks=log)
    assert log.moments[-2:] == ["after_loss", "after_fit"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_fine_tuning_that_is_interrupted_has_no_second_phase(capsys):
    learner, train, valid = ours()
    log = Log(after_loss=lambda run: os.kill(os.getpid(), signal.SIGINT) if run.step == 2 else None)
    recorder = fine_tune(learner, train, valid, 3, callbacks=log)
    assert (recorder.interrupted, len(recorder)) == (True, 3)
    assert "interrupted" in capsys.readouterr().err


def test_signals_are_left_to_whoever_has_them():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        log = Log(after_loss=lambda run: os.kill(os.getpid(), signal.SIGINT) if run.step == 1 else None)
        recorder = fit(stateful(), loaders()[0], epochs=1, callbacks=log)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (seen, recorder.interrupted, len(recorder)) == ([1], False, 5)
    results = []
    thread = threading.Thread(target=lambda: results.append(fit(stateful(), loaders()[0], epochs=1)))
    thread.start()
    thread.join()
    assert len(results[0]) == 5
