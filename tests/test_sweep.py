"""The sweep: every member is the run it would have been alone."""

from __future__ import annotations

import csv
import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import functopt as fo
from functopt import tree


def make_params(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict:
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) / 2
    return {"w1": draw(3, 4), "b1": torch.zeros(4, dtype=dtype), "w2": draw(4, 2), "b2": torch.zeros(2, dtype=dtype)}


def make_batches(count: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> list:
    g = torch.Generator().manual_seed(seed)
    xs = torch.randn(count, 8, 3, generator=g, dtype=torch.float64).to(dtype)
    return [(x, (x.sum(-1) > 0).long()) for x in xs]


def net(params, x):
    return torch.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def loss_fn(params, batch):
    return F.cross_entropy(net(params, batch[0]), batch[1])


def smoothed(params, batch, hypers):
    return F.cross_entropy(net(params, batch[0]), batch[1]) * (1 - hypers["smoothing"])


HELD_OUT = make_batches(1, seed=9)[0]


def accuracy(params):
    x, y = HELD_OUT
    return (net(params, x).argmax(-1) == y).float().mean()


def alone(tx, params, batches, hypers, loss=loss_fn):
    state = tx.init(params)
    for batch in batches:
        grads = torch.func.grad(loss)(params, batch)
        params, state = tx.update(grads, state, params, hypers)
    return params


def same(got, want, **tolerance):
    tree.check_same(got, want, "params")
    for path, leaf in tree.leaves_with_paths(got):
        torch.testing.assert_close(leaf, tree.get(want, path), msg=lambda m, path=path: f"{path}: {m}", **tolerance)


OPTIMIZERS = {
    "sgd": (fo.sgd(momentum=0.9), {"lr": fo.log_uniform(1e-3, 1e-1), "momentum": fo.uniform(0.0, 0.95)}),
    "adamw": (fo.adamw(), {"lr": fo.log_uniform(1e-3, 1e-1), "weight_decay": fo.log_uniform(1e-4, 1.0)}),
    "lamb": (fo.lamb(), {"lr": fo.log_uniform(1e-3, 1e-1), "beta2": fo.choice([0.9, 0.99, 0.999])}),
    "ranger": (fo.ranger(), {"lr": fo.log_uniform(1e-3, 1e-1), "sync_period": fo.choice([2, 3, 5])}),
    "scheduled": (
        fo.chain(fo.clip_by_global_norm(1.0), fo.radam(fo.cosine_decay_schedule(0.05, 12))),
        {"max_norm": fo.log_uniform(0.1, 1.0), "lr": fo.cosine_decay_schedule(fo.log_uniform(1e-3, 1e-1), 12)},
    ),
}


def member_hypers(space: Any, result: fo.SweepResult, i: int) -> dict[str, Any]:
    """The hypers of one member in the form that tx.update takes, a schedule put together again."""
    flat = result.config(i)
    hypers: dict[str, Any] = {}
    for name, spec in space.items():
        settings = {key.split(".", 1)[1]: value for key, value in flat.items() if key.startswith(f"{name}.")}
        hypers[name] = spec._replace(**settings) if settings else flat[name]
    return hypers


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_member_is_the_run_alone_in_float64(name):
    tx, space = OPTIMIZERS[name]
    params, batches = make_params(dtype=torch.float64), make_batches(12, torch.float64)
    result = fo.sweep(loss_fn, params, tx, space, batches, members=4, compile=False)
    for i in range(4):
        want = alone(tx, params, batches, member_hypers(space, result, i))
        same(result.params(i), want, rtol=1e-12, atol=1e-12)  # batched matmuls may sum in another order


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("lamb", "scheduled") else pytest.mark.exhaustive) for name in OPTIMIZERS],
)
def test_a_member_is_the_run_alone_compiled_in_float32(name):
    tx, space = OPTIMIZERS[name]
    params, batches = make_params(), make_batches(12)
    result = fo.sweep(loss_fn, params, tx, space, batches, members=4)
    for i in range(4):
        want = alone(tx, params, batches, member_hypers(space, result, i))
        same(result.params(i), want, rtol=1e-5, atol=1e-5)  # float32 rounding over 12 steps


