"""Schedules over the whole of training: fastai's values at every step, the same in all the ways to run, as data."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optree
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import functopt as fo
from functopt.schedules import cosine_restarts_schedule, scaled_schedule
from functopt.training.learner import Learner, PureLearner
from functopt.training.param_scheduler import ParamScheduler, combine_scheds, flat_cos, hypers_at, one_cycle
from functopt.training.plot import plot_schedule

sys.path.insert(0, str(Path(__file__).parent / "clients"))

HERE = Path(__file__).parent
SEEDS = np.load(HERE / "seeds.npz")
CASES = [case for case in json.loads((HERE / "seeds.json").read_text())["cases"] if case["section"] == "D"]
RTOL = 1e-12


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def groups(model: Any) -> list[dict[str, Any]]:
    return [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]


def two_groups(kind: str) -> Any:
    """An optimizer of some kind with two groups, lr 0.1 and a beta1 of 0.9."""
    model = net()
    if kind == "ours":
        return fo.StatefulOptimizer(groups(model), fo.adamw(0.1))
    if kind == "ours compiled":
        return fo.StatefulOptimizer(groups(model), fo.adamw(0.1), compile={"backend": "eager"})
    if kind == "from_torch":
        return fo.from_torch(torch.optim.AdamW, groups(model), lr=0.1)
    if kind == "torch":
        return torch.optim.AdamW(groups(model), lr=0.1)
    return Learner(model, fo.StatefulOptimizer(groups(model), fo.adamw(0.1)), mse_loss)


KINDS = ["ours", "ours compiled", "from_torch", "torch", "learner"]


def seen(target: Any, scheduler: ParamScheduler, steps: int) -> dict[str, np.ndarray]:
    """What is in force at each step: lr and beta1 of every group, ``[steps, groups]``."""
    rows = []
    param_groups = getattr(target, "optimizer", target).param_groups
    for _ in range(steps):
        scheduler.step()
        rows.append([[group["lr"], group["betas"][0]] for group in param_groups])
    return dict(zip(("lr", "beta1"), np.moveaxis(np.array(rows, dtype=np.float64), 2, 0), strict=True))


# fastai


@pytest.fixture(scope="module")
def fastai() -> Any:
    from client import load  # pyright: ignore[reportMissingImports]

    names = "learner", "optimizer", "data.core", "data.load", "torch_core", "callback.core", "callback.schedule"
    modules = load("fastai", *(f"fastai.{name}" for name in (*names, "callback.progress")))
    return SimpleNamespace(**{k: v for module in modules for k, v in vars(module).items()})


@pytest.fixture
def exact(fastai: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fastai work out positions in float64 instead of float32: the hypers are then the same to rounding."""
    monkeypatch.setattr(sys.modules["fastai.callback.schedule"], "tensor", partial(torch.tensor, dtype=torch.float64))


def theirs(fastai: Any, folder: Path, opt_func: Any, fit: Any) -> dict[str, np.ndarray]:
    """The hypers of every group at each step of a fastai Learner of two groups, with five steps an epoch."""
    rows = []

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        if scores.requires_grad:
            rows.append([[h["lr"], h["mom"]] for h in learn.opt.hypers])
        return mse_loss(scores, target).float()

    x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    loaders = fastai.DataLoaders(*[fastai.DataLoader(data, bs=4, num_workers=0) for _ in range(2)], device="cpu")
    split = lambda model: fastai.L(model[0], model[2]).map(fastai.params)
    learn = fastai.Learner(loaders, net(), loss, opt_func, splitter=split, path=folder)
    learn.remove_cb(fastai.ProgressCallback)
    learn.logger = lambda row: None
    fit(learn)
    return dict(zip(("lr", "mom"), np.moveaxis(np.array(rows, dtype=np.float64), 2, 0), strict=True))


