"""average_params: what it averages, in which precision, and that it changes nothing else."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch
from registry import make_grads, make_params

import functopt as fo
from functopt import tree

STARTS = ("zero", "first", "initial")


def trained(tx: fo.Transform, dtype: torch.dtype = torch.float64, hypers: Any = None) -> tuple[list[Any], Any]:
    """The parameters before the first step and after each, and the last state."""
    seen = [make_params(dtype=dtype)]
    state = tx.init(seen[0])
    for grads in make_grads(dtype=dtype):
        params, state = tx.update(grads, state, seen[-1], hypers)
        seen.append(params)
    return seen, state


def pairs(a: Any, b: Any) -> Any:
    return zip(optree.tree_leaves(a), optree.tree_leaves(b), strict=True)


def weighted(seen: list[Any], coefficients: list[float]) -> Any:
    def mean(*values: torch.Tensor) -> torch.Tensor:
        weights = torch.tensor(coefficients, dtype=torch.float64)
        return torch.tensordot(weights, torch.stack(values).double(), 1) / weights.sum()

    return tree.map(mean, *seen)


def coefficients(start: str, decay: float, steps: int) -> list[float]:
    """The weight of the parameters before the first step and after each."""
    weights = [0.0] + [(1 - decay) * decay ** (steps - t) for t in range(1, steps + 1)]
    if start == "initial":
        weights[0] = decay**steps
    if start == "first":
        weights[1] = decay ** (steps - 1)
    return weights


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
def test_it_is_the_weighted_average_of_what_was_written(start: str, as_tensor: bool):
    tx = fo.chain(fo.adamw(0.1), fo.average_params(0.8, start=start))
    seen, state = trained(tx, hypers={"decay": torch.tensor(0.8, dtype=torch.float64)} if as_tensor else None)
    want = weighted(seen, coefficients(start, 0.8, len(seen) - 1))
    # the rounding of eight steps in float64
    for got, expected in pairs(tree.get(state, "average").mean, want):
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("start", STARTS)
def test_the_rest_of_the_chain_does_not_notice(start: str):
    alone, _ = trained(fo.adamw(0.1))
    beside, _ = trained(fo.chain(fo.adamw(0.1), fo.average_params(start=start)))
    for a, b in pairs(alone, beside):
        assert torch.equal(a, b)
    link, params, updates = fo.average_params(start=start), make_params(), make_grads()[0]
    passed, _ = link.transform(updates, link.init(params), params)
    for a, b in pairs(passed, updates):
        assert a is b


@pytest.mark.parametrize("start", STARTS)
def test_low_precision_parameters_have_an_average_in_float32(start: str):
    # a decay at which an average in bfloat16, of 8 bits, would not move at all; the parameters are those written
    seen, state = trained(fo.chain(fo.sgd(0.1), fo.average_params(0.999, start=start)), torch.bfloat16)
    assert {leaf.dtype for leaf in optree.tree_leaves(state)} == {torch.float32}
    want = weighted(seen, coefficients(start, 0.999, len(seen) - 1))
    for got, expected in pairs(tree.get(state, "average").mean, want):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)  # 1 - 0.999 in float32, and rounding


def test_a_scheduled_decay_stays_an_average():
    tx = fo.chain(fo.sgd(0.1), fo.average_params(fo.linear_schedule(0.0, 0.9, 5)))
    seen, state = trained(tx)
    weights = [0.0]
    for step in range(len(seen) - 1):
        decay = min(step, 5) / 5 * 0.9
        weights = [decay * w for w in weights] + [1 - decay]
    for got, expected in pairs(tree.get(state, "average").mean, weighted(seen, weights)):
        torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


def test_the_average_is_there_before_the_first_step_if_it_starts_there():
    params = make_params()
    state = fo.average_params(start="initial").init(params)
    for got, p in pairs(state.average.mean, params):
        assert torch.equal(got, p)
        assert got.data_ptr() != p.data_ptr()


def test_another_start_is_refused():
    with pytest.raises(ValueError, match="'zero', 'first', 'initial'") as error:
        fo.average_params(start="last")
    assert "average_params" in str(error.value)
    assert "'last'" in str(error.value)