def test_compiled_in_float64_equals_eager():
    tx, space = OPTIMIZERS["adamw"]
    params, batches = make_params(dtype=torch.float64), make_batches(12, torch.float64)
    eager, compiled = (fo.sweep(loss_fn, params, tx, space, batches, members=3, compile=c) for c in (False, True))
    same(compiled.all_params, eager.all_params, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(compiled.losses, eager.losses, rtol=1e-12, atol=1e-12)


def test_inputs_are_not_touched():
    params, batches = make_params(), make_batches(3)
    before = [leaf.clone() for leaf in tree.leaves((params, batches))]
    fo.sweep(loss_fn, params, fo.adamw(), {"lr": [0.1, 0.2]}, batches)
    assert all(torch.equal(a, b) for a, b in zip(before, tree.leaves((params, batches)), strict=True))


# Divergence


@pytest.mark.parametrize("compiled", [False, True])
def test_a_diverging_member_is_frozen_and_touches_nobody(compiled):
    tx, batches = fo.sgd(), make_batches(8)
    bad = fo.sweep(loss_fn, make_params(), tx, {"lr": [0.1, 1e38, 0.3]}, batches, compile=compiled)
    good = fo.sweep(loss_fn, make_params(), tx, {"lr": [0.1, 0.2, 0.3]}, batches, compile=compiled)
    assert bad.diverged_at.tolist()[0::2] == [-1, -1]
    assert bad.diverged_at[1] >= 0
    for i in (0, 2):  # bit for bit
        same(bad.params(i), good.params(i), rtol=0, atol=0)
    assert torch.equal(bad.losses[:, [0, 2]], good.losses[:, [0, 2]])
    assert all(torch.isfinite(leaf).all() for leaf in tree.leaves((bad.all_params, bad.all_states)))
    assert bad.order[-1] == 1


def test_frozen_at_the_last_finite_parameters_with_its_step():
    def exploding(params, batch):  # the third batch makes the loss infinite
        return (params["x"] * batch).sum()

    batches = [torch.ones(1), torch.ones(1), torch.full((1,), torch.inf), torch.ones(1)]
    result = fo.sweep(exploding, {"x": torch.ones(1)}, fo.sgd(), {"lr": [0.5, 0.25]}, batches, compile=False)
    assert result.diverged_at.tolist() == [2, 2]
    assert [result.params(i)["x"].item() for i in (0, 1)] == [0.0, 0.5]
    assert torch.isnan(result.losses[3]).all()


@pytest.mark.usefixtures("_graphs_only")
def test_parameters_whose_sum_overflows_are_finite():
    big = {"x": torch.ones(()), "large": torch.full((4,), 3e38)}
    loss = lambda params, batch: batch * params["x"] + 0 * params["large"][0]
    result = fo.sweep(loss, big, fo.sgd(), {"lr": [0.5, 0.25]}, [torch.ones(())] * 20)
    assert result.diverged_at.tolist() == [-1, -1]
    assert result.all_params["x"].tolist() == [1 - 20 * 0.5, 1 - 20 * 0.25]
    assert torch.equal(result.all_params["large"], big["large"].expand(2, 4))


def test_finite_loss_with_an_infinite_step_is_caught_before_it_is_taken():
    def linear(params, batch):
        return params["x"].sum() * 0 + batch * params["x"].sum()

    batches = [torch.tensor(1.0), torch.tensor(1e38), torch.tensor(1.0)]
    result = fo.sweep(linear, {"x": torch.ones(1)}, fo.sgd(), {"lr": [1e2, 1e-2]}, batches, compile=False)
    assert result.diverged_at.tolist() == [1, -1]
    assert result.params(0)["x"].item() == -99.0


# What is swept


def test_names_that_only_the_loss_has():
    space = {"lr": [0.1, 0.1], "smoothing": [0.0, 0.5]}
    result = fo.sweep(smoothed, make_params(), fo.sgd(), space, make_batches(3), compile=False)
    for i, s in enumerate(space["smoothing"]):
        want = alone(
            fo.sgd(lr=0.1), make_params(), make_batches(3), {}, lambda p, b, s=s: smoothed(p, b, {"smoothing": s})
        )
        same(result.params(i), want, rtol=1e-6, atol=1e-6)  # float32


def test_a_loss_may_give_hypers_a_default():
    def optional(params, batch, hypers=None):
        return smoothed(params, batch, hypers or {"smoothing": 0.0})

    space = {"lr": [0.1, 0.1], "smoothing": [0.0, 0.5]}
    result = fo.sweep(optional, make_params(), fo.sgd(), space, make_batches(3), compile=False)
    assert not torch.equal(result.params(0)["w1"], result.params(1)["w1"])


def test_a_name_that_nobody_has_is_refused():
    with pytest.raises(KeyError, match=r"weight_decay.*third argument"):
        fo.sweep(loss_fn, make_params(), fo.sgd(), {"wieght_decay": [0.1]}, make_batches(1))
    space = {"smoothing": [0.1], "smoothnig": [0.1]}
    with pytest.raises(KeyError, match=r"smoothnig.*did not read"):
        fo.sweep(smoothed, make_params(), fo.sgd(), space, make_batches(1))


def test_grids_multiply_and_lists_are_read_member_by_member():
    space = {"lr": fo.grid([0.1, 0.2]), "momentum": fo.grid([0.5, 0.6, 0.7]), "weight_decay": torch.arange(6) / 10}
    result = fo.sweep(loss_fn, make_params(), fo.sgd(momentum=0.9), space, make_batches(1), compile=False)
    assert len(result) == 6
    assert result.hypers["lr"].tolist() == [0.1, 0.1, 0.1, 0.2, 0.2, 0.2]
    assert result.hypers["momentum"].tolist() == [0.5, 0.6, 0.7, 0.5, 0.6, 0.7]
    assert result.config(4)["weight_decay"] == pytest.approx(0.4)


def test_draws_stay_in_range_and_follow_the_seed():
    space = {"lr": fo.log_uniform(1e-4, 1e-1), "momentum": fo.uniform(0.5, 0.9), "weight_decay": fo.choice([0.0, 0.1])}
    a, b, c = (
        fo.sweep(
            loss_fn, make_params(), fo.sgd(momentum=0.9), space, make_batches(1), members=200, seed=s, compile=False
        )
        for s in (0, 0, 1)
    )
    assert all(torch.equal(a.hypers[name], b.hypers[name]) for name in space)
    assert not torch.equal(a.hypers["lr"], c.hypers["lr"])
    assert 1e-4 <= a.hypers["lr"].min() < 3e-4
    assert 3e-2 < a.hypers["lr"].max() <= 1e-1  # all decades are reached
    assert 0.5 <= a.hypers["momentum"].min() <= a.hypers["momentum"].max() <= 0.9
    assert {*a.hypers["weight_decay"].tolist()} == {0.0, 0.1}


@pytest.mark.parametrize(
    ("space", "members", "message"),
    [
        ({"lr": [0.1, 0.2], "weight_decay": [0.1]}, None, "list for lr gives 2.*list for weight_decay gives 1"),
        ({"lr": fo.grid([0.1, 0.2]), "weight_decay": fo.grid([0.1, 0.2])}, 3, "members=3 gives 3.*gives 4"),
        ({"lr": fo.log_uniform(1e-3, 1.0)}, None, "how many members"),
        ({}, 2, "empty"),
        ({"lr": [0.1, math.nan]}, None, "NaN"),
        ({"lr": [-0.1, 0.1]}, None, "lr must be in"),
        ({"beta1": fo.uniform(0.5, 1.5)}, 50, "beta1 must be in"),
        ({"lr": torch.ones(2, 2)}, None, "1-d tensor"),
    ],
)
def test_bad_spaces(space, members, message):
    with pytest.raises(ValueError, match=message):
        fo.sweep(loss_fn, make_params(), fo.adamw(), space, make_batches(1), members=members)


@pytest.mark.parametrize(
    "bad", [lambda: fo.log_uniform(0.0, 1.0), lambda: fo.uniform(1.0, 1.0), lambda: fo.grid([math.nan])]
)
def test_bad_kinds(bad):
    with pytest.raises(ValueError, match=r"low < high|NaN"):
        bad()


def test_bad_calls():
    args = (loss_fn, make_params(), fo.sgd(), {"lr": [0.1]})
    with pytest.raises(ValueError, match="no batches"):
        fo.sweep(*args, [])
    with pytest.raises(ValueError, match="mode='max' or mode='min'"):
        fo.sweep(*args, make_batches(1), eval_fn=accuracy)
    with pytest.raises(ValueError, match=r"must be a 0-d tensor, got a tensor of shape \[8, 2\]"):
        fo.sweep(lambda params, batch: net(params, batch[0]), make_params(), fo.sgd(), {"lr": [0.1]}, make_batches(1))
    with pytest.raises(ValueError, match="steps must be at least 1"):
        fo.sweep(*args, make_batches(1), steps=0)
    with pytest.raises(KeyError, match="no metric 'f1'"):
        fo.sweep(*args, make_batches(1), eval_fn=accuracy, mode="max", metric="f1", compile=False)


class Settings(NamedTuple):
    value: Any

    def __call__(self, step):
        return self.value / (step + 1)


def test_the_settings_of_a_schedule_are_swept():
    space = {"lr": Settings(fo.grid([0.1, 0.3]))}
    tx = fo.chain(fo.sgd(lr=Settings(1.0)))
    result = fo.sweep(loss_fn, make_params(), tx, space, make_batches(4), compile=False)
    assert result.hypers["lr.value"].tolist() == [0.1, 0.3]
    for i, value in enumerate((0.1, 0.3)):
        same(result.params(i), alone(tx, make_params(), make_batches(4), {"lr": Settings(value)}), rtol=1e-6, atol=1e-6)


# Initial parameters


def test_a_seed_for_each_member():
    result = fo.sweep(loss_fn, make_params, fo.sgd(), {"lr": [0.0, 0.0]}, make_batches(1), seed=5, compile=False)
    same(result.params(0), make_params(5), rtol=0, atol=0)
    same(result.params(1), make_params(6), rtol=0, atol=0)


def test_stacked_parameters():
    stacked = tree.stack([make_params(1), make_params(2)])
    result = fo.sweep(loss_fn, stacked, fo.sgd(), {"lr": [0.0, 0.0]}, make_batches(1), stacked=True, compile=False)
    same(result.params(1), make_params(2), rtol=0, atol=0)
    with pytest.raises(ValueError, match="there are 3 members"):
        fo.sweep(loss_fn, stacked, fo.sgd(), {"lr": [0.1] * 3}, make_batches(1), stacked=True)


def test_random_layers_can_differ_between_members():
    def noisy(params, batch):
        return (params["x"] * F.dropout(batch, 0.5)).sum()

    args = (noisy, {"x": torch.ones(64)}, fo.sgd(), {"lr": [1.0, 1.0]}, [torch.ones(64)])
    different = fo.sweep(*args, randomness="different", compile=False)
    alike = fo.sweep(*args, randomness="same", compile=False)
    assert not torch.equal(different.params(0)["x"], different.params(1)["x"])
    assert torch.equal(alike.params(0)["x"], alike.params(1)["x"])


# Results


def infinite_above_a_half(params, batch, hypers):
    return loss_fn(params, batch) / (hypers["lr"] < 0.5)


@pytest.fixture(scope="module")
def result() -> fo.SweepResult:
    space = {"lr": fo.grid([1e-3, 1e-2, 1e-1, 1.0]), "weight_decay": fo.grid([0.0, 0.1])}
    return fo.sweep(
        infinite_above_a_half,
        make_params(),
        fo.sgd(),
        space,
        make_batches(40),
        eval_fn=accuracy,
        mode="max",
        eval_every=10,
        record_every=4,
        compile=False,
    )


def test_curves_are_recorded_every_k_steps(result):
    assert result.losses.shape == (10, 8)
    assert result.loss_steps.tolist() == list(range(0, 40, 4))
    assert result.steps == 40


class Waits(TorchDispatchMode):
    """Counts the reads of a tensor's value by Python, each of which would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device():
    waits = []
    for steps in (2, 20):
        with Waits() as mode:
            fo.sweep(loss_fn, make_params(), fo.adamw(), {"lr": [0.1, 0.2]}, make_batches(steps), compile=False)
        waits.append(mode.count)
    assert waits[0] == waits[1]


def test_metrics_and_ranking(result):
    values = [accuracy(result.params(i)).item() for i in range(8)]
    assert result.metrics["accuracy"].tolist() == pytest.approx(values)
    assert (result.best_metrics["accuracy"] >= result.metrics["accuracy"]).all()
    alive = [i for i in range(8) if result.diverged_at[i] < 0]
    assert result.best in alive
    assert values[result.best] == max(values[i] for i in alive)
    assert {*result.order[len(alive) :]} == {6, 7}
    assert str(result).startswith("SweepResult(8 members over ['lr', 'weight_decay'], 40 steps, 2 diverged")


def test_without_eval_the_mean_of_the_last_losses_ranks():
    result = fo.sweep(loss_fn, make_params(), fo.sgd(), {"lr": [0.0, 0.1]}, make_batches(40), compile=False)
    assert result.metric == "loss"
    torch.testing.assert_close(result.metrics["loss"], result.losses[-4:].double().mean(0))
    assert result.best == 1


def test_a_dict_of_metrics_and_steps():
    def both(params):
        return {"loss": loss_fn(params, HELD_OUT), "accuracy": accuracy(params)}

    args = (loss_fn, make_params(), fo.sgd(), {"lr": [0.0, 0.1]}, make_batches(40))
    result = fo.sweep(*args, eval_fn=both, mode="max", metric="accuracy", steps=7, compile=False)
    assert result.steps == 7
    assert [*result.metrics] == ["loss", "accuracy"]
    assert result.metric == "accuracy"


def test_table_is_plain_where_nobody_watches(result):
    lines = result.table(top=3).splitlines()
    assert lines[0].split() == [
        "member",
        "lr",
        "weight_decay",
        "accuracy",
        *(["best", "accuracy"] if "best" in lines[0] else []),
        "diverged",
        "at",
    ]
    assert len(lines) == 6
    assert lines[-1] == "... and 5 more"
    assert lines[2].split()[0] == str(result.best)
    assert "\x1b" not in result.table(None)


def test_table_is_drawn_by_rich_on_a_terminal(result, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "┃" in result.table()


def test_csv_has_every_member_with_full_precision(result, tmp_path):
    result.to_csv(tmp_path / "sweep.csv")
    with open(tmp_path / "sweep.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [int(row["member"]) for row in rows] == result.order
    assert all(float(row["lr"]) == result.config(int(row["member"]))["lr"] for row in rows)
    assert [row["diverged_at"] for row in rows[-2:]] == [str(int(result.diverged_at[i])) for i in result.order[-2:]]


def test_plots(result, tmp_path):
    for i, arguments in enumerate(({}, {"color": "weight_decay"}, {"x": "lr"}, {"x": "lr", "color": "weight_decay"})):
        ax = result.plot(**arguments)
        ax.figure.savefig(tmp_path / f"{i}.png")
    assert result.plot(x="lr").get_xscale() == "log"
    assert result.plot(x="weight_decay").get_xscale() == "linear"
    heat = result.plot(x="lr", y="weight_decay")
    assert len(heat.get_images()) == 1
    heat.figure.savefig(tmp_path / "heat.png")
    with pytest.raises(KeyError, match="no hyper 'beta1'"):
        result.plot(x="beta1")


def test_heat_map_of_random_members_has_a_point_for_each():
    space = {"lr": fo.log_uniform(1e-3, 1.0), "weight_decay": fo.uniform(0.0, 0.1)}
    result = fo.sweep(loss_fn, make_params(), fo.sgd(), space, make_batches(2), members=9, compile=False)
    ax = result.plot(x="lr", y="weight_decay")
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")
    points = [c for c in ax.collections if np.shape(c.get_offsets()) == (9, 2)]
    assert len(points) == 1


def test_there_is_no_such_member(result):
    with pytest.raises(IndexError, match="the sweep has 8"):
        result.params(8)


# Progress


def test_progress_is_silent_unless_watched(capsys):
    args = (loss_fn, make_params(), fo.sgd(), {"lr": [0.1]}, make_batches(3))
    fo.sweep(*args, compile=False)
    assert capsys.readouterr() == ("", "")
    fo.sweep(*args, compile=False, progress=True)
    shown = capsys.readouterr().err
    assert "alive 1/1" in shown
    assert "best loss" in shown
    assert "step" in shown


def test_progress_without_tqdm(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    fo.sweep(loss_fn, make_params(), fo.sgd(), {"lr": [0.1]}, make_batches(3), compile=False, progress=True)
    assert "step 3/3" in capsys.readouterr().err


def test_a_second_sweep_compiles_nothing_again():
    from torch._dynamo.utils import counters

    args = (loss_fn, make_params(), fo.adamw(), {"lr": [0.1, 0.2]}, make_batches(2))
    fo.sweep(*args)
    counters.clear()
    fo.sweep(loss_fn, make_params(1), fo.adamw(), {"lr": [0.3, 0.4]}, make_batches(2, seed=3))
    assert counters["frames"]["total"] == 0