PEAKS = [0.04, [0.01, 0.1], slice(0.001, 0.1), slice(0.1), np.array([0.02, 0.2])]
every_peak = pytest.mark.parametrize("lr", PEAKS, ids=str)
every_optimizer = pytest.mark.parametrize(("opt_func", "name"), [("Adam", "beta1"), ("SGD", "momentum")])


def ours(name: str, schedules: Any, steps: int) -> dict[str, np.ndarray]:
    """The same of ours: Adam's or SGD's groups."""
    tx = fo.adamw() if name == "beta1" else fo.sgd(momentum=0.9)
    optimizer = fo.StatefulOptimizer(groups(net()), tx)
    scheduler, rows = ParamScheduler(optimizer, schedules, steps), []
    for _ in range(steps):
        scheduler.step()
        rows.append([[group["lr"], group[name]] for group in optimizer.param_groups])
    return dict(zip(("lr", "mom"), np.moveaxis(np.array(rows), 2, 0), strict=True))


@pytest.mark.usefixtures("exact")
@every_optimizer
@every_peak
def test_one_cycle_is_that_of_fastai(fastai, tmp_path, opt_func, name, lr):
    func = partial(fastai.SGD, mom=0.9) if opt_func == "SGD" else fastai.Adam
    want = theirs(fastai, tmp_path, func, lambda learn: learn.fit_one_cycle(4, lr))
    got = ours(name, one_cycle(lr), 20)
    assert want["lr"].shape == (20, 2)
    for hyper in ("lr", "mom"):
        # the same numbers, added and multiplied in another order
        np.testing.assert_allclose(got[hyper], want[hyper], rtol=RTOL, atol=1e-15)


def test_settings_of_one_cycle_are_those_of_fastai_to_its_own_precision(fastai, tmp_path):
    settings = {"pct_start": 0.4, "div": 5.0, "div_final": 1e3}
    fit = lambda learn: learn.fit_one_cycle(5, 0.3, moms=(0.9, 0.7, 0.95), **settings)
    want = theirs(fastai, tmp_path, fastai.Adam, fit)
    got = ours("beta1", one_cycle(0.3, momentum=(0.9, 0.7, 0.95), **settings), 25)
    for hyper in ("lr", "mom"):
        # as it is, fastai keeps the fractions of combine_scheds in float32
        np.testing.assert_allclose(got[hyper], want[hyper], rtol=0, atol=2e-7)


@pytest.mark.usefixtures("exact")
@every_peak
def test_flat_cos_is_that_of_fastai(fastai, tmp_path, lr):
    want = theirs(fastai, tmp_path, fastai.Adam, lambda learn: learn.fit_flat_cos(4, lr))
    got = ours("beta1", flat_cos(lr), 20)
    np.testing.assert_allclose(got["lr"], want["lr"], rtol=RTOL, atol=1e-15)
    assert (got["mom"] == 0.9).all()


@pytest.mark.usefixtures("exact")
def test_restarts_are_those_of_fastai(fastai, tmp_path):
    want = theirs(fastai, tmp_path, fastai.Adam, lambda learn: learn.fit_sgdr(3, 1, lr_max=0.1))
    fractions = [1 / 7, 2 / 7, 4 / 7]
    joined = combine_scheds(fractions, [fo.cosine_schedule(0.1, 0.0)] * 3)
    for schedule in (joined, cosine_restarts_schedule(0.1, 1 / 7, 2)):
        got = ours("beta1", {"lr": schedule}, 35)
        np.testing.assert_allclose(got["lr"], want["lr"], rtol=RTOL, atol=1e-15)


# The seeds, section D


SCHEDULES: dict[str, Any] = {
    "SchedLin": fo.linear_schedule,
    "SchedCos": fo.cosine_schedule,
    "SchedNo": lambda start, end: fo.constant_schedule(start),
    "SchedExp": fo.exponential_schedule,
}


