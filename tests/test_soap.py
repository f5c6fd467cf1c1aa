"""SOAP against the authors' program, written down again in numpy; and what its basis is for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import functopt as fo
from functopt import tree
from functopt.linalg import eigenvectors, orthonormal, singular_vectors

SHAPES = {"matrix": (4, 3), "tensor": (2, 3, 2), "vector": (3,), "number": ()}


def leaf(name: str, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, *name.encode()]).standard_normal(SHAPES[name])


class Reference:
    """The steps of one parameter, in the order of the authors' program (soap.py of their repository)."""

    def __init__(
        self, p: np.ndarray, frequency: int, max_dim: int, lr: float, b1: float, b2: float, eps: float
    ) -> None:
        self.p, self.frequency, self.lr, self.b1, self.b2, self.eps = p.copy(), frequency, lr, b1, b2, eps
        self.m, self.v, self.t = np.zeros_like(p), np.zeros_like(p), 0
        self.on = [p.ndim > 1 and n <= max_dim for n in p.shape]
        self.gg: list[Any] = [np.zeros((n, n)) for n in p.shape]
        self.q: list[Any] | None = None

    def rotate(self, x: np.ndarray, *, back: bool = False) -> np.ndarray:
        for axis, on in enumerate(self.on):
            if on:
                q = self.q[axis].T if back else self.q[axis]  # pyright: ignore[reportOptionalSubscript]
                x = np.moveaxis(np.tensordot(x, q, ([axis], [0])), -1, axis)
        return x

    def follow(self, g: np.ndarray) -> None:
        for axis, on in enumerate(self.on):
            if on:
                others = [i for i in range(g.ndim) if i != axis]
                self.gg[axis] = self.b2 * self.gg[axis] + (1 - self.b2) * np.tensordot(g, g, (others, others))
        if self.q is None:
            self.q = [np.linalg.eigh(a)[1][:, ::-1] if on else None for a, on in zip(self.gg, self.on, strict=True)]
        if self.t > 0 and self.t % self.frequency == 0:
            for axis, on in enumerate(self.on):
                if on:
                    a, q = self.gg[axis], self.q[axis]
                    order = np.argsort(-np.diag(q.T @ a @ q), kind="stable")
                    self.v = np.take(self.v, order, axis)
                    self.q[axis] = np.linalg.qr(a @ q[:, order])[0]

    def step(self, g: np.ndarray) -> None:
        if self.q is None:  # the first gradient makes the basis, and nothing else
            return self.follow(g)
        turned = self.rotate(g)
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * turned**2
        size = self.lr * np.sqrt(1 - self.b2**self.t) / (1 - self.b1**self.t)
        u = self.rotate(self.m) / (np.sqrt(self.v) + self.eps)
        self.p = self.p - size * self.rotate(u, back=True)
        return self.follow(g)


@pytest.mark.parametrize("max_dim", [10000, 3])
@pytest.mark.parametrize(("frequency", "eps"), [(1, 1e-8), (3, 1e-3), (10, 1e-8)])
def test_equals_the_authors_program(frequency: int, eps: float, max_dim: int):
    tx = fo.soap(0.05, 0.9, 0.8, eps, weight_decay=0.0, precondition_frequency=frequency, max_precond_dim=max_dim)
    params: Any = {name: torch.from_numpy(np.array(leaf(name, 0))) for name in SHAPES}
    theirs = {name: Reference(leaf(name, 0), frequency, max_dim, 0.05, 0.9, 0.8, eps) for name in SHAPES}
    state = tx.init(params)
    for step in range(25):
        params, state = tx.update(
            {name: torch.from_numpy(np.array(leaf(name, step + 1))) for name in SHAPES}, state, params
        )
        for name, reference in theirs.items():
            reference.step(leaf(name, step + 1))
            np.testing.assert_allclose(
                params[name].numpy(), reference.p, rtol=1e-9, atol=1e-10, err_msg=f"{name} {step}"
            )


def torch_leaves(seed: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(leaf(name, seed))) for name in SHAPES}


def test_the_decay_comes_after_the_step():
    params, grads = torch_leaves(0), torch_leaves(1)
    plain, decayed = fo.soap(0.1, weight_decay=0.0), fo.soap(0.1, weight_decay=0.5)
    a, state = plain.update(grads, plain.init(params), params)
    assert all(torch.equal(a[name], params[name]) for name in params)  # the first step only makes a basis
    a, _ = plain.update(grads, state, params)
    b, _ = decayed.update(grads, (*state[:2], ()), params)
    for name in params:
        torch.testing.assert_close(b[name], a[name] * (1 - 0.1 * 0.5), rtol=1e-13, atol=1e-13)


