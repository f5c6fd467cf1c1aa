"""Blocks of steps, gathered batches, chunks, memory and threads: none of them changes what a member learns."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from test_sweep import accuracy, infinite_above_a_half, loss_fn, make_batches, make_params, same
from torch.nn import functional as F

import functopt as fo
from functopt import tree
from functopt.sweep import Batches, engine, memory

SPACE = {"lr": [0.01, 0.02, 0.05, 0.1, 0.2]}


def make_data(examples: int = 50, dtype: torch.dtype = torch.float64) -> tuple:
    x = torch.randn(examples, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)
    return x, (x.sum(-1) > 0).long()


def run(batches, **options):
    options = {"eval_fn": lambda params: loss_fn(params, HELD_OUT), "mode": "min", "compile": False, **options}
    return fo.sweep(loss_fn, make_params(dtype=torch.float64), fo.adamw(), SPACE, batches, **options)


HELD_OUT = make_batches(1, torch.float64, seed=9)[0]


def equal(got: fo.SweepResult, want: fo.SweepResult, tolerance: float = 1e-12) -> None:
    """Everything that a result says is the same, to float64 rounding of matrix products of other sizes."""
    assert (len(got), got.steps, got.loss_steps.tolist()) == (len(want), want.steps, want.loss_steps.tolist())
    assert got.diverged_at.tolist() == want.diverged_at.tolist()
    same(got.all_params, want.all_params, rtol=tolerance, atol=tolerance)
    for a, b in zip(tree.leaves(got.all_states), tree.leaves(want.all_states), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(got.losses, want.losses, rtol=tolerance, atol=tolerance, equal_nan=True)
    for name, values in want.metrics.items():
        for new, old in ((got.metrics[name], values), (got.best_metrics[name], want.best_metrics[name])):
            torch.testing.assert_close(new, old, rtol=tolerance, atol=tolerance, equal_nan=True)


# Blocks


@pytest.mark.parametrize("options", [{}, {"steps": 7}, {"record_every": 3, "eval_every": 4}, {"eval_every": 5}])
def test_blocks_are_single_steps(options):
    batches = make_batches(10, torch.float64)
    one = run(batches, **options)
    for block in (3, 4, 16):  # none divides all of them
        equal(run(iter(batches), block=block, **options), one)


@pytest.mark.usefixtures("_graphs_only")
def test_compiled_blocks_are_single_steps_and_one_graph():
    from torch._dynamo.utils import counters

    batches = make_batches(5, torch.float64)
    one = run(batches, record_every=3)
    counters.clear()
    equal(run(batches, record_every=3, block=2, compile=True), one)  # the last block is not full
    assert counters["stats"]["unique_graphs"] == 1


def exploding(params, batch):  # a batch of 1e40 is finite, but not the step that it makes
    return (params["x"] * batch).sum() * params["y"]


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("at", [0, 1, 4, 17, 18])
def test_a_compiled_member_stops_where_it_does_uncompiled(block, at):
    batches = [torch.full((2,), 0.1, dtype=torch.float64)] * 20
    batches[at] = torch.full((2,), 1e40, dtype=torch.float64)
    params = {"x": torch.ones(2, dtype=torch.float64), "y": torch.ones((), dtype=torch.float64)}
    # the first leaves the numbers of float64 at that step, the second one some steps later, the third one never
    space = {"lr": [1e300, 1e200, 1e-30]}
    slow, fast = (
        fo.sweep(exploding, params, fo.sgd(), space, batches, block=block, compile=compiled)
        for compiled in (False, True)
    )
    equal(fast, slow)
    assert (slow.diverged_at >= 0).tolist()[0] is True
    assert slow.diverged_at[2] == -1
    alone = fo.sweep(exploding, params, fo.sgd(), {"lr": [1e-31, 1e-32, 1e-30]}, batches, block=block)
    assert all(
        torch.equal(a[2], b[2])
        for a, b in zip(tree.leaves(fast.all_params), tree.leaves(alone.all_params), strict=True)
    )


# Gathered batches


def test_batches_can_be_iterated_again_and_cover_every_epoch():
    batches = Batches(make_data(), 8, epochs=3, seed=1)
    first, again = [*batches], [*batches]
    assert len(batches) == len(first) == 18  # 50 examples are six batches, and two are left out
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(first), tree.leaves(again), strict=True))
    for epoch in range(3):
        rows = torch.cat([x for x, _ in first[6 * epoch : 6 * epoch + 6]])
        assert len(rows.unique(dim=0)) == 48
    assert not torch.equal(first[0][0], first[6][0])
    assert len([*Batches(make_data(), 8, steps=7)]) == 7


@pytest.mark.usefixtures("_graphs_only")
@pytest.mark.parametrize("compiled", [False, True])
def test_gathered_is_iterated(compiled):
    batches = Batches(make_data(), 8, steps=21)
    want = run([*batches], eval_every=5)
    equal(run(batches, eval_every=5, block=2, compile=compiled), want)
    equal(run(batches, eval_every=5, steps=13), run([*batches], eval_every=5, steps=13))


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (make_data(), {"batch_size": 8}, "either steps=... or epochs"),
        (make_data(), {"batch_size": 8, "steps": 1, "epochs": 1}, "either steps=... or epochs"),
        (make_data(), {"batch_size": 51, "steps": 1}, "batch_size must be 1 to 50"),
        (make_data(), {"batch_size": 8, "steps": 0}, "gives no batches"),
        ((torch.ones(3), torch.ones(4)), {"batch_size": 2, "steps": 1}, "same number of examples"),
    ],
)
def test_bad_batches(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(data, **arguments)


def test_data_is_tensors():
    with pytest.raises(TypeError, match="at '1' is a float; expected a tensor"):
        Batches((torch.ones(3), 1.0), 2, steps=1)


# Chunks


@pytest.mark.parametrize("chunk", [1, 2, 5, 7])
def test_chunks_are_one_sweep(chunk):
    batches = make_batches(9, torch.float64)
    want = run(batches, record_every=2, eval_every=3)
    equal(run(batches, record_every=2, eval_every=3, chunk=chunk), want)
    equal(run(iter(batches), record_every=2, eval_every=3, chunk=chunk), want)


def test_chunks_with_divergence_and_starts_of_their_own():
    space = {"lr": [0.1, 0.6, 0.3, 0.7, 0.2]}
    start = lambda seed: make_params(seed, torch.float64)
    stacked = tree.stack([start(seed) for seed in range(5)])
    batches = make_batches(6, torch.float64)
    want = fo.sweep(infinite_above_a_half, start, fo.sgd(), space, batches, compile=False)
    assert (want.diverged_at >= 0).sum() == 2
    equal(fo.sweep(infinite_above_a_half, start, fo.sgd(), space, batches, chunk=2, compile=False), want)
    equal(
        fo.sweep(infinite_above_a_half, stacked, fo.sgd(), space, batches, stacked=True, chunk=2, compile=False), want
    )


def test_chunks_draw_the_same_random_numbers():
    def noisy(params, batch):
        return (params["x"] * F.dropout(batch, 0.5)).sum()

    results = []
    for chunk in (None, 2):
        torch.manual_seed(3)
        args = (noisy, {"x": torch.ones(64)}, fo.sgd(), {"lr": [1.0, 0.5, 0.1]}, [torch.ones(64)] * 3)
        results.append(fo.sweep(*args, randomness="same", chunk=chunk, compile=False))
        results.append(torch.rand(1))
    equal(results[2], results[0], 1e-6)  # float32
    assert torch.equal(results[1], results[3])


def test_chunks_of_one_size_are_one_graph():
    from torch._dynamo.utils import counters

    batches = make_batches(4, torch.float64)
    counters.clear()
    equal(run(batches, chunk=2, compile=True), run(batches))
    assert counters["stats"]["unique_graphs"] == 1


# Memory


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("batch", [8, 2000])
def test_the_memory_is_told_within_a_factor_of_two(batch, compiled):
    g = torch.Generator().manual_seed(0)
    params = {"w1": torch.randn(64, 100, generator=g), "w2": torch.randn(100, 100, generator=g)}
    loss = lambda p, x: torch.tanh(torch.tanh(x @ p["w1"]) @ p["w2"]).square().mean()
    args = (loss, params, fo.adamw(), {"lr": [0.1] * 8}, [torch.ones(batch, 64)] * 2)
    fo.sweep(*args, compile=compiled)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = fo.sweep(*args, compile=compiled)
    now = most = 0
    events: Any = profile.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    assert most / 2 < result.memory < most * 2


def test_the_memory_is_told_before_it_starts(capsys):
    args = (loss_fn, make_params(), fo.sgd(), {"lr": [0.1, 0.2]}, make_batches(3))
    result = fo.sweep(*args, compile=False, progress=True, chunk=1)
    assert f"2 members, 1 at a time, need {memory.human(result.memory)}" in capsys.readouterr().err
    assert [memory.human(size) for size in (12, 1234, 41_000_000, 2e12)] == ["12 B", "1.23 kB", "41 MB", "2 TB"]


def test_what_does_not_fit_is_refused_with_the_chunk_that_fits(monkeypatch):
    need = run(make_batches(1, torch.float64)).memory
    monkeypatch.setattr(memory, "_free", lambda device: int(need * 0.9))
    with pytest.raises(MemoryError, match=r"5 members, 5 at a time, need .* are free on cpu; chunk=\d"):
        run(make_batches(1, torch.float64))
    monkeypatch.setattr(memory, "_free", lambda device: 10)
    with pytest.raises(MemoryError, match="not even one"):
        run(make_batches(1, torch.float64))


# Threads


def test_threads_are_as_before():
    before = torch.get_num_threads()
    inside = []

    def watched(params):
        inside.append(torch.get_num_threads())
        return accuracy(params)

    args = (loss_fn, make_params(), fo.sgd(), {"lr": [0.1]}, make_batches(2))
    fo.sweep(*args, eval_fn=watched, mode="max", threads=before + 1, compile=False)
    assert inside == [before + 1]
    with contextlib.suppress(KeyError):
        fo.sweep(*args, eval_fn=watched, mode="max", metric="f1", threads=before + 1, compile=False)
    assert inside == [before + 1] * 2
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", ["record_every", "eval_every", "steps", "chunk", "block", "threads"])
def test_counts_are_at_least_one(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        run(make_batches(1, torch.float64), **{name: 0})


# Attention


@pytest.mark.parametrize("compiled", [False, True])
def test_attention_is_batched_without_a_warning(compiled):
    def attends(params, batch):
        heads = (batch @ params["w"]).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(*heads.unbind(0)).square().mean()

    params = {"w": torch.randn(5, 24, generator=torch.Generator().manual_seed(0))}
    batches = [torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(1))] * 2
    fo.sweep(attends, params, fo.sgd(), {"lr": [0.1, 0.2]}, batches, compile=compiled)


def test_the_first_call_is_one_block(monkeypatch):
    counts = []
    advance = engine.Members.advance
    monkeypatch.setattr(engine.Members, "advance", lambda self, b, n: counts.append(n) or advance(self, b, n))
    run(make_batches(30, torch.float64), block=4)
    assert counts == [4, 16, 10]
