"""GaLore: what it keeps, what it projects, and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import functopt as fo
from functopt import tree


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PARAMS = {"tall": matrix(6, 4), "wide": matrix(3, 7), "square": matrix(4, 4), "bias": matrix(4)}


def grads(seed: int) -> dict[str, torch.Tensor]:
    return {name: matrix(*p.shape, seed=100 * seed + i) for i, (name, p) in enumerate(PARAMS.items())}


@pytest.mark.parametrize("side", ["longer", "shorter"])
def test_an_update_is_the_projection(side: str):
    """With a base that changes nothing, the update is the gradient's best approximation of that rank."""
    tx = fo.scale_by_galore(fo.identity(), scale=0.5, rank=2, side=side)
    g = grads(0)
    got, state = tx.transform(g, tx.init(PARAMS), PARAMS)
    for name in ("tall", "wide", "square"):
        u, s, vh = torch.linalg.svd(g[name], full_matrices=False)
        torch.testing.assert_close(got[name], 0.5 * (u[:, :2] * s[:2]) @ vh[:2])
    assert torch.equal(got["bias"], g["bias"])
    projected = {"longer": (6, 7, 4), "shorter": (4, 3, 4)}[side]
    assert tuple(state.projector[name].shape[0] for name in ("tall", "wide", "square")) == projected
    assert state.projector["bias"] == ()


def test_the_state_is_small():
    moments = fo.scale_by_galore(rank=2).init(PARAMS).inner.mu.total
    assert {name: tuple(leaf.shape) for name, leaf in moments.items()} == {
        "tall": (2, 4), "wide": (2, 3), "square": (2, 4), "bias": (4,),
    }  # fmt: skip


def test_of_two_equal_axes_the_sides_are_different_ones():
    a, b = (fo.scale_by_galore(fo.sign_sgd(1.0), rank=1, side=side) for side in ("longer", "shorter"))
    g = {"w": PARAMS["square"]}
    u, v = (tx.transform(g, tx.init(g), g)[0]["w"] for tx in (a, b))
    rows, columns = torch.linalg.svd(g["w"])[0][:, 0], torch.linalg.svd(g["w"])[2][0]
    for got, basis in ((u, rows), (v.mT, columns)):
        torch.testing.assert_close((got.mT @ basis).abs(), torch.ones(4, dtype=torch.float64))


def test_the_basis_stays_between_decompositions_and_keeps_its_sign():
    tx = fo.scale_by_galore(update_proj_gap=3, rank=2)
    state, before = tx.init(PARAMS), None
    for step in range(7):
        # the same gradient turned around: as a decomposition, the same one up to signs
        g = grads(0) if step < 3 else {name: -x for name, x in grads(0).items()}
        noisy = {name: x + 1e-3 * grads(step)[name] for name, x in g.items()}
        _, state = tx.transform(noisy, state, PARAMS)
        now = state.projector["tall"]
        if before is not None:
            assert torch.equal(now, before) == (step % 3 != 0)
            assert ((now * before).sum(0) > 0.99).all()
        before = now


def test_refresh_at_the_right_steps_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    tx, calls, svd = fo.galore(0.1, 3, rank=2), [], torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(1) or svd(*a, **k))
    always, told = (PARAMS, tx.init(PARAMS)), (PARAMS, tx.init(PARAMS))
    for step in range(7):
        always = tx.update(grads(step), always[1], always[0])
        before = len(calls)
        told = tx.update(grads(step), told[1], told[0], refresh=step % 3 == 0)
        assert (len(calls) > before) == (step % 3 == 0)
    for a, b in zip(tree.leaves(always), tree.leaves(told), strict=True):
        assert torch.equal(a, b)


def test_full_rank_turns_back_what_it_turned():
    tx = fo.scale_by_galore(fo.trace(0.9), rank=10)
    plain = fo.trace(0.9)
    state, other = tx.init(PARAMS), plain.init(PARAMS)
    got = want = PARAMS
    for step in range(3):
        g = grads(step)
        got, state = tx.transform(g, state, PARAMS)
        want, other = plain.transform(g, other, PARAMS)
    # projected on the shorter side's worth of vectors: all that the first gradient spans, which is everything there
    torch.testing.assert_close(got["square"], want["square"])


def test_the_base_sees_projected_parameters():
    tx = fo.scale_by_galore(fo.add_decayed_weights(1.0), rank=1)
    zero = {name: torch.zeros_like(p) for name, p in PARAMS.items()}
    _, state = tx.transform(grads(0), tx.init(PARAMS), PARAMS)
    got, _ = tx.transform(zero, state, PARAMS)
    p = state.projector["tall"]
    torch.testing.assert_close(got["tall"], p @ p.mT @ PARAMS["tall"])


def test_a_stack_is_its_matrices():
    stacked = {"w": matrix(3, 5, 2)}
    tx = fo.scale_by_galore(rank=1, weight_dimension_numbers=fo.GaLoreDimensionNumbers(1, 2))
    got = tx.transform(stacked, tx.init(stacked), stacked)[0]["w"]
    for i in range(3):
        alone = {"w": stacked["w"][i]}
        single = fo.scale_by_galore(rank=1)
        torch.testing.assert_close(got[i], single.transform(alone, single.init(alone), alone)[0]["w"])


def test_a_gradient_that_is_not_finite_is_seen_and_not_raised():
    tx = fo.galore(0.1, rank=2)
    bad = {**grads(0), "tall": torch.full_like(PARAMS["tall"], float("nan"))}
    new, _ = tx.update(bad, tx.init(PARAMS), PARAMS)
    assert new["tall"].isnan().all()
    assert new["wide"].isfinite().all()


def test_errors():
    with pytest.raises(ValueError, match="scale_by_galore: rank must be positive, got 0"):
        fo.galore(rank=0)
    with pytest.raises(ValueError, match="scale_by_galore: side must be one of"):
        fo.galore(side="left")
    with pytest.raises(TypeError, match=r"scale_by_galore: base_optimizer is .*, expected a Transform with updates"):
        fo.scale_by_galore(fo.lookahead(fo.sgd()))
    with pytest.raises(TypeError, match="expected a Transform"):
        fo.scale_by_galore(fo.scale_by_adam)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="scale_by_galore has a hyper 'update_proj_gap' too"):
        fo.scale_by_galore(fo.scale_by_galore())
    other: Any = fo.adam().init(PARAMS)
    with pytest.raises(ValueError, match="scale_by_galore: the state belongs to another optimizer"):
        fo.scale_by_galore().transform(grads(0), other, PARAMS)
