"""Laws that hold for all inputs: of chains, masks, averages, clipping and trees."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import optree
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from registry import make_grads, make_params, run
from torch import Tensor

import functopt as fo
from functopt import Ema, tree

lawful = settings(max_examples=30, deadline=None, derandomize=True)

LINKS = [
    fo.identity(),
    fo.clip(0.5),
    fo.clip_by_global_norm(0.7),
    fo.trace(0.9, 0.2),
    fo.ema(0.8),
    fo.scale_by_adam(),
    fo.scale_by_nadam(),
    fo.rename(fo.scale_by_trust_ratio(), eps="trust_eps"),  # any two of these can stand in one chain
    fo.add_decayed_weights(0.1),
    fo.scale(-0.5),
    fo.scale_by_lr(0.1),
]

links = st.sampled_from(LINKS)
chains = st.lists(links, max_size=3).map(lambda parts: fo.chain(*parts))
seeds = st.integers(0, 10_000)
decays = st.floats(0.0, 0.999)
sizes = st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-6)


def identical(got: Any, want: Any) -> bool:
    same = optree.tree_structure(got) == optree.tree_structure(want)
    return same and all(
        torch.equal(a, b) for a, b in zip(optree.tree_leaves(got), optree.tree_leaves(want), strict=True)
    )


def random_tree(seed: int) -> Any:
    """Some nesting of dicts, lists and tuples, with tensors of some shapes at the leaves."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    def grow(depth: int) -> Any:
        kind = draw(4) if depth else 3
        if kind == 3:
            return torch.randn([draw(3) + 1 for _ in range(draw(4))], generator=generator, dtype=torch.float64)
        children = [grow(depth - 1) for _ in range(draw(3) + 1)]
        if kind == 0:
            return {f"{chr(122 - i)}{depth}": child for i, child in enumerate(children)}
        return tuple(children) if kind == 1 else children

    return {"first": grow(2), "second": grow(3)}


# Chains


@lawful
@given(chains, chains, chains, seeds)
def test_chain_is_associative(a: fo.Transform, b: fo.Transform, c: fo.Transform, seed: int):
    left, right, flat = fo.chain(fo.chain(a, b), c), fo.chain(a, fo.chain(b, c)), fo.chain(a, b, c)
    assert left == right == flat
    assert hash(left) == hash(right)
    results = [run(tx, make_params(seed), make_grads(seed, steps=3)) for tx in (left, right, flat)]
    assert identical(results[0], results[1])
    assert identical(results[0], results[2])


@lawful
@given(chains, seeds)
def test_chain_has_neutral_elements(tx: fo.Transform, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=3)
    assert fo.chain(fo.chain(), tx) == tx == fo.chain(tx, fo.chain())
    want, _ = run(tx, params, grads)
    assert identical(run(fo.chain(fo.identity(), tx), params, grads)[0], want)
    assert identical(run(fo.chain(tx, fo.identity()), params, grads)[0], want)


@lawful
@given(links, links, seeds)
def test_chain_is_composition(a: fo.Transform, b: fo.Transform, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=1)[0]
    first, first_state = a.transform(grads, a.init(params), params)
    second, second_state = b.transform(first, b.init(params), params)
    tx = fo.chain(a, b)
    assert identical(tx.transform(grads, tx.init(params), params), (second, (first_state, second_state)))
    assert identical(tx.update(grads, tx.init(params), params)[0], fo.apply_updates(params, second))


@lawful
@given(links, seeds)
def test_rename_round_trip(tx: fo.Transform, seed: int):
    away = {name: f"{name}_too" for name in tx.hypers}
    back = {new: name for name, new in away.items()}
    renamed = fo.rename(tx, **away)
    again = fo.rename(renamed, **back)
    assert dict(renamed.hypers) == {away[name]: value for name, value in tx.hypers.items()}
    assert dict(again.hypers) == dict(tx.hypers)
    params, grads = make_params(seed), make_grads(seed, steps=3)
    want = run(tx, params, grads)
    assert identical(run(renamed, params, grads), want)
    assert identical(run(again, params, grads), want)


