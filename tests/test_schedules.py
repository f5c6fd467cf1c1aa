"""Schedules: their values against optax's, their boundaries, and that they are data like every hyper."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optree
import pytest
import torch
from torch import Tensor

import functopt as fo
from functopt.schedules import cosine_restarts_schedule, flat_cosine_schedule, scaled_schedule, sgdr_schedule

DATA = Path(__file__).parent / "data"
ARRAYS = np.load(DATA / "optax.npz")
FACTS = json.loads((DATA / "optax.json").read_text())

OURS: dict[str, Any] = {
    "constant": fo.constant_schedule(0.3),
    "linear": fo.linear_schedule(0.1, 1.0, 10, transition_begin=3),
    "linear/down": fo.linear_schedule(1.0, 0.0, 20),
    "polynomial": fo.polynomial_schedule(1.0, 0.1, 2.0, 10, transition_begin=5),
    "polynomial/root": fo.polynomial_schedule(0.2, 1.0, 0.5, 20),
    "cosine_decay": fo.cosine_decay_schedule(0.5, 20),
    "cosine_decay/alpha": fo.cosine_decay_schedule(0.5, 20, alpha=0.1),
    "cosine_decay/exponent": fo.cosine_decay_schedule(0.5, 20, alpha=0.1, exponent=1.7),
    "exponential": fo.exponential_decay(0.5, 10, 0.3),
    "exponential/begin": fo.exponential_decay(0.5, 10, 0.3, transition_begin=5),
    "join": fo.join_schedules(
        [fo.linear_schedule(0.0, 1.0, 5), fo.cosine_decay_schedule(1.0, 10), fo.exponential_decay(0.3, 5, 0.5)], [5, 15]
    ),
    "onecycle": fo.cosine_onecycle_schedule(20, 0.4, pct_start=0.25, div_factor=10.0, final_div_factor=100.0),
    "onecycle/defaults": fo.cosine_onecycle_schedule(20, 0.4),
    "warmup_cosine": fo.warmup_cosine_decay_schedule(0.01, 0.1, 5, 25, 0.002),
    "warmup_cosine/exponent": fo.warmup_cosine_decay_schedule(0.0, 0.1, 10, 30, 0.01, exponent=2.0),
}
# Those that optax has not, or with other settings.
MORE: dict[str, Any] = {
    "cosine": fo.cosine_schedule(0.3, 0.6, 20),
    "power": fo.power_schedule(0.1, 0.9, 3.0, 20),
    "geometric": fo.exponential_schedule(1e-4, 1.0, 20),
    "flat_cosine": flat_cosine_schedule(0.3, 20, alpha=0.1),
    "restarts": cosine_restarts_schedule(0.3, 4, 2, end_value=0.01),
    "restarts/even": cosine_restarts_schedule(0.3, 4),
    "scaled": scaled_schedule(0.3, fo.cosine_schedule(1.0, 0.1, 20)),
    "sgdr": sgdr_schedule(
        [{"init_value": 0.1, "peak_value": p, "warmup_steps": 2, "decay_steps": 9} for p in (1, 0.5)]
    ),
    "join by fractions": fo.join([0.25, 0.75], [fo.linear_schedule(0.0, 1.0), fo.cosine_schedule(1.0, 0.1)], 20),
}

every_schedule = pytest.mark.parametrize("schedule", [*OURS.values(), *MORE.values()], ids=[*OURS, *MORE])


def value(schedule: Any, step: Any) -> float:
    return float(schedule(step))


def test_every_case_is_compared():
    assert OURS.keys() == FACTS["schedules"].keys()


@pytest.mark.parametrize("case", OURS)
def test_values_of_optax(case: str):
    counts, want = torch.from_numpy(ARRAYS["counts"]), torch.from_numpy(ARRAYS[f"schedule/{case}"])
    got = torch.stack([OURS[case](count) for count in counts])
    # float64 on both sides; 1e-15 is what is left of the end of a cosine to 0
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-15)


# The step


@every_schedule
def test_takes_every_kind_of_step(schedule: Any):
    want = schedule(torch.tensor(7.0, dtype=torch.float64))
    assert want.dtype == torch.float64
    assert want.ndim == 0
    for step in (7, 7.0, torch.tensor(7), torch.tensor(7, dtype=torch.int32)):
        assert torch.equal(schedule(step), want)
    many = schedule(torch.arange(5, 10))
    # pow and cos of several numbers at once may round differently in the last place
    torch.testing.assert_close(many[2], want, rtol=1e-15, atol=0.0)


@every_schedule
def test_takes_tensors_for_its_numbers(schedule: Any):
    tensors = optree.tree_map(lambda x: torch.tensor(float(x), dtype=torch.float64), schedule)
    for step in (0, 3, 19.5, 100):
        # numbers raised to a power in Python and in torch
        assert value(tensors, step) == pytest.approx(value(schedule, step), rel=1e-12)


@every_schedule
def test_computes_in_the_precision_of_the_step(schedule: Any):
    assert schedule(torch.tensor(3.0)).dtype == torch.float32


# Boundaries


@pytest.mark.parametrize(
    ("schedule", "start", "end"),
    [
        (fo.linear_schedule(0.2, 0.8, 10), 0.2, 0.8),
        (fo.power_schedule(0.2, 0.8, 2.0, 10), 0.2, 0.8),
        (fo.polynomial_schedule(0.2, 0.8, 2.0, 10), 0.2, 0.8),
        (fo.cosine_schedule(0.2, 0.8, 10), 0.2, 0.8),
        (fo.exponential_schedule(0.2, 0.8, 10), 0.2, 0.8),
        (fo.cosine_decay_schedule(0.8, 10, alpha=0.25), 0.8, 0.2),
        (fo.cosine_onecycle_schedule(10, 0.5), 0.02, 0.02 / 1e4),
        (fo.warmup_cosine_decay_schedule(0.1, 0.5, 4, 10, 0.2), 0.1, 0.2),
        (flat_cosine_schedule(0.8, 10, alpha=0.25), 0.8, 0.2),
        (scaled_schedule(2.0, fo.cosine_schedule(0.4, 0.1, 10)), 0.8, 0.2),
    ],
)
def test_starts_and_ends_where_it_says_and_stays_there(schedule: Any, start: float, end: float):
    rel = 1e-12  # a sum such as 0.2 + (0.8 - 0.2) is rounded
    assert value(schedule, 0) == pytest.approx(start, rel=rel)
    assert value(schedule, -5) == pytest.approx(start, rel=rel)
    assert value(schedule, 10) == pytest.approx(end, rel=rel)
    assert value(schedule, 1000) == pytest.approx(end, rel=rel)


def test_lengths_of_one_make_the_step_a_position():
    for make in (fo.linear_schedule, fo.cosine_schedule, fo.exponential_schedule):
        for position in (0.0, 0.3, 1.0):
            assert value(make(0.1, 0.9), position) == pytest.approx(value(make(0.1, 0.9, 50), 50 * position), rel=1e-12)


def test_power_and_polynomial_are_mirror_images():
    power, polynomial = fo.power_schedule(0.1, 0.9, 3.0, 10), fo.polynomial_schedule(0.9, 0.1, 3.0, 10)
    for step in range(11):
        assert value(power, step) == pytest.approx(value(polynomial, 10 - step), rel=1e-12)


def test_at_a_boundary_the_later_part_applies():
    parts = [fo.constant_schedule(1.0), fo.constant_schedule(2.0), fo.constant_schedule(3.0)]
    joined = fo.join_schedules(parts, [3, 6])
    assert [value(joined, step) for step in range(8)] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert value(joined, 2.999) == 1
    by_fraction = fo.join([0.25, 0.25, 0.5], parts, 8)
    assert [value(by_fraction, step) for step in range(8)] == [1, 1, 2, 2, 3, 3, 3, 3]


def test_parts_count_from_their_own_start():
    ramp = fo.linear_schedule(0.0, 10.0, 10)
    joined = fo.join_schedules([ramp, ramp], [4])
    assert [value(joined, step) for step in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_derivatives_are_finite_at_boundaries():
    for schedule in (*OURS.values(), *MORE.values()):
        tensors = optree.tree_map(lambda x: torch.tensor(float(x), dtype=torch.float64), schedule)
        for step in (0.0, 5.0, 10.0, 20.0, 30.0, 1000.0):
            slopes = torch.func.grad(lambda s, at=step: s(torch.tensor(at, dtype=torch.float64)))(tensors)
            for path, slope in fo.tree.leaves_with_paths(slopes):
                assert slope.isfinite(), f"{type(schedule).__name__} at {step}: {path}"


# Restarts, and a flat start


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_restarts_are_those_of_torch(multiplier):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs: Any = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5, multiplier, eta_min=0.01)
    ours = cosine_restarts_schedule(0.5, 5, multiplier, end_value=0.01)
    for step in range(400):
        # sums of cosines, in float64
        assert value(ours, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step
        optimizer.step()
        theirs.step()
    theirs.step(7.25)  # between two steps
    assert value(ours, 7.25) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize("multiplier", [1, 1.5, 2, 3, 10])
def test_restarts_begin_at_the_top_however_late(multiplier):
    start, length = 0.0, 7.0
    for _ in range(12):
        restarts = cosine_restarts_schedule(0.5, 7, multiplier)
        assert value(restarts, start) == 0.5
        assert value(restarts, start + length / 2) == pytest.approx(0.25, rel=1e-9)
        assert value(restarts, start + length * (1 - 1e-6)) < 1e-9
        start, length = start + length, length * multiplier


def test_restarts_of_several_lengths_at_once():
    multipliers = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    swept = torch.func.vmap(lambda m: cosine_restarts_schedule(0.5, 5, m)(13))(multipliers)
    alone = [value(cosine_restarts_schedule(0.5, 5, m), 13) for m in (1, 2, 3)]
    torch.testing.assert_close(swept, torch.tensor(alone, dtype=torch.float64), rtol=1e-12, atol=0.0)
    with pytest.raises(ValueError, match=r"multiplier must be at least 1, got 0\.5"):
        cosine_restarts_schedule(0.5, 5, 0.5)


def test_sgdr_is_that_of_optax():
    optax, jax = pytest.importorskip("optax"), pytest.importorskip("jax")
    cycles = [
        {"init_value": 0.0, "peak_value": 0.5, "warmup_steps": 2, "decay_steps": 8, "end_value": 0.1},
        {
            "init_value": 0.1,
            "peak_value": 0.3,
            "warmup_steps": 3,
            "decay_steps": 20,
            "end_value": 0.02,
            "exponent": 2.0,
        },
        {"init_value": 0.02, "peak_value": 0.2, "warmup_steps": 1, "decay_steps": 5},
    ]
    theirs, ours = optax.sgdr_schedule(cycles), sgdr_schedule(cycles)
    for step in range(45):
        # optax computes in float32
        want = float(theirs(jax.numpy.asarray(step)))
        assert value(ours, step) == pytest.approx(want, rel=1e-5, abs=1e-7), step


def test_flat_cosine():
    schedule = flat_cosine_schedule(0.4, 100, alpha=0.25, pct_start=0.6)
    for step in range(120):
        s = min(max((step - 60) / 40, 0.0), 1.0)
        want = 0.1 + 0.3 * (1 + math.cos(math.pi * s)) / 2
        assert value(schedule, step) == pytest.approx(want, rel=1e-12), step


def test_scaled():
    course = fo.cosine_schedule(1.0, 0.1, 10)
    for step in range(12):
        assert value(scaled_schedule(3.0, course), step) == 3.0 * value(course, step)
    with pytest.raises(TypeError, match="scaled_schedule: part 0 is a float, expected a schedule"):
        scaled_schedule(0.1, 0.5)


def test_new_schedules_are_saved_with_an_optimizer(tmp_path):
    course = {"a": scaled_schedule(0.5, cosine_restarts_schedule(1.0, 5, 2)), "b": flat_cosine_schedule(0.1, 10)}
    torch.save(course, tmp_path / "schedules.pt")
    assert torch.load(tmp_path / "schedules.pt", weights_only=True) == course


# As hypers


def steps_of(tx: fo.Transform, count: int, hypers: Any = None) -> list[float]:
    """The length of each step for a gradient of 1."""
    params, grads = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    state, out = tx.init(params), []
    for _ in range(count):
        new, state = tx.update(grads, state, params, hypers)
        out.append(-float(new))
    return out


def test_the_first_step_uses_the_schedule_at_zero():
    schedule = fo.linear_schedule(1.0, 0.0, 4)
    for tx, hypers in ((fo.sgd(schedule), None), (fo.scheduled(fo.sgd()), {"lr": schedule})):
        assert steps_of(tx, 6, hypers) == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_a_schedule_per_group_and_of_several_hypers():
    params = {"body": torch.ones(2, dtype=torch.float64), "head": torch.ones(2, dtype=torch.float64)}
    schedule = fo.linear_schedule(0.1, 0.0, 5)
    tx = fo.adamw({"body": schedule, "head": 0.2}, weight_decay=fo.linear_schedule(0.0, 1.0, 5))
    by_hand = fo.adamw({"body": 0.1, "head": 0.2})
    state, expected, expected_state = tx.init(params), params, by_hand.init(params)
    for step in range(6):
        grads = fo.tree.map(lambda p: p.cos(), params)
        params, state = tx.update(grads, state, params)
        now: dict[str, Any] = {
            "lr": {"body": max(0.0, 0.1 * (1 - step / 5)), "head": 0.2},
            "weight_decay": min(1.0, step / 5),
        }
        expected, expected_state = by_hand.update(grads, expected_state, expected, now)
        for name in params:
            # 0.1 + (0 - 0.1)·s against 0.1·(1 - s), in float64
            torch.testing.assert_close(params[name], expected[name], rtol=1e-13, atol=1e-15)


def test_settings_of_a_schedule_can_be_swept_and_differentiated():
    tx = fo.scheduled(fo.sgd())
    params, grads = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def train(peak: Tensor) -> Tensor:
        at, state = params, tx.init(params)
        for _ in range(5):
            at, state = tx.update(grads, state, at, {"lr": fo.cosine_decay_schedule(peak, 10)})
        return at

    peaks = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    swept = torch.func.vmap(train)(peaks)
    # a sum of five cosines, in float64
    shares = sum(0.5 * (1 + math.cos(math.pi * t / 10)) for t in range(5))
    torch.testing.assert_close(swept, -shares * peaks, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(torch.func.grad(train)(peaks[0]), torch.tensor(-shares, dtype=torch.float64))


def test_no_warm_up_at_all():
    schedule, cosine = fo.warmup_cosine_decay_schedule(0.0, 0.1, 0, 20), fo.cosine_schedule(0.1, 0.0, 20)
    assert [value(schedule, i) for i in range(25)] == pytest.approx([value(cosine, i) for i in range(25)], rel=1e-12)
    with pytest.raises(ValueError, match="warmup_steps must be positive"):
        fo.warmup_cosine_decay_schedule(0.0, 0.1, -1, 20)
