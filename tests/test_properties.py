"""What is true of every optimizer of the registry, however it runs."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import optree
import pytest
import torch
from registry import BY_ID, ROWS, Row, make_grads, make_params, moved, number_hypers, rows, run
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import functopt as fo
from functopt import Transform, tree


def close(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    """Equal trees up to the rounding of a float64 sum in another order, unless said otherwise."""
    assert optree.tree_structure(got) == optree.tree_structure(want)
    for (path, a), b in zip(tree.leaves_with_paths(got), optree.tree_leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, at=path: f"{at}: {m}")


def identical(got: Any, want: Any) -> None:
    assert optree.tree_structure(got) == optree.tree_structure(want)
    for (path, a), b in zip(tree.leaves_with_paths(got), optree.tree_leaves(want), strict=True):
        assert a.dtype == b.dtype, path
        assert torch.equal(a, b), path


def facts(state: Any) -> Any:
    return tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.device), state)


def as_tensors(hypers: dict[str, float], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=dtype) for name, value in hypers.items()}


# The registry itself


def test_every_public_optimizer_has_a_row():
    homes = ("functopt.transforms", "functopt.optimizers", "functopt.wrappers", "functopt.combine")
    tools = {"combinator", "ScheduledState", "eval_params", "schedule_free_eval_params"}
    tools |= {"flatten", "stacked"}  # with tests of their own
    public = {
        name
        for name, thing in vars(fo).items()
        if callable(thing) and getattr(thing, "__module__", "").startswith(homes)
    }
    assert public - tools == {row.id.split("/")[0] for row in ROWS}


def test_rows_are_different_values():
    made = {row.id: row.make() for row in ROWS}
    for a in made:
        assert [b for b in made if made[a] == made[b]] == [a]
    assert len({repr(tx) for tx in made.values()}) == len(ROWS)


# Pure functions


@rows("purity")
def test_inputs_are_untouched(row: Row):
    tx = row.make()
    params, grads, hypers = make_params(), make_grads(), as_tensors(number_hypers(tx))
    state = tx.init(params)
    params, state = tx.update(grads[0], state, params, hypers)  # a state with something in it
    inputs: Any = (grads[1], state, params, hypers)
    before, versions = optree.tree_map(torch.clone, inputs), optree.tree_map(lambda leaf: leaf._version, inputs)
    tx.update(*inputs)
    tx.init(params)
    identical(inputs, before)
    # a write that happens to leave the numbers as they were counts too
    assert optree.tree_map(lambda leaf: leaf._version, inputs) == versions


@rows("purity")
def test_same_inputs_give_the_same_bits(row: Row):
    first, second = (run(row.make(), make_params(), make_grads()) for _ in range(2))
    identical(first, second)


@rows("zero_lr")
def test_zero_lr_moves_nothing(row: Row):
    tx = row.make()
    if not row.lr_scales_all:
        assert "lr" not in number_hypers(tx)
        return
    params = make_params()
    identical(run(tx.with_hypers(lr=0.0), params, make_grads())[0], params)


# Structure and precision

SECOND_MOMENT = re.compile(r"(^|\.)nu\.")
BOOKKEEPING = re.compile(r"(^|\.)(((mu|nu|trace|ema|average)\.weight)|age|fade|product|ratio|count)(\.|$)")


def named_leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Yield the leaves with the names of the fields that lead to them, where optree's paths have numbers."""
    if isinstance(node, Tensor):
        yield ".".join(path), node
    for key, child in tree.children(node):
        yield from named_leaves(child, (*path, str(key)))