@pytest.mark.parametrize("case", [c for c in CASES if "combine_scheds" in c["name"]], ids=lambda case: case["name"])
def test_combine_scheds_of_the_seeds(case):
    schedule = combine_scheds(case["pcts"], [SCHEDULES[name](*args) for name, *args in case["scheds"]])
    got = [float(schedule(position)) for position in SEEDS[f"{case['name']}/pos"]]
    np.testing.assert_allclose(got, SEEDS[f"{case['name']}/values_ref"], rtol=1e-9, atol=1e-12)


def test_one_cycle_and_flat_cos_of_the_seeds():
    peaks = [1e-4, 1e-3, 1e-2]
    cases = {
        "one_cycle_lr": one_cycle(peaks)["lr"],
        "flat_cos": flat_cos(peaks)["lr"],
        "one_cycle_mom": [one_cycle(1)["mom"]],
    }
    for name, schedules in cases.items():
        positions, want = (SEEDS[f"D/combined_cos/{name}/{key}"] for key in ("pos", "values_ref"))
        got = np.array([[float(schedule(position)) for schedule in schedules] for position in positions])
        np.testing.assert_allclose(got.squeeze(), want, rtol=1e-9, atol=1e-12)


# All kinds of optimizers


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_optimizer(kind):
    target = two_groups(kind)
    schedules = {
        "lr": [fo.linear_schedule(0.0, 1.0), fo.exponential_schedule(1.0, 0.01)],
        "mom": fo.linear_schedule(0.8, 0.9),
    }
    got = seen(target, ParamScheduler(target, schedules, 10), 10)
    position = np.arange(10) / 10
    np.testing.assert_allclose(got["lr"][:, 0], position, rtol=RTOL)
    np.testing.assert_allclose(got["lr"][:, 1], 0.01**position, rtol=RTOL)
    np.testing.assert_allclose(got["beta1"], np.stack([0.8 + 0.1 * position] * 2, axis=1), rtol=RTOL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_lies_as_set_hypers_spreads_it(kind):
    target = two_groups(kind)
    for lr, ends in ((slice(0.001, 0.1), (0.001, 0.1)), (slice(0.1), (0.01, 0.1))):
        got = seen(target, ParamScheduler(target, one_cycle(lr), 12), 12)["lr"]
        for group, peak in enumerate(ends):
            want = [float(one_cycle(peak)["lr"](step / 12)) for step in range(12)]
            np.testing.assert_allclose(got[:, group], want, rtol=RTOL)


def test_an_optimizer_inside_another():
    """As accelerate wraps them: an optimizer with torch's interface around the one that steps."""

    class Wrapped(torch.optim.Optimizer):
        def __init__(self, optimizer: Any) -> None:
            self.optimizer, self.param_groups, self.defaults = optimizer, optimizer.param_groups, optimizer.defaults

    for kind in ("ours", "torch"):
        target = two_groups(kind)
        got = seen(target, ParamScheduler(Wrapped(target), {"mom": fo.linear_schedule(0.5, 0.9)}, 4), 4)
        np.testing.assert_allclose(got["beta1"][:, 1], [0.5, 0.6, 0.7, 0.8], rtol=RTOL)


def test_a_tensor_of_torchs_optimizer_stays_a_tensor():
    optimizer = torch.optim.AdamW(
        groups(net()), lr=torch.tensor(0.1, dtype=torch.float64), capturable=False, foreach=False
    )
    scheduler = ParamScheduler(optimizer, {"lr": [fo.linear_schedule(1.0, 0.0), fo.linear_schedule(2.0, 0.0)]}, 4)
    for step in range(4):
        scheduler.step()
        for group, top in zip(optimizer.param_groups, (1.0, 2.0), strict=True):
            assert isinstance(group["lr"], Tensor)
            assert group["lr"] == top * (1 - step / 4)


def trained(learner: Any, hypers: Any) -> list[Tensor]:
    """Parameters after six steps with the hypers set before each."""
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        hypers(step)
        x = torch.randn(8, 3, dtype=torch.float64, generator=generator)
        learner.step(learner.loss((x, x.sum(1, keepdim=True))))
    params = learner.params.values() if isinstance(learner, PureLearner) else learner.model.parameters()
    return [param.detach().clone() for param in params]


def test_all_ways_to_schedule_train_the_same():
    tx, cycle = fo.adamw(), one_cycle(0.05)
    classic = Learner(net(), fo.StatefulOptimizer((model := net()).named_parameters(), tx), mse_loss)
    classic.model = model
    by_scheduler = ParamScheduler(classic, cycle, 6)
    pure = PureLearner(net(), tx, mse_loss)
    pure_scheduler = ParamScheduler(pure, cycle, 6)
    functional = PureLearner(net(), tx, mse_loss)
    at = hypers_at(cycle, 6, tx)
    assert at.schedules.keys() == {"lr", "beta1"}
    long = one_cycle(0.05, transition_steps=6)
    in_force = PureLearner(net(), tx.with_hypers(lr=long["lr"], beta1=long["mom"]), mse_loss)
    results = [
        trained(classic, lambda step: by_scheduler.step()),
        trained(pure, lambda step: pure_scheduler.step()),
        trained(functional, lambda step: functional.set_hypers(**at(step))),
        trained(in_force, lambda step: None),
    ]
    start = [param.detach() for param in net().parameters()]
    assert all(not torch.allclose(param, first) for param, first in zip(results[0], start, strict=True))
    for result in results[1:]:
        for param, want in zip(result, results[0], strict=True):
            torch.testing.assert_close(param, want, rtol=RTOL, atol=1e-15)


def test_layers_of_a_tree():
    learner = PureLearner(net(), fo.sgd(0.1), mse_loss)
    course = fo.linear_schedule(1.0, 0.0)
    names = list(learner.params)
    tree = {name: scaled_schedule(0.1 * i, course) for i, name in enumerate(names)} | {names[-1]: 0.5}
    scheduler = ParamScheduler(learner, {"lr": tree}, 4)
    for step in range(4):
        scheduler.step()
        lr = learner.hypers[0]["lr"]
        assert lr == {name: pytest.approx(0.1 * i * (1 - step / 4)) for i, name in enumerate(names[:-1])} | {
            names[-1]: 0.5
        }
    # a height for each layer
    assert hypers_at(one_cycle({"a": 1.0, "b": 2.0}, momentum=None), 4)(1)["lr"] == {"a": 1.0, "b": 2.0}


# State


def test_resumed_it_goes_on():
    first, second = two_groups("ours"), two_groups("ours")
    whole = seen(first, ParamScheduler(first, one_cycle(0.1), 10), 10)
    scheduler = ParamScheduler(second, one_cycle(0.1), 10)
    begun = seen(second, scheduler, 4)
    third = two_groups("torch")
    again = ParamScheduler(third, one_cycle(0.1), 10)
    again.load_state_dict(scheduler.state_dict())
    rest = seen(third, again, 6)
    for name in ("lr", "beta1"):
        np.testing.assert_array_equal(np.concatenate([begun[name], rest[name]]), whole[name])
    with pytest.raises(ValueError, match="of a run of 10 steps, this one has 12"):
        ParamScheduler(third, one_cycle(0.1), 12).load_state_dict(scheduler.state_dict())


def test_there_are_only_so_many_steps():
    optimizer = two_groups("torch")
    scheduler = ParamScheduler(optimizer, {"lr": fo.linear_schedule(1.0, 0.0)}, 2)
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match="there is no step 2, total_steps is 2"):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    scheduler.set_for(0)
    assert optimizer.param_groups[0]["lr"] == 1.0


