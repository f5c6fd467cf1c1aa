"""Agreement with optax at the defaults and at drawn settings: what the real optax computed, in float64 (make.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parity import FAMILIES
from parity.case import LOSSES, SHAPES, STEPS, given_gradients, ours, settings, start

DATA = Path(__file__).parent / "data"
CASES = [
    pytest.param(family, name, i, id=f"{family}-{name}-{i}")
    for family, module in FAMILIES.items()
    for name, case in module.CASES.items()
    for i in range(len(settings(name, case)))
]

# How far a trajectory may be off, as a part of how far the parameters moved: beyond it, the formulas differ. Beside it,
# both sides round the parameters themselves at every step, by 1.1e-16 of their size.
RELATIVE = 1e-9


def trajectory(case: Any, setting: Any) -> dict[str, np.ndarray]:
    """Return the parameters after every step of ours."""
    tx = ours(case, setting)
    params: Any = {name: torch.from_numpy(np.array(value)) for name, value in start().items()}
    state, rows = tx.init(params), {name: [] for name in params}
    value_fn = lambda p: LOSSES[case.problem](p, torch.cos)
    for given in given_gradients():
        grads, extras = {name: torch.from_numpy(np.array(value)) for name, value in given.items()}, {}
        if case.problem in LOSSES:
            grads, value = torch.func.grad_and_value(value_fn)(params)
            extras = {"value": value, "grad": grads, "value_fn": value_fn}
        params, state = tx.update(grads, state, params, **extras)
        for name, value in params.items():
            rows[name].append(value.numpy())
    return {name: np.stack(values) for name, values in rows.items()}


def error(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> tuple[float, float]:
    """Return the largest error, and how far the parameters moved."""
    first = start()
    far = max(np.abs(want[name] - first[name]).max() for name in SHAPES)
    return max(np.abs(got[name] - want[name]).max() for name in SHAPES), far


@pytest.mark.parametrize(("family", "name", "i"), CASES)
def test_trajectory(family: str, name: str, i: int):
    case = FAMILIES[family].CASES[name]
    with np.load(DATA / f"{family}.npz") as arrays:
        want = {leaf: arrays[f"{name}|{i}|{leaf}"] for leaf in SHAPES}
    off, far = error(trajectory(case, settings(name, case)[i]), want)
    size = max(np.abs(value).max() for value in start().values())
    assert off <= RELATIVE * far + 1.1e-16 * size * STEPS, f"off by {off / far:.1e} of the way"


@pytest.mark.parametrize("family", FAMILIES)
def test_data_are_of_these_calls(family: str):
    with np.load(DATA / f"{family}.npz") as arrays:
        facts = json.loads(str(arrays["facts"]))
    assert facts["optax"] == "0.2.8"
    calls = {
        name: [f"{c.theirs}({', '.join(f'{key}={value!r}' for key, value in s.items())})" for s in settings(name, c)]
        for name, c in FAMILIES[family].CASES.items()
    }
    assert facts["calls"] == calls, "the cases have changed: draw the data again with make.py"