@rows("dtypes")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["numbers", "tensors"])
def test_structure_and_dtypes_are_kept(row: Row, dtype: torch.dtype, as_tensor: bool):
    tx = row.make()
    params = make_params(dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    hypers = as_tensors(number_hypers(tx), wide) if as_tensor else None
    first = tx.init(params)
    state = first
    for grads in make_grads(dtype=dtype, steps=3):
        new, state = tx.update(grads, state, params, hypers)
        assert facts(new) == facts(params)
        assert facts(state) == facts(first)
        params = new
    for path, leaf in named_leaves(state):
        assert leaf.dtype in (dtype, wide, torch.int64, torch.bool), path
        if SECOND_MOMENT.search(path) or BOOKKEEPING.search(path):
            assert leaf.dtype in (wide, torch.int64), path
        assert leaf.isfinite().all(), path


@rows("low_precision_vmap")
def test_dtypes_are_kept_under_vmap_in_low_precision(row: Row):
    tx = row.make()
    params, grads = make_params(dtype=torch.bfloat16), make_grads(dtype=torch.bfloat16, steps=1)[0]
    state = tx.init(params)
    hypers = {name: torch.full((2,), value) for name, value in number_hypers(tx).items()}
    g, s, p = (tree.replicate(part, 2) for part in (grads, state, params))
    new, after = torch.func.vmap(tx.update)(g, s, p, hypers)
    assert facts(tree.member(new, 0)) == facts(params)
    assert facts(tree.member(after, 0)) == facts(state)


@rows("memory")
def test_state_owns_its_memory(row: Row):
    tx, members = row.make(), tree.stack([make_params(seed) for seed in range(3)])
    grads = tree.stack([make_grads(seed, steps=1)[0] for seed in range(3)])
    state = torch.func.vmap(tx.init)(members)
    for made in (tx.init(make_params()), state, torch.func.vmap(tx.update)(grads, state, members)[1]):
        for path, leaf in tree.leaves_with_paths(made):
            assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.itemsize, f"{path} is a view"
    pointers = [leaf.data_ptr() for part in (state, members) for leaf in optree.tree_leaves(part)]
    assert len({*pointers}) == len(pointers), "two leaves share memory"


@rows("saved")
def test_state_can_be_saved_and_made_on_meta(row: Row):
    tx = row.make()
    _, state = run(tx, make_params(), make_grads(steps=2))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    identical(torch.load(file, weights_only=True), state)
    on_meta = tx.init(tree.map(lambda p: p.to("meta"), make_params()))
    assert all(leaf.is_meta for leaf in optree.tree_leaves(on_meta))
    assert tree.map(lambda leaf: (leaf.shape, leaf.dtype), on_meta) == tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )


@rows("gpu")
@pytest.mark.parametrize("as_tensor", [False, True], ids=["numbers", "tensors"])
def test_runs_on_a_gpu_without_a_synchronisation(row: Row, as_tensor: bool):
    tx = row.make()
    with FakeTensorMode():  # here .item() raises, and so does mixing devices
        params = tree.map(lambda p: torch.empty(p.shape, device="cuda"), make_params())
        hypers = {name: torch.empty((), device="cuda") for name in number_hypers(tx)} if as_tensor else None
        state = tx.init(params)
        for _ in range(2):
            new, state = tx.update(params, state, params, hypers)
            assert facts(new) == facts(params)
        assert all(leaf.device.type == "cuda" for leaf in optree.tree_leaves(state))


# vmap


@rows("vmap")
def test_vmap_equals_a_loop(row: Row):
    tx, members = row.make(), range(3)
    numbers = number_hypers(tx)
    grads = [make_grads(seed) for seed in members]
    for names in {(), tuple(numbers), *((name,) for name in numbers)}:
        hypers = [as_tensors({name: moved(name, numbers[name], i) for name in names}) for i in members]
        some = slice(3 if len(names) == 1 else 6)  # by themselves, to be sure that none stands in for another
        loop = [run(tx, make_params(i), grads[i][some], hypers[i]) for i in members]
        params = tree.stack([make_params(i) for i in members])
        state = torch.func.vmap(tx.init)(params)
        for step in [*zip(*grads, strict=True)][some]:
            params, state = torch.func.vmap(tx.update)(tree.stack(step), state, params, tree.stack(hypers))
        close((params, state), tree.stack(loop))


# Derivatives


def zero_entries(leaf: Tensor) -> Tensor:
    return torch.where(leaf > 0, leaf, 0.0)


def zero_kernel(params: Any) -> Any:
    return tree.set(params, {"head.kernel": torch.zeros_like(tree.get(params, "head.kernel"))})


PROBLEMS = {
    "random": lambda params, grads: (params, grads),
    "zero gradient entries": lambda params, grads: (params, tree.map(zero_entries, grads)),
    "zero gradient leaf": lambda params, grads: (params, [zero_kernel(g) for g in grads]),
    "zero gradients": lambda params, grads: (params, tree.map(torch.zeros_like, grads)),
    "zero parameter leaf": lambda params, grads: (zero_kernel(params), grads),
    "zero leaf of both": lambda params, grads: (zero_kernel(params), [zero_kernel(g) for g in grads]),
}


def trained(tx: Transform, hypers: Any, params: Any, grads: Any) -> Tensor:
    return tree.norm(run(tx, params, grads, hypers)[0])