# Data


def test_one_graph_whatever_the_numbers():
    tx, graphs = fo.adamw(), []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    @partial(torch.compile, fullgraph=True, backend=backend)
    def update(state: Any, params: Any, hypers: Any, step: Tensor) -> Any:
        return tx.update(params, state, params, hypers(step))

    start = {"w": torch.ones(3, dtype=torch.float64)}
    number = lambda value: torch.tensor(float(value), dtype=torch.float64)
    for peak, total in ((0.1, 5), (0.3, 9)):
        at: Any = hypers_at(one_cycle(peak), total, tx)
        tensors = optree.tree_map(number, at)
        (state, params), (want_state, want) = (tx.init(start), start), (tx.init(start), start)
        for step in range(5):
            params, state = update(state, params, tensors, torch.tensor(step))
            want, want_state = tx.update(want, want_state, want, at(step))
        torch.testing.assert_close(params, want, rtol=RTOL, atol=0)
    assert len(graphs) == 1


def test_peaks_are_mapped_and_differentiated():
    tx, start = fo.sgd(), torch.zeros((), dtype=torch.float64)

    def train(peak: Tensor) -> Tensor:
        at, (params, state) = hypers_at(one_cycle(peak, momentum=None), 8, tx), (start, tx.init(start))
        for step in range(8):
            params, state = tx.update(torch.ones_like(params), state, params, at(step))
        return params

    peaks = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    shares = sum(float(one_cycle(1.0)["lr"](step / 8)) for step in range(8))
    torch.testing.assert_close(torch.func.vmap(train)(peaks), -shares * peaks, rtol=RTOL, atol=0)
    slope = torch.func.grad(train)(peaks[0])
    torch.testing.assert_close(slope, torch.tensor(-shares, dtype=torch.float64), rtol=RTOL, atol=0)


