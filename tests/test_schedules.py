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
    "staircase": fo.exponential_decay(0.5, 4, 0.3, 2, staircase=True),
    "exponential/end": fo.exponential_decay(0.5, 10, 0.3, end_value=0.2),
    "exponential/rising": fo.exponential_decay(0.5, 10, 1.3, end_value=0.7),
    "piecewise_constant": fo.piecewise_constant_schedule(0.3, {4: 0.5, 9: 2.0, 15: 0.0}),
    "piecewise_linear": fo.piecewise_interpolate_schedule("linear", 0.3, {4: 0.5, 9: 2.0, 15: 0.0}),
    "piecewise_cosine": fo.piecewise_interpolate_schedule("cosine", 0.3, {0: 0.5, 9: 2.0, 15: 0.1}),
    "linear_onecycle": fo.linear_onecycle_schedule(20, 0.4),
    "warmup_constant": fo.warmup_constant_schedule(0.1, 0.3, 10),
    "warmup_exponential": fo.warmup_exponential_decay_schedule(0.1, 0.3, 5, 10, 0.5, 2, staircase=True, end_value=0.1),
    "stable/linear": fo.warmup_stable_decay_schedule(0.3, 5, 5, 10),
    "stable/sqrt": fo.warmup_stable_decay_schedule(0.3, 5, 5, 10, 0.1, 0.01, decay="sqrt"),
    "stable/cosine": fo.warmup_stable_decay_schedule(0.3, 5, 5, 10, decay="cosine"),
    "inverse_sqrt": fo.inverse_sqrt_schedule(0.3, 5),
    "inverse_sqrt/timescale": fo.inverse_sqrt_schedule(0.3, 5, 0.1, 20.0),
    "product": fo.product_schedule(fo.linear_schedule(0.0, 1.0, 5), fo.exponential_decay(0.5, 10, 0.3)),
    "wave": fo.cosine_annealing_lr(0.3, 10, 0.01),
    "cyclic": fo.cyclic_lr(0.1, 0.5, 5),
    "cyclic/range": fo.cyclic_lr(0.1, 0.5, 5, 10, mode="exp_range", gamma=0.9),
    "multi_step": fo.multi_step_lr(0.3, [5, 10, 10]),
    "one_cycle": fo.one_cycle_lr(0.3, 20, three_phase=True),
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
def test_is_mapped_and_compiled_like_any_hyper(schedule: Any):
    step = torch.tensor(7.0, dtype=torch.float64)
    of_size = lambda f: optree.tree_map(lambda x: torch.tensor(f * x, dtype=torch.float64), schedule)
    members: Any = [of_size(1.0), of_size(0.9)]
    want = torch.stack([member(step) for member in members])
    look_up = lambda schedule, step: schedule(step)
    mapped = torch.func.vmap(look_up, (0, None))(optree.tree_map(lambda a, b: torch.stack([a, b]), *members), step)
    torch.testing.assert_close(mapped, want, rtol=1e-14, atol=1e-16)
    torch._dynamo.reset()  # or it would be one function compiled for ever more schedules
    compiled = torch.compile(look_up, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(members[0], step), want[0], rtol=1e-14, atol=1e-16)


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


def test_the_fall_after_a_stable_phase():
    shapes = {
        "linear": lambda s: 1 - s,
        "sqrt": lambda s: 1 - s**0.5,
        "cosine": lambda s: (1 + math.cos(math.pi * s)) / 2,
    }
    for decay, shape in shapes.items():
        schedule = fo.warmup_stable_decay_schedule(0.5, 10, 20, 40, 0.1, 0.05, decay=decay)
        for step in range(90):
            want = 0.1 + 0.4 * step / 10 if step < 10 else 0.05 + 0.45 * shape(min(max((step - 30) / 40, 0.0), 1.0))
            assert value(schedule, step) == pytest.approx(want, rel=1e-12), (decay, step)


def test_noam():
    width, warmup = 512, 40
    schedule = fo.inverse_sqrt_schedule((width * warmup) ** -0.5, warmup)
    for step in range(1, 200):
        want = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert value(schedule, step) == pytest.approx(want, rel=1e-12), step


def test_an_integer_number_of_steps_has_whole_boundaries_as_in_optax():
    for make in (fo.cosine_onecycle_schedule, fo.linear_onecycle_schedule):
        assert value(make(18, 0.5), 5) == pytest.approx(0.5)  # 0.3·18 = 5.4
        assert value(make(18.0, 0.5), 5) < 0.495
        assert value(make(18.0, 0.5), 5.4) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fo.piecewise_constant_schedule(0.1, {5: -1.0}), "the scale at 5 must not be negative, got -1"),
        (lambda: fo.piecewise_interpolate_schedule("cubic", 0.1), "must be linear or cosine, got 'cubic'"),
        (
            lambda: fo.warmup_stable_decay_schedule(0.1, 1, 1, 1, decay="no"),
            "decay must be 'linear', 'cosine' or 'sqrt'",
        ),
        (lambda: fo.warmup_stable_decay_schedule(0.1, 1, 0, 1), "stable_steps must be positive"),
        (lambda: fo.warmup_exponential_decay_schedule(0.0, 0.1, -1, 5, 0.5), "warmup_steps must be positive"),
        (lambda: fo.inverse_sqrt_schedule(0.1, 0), "timescale must be positive"),
        (lambda: fo.cyclic_lr(0.1, 0.2, mode="square"), "mode must be 'triangular', 'triangular2' or 'exp_range'"),
        (lambda: fo.cyclic_lr(0.1, 0.2, 5, 0), "step_size_down must be positive"),
        (lambda: fo.one_cycle_lr(0.1, 0), "total_steps must be positive"),
        (lambda: fo.one_cycle_momentum(9, anneal_strategy="sine"), "anneal_strategy must be 'cos' or 'linear'"),
        (lambda: fo.swalr(0.1, 0.2, anneal_strategy="sine"), "anneal_strategy must be 'cos' or 'linear'"),
        (lambda: fo.cosine_annealing_lr(0.1, 0), "T_max must be positive"),
        (lambda: fo.product_schedule(), "0 schedules need"),
    ],
)
def test_what_a_schedule_cannot_be(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="part 1 is a float, expected a schedule"):
        fo.product_schedule(fo.constant_schedule(0.1), 0.5)


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
