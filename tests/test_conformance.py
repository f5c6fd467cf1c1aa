"""What every optimizer of the registry has to stand: odd leaves, odd trees, generated code, and a loss to minimise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import optree
import pytest
import torch
from registry import RECIPES, ROWS, Row, make_grads, make_params, moved, number_hypers, rows, run
from torch import Tensor

from functopt import Transform, tree


def close(got: Any, want: Any, tolerance: float) -> None:
    assert optree.tree_structure(got) == optree.tree_structure(want)
    for (path, a), b in zip(tree.leaves_with_paths(got), optree.tree_leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, at=path: f"{at}: {m}")


def finite(values: Any) -> None:
    for path, leaf in tree.leaves_with_paths(values):
        assert leaf.isfinite().all(), path


# Odd leaves


@rows("empty")
def test_an_empty_leaf_changes_nothing(row: Row):
    params, grads = make_params(), make_grads(steps=3)
    nothing = {"none": torch.zeros(0, dtype=torch.float64), "columns": torch.zeros(3, 0, dtype=torch.float64)}
    want, _ = run(row.make(), params, grads)
    got, state = run(row.make(), params | {"empty": nothing}, [g | {"empty": nothing} for g in grads])
    assert got.pop("empty").keys() == nothing.keys()
    finite(state)
    close(got, want, 1e-14)


# of which the squares, and their sums, can just be represented
LARGE = {torch.float32: 1e15, torch.float64: 1e120, torch.bfloat16: 1e15}


@rows("large")
@pytest.mark.parametrize("dtype", LARGE, ids=str)
def test_very_large_values_stay_finite(row: Row, dtype: torch.dtype):
    big = lambda values: tree.map(lambda x: x * LARGE[dtype], values)
    params, grads = make_params(dtype=dtype), make_grads(dtype=dtype, steps=3)
    finite(run(row.make(), params, [grads[0], *map(big, grads[1:])])[0])
    finite(run(row.make(), big(params), grads)[0])


@rows("zero_gradients")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_zero_gradients_leave_finite_parameters(row: Row, dtype: torch.dtype):
    zeros = tree.map(torch.zeros_like, make_params(dtype=dtype))
    for params in (make_params(dtype=dtype), zeros):
        finite(run(row.make(), params, [zeros] * 3))


# Odd trees


class Layer(NamedTuple):
    weight: Tensor
    rest: Any


def nested(values: Any) -> Any:
    body, head = values["body"], values["head"]
    return [Layer(body["weight"], (body["bias"],)), {"head": [head["gain"], {"kernel": (head["kernel"],)}]}]


@rows("containers")
def test_any_nesting_of_containers(row: Row):
    # the same order of leaves, in which sums over several are taken
    params, grads = make_params(), make_grads(steps=3)
    want, _ = run(row.make(), params, grads)
    got, state = run(row.make(), nested(params), [nested(g) for g in grads])
    assert type(got[0]) is Layer
    close(got, nested(want), 1e-13)
    finite(state)


# Members, compiled

# Generating code takes seconds: these have a root, sums of every kind, products and factors of matrices, drawn noise.
GENERATED = ("adamw", "lamb", "sm3", "muon", "soap", "noisy_sgd")


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small(seed: int) -> Any:
    return {"weight": make_params(seed)["body"]["weight"]}


def hypers_at(tx: Transform, step: int) -> dict[str, Tensor]:
    return {
        name: torch.tensor(moved(name, value, step), dtype=torch.float64) for name, value in number_hypers(tx).items()
    }


@pytest.mark.usefixtures("_fresh_compiler")
@rows("members", always={*RECIPES} - {*GENERATED})
def test_compiled_members_equal_single_eager_steps(row: Row):
    compiled_members(row, "eager")


@pytest.mark.usefixtures("_fresh_compiler")
@rows("generated", always=GENERATED)
def test_generated_code_for_members_equals_single_eager_steps(row: Row):
    compiled_members(row, "inductor")


def compiled_members(row: Row, backend: str) -> None:
    """Compare them with other values of all hypers at every step and for every member."""
    tx, members = row.make(), range(2)
    alone = [(small(i), tx.init(small(i))) for i in members]
    params = tree.stack([small(i) for i in members])
    many: Any = (params, torch.func.vmap(tx.init)(params))
    batched = torch.compile(torch.func.vmap(tx.update), fullgraph=True, backend=backend)
    for t in range(3):
        grads = [small(10 * t + i + 1) for i in members]
        hypers = [hypers_at(tx, t + i) for i in members]
        stance = "default" if t == 0 else "fail_on_recompile"  # values move, programs do not
        with torch.compiler.set_stance(stance):
            many = batched(tree.stack(grads), many[1], many[0], tree.stack(hypers))
        alone = [tx.update(grads[i], alone[i][1], alone[i][0], hypers[i]) for i in members]
    # float64, with multiplications and additions fused and other orders of summation
    close(many, tree.stack(alone), 1e-11)


# Minimisation

START = {"matrix": torch.tensor([[-0.5, 1.5, 0.5], [1.2, 0.7, 2.0]]), "vector": torch.tensor([0.2, 1.4, 1.1])}


def quadratic(params: Any) -> Tensor:
    scale = torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64)
    return sum((scale * (leaf - 0.3).square()).sum() for leaf in tree.leaves(params)) / 2  # pyright: ignore[reportReturnType]


def rosenbrock(params: Any) -> Tensor:
    """Rosenbrock's chain of three along the last axis, with a valley of 10 and not 100 against its sides."""
    total: Any = 0.0
    for leaf in tree.leaves(params):
        x, y = leaf[..., :-1], leaf[..., 1:]
        total = total + (10 * (y - x.square()).square() + (1 - x).square()).sum()
    return total


def best(row: Row, loss: Any, steps: int, enough: float) -> float:
    """Return the least loss seen, as a part of the first one, over a few learning rates; stop where it is enough."""
    tx, found = row.make(), float("inf")
    sign = -1.0 if row.ascends else 1.0
    lrs = [None, 0.3, 0.03, 0.003, 1.0] if "lr" in number_hypers(tx) else [None]
    start = tree.map(lambda p: p.to(torch.float64), START)
    for lr in lrs:
        params, state = start, tx.init(start)
        for step in range(steps + 1):
            grads, value = torch.func.grad_and_value(loss)(params)
            if step % 25 == 0:
                found = min(found, float(value / loss(start)))
                if found < enough:
                    return found
            extras = {"value": value, "grad": grads, "value_fn": loss}
            grads = tree.map(lambda g: sign * g, grads)
            params, state = tx.update(grads, state, params, None if lr is None else {"lr": lr}, **extras)
    return found


EVERY_FORM = [row for row in ROWS if row.id.split("/")[0] in {id.split("/")[0] for id in RECIPES}]


@pytest.mark.parametrize("row", EVERY_FORM, ids=lambda row: row.id)
def test_recipes_minimise(row: Row):
    reached = {"quadratic": best(row, quadratic, 300, 0.03), "rosenbrock": best(row, rosenbrock, 300, 0.1)}
    assert reached["quadratic"] < 0.03, reached
    assert reached["rosenbrock"] < 0.1, reached