@lawful
@given(st.permutations(["lr", "beta1", "beta2"]), seeds)
def test_rename_can_exchange_names(names: list[str], seed: int):
    tx = fo.adam(0.1, 0.5, 0.7)
    renamed = fo.rename(tx, **dict(zip(["lr", "beta1", "beta2"], names, strict=True)))
    params, grads = make_params(seed), make_grads(seed, steps=2)
    assert identical(run(renamed, params, grads), run(tx, params, grads))


@lawful
@given(links, links, seeds)
def test_sequence_is_two_updates(a: fo.Transform, b: fo.Transform, seed: int):
    b = fo.rename(b, **{name: f"{name}_b" for name in b.hypers})
    tx, params = fo.sequence(a, b), make_params(seed)
    state = a_state, b_state = a.init(params), b.init(params)
    expected = params
    for grads in make_grads(seed, steps=3):
        params, state = tx.update(grads, state, params)
        expected, a_state = a.update(grads, a_state, expected)
        expected, b_state = b.update(grads, b_state, expected)
        assert identical((params, state), (expected, (a_state, b_state)))


@lawful
@given(st.floats(1e-4, 1.0), decays, seeds)
def test_a_constant_schedule_is_the_constant(lr: float, beta1: float, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=4)
    want, state = run(fo.adamw(lr, beta1), params, grads)
    constant = fo.constant_schedule
    by_default, counted = run(fo.adamw(constant(lr), constant(beta1)), params, grads)
    passed, _ = run(fo.scheduled(fo.adamw()), params, grads, {"lr": constant(lr), "beta1": constant(beta1)})
    assert int(counted.count) == 4
    assert identical(by_default, passed)
    # a number is used in double precision inside torch's kernels, a 0-d tensor is rounded at each operation
    close((by_default, counted.inner), (want, state), 1e-13)
    assert identical(run(fo.scheduled(fo.adamw(lr, beta1)), params, grads)[0], want)


