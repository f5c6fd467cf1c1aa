"""A sweep that tries out how it is run: it ends with the fastest plan, and computes the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import functopt as fo
from functopt.sweep import engine
from functopt.sweep import tune as tuning
from functopt.sweep.tune import COLUMNS, Plan, alternatives, fastest, has_convolution, seconds_each

START = Plan(1024, 4, COLUMNS)
ALL = alternatives(START, columns=True, chunk=True, threads=True)


def test_what_there_is_to_try():
    assert ALL == {"columns": [0, 8 * COLUMNS], "chunk": [256, 64, 16], "threads": [2, 1]}
    assert alternatives(Plan(64, 1, 0), columns=False, chunk=True, threads=True) == {"chunk": [16, 4]}
    assert alternatives(Plan(1000, 1, 0), columns=False, chunk=True, threads=True) == {"chunk": [250, 62, 15]}
    assert alternatives(Plan(4096, 1, 0), columns=False, chunk=True, threads=True) == {"chunk": [1024, 256, 64, 16]}
    assert alternatives(START, columns=False, chunk=False, threads=False) == {}
    assert alternatives(Plan(32, 1, 0), columns=False, chunk=True, threads=True) == {}  # few members, one core
    assert alternatives(Plan(32, 2, 0), columns=False, chunk=True, threads=True) == {"threads": [1]}


@pytest.mark.parametrize(
    ("seconds", "want"),
    [
        (lambda plan: 1.0, START),
        (lambda plan: 0.97 if plan.chunk < 1024 else 1.0, START),  # too little to be sure
        (lambda plan: plan.chunk, START._replace(chunk=16)),
        (lambda plan: abs(plan.chunk - 256) + 1, START._replace(chunk=256)),
        (
            lambda plan: {1024: 1.0, 256: 0.98, 64: 0.8, 16: 0.9}[plan.chunk],
            START._replace(chunk=64),
        ),  # 256 is hardly faster
        (lambda plan: 1.0 + plan.threads, START._replace(threads=1)),
        (lambda plan: plan.columns + plan.chunk, Plan(16, 4, 0)),
        (lambda plan: math.inf if plan.columns == 0 else 1 / plan.columns, START._replace(columns=8 * COLUMNS)),
        (lambda plan: 1.0 if plan == START else math.inf, START),  # nothing else works
    ],
)
def test_the_fastest_plan_is_found(seconds, want):
    tried: list[Plan] = []

    def watched(plan: Plan) -> float:
        tried.append(plan)
        return seconds(plan)

    assert fastest(START, ALL, watched) == want
    assert len(tried) == len({*tried})  # each compiles


def test_seconds_for_each_member():
    calls = []
    assert 0 < seconds_each(lambda: calls.append(1), 1) < 0.1
    assert len(calls) >= 6
    assert seconds_each(lambda: torch.zeros(1 << 16).sum(), 8) > 0


@pytest.mark.parametrize(("long", "count"), [(60.0, 2 + 4), (0.0, 2 + 2)])
def test_of_long_calls_fewer_are_watched(long: float, count: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "SECONDS", 0.0)
    monkeypatch.setattr(tuning, "LONG", long)
    calls = []
    seconds_each(lambda: calls.append(1), 1)
    assert len(calls) == count


def problem(convolution: bool) -> tuple[Any, Any, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = torch.nn.Conv2d(1, 2, 3) if convolution else torch.nn.Linear(4, 4)
        model = torch.nn.Sequential(body, torch.nn.Flatten(), torch.nn.Linear(2 * 4 if convolution else 16, 3)).double()
        batches = [
            (torch.randn(5, 1, 4, 4, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(6)
        ]  # fmt: skip
    loss_fn = lambda params, batch: cross_entropy(functional_call(model, params, (batch[0],)), batch[1])
    return loss_fn, {name: param.detach() for name, param in model.named_parameters()}, batches


def test_a_convolution_is_found():
    for convolution in (True, False):
        loss_fn, params, batches = problem(convolution)
        assert has_convolution(lambda p, loss=loss_fn, b=batches: loss(p, b[0]), params) is convolution


@pytest.mark.usefixtures("_graphs_only")
@pytest.mark.parametrize("best", [Plan(4, 1, 0), pytest.param(Plan(16, 1, 8 * COLUMNS), marks=pytest.mark.exhaustive)])
def test_a_tuned_sweep_computes_the_same(monkeypatch, best):
    loss_fn, params, batches = problem(convolution=True)
    monkeypatch.setattr(tuning, "FEW", 16)
    run = lambda tune: fo.sweep(
        loss_fn, params, fo.adamw(), {"lr": fo.log_uniform(1e-3, 1e-1)}, iter(batches), members=16, tune=tune
    )
    plain = run(False)
    assert plain.plan == Plan(16, torch.get_num_threads(), COLUMNS)

    real, tried = engine._seconds, []

    def seconds(plan: Plan, *rest: Any) -> float:
        assert real(plan, *rest) > 0
        tried.append(plan)
        return sum(abs(a - b) for a, b in zip(plan, best, strict=True)) + 1.0

    monkeypatch.setattr(engine, "_seconds", seconds)
    state = torch.get_rng_state()
    tuned = run(True)
    assert tuned.plan == best
    assert len(tried) >= 3
    tried.clear()
    again = run(tuned.plan)
    assert not tried
    assert again.plan == best
    assert torch.equal(again.losses, tuned.losses)
    assert torch.equal(torch.get_rng_state(), state)
    # another form of the same sums
    torch.testing.assert_close(tuned.losses, plain.losses, rtol=1e-12, atol=1e-12)
    for member in (0, 15):
        torch.testing.assert_close(tuned.params(member), plain.params(member), rtol=1e-10, atol=1e-12)


def test_what_is_given_stays(monkeypatch):
    loss_fn, params, batches = problem(convolution=False)
    monkeypatch.setattr(tuning, "FEW", 2)
    monkeypatch.setattr(engine, "_seconds", lambda plan, *rest: plan.chunk + plan.threads)
    space = {"lr": fo.log_uniform(1e-3, 1e-1)}
    run = lambda **options: fo.sweep(
        loss_fn, params, fo.sgd(), space, batches, members=32, compile=False, tune=True, **options
    )
    assert run(chunk=16, threads=1).plan == Plan(16, 1, 0)
    assert run().plan.chunk == 2


def test_a_plan_that_fails_is_not_taken():
    def members_of(plan: Plan, chosen: Any) -> Any:
        raise RuntimeError("out of memory")

    assert engine._seconds(START, members_of, [], 1) == math.inf
