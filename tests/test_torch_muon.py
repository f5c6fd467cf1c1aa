"""Muon against ``torch.optim.Muon``, live, with all its options: in bfloat16, as torch orthogonalises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import functopt as fo

SHAPES = {"tall": (6, 3), "wide": (3, 5), "square": (4, 4)}


def data(seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in SHAPES.items()
    }


OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.05, "weight_decay": 0.3, "momentum": 0.7},
    {"nesterov": False, "ns_steps": 3},
    {"ns_coefficients": (3.0, -3.2, 1.2), "eps": 1e-3},
    {"adjust_lr_fn": "original"},
    {"adjust_lr_fn": "match_rms_adamw"},
    {"adjust_lr_fn": "spectral_unclamped"},
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_torch(options: dict[str, Any], dtype: torch.dtype):
    names = {"ns_coefficients": "ns_coeffs"}
    tx = fo.muon(ns_dtype=torch.bfloat16, **{names.get(name, name): value for name, value in options.items()})
    params = data(0, dtype)
    theirs = {name: nn.Parameter(p.clone()) for name, p in params.items()}
    reference = torch.optim.Muon(theirs.values(), **options)
    state = tx.init(params)
    for step in range(10):
        grads = data(step + 1, dtype)
        for name, p in theirs.items():
            p.grad = grads[name].clone()
        reference.step()
        params, state = tx.update(grads, state, params)
    for name, p in theirs.items():
        # the same products in bfloat16; what is left is one rounding of the parameters at each step
        tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(params[name], p.detach(), rtol=tolerance, atol=tolerance)


def test_full_precision_is_what_bfloat16_approximates():
    weights, grads = data(0, torch.float64), data(1, torch.float64)
    rounded, exact = (fo.muon(0.1, ns_dtype=dtype) for dtype in (torch.bfloat16, None))
    a, b = (tx.update(grads, tx.init(weights), weights)[0] for tx in (rounded, exact))
    for name in SHAPES:
        assert 0 < (a[name] - b[name]).abs().max() < 0.1 * 0.05
