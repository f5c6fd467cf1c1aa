"""L-BFGS and conjugate gradients: against their formulas, torch, scipy, and in classic loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

import functopt as fo
from functopt import StatefulOptimizer, tree

rng = np.random.default_rng(0)
START = torch.tensor([-1.2, 1.0, -0.5, 0.8, 1.5], dtype=torch.float64)


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def hessian(n: int, condition: float = 100.0) -> Tensor:
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((n, n)))
    return torch.from_numpy(q @ np.diag(np.geomspace(1.0, condition, n)) @ q.T)


def quadratic(n: int) -> Any:
    h = hessian(n)
    return lambda x: x @ h @ x / 2 - x.sum()


def minimise(tx: fo.Transform, loss: Any, x: Tensor, steps: int) -> tuple[Tensor, int]:
    """Return where it ends, and after how many steps the gradient was below 1e-8."""
    state, reached = tx.init(x), steps
    for i in range(steps):
        grads, value = torch.func.grad_and_value(loss)(x)
        if grads.norm() < 1e-8:
            reached = min(reached, i)
            break
        x, state = tx.update(grads, state, x, value=value, value_fn=loss)
    return x, reached


# L-BFGS


def bfgs_direction(pairs: list[Any], g: Any, gamma: Any) -> Any:
    """Return H·g with H as a matrix, from the definition."""
    eye = np.eye(len(g))
    h = gamma * eye
    for s, y in pairs:
        rho = 1 / (s @ y)
        h = (eye - rho * np.outer(s, y)) @ h @ (eye - rho * np.outer(y, s)) + rho * np.outer(s, s)
    return h @ g


@pytest.mark.parametrize("form", ["optax", "torch"])
@pytest.mark.parametrize("scaled", [True, False])
def test_the_direction_is_that_of_the_matrix(form: str, scaled: bool):
    link = fo.scale_by_lbfgs(memory_size=3, scale_init_precond=scaled, form=form)
    places, grads = rng.standard_normal((7, 4)), rng.standard_normal((7, 4))
    grads[4] = grads[3] + 1e-12  # ⟨s, y⟩ is next to nothing
    state, pairs = link.init(torch.zeros(4, dtype=torch.float64)), []
    for i, (p, g) in enumerate(zip(places, grads, strict=True)):
        if i:
            s, y = p - places[i - 1], g - grads[i - 1]
            if s @ y > 1e-10 or form == "optax":
                pairs = [*pairs, (s, y)][-3:]
        norm = np.abs(g).sum() if form == "torch" else np.linalg.norm(g)
        gamma = (pairs[-1][0] @ pairs[-1][1]) / (pairs[-1][1] @ pairs[-1][1]) if pairs else min(1.0, 1 / norm)
        if not pairs and i:
            gamma = 1.0
        got, state = link.transform(torch.from_numpy(g), state, torch.from_numpy(p))
        want = bfgs_direction(pairs, g, gamma if scaled else 1.0)
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-6 if form == "optax" and i >= 4 else 1e-10)


def test_without_a_search_it_goes_where_torch_goes():
    h = hessian(6)
    theirs = nn.Parameter(START.new_ones(6))
    ours, tx = theirs.detach().clone(), fo.lbfgs(0.7, form="torch", linesearch=None, memory_size=4)
    optimizer = torch.optim.LBFGS([theirs], lr=0.7, max_iter=5, history_size=4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = theirs @ h @ theirs / 2 + torch.cos(theirs).sum()
        loss.backward()
        return loss

    state = tx.init(ours)
    for _ in range(4):
        optimizer.step(closure)
        for _ in range(5):  # a step of theirs is several of ours
            ours, state = tx.update(h @ ours - torch.sin(ours), state, ours)
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-10, atol=1e-10)


def test_with_a_search_it_goes_where_torch_goes_as_long_as_first_steps_are_accepted():
    h = hessian(6, condition=3.0)
    theirs = nn.Parameter(0.3 * START.new_ones(6))
    ours = theirs.detach().clone()
    loss = lambda x: x @ h @ x / 2 + torch.cos(x).sum() / 4
    optimizer = torch.optim.LBFGS([theirs], max_iter=1, max_eval=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(theirs)
        value.backward()
        return value

    tx = fo.lbfgs(form="torch", memory_size=100)
    state = tx.init(ours)
    for i in range(6):
        before = optimizer.state[theirs].get("func_evals", 0)
        optimizer.step(closure)
        ours, state = tx.update(torch.func.grad(loss)(ours), state, ours, value_fn=loss)
        evaluations = optimizer.state[theirs]["func_evals"] - before - 1
        assert evaluations == tree.get(state, "num_linesearch_steps") == 1, i
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-11, atol=1e-11)


def test_rosenbrock_takes_about_as_many_steps_as_elsewhere():
    got, steps = minimise(fo.lbfgs(), rosenbrock, START, 200)
    f = lambda x: float(rosenbrock(torch.from_numpy(x)))
    grad = lambda x: torch.func.grad(rosenbrock)(torch.from_numpy(x)).numpy()
    theirs = scipy.optimize.minimize(f, START.numpy(), jac=grad, method="L-BFGS-B", options={"gtol": 1e-8, "ftol": 0})
    np.testing.assert_allclose(got.numpy(), theirs.x, atol=1e-6)
    assert steps <= 1.3 * theirs.nit
    assert steps == OPTAX_STEPS


OPTAX_STEPS = 45  # of optax.lbfgs() from here, until the gradient is below 1e-8


@pytest.mark.parametrize("n", [3, 8])
def test_with_exact_searches_a_quadratic_takes_as_many_steps_as_parameters(n: int):
    exact = fo.scale_by_zoom_linesearch(curv_rtol=1e-9, stepsize_precision=0.0, max_linesearch_steps=60)
    loss, x = quadratic(n), START.new_ones(n)
    for tx in (fo.lbfgs(linesearch=exact), *(fo.nonlinear_cg(method=m, linesearch=exact) for m in METHODS)):
        got, steps = minimise(tx, loss, x, n + 4)
        torch.testing.assert_close(got, torch.linalg.solve(hessian(n), START.new_ones(n)), rtol=1e-7, atol=1e-7)
        assert steps <= n + 2, tx


# Conjugate gradients

METHODS = ["fletcher_reeves", "polak_ribiere_plus", "hestenes_stiefel", "dai_yuan", "hager_zhang"]


def beta(method: str, g: Any, h: Any, d: Any) -> float:
    """Return β of the papers, for gradients g, then h, and the direction d between."""
    y = h - g
    if method == "fletcher_reeves":
        return h @ h / (g @ g)
    if method == "polak_ribiere_plus":
        return max(0.0, h @ y / (g @ g))
    if method == "hestenes_stiefel":
        return h @ y / (d @ y)
    if method == "dai_yuan":
        return h @ h / (d @ y)
    floor = -1 / (np.linalg.norm(d) * min(0.01, np.linalg.norm(g)))
    return max(floor, (y - 2 * d * (y @ y) / (d @ y)) @ h / (d @ y))


@pytest.mark.parametrize("method", METHODS)
def test_directions_are_those_of_the_papers(method: str):
    link, anew = fo.scale_by_conjugate_gradient(method=method), 0
    grads = np.random.default_rng(3).standard_normal((12, 3)) + 1
    grads[5:] *= 1e-3  # such as to reach the bound of Hager and Zhang
    state = link.init(torch.zeros(3, dtype=torch.float64))
    g: Any = None
    d: Any = None
    for h in grads:
        u, state = link.transform(torch.from_numpy(h), state, torch.zeros(3, dtype=torch.float64))
        new = -h if g is None else -h + beta(method, g, h, d) * d
        if new @ h >= 0:
            new, anew = -h, anew + 1
        np.testing.assert_allclose(-u.numpy(), new, rtol=1e-11)
        g, d = h, new
    assert anew < 8


@pytest.mark.parametrize("method", METHODS)
def test_conjugate_gradients_find_the_minimum_of_rosenbrock(method: str):
    got, _ = minimise(fo.nonlinear_cg(method=method), rosenbrock, START, 120)
    # the two without y in the numerator are known to dawdle after a bad step
    dawdle = {"fletcher_reeves": 1.0, "dai_yuan": 1.0, "hestenes_stiefel": 1e-5}
    assert rosenbrock(got) < dawdle.get(method, 1e-12)
    assert rosenbrock(START) > 300


# In a classic loop


def problem() -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(20, 3, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    return model, x, y


TX = [
    fo.lbfgs(memory_size=3),
    fo.nonlinear_cg(),
    fo.chain(fo.sgd(1.0), fo.scale_by_backtracking_linesearch(store_grad=True)),
]


@pytest.mark.parametrize("compile", [False, {"backend": "eager"}], ids=["eager", "compiled"])
@pytest.mark.parametrize("tx", TX, ids=lambda tx: repr(tx)[:20])
def test_a_closure_is_enough(tx: fo.Transform, compile: Any):
    model, x, y = problem()
    optimizer = StatefulOptimizer(model.named_parameters(), tx, compile=compile)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    def value_fn(params: Any) -> Tensor:
        return nn.functional.mse_loss(torch.func.functional_call(model, params, (x,)), y)

    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = tx.init(params)
    for _ in range(4):
        grads, value = torch.func.grad_and_value(value_fn)(params)
        before = calls
        assert float(optimizer.step(closure).detach()) == pytest.approx(float(value))
        params, state = tx.update(grads, state, params, value=value, value_fn=value_fn)
        # each evaluation calls it once, and its gradients are those of the start afterwards
        assert calls - before == 1 + int(tree.get(state, "num_linesearch_steps")) + ("backtracking" in repr(tx))
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.detach(), params[name], rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(p.grad, grads[name], rtol=1e-9, atol=1e-10)
    saved = optimizer.state_dict()
    again = StatefulOptimizer(model.named_parameters(), tx)
    again.load_state_dict(saved)


def test_a_pure_loss_goes_into_the_graph():
    model, x, y = problem()
    tx = fo.lbfgs(memory_size=2, linesearch=fo.scale_by_zoom_linesearch(max_linesearch_steps=2))
    loss = lambda p: nn.functional.mse_loss(torch.func.functional_call(model, tree.unpack(p), (x,)), y)
    optimizer = StatefulOptimizer(model.named_parameters(), tx, compile={"backend": "eager"})
    params: Any = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = tx.init(params)
    for _ in range(2):
        grads, value = torch.func.grad_and_value(loss)(params)
        for name, p in model.named_parameters():
            p.grad = grads[name].clone()
        optimizer.step(value=value, value_fn=loss)
        params, state = tx.update(grads, state, params, value=value, value_fn=loss)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), params[name], rtol=1e-9, atol=1e-10)


def test_a_closure_of_another_optimizer_is_no_part_of_the_graph():
    from torch._dynamo.utils import counters

    model, x, y = problem()
    optimizer = StatefulOptimizer(model.parameters(), fo.adamw(), compile={"backend": "eager"})

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    counters.clear()
    losses = [float(optimizer.step(closure).detach()) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert counters["stats"]["unique_graphs"] == 1


def test_a_closure_has_to_return_its_loss():
    model, x, y = problem()
    optimizer = StatefulOptimizer(model.parameters(), TX[1])
    answers: list[Any] = [nn.functional.mse_loss(model(x), y), None]

    def closure() -> Any:
        nn.functional.mse_loss(model(x), y).backward()
        return answers.pop(0)

    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TypeError, match="the closure must return its loss, got a NoneType"):
        optimizer.step(closure)
    assert all(torch.equal(p.detach(), b) for p, b in zip(model.parameters(), before, strict=True))


def test_packed_parameters_and_flatten_hand_the_loss_its_own_tree():
    loss = lambda p: rosenbrock(p["x"]) + (p["y"] ** 2).sum()
    params: Any = {"x": START, "y": START[:2].clone()}
    tx = fo.lbfgs(memory_size=3)
    want, got = params, params
    state, flat_state = tx.init(params), fo.flatten(tx).init(params)
    for _ in range(4):
        want, state = tx.update(torch.func.grad(loss)(want), state, want, value_fn=loss)
        got, flat_state = fo.flatten(tx).update(torch.func.grad(loss)(got), flat_state, got, value_fn=loss)
    for name, leaf in want.items():
        torch.testing.assert_close(got[name], leaf, rtol=1e-9, atol=1e-10)


def test_members_of_a_sweep_search_for_themselves():
    x, y = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)), torch.ones(16)
    params = {"w": torch.zeros(3)}
    loss = lambda p, batch: (batch[0] @ p["w"] - batch[1]).square().mean()
    tx = fo.lbfgs(memory_size=2, linesearch=fo.scale_by_zoom_linesearch(max_linesearch_steps=3))
    result = fo.sweep(loss, params, tx, {"lr": fo.grid([0.9, 1.0])}, [(x, y)] * 9, steps=9, compile=False)
    best = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(result.all_params["w"], best.expand(2, 3), rtol=1e-3, atol=1e-3)


def test_errors():
    with pytest.raises(ValueError, match="memory_size must be 1 or more, got 0"):
        fo.lbfgs(memory_size=0)
    with pytest.raises(ValueError, match="form must be 'optax' or 'torch', got 'paper'"):
        fo.lbfgs(form="paper")
    with pytest.raises(ValueError, match=r"method must be one of .*'dai_yuan'.*, got 'newton'"):
        fo.nonlinear_cg(method="newton")
    tx, p = fo.scale_by_conjugate_gradient({"a": 0.1, "b": 0.2}), {"a": START, "b": START}
    with pytest.raises(ValueError, match="its hypers are the same for all leaves, expected numbers"):
        tx.transform(p, tx.init(p), p)