def test_a_swept_peak():
    """Each member of a sweep over the peak is what training alone with it gives."""
    target = torch.tensor([1.0, -2.0], dtype=torch.float64)
    loss_fn = lambda params, batch: ((params["w"] - target) ** 2 * batch).sum()
    start, batches = {"w": torch.zeros(2, dtype=torch.float64)}, [torch.tensor(1.0 + i) for i in range(8)]
    tx = fo.adamw()
    swept = one_cycle(fo.grid([0.01, 0.1, 1.0]), transition_steps=8)
    space = {"lr": swept["lr"], "beta1": swept["mom"]}
    result = fo.sweep(loss_fn, start, fo.scheduled(tx), space, batches, compile=False, progress=False)
    assert result.hypers["lr.factor"].tolist() == [0.01, 0.1, 1.0]
    assert result.log_axes == {"lr.factor"}
    for member, peak in enumerate((0.01, 0.1, 1.0)):
        at, (params, state) = hypers_at(one_cycle(peak), 8, tx), (start, tx.init(start))
        losses = []
        for step, batch in enumerate(batches):
            grads, loss = torch.func.grad_and_value(loss_fn)(params, batch)
            losses.append(loss)
            params, state = tx.update(grads, state, params, at(step))
        torch.testing.assert_close(result.params(member), params, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(result.losses[:, member].double(), torch.stack(losses), rtol=1e-6, atol=0)


def test_counts_of_whole_numbers_are_not_rounded():
    at = hypers_at({"lr": fo.linear_schedule(0.0, 1.0)}, 3)
    assert at(torch.tensor(1))["lr"] == at(1)["lr"] == torch.tensor(1 / 3, dtype=torch.float64)
    assert at(torch.tensor(1.0))["lr"].dtype == torch.float32


# Errors


@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_errors(kind):
    target, ramp = two_groups(kind), fo.linear_schedule(0.0, 1.0)
    before = [dict(group) for group in target.param_groups]
    with pytest.raises(KeyError, match=r"has no hyper 'lrr'.*Did you mean 'lr'"):
        ParamScheduler(target, {"lrr": ramp}, 10)
    with pytest.raises(ValueError, match="lr has 3 schedules, but there are 2 groups"):
        ParamScheduler(target, {"lr": [ramp] * 3}, 10)
    with pytest.raises(TypeError, match="lr is a function, expected a schedule"):
        ParamScheduler(target, {"lr": lambda position: position}, 10)
    with pytest.raises(ValueError, match="'mom' is 'beta1', which has a schedule already"):
        ParamScheduler(target, {"beta1": ramp, "mom": ramp}, 10)
    with pytest.raises(ValueError, match="total_steps must be at least 1, got 0"):
        ParamScheduler(target, {"lr": ramp}, 0)
    with pytest.raises(ValueError, match=r"beta1 must be in \[0, 1\), got 1.5"):
        ParamScheduler(target, {"lr": ramp, "beta1": fo.constant_schedule(1.5)}, 10).step()
    for group, old in zip(target.param_groups, before, strict=True):
        assert (group["lr"], group["betas"]) == (old["lr"], old.get("betas", (0.9, 0.999)))
    with pytest.raises(TypeError, match="expected an optimizer or a learner, got a Linear"):
        ParamScheduler(nn.Linear(1, 1), {"lr": ramp}, 10)


def test_errors_of_the_functional_form():
    with pytest.raises(
        KeyError, match=r"the optimizer has no hyper 'mom'; it has \['lr'\]\. one_cycle\(\.\.\., momentum=None\)"
    ):
        hypers_at(one_cycle(0.1), 10, fo.chain(fo.scale_by_lr(0.1)))
    with pytest.raises(TypeError, match="lr is a list; for a value per layer give a dict"):
        hypers_at(one_cycle([0.1, 0.2]), 10)
    with pytest.raises(TypeError, match="lr is a slice; for a value per layer give a dict"):
        hypers_at(one_cycle(slice(0.1)), 10)


# Pictures


def test_picture_of_one_schedule():
    schedule = one_cycle(0.1)["lr"]
    ax: Any = plot_schedule(schedule)
    (line,) = ax.get_lines()
    x, y = line.get_xdata(), line.get_ydata()
    np.testing.assert_allclose(y, [float(schedule(at)) for at in np.asarray(x)], rtol=RTOL)
    assert (x[0], x[-1]) == (0.0, pytest.approx(1.0, abs=1e-5))
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale(), ax.get_legend()) == ("position", "value", "linear", None)
    again = plot_schedule(flat_cos(0.1)["lr"], ax, label="flat")
    assert again is ax
    assert len(ax.get_lines()) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["flat"]


