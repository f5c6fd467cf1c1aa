"""sam: the gradient of the perturbed point, in both of its modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functopt as fo
from functopt import tree


def loss(params: Any) -> torch.Tensor:
    return (params["x"] ** 4).sum() / 4 + (params["x"].sum() * params["y"]).square() + params["y"].cos()


def start() -> Any:
    return {"x": torch.tensor([1.0, -0.5, 0.8], dtype=torch.float64), "y": torch.tensor(0.7, dtype=torch.float64)}


gradient = torch.func.grad(loss)


def same(a: Any, b: Any) -> None:
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-15)


def perturbed(params: Any, grads: Any, radius: float) -> Any:
    return tree.map(lambda p, g, norm: p + radius * g / norm, params, grads, tree.norm(grads))


def test_it_is_the_paper():
    tx, params = fo.sam(fo.sgd(0.05, 0.9), fo.sam_ascent(0.1), opaque_mode=True), start()
    plain, at = fo.sgd(0.05, 0.9), start()
    state, inner = tx.init(params), plain.init(at)
    for _ in range(6):
        params, state = tx.update(gradient(params), state, params, value_fn=loss)
        at, inner = plain.update(gradient(perturbed(at, gradient(at), 0.1)), inner, at)
        same(params, at)


def test_the_adaptive_ascent_is_the_papers():
    params, eta, radius = start(), 0.01, 0.5
    grads = gradient(params)
    t = tree.map(lambda p: p.abs() + eta, params)
    norm = tree.norm(tree.map(lambda t, g: t * g, t, grads))
    want = tree.map(lambda t, g: -radius * t**2 * g / norm, t, grads)
    same(fo.asam_ascent(radius, eta).transform(grads, (), params)[0], want)
    # scaling some parameters up and their gradient down moves them by the same part
    scale = {"x": 100.0, "y": 1.0}
    other = fo.asam_ascent(radius, 0.0).transform(
        tree.map(lambda g, s: g / s, grads, scale), (), tree.map(lambda p, s: p * s, params, scale)
    )[0]
    same(tree.map(lambda u, s: u / s, other, scale), fo.asam_ascent(radius, 0.0).transform(grads, (), params)[0])


def test_zero_gradients_are_not_climbed():
    zeros = tree.map(torch.zeros_like, start())
    for link in (fo.sam_ascent(0.1), fo.asam_ascent(0.1)):
        assert all((leaf == 0).all() for leaf in tree.leaves(link.transform(zeros, (), start())[0]))


@pytest.mark.parametrize("period", [2, 3])
@pytest.mark.parametrize("reset", [True, False])
def test_both_modes_take_the_same_steps(period: int, reset: bool):
    adversary = fo.rename(fo.sgd(0.02, 0.5), lr="radius", momentum="keep", dampening="damp", weight_decay="wd")
    make = lambda opaque: fo.sam(fo.adam(0.05), adversary, sync_period=period, reset_state=reset, opaque_mode=opaque)
    opaque, open_ = make(True), make(False)
    params, at = start(), start()
    state, other = opaque.init(params), open_.init(at)
    for _ in range(4):
        params, state = opaque.update(gradient(params), state, params, value_fn=loss)
        for i in range(period):
            at, other = open_.update(gradient(at), other, at)
            if i < period - 1:
                assert loss(at) > loss(other.cache)  # it climbs
        same(at, params)
        same(other.inner, state.inner)
        same(other.adversary, state.adversary)


def test_a_period_of_one_is_the_optimizer_itself():
    for opaque in (False, True):
        tx, plain = fo.sam(fo.adam(0.1), sync_period=1, opaque_mode=opaque), fo.adam(0.1)
        params, at = start(), start()
        state, inner = tx.init(params), plain.init(at)
        for _ in range(3):
            params, state = tx.update(gradient(params), state, params, value_fn=loss)
            at, inner = plain.update(gradient(at), inner, at)
        same(params, at)


def test_a_closure_is_what_it_climbs_with():
    tx, ends = fo.sam(fo.sgd(0.1), fo.sam_ascent(), opaque_mode=True), []
    for compiled in (False, {"backend": "aot_eager"}):
        model = torch.nn.Linear(2, 1, dtype=torch.float64)
        torch.nn.init.ones_(model.weight)
        optimizer = fo.StatefulOptimizer(model.parameters(), tx, compile=compiled)

        def closure(model: Any = model, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model.weight - torch.tensor([2.0, -1.0])).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        ends.append(model.weight.detach())
    # the gradient (-2, 4) climbs 0.05 of its length to that of (0.978, 1.045), twice the way from (2, -1)
    at = torch.tensor([1.0, 1.0], dtype=torch.float64) + 0.05 * torch.tensor([-2.0, 4.0]) / 20**0.5
    torch.testing.assert_close(ends[0][0], 1.0 - 0.2 * (at - torch.tensor([2.0, -1.0])))
    assert torch.equal(*ends)


def test_each_adversarial_step_may_have_its_own_batch():
    seen = []

    def grad_fn(params: Any, i: int) -> Any:
        seen.append(i)
        return tree.map(lambda g: (i + 1) * g, gradient(params))

    tx = fo.sam(fo.sgd(0.1), fo.sam_ascent(0.1), sync_period=3, opaque_mode=True)
    params = start()
    got, _ = tx.update(gradient(params), tx.init(params), params, grad_fn=grad_fn)
    assert seen == [0, 1]
    first = perturbed(params, gradient(params), 0.1)
    second = perturbed(first, gradient(first), 0.1)
    same(got, tree.map(lambda p, g: p - 0.1 * 2 * g, params, gradient(second)))


def test_it_prefers_a_flat_minimum():
    # a narrow hole at 0.6 in a wide valley around 0: descent falls in, and SAM, which looks 0.5 away, does not
    valley = lambda p: 0.5 * p["x"].square().sum() - 0.3 * torch.exp(-((p["x"] - 0.6) ** 2) / 0.005).sum()

    def ends(tx: fo.Transform) -> float:
        params = {"x": torch.tensor([0.62])}
        state = tx.init(params)
        for _ in range(300):
            params, state = tx.update(torch.func.grad(valley)(params), state, params, value_fn=valley)
        return float(params["x"])

    assert abs(ends(fo.sgd(0.01)) - 0.6) < 0.05
    assert abs(ends(fo.sam(fo.sgd(0.01), fo.sam_ascent(0.3), opaque_mode=True))) < 0.35


def test_sweeps_and_derivatives_of_the_radius():
    tx = fo.sam(fo.sgd(0.05), opaque_mode=True)
    params = start()

    def after(radius: torch.Tensor) -> torch.Tensor:
        at, state = params, tx.init(params)
        for _ in range(3):
            at, state = tx.update(gradient(at), state, at, {"radius": radius}, value_fn=loss)
        return loss(at)

    radii = torch.tensor([0.01, 0.1, 0.3], dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(after)(radii), torch.stack([after(r) for r in radii]))
    slope = torch.func.grad(after)(radii[1])
    torch.testing.assert_close(slope, (after(radii[1] + 1e-6) - after(radii[1] - 1e-6)) / 2e-6, rtol=1e-6, atol=0.0)


def test_messages():
    with pytest.raises(TypeError, match="sam: optimizer is a function"):
        fo.sam(fo.sgd)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="sam: adv_optimizer is a float"):
        fo.sam(fo.sgd(), 0.05)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="lookahead writes the parameters itself and cannot be the adversary"):
        fo.sam(fo.sgd(), fo.lookahead(fo.sgd()))
    with pytest.raises(ValueError, match="sync_period must be at least 1, got 0"):
        fo.sam(fo.sgd(), sync_period=0)
    with pytest.raises(ValueError, match=r"sam: .* have different defaults for 'lr'"):
        fo.sam(fo.sgd(0.1), fo.sgd(0.05))
    params, tx = start(), fo.sam(fo.sgd(), opaque_mode=True)
    with pytest.raises(TypeError, match="sam needs the extra 'value_fn' in opaque mode"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="expected SamState of opaque_mode=False"):
        fo.sam(fo.sgd()).update(params, tx.init(params), params)
    with pytest.raises(TypeError, match="sam writes the parameters itself"):
        fo.sam(fo.sgd()).transform(params, fo.sam(fo.sgd()).init(params), params)
    # one call is one step of updates, so it may stand inside a chain
    chained = fo.chain(tx, fo.clip(1e-3))
    new, _ = chained.update(params, chained.init(params), params, value_fn=loss)
    assert float((new["x"] - params["x"]).abs().max()) <= 1e-3 * (1 + 1e-9)
