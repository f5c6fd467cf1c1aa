"""The benchmark suite runs, writes what it promises, and its contenders compute the same thing."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import __main__ as command
from benchmarks import compiling, measure, models, peers, report, sweep_models, sweeps, updates
from benchmarks.worker import FailedError, NotOfferedError, Worker

SHAPES = models.MODELS["tiny"]()


def quick(tmp_path, *arguments: str) -> dict[str, Any]:
    """Run one section, tiny, and return its JSON."""
    command.main(["--quick", "--out", str(tmp_path), "--networks", "mlp_small", *arguments])
    section = arguments[arguments.index("--only") + 1]
    assert (tmp_path / f"{section}.png").stat().st_size > 1000
    assert (tmp_path / f"{section}.md").read_text().startswith("## ")
    return json.loads((tmp_path / f"{section}.json").read_text())


# Sections


def test_updates_writes_ratios_targets_and_what_was_skipped(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(peers.CONTENDERS, "nobody", "missing")
    contenders = [peers.OURS, "torch fused", "nobody"]
    result = quick(tmp_path, "--only", "updates", "--optimizers", "adamw", "--contenders", *contenders)
    (row,) = result["rows"]
    assert row["tensors"] == 4
    assert row["parameters"] == 144
    assert row["seconds"].keys() == row["ratios"].keys() == {peers.OURS, "torch fused"}
    assert row["ratios"][peers.OURS]["median"] == 1.0
    assert "KeyError" in row["skipped"]["nobody"]
    assert [line["what"] for line in result["targets"]] == ["AdamW, tiny MLP: time of torch fused"]
    assert result["machine"]["versions"]["torch"]
    assert result["machine"]["threads"] >= 1
    printed = capsys.readouterr().out
    assert "nobody skipped: KeyError" in printed
    assert "| torch fused" in printed


def test_recompiles_counts_none_for_the_functional_form(tmp_path):
    result = quick(tmp_path, "--only", "recompiles", "--contenders", peers.OURS)
    (row,) = result["rows"]
    assert (row["graphs"], row["recompiles"], row["steps"]) == (1, 0, 20)
    assert [line["reached"] for line in result["targets"]] == [True]


def test_the_time_outside_the_optimizer_is_measured(tmp_path):
    result = quick(tmp_path, "--only", "overhead")
    (row,) = result["rows"]
    assert 0 < row["outside"]["median"] < row["whole"]["median"]


def test_memory_of_a_step_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.memory.COPIES", {"adamw": 4})
    # A for-loop's temporaries are as large as the largest tensor; a fused update has none.
    monkeypatch.setitem(models.MODELS, "tiny", lambda: [[2000, 1000]])
    result = quick(tmp_path, "--only", "memory", "--contenders", "torch fused", "torch for-loop")
    fused, loop = (row["multiple"]["median"] for row in result["rows"])
    assert 1 <= fused < 1.1
    assert 1.2 < loop < 2


@pytest.mark.exhaustive
def test_compiling_times_cold_and_warm_processes(tmp_path, monkeypatch):
    fast = {"nothing compiled": ("torch fused", "adamw", 100.0), "nobody's": ("nobody", "adamw", None)}
    monkeypatch.setattr(compiling, "CASES", fast)
    monkeypatch.setattr(compiling, "START_UP", ("updates:build", _tiny("torch fused")))
    result = quick(tmp_path, "--only", "compiling", "--contenders", "torch fused")
    start, case = result["rows"]
    assert start["name"] == compiling.TRIVIAL
    assert case["cold"]["median"] > 0
    assert case["warm"]["median"] > 0
    assert [line["reached"] for line in result["targets"]] == [True, True]


@pytest.mark.exhaustive
def test_sweeps_compares_rates(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "CONTENDERS", [sweeps.OURS, sweeps.ALONE])
    monkeypatch.setattr(sweeps, "AT", 2)
    result = quick(tmp_path, "--only", "sweeps")
    (row,) = result["rows"]
    assert row["ratios"][sweeps.ALONE]["median"] > 0
    assert row["of_limits"]["gflops"] > 0
    assert result["limits"].keys() == {"gflops", "gflops_small_products", "gbytes"}
    assert [line["target"] for line in result["targets"]] == [">= 40"]


def _tiny(contender: str) -> dict[str, Any]:
    return {"contender": contender, "optimizer": "adamw", "shapes": SHAPES}


# Contenders


def _after(name: str, optimizer: str, steps: int = 3) -> list[np.ndarray]:
    try:
        contender = peers.build(name, optimizer, SHAPES)
    except ModuleNotFoundError as missing:
        pytest.skip(f"{missing.name} is not installed")
    for _ in range(steps):
        contender.prepare()
        contender.step()
    return [np.array(array) for array in contender.read()]


@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *((name, "adamw") for name in peers.CONTENDERS if name != "torch for-loop" and "compiled" not in name),
        *((name, "sgd") for name in ("functopt stateful eager", "torch fused", "optimi", "torchopt", "optax")),
        *((peers.OURS, optimizer) for optimizer in ("adamw", "adafactor")),
        *((name, "chain") for name in ("functopt stateful eager", "torch fused", "optimi foreach", "optax")),
    ],
)
def test_contenders_take_the_same_steps(name, optimizer):
    expected = _after("torch for-loop", optimizer)
    start = _after("torch for-loop", optimizer, steps=0)
    # they round differently and place eps differently; a decay left out is 4e-4 of the largest step. (The gradient is
    # the same at every step, which hides Adam's betas.)
    for theirs, mine, before in zip(_after(name, optimizer), expected, start, strict=True):
        np.testing.assert_allclose(theirs - before, mine - before, rtol=0, atol=1e-4 * np.abs(mine - before).max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", ["lion", "lamb", "adafactor_optax"])
def test_what_optax_has_is_that_of_optax(optimizer):
    start, expected = _after("optax", optimizer, steps=0), _after("optax", optimizer)
    for theirs, mine, before in zip(_after("functopt stateful eager", optimizer), expected, start, strict=True):
        np.testing.assert_allclose(theirs - before, mine - before, rtol=0, atol=1e-4 * np.abs(mine - before).max())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("network", sweep_models.NETWORKS)
def test_networks_train_alike_in_torch_and_jax(network):
    alone = sweeps.Alone(network)
    alone.run(16)
    expected = alone.read()
    for scan in (False, True):
        try:
            optax = sweeps.Optax(network, 2, scan=scan)
        except ModuleNotFoundError as missing:
            pytest.skip(f"{missing.name} is not installed")
        optax.run(16)
        for name, value in optax.read().items():
            # 16 steps of 1e-3; Adam's step is of that size wherever a gradient is rounding alone
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-3, err_msg=name)
            assert np.median(np.abs(value - expected[name])) < 1e-6


# Parts


def test_a_worker_says_why_it_failed():
    with Worker() as worker:
        with pytest.raises(NotOfferedError, match="no such lion"):
            worker.call("updates:build", contender="torch fused", optimizer="lion", shapes=SHAPES)
        with pytest.raises(FailedError, match="KeyError: 'nobody'"):
            worker.call("updates:build", **_tiny("nobody"))
        assert worker.alive
        with pytest.raises(FailedError, match="more than 0 s"):
            worker.call("updates:build", 0.0, **_tiny("torch fused"))
        assert not worker.alive


def test_what_is_too_slow_is_not_tried_with_more_tensors(monkeypatch):
    workers = updates.Workers(limit=0.0)
    try:
        with pytest.raises(FailedError, match=r"more than 0 s$"):
            workers.build("torch fused", "adamw", SHAPES)
        with pytest.raises(FailedError, match="for 4 tensors already"):
            workers.build("torch fused", "adamw", SHAPES * 2)
    finally:
        workers.close()


@pytest.mark.parametrize("memory", [updates.MEMORY, 0])  # with room for all at once, and for one beside ours
def test_a_contender_that_fails_between_others_is_left_out(tmp_path, capsys, monkeypatch, memory):
    usual = updates.Workers.call

    def call(self, name: str, function: str, **arguments: Any) -> Any:
        if (name, function) == ("torch foreach", "repetition"):
            self._workers[name].close()
            raise updates.ContenderError(name, "its process died: no memory")
        return usual(self, name, function, **arguments)

    monkeypatch.setattr(updates.Workers, "call", call)
    monkeypatch.setattr(updates, "MEMORY", memory)
    contenders = [peers.OURS, "torch fused", "torch foreach", "torch for-loop"]
    (row,) = quick(tmp_path, "--only", "updates", "--optimizers", "sgd", "--contenders", *contenders)["rows"]
    assert row["ratios"].keys() == {peers.OURS, "torch fused", "torch for-loop"}
    assert row["skipped"] == {"torch foreach": "its process died: no memory"}
    assert "torch foreach skipped: its process died" in capsys.readouterr().out


def test_figures_are_taken_in_turn_and_paired():
    order = []
    figures = measure.in_turn({name: lambda name=name: order.append(name) or len(order) for name in "ab"}, 3, warm_up=1)
    assert order == list("abababab")
    assert figures == {"a": [3, 5, 7], "b": [4, 6, 8]}
    ratio = measure.ratios([1.0, 2.0, 30.0], [2.0, 2.0, 10.0])
    assert (ratio["median"], ratio["repeats"]) == (1.0, 3)
    assert math.isclose(ratio["p10"], 0.6)
    assert math.isclose(ratio["p90"], 2.6)


@pytest.mark.parametrize(
    ("value", "at_least", "reached"), [(1.0, False, True), (1.1, False, False), (1.1, True, True), (0.9, True, False)]
)
def test_targets(value, at_least, reached):
    line = measure.target("what", value, 1.0, at_least=at_least)
    assert line["reached"] is reached
    assert f"| {'yes' if reached else 'NO'}" in report.targets([line])


def test_shapes_are_those_of_the_networks():
    counts = {name: (len(shapes := make()), models.size(shapes)) for name, make in models.MODELS.items()}
    assert counts["resnet18"] == (62, 11_689_512)
    assert counts["resnet50"] == (161, 25_557_032)
    assert counts["gpt2"] == (148, 124_439_808)
    assert counts["mlp1000"] == (1000, 2_080_000)
    assert [len(make()) for make in models.BY_COUNT.values()] == list(models.BY_COUNT)
