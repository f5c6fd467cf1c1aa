"""reduce_on_plateau: against torch's scheduler, and what it says when it is used wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import functopt as fo
from functopt import tree

values = st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=25)
PARAMS = {"w": torch.ones(2, dtype=torch.float64)}


def scales(tx: fo.Transform, given: list[Any], params: Any = PARAMS) -> list[float]:
    state, out = tx.init(params), []
    for value in given:
        updates, state = tx.transform(params, state, params, value=value)
        out.append(updates["w"][0].item())
    return out


def theirs(given: list[float], **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    out = []
    for value in given:
        scheduler.step(value)
        out.append(optimizer.param_groups[0]["lr"])
    return out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    values,
    st.sampled_from(["min", "max"]),
    st.sampled_from(["rel", "abs"]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.floats(0.0, 0.5),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([0.0, 0.1]),
)
def test_it_is_torchs_scheduler(
    given: list[float], mode: Any, kind: Any, patience: int, cooldown: int, threshold: float, low: float, least: float
):
    want = theirs(
        given,
        mode=mode,
        factor=0.5,
        patience=patience,
        threshold=threshold,
        threshold_mode=kind,
        cooldown=cooldown,
        min_lr=low,
        eps=least,
    )
    rtol, atol = (threshold, 0.0) if kind == "rel" else (0.0, threshold)
    ours = fo.reduce_on_plateau(0.5, patience + 1, rtol, atol, cooldown, 1, low, least, mode=mode)
    assert scales(ours, given) == pytest.approx(want, rel=1e-12)


def test_values_are_averaged():
    tx = fo.reduce_on_plateau(0.5, 1, accumulation_size=3)
    # means 2, 2, 1, 1; a scale holds from the last value of a mean on
    assert scales(tx, [1.0, 2, 3, 3, 2, 1, 1, 1, 1, 0, 1, 2]) == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_each_group_has_its_own_scale():
    params = {"w": torch.ones(1), "v": torch.ones(1)}
    tx = fo.reduce_on_plateau({"w": 0.5, "v": 0.1}, 1, min_scale={"w": 0.3, "v": 0.0})
    updates, state = params, tx.init(params)
    for _ in range(3):
        updates, state = tx.transform(params, state, params, value=1.0)
    assert tree.map(lambda u: round(u.item(), 6), updates) == {"w": 0.3, "v": 0.01}


def test_members_have_their_own_scale():
    tx, losses = fo.reduce_on_plateau(0.5, 1), torch.tensor([[1.0, 1.0], [1.0, 0.5]])
    updates, state = PARAMS, tree.replicate(tx.init(PARAMS), 2)
    for value in losses:
        updates, state = torch.func.vmap(lambda s, v: tx.transform(PARAMS, s, PARAMS, value=v))(state, value)
    assert updates["w"][:, 0].tolist() == [0.5, 1.0]


def test_the_scale_has_a_derivative():
    def after(factor: torch.Tensor) -> torch.Tensor:
        tx = fo.reduce_on_plateau(patience=1)
        updates, state = PARAMS, tx.init(PARAMS)
        for _ in range(3):
            updates, state = tx.transform(PARAMS, state, PARAMS, {"factor": factor}, value=1.0)
        return updates["w"][0]

    assert torch.func.grad(after)(torch.tensor(0.5, dtype=torch.float64)).item() == pytest.approx(1.0)  # of factor²


def test_nan_is_no_improvement():
    assert scales(fo.reduce_on_plateau(0.5, 2), [1.0, float("nan"), float("nan")]) == [1, 1, 0.5]


def test_it_trains_in_a_stateful_optimizer():
    param = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = fo.StatefulOptimizer([param], fo.chain(fo.sgd(0.1), fo.reduce_on_plateau(0.5, 1)))
    for _ in range(3):
        param.grad = torch.ones_like(param)
        optimizer.step(value=torch.tensor(1.0))
    assert param.tolist() == pytest.approx([1 - 0.1 * (1 + 0.5 + 0.25)] * 2)


def test_it_says_what_is_wrong():
    with pytest.raises(ValueError, match=r"reduce_on_plateau: mode must be one of .*, got 'least'"):
        fo.reduce_on_plateau(mode="least")
    for factor in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"reduce_on_plateau: factor must be between 0 and 1, got {factor}"):
            fo.reduce_on_plateau(factor)
    with pytest.raises(ValueError, match=r"reduce_on_plateau: patience must be in \[1, inf\], got 0"):
        fo.reduce_on_plateau(patience=0)
    with pytest.raises(TypeError, match="reduce_on_plateau needs the extra 'value'"):
        fo.reduce_on_plateau().update(PARAMS, fo.reduce_on_plateau().init(PARAMS), PARAMS)
