"""Packed trees: the same numbers as leaf by leaf, whatever the layout; flatten, stacked and ravel."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import optree
import pytest
import torch
from registry import BY_ID, ROWS, Row, basic, make_grads, make_params
from registry.problem import WHOLE

import functopt as fo
from functopt import tree

# Sums over a leaf are taken in another order; everything else is the same operation on the same numbers.
RTOL, ATOL = 1e-12, 1e-14

PACKABLE = [row for row in ROWS if not row.make().links_beyond("element", "leaf", "tree")]
every_packable_row = pytest.mark.parametrize("row", PACKABLE, ids=lambda row: row.id)


def close(got: Any, want: Any) -> None:
    assert optree.tree_structure(got) == optree.tree_structure(want)
    for (path, x), y in zip(tree.leaves_with_paths(got), tree.leaves(want), strict=True):
        torch.testing.assert_close(x, y, rtol=RTOL, atol=ATOL, msg=lambda m, path=path: f"{path}: {m}")


def run(tx: fo.Transform, params: Any, grads: list[Any], hypers: Any = None) -> tuple[Any, Any]:
    state = tx.init(params)
    for grad in grads:
        params, state = tx.update(grad, state, params, hypers, value=torch.ones((), dtype=torch.float64))
    return params, state


def test_nearly_everything_runs_packed():
    others = {row.id.split("/")[0] for row in basic.ROWS if row not in PACKABLE}
    assert others == {"adafactor", "scale_by_factored_rms"}


@every_packable_row
def test_packed_equals_leaf_by_leaf(row: Row):
    tx, params, grads = row.make(), make_params(), make_grads()
    want, want_state = run(tx, params, grads)
    got, state = run(tx, tree.pack(params), [tree.pack(g) for g in grads])
    close(tree.unpack(got), want)
    # a link may keep a bookkeeping scalar for each leaf in one tensor, and does so only if it does it for leaves too
    close(tree.unpack(state), want_state)


@every_packable_row
def test_flatten_equals_leaf_by_leaf(row: Row):
    tx, params, grads = row.make(), make_params(), make_grads(steps=3)
    close(run(fo.flatten(tx), params, grads)[0], run(tx, params, grads)[0])


def numbers_of(tx: fo.Transform) -> dict[str, Any]:
    return {name: value for name, value in tx.hypers.items() if isinstance(value, (float, int))}


@pytest.mark.parametrize("row", [row for row in PACKABLE if numbers_of(row.make())], ids=lambda row: row.id)
def test_hypers_of_each_leaf_refer_to_the_original_tree(row: Row):
    tx, params, grads = row.make(), make_params(), make_grads(steps=4)
    scale = {"body": 1.0, "head": {"gain": 0.9, "kernel": 0.85}}
    by_leaf = {
        name: tree.map(lambda s, v=value, name=name: s * v if name != "sync_period" else v, scale)
        for name, value in numbers_of(tx).items()
        if name not in WHOLE
    }
    tx = tx.with_hypers(**by_leaf)
    want, want_state = run(tx, params, grads)
    got, state = run(tx, tree.pack(params), [tree.pack(g) for g in grads])
    close(tree.unpack(got), want)
    names = [path for path, _ in tree.leaves_with_paths(want_state)]
    assert len(names) >= len(tree.leaves(state))


@pytest.mark.parametrize("id", ["adamw", "lamb", "adamw/masked", "chain/clipped_adamw"])
def test_packed_under_vmap_and_compile(id: str):
    tx = (BY_ID.get(id) or BY_ID["adamw"]).make()
    layout = tree.pack(make_params())
    members = [tree.pack(make_params(seed)) for seed in range(3)]
    grads = [tree.pack(make_grads(seed, steps=1)[0], like=layout) for seed in range(3)]
    want = [run(tx, p, [g, g])[0] for p, g in zip(members, grads, strict=True)]

    def step(grads: Any, state: Any, params: Any) -> Any:
        return torch.func.vmap(tx.update)(grads, state, params)

    for function in (step, fo.compile(step, backend="aot_eager")):
        params = tree.stack(members)
        state = torch.func.vmap(tx.init)(params)
        for _ in range(2):
            params, state = function(tree.stack(grads), state, params)
        for i in range(3):
            close(tree.unpack(tree.member(params, i)), tree.unpack(want[i]))


def test_gradients_arrive_packed():
    params = make_params()
    flat = tree.pack(params)
    loss = lambda p: sum((leaf**3).sum() for leaf in tree.leaves(p))
    close(tree.unpack(torch.func.grad(lambda flat: loss(tree.unpack(flat)))(flat)), torch.func.grad(loss)(params))


def test_an_update_can_be_differentiated_packed():
    tx, params, grads = fo.lamb(), make_params(), make_grads(steps=3)

    def after(lr: Any, params: Any, grads: Any) -> Any:
        return sum(leaf.square().sum() for leaf in tree.leaves(tree.unpack(run(tx, params, grads, {"lr": lr})[0])))

    lr = torch.tensor(0.1, dtype=torch.float64)
    got = torch.func.grad(after)(lr, tree.pack(params), [tree.pack(g) for g in grads])
    torch.testing.assert_close(got, torch.func.grad(after)(lr, params, grads), rtol=1e-12, atol=0)


# The layout


def test_leaves_start_rows_and_come_back_as_views():
    params = {"w": torch.arange(6.0).view(2, 3), "x": torch.tensor(7.0), "none": torch.zeros(0), "b": torch.ones(40)}
    flat = fo.pack(params)
    back = fo.unpack(flat)
    close(back, params)
    rows = flat.float32_cpu
    assert all((leaf.data_ptr() - rows.data_ptr()) % (4 * rows.shape[1]) == 0 for leaf in tree.leaves(back))
    back["w"].fill_(5.0)
    assert rows.sum() == 5.0 * 6 + 7.0 + 40.0


def test_every_dtype_has_its_own_tensor():
    params = {"a": torch.ones(3), "b": torch.ones(5, dtype=torch.float64), "c": torch.ones(2, dtype=torch.bfloat16)}
    flat = fo.pack(params)
    assert flat._fields == ("bfloat16_cpu", "float32_cpu", "float64_cpu")
    close(fo.unpack(flat), params)
    got, _ = run(fo.lamb(0.1), flat, [flat, flat])
    want, _ = run(fo.lamb(0.1), params, [params, params])
    torch.testing.assert_close(fo.unpack(got), want, rtol=1e-6, atol=1e-6)  # float32


@pytest.mark.parametrize("sizes", [[1], [70_001, 3, 64], [1024 * 64 * 2 + 5, 1024 * 64, 1], [0, 5], [16] * 300])
def test_sums_of_leaves_of_any_length(sizes: list[int]):
    params = {f"{i:03}": torch.randn(n, generator=torch.Generator().manual_seed(i)) for i, n in enumerate(sizes)}
    sums, means = tree.unpack(tree.sums(fo.pack(params))), tree.unpack(tree.means(fo.pack(params)))
    for key, leaf in params.items():
        exact = leaf.double().sum()
        # float32, summed pairwise or better: some rounding errors of the sum of magnitudes
        assert abs(sums[key].double() - exact) <= 4e-7 * leaf.abs().sum().double()
        assert abs(means[key].double() * max(leaf.numel(), 1) - sums[key].double()) <= 1e-6 * abs(exact) + 1e-12


def test_padding_takes_no_part():
    params = {"w": torch.ones(3, dtype=torch.float64), "b": torch.ones(5, dtype=torch.float64)}
    grads = {"w": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), "b": torch.ones(5, dtype=torch.float64)}
    tx = fo.chain(fo.scale_by_adam(eps=0.0), fo.clip_by_global_norm(0.1), fo.scale_by_trust_ratio(norm="rms"))
    tx = fo.chain(tx, fo.scale_by_lr(0.1))  # 0/0 in the padding
    close(fo.unpack(run(tx, fo.pack(params), [fo.pack(grads)])[0]), run(tx, params, [grads])[0])
    assert tree.size(fo.pack(params)) == 8


def test_equal_trees_share_a_layout_and_others_do_not_mix():
    a, b = fo.pack(make_params(0)), fo.pack(make_params(1))
    assert type(a) is type(b)
    other = fo.pack({"x": torch.zeros(3)})
    with pytest.raises(ValueError, match="gradient: the tree does not match params"):
        fo.sgd().update(other, fo.sgd().init(a), a)
    with pytest.raises(ValueError, match=r"at 'x' expected \[3\]"):
        fo.pack({"x": torch.zeros(4)}, like=other)
    with pytest.raises(ValueError, match="no prefix of params: 'x' has no counterpart"):
        fo.sgd(0.1).update(other, ((), ()), other, {"lr": {"y": 1.0}})
    with pytest.raises(ValueError, match="has no leaves"):
        fo.pack({})


def test_a_packed_tree_can_be_copied_and_pickled():
    flat = fo.pack(make_params())
    for again in (copy.deepcopy(flat), pickle.loads(pickle.dumps(flat))):
        assert type(again) is type(flat)
        close(fo.unpack(again), make_params())


def test_flatten_compiles():
    tx, params, grads = fo.flatten(fo.lamb(0.1)), make_params(), make_grads(steps=2)
    step = fo.compile(lambda p, s, g: tx.update(g, s, p), donate=(0, 1), backend="aot_eager")
    got, state = make_params(), tx.init(params)
    for grad in grads:
        got, state = step(got, state, grad)
    close(got, run(tx, params, grads)[0])


# What cannot be packed


def test_flatten_and_stacked_refuse_by_name():
    with pytest.raises(ValueError, match="flatten: scale_by_factored_rms cannot run on packed leaves"):
        fo.flatten(fo.adafactor())
    with pytest.raises(ValueError, match="stacked: clip_by_global_norm looks at several leaves"):
        fo.stacked(fo.chain(fo.clip_by_global_norm(1.0), fo.adamw()))
    with pytest.raises(ValueError, match="stacked: 'a' has no axis along which leaves are stacked"):
        fo.stacked(fo.adafactor()).init({"a": torch.tensor(1.0), "b": torch.ones(2, 3)})


@pytest.mark.parametrize("make", [fo.adafactor, fo.lamb, lambda: fo.adamw(fo.linear_schedule(0.1, 0.0, 5))])
def test_stacked_equals_leaf_by_leaf(make: Any):
    shapes = {"a": (4, 3), "b": (4, 3), "c": (3,), "d": (2, 5), "e": (2, 5), "f": (3, 1)}
    params = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    grads = [tree.map(lambda p, i=i: (p + i).cos(), params) for i in range(3)]
    stacks, unstack = tree.by_shape(params)
    assert [tuple(stack.shape) for stack in stacks.values()] == [(2, 4, 3), (1, 3), (2, 2, 5), (1, 3, 1)]
    got, _ = run(fo.stacked(make()), stacks, [tree.by_shape(g)[0] for g in grads])
    close(unstack(got), run(make(), params, grads)[0])


def test_stacks_are_told_by_name_in_whatever_order():
    params = {name: torch.randn(3, 2, size) for name, size in [("a", 2), ("b", 4)]}
    backwards = {"b": params["b"].cos(), "a": params["a"].cos()}
    tx = fo.stacked(fo.adafactor(0.1))
    new, _ = tx.update(backwards, tx.init(params), params)
    assert [*new] == ["a", "b"]
    close(new, tx.update({name: backwards[name] for name in "ab"}, tx.init(params), params)[0])


def test_ravel_by_group_takes_hypers_by_group():
    params, grads = make_params(), make_grads(steps=3)
    lr = {"body": 0.1, "head": 0.01}
    flat, unravel = fo.ravel(params, groups={"body": "body", "head": "head"})
    assert {name: vector.shape for name, vector in flat.items()} == {"body": (15,), "head": (13,)}
    flat_grads = [fo.ravel(g, groups={"body": "body", "head": "head"})[0] for g in grads]
    got, _ = run(fo.adamw(), flat, flat_grads, {"lr": lr})
    close(unravel(got), run(fo.adamw(), params, grads, {"lr": lr})[0])
