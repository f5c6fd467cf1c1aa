"""Searches along a line: where they end, how often they look, and what they say when there is nothing to find."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import functopt as fo
from functopt import tree

P: Any = {"a": torch.tensor([1.5, -0.5], dtype=torch.float64), "b": torch.tensor(2.0, dtype=torch.float64)}
FEW: Any = {"max_linesearch_steps": 30}


def loss(p: Any) -> Tensor:
    return (p["a"] ** 4).sum() / 4 + torch.cos(3 * p["a"]).sum() + torch.exp(0.3 * p["b"]) - p["b"] + 3.0


class Counted:
    """A loss that knows how often it was asked."""

    def __init__(self, loss: Any = loss) -> None:
        self.loss, self.calls = loss, 0

    def __call__(self, p: Any) -> Tensor:
        self.calls += 1
        return self.loss(p)


def descent(search: fo.Transform, lr: float = 1.0) -> fo.Transform:
    return fo.chain(fo.sgd(lr), search)


def step(tx: fo.Transform, value_fn: Any = loss, params: Any = P, state: Any = None) -> tuple[Any, Any]:
    """Return the new parameters and the state of the search."""
    grads, value = torch.func.grad_and_value(getattr(value_fn, "loss", value_fn))(params)
    params, state = tx.update(grads, state or tx.init(params), params, value=value, value_fn=value_fn)
    return params, state


def on_line(params: Any, lr: float, value_fn: Any = loss) -> tuple[float, float, Any]:
    """Return the loss and the slope at 0, and the same as a function of the step, from their definitions."""
    grads = torch.func.grad(value_fn)(params)

    def at(t: float) -> tuple[float, float]:
        moved = {name: params[name] - t * lr * grads[name] for name in params}
        slope = sum(float((-lr * grads[n] * g).sum()) for n, g in torch.func.grad(value_fn)(moved).items())
        return float(value_fn(moved)), slope

    return *at(0.0), at


@pytest.mark.parametrize("lr", [1e-3, 0.1, 1.0, 300.0])
@pytest.mark.parametrize("curv_rtol", [0.9, 0.1, 1e-3])
def test_a_zoom_ends_where_wolfes_conditions_hold(lr: float, curv_rtol: float):
    tx = descent(fo.scale_by_zoom_linesearch(curv_rtol=curv_rtol, approximate=False, **FEW), lr)
    params, state = step(tx)
    t, info = float(tree.get(state, "learning_rate")), tree.get(state, "info")
    value, slope, at = on_line(P, lr)
    new_value, new_slope = at(t)
    assert new_value <= value + 1e-4 * t * slope
    assert abs(new_slope) <= curv_rtol * abs(slope)
    assert info.decrease_error == info.curvature_error == 0
    # the state has what was found there
    assert float(tree.get(state, "value")) == float(loss(params)) == pytest.approx(new_value, abs=1e-12)
    want = torch.func.grad(loss)(params)
    assert all(torch.equal(tree.get(state, "grad")[name], want[name]) for name in P)


def test_the_approximate_condition_is_met_where_rounding_hides_the_decrease():
    flat = lambda p: 1e8 + loss(p)  # of the decrease only a digit is left
    for approximate in (True, False):
        search = fo.scale_by_zoom_linesearch(approximate=approximate, initial_guess_strategy="one", **FEW)
        tx = fo.lbfgs(linesearch=search)
        at, state = P, None
        for _ in range(25):
            at, state = step(tx, flat, at, state)
        assert (float(tree.norm(torch.func.grad(loss)(at))) < 1e-12) == approximate  # else 4e-6


def test_backtracking_takes_the_first_step_that_is_good_enough():
    search = fo.scale_by_backtracking_linesearch(0.3, 0.7, max_learning_rate=1.0)
    _, state = step(descent(search, 5.0))
    value, slope, at = on_line(P, 5.0)
    tried = [0.7**k for k in range(16)]
    want = next(k for k, t in enumerate(tried) if at(t)[0] <= value + 0.3 * t * slope)
    assert want > 1
    assert float(tree.get(state, "learning_rate")) == pytest.approx(tried[want])
    assert int(tree.get(state, "num_linesearch_steps")) == want + 1


def test_backtracking_starts_from_the_step_before():
    search = fo.scale_by_backtracking_linesearch(increase_factor=1.25, decrease_factor=0.5, max_learning_rate=0.9)
    tx = descent(search, 0.05)
    steps = []
    params, state = P, None
    for _ in range(2):
        params, state = step(tx, params=params, state=state)
        steps.append(float(tree.get(state, "learning_rate")))
    assert steps == [0.9, 0.9]  # at most
    state = tree.set(state, learning_rate=torch.tensor(0.5, dtype=torch.float64))
    assert float(tree.get(step(tx, params=params, state=state)[1], "learning_rate")) == 0.625
    tx = tx.with_hypers(increase_factor=float("inf"))
    assert float(tree.get(step(tx, params=params, state=state)[1], "learning_rate")) == 0.9


# How often it looks


@pytest.mark.parametrize(
    "search",
    [
        fo.scale_by_zoom_linesearch(curv_rtol=0.01, **FEW),
        fo.scale_by_backtracking_linesearch(max_backtracking_steps=30),
        fo.scale_by_backtracking_linesearch(max_backtracking_steps=30, store_grad=True),
    ],
    ids=str,
)
def test_it_stops_as_soon_as_it_is_done(search: fo.Transform):
    tx, counted = descent(search, 7.0), Counted()
    _, state = step(tx, counted)
    taken = int(tree.get(state, "num_linesearch_steps"))
    assert counted.calls == taken + ("store_grad" in repr(search))
    assert 1 < taken < 30
    # members stop together, and none goes further than it would alone
    lrs = torch.tensor([7.0, 0.01, 1.0], dtype=torch.float64)
    counted.calls = 0
    grads = torch.func.grad(loss)(P)
    many = torch.func.vmap(lambda lr: tx.update(grads, tx.init(P), P, {"lr": lr}, value_fn=counted, value=loss(P)))
    params, states = many(lrs)
    steps = tree.get(states, "num_linesearch_steps")
    assert counted.calls == int(steps.max()) + ("store_grad" in repr(search))
    assert len({*steps.tolist()}) > 1
    for i, lr in enumerate(lrs):
        alone, _ = tx.update(grads, tx.init(P), P, {"lr": lr}, value_fn=loss, value=loss(P))
        for name, leaf in alone.items():
            torch.testing.assert_close(params[name][i], leaf, rtol=1e-12, atol=1e-12)


def test_what_is_not_given_is_evaluated():
    tx, counted = descent(fo.scale_by_zoom_linesearch(**FEW)), Counted()
    grads = torch.func.grad(loss)(P)
    want, _ = step(tx)
    got, state = tx.update(grads, tx.init(P), P, value_fn=counted)
    assert all(torch.equal(got[name], want[name]) for name in P)
    assert counted.calls == 1 + int(tree.get(state, "num_linesearch_steps"))  # the gradient is what update was given
    updates, _ = tx.transform(grads, tx.init(P), P, value_fn=loss)
    assert all(torch.equal(P[name] + updates[name], want[name]) for name in P)


# When there is nothing to find

SEARCHES = [fo.scale_by_zoom_linesearch(**FEW), fo.scale_by_backtracking_linesearch(max_backtracking_steps=30)]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_outside_the_domain_it_comes_back(search: fo.Transform):
    inside = lambda p: p["b"] - torch.log(p["b"]) + (p["a"] ** 2).sum()  # NaN where b < 0
    params, state = step(descent(search, 40.0), inside)
    assert params["b"] > 0
    assert inside(params) < inside(P)
    assert tree.get(state, "decrease_error") == 0


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_where_the_loss_is_never_finite_nothing_moves_and_the_next_search_starts_anew(search: fo.Transform):
    nowhere = lambda p: torch.where(p["b"] == 2.0, loss(p), torch.nan)
    tx = descent(search)
    params, state = step(tx, nowhere)
    assert all(torch.equal(params[name], P[name]) for name in P)
    assert tree.get(state, "learning_rate") == 0
    assert tree.get(state, "decrease_error") == torch.inf
    assert tree.get(state, "value").isfinite()
    params, state = step(tx, loss, params, state)
    assert loss(params) < loss(P)


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_uphill_it_fails_and_says_so(search: fo.Transform):
    ascent = fo.chain(fo.sgd(1.0), fo.scale(-1.0), search)
    bowl = lambda p: (p["a"] ** 2).sum() + p["b"] ** 2
    params, state = step(ascent, bowl)
    assert tree.get(state, "decrease_error") > 0
    assert tree.get(state, "num_linesearch_steps") == (30 if "zoom" in search.name else 31)
    assert all(params[name].isfinite().all() for name in P)


def test_no_step_is_larger_than_the_largest():
    far = lambda p: -p["b"]  # falls forever
    tx = descent(fo.scale_by_zoom_linesearch(5.0, **FEW))
    params, state = step(tx, far)
    assert tree.get(state, "learning_rate") == 5.0
    assert params["b"] == 7.0
    assert tree.get(state, "num_linesearch_steps") == 4  # at 1, 2, 4 and 5
    assert tree.get(state, "curvature_error") > 0


# What it found, looked up


def test_value_and_grad_are_looked_up_once_they_are_there():
    tx, counted = descent(fo.scale_by_zoom_linesearch(**FEW)), Counted()
    look_up = fo.value_and_grad_from_state(counted)
    state, params = tx.init(P), P
    for i in range(3):
        before = counted.calls
        value, grad = look_up(params, state=state)
        assert counted.calls - before == (i == 0)
        assert float(value) == float(loss(params))
        want = torch.func.grad(loss)(params)
        assert all(torch.equal(grad[name], want[name]) for name in P)
        params, state = tx.update(grad, state, params, value=value, value_fn=counted)
    compiled = torch.compile(
        lambda p, s: fo.value_and_grad_from_state(loss)(p, state=s), fullgraph=True, backend="eager"
    )
    for at in (state, tx.init(P)):  # known and not
        value, grad = compiled(params, at)
        assert float(value) == pytest.approx(float(loss(params)), rel=1e-14)
    both = tree.stack([state, tx.init(P)])
    values, _ = torch.func.vmap(lambda s: look_up(params, state=s))(both)
    torch.testing.assert_close(values, loss(params).expand(2))


def test_value_and_grad_take_what_the_loss_takes():
    tx = descent(fo.scale_by_backtracking_linesearch(store_grad=True))
    look_up = fo.value_and_grad_from_state(lambda p, x, scale: scale * (p["b"] - x) ** 2)
    value, grad = look_up(P, torch.tensor(1.0), state=tx.init(P), scale=3.0)
    assert (float(value), float(grad["b"])) == (3.0, 6.0)


# Errors


def test_errors():
    with pytest.raises(ValueError, match="max_linesearch_steps must be 1 or more, got 0"):
        fo.scale_by_zoom_linesearch(max_linesearch_steps=0)
    with pytest.raises(ValueError, match="initial_guess_strategy must be 'keep' or 'one', got 'two'"):
        fo.scale_by_zoom_linesearch(initial_guess_strategy="two")
    with pytest.raises(ValueError, match="max_backtracking_steps must not be negative, got -1"):
        fo.scale_by_backtracking_linesearch(max_backtracking_steps=-1)
    with pytest.raises(ValueError, match=r"decrease_factor must be in \[0, 1\)"):
        fo.scale_by_backtracking_linesearch(decrease_factor=1.0)
    for search in SEARCHES:
        tx = descent(search)
        with pytest.raises(TypeError, match=f"{search.name} needs the extra 'value_fn'"):
            tx.update(P, tx.init(P), P)
        with pytest.raises(TypeError, match=r"the loss as a 0-d tensor, got shape \[2\]"):
            tx.update(P, tx.init(P), P, value_fn=lambda p: p["a"])
        with pytest.raises(TypeError, match="the loss as a 0-d tensor, got a float"):
            tx.update(P, tx.init(P), P, value_fn=lambda p: 1.0)
        with pytest.raises(ValueError, match="its hypers are the same for all leaves, expected numbers"):
            tx.with_hypers(slope_rtol={"a": 0.1, "b": 0.2}).update(P, tx.init(P), P, value_fn=loss)
    with pytest.raises(ValueError, match="value_and_grad_from_state: no entry named 'value'"):
        fo.value_and_grad_from_state(loss)(P, state=fo.adam().init(P))
    state = descent(fo.scale_by_backtracking_linesearch()).init(P)
    with pytest.raises(ValueError, match="make the search with store_grad"):
        fo.value_and_grad_from_state(loss)(P, state=state)
