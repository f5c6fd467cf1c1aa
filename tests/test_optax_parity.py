"""Agreement with optax: trajectories that the real optax computed in float64 (data/make_optax.py)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import functopt as fo
from functopt import Transform

DATA = Path(__file__).parent / "data"
ARRAYS = np.load(DATA / "optax.npz")
FACTS = json.loads((DATA / "optax.json").read_text())

MASK = {"bias": False, "weight": True}
WARMUP = fo.warmup_cosine_decay_schedule(0.01, 0.1, 5, 25, 0.002)
BETAS: Any = {"beta1": 0.8, "beta2": 0.95}


def lr(link: Transform) -> Transform:
    return fo.chain(link, fo.scale_by_lr(0.05))


OURS: dict[str, Callable[[], Transform]] = {
    "sgd": lambda: fo.sgd(0.05),
    "sgd/momentum": lambda: fo.sgd(0.05, 0.9),
    "sgd/nesterov": lambda: fo.sgd(0.05, 0.9, nesterov=True),
    "adam": lambda: fo.adam(0.05, **BETAS, eps=1e-6),
    "adam/eps_root": lambda: lr(fo.scale_by_adam(**BETAS, eps=1e-6, eps_root=1e-4)),
    "nadam": lambda: fo.nadam(0.05, **BETAS, eps=1e-6, form="optax"),
    "nadamw": lambda: fo.adamw(0.05, **BETAS, weight_decay=0.1, nesterov=True),
    "adamw": lambda: fo.adamw(0.05, weight_decay=0.1),
    "adamw/mask": lambda: fo.adamw(0.05, **BETAS, weight_decay=0.1, mask=MASK),
    "radam": lambda: fo.radam(0.05, **BETAS, eps=1e-3, threshold=4.3, eps_debiased=True),
    "radam/late": lambda: fo.radam(0.05, eps=1e-3, eps_debiased=True),
    "rms": lambda: lr(fo.scale_by_rms(0.9, 1e-3, eps_in_sqrt=True)),
    "rms/outside": lambda: lr(fo.scale_by_rms(0.9, 1e-3)),
    "rms/centered": lambda: lr(fo.scale_by_rms(0.9, 1e-3, eps_in_sqrt=True, centered=True)),
    "lamb": lambda: fo.lamb(0.05, weight_decay=0.1),
    "lamb/mask": lambda: fo.lamb(0.05, **BETAS, eps=1e-6, weight_decay=0.1, mask=MASK),
    "lion": lambda: fo.lion(0.05),
    "lion/mask": lambda: fo.lion(0.05, **BETAS, weight_decay=0.1, mask=MASK),
    "warmup": lambda: fo.chain(fo.clip_by_global_norm(1.0), fo.adamw(WARMUP, weight_decay=0.1)),
    "clip": lambda: lr(fo.clip(0.3)),
    "clip_by_global_norm": lambda: lr(fo.clip_by_global_norm(2.0)),
    "clip_by_block_rms": lambda: lr(fo.clip_by_block_rms(0.9)),
    "param_block_rms": lambda: lr(fo.scale_by_param_block_rms(1.0)),
    "trace": lambda: lr(fo.trace(0.9)),
    "trace/nesterov": lambda: lr(fo.trace(0.9, nesterov=True)),
    "ema": lambda: lr(fo.ema(0.9)),
    "ema/raw": lambda: lr(fo.ema(0.9, debias=False)),
    "trust_ratio": lambda: lr(fo.scale_by_trust_ratio()),
    "trust_ratio/options": lambda: lr(fo.scale_by_trust_ratio(2.5, 0.3, 0.1)),
    "decay/l2": lambda: fo.adam(0.05, weight_decay=0.1),
    "decay/mask": lambda: lr(fo.add_decayed_weights(0.1, mask=MASK)),
    "lars": lambda: fo.chain(fo.scale_by_trust_ratio(), fo.scale_by_lr(0.05), fo.trace(0.9)),
    "scale": lambda: fo.scale(-0.05),
    "identity": lambda: lr(fo.identity()),
}


def matrices(params: dict[str, torch.Tensor]) -> dict[str, bool]:
    return {name: p.ndim > 1 for name, p in params.items()}


FACTORED: dict[str, Callable[[], Transform]] = {
    "factored_rms": lambda: lr(fo.scale_by_factored_rms(min_dim_size_to_factor=3)),
    "factored_rms/two": lambda: lr(fo.scale_by_factored_rms(0.6, eps=0.1, min_dim_size_to_factor=2)),
    "factored_rms/offset": lambda: lr(fo.scale_by_factored_rms(step_offset=-5, min_dim_size_to_factor=2)),
    "factored_rms/capped": lambda: lr(fo.scale_by_factored_rms(max_decay=0.7, min_dim_size_to_factor=2)),
    "factored_rms/small": lambda: lr(fo.scale_by_factored_rms()),
    "factored_rms/whole": lambda: lr(fo.scale_by_factored_rms(factored=False, min_dim_size_to_factor=2)),
    "adafactor": lambda: fo.adafactor(0.05, form="optax", min_dim_size_to_factor=2),
    "adafactor/decay": lambda: fo.adafactor(
        0.05, form="optax", min_dim_size_to_factor=2, clipping_threshold=1.2, momentum=0.8, weight_decay=0.01,
        mask=matrices,
    ),
    "adafactor/plain": lambda: fo.adafactor(
        0.05, 0.7, 1e-3, clipping_threshold=math.inf, step_offset=-3, form="optax", factored=False,
        multiply_by_parameter_scale=False,
    ),
}  # fmt: skip


def array(key: str) -> torch.Tensor:
    return torch.from_numpy(ARRAYS[key])


def test_every_case_is_compared():
    assert OURS.keys() == FACTS["trajectories"].keys()
    assert FACTORED.keys() == FACTS["factored"].keys()


def compare(tx: Transform, case: str, prefix: str = "") -> None:
    names = [key.split("/")[-1] for key in ARRAYS.files if key.startswith(f"{prefix}init/")]
    params = {name: array(f"{prefix}init/{name}") for name in names}
    grads = {name: array(f"{prefix}grads/{name}") for name in names}
    state, rows = tx.init(params), {name: [] for name in names}
    for step in range(len(grads["bias"])):
        params, state = tx.update({name: grads[name][step] for name in names}, state, params)
        for name, value in params.items():
            rows[name].append(value)
    for name in names:
        # float64 on both sides; optax debiases by 1 - beta^t, which loses a few digits where beta is near 1
        want = array(f"{prefix}trajectory/{case}/{name}")
        torch.testing.assert_close(torch.stack(rows[name]), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", OURS)
def test_trajectory(case: str):
    compare(OURS[case](), case)


@pytest.mark.parametrize("case", FACTORED)
def test_factored_moments(case: str):
    compare(FACTORED[case](), case, "factored/")