def test_picture_of_several_hypers():
    panels: Any = plot_schedule(one_cycle([0.1, 0.001], transition_steps=500), end=500)
    assert [ax.get_ylabel() for ax in panels] == ["lr", "mom"]
    assert [ax.get_xlabel() for ax in panels] == ["", "step"]
    assert [len(ax.get_lines()) for ax in panels] == [2, 1]
    assert panels[0].get_yscale() == "log"  # a group is a hundred times below the other
    assert [text.get_text() for text in panels[0].get_legend().get_texts()] == ["group 0", "group 1"]
    assert panels[0].figure is panels[1].figure
    drawn = panels[0].get_lines()[1].get_ydata()
    assert max(drawn) == pytest.approx(0.001)
    by_layer = plot_schedule({"lr": {"a": fo.linear_schedule(1.0, 0.0), "b": 0.5}})
    assert [line.get_label() for line in by_layer[0].get_lines()] == ["a", "b"]
    by_slice = plot_schedule(one_cycle(slice(0.01, 0.02)))
    assert [line.get_label() for line in by_slice[0].get_lines()] == ["first group", "last group"]
    with pytest.raises(ValueError, match="1 hypers need as many axes, got 2"):
        plot_schedule({"lr": fo.constant_schedule(1.0)}, panels)
    with pytest.raises(TypeError, match="expected a schedule, got a str"):
        plot_schedule("cosine")  # pyright: ignore[reportArgumentType, reportCallIssue]
