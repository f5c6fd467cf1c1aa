"""torch.compile: one graph while everything that is data moves, and the numbers of the eager step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import optree
import pytest
import torch
from registry import BY_ID, FIRST, RECIPES, Row, make_params, moved, number_hypers, rows
from torch._dynamo.testing import CompileCounter

import functopt as fo
from functopt import Transform, tree

GENERATED = [BY_ID[name] for name in ("adamw", "lamb", "chain/warm", "ranger")]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def close(got: Any, want: Any, tolerance: float) -> None:
    assert optree.tree_structure(got) == optree.tree_structure(want)
    for (path, a), b in zip(tree.leaves_with_paths(got), optree.tree_leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, at=path: f"{at}: {m}")


def small(seed: int) -> Any:
    return make_params(seed)["body"]


def hypers_at(tx: Transform, step: int) -> dict[str, torch.Tensor]:
    """Other values of all hypers at every step, as tensors."""
    return {
        name: torch.tensor(moved(name, value, step % 4), dtype=torch.float64)
        for name, value in number_hypers(tx).items()
    }


def step(tx: Transform, grads: Any, state: Any, params: Any, hypers: Any = None) -> Any:
    return tx.update(grads, state, params, hypers)


# Recipes, of which all links are compiled here, are compiled with members by test_conformance.py.
@rows("compile", always={*FIRST} - {*RECIPES} | {"adamw", "scheduled"})
def test_one_graph_for_moving_hypers_and_equal_optimizers(row: Row):
    counter = CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    params = expected = small(0)
    state = expected_state = row.make().init(params)
    for i in range(4):
        tx = row.make()  # built anew, as a value equal to the one before
        hypers = hypers_at(tx, i)
        params, state = compiled(tx, small(i + 1), state, params, hypers)
        expected, expected_state = tx.update(small(i + 1), expected_state, expected, hypers)
    assert counter.frame_count <= 1, "compiled again"  # 0 where there is nothing to compute, as for chain()
    close((params, state), (expected, expected_state), 1e-14)  # the same kernels, perhaps in another order


def test_one_graph_with_the_defaults():
    counter = CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    params = small(0)
    state = fo.adamw().init(params)
    for _ in range(3):
        params, state = compiled(fo.adamw(lr=0.1), small(1), state, params)
    assert counter.frame_count == 1


def test_another_optimizer_is_another_program():
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    params, grads = small(0), small(1)
    for tx in (fo.sgd(0.1), fo.sgd(0.2), fo.sgd(0.2, maximize=True), fo.sgd(0.2, weight_decay=0.1)):
        close(compiled(tx, grads, tx.init(params), params), tx.update(grads, tx.init(params), params), 1e-14)


def test_one_graph_for_a_schedule_whose_settings_move():
    counter = CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    tx, params = fo.scheduled(fo.sgd()), small(0)
    state = tx.init(params)
    for peak in (0.1, 0.2, 0.3):
        schedule = fo.cosine_decay_schedule(torch.tensor(peak, dtype=torch.float64), 10)
        new, after = compiled(tx, small(1), state, params, {"lr": schedule})
        close((new, after), tx.update(small(1), state, params, {"lr": schedule}), 1e-14)
        state = after
    assert counter.frame_count == 1


PER_LEAF = {"bias": 0.2, "weight": 0.1}


@pytest.mark.parametrize(
    ("tx", "hypers"),
    [
        (fo.adamw(mask={"bias": False, "weight": True}), None),
        (fo.adamw(PER_LEAF), None),
        (fo.adamw(beta1=PER_LEAF), None),
        (fo.adamw(), {"lr": PER_LEAF}),
        (fo.adamw(beta1=PER_LEAF), {"beta1": {name: torch.tensor(value) for name, value in PER_LEAF.items()}}),
        (fo.adamw({"bias": fo.linear_schedule(0.1, 0.0, 5), "weight": 0.1}), None),
        (fo.scheduled(fo.adamw()), {"lr": {"bias": fo.linear_schedule(0.1, 0.0, 5), "weight": 0.1}}),
    ],
    ids=str,
)
def test_values_for_each_leaf_compile(tx: Transform, hypers: Any):
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    params = small(0)
    state = tx.init(params)
    close(compiled(tx, small(1), state, params, hypers), tx.update(small(1), state, params, hypers), 1e-14)


# The code that is generated


@pytest.mark.parametrize("row", GENERATED, ids=lambda row: row.id)
def test_generated_code_equals_eager(row: Row):
    tx = row.make()
    compiled = torch.compile(tx.update, fullgraph=True)
    params, state = small(0), tx.init(small(0))
    expected = params, state
    for i in range(8):
        params, state = compiled(small(i + 1), state, params, hypers_at(tx, i))
        expected = tx.update(small(i + 1), expected[1], expected[0], hypers_at(tx, i))
    # float64, with multiplications and additions fused and other summation orders, over eight steps
    close((params, state), expected, 1e-11)


@pytest.mark.parametrize("row", GENERATED, ids=lambda row: row.id)
def test_vmap_inside_compile_equals_a_loop(row: Row):
    tx, members = row.make(), range(3)
    compiled = torch.compile(torch.func.vmap(tx.update), fullgraph=True)
    alone = [(small(i), tx.init(small(i))) for i in members]
    params = tree.stack([small(i) for i in members])
    state = torch.func.vmap(tx.init)(params)
    for t in range(8):
        grads = [small(10 * t + i) for i in members]
        hypers = [hypers_at(tx, t + i) for i in members]
        params, state = compiled(tree.stack(grads), state, params, tree.stack(hypers))
        alone = [tx.update(grads[i], alone[i][1], alone[i][0], hypers[i]) for i in members]
    close((params, state), tree.stack(alone), 1e-11)  # as above
