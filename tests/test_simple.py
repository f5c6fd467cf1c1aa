"""What optimizers of signs, sums and momentum are for, and what they say when something is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import optree
import pytest
import torch
from registry import make_grads, make_params, matrices, run
from torch import Tensor

import functopt as fo
from functopt import tree


def params_of(*values: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(values, dtype=torch.float64)}


def trained(tx: fo.Transform, hypers: Any = None) -> Any:
    return run(tx, make_params(), make_grads(), hypers)[0]


def close(got: Any, want: Any) -> None:
    for a, b in zip(optree.tree_leaves(got), optree.tree_leaves(want), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# Signs


def test_signum_lies_between_sign_sgd_and_lion():
    close(trained(fo.signum(0.1, beta=0.0)), trained(fo.sign_sgd(0.1)))
    close(trained(fo.signum(0.1, beta=0.7)), trained(fo.lion(0.1, 0.7, 0.7, weight_decay=0.0)))


def test_tiger_does_what_its_author_wrote():
    lr, beta, decay, half = 0.1, 0.8, 0.3, 0.5
    params = {"weight": make_params()["body"]["weight"], "bias": make_params()["body"]["bias"]}
    want: dict[str, Any] = {name: p.numpy().copy() for name, p in params.items()}
    m = {name: np.zeros_like(p) for name, p in want.items()}
    tx = fo.tiger(lr, beta, decay, half)
    state = tx.init(params)
    for grads in make_grads():
        params, state = tx.update({name: grads["body"][name] for name in params}, state, params)
        for name, p in want.items():
            m[name] = beta * m[name] + (1 - beta) * grads["body"][name].numpy()
            if name == "bias":
                want[name] = p - half * lr * np.sign(m[name])
            else:
                want[name] = p - lr * np.sqrt((p**2).mean()) * (np.sign(m[name]) + decay * p)
    close(params, {name: torch.from_numpy(p) for name, p in want.items()})


def test_tiger_leaves_a_matrix_of_zeros_where_it_is():
    params = {"zeros": torch.zeros(2, 2), "vector": torch.zeros(2)}
    new, _ = fo.tiger(0.1).update(tree.map(torch.ones_like, params), fo.tiger().init(params), params)
    assert new["zeros"].abs().max() < 1e-18
    assert (new["vector"] == -0.05).all()


# Rprop


def path_of(tx: fo.Transform, signs: list[float], hypers: Any = None) -> list[float]:
    """Return the updates for gradients of these signs."""
    params, steps = params_of(0.0), []
    state = tx.init(params)
    for sign in signs:
        new, state = tx.update(params_of(3.0 * sign), state, params, hypers)
        steps.append(float(new["w"] - params["w"]))
        params = new
    return steps


def test_rprop_steps_grow_until_the_gradient_turns():
    signs = [1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 0.0, 1.0]
    want = [-0.1, -0.12, -0.144, 0.0, 0.072, 0.0864, 0.0, -0.0864]  # after a turn, and after a 0, nothing is compared
    np.testing.assert_allclose(path_of(fo.rprop(0.1), signs), want, rtol=1e-12, atol=1e-15)
    late = [0.0, -0.1, -0.12, 0.0, 0.0, 0.072, 0.0864, 0.0]
    np.testing.assert_allclose(path_of(fo.rprop(0.1, form="optax"), signs), late, rtol=1e-12, atol=1e-15)


def test_rprop_keeps_its_steps_within_bounds():
    steps = path_of(fo.rprop(0.1, min_step_size=0.08, max_step_size=0.13), [1.0] * 4 + [-1.0, -1.0, 1.0, 1.0])
    np.testing.assert_allclose(steps, [-0.1, -0.12, -0.13, -0.13, 0.0, 0.08, 0.0, -0.08], rtol=1e-12, atol=1e-15)


def test_the_learning_rate_of_rprop_is_data():
    signs = [1.0, 1.0, -1.0, -1.0, -1.0]
    free: Any = {"min_step_size": 0.0}
    twice = path_of(fo.rprop(0.1, **free), signs, {"lr": 0.2})
    np.testing.assert_allclose(twice, path_of(fo.rprop(0.2, **free), signs), rtol=1e-12)
    assert path_of(fo.rprop(0.1), signs, {"lr": 0.0}) == [0.0] * 5
    falling = path_of(fo.rprop(fo.linear_schedule(0.1, 0.0, 4)), [1.0] * 4)
    np.testing.assert_allclose(falling, [-0.1, -0.075 * 1.2, -0.05 * 1.2**2, -0.025 * 1.2**3], rtol=1e-12)


# Sums


def test_where_the_sum_begins_may_be_said_late():
    late = {"initial_accumulator_value": torch.tensor(0.7, dtype=torch.float64)}
    close(trained(fo.adagrad(0.1), late), trained(fo.adagrad(0.1, initial_accumulator_value=0.7)))


def test_adadelta_begins_with_eps():
    params, grads = params_of(1.0, 1.0), params_of(2.0, -0.01)
    new, _ = fo.adadelta(eps=1e-4).update(grads, fo.adadelta().init(params), params)
    want = 1 - 1e-2 * grads["w"] / (0.1 * grads["w"].square() + 1e-4).sqrt()
    torch.testing.assert_close(new["w"], want, rtol=1e-14, atol=0.0)


def test_sm3_is_adagrad_for_vectors_and_bounds_it_for_matrices():
    tx = fo.scale_by_sm3(0.0, eps=0.0)
    params, grads = make_params(), make_grads()
    state, sums = tx.init(params), tree.zeros_like(params)
    for grad in grads:
        sums = tree.map(lambda s, g: s + g.square(), sums, grad)
        updates, state = tx.transform(grad, state, params)
        exact = tree.map(lambda g, s: g / s.sqrt(), grad, sums)
        close(updates["body"]["bias"], exact["body"]["bias"])
        close(updates["head"]["gain"], exact["head"]["gain"])
        for a, b in zip(tree.leaves(updates), tree.leaves(exact), strict=True):
            assert (a.abs() <= b.abs() * (1 + 1e-12)).all()
    assert [part.shape for part in state.accumulators["body"]["weight"]] == [(4, 1), (1, 3)]
    assert [part.shape for part in state.accumulators["head"]["kernel"]] == [(2, 1, 1), (1, 3, 1), (1, 1, 2)]
    row, column = state.accumulators["body"]["weight"]
    assert (row >= sums["body"]["weight"]).all()
    assert (column >= sums["body"]["weight"]).all()


def test_madgrad_without_momentum_is_dual_averaging():
    lr, eps = 0.1, 1e-3
    params, grads = make_params(), make_grads()
    got, state = run(fo.madgrad(lr, momentum=0.0, eps=eps), params, grads)
    factors = [(lr + eps) * (k + 1) ** 0.5 for k in range(len(grads))]
    s = tree.map(lambda *g: sum(f * x for f, x in zip(factors, g, strict=True)), *grads)
    nu = tree.map(lambda *g: sum(f * x**2 for f, x in zip(factors, g, strict=True)), *grads)
    close(got, tree.map(lambda p, s, v: p - s / (v ** (1 / 3) + eps), params, s, nu))
    close(tree.get(state, "x0"), params)


def test_madgrad_goes_on_from_the_start_after_a_step_of_zero():
    tx, params = fo.madgrad(0.1, momentum=0.0), params_of(1.0)
    state = tx.init(params)
    params, state = tx.update(params_of(0.5), state, params)
    again, after = tx.update(params_of(0.5), state, params, {"lr": 0.0})
    close(again, params)
    close(tree.get(after, "s"), tree.get(state, "s"))


# Averages and rates


def test_asgd_averages_what_comes_after_t0():
    tx, params = fo.asgd(0.1, t0=2.0), make_params()
    state, seen = tx.init(params), []
    for t, grad in enumerate(make_grads()):
        params, state = tx.update(grad, state, params)
        seen.append(params)
        # as torch does, 1/max(1, t - t0): the average begins with the parameters of step t0 + 1
        close(tree.get(state, "ax"), tree.map(lambda *p: torch.stack(p).mean(0), *seen[min(3, t) :]))


def test_inverse_time_halves_at_its_inverse():
    tx, params = fo.scale_by_inverse_time(0.25), params_of(1.0)
    state, got = tx.init(params), []
    for _ in range(5):
        updates, state = tx.transform(params_of(1.0), state, params)
        got.append(float(updates["w"]))
    assert got == pytest.approx([1.0, 0.8, 1 / 1.5, 1 / 1.75, 0.5], rel=1e-15)


def test_lars_rolls_on_when_the_learning_rate_is_taken_away():
    tx, params = fo.lars(0.1, momentum=0.8), make_params()
    new, state = tx.update(make_grads()[0], tx.init(params), params)
    last, _ = tx.update(make_grads()[1], state, new, {"lr": 0.0})
    close(tree.map(lambda a, b: a - b, last, new), tree.map(lambda a, b: 0.8 * (a - b), new, params))


def test_rmsprop_rolls_on_only_with_the_momentum_of_the_step():
    params, grads = make_params(), make_grads()
    for kind, moves in (("step", True), ("update", False), ("gradient", False)):
        tx = fo.rmsprop(0.1, momentum=0.8, momentum_of=kind)
        new, state = tx.update(grads[0], tx.init(params), params)
        last, _ = tx.update(grads[1], state, new, {"lr": 0.0})
        assert torch.equal(last["body"]["bias"], new["body"]["bias"]) != moves


def test_what_is_not_scaled_by_its_trust_ratio_passes_through():
    tx, params, grads = fo.scale_by_trust_ratio(mask=matrices), make_params(), make_grads()[0]
    got = tx.transform(grads, tx.init(params), params)[0]
    want = fo.scale_by_trust_ratio().transform(grads, (), params)[0]
    for name, chosen in tree.leaves_with_paths(matrices(params)):
        assert torch.equal(tree.get(got, name), tree.get(want if chosen else grads, name))


def test_a_least_norm_holds_for_parameters_of_zero_too():
    params, grads = params_of(0.0, 0.0), params_of(3.0, 4.0)
    ratio = lambda **given: fo.scale_by_trust_ratio(**given).transform(grads, (), params)[0]["w"] / grads["w"]
    assert ratio().tolist() == [1.0, 1.0]
    assert ratio(min_norm=0.5).tolist() == pytest.approx([0.1, 0.1])  # as optax: 0.5/5


def test_fromage_keeps_the_norm_where_the_gradient_is_orthogonal():
    params, grads = params_of(3.0, 4.0), params_of(-0.8, 0.6)
    tx = fo.fromage(0.3)
    new, _ = tx.update(grads, tx.init(params), params)
    assert float(new["w"].norm()) == pytest.approx(5.0, rel=1e-15)
    assert float((new["w"] - params["w"]).norm()) > 1.0


# Games


def test_optimism_ends_the_circling():
    """The game min_x max_y xy, whose solution is 0: gradient descent leaves it, optimistic descent finds it."""

    def play(tx: fo.Transform) -> float:
        params = {"x": torch.tensor(1.0), "y": torch.tensor(1.0)}
        state = tx.init(params)
        for _ in range(400):
            params, state = tx.update({"x": params["y"], "y": -params["x"]}, state, params)
        return float(tree.norm(params))

    assert play(fo.sgd(0.1)) > 2
    assert play(fo.optimistic_gradient_descent(0.1)) < 0.3
    assert play(fo.optimistic_gradient_descent(0.1, optimism=0.0)) == pytest.approx(play(fo.sgd(0.1)), rel=1e-5)


def test_both_forms_of_optimistic_adam():
    close(trained(fo.optimistic_adam(0.1, 0.1)), trained(fo.optimistic_adam(0.1)))
    close(trained(fo.optimistic_adam(0.1, 0.05)), trained(fo.optimistic_adam_v2(0.1, optimism=0.5)))
    close(trained(fo.optimistic_adam_v2(0.1, optimism=0.0)), trained(fo.adam(0.1, nesterov=True)))


# Sparse gradients


def test_lazy_adam_touches_nothing_where_there_is_no_gradient():
    tx, params = fo.sparse_adam(0.1), params_of(1.0, 2.0)
    params, state = tx.update(params_of(0.5, 0.5), tx.init(params), params)
    new, after = tx.update(params_of(0.3, 0.0), state, params)
    for before, now in ((params, new), (state[0].mu.total, after[0].mu.total), (state[0].nu.total, after[0].nu.total)):
        assert torch.equal(before["w"][1], now["w"][1])
        assert not torch.equal(before["w"][0], now["w"][0])


# What they say


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fo.rprop(form="paper"), "rprop: form must be 'torch' or 'optax', got 'paper'"),
        (lambda: fo.rprop(eta_plus=0.9), r"scale_by_rprop: eta_plus must be in \[1, inf\), got 0.9"),
        (lambda: fo.rprop(eta_minus=1.0), r"eta_minus must be in \[0, 1\), got 1.0"),
        (lambda: fo.adadelta(rho=1.0), r"rho must be in \[0, 1\), got 1.0"),
        (lambda: fo.adagrad(initial_accumulator_value=-1.0), "initial_accumulator_value must be in"),
        (lambda: fo.adagrad(lr_decay=-1.0), "lr_decay must be in"),
        (lambda: fo.scale_by_sm3(accumulator_decay=1.1), r"accumulator_decay must be in \[0, 1\], got 1.1"),
        (
            lambda: fo.rmsprop(momentum=0.9, momentum_of="gradient", centered=True),
            "rmsprop: centered goes with momentum_of='update' or 'step' only",
        ),
        (lambda: fo.rmsprop(momentum=0.9, momentum_of="gradient", nesterov=True), "rmsprop: nesterov goes with"),
        (lambda: fo.rmsprop(momentum_of="lr"), "momentum_of must be 'update', 'step' or 'gradient', got 'lr'"),
    ],
)
def test_wrong_settings_are_refused(make: Any, said: str):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_wrong_mask_is_named():
    params = params_of(1.0)
    for tx, who in (
        (fo.tiger(mask={"w": 1.0}), "scale_by_tiger"),
        (fo.lars(trust_ratio_mask={"w": 1.0}), "trust_ratio"),
    ):
        with pytest.raises(TypeError, match=f"{who}: the mask at 'w' is 1.0"):
            tx.update(params, tx.init(params), params)


def test_the_name_of_elsewhere_is_understood():
    with pytest.raises(KeyError, match="here it is called 'optimism'"):
        fo.optimistic_gradient_descent().with_hypers(beta=0.5)
