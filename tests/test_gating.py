"""Wrappers that choose when a step is taken: accumulation, finite guards, conditions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from registry import make_grads, make_params, run

import functopt as fo
from functopt import StatefulOptimizer, tree

NAN = {"w": torch.tensor([float("nan"), 1.0], dtype=torch.float64)}
ONE = {"w": torch.tensor([1.0, 1.0], dtype=torch.float64)}
START = {"w": torch.tensor([1.0, -2.0], dtype=torch.float64)}
FALLING = fo.linear_schedule(0.4, 0.0, 4)  # 0.4, 0.3, 0.2, 0.1


def moves(tx: fo.Transform, grads: list[Any], **extras: Any) -> tuple[list[float], Any]:
    """How far the second entry moved at each step, and the last state."""
    params, state, out = START, tx.init(START), []
    for grad in grads:
        new, state = tx.update(grad, state, params, **extras)
        out.append(round((params["w"] - new["w"])[1].item(), 12))
        params = new
    return out, state


# Schedules inside go by the steps that are taken


def odd(step: torch.Tensor) -> torch.Tensor:
    return step % 2 == 1


def test_schedules_go_by_the_steps_of_the_inner_optimizer():
    sgd = fo.sgd(FALLING)
    assert moves(fo.multi_steps(sgd, 2), [ONE] * 6)[0] == [0, 0.4, 0, 0.3, 0, 0.2]
    assert moves(fo.apply_if_finite(sgd), [ONE, NAN, NAN, ONE, ONE])[0] == [0.4, 0, 0, 0.3, 0.2]
    assert moves(fo.conditionally_mask(sgd, odd), [ONE] * 6)[0] == [0, 0.4, 0, 0.3, 0, 0.2]
    passed = fo.conditionally_transform(sgd, odd)
    assert moves(passed, [ONE] * 4)[0] == [-1.0, 0.4, -1.0, 0.3]


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: fo.chain(fo.scale(2.0), tx), fo.lookahead, fo.scheduled])
def test_and_so_they_do_however_that_is_wrapped(wrap: Any):
    tx = wrap(fo.multi_steps(fo.chain(fo.clip(1.0), fo.sgd(FALLING)), 2))
    assert moves(tx, [ONE] * 4)[0] == [0, 0.4, 0, 0.3]


def test_beside_them_other_schedules_go_by_all_steps():
    beside = fo.scale(fo.linear_schedule(1.0, 0.0, 10))
    assert moves(fo.chain(fo.multi_steps(fo.sgd(FALLING), 2), beside), [ONE] * 4)[0] == [0, 0.36, 0, 0.21]
    renamed = fo.rename(fo.multi_steps(fo.sgd(FALLING), 2), lr="rate", every_k="k")
    assert moves(fo.chain(renamed, beside), [ONE] * 4)[0] == [0, 0.36, 0, 0.21]
    parts = fo.partition({"a": fo.multi_steps(fo.sgd(FALLING), 2), "b": fo.sgd(FALLING)}, {"w": "a"})
    assert moves(parts, [ONE] * 4)[0] == [0, 0.4, 0, 0.3]
    assert dict(parts.hypers["a"]) == {"weight_decay": 0.0, "lr": FALLING, "every_k": 2}


def test_a_schedule_cannot_go_by_two_counters():
    with pytest.raises(ValueError, match="chain: 'lr' is a schedule, which multi_steps") as error:
        fo.chain(fo.multi_steps(fo.sgd(FALLING), 2), fo.shrink_weights(0.0, FALLING))
    assert "shrink_weights" in str(error.value)
    assert "rename(multi_steps(...), lr='inner_lr')" in str(error.value)
    fo.chain(fo.multi_steps(fo.sgd(0.1), 2), fo.shrink_weights(0.0, 0.1))


def test_a_schedule_given_at_a_step_needs_a_counter_inside():
    with pytest.raises(ValueError, match="no step counter"):
        fo.multi_steps(fo.sgd(0.1), 2).update(ONE, fo.multi_steps(fo.sgd(0.1), 2).init(START), START, {"lr": FALLING})
    tx = fo.multi_steps(fo.scheduled(fo.sgd(0.1)), 2)
    params, state = tx.update(ONE, tx.init(START), START, {"lr": FALLING})
    params, state = tx.update(ONE, state, params, {"lr": FALLING})
    assert (START["w"] - params["w"])[1].item() == pytest.approx(0.4)


def test_with_hypers_makes_inner_schedules():
    tx = fo.multi_steps(fo.sgd(0.1), 2).with_hypers(lr=FALLING)
    assert moves(tx, [ONE] * 4)[0] == [0, 0.4, 0, 0.3]


@pytest.mark.parametrize(("groups", "compile"), [(1, False), (2, False), (2, {"backend": "eager"})], ids=str)
def test_they_do_in_a_stateful_optimizer(groups: int, compile: Any):
    tx = fo.chain(fo.scale(fo.linear_schedule(1.0, 0.0, 10)), fo.multi_steps(fo.sgd(FALLING, 0.9), 2))
    params, grads = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)], []
    optimizer = StatefulOptimizer(
        [{"params": params}] if groups == 1 else [{"params": [p]} for p in params], tx, compile=compile
    )
    want, state = {"a": torch.ones(3, dtype=torch.float64)}, None
    state = tx.init(want)
    for step in range(6):
        grads = torch.full((3,), 1.0 + step, dtype=torch.float64)
        for p in params:
            p.grad = grads.clone()
        optimizer.step()
        want, state = tx.update({"a": grads}, state, want)
        for p in params:
            torch.testing.assert_close(p.detach(), want["a"], rtol=1e-12, atol=0)


# multi_steps


def test_accumulation_is_the_large_batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    loss = lambda p, x: ((x @ p["w"]) ** 2).mean()
    tx = fo.adamw(0.1)
    whole, _ = run(tx, START, [torch.func.grad(loss)(START, x)])
    small, _ = run(fo.multi_steps(tx, 3), START, [torch.func.grad(loss)(START, part) for part in x.split(4)])
    torch.testing.assert_close(small, whole, rtol=1e-13, atol=0)


def test_every_k_is_data():
    tx, params = fo.multi_steps(fo.sgd(0.1)), START
    ks, state = torch.tensor([1.0, 2.0, 3.0]), tx.init(START)
    members, states = tree.replicate(params, 3), tree.replicate(state, 3)
    for _ in range(6):
        members, states = torch.func.vmap(tx.update, in_dims=(None, 0, 0, 0))(ONE, states, members, {"every_k": ks})
    assert states.gradient_step.tolist() == [6, 3, 2]
    torch.testing.assert_close(members["w"][:, 1], -2 - 0.1 * torch.tensor([6, 3, 2], dtype=torch.float64))


def test_has_updated():
    tx = fo.multi_steps(fo.sgd(0.1), 2)
    state, said = tx.init(START), []
    for _ in range(4):
        said.append(bool(fo.has_updated(state)))
        _, state = tx.update(ONE, state, START)
    assert said == [False, False, True, False]
    assert bool(fo.has_updated((fo.adam().init(START), state)))


def test_skipped_gradients_never_came():
    tx = fo.multi_steps(fo.adam(0.1), 2, should_skip_update_fn=fo.skip_not_finite)
    got, state = run(tx, START, [NAN, ONE, NAN, NAN, ONE])
    want, plain = run(fo.multi_steps(fo.adam(0.1), 2), START, [ONE, ONE])
    torch.testing.assert_close(
        (got, state.inner, state.acc_grads), (want, plain.inner, plain.acc_grads), rtol=0, atol=0
    )
    assert not bool(state.skip_state["should_skip"])
    _, state = tx.update(NAN, state, got)
    assert bool(state.skip_state["should_skip"])
    assert int(state.skip_state["num_not_finite"]) == 1
    assert int(state.mini_step) == 0


def test_large_updates_are_skipped():
    tx = fo.multi_steps(fo.sgd(0.1), 1, should_skip_update_fn=fo.skip_large_updates, max_squared_norm=3.0)
    large = tree.map(lambda g: 2 * g, ONE)
    assert moves(tx, [ONE, large, ONE])[0] == [0.1, 0, 0.1]
    _, state = tx.update(large, tx.init(START), START)
    assert state.skip_state["norm_squared"].item() == pytest.approx(8.0)
    assert moves(tx.with_hypers(max_squared_norm=9.0), [ONE, large])[0] == [0.1, 0.2]
    assert moves(tx, [NAN])[0] == [0]  # a norm that is NaN is not below anything


def test_sums_are_kept_in_float32():
    params = {"w": torch.ones(2, dtype=torch.bfloat16)}
    tx = fo.multi_steps(fo.sgd(1.0), 256)
    state = tx.init(params)
    assert state.acc_grads.total["w"].dtype == torch.float32
    for _ in range(256):
        params, state = tx.update({"w": torch.full((2,), 1 / 256, dtype=torch.bfloat16)}, state, params)
    assert params["w"].tolist() == [1 - 1 / 256] * 2  # 256 equal summands: in bfloat16 the sum would stop short


def test_multi_steps_says_what_is_wrong():
    with pytest.raises(TypeError, match="multi_steps: inner is a function, expected a Transform; call it"):
        fo.multi_steps(fo.adam, 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"multi_steps: every_k must be in \[1, inf\), got 0"):
        fo.multi_steps(fo.adam(), 0)
    with pytest.raises(TypeError, match="multi_steps: skip_large_updates needs max_squared_norm="):
        fo.multi_steps(fo.adam(), 2, should_skip_update_fn=fo.skip_large_updates)
    with pytest.raises(KeyError, match=r"multi_steps has no hyper 'max_norm'; .* Did you mean 'max_squared_norm'"):
        fo.multi_steps(fo.adam(), 2, should_skip_update_fn=fo.skip_large_updates, max_norm=1.0)
    with pytest.raises(ValueError, match="multi_steps: multi_steps has a hyper 'every_k' too; rename that one"):
        fo.multi_steps(fo.multi_steps(fo.adam(), 2), 2)
    tx = fo.multi_steps(fo.adam(), 2)
    params = {"a": START["w"], "b": START["w"]}
    with pytest.raises(ValueError, match="multi_steps: every_k is one value for all parameters"):
        tx.update(params, tx.init(params), params, {"every_k": {"a": 2, "b": 3}})
    with pytest.raises(ValueError, match="multi_steps: the state belongs to another optimizer: expected MultiSteps"):
        tx.update(ONE, fo.adam().init(START), START)
    wrong = fo.multi_steps(fo.adam(), 2, should_skip_update_fn=lambda *_: (torch.ones(2), ()))
    with pytest.raises(
        TypeError, match=r"should_skip_update_fn must return a 0-d tensor of bool first, got torch.float32"
    ):
        wrong.init(START)


# apply_if_finite


def test_nan_is_let_through_after_a_while():
    tx = fo.apply_if_finite(fo.adam(0.1), 2)
    params, state, counts = START, tx.init(START), []
    for grad in (ONE, NAN, NAN, ONE, NAN, NAN, NAN):
        assert bool(params["w"].isfinite().all())
        params, state = tx.update(grad, state, params)
        counts.append((int(state.notfinite_count), int(state.total_notfinite)))
    assert counts == [(0, 0), (1, 1), (2, 2), (0, 2), (1, 3), (2, 4), (3, 5)]
    assert bool(params["w"].isnan().any())


def test_a_skipped_step_leaves_everything_to_the_bit():
    tx = fo.apply_if_finite(fo.adamw(0.1))
    params, state = run(tx, START, [ONE])
    for bad in (math.nan, math.inf, -math.inf):
        new, after = tx.update({"w": torch.tensor([0.0, bad], dtype=torch.float64)}, state, params)
        assert torch.equal(new["w"], params["w"])
        assert all(torch.equal(a, b) for a, b in zip(tree.leaves(after.inner), tree.leaves(state.inner), strict=True))


def test_derivatives_pass_a_skipped_step():
    tx = fo.apply_if_finite(fo.adam())

    def after(lr: torch.Tensor) -> torch.Tensor:
        params, state = START, tx.init(START)
        for grad in (ONE, NAN, ONE):
            params, state = tx.update(grad, state, params, {"lr": lr})
        return params["w"].sum()

    assert torch.func.grad(after)(torch.tensor(0.1, dtype=torch.float64)).item() == pytest.approx(-4.0)


def test_each_member_is_guarded_alone():
    tx = fo.apply_if_finite(fo.sgd(0.1))
    members, grads = tree.replicate(START, 2), tree.stack([ONE, NAN])
    new, state = torch.func.vmap(tx.update)(grads, torch.func.vmap(tx.init)(members), members)
    assert state.notfinite_count.tolist() == [0, 1]
    assert torch.equal(new["w"][1], START["w"])
    assert not torch.equal(new["w"][0], START["w"])


def test_the_largest_numbers_are_finite():
    huge = {"w": torch.full((2,), torch.finfo(torch.float64).max, dtype=torch.float64)}
    _, state = fo.apply_if_finite(fo.sgd(0.0)).update(huge, fo.apply_if_finite(fo.sgd(0.0)).init(START), START)
    assert int(state.total_notfinite) == 0


# Conditions


def test_conditions_get_the_extras_by_name():
    tx = fo.conditionally_mask(fo.sgd(0.1), lambda step, value: value > 1, forward_extra_args=True)
    assert moves(tx, [ONE], value=torch.tensor(2.0))[0] == [0.1]
    assert moves(tx, [ONE], value=torch.tensor(0.0))[0] == [0]
    assert moves(fo.conditionally_mask(fo.sgd(0.1), lambda step: True), [ONE], value=torch.tensor(0.0))[0] == [0.1]


def test_conditions_say_what_is_wrong():
    for make in (fo.conditionally_mask, fo.conditionally_transform):
        name = make.__name__
        with pytest.raises(TypeError, match=f"{name}: should_transform_fn is a int, expected a function of the step"):
            make(fo.sgd(), 3)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match=f"{name}: inner is a dict, expected a Transform"):
            make({}, odd)  # pyright: ignore[reportArgumentType]
        tx = make(fo.sgd(), lambda step: step)
        with pytest.raises(TypeError, match=f"{name}: should_transform_fn must return a bool .* got torch.int64"):
            tx.update(ONE, tx.init(START), START)
        with pytest.raises(ValueError, match=f"{name}: the state belongs to another optimizer"):
            tx.update(ONE, (), START)


def test_what_gates_pass_on_reaches_the_inside():
    seen = {}

    @fo.link
    def spy(rate=1.0) -> Any:
        def transform(updates, state, params, rate, value, grad=None):
            seen.update(value=value, grad=grad, rate=rate)
            return updates, state

        return transform

    for tx in (
        fo.multi_steps(spy(), 2),
        fo.apply_if_finite(spy()),
        fo.conditionally_mask(spy(), odd),
        fo.masked(spy(), True),
        fo.selective_transform(spy(), freeze_mask=False),
    ):
        seen.clear()
        tx.update(ONE, tx.init(START), START, {"rate": 0.5}, value=3.0, grad=ONE)
        assert (seen["value"], seen["rate"]) == (3.0, 0.5)
        assert torch.equal(seen["grad"]["w"], ONE["w"])
        with pytest.raises(TypeError, match="spy needs the extra 'value'"):
            tx.update(ONE, tx.init(START), START)


def test_gradients_of_the_registry_are_large_and_small():
    """The row of skip_large_updates skips some of them and not all."""
    squares = [tree.norm(g).square().item() for g in make_grads()]
    assert 0 < sum(square >= 34.0 for square in squares) < len(squares)
    assert tree.norm(make_params()).item() > 0
