"""Adafactor's links: what the state holds, which axes, where the floors are, and the step sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from registry import make_grads, run
from torch import Tensor

import functopt as fo
from functopt import tree


def shapes(piece: Any) -> Any:
    return {name: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for name, leaf in piece.items()}


SOME: dict[str, tuple[int, ...]] = {"gain": (), "bias": (200,), "tall": (300, 7), "kernel": (150, 3, 3, 130)}


def zeros(sizes: dict[str, tuple[int, ...]] = SOME, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.zeros(shape, dtype=dtype) for name, shape in sizes.items()}


def test_the_state_is_rows_and_columns():
    _, nu = fo.scale_by_factored_rms().init(zeros())
    assert shapes(nu.row) == {"gain": (), "bias": (), "tall": (), "kernel": (1, 3, 3, 130)}
    assert shapes(nu.column) == {"gain": (), "bias": (), "tall": (), "kernel": (150, 3, 3, 1)}
    assert shapes(nu.full) == {"gain": (), "bias": (200,), "tall": (300, 7), "kernel": ()}
    assert nu.row["gain"] == ()
    assert isinstance(nu.full["gain"], Tensor)


def test_the_last_axes():
    _, nu = fo.scale_by_factored_rms(axes="last", min_dim_size_to_factor=7).init(zeros())
    assert shapes(nu.row) == {"gain": (), "bias": (), "tall": (300, 1), "kernel": ()}
    assert shapes(nu.column) == {"gain": (), "bias": (), "tall": (1, 7), "kernel": ()}
    assert shapes(nu.full)["kernel"] == SOME["kernel"]


def test_a_rank_one_square_is_estimated_exactly():
    generator = torch.Generator().manual_seed(0)
    row, column = (torch.rand(n, generator=generator, dtype=torch.float64) + 0.1 for n in (5, 4))
    grads = {"w": torch.outer(row, column)}
    tx = fo.scale_by_factored_rms(min_dim_size_to_factor=2)
    updates, _ = tx.transform(grads, tx.init(grads), grads)
    torch.testing.assert_close(updates["w"], torch.ones(5, 4, dtype=torch.float64), rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("floor", [False, True])
def test_tiny_and_vanishing_gradients_give_finite_updates(floor: bool):
    """The product of a small row and a small column is no float32, and rows may be zero."""
    tx = fo.scale_by_factored_rms(eps=0.0 if floor else 1e-30, min_dim_size_to_factor=2, eps_as_floor=floor)
    grads = {"w": torch.full((4, 3), 1e-13), "b": torch.zeros(3), "half": torch.ones(4, 3)}
    grads["half"][1:, 1:] = 0.0
    updates, state = tx.transform(grads, tx.init(grads), grads)
    for _, leaf in tree.leaves_with_paths((updates, state)):
        assert leaf.isfinite().all()
    assert torch.equal(updates["b"], grads["b"])
    # squares of 1e-26 beside 1e-30 give back gradients of one; a floor of 1.2e-7 leaves them small
    want = 1e-13 / torch.finfo(torch.float32).eps if floor else 1 / math.sqrt(1 + 1e-4)
    torch.testing.assert_close(updates["w"], torch.full((4, 3), want), rtol=1e-5, atol=0.0)


def test_an_eps_of_zero_is_the_precision_of_the_dtype():
    for dtype, precision in ((torch.float32, 2**-23), (torch.float64, 2**-52), (torch.bfloat16, 2**-23)):
        grads = {"b": torch.full((3,), precision / 8, dtype=dtype), "w": torch.full((3, 2), precision / 8, dtype=dtype)}
        for eps in (0.0, torch.tensor(0.0)):
            tx = fo.scale_by_factored_rms(eps_as_floor=True, min_dim_size_to_factor=1)
            updates, _ = tx.transform(grads, tx.init(grads), grads, {"eps": eps})
            for leaf in updates.values():
                # below the floor it is the floor that divides
                torch.testing.assert_close(leaf.double(), torch.full_like(leaf, 0.125).double(), rtol=1e-5, atol=0.0)


def test_without_a_floor_zero_is_zero():
    tx, grads = fo.scale_by_factored_rms(eps=0.0), {"b": torch.tensor([0.0, 1e-12])}
    updates, _ = tx.transform(grads, tx.init(grads), grads)
    torch.testing.assert_close(updates["b"], torch.tensor([0.0, 1.0]))


def test_moments_of_low_precision_are_kept_in_float32():
    tx = fo.adafactor()
    _, state = run(
        tx, zeros({"w": (4, 3), "b": (3,)}, torch.bfloat16), [zeros({"w": (4, 3), "b": (3,)}, torch.bfloat16)]
    )
    assert {leaf.dtype for leaf in tree.leaves(tree.get(state, "nu"))} == {torch.float32}


def test_an_offset_counts_from_there():
    """Up to the offset every step is the first; then the memory grows as if training began there."""
    grads = [step["body"] for step in make_grads()]
    params = tree.map(torch.zeros_like, grads[0])
    tx = fo.scale_by_factored_rms(min_dim_size_to_factor=2)
    state, late = tx.init(params), tx.init(params)
    for step in grads[:4]:
        _, late = tx.transform(step, late, params, {"step_offset": 3})
    _, state = tx.transform(grads[3], state, params)
    for a, b in zip(tree.leaves(state.nu), tree.leaves(late.nu), strict=True):
        assert torch.equal(a, b)


def test_relative_step_is_the_smaller_of_two():
    tx = fo.chain(fo.scale_by_relative_step(0.4), fo.scale_by_lr(0.4, flip_sign=False))
    ones = {"w": torch.ones(2, dtype=torch.float64)}
    state = tx.init(ones)
    for t in range(1, 20):
        updates, state = tx.transform(ones, state, ones)
        want = torch.full((2,), min(0.4, 1 / math.sqrt(t)), dtype=torch.float64)
        torch.testing.assert_close(updates["w"], want, rtol=1e-15, atol=0.0)


def test_clipping_leaves_small_blocks_alone():
    updates = {"small": torch.full((3,), 0.5), "large": torch.tensor([3.0, -4.0, 0.0, 0.0])}
    clipped, _ = fo.clip_by_block_rms(1.0).transform(updates, (), updates)
    assert torch.equal(clipped["small"], updates["small"])
    torch.testing.assert_close(clipped["large"], updates["large"] / 2.5)  # its root mean square
    free, _ = fo.clip_by_block_rms(math.inf).transform(updates, (), updates)
    assert torch.equal(free["large"], updates["large"])


def test_stateful_optimizer_leaves_out_a_parameter_without_a_gradient():
    """The state of a parameter may be empty in places; taking it apart and putting it together must not mind."""
    model = torch.nn.Linear(3, 2)
    optimizer = fo.StatefulOptimizer(model.named_parameters(), fo.adafactor(), lr=0.1)
    before = model.bias.detach().clone()
    for _ in range(2):
        model.weight.grad = torch.ones(2, 3)
        optimizer.step()
    assert torch.equal(model.bias, before)
    model.bias.grad = torch.ones(2)
    optimizer.step()
    assert not torch.equal(model.bias, before)
    again = fo.StatefulOptimizer(model.named_parameters(), fo.adafactor(), lr=0.1)
    again.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fo.adafactor(form="paper"), "adafactor: form must be 'torch' or 'optax', got 'paper'"),
        (lambda: fo.scale_by_factored_rms(axes="first"), "scale_by_factored_rms: axes must be one of"),
    ],
)
def test_another_option_is_refused(make: Any, said: str):
    with pytest.raises(ValueError, match=said):
        make()
