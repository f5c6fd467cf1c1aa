"""Laws of masks, partitions and accumulation, for all masks, labels and gradients."""

from __future__ import annotations

from typing import Any

import optree
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from registry import make_grads, make_params, run

import functopt as fo
from functopt import tree

lawful = settings(max_examples=15, deadline=None, derandomize=True)

OPTIMIZERS = [
    fo.sgd(0.1, 0.9),
    fo.adamw(0.1, weight_decay=0.1),
    fo.chain(fo.clip_by_global_norm(0.5), fo.adam(fo.linear_schedule(0.1, 0.0, 5))),
    fo.lamb(0.1),
    fo.lookahead(fo.adam(0.1), sync_period=2),
]

optimizers = st.sampled_from(OPTIMIZERS)
updating = st.sampled_from(OPTIMIZERS[:-1])  # they return updates
seeds = st.integers(0, 10_000)
masks = st.lists(st.booleans(), min_size=4, max_size=4).map(lambda bits: like(bits))


def like(values: list[Any]) -> Any:
    found = iter(values)
    return tree.map(lambda _: next(found), make_params())


def identical(got: Any, want: Any) -> bool:
    same = optree.tree_structure(got) == optree.tree_structure(want)
    return same and all(torch.equal(a, b) for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True))


def close(got: Any, want: Any) -> None:
    for a, b in zip(tree.leaves(got), tree.leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def only(values: Any, mask: Any) -> Any:
    """The chosen leaves as a flat dict."""
    flags = dict(tree.leaves_with_paths(mask))
    return {path: leaf for path, leaf in tree.leaves_with_paths(values) if flags[path]}


def inner_of(tx: fo.Transform, state: Any) -> Any:
    """The state of what is wrapped, beside the counter of schedules if there is one."""
    return (state.count, state.inner.inner) if tx._counts_steps else state.inner


@lawful
@given(optimizers, seeds)
def test_all_true_is_the_transform_itself(tx: fo.Transform, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=4)
    want, state = run(tx, params, grads)
    for wrapped in (fo.masked(tx, True), fo.selective_transform(tx, freeze_mask=like([False] * 4))):
        got, inner = run(wrapped, params, grads)
        assert identical(got, want)
        assert identical(inner_of(wrapped, inner), tuple(state) if wrapped._counts_steps else state)


@lawful
@given(updating, seeds)
def test_all_false_is_the_identity(tx: fo.Transform, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=2)
    wrapped = fo.masked(tx, like([False] * 4))
    state = wrapped.init(params)
    assert {*map(id, tree.leaves(state))} == ({id(state.count)} if wrapped._counts_steps else set())
    for g in grads:
        out, state = wrapped.transform(g, state, params)
        assert identical(out, g)


@lawful
@given(optimizers, masks, seeds)
def test_a_masked_part_is_trained_as_if_it_were_alone(tx: fo.Transform, mask: Any, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=4)
    got, _ = run(fo.selective_transform(tx, freeze_mask=tree.map(lambda on: not on, mask)), params, grads)
    rest = tree.map(lambda on: not on, mask)
    assert identical(only(got, rest), only(params, rest))
    if only(params, mask):
        close(only(got, mask), run(tx, only(params, mask), [only(g, mask) for g in grads])[0])


@lawful
@given(updating, masks, masks, seeds)
def test_nested_masks_intersect(tx: fo.Transform, first: Any, second: Any, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=3)
    both = tree.map(lambda a, b: a and b, first, second)
    nested, _ = run(fo.masked(fo.masked(tx, second), first), params, grads)
    assert identical(nested, run(fo.masked(tx, both), params, grads)[0])


@lawful
@given(optimizers, seeds)
def test_one_label_is_the_transform_itself(tx: fo.Transform, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=4)
    wrapped = fo.partition({"all": tx, "none": fo.adam()}, "all")
    assert identical(run(wrapped, params, grads)[0], run(tx, params, grads)[0])


@lawful
@given(optimizers, optimizers, masks, seeds)
def test_a_partition_is_each_part_on_its_own_leaves(a: fo.Transform, b: fo.Transform, mask: Any, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=4)
    labels = tree.map(lambda on: "a" if on else "b", mask)
    got, _ = run(fo.partition({"a": a, "b": b}, labels), params, grads)
    for tx, own in ((a, mask), (b, tree.map(lambda on: not on, mask))):
        if only(params, own):
            close(only(got, own), run(tx, only(params, own), [only(g, own) for g in grads])[0])


@lawful
@given(optimizers, seeds)
def test_a_step_for_each_gradient_is_the_transform_itself(tx: fo.Transform, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=4)
    assert identical(run(fo.multi_steps(tx, 1), params, grads)[0], run(tx, params, grads)[0])


@lawful
@given(optimizers, st.integers(1, 4), st.booleans(), seeds)
def test_the_same_gradient_several_times_is_one_step(tx: fo.Transform, k: int, mean: bool, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=3)
    total = 1 if mean else k
    want, state = run(tx, params, [tree.map(lambda g: total * g, g) for g in grads])
    wrapped = fo.multi_steps(tx, k, use_grad_mean=mean)
    got, outer = run(wrapped, params, [g for g in grads for _ in range(k)])
    close((got, outer.inner), (want, state))
    assert (int(outer.gradient_step), int(outer.mini_step)) == (3, 0)
    assert bool(fo.has_updated(outer))


@lawful
@given(optimizers, seeds)
def test_freezing_everything_moves_nothing(tx: fo.Transform, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=3)
    assert identical(run(fo.selective_transform(tx, freeze_mask=True), params, grads)[0], params)
    if not tx.writes:
        assert identical(run(fo.chain(tx, fo.freeze()), params, grads)[0], params)


@lawful
@given(updating, masks, seeds)
def test_freeze_holds_and_lets_pass_to_the_bit(tx: fo.Transform, mask: Any, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=3)
    got, free = (run(t, params, grads)[0] for t in (fo.chain(tx, fo.freeze(mask)), tx))
    expected = tree.map(lambda on, p, q: p if on else q, mask, params, free)
    assert identical(got, expected)


@lawful
@given(optimizers, seeds)
def test_finite_gradients_are_not_gated(tx: fo.Transform, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=4)
    want, state = run(tx, params, grads)
    got, outer = run(fo.apply_if_finite(tx), params, grads)
    assert identical((got, outer.inner), (want, state))
    assert int(outer.total_notfinite) == 0
