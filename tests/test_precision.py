"""kahan, stochastic_round and cast_state: what 16 bits lose, and that it is not lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functopt as fo
from functopt import tree
from functopt.random import uniform
from functopt.rounding import round_stochastically

BF16 = torch.bfloat16


def trained(tx: fo.Transform, params: Any, steps: int = 400) -> tuple[Any, Any]:
    """Descend ``f = (p - 1)²/2`` with small steps."""
    state = tx.init(params)
    for _ in range(steps):
        params, state = tx.update(tree.map(lambda p: p - 1, params), state, params)
    return params, state


# kahan


@pytest.mark.parametrize("make", [lambda: fo.sgd(2e-3), lambda: fo.adamw(5e-4), lambda: fo.sgd(5e-4, 0.8)])
def test_kahan_in_bfloat16_follows_float32(make: Any):
    start = torch.linspace(1.5, 4.0, 50)
    exact, _ = trained(make(), start)
    plain, _ = trained(make(), start.to(BF16))
    compensated, state = trained(fo.kahan(make()), start.to(BF16))
    full = compensated.float() + state.compensation.float()
    way = (exact - start).abs().mean()
    # the gradients are those of rounded parameters, 1/256 off; without compensation nothing moves at all where the
    # step is less than half a digit
    assert (full - exact).abs().mean() < 0.03 * way
    assert (plain.float() - exact).abs().mean() > 0.2 * way


@pytest.mark.parametrize(("dtype", "step"), [(BF16, 1e-3), (torch.float32, 1e-8), (torch.float64, 1e-17)], ids=str)
def test_kahan_loses_nothing_of_a_sum(dtype: torch.dtype, step: float):
    tx, steps, one = fo.kahan(fo.scale(1.0)), 2000, torch.ones((), dtype=dtype)
    p, u = one, torch.full((), step, dtype=dtype)
    assert p + u == p
    state = tx.init(p)
    for _ in range(steps):
        p, state = tx.update(u, state, p)
    moved, want = (p.double() - 1) + state.compensation.double(), steps * float(u)
    # what is kept is at most half a digit of p, and is rounded by half a digit of its own
    assert abs(float(moved) - want) <= steps * torch.finfo(dtype).eps ** 2 / 4 * float(p) + 1e-14 * want


def test_kahan_moves_nothing_without_a_step_and_keeps_what_is_due():
    tx = fo.kahan(fo.scale(1.0))
    p = torch.ones(3, dtype=BF16)
    p, state = tx.update(torch.full_like(p, 1e-3), tx.init(p), p)
    again, after = tx.update(torch.zeros_like(p), state, p)
    assert torch.equal(again, p)
    assert torch.equal(after.compensation, state.compensation)


# stochastic rounding


@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [1.001, -1.001, 3e-5, 0.99999, -2.0, 0.0, 65000.0, 1e-8, -3e-8])
def test_one_of_the_neighbours_with_the_right_chance(dtype: torch.dtype, value: float):
    x = torch.full((40_000,), value)
    rounded = round_stochastically(x, dtype, uniform(x, seed=1))
    assert rounded.dtype == dtype
    values, counts = rounded.double().unique(return_counts=True)
    exact = float(x[0].double())
    if float(x[0].to(dtype)) == exact:
        assert values.tolist() == [exact]
        return
    low, high = values.tolist()
    assert low < exact < high
    down, up = torch.tensor(low).to(dtype), torch.tensor(high).to(dtype)
    assert torch.nextafter(down.float(), up.float()).to(dtype) in (down, up)  # nothing lies between
    middle = round_stochastically((down.float() + up.float())[None] / 2, dtype, torch.zeros(1))
    assert float(middle) in (low, high)
    chance = (exact - low) / (high - low)
    # five standard deviations of the share of 40,000
    assert abs(float(counts[1]) / 40_000 - chance) < 5 * (chance * (1 - chance) / 40_000) ** 0.5 + 1e-9


def test_what_is_not_finite_stays():
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e39])
    for seed in range(3):
        got = round_stochastically(x, BF16, uniform(x, seed))
        assert got[0] == float("inf")
        assert got[1] == -float("inf")
        assert got[2].isnan()
        assert got[3] == float("inf")


def test_steps_of_less_than_a_digit_add_up_on_average():
    p = torch.ones(2000, dtype=BF16)
    u = torch.full_like(p, 1e-3)
    tx = fo.stochastic_round(fo.scale(1.0))
    state, plain = tx.init(p), fo.scale(1.0)
    for _ in range(100):
        p, state = tx.update(u, state, p)
    # 100 roundings to 1/128, each with a standard deviation below half of that, averaged over 2000 entries
    assert float(p.float().mean()) == pytest.approx(1.1, abs=5 * 10 * 0.004 / 2000**0.5)
    stuck, _ = plain.update(u, plain.init(torch.ones_like(u)), torch.ones_like(u))
    assert (stuck == 1).all()


def test_members_steps_and_leaves_round_differently():
    p = {"a": torch.ones(500, dtype=BF16), "b": torch.ones(500, dtype=BF16)}
    u = tree.map(lambda leaf: torch.full_like(leaf, 2e-3), p)
    tx = fo.stochastic_round(fo.scale(1.0))
    step = lambda seed: tx.update(u, tx.init(p), p, {"seed": seed})[0]
    both = torch.func.vmap(step)(torch.tensor([0, 1]))
    assert torch.equal(both["a"][0], step(0)["a"])
    assert not torch.equal(both["a"][0], both["a"][1])
    assert not torch.equal(both["a"][0], both["b"][0])
    once, state = tx.update(u, tx.init(p), p)
    assert not torch.equal(once["a"], tx.update(u, state, p)[0]["a"])


def test_wide_parameters_are_written_as_always():
    start = torch.linspace(1.5, 4.0, 50)
    assert torch.equal(trained(fo.stochastic_round(fo.adam(0.1)), start, 5)[0], trained(fo.adam(0.1), start, 5)[0])


# cast_state


def test_what_is_cast_and_what_is_not():
    params = {"w": torch.ones(3), "gain": torch.ones(())}
    dtypes = lambda tx, part: {k: leaf.dtype for k, leaf in tree.leaves_with_paths(tree.get(tx.init(params), part))}
    both = fo.cast_state(fo.adam())
    for part in ("mu.total", "nu.total"):
        assert dtypes(both, part) == {"w": BF16, "gain": torch.float32}
    first = fo.cast_state(fo.adam(), only=("mu",))
    assert dtypes(first, "mu.total")["w"] == BF16
    assert dtypes(first, "nu.total")["w"] == torch.float32
    for tx in (both, first):
        assert tree.get(tx.init(params), "mu.weight").dtype == torch.float32
    half = fo.cast_state(fo.sgd(0.1, 0.9), dtype=torch.float16)
    assert dtypes(half, "total")["w"] == torch.float16


def test_between_steps_it_is_rounded_and_nothing_else():
    params, grads = torch.linspace(0.5, 2.0, 40), torch.linspace(-1.0, 1.0, 40)
    plain, cast = fo.adam(0.1), fo.cast_state(fo.adam(0.1))
    state, kept = plain.init(params), cast.init(params)
    at = also = params
    for i in range(5):
        at, state = plain.update(grads + i, state, at)
        rounded = tree.map(lambda leaf: leaf.to(BF16).to(leaf.dtype) if leaf.ndim else leaf, state)
        also, kept = cast.update(grads + i, kept, also)
        assert torch.equal(at, also)  # the step itself is computed before anything is rounded
        for (path, a), b in zip(tree.leaves_with_paths(rounded), tree.leaves(kept), strict=True):
            assert torch.equal(a, b.to(a.dtype)), path
        state = rounded


def test_a_slow_average_stands_still_unless_it_is_rounded_by_chance():
    params, grads = torch.ones(1000), torch.ones(1000)

    def second_moment(tx: fo.Transform) -> float:
        state, at = tx.init(params), params
        for i in range(450):
            at, state = tx.update(grads * (2.0 if i else 1.0), state, at, {"lr": 0.0})
        return float(tree.get(state, "nu.total").float().mean())

    exact = second_moment(fo.adam())
    nearest = second_moment(fo.cast_state(fo.adam(), only=["nu"]))
    by_chance = second_moment(fo.cast_state(fo.adam(), only=["nu"], stochastic=True))
    assert abs(by_chance - exact) < 0.01 * exact
    assert nearest == 1.0  # where its digits are 1/128 apart, and a step is less than half of that
    assert exact > 1.4


def test_cast_state_goes_around_what_writes_and_under_kahan():
    params = torch.linspace(1.5, 4.0, 50)
    tx = fo.cast_state(fo.lookahead(fo.adam(0.1)), only=["mu"])
    assert tx.writes
    assert trained(tx, params, 10)[0].isfinite().all()
    low, state = trained(fo.kahan(fo.cast_state(fo.adamw(5e-4))), params.to(BF16))
    assert {leaf.dtype for leaf in tree.leaves(state) if leaf.ndim} == {BF16}
    exact, _ = trained(fo.adamw(5e-4), params)
    full = low.float() + state.compensation.float()
    assert (full - exact).abs().mean() < 0.05 * (exact - params).abs().mean()


# Errors


@pytest.mark.parametrize("wrap", [fo.kahan, fo.stochastic_round])
def test_what_writes_cannot_be_inside(wrap: Any):
    name = wrap.__name__
    with pytest.raises(ValueError, match=f"{name}: lookahead writes the parameters itself.*put {name}"):
        wrap(fo.lookahead(fo.sgd()))
    with pytest.raises(TypeError, match=f"{name}: inner is a function, expected a Transform"):
        wrap(fo.sgd)
    with pytest.raises(TypeError, match="writes the parameters itself"):
        wrap(fo.sgd()).transform(torch.ones(1), (), torch.ones(1))
    with pytest.raises(ValueError, match="state belongs to another optimizer"):
        wrap(fo.sgd()).update(torch.ones(1), ((), ()), torch.ones(1))


def test_messages_of_cast_state():
    with pytest.raises(TypeError, match="cast_state: inner is a function"):
        fo.cast_state(fo.sgd)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"dtype is torch\.int8"):
        fo.cast_state(fo.sgd(), dtype=torch.int8)
    with pytest.raises(ValueError, match="no entry of the state of chain is called 'mo'"):
        fo.cast_state(fo.adam(), only=["mo"]).init(torch.ones(1))
    noisy = fo.chain(fo.add_noise(seed=3), fo.sgd())
    with pytest.raises(ValueError, match="chain has another seed, 3"):
        fo.cast_state(noisy, 4, stochastic=True)
    assert fo.stochastic_round(noisy, 3).hypers["seed"] == 3
    tx = fo.cast_state(fo.adam(), stochastic=True)
    with pytest.raises(ValueError, match="expected CastStateState"):
        tx.update(torch.ones(1), fo.adam().init(torch.ones(1)), torch.ones(1))