def test_refresh_at_the_right_steps_changes_nothing():
    tx, params = fo.soap(0.1, precondition_frequency=3), torch_leaves(0)
    always, told = (params, tx.init(params)), (params, tx.init(params))
    for step in range(8):
        always = tx.update(torch_leaves(step + 1), always[1], always[0])
        told = tx.update(torch_leaves(step + 1), told[1], told[0], refresh=step % 3 == 0)
    for a, b in zip(tree.leaves(always), tree.leaves(told), strict=True):
        assert torch.equal(a, b)


def test_refresh_says_which_steps_decompose(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    qr = torch.linalg.qr
    monkeypatch.setattr(torch.linalg, "qr", lambda a: calls.append(1) or qr(a))
    tx, params = fo.soap(), torch_leaves(0)
    state = tx.init(params)
    for step, wanted in enumerate([True, False, False, True, None]):
        before = len(calls)
        params, state = tx.update(torch_leaves(step), state, params, refresh=wanted)
        assert (len(calls) > before) == (wanted is not False)


def test_it_is_adam_where_the_basis_is_that_of_the_axes():
    """Of diagonal gradients the factors are diagonal, and a basis of signed unit vectors changes nothing for Adam."""
    params = {"w": torch.eye(3, dtype=torch.float64)}
    grads = [{"w": torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64) * (i + 1))} for i in range(6)]
    soap, adam = fo.soap(0.1, weight_decay=0.0, precondition_frequency=2), fo.adam(0.1, 0.95, 0.95)
    a, state = soap.update(grads[0], soap.init(params), params)
    b, adam_state = params, adam.init(params)
    for grad in grads[1:]:
        a, state = soap.update(grad, state, a)
        b, adam_state = adam.update(grad, adam_state, b)
    # eps is not divided by the bias correction in the authors' program
    torch.testing.assert_close(a["w"], b["w"], rtol=1e-7, atol=1e-7)


def test_turning_the_problem_turns_the_steps():
    """What Adam does not have: it does not matter in which basis the parameters are written."""
    turn = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3))))[0]
    tx = fo.scale_by_soap(precondition_frequency=1)
    state = turned_state = tx.init({"w": torch.zeros(3, 3, dtype=torch.float64)})
    params = {"w": torch.zeros(3, 3, dtype=torch.float64)}
    for step in range(6):
        g = torch.from_numpy(np.random.default_rng(step + 1).standard_normal((3, 3)))
        u, state = tx.transform({"w": g}, state, params)
        turned, turned_state = tx.transform({"w": turn @ g}, turned_state, params)
        torch.testing.assert_close(turned["w"], turn @ u["w"], rtol=1e-6, atol=1e-6)


def test_vectors_have_a_basis_only_if_asked():
    params = torch_leaves(0)
    without, with_one = (fo.scale_by_soap(precondition_1d=on).init(params).basis for on in (False, True))
    assert without["vector"] == ((),)
    assert with_one["vector"][0].shape == (3, 3)
    assert with_one["number"] == ()


# The bases


def test_bases_and_their_derivatives():
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((4, 3)))
    symmetric = x.mT @ x
    turn = torch.from_numpy(np.random.default_rng(4).standard_normal((3, 3)))
    for basis, at in (
        (eigenvectors, symmetric),
        (orthonormal, turn),
        (lambda x: singular_vectors(x, 2), x),
        (lambda x: singular_vectors(x, 3), x.mT),
    ):
        q = basis(at)
        torch.testing.assert_close(q.mT @ q, torch.eye(q.shape[-1], dtype=q.dtype), rtol=1e-12, atol=1e-12)
        direction = torch.from_numpy(np.random.default_rng(5).standard_normal(tuple(at.shape)))
        direction = direction + direction.mT if basis is eigenvectors else direction
        weights = torch.from_numpy(np.random.default_rng(6).standard_normal(tuple(q.shape)))
        along = lambda t, f=basis, x=at, d=direction, w=weights: (w * f(x + t * d)).sum()
        slope = torch.func.grad(along)(torch.zeros((), dtype=torch.float64))
        h = torch.tensor(1e-6, dtype=torch.float64)
        difference = (along(h) - along(-h)) / (2 * h)
        torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("basis", [eigenvectors, orthonormal, lambda x: singular_vectors(x, 2)])
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-30, float("nan"), float("inf")])
def test_derivatives_are_finite_where_values_coincide(basis: Any, value: float):
    at = torch.eye(3) * value if value == value and abs(value) < 2 else torch.full((3, 3), value)
    q = basis(at)
    assert q.isfinite().all() or not at.isfinite().all()
    slope = torch.func.grad(lambda x: basis(x).square().sum() + basis(x).sum())(at)
    assert slope.isfinite().all() or not at.isfinite().all()
