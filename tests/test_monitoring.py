"""Links that look: what they write down, when, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch
from registry import make_grads, make_params, run
from registry.links import large

import functopt as fo
from functopt import tree


def same(got: Any, want: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True))


def readings(tx: fo.Transform, *names: str, steps: int = 5) -> list[list[Any]]:
    params, seen = make_params(), []
    state = tx.init(params)
    for grad in make_grads(steps=steps):
        params, state = tx.update(grad, state, params)
        seen.append([tree.get(state, name) for name in names])
    return seen


def test_looking_changes_nothing():
    rule = fo.chain(fo.scale_by_adam(), fo.clip_by_global_norm(0.5), fo.scale_by_lr(0.1))
    want, _ = run(rule, make_params(), make_grads())
    for looking in (fo.snapshot("norm", tree.norm), fo.monitor({"norm": tree.norm, "mean": fo.ema(0.9)})):
        watched = fo.chain(looking, fo.scale_by_adam(), looking, fo.clip_by_global_norm(0.5), fo.scale_by_lr(0.1))
        assert same(run(watched, make_params(), make_grads())[0], want)


def test_a_snapshot_is_of_its_place_in_the_chain():
    before, after = fo.snapshot("before", tree.norm), fo.snapshot("after", tree.norm)
    tx = fo.chain(before, fo.clip_by_global_norm(0.5), after, fo.scale_by_lr(0.1))
    assert tree.get(tx.init(make_params()), "before") == 0.0
    for grads, (a, b) in zip(make_grads(steps=5), readings(tx, "before", "after"), strict=True):
        assert a == tree.norm(grads) > 0.5
        torch.testing.assert_close(b, torch.tensor(0.5, dtype=torch.float64))


def test_a_snapshot_of_the_updates_is_a_copy():
    tx, params, grads = fo.snapshot("all", lambda u: u), make_params(), make_grads(steps=1)[0]
    _, state = tx.transform(grads, tx.init(params), params)
    kept = tree.get(state, "all")
    assert same(kept, grads)
    memory = {leaf.data_ptr() for leaf in tree.leaves(grads)}
    assert not memory & {leaf.data_ptr() for leaf in tree.leaves(kept)}


def test_averages_of_measurements():
    often = fo.measure_with_ema(0.8, measure=large)
    raw = fo.rename(fo.measure_with_ema(0.5, measure=tree.norm, debias=False), decay="fast")
    tx = fo.chain(fo.monitor({"often": often, "raw": raw, "now": tree.norm, "mean": fo.rename(fo.ema(), decay="slow")}))
    assert dict(tx.hypers) == {"decay": 0.8, "fast": 0.5, "slow": 0.9}
    norms = [tree.norm(g) for g in make_grads(steps=5)]
    above = [(n > 5.5).double() for n in norms]
    assert {*map(float, above)} == {0.0, 1.0}
    total = weight = average = torch.zeros((), dtype=torch.float64)
    averaged = fo.ema(0.9)
    state = averaged.init(make_params())
    for n, a, g, seen in zip(
        norms, above, make_grads(steps=5), readings(tx, "measurements.often", "raw", "now", "mean"), strict=True
    ):
        total, weight, average = 0.8 * total + 0.2 * a, 0.8 * weight + 0.2, 0.5 * average + 0.5 * n
        mean, state = averaged.transform(g, state, make_params())
        torch.testing.assert_close(seen[:3], [total / weight, average, n])
        assert same(seen[3], mean)


def test_the_hypers_of_a_monitor_can_be_swept():
    tx = fo.monitor({"mean": fo.measure_with_ema(0.9, measure=tree.norm, debias=False)})
    params, grads = make_params(), make_grads(steps=2)

    def last(decay: Any) -> Any:
        state = tx.init(params)
        for g in grads:
            _, state = tx.transform(g, state, params, {"decay": decay})
        return tree.get(state, "mean")

    decays = torch.tensor([0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(last)(decays), torch.stack([last(d) for d in decays]))
    assert tx.with_hypers(decay=0.5).hypers == {"decay": 0.5}


def test_the_state_keeps_its_structure():
    tx = fo.monitor({"all": lambda u: u, "often": fo.measure_with_ema(measure=large), "yes": large})
    params = make_params()
    first = tx.init(params)
    _, later = tx.transform(params, first, params)
    assert optree.tree_structure(first) == optree.tree_structure(later)
    assert [leaf.dtype for leaf in tree.leaves(first)] == [leaf.dtype for leaf in tree.leaves(later)]
    assert not any(leaf.any() for leaf in tree.leaves(first))


def test_one_average_for_values_by_group():
    tx = fo.monitor({"mean": fo.measure_with_ema({"body": 0.5, "head": 0.5}, measure=tree.norm)})
    want = fo.monitor({"mean": fo.measure_with_ema(0.5, measure=tree.norm)})
    assert readings(tx, "measurements.mean") == readings(want, "measurements.mean")


def test_errors():
    params = make_params()
    with pytest.raises(TypeError, match="snapshot: the measure 'norm' gives a float; expected tensors"):
        fo.snapshot("norm", lambda u: 1.0).init(params)
    with pytest.raises(TypeError, match="monitor: the measure 'norm' gives a int; expected tensors"):
        fo.monitor({"norm": lambda u: (tree.norm(u), 1)}).init(params)
    with pytest.raises(ValueError, match=r"monitor: .* have different defaults for 'decay'"):
        fo.monitor({"a": fo.ema(0.9), "b": fo.ema(0.8)})