def close(got: Any, want: Any, tolerance: float) -> None:
    assert optree.tree_structure(got) == optree.tree_structure(want)
    for a, b in zip(optree.tree_leaves(got), optree.tree_leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# Masks


@lawful
@given(st.lists(st.booleans(), min_size=4, max_size=4), st.floats(0.0, 1.0), seeds)
def test_masked_decay_is_decay_of_one_part(bits: list[bool], decay: float, seed: int):
    params, grads = make_params(seed), make_grads(seed, steps=4)
    mask = optree.tree_unflatten(optree.tree_structure(params), bits)
    masked, full, none = (
        run(fo.adamw(0.1, weight_decay=factor, mask=where), params, grads)[0]
        for factor, where in ((decay, mask), (decay, None), (0.0, None))
    )
    for on, got, decayed, plain in zip(bits, *map(optree.tree_leaves, (masked, full, none)), strict=True):
        assert torch.equal(got, decayed if on else plain)
    # and with no decay link at all, to the bit
    bare, _ = run(fo.chain(fo.scale_by_adam(), fo.scale_by_lr(0.1)), params, grads)
    assert identical(none, bare)
    shrunk, _ = run(
        fo.chain(fo.sgd(0.1), fo.rename(fo.shrink_weights(decay, 0.1, mask=mask), weight_decay="late")), params, grads
    )
    untouched, _ = run(fo.sgd(0.1), params, grads)
    for on, got, plain in zip(bits, *map(optree.tree_leaves, (shrunk, untouched)), strict=True):
        assert on or torch.equal(got, plain)


# Averages


@lawful
@given(st.lists(st.tuples(decays, sizes), min_size=1, max_size=12), st.booleans())
def test_ema_is_the_weighted_average(steps: list[tuple[float, float]], damped: bool):
    """The coefficient of a value is what it entered with, times all later decays."""
    ema = Ema.zeros({"x": torch.zeros((), dtype=torch.float64)}, 0.9)
    coefficients: list[float] = []
    for decay, value in steps:
        ema = ema.update({"x": torch.tensor(value, dtype=torch.float64)}, decay, None if damped else 1.0)
        coefficients = [decay * c for c in coefficients] + [1 - decay if damped else 1.0]
    total = sum(coefficients)
    mean = sum(c * value for c, (_, value) in zip(coefficients, steps, strict=True)) / total
    # values of opposite sign cancel, so that the error is relative to the largest of them
    tolerance = 1e-12 * max(abs(value) for _, value in steps)
    torch.testing.assert_close(ema.weight, torch.tensor(total, dtype=torch.float64), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(ema.mean["x"], torch.tensor(mean, dtype=torch.float64), rtol=1e-12, atol=tolerance)


@lawful
@given(decays, sizes, st.integers(1, 20))
def test_ema_of_a_constant_is_the_constant(decay: float, value: float, steps: int):
    for coefficient in (None, 1.0, 0.3):
        ema = Ema.zeros(torch.zeros(2, dtype=torch.float64), decay)
        for _ in range(steps):
            ema = ema.update(torch.full((2,), value, dtype=torch.float64), decay, coefficient)
        # twenty roundings of float64
        torch.testing.assert_close(ema.mean, torch.full((2,), value, dtype=torch.float64), rtol=1e-14, atol=0.0)


@lawful
@given(st.floats(0.0, 0.99), st.integers(1, 30))
def test_weight_is_adams_bias_correction(decay: float, steps: int):
    ema = Ema.zeros(torch.zeros(1, dtype=torch.float64), decay)
    for _ in range(steps):
        ema = ema.update(torch.ones(1, dtype=torch.float64), decay)
    # 1 - decay^t cancels at most two digits for these decays
    torch.testing.assert_close(ema.weight, torch.tensor(1 - decay**steps, dtype=torch.float64), rtol=1e-13, atol=0.0)


# Clipping


@lawful
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), seeds)
def test_clip_by_global_norm(scale: float, max_norm: float, seed: int):
    updates = tree.map(lambda u: scale * u, random_tree(seed))
    clipped, _ = fo.clip_by_global_norm(max_norm).transform(updates, (), updates)
    before, after = float(tree.norm(updates)), float(tree.norm(clipped))
    if before <= max_norm:
        assert identical(clipped, updates)
    else:
        # the norm of rounded numbers, in float64
        assert abs(after - max_norm) <= 1e-14 * max_norm
        close(clipped, tree.map(lambda u: u * (max_norm / before), updates), 1e-14 * max(1.0, max_norm))


@lawful
@given(st.floats(0.0, 2.0), seeds)
def test_clip_bounds_every_entry(max_delta: float, seed: int):
    updates = random_tree(seed)
    clipped, _ = fo.clip(max_delta).transform(updates, (), updates)
    for got, u in zip(optree.tree_leaves(clipped), optree.tree_leaves(updates), strict=True):
        assert bool((got.abs() <= max_delta).all())
        assert torch.equal(got[u.abs() <= max_delta], u[u.abs() <= max_delta])


# Trees


@lawful
@given(seeds, st.booleans())
def test_ravel_round_trip(seed: int, mixed: bool):
    original = random_tree(seed)
    if mixed:
        original = {**original, "low": torch.ones(3, dtype=torch.bfloat16), "mid": torch.ones(2, 2)}
    flat, unravel = tree.ravel(original)
    assert identical(unravel(flat), original)
    assert sum(vector.numel() for vector in optree.tree_leaves(flat)) == tree.size(original)
    assert all(vector.ndim == 1 for vector in optree.tree_leaves(flat))
    assert set(flat) == {"float64 on cpu", "bfloat16 on cpu", "float32 on cpu"} if mixed else isinstance(flat, Tensor)


