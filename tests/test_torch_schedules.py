"""The schedulers of torch beside ours, live: the learning rate, and the momentum where torch moves it too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as theirs
from torch.optim.swa_utils import SWALR

import functopt as fo
from functopt.schedules import InverseSqrt

STEPS = 100

CASES: dict[str, tuple[Any, Any]] = {
    "step": (lambda o: theirs.StepLR(o, 30), fo.step_lr(0.5, 30)),
    "step/gamma": (lambda o: theirs.StepLR(o, 7, 0.9), fo.step_lr(0.5, 7, 0.9)),
    "multi_step": (lambda o: theirs.MultiStepLR(o, [30, 80]), fo.multi_step_lr(0.5, [30, 80])),
    "multi_step/twice": (lambda o: theirs.MultiStepLR(o, [5, 30, 30], 0.5), fo.multi_step_lr(0.5, [5, 30, 30], 0.5)),
    "constant": (theirs.ConstantLR, fo.constant_lr(0.5)),
    "constant/factor": (lambda o: theirs.ConstantLR(o, 0.2, 40), fo.constant_lr(0.5, 0.2, 40)),
    "linear": (theirs.LinearLR, fo.linear_lr(0.5)),
    "linear/down": (lambda o: theirs.LinearLR(o, 0.9, 0.1, 60), fo.linear_lr(0.5, 0.9, 0.1, 60)),
    "exponential": (lambda o: theirs.ExponentialLR(o, 0.97), fo.exponential_lr(0.5, 0.97)),
    "polynomial": (theirs.PolynomialLR, fo.polynomial_lr(0.5)),
    "polynomial/power": (lambda o: theirs.PolynomialLR(o, 70, 2.5), fo.polynomial_lr(0.5, 70, 2.5)),
    "cosine": (lambda o: theirs.CosineAnnealingLR(o, 23, 0.01), fo.cosine_annealing_lr(0.5, 23, 0.01)),
    "cosine/zero": (lambda o: theirs.CosineAnnealingLR(o, 200), fo.cosine_annealing_lr(0.5, 200)),
    "restarts": (
        lambda o: theirs.CosineAnnealingWarmRestarts(o, 5, 2, 0.01),
        fo.cosine_annealing_warm_restarts(0.5, 5, 2, 0.01),
    ),
    "cyclic": (lambda o: theirs.CyclicLR(o, 0.1, 0.5, 7), fo.cyclic_lr(0.1, 0.5, 7)),
    "cyclic/2": (
        lambda o: theirs.CyclicLR(o, 0.1, 0.5, 7, 12, mode="triangular2"),
        fo.cyclic_lr(0.1, 0.5, 7, 12, mode="triangular2"),
    ),
    "cyclic/range": (
        lambda o: theirs.CyclicLR(o, 0.1, 0.5, 12, 5, mode="exp_range", gamma=0.98),
        fo.cyclic_lr(0.1, 0.5, 12, 5, mode="exp_range", gamma=0.98),
    ),
    "onecycle": (lambda o: theirs.OneCycleLR(o, 0.5, total_steps=101), fo.one_cycle_lr(0.5, 101)),
    "onecycle/linear": (
        lambda o: theirs.OneCycleLR(o, 0.5, 101, pct_start=0.4, anneal_strategy="linear", div_factor=10),
        fo.one_cycle_lr(0.5, 101, 0.4, 10.0, anneal_strategy="linear"),
    ),
    "onecycle/three": (
        lambda o: theirs.OneCycleLR(o, 0.5, 101, three_phase=True, final_div_factor=100),
        fo.one_cycle_lr(0.5, 101, final_div_factor=100.0, three_phase=True),
    ),
    "swa": (lambda o: SWALR(o, 0.05), fo.swalr(0.5, 0.05)),
    "swa/linear": (lambda o: SWALR(o, 0.9, 33, "linear"), fo.swalr(0.5, 0.9, 33, anneal_strategy="linear")),
    "sequential": (
        lambda o: theirs.SequentialLR(o, [theirs.ConstantLR(o, 0.1, 20), theirs.ExponentialLR(o, 0.9)], [20]),
        fo.join_schedules([fo.constant_lr(0.5, 0.1, 20), fo.exponential_lr(0.5, 0.9)], [20]),
    ),
    "chained": (
        lambda o: theirs.ChainedScheduler([theirs.LinearLR(o, 0.1, 1.0, 20), theirs.ExponentialLR(o, 0.98)]),
        fo.product_schedule(fo.linear_lr(1.0, 0.1, 1.0, 20), fo.exponential_lr(0.5, 0.98)),
    ),
    "lambda": (
        lambda o: theirs.LambdaLR(o, lambda step: 1 / (1 + step / 7) ** 0.5),
        fo.scaled_schedule(0.5, InverseSqrt(1.0, 7.0)),
    ),
    "multiplicative": (lambda o: theirs.MultiplicativeLR(o, lambda _: 0.95), fo.exponential_lr(0.5, 0.95)),
}
MOMENTUM: dict[str, tuple[Any, Any]] = {
    "cyclic": (
        lambda o: theirs.CyclicLR(o, 0.1, 0.5, 7, 9, mode="triangular2", base_momentum=0.8, max_momentum=0.95),
        fo.cyclic_lr(0.95, 0.8, 7, 9, mode="triangular2"),
    ),
    "onecycle": (lambda o: theirs.OneCycleLR(o, 0.5, 101), fo.one_cycle_momentum(101)),
    "onecycle/three": (
        lambda o: theirs.OneCycleLR(
            o, 0.5, 101, pct_start=0.25, anneal_strategy="linear", base_momentum=0.7, three_phase=True
        ),
        fo.one_cycle_momentum(101, 0.7, pct_start=0.25, anneal_strategy="linear", three_phase=True),
    ),
}


def check(make: Any, ours: Any, hyper: str) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    scheduler = make(optimizer)
    for step in range(STEPS):
        # torch mostly goes from value to value, so that its rounding adds up: 100 times 1e-16, and some of a cosine's
        assert float(ours(step)) == pytest.approx(optimizer.param_groups[0][hyper], rel=1e-12, abs=1e-15), step
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")  # torch's SequentialLR uses it itself
def test_learning_rates_are_those_of_torch(case: str):
    check(*CASES[case], "lr")


@pytest.mark.parametrize("case", MOMENTUM)
def test_momenta_are_those_of_torch(case: str):
    check(*MOMENTUM[case], "momentum")


def test_every_scheduler_of_torch_is_here():
    names = {name for name in theirs.__all__ if name not in ("LRScheduler", "ReduceLROnPlateau")}
    assert names == {
        "ChainedScheduler",
        "ConstantLR",
        "CosineAnnealingLR",
        "CosineAnnealingWarmRestarts",
        "CyclicLR",
        "ExponentialLR",
        "LambdaLR",
        "LinearLR",
        "MultiStepLR",
        "MultiplicativeLR",
        "OneCycleLR",
        "PolynomialLR",
        "SequentialLR",
        "StepLR",
    }
