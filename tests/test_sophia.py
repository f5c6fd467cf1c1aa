"""Sophia and Hutchinson's estimate: the curvature that they find, and how they use it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functopt as fo
from functopt import tree
from functopt.random import rademacher_like

H = torch.tensor([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 3.0]], dtype=torch.float64)
PARAMS = {"a": torch.tensor([1.0, -1.0], dtype=torch.float64), "b": torch.tensor(0.5, dtype=torch.float64)}


def loss(params: Any) -> torch.Tensor:
    x = torch.cat([params["a"], params["b"].reshape(1)])
    return x @ H @ x / 2


GRADS = torch.func.grad(loss)(PARAMS)


def estimate(seed: float | torch.Tensor, calls: int = 1) -> list[torch.Tensor]:
    tx = fo.hutchinson_estimator_diag_hessian(seed)
    state, out = tx.init(PARAMS), []
    for _ in range(calls):
        found, state = tx.transform(GRADS, state, PARAMS, value_fn=loss)
        out.append(torch.cat([found["a"], found["b"].reshape(1)]))
    return out


def test_the_estimate_is_that_of_its_signs():
    for step, found in enumerate(estimate(7, 4)):
        signs = rademacher_like(PARAMS, 7, torch.tensor(step), salt="hutchinson")
        r = torch.cat([signs["a"], signs["b"].reshape(1)])
        torch.testing.assert_close(found, r * (H @ r), rtol=1e-14, atol=1e-14)


def test_a_loss_may_know_the_product_itself():
    def own(params: Any) -> torch.Tensor:
        raise AssertionError("not to be evaluated")

    own.hessian_vector_product = lambda params, v: tree.map(lambda x: 3.0 * x, v)  # pyright: ignore
    tx = fo.hutchinson_estimator_diag_hessian()
    found, _ = tx.transform(GRADS, tx.init(PARAMS), PARAMS, value_fn=own)
    assert all(torch.equal(leaf, torch.full_like(leaf, 3.0)) for leaf in tree.leaves(found))


def test_the_mean_estimate_is_the_diagonal():
    found = torch.stack(estimate(0, 400))
    # the variance of an entry is the sum of the squares of its row without the diagonal; four standard errors
    spread = (H.square().sum(1) - H.diagonal().square()).sqrt()
    assert ((found.mean(0) - H.diagonal()).abs() < 4 * spread / 400**0.5).all()
    torch.testing.assert_close(found.var(0, correction=0), spread.square(), rtol=0.15, atol=0)


def test_members_and_steps_have_their_own_signs():
    assert len({tuple(found.tolist()) for found in estimate(0, 8)}) > 1
    members = torch.func.vmap(lambda seed: torch.stack(estimate(seed, 8)))(torch.arange(4.0))
    assert len({tuple(m.flatten().tolist()) for m in members}) == 4
    # a batched product may add in another order
    torch.testing.assert_close(members[2], torch.stack(estimate(2, 8)), rtol=1e-14, atol=1e-14)


def test_obj_fn_is_taken_too_and_nothing_is_an_error():
    tx = fo.hutchinson_estimator_diag_hessian()
    a, b = (tx.transform(GRADS, tx.init(PARAMS), PARAMS, None, **{name: loss})[0] for name in ("value_fn", "obj_fn"))
    assert all(torch.equal(a[name], b[name]) for name in PARAMS)
    with pytest.raises(TypeError, match="hutchinson_estimator_diag_hessian needs the extra 'value_fn'"):
        fo.sophia().update(GRADS, fo.sophia().init(PARAMS), PARAMS)


@fo.link(scope="element")
def exact_diagonal() -> Any:
    def transform(updates, state, params):
        return {"a": H.diagonal()[:2], "b": H[2, 2]}, state

    return transform


def test_formula():
    tx = fo.sophia(
        0.1, 0.8, 0.6, 1e-3, 0.05, gamma=0.7, clip_threshold=0.9, update_interval=2,
        hessian_diagonal_fn=exact_diagonal(),
    )  # fmt: skip
    params, state = PARAMS, tx.init(PARAMS)
    p = torch.cat([PARAMS["a"], PARAMS["b"].reshape(1)])
    m = h = torch.zeros(3, dtype=torch.float64)
    for t in range(1, 8):
        g = H @ p
        m = 0.8 * m + 0.2 * g
        u = (m / (1 - 0.8**t) / (0.7 * h).clamp_min(1e-3)).clamp(-0.9, 0.9)
        p = p - 0.1 * (u + 0.05 * p)
        if (t - 1) % 2 == 0:
            h = 0.6 * h + 0.4 * H.diagonal()
        params, state = tx.update(torch.func.grad(loss)(params), state, params)
        torch.testing.assert_close(torch.cat([params["a"], params["b"].reshape(1)]), p, rtol=1e-13, atol=1e-13)


def test_without_a_threshold_nothing_is_clipped():
    tx = fo.scale_by_sophia(exact_diagonal(), beta1=0.0, beta2=0.0, gamma=1.0, clip_threshold=float("inf"))
    _, state = tx.transform(GRADS, tx.init(PARAMS), PARAMS)
    got, _ = tx.transform(GRADS, state, PARAMS)
    torch.testing.assert_close(got["b"], GRADS["b"] / H[2, 2])


def test_refresh_says_which_steps_look_at_the_loss():
    calls: list[int] = []

    def counted(params: Any) -> torch.Tensor:
        calls.append(1)
        return loss(params)

    tx = fo.sophia(0.1, update_interval=3, hessian_diagonal_fn=fo.hutchinson_estimator_diag_hessian(5))
    params, state = PARAMS, tx.init(PARAMS)
    for step in range(7):
        before = len(calls)
        params, state = tx.update(GRADS, state, params, value_fn=counted, refresh=step % 3 == 0)
        assert (len(calls) > before) == (step % 3 == 0)
    assert tree.get(state, "hessian_fn_state.count") == 3  # one estimate each, and its own random numbers


def test_with_an_exact_estimate_refresh_changes_nothing():
    tx = fo.sophia(0.1, update_interval=3, hessian_diagonal_fn=exact_diagonal())
    always, told = (PARAMS, tx.init(PARAMS)), (PARAMS, tx.init(PARAMS))
    for step in range(7):
        grads = torch.func.grad(loss)(always[0])
        always, told = (
            tx.update(grads, always[1], always[0]),
            tx.update(grads, told[1], told[0], refresh=step % 3 == 0),
        )
    for a, b in zip(tree.leaves(always), tree.leaves(told), strict=True):
        assert torch.equal(a, b)


def test_it_follows_curvature_to_the_minimum():
    """A valley a thousand times steeper on one side: with the curvature, all coordinates arrive together."""
    scale = torch.tensor([1000.0, 1.0], dtype=torch.float64)
    valley = lambda p: (scale * p.square()).sum() / 2
    tx = fo.sophia(0.05, weight_decay=0.0, gamma=1.0, beta1=0.5)
    params = torch.tensor([1.0, 1.0], dtype=torch.float64)
    state = tx.init(params)
    for _ in range(200):
        params, state = tx.update(torch.func.grad(valley)(params), state, params, value_fn=valley)
    assert (params.abs() < 1e-2).all()


def test_errors():
    with pytest.raises(TypeError, match=r"scale_by_sophia: hessian_diagonal_fn is .*, expected a Transform"):
        fo.scale_by_sophia(fo.scale_by_adam)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="scale_by_sophia: scale_by_adam has a hyper 'beta1' too"):
        fo.scale_by_sophia(fo.scale_by_adam())
    with pytest.raises(ValueError, match="scale_by_sophia: the state belongs to another optimizer"):
        fo.scale_by_sophia().transform(GRADS, fo.adam().init(PARAMS), PARAMS, value_fn=loss)