def test_unravel_is_traced_and_mapped():
    original = {"head": [torch.ones(2, 2), torch.zeros(3)], "body": torch.arange(4.0)}
    flat, unravel = tree.ravel(original)
    traced = torch.compile(unravel, backend="eager", fullgraph=True)
    assert identical(traced(flat), original)
    stacked = torch.func.vmap(unravel)(torch.stack([flat, flat + 1]))
    assert identical(tree.member(stacked, 0), original)


@lawful
@given(seeds, st.integers(1, 4))
def test_stack_and_member_are_inverse(seed: int, count: int):
    members = [tree.map(lambda leaf, i=i: leaf + i, random_tree(seed)) for i in range(count)]
    stacked = tree.stack(members)
    for i, one in enumerate(members):
        assert identical(tree.member(stacked, i), one)
    assert identical(tree.stack([tree.member(stacked, i) for i in range(count)]), stacked)
    copies = tree.replicate(members[0], count)
    assert identical(copies, tree.stack([members[0]] * count))


@lawful
@given(seeds, st.sampled_from(["mu", "nu.total", "nu.total.body", "mu.total.head.kernel", "0.mu.weight"]))
def test_get_and_set_round_trip(seed: int, name: str):
    tx = fo.chain(fo.scale_by_adam(), fo.trace(), fo.scale_by_lr())
    _, state = run(tx, make_params(seed), make_grads(seed, steps=2))
    before = optree.tree_map(torch.clone, state)
    assert identical(tree.set(state, {name: tree.get(state, name)}), state)
    changed = tree.set(state, {name: tree.map(lambda x: x + 1, tree.get(state, name))})
    assert type(changed[0]) is type(state[0])
    assert identical(tree.get(changed, name), tree.map(lambda x: x + 1, tree.get(before, name)))
    assert identical(state, before), "set changed its argument"
    assert identical(tree.set(changed, {name: tree.get(before, name)}), before)


@lawful
@given(seeds)
def test_map_agrees_with_optree_and_takes_prefixes(seed: int):
    full = random_tree(seed)
    assert identical(tree.map(lambda x: 2 * x, full), optree.tree_map(lambda x: 2 * x, full))
    assert identical(tree.map(lambda x, y: x - y, full, full), tree.map(torch.zeros_like, full))
    prefix = {"first": 2.0, "second": torch.tensor(3.0, dtype=torch.float64)}
    want = {name: optree.tree_map(lambda x, by=prefix[name]: by * x, full[name]) for name in full}
    assert identical(tree.map(lambda x, y: y * x, full, prefix), want)
    assert [path for path, _ in tree.leaves_with_paths(full)] == [
        ".".join(map(str, path)) for path in optree.tree_paths(full)
    ]


def test_map_keeps_containers_and_their_order():
    class Point(NamedTuple):
        y: Any
        x: Any

    full: Any = {
        "z": OrderedDict(b=torch.ones(1), a=torch.ones(2)),
        "p": Point(torch.ones(3), [None, ()]),
        "d": defaultdict(list, {"k": torch.ones(4)}),
        "q": deque([torch.ones(5), torch.ones(6)]),
    }
    doubled = tree.map(lambda leaf, by: leaf * by, full, dict.fromkeys(full, 2))
    assert list(doubled) == ["z", "p", "d", "q"]
    assert list(doubled["z"]) == ["b", "a"]
    assert [type(doubled[key]) for key in full] == [OrderedDict, Point, defaultdict, deque]
    assert doubled["p"].x == [None, ()]
    assert doubled["d"].default_factory is list
    assert identical(doubled, optree.tree_map(lambda leaf: 2 * leaf, full))
    swapped = OrderedDict(a=torch.zeros(2), b=torch.zeros(1))  # another order is the same structure
    assert tree.map(lambda a, b: a.shape == b.shape, full["z"], swapped) == {"a": True, "b": True}
