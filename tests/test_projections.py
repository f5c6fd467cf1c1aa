"""Projections: the nearest point of the set, its derivative, and parameters that stay in the set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import functopt as fo
from functopt import tree

A = {"x": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), "y": torch.tensor(3.0, dtype=torch.float64)}
# Each with a point of the set made from any point, and whether the set is convex.
SETS: dict[str, tuple[Any, Any, bool]] = {
    "non_negative": (fo.projection_non_negative, lambda v: v.abs(), True),
    "box": (lambda p: fo.projection_box(p, -0.5, 0.7), lambda v: v.clamp(-0.5, 0.7), True),
    "hypercube": (lambda p: fo.projection_hypercube(p, 0.7), lambda v: v.clamp(0, 0.7), True),
    "linf_ball": (lambda p: fo.projection_linf_ball(p, 0.7), lambda v: v.clamp(-0.7, 0.7), True),
    "simplex": (lambda p: fo.projection_simplex(p, 2.0), lambda v: 2 * v.abs() / v.abs().sum(), True),
    "l1_sphere": (lambda p: fo.projection_l1_sphere(p, 2.0), lambda v: 2 * v / v.abs().sum(), False),
    "l1_ball": (lambda p: fo.projection_l1_ball(p, 2.0), lambda v: v / max(1.0, v.abs().sum() / 2), True),
    "l2_sphere": (lambda p: fo.projection_l2_sphere(p, 1.5), lambda v: 1.5 * v / v.norm(), False),
    "l2_ball": (lambda p: fo.projection_l2_ball(p, 1.5), lambda v: v / max(1.0, v.norm() / 1.5), True),
    "vector": (lambda p: fo.projection_vector(p, A), lambda v: v[0] * flat(A), True),
    "hyperplane": (
        lambda p: fo.projection_hyperplane(p, A, 0.5),
        lambda v: v + (0.5 - v @ flat(A)) / (flat(A) @ flat(A)) * flat(A),
        True,
    ),
    "halfspace": (
        lambda p: fo.projection_halfspace(p, A, 0.5),
        lambda v: v - (v @ flat(A) - 0.5).clamp_min(0) / (flat(A) @ flat(A)) * flat(A),
        True,
    ),
}
every_set = pytest.mark.parametrize("name", SETS)


def flat(values: Any) -> torch.Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in tree.leaves(values)])


def point(seed: int) -> Any:
    draw = np.random.default_rng(seed)
    return {
        "x": torch.from_numpy(1.5 * draw.standard_normal(3)),
        "y": torch.tensor(1.5 * draw.standard_normal(), dtype=torch.float64),
    }


@every_set
def test_nothing_in_the_set_is_nearer(name: str):
    project, member, _ = SETS[name]
    for seed in range(5):
        x = point(seed)
        p = project(x)
        # it is in the set, and stays where it is
        torch.testing.assert_close(flat(project(p)), flat(p), rtol=1e-12, atol=1e-14)
        near = (flat(p) - flat(x)).norm()
        for other in range(100, 200):
            inside = member(flat(point(other)))
            assert near <= (inside - flat(x)).norm() + 1e-12
            # and points beside it
            beside = member(flat(p) + 0.01 * flat(point(other)))
            assert near <= (beside - flat(x)).norm() + 1e-12


@every_set
def test_members_of_the_set_stay(name: str):
    project, member, _ = SETS[name]
    for seed in range(5):
        inside = member(flat(point(seed)))
        got = project({"x": inside[:3], "y": inside[3]})
        torch.testing.assert_close(flat(got), inside, rtol=1e-12, atol=1e-14)


@every_set
def test_derivatives_and_members(name: str):
    project = SETS[name][0]
    x, y = point(1)["x"], point(1)["y"]
    both = lambda x, y: tuple(tree.leaves(project({"x": x, "y": y})))
    assert torch.autograd.gradcheck(both, (x.requires_grad_(), y.requires_grad_()))
    points = [point(seed) for seed in range(4)]
    batched = torch.func.vmap(project)(tree.stack(points))
    for i, one in enumerate(points):
        torch.testing.assert_close(flat(tree.member(batched, i)), flat(project(one)), rtol=1e-12, atol=1e-14)


@every_set
def test_packed_and_in_low_precision(name: str):
    project = SETS[name][0]
    x = point(2)
    if name not in ("vector", "hyperplane", "halfspace"):  # whose vector would have to be packed too
        packed = tree.unpack(project(tree.pack(x)))
        torch.testing.assert_close(flat(packed), flat(project(x)), rtol=1e-12, atol=1e-14)
    low = project(tree.map(lambda leaf: leaf.to(torch.bfloat16), x))
    assert {leaf.dtype for leaf in tree.leaves(low)} == {torch.bfloat16}
    torch.testing.assert_close(flat(low).double(), flat(project(x)), rtol=0.02, atol=0.02)  # 8 bits


def test_zeros_have_a_place_on_the_ball_but_not_on_the_sphere():
    zeros = {"x": torch.zeros(3, dtype=torch.float64, requires_grad=True)}
    ball, sphere = fo.projection_l2_ball(zeros), fo.projection_l2_sphere(zeros)
    assert flat(ball).abs().sum() == 0
    assert flat(sphere).abs().sum() == 0  # 0/0 elsewhere
    (slope,) = torch.autograd.grad(flat(ball).sum(), zeros["x"])
    assert slope.isfinite().all()


# Parameters in a set


def test_descent_ends_at_the_nearest_point_of_the_set():
    target = point(3)
    for name in ("simplex", "l1_ball", "l2_ball", "box"):
        tx = fo.projected(fo.sgd(0.3), SETS[name][0])
        params = point(4)
        state = tx.init(params)
        for _ in range(200):
            params, state = tx.update(tree.map(lambda p, t: p - t, params, target), state, params)
        torch.testing.assert_close(flat(params), flat(SETS[name][0](target)), rtol=1e-8, atol=1e-9)


def test_settings_are_hypers_and_tensors_with_dimensions_are_constants():
    tx = fo.projected(fo.sgd(0.1), fo.projection_hyperplane, a=A, b=fo.linear_schedule(0.0, 1.0, 4))
    assert set(tx.hypers) - set(fo.sgd().hypers) == {"b"}
    params = point(0)
    state = tx.init(params)
    for step in range(5):
        params, state = tx.update(params, state, params)
        assert float(flat(params) @ flat(A)) == pytest.approx(step / 4, abs=1e-12)
    scales = torch.tensor([0.5, 2.0], dtype=torch.float64)
    ball = fo.projected(fo.sgd(0.1), fo.projection_l2_sphere, scale=1.0)
    one = point(5)
    swept = torch.func.vmap(lambda scale: ball.update(one, ball.init(one), one, {"scale": scale})[0])(scales)
    for i, scale in enumerate(scales):
        torch.testing.assert_close(flat(tree.member(swept, i)).norm(), scale)
    assert ball.with_hypers(scale=3.0, lr=0.2) == fo.projected(fo.sgd(0.2), fo.projection_l2_sphere, scale=3.0)


def test_what_cannot_be_projected():
    with pytest.raises(TypeError, match="projected: inner is a function"):
        fo.projected(fo.sgd, fo.projection_simplex)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="projection is a float"):
        fo.projected(fo.sgd(), 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="has a hyper 'lr' too; rename"):
        fo.projected(fo.sgd(), fo.projection_box, lr=1.0)
    with pytest.raises(TypeError, match="projected writes the parameters itself"):
        fo.projected(fo.sgd(), fo.projection_simplex).transform(point(0), (), point(0))
    with pytest.raises(ValueError, match="nothing can stand after it"):
        fo.chain(fo.projected(fo.sgd(), fo.projection_simplex), fo.clip(1.0))


def test_a_projection_of_ones_own_runs_on_leaves_as_they_are():
    def rows_sum_to_one(params: Any) -> Any:
        return tree.map(lambda p: p - (p.sum(-1, keepdim=True) - 1) / p.shape[-1], params)

    tx = fo.projected(fo.sgd(0.1), rows_sum_to_one)
    assert not tx.layout_invariant
    weights = torch.arange(6.0).view(2, 3)
    new, _ = tx.update(weights, tx.init(weights), weights)
    torch.testing.assert_close(new.sum(-1), torch.ones(2))
