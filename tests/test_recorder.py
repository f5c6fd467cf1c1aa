"""What is recorded is what was in force, the device is not waited for, and the pictures show it."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import mse_loss
from torch.utils._python_dispatch import TorchDispatchMode

import functopt as fo
from functopt.schedules import scaled_schedule
from functopt.training import deferred
from functopt.training import recorder as recorder_module
from functopt.training.learner import Learner, PureLearner
from functopt.training.param_scheduler import ParamScheduler, one_cycle
from functopt.training.plot import compare
from functopt.training.recorder import Recorder

sys.path.insert(0, str(Path(__file__).parent / "clients"))

STEPS = 12
RAMP = fo.linear_schedule(0.1, 0.0, 10)
ON_RAMP = np.clip(0.1 * (1 - np.arange(STEPS) / 10), 0, None)


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def batches(count: int = STEPS) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(8, 3, dtype=torch.float64, generator=generator) for _ in range(count)]
    return [(x, x.sum(1, keepdim=True)) for x in xs]


def groups(model: Any) -> list[dict[str, Any]]:
    return [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]


def run(model: Any, optimizer: Any, recorder: Recorder, count: int = STEPS, after: bool = False) -> list[float]:
    """Train in a loop of one's own, and return the losses."""
    losses = []
    for x, y in batches(count):
        loss = mse_loss(model(x), y)
        loss.backward()
        losses.append(loss.item())
        if not after:
            recorder.record(loss, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        if after:
            recorder.record(loss, optimizer, stepped=True)
    return losses


# Hypers in force


@pytest.mark.parametrize(("after", "compiled"), [(False, False), (True, False), (False, True)])
def test_a_schedule_has_the_value_in_force(after, compiled):
    model = net()
    optimizer = fo.StatefulOptimizer(groups(model), fo.adamw(RAMP), compile={"backend": "eager"} if compiled else False)
    optimizer.param_groups[1]["lr"] = scaled_schedule(2.0, RAMP)
    optimizer.param_groups[1]["weight_decay"] = 0.5
    recorder = Recorder()
    losses = run(model, optimizer, recorder, after=after)
    np.testing.assert_array_equal(recorder.steps, np.arange(STEPS))
    np.testing.assert_array_equal(recorder.losses, losses)
    hypers = recorder.hypers
    assert hypers.keys() == optimizer.tx.hypers.keys()
    np.testing.assert_allclose(hypers["lr"], np.stack([ON_RAMP, 2 * ON_RAMP], axis=1), rtol=1e-12, atol=1e-16)
    np.testing.assert_array_equal(hypers["weight_decay"], [[0.01, 0.5]] * STEPS)
    np.testing.assert_array_equal(recorder.lrs, hypers["lr"][:, 1])


def test_the_recorded_learning_rate_is_the_one_that_was_used():
    """With plain SGD the learning rate can be read off the parameters."""
    param = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer, recorder, used = fo.StatefulOptimizer([param], fo.sgd(RAMP)), Recorder(), []
    for _ in range(STEPS):
        param.grad, before = torch.ones_like(param), param.item()
        recorder.record(0.0, optimizer)
        optimizer.step()
        used.append(before - param.item())
    # without any state, steps are counted in float32
    np.testing.assert_allclose(recorder.lrs, used, rtol=1e-6, atol=1e-9)


def test_steps_without_gradients_do_not_count():
    model = net()
    optimizer, recorder = fo.StatefulOptimizer(groups(model), fo.sgd(RAMP)), Recorder()
    for first in (True, False, True):  # the groups take turns, and no group has seen all steps
        for param in (model[0] if first else model[2]).parameters():
            param.grad = torch.ones_like(param)
        recorder.record(0.0, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        recorder.record(0.0, optimizer)  # a step that nothing has a gradient for
        optimizer.step()
    np.testing.assert_allclose(recorder.lrs, ON_RAMP[[0, 1, 1, 2, 2, 3]], rtol=1e-12)


@pytest.mark.parametrize("make", ["torch", "from_torch", "sgd"])
def test_optimizers_of_torch(make):
    model = net()
    if make == "from_torch":
        optimizer: Any = fo.from_torch(torch.optim.AdamW, groups(model), lr=0.1)
    else:
        kind: Any = torch.optim.AdamW if make == "torch" else torch.optim.SGD
        optimizer = kind(groups(model), lr=0.1)
    scheduler = ParamScheduler(optimizer, {"lr": fo.linear_schedule(0.1, 0.0)}, STEPS)
    recorder = Recorder()
    for _ in range(STEPS):
        scheduler.step()
        recorder.record(1.0, optimizer)
    hypers = recorder.hypers
    adam = {"lr", "beta1", "beta2", "eps", "weight_decay"}
    assert hypers.keys() == ({"lr", "momentum", "dampening", "weight_decay"} if make == "sgd" else adam)
    np.testing.assert_allclose(hypers["lr"], np.stack([0.1 * (1 - np.arange(STEPS) / STEPS)] * 2, axis=1), rtol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_learners(compiled, monkeypatch):
    if compiled:  # what matters is that memory is written over, not how the code was made
        monkeypatch.setattr(torch, "compile", lambda fn, **options: fn)
    pure, by_hand, taken = PureLearner(net(), fo.adamw(RAMP), mse_loss, compile=compiled), Recorder(), Recorder()
    classic = Learner(model := net(), fo.StatefulOptimizer(model.parameters(), fo.adamw(RAMP)), mse_loss)
    losses = []
    for batch in batches():
        for learner, recorder in ((pure, by_hand), (classic, taken)):
            loss = learner.loss(batch)
            recorder.record(loss, learner)
            learner.step(loss)
        losses.append(loss.item())
    for recorder in (by_hand, taken):
        np.testing.assert_allclose(recorder.losses, losses, rtol=1e-10)
        np.testing.assert_allclose(recorder.hypers["lr"], ON_RAMP, rtol=1e-12, atol=1e-16)


def test_a_purely_functional_loop():
    tx = fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(RAMP))
    params = {"w": torch.ones(2, dtype=torch.float64)}
    state, recorder = tx.init(params), Recorder()
    loss_fn = lambda params: (params["w"] ** 2).sum()
    for _ in range(STEPS):
        grads, loss = torch.func.grad_and_value(loss_fn)(params)
        recorder.record(loss, tx.hypers, count=fo.tree.get(state, "count"))
        params, state = tx.update(grads, state, params)
    np.testing.assert_allclose(recorder.lrs, ON_RAMP, rtol=1e-12, atol=1e-16)
    by_step = Recorder()
    for step in (0, 4, 8):
        by_step.record(0.0, tx.hypers, step=step)
    np.testing.assert_allclose(by_step.lrs, ON_RAMP[[0, 4, 8]], rtol=1e-12)
    np.testing.assert_array_equal(by_step.steps, [0, 4, 8])
    np.testing.assert_array_equal(by_step.hypers["max_norm"], [1.0] * 3)


def test_a_tree_is_a_series_for_each_leaf():
    recorder = Recorder()
    for i in range(3):
        lr = {"body": scaled_schedule(0.5, RAMP), "head": {"weight": torch.tensor(0.1 * i), "bias": 0.2}}
        recorder.record(1.0, {"lr": lr, "beta1": 0.9})
    hypers = recorder.hypers
    assert list(hypers) == ["lr/body", "lr/head.bias", "lr/head.weight", "beta1"]
    np.testing.assert_allclose(hypers["lr/body"], 0.5 * ON_RAMP[:3], rtol=1e-12)
    np.testing.assert_allclose(hypers["lr/head.weight"], [0.0, 0.1, 0.2], rtol=1e-6)
    assert list(recorder.lines("lr")) == ["body", "head.bias", "head.weight"]
    np.testing.assert_array_equal(recorder.lrs, hypers["lr/head.weight"])


def test_what_comes_and_goes_is_nan():
    recorder = Recorder()
    recorder.record(1.0, {"lr": 0.1})
    recorder.record(2.0)
    recorder.record(3.0, [{"lr": 0.1}, {"lr": 0.3, "decay": 0.5}])
    hypers, nan = recorder.hypers, math.nan
    np.testing.assert_array_equal(hypers["lr"], [[0.1, nan], [nan, nan], [0.1, 0.3]])
    np.testing.assert_array_equal(hypers["decay"], [[nan, nan], [nan, nan], [nan, 0.5]])


class Branching(NamedTuple):
    """A schedule that asks Python about the step, which only eager steps allow."""

    start: float

    def __call__(self, step: Any) -> Any:
        return self.start if step < 2 else math.sqrt(step)


def test_a_schedule_that_branches():
    recorder = Recorder()
    for _ in range(4):
        recorder.record(0.0, {"lr": Branching(0.5)})
    np.testing.assert_allclose(recorder.lrs, [0.5, 0.5, math.sqrt(2), math.sqrt(3)], rtol=1e-15)


# Memory, and the device


def test_what_is_written_over_later_stays():
    loss, lr = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    course = fo.constant_schedule(torch.zeros((), dtype=torch.float64))
    count, recorder = torch.zeros((), dtype=torch.int64), Recorder()
    for i in range(5):
        loss.fill_(i)
        lr.fill_(10 + i)
        course.value.fill_(20 + i)
        count.fill_(i)
        recorder.record(loss, {"lr": lr, "decay": course, "beta1": RAMP}, count=count)
    np.testing.assert_array_equal(recorder.losses, range(5))
    np.testing.assert_array_equal(recorder.hypers["lr"], range(10, 15))
    np.testing.assert_array_equal(recorder.hypers["decay"], range(20, 25))
    np.testing.assert_allclose(recorder.hypers["beta1"], ON_RAMP[:5], rtol=1e-12)
    recorder.losses[:] = 7.0  # what is read is a copy
    recorder.hypers["lr"][:] = 7.0
    np.testing.assert_array_equal(recorder.losses, range(5))
    assert recorder.hypers["lr"][0] == 10


def test_no_graph_is_held():
    recorder, weight = Recorder(), torch.ones((), requires_grad=True)
    recorder.record(weight * 2, {"lr": weight * 3})
    kept: Any = [recorder._rows[0].loss, *recorder._rows[0].hypers.values()]
    assert not any(tensor.requires_grad for tensor in kept)
    assert recorder.losses == [2.0]


class Transfers(TorchDispatchMode):
    """Counts how often a tensor is asked for its value, or brought to the host in bulk."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = self.bulk = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked += func is torch.ops.aten._local_scalar_dense.default
        self.bulk += func is torch.ops.aten.stack.default
        return func(*args, **(kwargs or {}))


def test_the_device_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(recorder_module, "AT_ONCE", 5)
    model = net()
    optimizer = fo.StatefulOptimizer(groups(model), fo.adamw(RAMP), weight_decay=torch.tensor(0.1))
    recorder, seen, losses = Recorder(), [], [torch.tensor(float(i)) for i in range(STEPS)]
    with Transfers() as transfers:
        for loss in losses:
            recorder.record(loss, optimizer)
            seen.append((transfers.asked, transfers.bulk))
    # losses and decays in float32, and counts: two transfers every five steps
    assert seen == [(0, 0)] * 4 + [(0, 2)] * 5 + [(0, 4)] * 3
    assert len(recorder) == STEPS
    np.testing.assert_array_equal(recorder.losses, range(STEPS))
    np.testing.assert_allclose(recorder.hypers["weight_decay"], np.full((STEPS, 2), 0.1), rtol=1e-6)


def test_on_a_gpu_nothing_is_synchronised():
    with FakeTensorMode():  # CUDA tensors without a driver; here .item() raises, and so does mixing devices
        model = nn.Linear(3, 2, device="cuda")
        settings = fo.cosine_schedule(torch.tensor(0.1, device="cuda"), torch.tensor(0.0, device="cuda"), 10)
        optimizer = fo.StatefulOptimizer(model.parameters(), fo.adamw(RAMP, weight_decay=settings))
        recorder = Recorder()
        for _ in range(3):
            loss = model(torch.ones(2, 3, device="cuda")).mean()
            for param in model.parameters():
                param.grad = torch.ones_like(param)  # backward needs a driver
            recorder.record(loss, optimizer)
            optimizer.step()
        kept = recorder._rows[1]
        tensors = [kept.loss, kept.hypers["lr", 0].count, kept.hypers["weight_decay", 0]]
        assert all(isinstance(tensor, Tensor) and tensor.device.type == "cuda" for tensor in tensors)


def test_a_step_is_recorded_without_a_look_at_the_parameters():
    """What recording a step calls does not grow with the number of parameters."""

    def calls(layers: int) -> int:
        params = [nn.Parameter(torch.zeros(2)) for _ in range(layers)]
        optimizer, recorder, count = fo.StatefulOptimizer(params, fo.adamw(RAMP)), Recorder(), 0
        recorder.record(0.0, optimizer)

        def profile(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            count += 1

        sys.setprofile(profile)
        try:
            recorder.record(0.0, optimizer)
        finally:
            sys.setprofile(None)
        return count

    assert calls(1) == calls(300)


def test_thousands_of_steps(monkeypatch):
    recorder, schedules = Recorder(), {"lr": RAMP, "momentum": 0.9}
    for i in range(3 * recorder_module.AT_ONCE + 7):
        recorder.record(float(i), schedules)
    assert len(recorder._rows) == 7
    assert len(recorder) == len(recorder.losses) == 3 * recorder_module.AT_ONCE + 7
    np.testing.assert_array_equal(recorder.losses, recorder.steps)
    np.testing.assert_allclose(recorder.lrs[:STEPS], ON_RAMP, rtol=1e-12, atol=1e-16)


def test_an_interrupt_while_bringing_over_loses_nothing(monkeypatch):
    recorder = Recorder()
    for i in range(5):
        recorder.record(float(i), {"lr": 0.1})

    def interrupted(values: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recorder_module, "brought_over", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _ = recorder.losses
    np.testing.assert_array_equal(recorder.losses, range(5))
    assert deferred.brought_over is recorder_module.brought_over


# Keeping


def filled(steps: int = 8, groups: int = 2) -> Recorder:
    recorder = Recorder()
    for i in range(steps):
        recorder.record(1 / (i + 3), [{"lr": 0.1 * (g + 1) / (i + 1), "momentum": 0.9} for g in range(groups)])
        if i % 4 == 3:
            recorder.record_metrics(i // 4, {"train_loss": torch.tensor(0.5), "valid_loss": 0.25 / (i + 1), "hits": 1})
    return recorder


def test_saved_and_loaded(tmp_path):
    whole, begun = filled(), filled(4)
    torch.save(begun.state_dict(), tmp_path / "recorder.pt")
    again = Recorder()
    again.record(5.0)
    again.load_state_dict(torch.load(tmp_path / "recorder.pt", weights_only=True))
    for i in range(4, 8):
        again.record(1 / (i + 3), [{"lr": 0.1 * (g + 1) / (i + 1), "momentum": 0.9} for g in range(2)])
    again.record_metrics(1, {"train_loss": 0.5, "valid_loss": 0.25 / 8, "hits": 1})
    np.testing.assert_array_equal(again.steps, whole.steps)
    np.testing.assert_array_equal(again.losses, whole.losses)
    assert again.hypers.keys() == whole.hypers.keys()
    for name in whole.hypers:
        np.testing.assert_array_equal(again.hypers[name], whole.hypers[name])
    assert again.epochs == whole.epochs
    with pytest.raises(ValueError, match="expected the state of a Recorder"):
        again.load_state_dict({"steps": torch.zeros(1)})
    state = whole.state_dict()
    with pytest.raises(ValueError, match="not as many losses and hypers as steps"):
        again.load_state_dict({**state, "losses": state["losses"][1:]})
    assert len(again) == 8


def test_csv(tmp_path):
    recorder = filled()
    recorder.to_csv(tmp_path / "steps.csv")
    recorder.epochs_to_csv(tmp_path / "epochs.csv")
    rows = list(csv.DictReader((tmp_path / "steps.csv").read_text().splitlines()))
    assert list(rows[0]) == ["step", "loss", "lr[0]", "lr[1]", "momentum[0]", "momentum[1]"]
    assert [int(row["step"]) for row in rows] == list(range(8))
    assert [float(row["loss"]) for row in rows] == recorder.losses.tolist()
    assert [float(row["lr[1]"]) for row in rows] == recorder.lrs.tolist()
    rows = list(csv.DictReader((tmp_path / "epochs.csv").read_text().splitlines()))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == recorder.epochs
    filled(groups=1).to_csv(tmp_path / "one.csv")
    assert (tmp_path / "one.csv").read_text().startswith("step,loss,lr,momentum\n0,0.3333333333333333,0.1,0.9\n")


def test_table():
    table = filled().table().splitlines()
    assert table[0].split() == ["epoch", "step", "train_loss", "valid_loss", "hits"]
    assert [row.split() for row in table[2:]] == [["0", "4", "0.5", "0.0625", "1"], ["1", "8", "0.5", "0.03125", "1"]]
    assert len({len(line) for line in table}) == 1
    assert Recorder().table().split() == ["epoch", "step", "-----", "----"]


def test_a_recorder_for_each_member_of_a_sweep():
    loss_fn = lambda params, batch: (params["w"] ** 2).sum() * batch
    params = {"w": torch.ones(2, dtype=torch.float64)}
    data = [torch.tensor(1.0 + i) for i in range(6)]
    result = fo.sweep(loss_fn, params, fo.sgd(), {"lr": [0.01, 0.1, 1e200]}, data, compile=False, record_every=2)
    recorders = Recorder.from_sweep(result)
    assert len(recorders) == 3
    for member, recorder in enumerate(recorders):
        np.testing.assert_array_equal(recorder.steps, result.loss_steps)
        np.testing.assert_array_equal(recorder.losses, result.losses[:, member])
        np.testing.assert_array_equal(recorder.hypers["lr"], [result.config(member)["lr"]] * len(recorder))
    assert np.isnan(recorders[2].losses[-1])
    ax = compare({f"lr {recorder.lrs[0]:g}": recorder for recorder in recorders}, smooth=0)
    assert len(lines_of(ax)) == 3


# Errors


def test_errors():
    recorder = Recorder()
    for wrong in (torch.zeros(1), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match=r"the loss has shape \[.*\], expected a 0-d tensor; take its mean"):
            recorder.record(wrong)
    with pytest.raises(TypeError, match="the loss is a str"):
        recorder.record("0.5")
    with pytest.raises(TypeError, match="lr/body is a NoneType, expected a number or a 0-d tensor"):
        recorder.record(1.0, {"lr": {"body": None}})
    with pytest.raises(ValueError, match=r"lr has shape \[2\]"):
        recorder.record(1.0, {"lr": torch.zeros(2)})
    with pytest.raises(TypeError, match="give the optimizer itself, not its param_groups"):
        recorder.record(1.0, torch.optim.SGD(net().parameters()).param_groups)
    with pytest.raises(TypeError, match="expected an optimizer or a learner, got a Sequential"):
        recorder.record(1.0, net())
    assert len(recorder) == 0
    recorder.record(1.0, step=4)
    with pytest.raises(ValueError, match="step 4 does not come after step 4"):
        recorder.record(1.0, step=4)
    with pytest.raises(KeyError, match=r"no hyper 'lr' was recorded; there are \[\]"):
        recorder.plot()
    with pytest.raises(ValueError, match="nothing is left to draw of 1 steps with skip_start=1 and skip_end=0"):
        recorder.plot_loss(skip_start=1)
    with pytest.raises(ValueError, match="nothing is left to draw of 0 steps"):
        Recorder().plot_loss()
    with pytest.raises(ValueError, match="there are no recorders"):
        compare({})


# Pictures


def noisy(seed: int = 0, steps: int = 60) -> Recorder:
    generator, recorder = np.random.default_rng(seed), Recorder()
    cycle = one_cycle(0.1)
    for i in range(steps):
        lr, mom = (float(cycle[name](i / steps)) for name in ("lr", "mom"))
        recorder.record(math.exp(-i / 20) + 0.2 + 0.1 * generator.random(), {"lr": lr, "beta1": mom})
    return recorder


def lines_of(ax: Any) -> Any:
    return ax.get_lines()


def texts(ax: Any) -> list[str]:
    return [] if ax.get_legend() is None else [text.get_text() for text in ax.get_legend().get_texts()]


def debiased(losses: np.ndarray, beta: float) -> np.ndarray:
    weights = np.tril(beta ** np.clip(np.subtract.outer(np.arange(len(losses)), np.arange(len(losses))), 0, None))
    return weights @ losses / weights.sum(1)


def test_losses_drawn_are_smoothed_as_in_fastai():
    from client import load  # pyright: ignore[reportMissingImports]

    (learner,) = load("fastai", "fastai.learner")
    recorder = noisy()
    metric, theirs = learner.AvgSmoothLoss(beta=0.98), []
    for loss in recorder.losses:
        metric.accumulate(type("Learn", (), {"loss": torch.tensor(loss, dtype=torch.float32)}))
        theirs.append(float(metric.value))
    for ax in (recorder.plot_loss(), recorder.plot()):
        (line,) = lines_of(ax)
        # fastai averages in float32
        np.testing.assert_allclose(line.get_ydata(), theirs, rtol=1e-5)
        np.testing.assert_allclose(line.get_ydata(), debiased(recorder.losses, 0.98), rtol=1e-12)


def test_picture_of_the_loss():
    recorder = noisy()
    ax = recorder.plot_loss(smooth=0.9, skip_start=5, skip_end=3)
    (line,) = lines_of(ax)
    np.testing.assert_array_equal(line.get_xdata(), np.arange(5, 57))
    np.testing.assert_allclose(line.get_ydata(), debiased(recorder.losses, 0.9)[5:57], rtol=1e-12)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale(), texts(ax)) == ("step", "loss, smoothed", "linear", [])
    raw = recorder.plot_loss(smooth=0, label="run")
    np.testing.assert_array_equal(lines_of(raw)[0].get_ydata(), recorder.losses)
    assert (raw.get_ylabel(), texts(raw)) == ("loss", ["run"])
    assert recorder.plot_loss(ax) is ax


def test_validation_is_drawn_over_training():
    recorder = noisy(steps=20)
    for step in (5, 10, 15, 20):
        recorder.epochs.append({"epoch": step // 5, "step": step, "valid_loss": 1 / step})
    recorder.epochs.append({"epoch": 5, "step": 20, "accuracy": 1.0})
    train, valid = lines_of(recorder.plot_loss(skip_start=7))
    assert (train.get_label(), valid.get_label()) == ("train", "validation")
    assert list(valid.get_xdata()) == [10, 15, 20]
    assert list(valid.get_ydata()) == [0.1, 1 / 15, 0.05]


def test_picture_of_the_loss_against_the_learning_rate():
    recorder = noisy()
    ax = recorder.plot(smooth=0, skip_start=2, skip_end=1)
    (line,) = lines_of(ax)
    np.testing.assert_array_equal(line.get_xdata(), recorder.lrs[2:-1])
    np.testing.assert_array_equal(line.get_ydata(), recorder.losses[2:-1])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale(), ax.get_yscale()) == ("lr", "loss", "log", "linear")


def test_picture_of_a_hyper():
    recorder = noisy()
    ax = recorder.plot_hyper("beta1")
    (line,) = lines_of(ax)
    np.testing.assert_array_equal(line.get_ydata(), recorder.hypers["beta1"])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale(), texts(ax)) == ("step", "beta1", "linear", [])
    two = filled().plot_hyper("lr", label="run")
    assert [line.get_label() for line in lines_of(two)] == ["run, group 0", "run, group 1"] == texts(two)
    far = Recorder()
    far.record(1.0, {"lr": {"body": 1e-4, "head": 1e-2}})
    assert (far.plot_hyper("lr").get_yscale(), texts(far.plot_hyper("lr"))) == ("log", ["body", "head"])
    with pytest.raises(KeyError, match="no hyper 'mom' was recorded; there are"):
        recorder.plot_hyper("mom")


@pytest.mark.parametrize("count", [2, 14])
def test_runs_are_compared_over_one_axis(count):
    recorders = {f"run {i}": noisy(i) for i in range(count)}
    recorders["run 0"].record_metrics(0, {"valid_loss": 0.3})
    ax = compare(recorders, smooth=0.5, skip_start=3)
    lines = {line.get_label(): line for line in lines_of(ax)}
    assert list(lines) == ["run 0", "run 0, validation", *list(recorders)[1:]] == texts(ax)
    for name, recorder in recorders.items():
        np.testing.assert_allclose(lines[name].get_ydata(), debiased(recorder.losses, 0.5)[3:], rtol=1e-12)
    assert len({str(lines[name].get_color()) for name in recorders}) == count
    assert lines["run 0"].get_color() == lines["run 0, validation"].get_color()
    assert texts(compare(recorders, validation=False)) == list(recorders)


def test_metrics_are_drawn_over_steps():
    first, second = noisy(0), noisy(1)
    for recorder, values in ((first, [0.1, 0.4]), (second, [0.2])):
        for epoch, value in enumerate(values):
            recorder.record_metrics(epoch, {"accuracy": value})
    ax = second.plot_metric("accuracy", first.plot_metric("accuracy", label="first"), label="second")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "accuracy")
    assert [list(line.get_ydata()) for line in lines_of(ax)] == [[0.1, 0.4], [0.2]]
    assert [line.get_xdata()[0] for line in lines_of(ax)] == [len(first), len(second)]
    assert texts(ax) == ["first", "second"]
    with pytest.raises(KeyError, match=r"no 'f1' was recorded after an epoch; there are \['accuracy'\]"):
        first.plot_metric("f1")


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"plot needs matplotlib: pip install 'functopt\[examples\]'"):
        noisy().plot_loss()
