"""What the rules with running second moments are for; and against their papers, those that optax and torch lack."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from registry import make_grads, make_params, matrices
from torch import Tensor

import functopt as fo
from functopt import Transform, tree

STEPS = 12

Leaves = dict[str, np.ndarray]


def problem(steps: int = STEPS) -> tuple[Any, list[Any]]:
    return make_params()["body"], [g["body"] for g in make_grads(steps=steps)]


def trained(tx: Transform, **extras: Any) -> Leaves:
    params, grads = problem()
    state = tx.init(params)
    for g in grads:
        params, state = tx.update(g, state, params, **extras)
    return {key: p.numpy() for key, p in params.items()}


def by_formula(step: Any) -> Leaves:
    """Train with ``step(t, g, memory) -> u``, written for one leaf in numpy; ``memory`` is a dict of its own."""
    params, grads = problem()
    out = {key: p.numpy().copy() for key, p in params.items()}
    memory: dict[str, dict[str, Any]] = {key: {} for key in out}
    for t, g in enumerate(grads, 1):
        for key in out:
            out[key] = out[key] + step(t, g[key].numpy(), out[key], memory[key])
    return out


def close(got: Leaves, want: Leaves) -> None:
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-12, atol=1e-13)


def adam_of(g: np.ndarray, t: int, m: dict[str, Any], beta1: float, beta2: float, eps: float) -> np.ndarray:
    m["m"] = beta1 * m.get("m", 0.0) + (1 - beta1) * g
    m["v"] = beta2 * m.get("v", 0.0) + (1 - beta2) * g**2
    return m["m"] / (1 - beta1**t) / (np.sqrt(m["v"] / (1 - beta2**t)) + eps)


# Against the papers


def test_laprop_is_the_authors():
    """Their code has the learning rate inside the average, and keeps the sum of what is in it."""
    lr, beta1, beta2, eps = 0.05, 0.8, 0.95, 1e-3

    def step(t: int, g: np.ndarray, p: np.ndarray, m: dict[str, Any]) -> np.ndarray:
        m["v"] = beta2 * m.get("v", 0.0) + (1 - beta2) * g**2
        m["lr1"] = beta1 * m.get("lr1", 0.0) + (1 - beta1) * lr
        m["lr2"] = beta2 * m.get("lr2", 0.0) + (1 - beta2)
        divided = g / (np.sqrt(m["v"] / m["lr2"]) + eps)
        m["m"] = beta1 * m.get("m", 0.0) + (1 - beta1) * lr * divided
        return -m["m"] / (m["lr1"] / lr)

    close(trained(fo.laprop(lr, beta1, beta2, eps)), by_formula(step))


@pytest.mark.parametrize("form", ["paper", "code"])
def test_mars_is_the_paper(form: str):
    lr, beta1, beta2, eps, decay, gamma = 0.05, 0.8, 0.95, 1e-3, 0.1, 0.3

    def step(t: int, g: np.ndarray, p: np.ndarray, m: dict[str, Any]) -> np.ndarray:
        last = m.get("g", g if form == "paper" else 0 * g)
        m["g"] = g
        c = g + gamma * beta1 / (1 - beta1) * (g - last)
        c = c / max(1.0, float(np.sqrt((c**2).sum())))
        return -lr * (adam_of(c, t, m, beta1, beta2, eps) + decay * p)

    close(trained(fo.mars(lr, beta1, beta2, eps, decay, gamma, form=form)), by_formula(step))


def test_mars_with_the_gradient_at_the_last_parameters_is_storm():
    """With ``gamma = 1`` and no bound the average is ``m ← g + β1·(m - g_last)``, the estimate of STORM."""
    beta1, (params, grads) = 0.8, problem()
    tx = fo.chain(fo.reduce_variance(1.0, beta1, math.inf), fo.ema(beta1, debias=False))
    state, want = tx.init(params), tree.zeros_like(params)
    for g, last in zip(grads, reversed(grads), strict=True):
        got, state = tx.transform(g, state, params, last_grad=last)
        want = tree.map(lambda m, g, last: g + beta1 * (m - last), want, g, last)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_adam_mini_is_the_paper():
    lr, beta1, beta2, eps, decay = 0.05, 0.8, 0.95, 1e-3, 0.1

    def step(t: int, g: np.ndarray, p: np.ndarray, m: dict[str, Any]) -> np.ndarray:
        m["m"] = beta1 * m.get("m", 0.0) + (1 - beta1) * g
        blocks = g.reshape(2, -1) if g.ndim == 2 else g.reshape(1, -1)
        m["v"] = beta2 * m.get("v", 0.0) + (1 - beta2) * (blocks**2).mean(1, keepdims=True)
        divided = m["m"].reshape(blocks.shape) / (1 - beta1**t) / (np.sqrt(m["v"] / (1 - beta2**t)) + eps)
        return -lr * (divided.reshape(g.shape) + decay * p)

    blocks = {"weight": 2, "bias": "leaf"}
    close(trained(fo.adam_mini(lr, beta1, beta2, eps, decay, blocks=blocks)), by_formula(step))


@pytest.mark.parametrize("rescale", ["mean", "paper", "none"])
def test_cautious_is_the_paper(rescale: str):
    lr, beta1, beta2, eps, decay = 0.05, 0.95, 0.95, 1e-3, 0.1

    def step(t: int, g: np.ndarray, p: np.ndarray, m: dict[str, Any]) -> np.ndarray:
        u = adam_of(g, t, m, beta1, beta2, eps)
        keep = u * g > 0
        factor = {"mean": 1 / max(keep.mean(), 1e-3), "paper": keep.size / (keep.sum() + 1), "none": 1.0}[rescale]
        return -lr * (u * keep * factor + decay * p)

    inner = fo.cautious(fo.scale_by_adam(beta1, beta2, eps), rescale=rescale, descends=False)
    close(trained(fo.chain(inner, fo.add_decayed_weights(decay), fo.scale_by_lr(lr))), by_formula(step))


@pytest.mark.parametrize("threshold", [0.5, 1.0, math.inf])
def test_stable_adamw_is_the_paper(threshold: float):
    lr, beta1, beta2, eps, decay = 0.05, 0.8, 0.95, 1e-3, 0.1

    def step(t: int, g: np.ndarray, p: np.ndarray, m: dict[str, Any]) -> np.ndarray:
        u = adam_of(g, t, m, beta1, beta2, eps)
        v = m["v"] / (1 - beta2**t)
        rms = np.sqrt((g**2 / np.maximum(v, eps**2)).mean())
        return -lr / max(1.0, rms / threshold) * (u + decay * p)

    close(trained(fo.stable_adamw(lr, beta1, beta2, eps, decay, threshold)), by_formula(step))


def against_optimi(tx: Transform, name: str, **options: Any) -> None:
    optimi = pytest.importorskip("optimi")
    params, grads = problem()
    mirror = {key: torch.nn.Parameter(p.clone()) for key, p in params.items()}
    options |= {"foreach": False, "triton": False}
    reference = getattr(optimi, name)(list(mirror.values()), **options)
    state = tx.init(params)
    for g in grads:
        params, state = tx.update(g, state, params)
        for key, p in mirror.items():
            p.grad = g[key].clone()
        reference.step()
    for key, p in params.items():
        torch.testing.assert_close(p, mirror[key].detach(), rtol=1e-12, atol=1e-12)


def test_stable_adamw_is_that_of_optimi():
    against_optimi(fo.stable_adamw(0.05), "StableAdamW", lr=0.05)
    against_optimi(
        fo.stable_adamw(0.05, 0.8, 0.95, 0.1, 0.2), "StableAdamW", lr=0.05, betas=(0.8, 0.95), eps=0.1, weight_decay=0.2
    )


def test_adan_of_the_paper_is_that_of_optimi():
    against_optimi(
        fo.adan(0.05, 0.9, 0.8, 0.95, 1e-3, 0.0, 0.2, form="paper"),
        "Adan",
        lr=0.05,
        betas=(0.9, 0.8, 0.95),
        eps=1e-3,
        weight_decay=0.2,
    )


def test_amsgrad_of_the_paper():
    lr, beta1, beta2, eps = 0.05, 0.8, 0.9, 1e-3

    def step(t: int, g: np.ndarray, p: np.ndarray, m: dict[str, Any]) -> np.ndarray:
        adam_of(g, t, m, beta1, beta2, eps)
        m["max"] = np.maximum(m.get("max", 0.0), m["v"])
        return -lr * m["m"] / (np.sqrt(m["max"]) + eps)

    tx = fo.amsgrad(lr, beta1, beta2, eps, bias_correction_mu=False, bias_correction_nu=False)
    close(trained(tx), by_formula(step))


# What they are for


def spiked(tx: Transform, at: int, factor: float) -> list[Any]:
    """The updates of a link, with one gradient that is larger than it was."""
    params, grads = problem()
    state, out = tx.init(params), []
    for i, g in enumerate(grads):
        u, state = tx.transform(tree.map(lambda x, i=i: x * (factor if i == at else 1.0), g), state, params)
        out.append(u)
    return out


def test_acprop_divides_by_what_it_knew_before():
    once, twice = (spiked(fo.scale_by_acprop(), 5, factor)[5] for factor in (1.0, 2.0))
    torch.testing.assert_close(twice, tree.map(lambda u: 2 * u, once), rtol=1e-14, atol=0.0)


def test_adopt_does_nothing_at_first_and_bounds_what_comes_later():
    tx = fo.scale_by_adopt(beta1=0.0, clip_exponent=0.25)
    updates = spiked(tx, 5, 1e6)
    assert all(torch.equal(u, torch.zeros_like(u)) for u in updates[0].values())
    assert max(float(u.abs().max()) for u in updates[5].values()) == pytest.approx(5**0.25, rel=1e-14)
    params, (first, *_) = problem()
    _, state = tx.transform(first, tx.init(params), params)
    torch.testing.assert_close(state.nu.total, tree.map(torch.square, first), rtol=1e-15, atol=0.0)


def test_amsgrad_never_forgets_a_large_gradient():
    params, grads = problem()
    for form in (True, False, "after"):
        tx = fo.scale_by_amsgrad(beta2=0.5, bias_correction_nu=form)
        state, before = tx.init(params), tree.zeros_like(params)
        for g in grads:
            _, state = tx.transform(g, state, params)
            assert all((state.nu_max[key] >= before[key]).all() for key in params)
            before = state.nu_max
        assert all((state.nu_max[key] > state.nu.total[key]).any() for key in params)


def test_novograd_does_not_see_the_scale_of_a_leaf():
    params, grads = problem()
    factors = {"weight": 1e4, "bias": 1e-3}
    runs = []
    for scales in ({"weight": 1.0, "bias": 1.0}, factors):
        tx, p = fo.novograd(0.05, eps=0.0, weight_decay=0.1), params
        state = tx.init(p)
        for g in grads:
            p, state = tx.update(tree.map(lambda x, s: x * s, g, scales), state, p)
        runs.append(p)
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-12, atol=1e-12)


def test_yogi_forgets_slowly():
    """After a spike Adam's second moment falls by 1 - β2 of itself, Yogi's by 1 - β2 of the new square."""
    params, (g, *_) = problem()
    spike = tree.map(lambda x: 100 * x, g)
    fallen = {}
    for make in (fo.scale_by_adam, fo.scale_by_yogi):
        tx = make(beta2=0.9)
        _, before = tx.transform(spike, tx.init(params), params)
        _, after = tx.transform(g, before, params)
        lost = before.nu.total["weight"] - after.nu.total["weight"]
        fallen[make.__name__] = float((lost / g["weight"].square()).mean())
    assert fallen["scale_by_yogi"] == pytest.approx(0.1, rel=1e-4)
    assert fallen["scale_by_adam"] == pytest.approx(0.1 * (0.1 * 1e4 - 1), rel=1e-4)


def test_belief_takes_longer_steps_where_gradients_agree():
    params, (g, *_) = problem()
    steps = []
    for make in (fo.scale_by_adam, fo.scale_by_belief):
        tx = make()
        state, u = tx.init(params), g
        for _ in range(30):
            u, state = tx.transform(g, state, params)
        steps.append(u["weight"].abs())
    assert (steps[1] > 2 * steps[0]).all()


def test_the_slow_average_of_ademamix_may_be_scheduled():
    constant, later = fo.ademamix(0.05, alpha=0.0), fo.ademamix(0.05, alpha=fo.linear_schedule(0.0, 5.0, 5))
    (params, (g, *_)) = problem()
    first = [tx.update(g, tx.init(params), params)[0] for tx in (constant, later)]
    torch.testing.assert_close(*first, rtol=0.0, atol=0.0)
    assert not np.allclose(trained(constant)["weight"], trained(later)["weight"])


@pytest.mark.parametrize("tx", [fo.adan(0.05), fo.mars(0.05)], ids=str)
def test_the_last_gradient_is_a_copy(tx: Transform):
    params, (g, *_) = problem()
    given = tree.map(torch.clone, g)
    _, state = tx.update(given, tx.init(params), params)
    tree.map(Tensor.zero_, given)  # as zero_grad(set_to_none=False) does
    torch.testing.assert_close(tree.get(state, "grad"), g, rtol=0.0, atol=0.0)


# Cautious


def test_what_is_masked_does_not_move():
    tx = fo.cautious(fo.sgd(0.1, 0.9))
    params, grads = problem()
    state, masked = tx.init(params), 0
    for g in grads:
        new, state = tx.update(g, state, params)
        trace = tree.get(state, "trace").total
        for key, p in params.items():
            against = trace[key] * g[key] < 0
            masked += int(against.sum())
            assert torch.equal(new[key][against], p[against])
            assert (((new[key] - p) * g[key])[~against] < 0).all()
        params = new
    assert masked > 10


def test_cautious_of_an_optimizer_that_never_goes_up_changes_nothing():
    for rescale in ("mean", "none"):
        close(trained(fo.cautious(fo.sgd(0.1), rescale=rescale)), trained(fo.sgd(0.1)))


def test_cautious_where_everything_is_masked_stays():
    params, (g, *_) = problem()
    tx = fo.cautious(fo.sgd(0.1, maximize=True))
    new, _ = tx.update(g, tx.init(params), params)
    assert all(torch.equal(new[key], params[key]) for key in params)


# Adam-mini's blocks


def test_a_block_for_every_entry_is_adam():
    close(trained(fo.adam_mini(0.05, blocks="entry")), trained(fo.adamw(0.05, weight_decay=0.0)))


def test_blocks_say_what_is_kept():
    params = make_params()
    sizes = lambda blocks: {
        path: leaf.numel()
        for path, leaf in tree.leaves_with_paths(fo.scale_by_adam_mini(blocks=blocks).init(params).nu.total)
    }
    assert sizes("leaf") == {"body.weight": 1, "body.bias": 1, "head.gain": 1, "head.kernel": 1}
    assert sizes("row") == {"body.weight": 4, "body.bias": 3, "head.gain": 1, "head.kernel": 2}
    assert sizes({"body": "leaf", "head": {"gain": 1, "kernel": 2}})["head.kernel"] == 2
    by_rank = lambda p: tree.map(lambda leaf: "entry" if leaf.ndim == 3 else "leaf", p)
    assert sizes(by_rank) == {"body.weight": 1, "body.bias": 1, "head.gain": 1, "head.kernel": 12}


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (3, "must be one of .* or a number that divides the first axis, got 3 for a leaf of shape .4, 3."),
        ("column", "got 'column' for a leaf"),
        (0, "got 0 for a leaf"),
        (True, "got True for a leaf"),
        ({"weight": 2}, "blocks are no prefix of params: 'bias' has no counterpart"),
    ],
)
def test_blocks_that_do_not_fit(blocks: Any, said: str):
    params, _ = problem()
    with pytest.raises(ValueError, match=said):
        fo.adam_mini(blocks=blocks).init(params)


# Decay, and where averages begin


def test_implicit_decay_never_overshoots():
    params, (g, *_) = problem()
    lr, decay = 0.5, 10.0
    tx = fo.chain(fo.scale_by_lr(lr), fo.shrink_weights(decay, lr, mask=matrices, implicit=True))
    new, _ = tx.update(g, tx.init(params), params)
    torch.testing.assert_close(new["weight"], (params["weight"] - lr * g["weight"]) / (1 + lr * decay))
    assert torch.equal(new["bias"], params["bias"] - lr * g["bias"])


def test_an_average_begins_where_it_is_told_also_if_its_decay_moves():
    params, grads = problem()
    tx, decays = fo.scale_by_rms(initial_scale=0.7, eps=0.0), np.linspace(0.5, 0.95, STEPS)
    state, v = tx.init(params), 0.7 * torch.ones_like(params["weight"])
    for g, decay in zip(grads, decays, strict=True):
        u, state = tx.transform(g, state, params, {"decay": float(decay)})
        v = decay * v + (1 - decay) * g["weight"].square()
        torch.testing.assert_close(u["weight"], g["weight"] / v.sqrt(), rtol=1e-12, atol=0.0)


# Errors


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: fo.scale_by_amsgrad(bias_correction_nu="before"),
            "scale_by_amsgrad: bias_correction_nu must be one of",
        ),
        (lambda: fo.amsgrad(bias_correction_nu="never"), "bias_correction_nu must be one of .*, got 'never'"),
        (lambda: fo.reduce_variance(form="exact"), "reduce_variance: form must be one of .*, got 'exact'"),
        (lambda: fo.mars(form="exact"), "got 'exact'"),
        (lambda: fo.mars(gamma=-1.0), r"gamma must be in \[0, inf\)"),
        (lambda: fo.adan(form="torch"), "scale_by_adan: form must be 'optax' or 'paper', got 'torch'"),
        (lambda: fo.adan(beta3=1.0), r"beta3 must be in \[0, 1\)"),
        (lambda: fo.cautious(fo.sgd(), rescale="max"), "cautious: rescale must be one of .*, got 'max'"),
        (lambda: fo.cautious(fo.lookahead(fo.sgd())), "cautious: lookahead writes the parameters itself"),
    ],
)
def test_values_that_are_refused(make: Any, said: str):
    with pytest.raises(ValueError, match=said):
        make()


def test_cautious_needs_a_transform():
    inner: Any = fo.sgd
    with pytest.raises(TypeError, match="cautious: inner is a function, expected a Transform"):
        fo.cautious(inner)
