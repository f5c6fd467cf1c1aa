"""Optimizers that find their learning rate: what they are for, and what could go wrong without a word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from registry import make_grads, make_params, run
from torch import Tensor

import functopt as fo
from functopt import Transform, tree

VALUE = torch.tensor(3.0, dtype=torch.float64)


def close(got: Any, want: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def vector(*numbers: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(numbers, dtype=torch.float64)}


def minimised(tx: Transform, start: Any, loss: Any, steps: int) -> tuple[Any, Any]:
    params, state = start, tx.init(start)
    for _ in range(steps):
        grads, value = torch.func.grad_and_value(loss)(params)
        params, state = tx.update(grads, state, params, value=value)
    return params, state


FAR = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64)


def distance(params: Any) -> Tensor:
    return (params["w"] - FAR).abs().sum()


def bowl(params: Any) -> Tensor:
    return (params["w"] - FAR).square().sum()


# Against the formulas of the papers, written down once more


def history(steps: int = 12) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return parameters and gradients of the registry as vectors."""
    as_vector = lambda values: np.concatenate([leaf.numpy().ravel() for leaf in tree.leaves(values)])
    return as_vector(make_params()), [as_vector(g) for g in make_grads(steps=steps)]


def trained(tx: Transform, steps: int = 12, **extras: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the parameters, and those to evaluate if they are others, after training as ``history`` has it."""
    params = make_params()
    state = tx.init(params)
    for grads in make_grads(steps=steps):
        params, state = tx.update(grads, state, params, **extras)
    flat = lambda values: np.concatenate([leaf.numpy().ravel() for leaf in tree.leaves(values)])
    averages = isinstance(state, tuple) and "schedule_free" in repr(tx)
    return flat(params), flat(fo.eval_params(state, params)) if averages else flat(params)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_prodigy_is_that_of_the_authors_package(weight_decay: float):
    p0, grads = history()
    p, m, v, s, d, n = p0.copy(), 0.0, 0.0, 0.0, 0.05, 0.0
    for g in grads:
        n = 0.999**0.5 * n + (d / 0.05) * d * (g @ (p0 - p))
        m, v = 0.9 * m + 0.1 * d * g, 0.999 * v + 0.001 * d * d * g * g
        s = 0.999**0.5 * s + (d / 0.05) * d * g
        old, d = d, max(d, n / np.abs(s).sum())
        p = p - old * weight_decay * p - old * m / (np.sqrt(v) + d * 1e-8)
    tx = fo.prodigy(estim_lr0=0.05, weight_decay=weight_decay, bias_correction=False)
    np.testing.assert_allclose(trained(tx)[0], p, rtol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_dadapt_is_that_of_the_authors_package(weight_decay: float):
    p, grads = history()
    gamma, m, v, s, d, n = 0.999**0.5, 0.0, 0.0, 0.0 * p, 0.05, 0.0
    for g in grads:
        n = gamma * n + (1 - gamma) * d * (g @ (s / (np.sqrt(v) + 1e-8)))
        m, v = 0.9 * m + 0.1 * d * g, 0.999 * v + 0.001 * g * g
        s = gamma * s + (1 - gamma) * d * g
        old, d = d, max(d, n / ((1 - gamma) * np.abs(s).sum()))
        p = p - old * weight_decay * p - m / (np.sqrt(v) + 1e-8)
    tx = fo.dadapt_adamw(estim_lr0=0.05, weight_decay=weight_decay, bias_correction=False)
    np.testing.assert_allclose(trained(tx)[0], p, rtol=1e-12)


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_momo_is_that_of_the_paper(adam: bool, adapt: bool):
    p, grads = history()
    lr, decay, low, w = 0.3, 0.1, 0.5, 1.03
    m, v, f, c, bound = 0.0, 0.0, 0.0, 0.0, low
    for t, g in enumerate(grads, 1):
        b = 0.9 if adam or t > 1 else 0.0
        m, f, c = b * m + (1 - b) * g, b * f + (1 - b) * 3.0, b * c + (1 - b) * (g @ p)
        v = 0.999 * v + 0.001 * g * g
        size, rho = (np.sqrt(v / (1 - 0.999**t)) + 1e-8, 1 - 0.9**t) if adam else (1.0, 1.0)
        norm, cap = m @ (m / size), w * (f - c) + m @ p
        if adapt and cap < w * rho * bound:
            bound = max(cap / (2 * w * rho), low)
        tau = min(lr / rho, max(cap - w * rho * bound, 0.0) / norm)
        if adapt:
            bound = max((f + m @ p - c - tau * norm / 2) / rho, low)
        p = (p - tau * m / size) / w
    make: Any = fo.momo_adam if adam else fo.momo
    tx = make(lr, lower_bound=low, weight_decay=decay, adapt_lower_bound=adapt, form="paper")
    np.testing.assert_allclose(trained(tx, value=VALUE)[0], p, rtol=1e-11)


@pytest.mark.parametrize("warmup", [0, 5])
def test_schedule_free_is_that_of_the_paper(warmup: int):
    y, grads = history()
    z, x, weights = y.copy(), y.copy(), 0.0
    for t, g in enumerate(grads, 1):
        lr = 0.1 * min(1.0, t / warmup if warmup else 1.0)
        z = z - lr * (g + 0.2 * y)
        weights += lr**1.5
        x = x + lr**1.5 / weights * (z - x)
        y = 0.2 * z + 0.8 * x
    got, average = trained(fo.schedule_free_sgd(0.1, 0.8, 0.2, 1.5, warmup))
    np.testing.assert_allclose(got, y, rtol=1e-12)
    np.testing.assert_allclose(average, x, rtol=1e-12)


def test_momentum_lr_and_schedules_may_move_while_schedule_free_averages():
    """The average is found from the parameters with the β with which they were made, not with the new one."""
    tx = fo.schedule_free(fo.sgd(fo.linear_schedule(0.3, 0.0, 8)))
    y, state = make_params(), tx.init(make_params())
    z = x = y
    weights = 0.0
    for t, g in enumerate(make_grads()):
        beta, lr = 0.5 + 0.05 * t, 0.3 * (1 - t / 8)
        y, state = tx.update(g, state, y, {"beta": beta})
        z = tree.map(lambda z, g, lr: z - lr * g, z, g, lr)
        weights += 0.3**2  # the largest learning rate so far counts
        x = tree.map(lambda x, z, c: x + c * (z - x), x, z, 0.3**2 / weights)
        close(y, tree.map(lambda x, z, b: b * x + (1 - b) * z, x, z, beta))
        close(fo.eval_params(state, y), x)


def test_eval_params_finds_its_state_and_changes_nothing():
    params, grads = make_params(), make_grads(steps=3)
    free = fo.schedule_free(fo.adamw(0.1, beta1=0.0))
    want = fo.eval_params(*reversed(run(free, params, grads)))
    for tx in (fo.chain(fo.clip_by_global_norm(1e9), free), fo.scheduled(free), fo.lookahead(free, sync_period=9)):
        after, state = run(tx, params, grads)
        close(fo.eval_params(state, after), want)
    assert fo.schedule_free_eval_params is fo.eval_params
    packed = run(free, fo.pack(params), [fo.pack(g) for g in grads])
    close(fo.unpack(fo.eval_params(*reversed(packed))), want)
    for state, found in (((), 0), ((free.init(params), free.init(params)), 2)):
        with pytest.raises(ValueError, match=f"one ScheduleFreeState in it, found {found}"):
            fo.eval_params(state, params)


def test_schedule_free_iterates_may_be_kept_in_another_dtype():
    params = tree.map(lambda p: p.bfloat16(), make_params())
    tx = fo.schedule_free_adamw(0.1, state_dtype=torch.float32)
    state = tx.init(params)
    assert {leaf.dtype for leaf in tree.leaves(tree.get(state, "z"))} == {torch.float32}
    grads = tree.map(torch.ones_like, params)
    for _ in range(3):
        params, state = tx.update(grads, state, params, {"lr": 1e-4})
    assert {leaf.dtype for leaf in tree.leaves(params)} == {torch.bfloat16}
    moved = tree.map(lambda z, p: z - p.float(), tree.get(state, "z"), make_params(dtype=torch.bfloat16))
    close(moved, tree.map(lambda m: torch.full_like(m, -3e-4), moved), 1e-6)  # too little to show in bfloat16
    assert fo.eval_params(state, params)["head"]["gain"].dtype == torch.bfloat16


# What they are for


SCALE_FREE = {
    "dog": lambda: fo.dog(init_step=0.1, eps=0.0),
    "dowg": lambda: fo.dowg(0.5, 0.1, 0.0),
    "cocob": lambda: fo.cocob(alpha=3.0),
    "prodigy": lambda: fo.prodigy(estim_lr0=0.1, eps=0.0),
    "dadapt_adamw": lambda: fo.dadapt_adamw(estim_lr0=0.1, eps=0.0),
    "scale_by_distance_over_gradients": lambda: fo.scale_by_distance_over_gradients(0.1, 0.0, -1.0),
}


@pytest.mark.parametrize("name", SCALE_FREE)
def test_the_size_of_the_gradient_does_not_matter(name: str):
    """A learning rate would have to be another one if the loss were measured in another unit."""
    grads = make_grads()
    larger = [tree.map(lambda g: 1024.0 * g, g) for g in grads]
    tx = SCALE_FREE[name]()
    close(run(tx, make_params(), larger)[0], run(tx, make_params(), grads)[0], 1e-10)


FINDERS = {
    "dog": fo.dog,
    "dowg": fo.dowg,
    "cocob": fo.cocob,
    "prodigy": fo.prodigy,
    "dadapt_adamw": fo.dadapt_adamw,
    "mechanize": lambda: fo.mechanize(fo.sgd(1.0)),
    "mechanize of adamw": lambda: fo.mechanize(fo.adamw(1.0, weight_decay=0.0)),
}


@pytest.mark.parametrize("name", FINDERS)
def test_the_default_finds_a_way_of_length_four(name: str):
    """From first steps of 1e-6 or so, on a loss without a slope of its own to tell how far it is."""
    start = vector(*[0.0] * 8)
    params, _ = minimised(FINDERS[name](), start, distance, 300)
    assert distance(params) < (0.6 if name == "dadapt_adamw" else 0.2) * distance(start)


@pytest.mark.parametrize("make", [fo.prodigy, fo.dadapt_adamw])
def test_the_estimate_grows_and_stays_below_the_distance(make: Any):
    tx, params = make(), vector(*[0.0] * 8)
    state, last = tx.init(params), torch.zeros((), dtype=torch.float64)
    for _ in range(300):
        params, state = tx.update(torch.func.grad(distance)(params), state, params)
        estimate = tree.get(state, "estim_lr")
        assert estimate >= last
        last = estimate
    assert 0.1 < last < FAR.abs().max()


def test_mechanic_undoes_a_wrong_learning_rate():
    """Its scale makes up for it, over four orders of magnitude."""
    start = vector(*[0.0] * 8)
    for lr in (0.01, 1.0, 100.0):
        params, state = minimised(fo.mechanize(fo.sgd(lr), s_init=1e-5), start, bowl, 150)
        assert bowl(params) < 1e-2 * bowl(start), lr
        assert sum(tuner.s for tuner in state.tuners) > 0


def test_a_polyak_step_reaches_the_bound_of_a_linear_loss():
    params, slope = vector(1.0, -2.0), torch.tensor([0.5, 1.0], dtype=torch.float64)
    plane = lambda p: (slope * p["w"]).sum() + 5.0
    for tx in (fo.polyak_sgd(f_min=2.0, max_learning_rate=9.0), fo.momo(9.0, lower_bound=2.0)):
        after, _ = minimised(tx, params, plane, 1)
        close(plane(after), torch.tensor(2.0, dtype=torch.float64))
    after, _ = minimised(fo.polyak_sgd(f_min=2.0, max_learning_rate=0.1), params, plane, 1)
    close(after["w"], params["w"] - 0.1 * slope)


def test_polyak_below_its_bound():
    params, grads = vector(1.0, -2.0), vector(0.5, 1.0)
    step = lambda tx: tx.update(grads, tx.init(params), params, value=VALUE)[0]["w"]
    assert (step(fo.polyak_sgd(f_min=4.0)) > params["w"]).all()  # it ascends
    assert torch.equal(step(fo.polyak_sgd(f_min=4.0, variant="sps+")), params["w"])


def test_twice_the_lr_of_polyak_is_twice_the_step_or_half_of_it():
    params, grads = vector(1.0, -2.0), vector(0.5, 1.0)

    def step(form: str, lr: float) -> Tensor:
        tx = fo.polyak_sgd(lr, max_learning_rate=1e9, form=form)
        return tx.update(grads, tx.init(params), params, value=VALUE)[0]["w"] - params["w"]

    close(step("paper", 2.0), 2 * step("paper", 1.0))
    close(step("optax", 2.0), step("optax", 1.0) / 2)
    close(step("optax", 1.0), step("paper", 1.0))


@pytest.mark.parametrize("make", [fo.momo, fo.momo_adam])
def test_the_bound_is_raised_towards_the_least_loss(make: Any):
    loss = lambda p: bowl(p) + 7.0
    start = vector(*[0.0] * 8)
    _, state = minimised(make(0.1, adapt_lower_bound=True), start, loss, 400)
    assert 5.0 < tree.get(state, "lower_bound") < 7.1
    assert tree.get(make().init(start), "lower_bound") == ()


def test_dog_begins_with_the_step_that_it_is_told():
    params, grads = make_params(), make_grads(steps=1)
    far = lambda tx: tree.norm(tree.map(torch.sub, run(tx, params, grads)[0], params))
    norm = tree.norm(params)
    close(far(fo.dog(init_step=0.1, eps=0.0)), 0.1 * (1 + norm))
    close(far(fo.dog(init_step=0.1, eps=0.0, init_step_type="distance")), torch.tensor(0.1, dtype=torch.float64))
    by_rate = fo.dog(init_step=0.1, eps=0.0, init_step_type="learning_rate")
    close(run(by_rate, params, grads)[0], run(fo.sgd(0.1), params, grads)[0])


def test_l_dog_is_dog_leaf_by_leaf():
    params, grads = make_params(), make_grads()
    together, _ = run(fo.scale_by_distance_over_gradients(0.1, 1e-2, -1.0), params, grads)
    alone, _ = run(
        fo.dog(init_step=0.1, eps=1e-2), {"k": params["head"]["kernel"]}, [{"k": g["head"]["kernel"]} for g in grads]
    )
    close(together["head"]["kernel"], alone["k"])


# Silent failures


FIRST = {
    "dog": (fo.dog, {"init_step": 0.1}),
    "dowg": (fo.dowg, {"init_estim_sq_dist": 0.3}),
    "scale_by_distance_over_gradients": (fo.scale_by_distance_over_gradients, {"reps_rel": 0.1}),
    "cocob": (fo.cocob, {"eps": 9.0}),
    "prodigy": (fo.prodigy, {"estim_lr0": 0.1}),
    "dadapt_adamw": (fo.dadapt_adamw, {"estim_lr0": 0.1}),
    "mechanize": (lambda **h: fo.mechanize(fo.sgd(1.0), **h), {"s_init": 0.1}),
    "momo": (lambda **h: fo.momo(adapt_lower_bound=True, **h), {"lower_bound": 1.0}),
}


@pytest.mark.parametrize("name", FIRST)
def test_what_a_state_begins_with_is_a_hyper_too(name: str):
    """Given at the steps it does what it does as a default: a sweep or a derivative of it is not void."""
    make, first = FIRST[name]
    params, grads = make_params(), make_grads()
    state = make().init(params)
    for g in grads:
        params, state = make().update(g, state, params, first, value=VALUE)
    want, own = make_params(), make(**first)
    state = own.init(want)
    for g in grads:
        want, state = own.update(g, state, want, value=VALUE)
    close(params, want)
    other, _ = minimised(make(), vector(1.0, 2.0), lambda p: (p["w"] ** 2).sum(), 3)
    assert not torch.equal(other["w"], minimised(own, vector(1.0, 2.0), lambda p: (p["w"] ** 2).sum(), 3)[0]["w"])


@pytest.mark.parametrize(
    "make", [fo.prodigy, fo.dadapt_adamw, fo.dog, fo.dowg, fo.cocob, lambda: fo.mechanize(fo.sgd())]
)
def test_a_first_gradient_of_zero_does_no_harm(make: Any):
    """optax's prodigy and dadapt_adamw are NaN from then on."""
    params, grads = make_params(), make_grads(steps=3)
    zeros = tree.map(torch.zeros_like, grads[0])
    after, _ = run(make(), params, [zeros, *grads])
    assert all(leaf.isfinite().all() for leaf in tree.leaves(after))
    assert not torch.equal(after["head"]["gain"], params["head"]["gain"])


def test_decay_of_some_leaves_by_a_tree():
    params, grads = make_params(), make_grads()
    for make in (fo.prodigy, fo.dadapt_adamw):
        decayed, _ = run(make(estim_lr0=0.1, weight_decay={"body": 0.0, "head": 0.0}), params, grads)
        close(decayed, run(make(estim_lr0=0.1), params, grads)[0])
        zeros = [tree.map(torch.zeros_like, g) for g in grads]
        some, _ = run(make(estim_lr0=0.1, weight_decay={"body": 0.5, "head": 0.0}), params, zeros)
        assert torch.equal(some["head"]["kernel"], params["head"]["kernel"])
        close(
            some["body"]["weight"] / params["body"]["weight"],
            torch.full((4, 3), 0.0, dtype=torch.float64) + (some["body"]["bias"] / params["body"]["bias"])[0],
        )
        assert (some["body"]["bias"].abs() < params["body"]["bias"].abs()).all()


def test_prodigy_takes_beta3_from_the_beta2_it_is_made_with():
    assert fo.prodigy(beta2=0.81).hypers["beta3"] == 0.9
    assert fo.prodigy(beta2={"a": 0.81, "b": 0.64}).hypers["beta3"] == {"a": 0.9, "b": 0.8}
    assert fo.prodigy(beta2=0.81, beta3=0.5).hypers["beta3"] == 0.5


# Errors


def as_any(thing: Any) -> Any:
    return thing


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fo.dog(init_step_type="rate"), ValueError, "init_step_type must be one of .*got 'rate'"),
        (lambda: fo.scale_by_polyak(variant="sps-"), ValueError, r"variant must be one of .*got 'sps-'"),
        (lambda: fo.polyak_sgd(form="torch"), ValueError, "form must be 'paper' or 'optax', got 'torch'"),
        (lambda: fo.momo(form="torch"), ValueError, "scale_by_momo: form must be one of .*got 'torch'"),
        (lambda: fo.momo_adam(form="torch"), ValueError, "scale_by_momo_adam: form must be one of .*got 'torch'"),
        (
            lambda: fo.prodigy(estim_lr0=-1.0),
            ValueError,
            r"scale_by_prodigy: estim_lr0 must be in \[0, inf\), got -1.0",
        ),
        (lambda: fo.schedule_free(as_any(fo.sgd)), TypeError, "base_optimizer is a function, expected a Transform"),
        (lambda: fo.schedule_free(fo.trace()), ValueError, "trace has no hyper 'lr', by which iterates are weighted"),
        (lambda: fo.schedule_free(fo.lookahead(fo.sgd())), ValueError, "lookahead writes the parameters itself"),
        (lambda: fo.schedule_free(fo.sgd(), beta=0.0), ValueError, "beta must be greater than 0"),
        (lambda: fo.schedule_free(fo.momo()), ValueError, "chain has a hyper 'beta' too; rename that one"),
        (lambda: fo.mechanize(as_any(0.1)), TypeError, "mechanize: base_optimizer is a float, expected a Transform"),
        (lambda: fo.mechanize(fo.sgd(), num_betas=0), ValueError, "num_betas must be at least 1, got 0"),
        (lambda: fo.mechanize(fo.lookahead(fo.sgd())), ValueError, "mechanize: lookahead writes the parameters"),
    ],
)
def test_errors_of_construction(make: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("make", [fo.polyak_sgd, fo.momo, fo.momo_adam])
def test_a_missing_loss_is_named(make: Any):
    params = vector(1.0)
    with pytest.raises(TypeError, match=r"needs the extra 'value': call update\(..., value=...\)"):
        make().update(params, make().init(params), params)


@pytest.mark.parametrize("make", [lambda: fo.schedule_free(fo.sgd()), lambda: fo.mechanize(fo.sgd())])
def test_the_state_of_another_optimizer_is_refused(make: Any):
    params = vector(1.0)
    with pytest.raises(ValueError, match=r"the state belongs to another optimizer: expected \w+State, got tuple"):
        make().update(params, fo.sgd().init(params), params)