@rows("meta_gradients")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_meta_gradients_are_finite(row: Row, dtype: torch.dtype):
    tx = row.make()
    for problem, change in PROBLEMS.items():
        params, grads = change(make_params(dtype=dtype), make_grads(dtype=dtype, steps=3))
        inputs = (as_tensors(number_hypers(tx), dtype), params, grads)
        slopes = torch.func.grad(lambda h, p, g: trained(tx, h, p, g), argnums=(0, 1, 2))(*inputs)
        for path, slope in tree.leaves_with_paths(slopes):
            assert slope.isfinite().all(), f"{problem}: the derivative with respect to {path}"


@rows("differences")
def test_meta_gradients_agree_with_differences(row: Row):
    tx = row.make()
    # a step function has no slope: the period of lookahead, the edge at infinity, and a softplus that sets in at 0
    flat = {"sync_period", "max_ratio", "max_norm"} | (
        {"softplus_beta"} if tx.hypers.get("softplus_beta") == 0 else set()
    )
    hypers = {name: value for name, value in number_hypers(tx).items() if _own(name) not in flat or value == 0.5}
    inputs = (as_tensors(hypers), make_params(), make_grads())
    generator = torch.Generator().manual_seed(0)
    # hypers move towards larger values only, since many stand at the edge of their range
    direction = tree.map(lambda x: torch.rand(x.shape, generator=generator, dtype=x.dtype) * 0.1, inputs)
    direction[0].update(
        {name: direction[0][name] * 1e-3 for name in ("eps", "eps_root", "initial_scale") if name in hypers}
    )

    def along(t: Tensor) -> Tensor:
        at = tree.map(lambda x, d: x + t * d, inputs, direction)
        return trained(tx, at[0], at[1], at[2])

    zero, h = torch.zeros((), dtype=torch.float64), 1e-4
    slope = torch.func.grad(along)(zero)
    # a one-sided difference of third order: its error is h³·f⁗ ≈ 1e-12·f⁗ plus rounding 1e-16/h = 1e-12
    difference = sum(c * along(zero + k * h) for k, c in enumerate((-11 / 6, 3, -3 / 2, 1 / 3))) / h
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-8)


def _own(name: str) -> str:
    return name.rpartition(".")[2]  # of a part of a partition


# Hypers as trees


def groups(name: str, value: float) -> dict[str, float]:
    return {"body": moved(name, value, 1), "head": moved(name, value, 3)}


@rows("groups")
def test_a_value_per_group_trains_each_group_alone(row: Row):
    if row.couples:
        return
    tx = row.make()
    numbers, params, grads = number_hypers(tx), make_params(), make_grads()
    for names in {(), tuple(numbers), *((name,) for name in numbers)}:
        per_group = {name: groups(name, numbers[name]) for name in names}
        some = grads[:4] if len(names) == 1 else grads
        together, _ = run(tx.with_hypers(**per_group), params, some)
        for group in params:
            alone = tx.with_hypers(**{name: value[group] for name, value in per_group.items()})
            trained, _ = run(alone, params[group], [g[group] for g in some])
            identical(together[group], trained)


@rows("late_tree")
def test_a_hyper_that_shapes_no_state_may_become_a_tree(row: Row):
    tx = row.make()
    per_group = {
        name: groups(name, value)
        for name, value in number_hypers(tx).items()
        if name in ("lr", "weight_decay", "eps", "max_norm", "max_delta", "step_size", "slow_step_size")
    }
    params, grads = make_params(), make_grads(steps=3)
    identical(run(tx, params, grads, per_group), run(tx.with_hypers(**per_group), params, grads))


# Layout


@rows("layout")
def test_layout_invariant_means_it(row: Row):
    tx = row.make()
    assert tx.layout_invariant == row.layout_invariant
    params, grads = make_params(), make_grads()
    flat, unravel = tree.ravel(params)
    flat_result, _ = run(tx, flat, [tree.ravel(g)[0] for g in grads])
    got, want = unravel(flat_result), run(tx, params, grads)[0]
    if row.layout_invariant:
        close(got, want)
    else:
        # a link that says no for no reason would cost speed
        assert not all(torch.allclose(a, b) for a, b in zip(*map(optree.tree_leaves, (got, want)), strict=True))


def test_layout_of_wrappers_is_that_of_what_they_wrap():
    another = fo.scale(-1.0)
    wrappers = (fo.lookahead, fo.scheduled, lambda tx: fo.sequence(another, tx), lambda tx: fo.chain(another, tx))
    for make in wrappers:
        assert make(BY_ID["adamw"].make()).layout_invariant
        assert not make(BY_ID["lamb"].make()).layout_invariant
