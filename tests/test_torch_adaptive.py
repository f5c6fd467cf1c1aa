"""Adamax, AMSGrad and NAdamW against torch.optim, live, in float64, with all of their options."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from registry import make_grads, make_params

import functopt as fo

STEPS = 40

Case = tuple[Any, Any, dict[str, Any], dict[str, Any]]


def cases() -> list[Case]:
    out: list[Case] = []
    betas: list[dict[str, Any]] = [{}, {"beta1": 0.5, "beta2": 0.9}, {"beta1": 0.0, "beta2": 0.97, "eps": 1e-3}]
    for options, decay, maximize in itertools.product(betas, (0.0, 0.05), (False, True)):
        both = {"lr": 0.02, "weight_decay": decay, "maximize": maximize}
        own = both | options
        theirs = both | {name: options[name] for name in ("eps",) if name in options}
        if "beta1" in options:
            theirs["betas"] = options["beta1"], options["beta2"]
        out += [
            (fo.adamax, torch.optim.Adamax, own, theirs),
            (fo.adam, torch.optim.Adam, own | {"amsgrad": True}, theirs | {"amsgrad": True}),
            (fo.adamw, torch.optim.AdamW, own | {"amsgrad": True}, theirs | {"amsgrad": True}),
            (fo.nadamw, torch.optim.NAdam, own | {"form": "torch"}, theirs | {"decoupled_weight_decay": True}),
        ]
    return out


def name(case: Case) -> str:
    return f"{case[0].__name__}-{'-'.join(f'{k}={v}' for k, v in case[2].items() if k != 'lr' and v)}"


@pytest.fixture(autouse=True)
def _torch_counts_in_float64() -> Any:
    """NAdam keeps its product of momenta in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("case", cases(), ids=name)
def test_trajectory(case: Case):
    ours, theirs, own, options = case
    tx, params = ours(**own), make_params()["body"]
    state = tx.init(params)
    mirror = {key: torch.nn.Parameter(p.clone()) for key, p in params.items()}
    reference = theirs(list(mirror.values()), **options, foreach=False)
    for step, grads in enumerate(make_grads(steps=STEPS)):
        # large gradients that become small: then the largest second moment is not the present one
        grads = {key: g * (2.0 if step < STEPS // 2 else 0.1) for key, g in grads["body"].items()}
        params, state = tx.update(grads, state, params)
        for key, g in grads.items():
            mirror[key].grad = g
        reference.step()
    for key, p in params.items():
        torch.testing.assert_close(p, mirror[key].detach(), rtol=1e-12, atol=1e-12)


def test_the_largest_second_moment_matters():
    """The comparison above sees it."""
    params, grads = make_params()["body"], [g["body"] for g in make_grads(steps=STEPS)]
    results = []
    for amsgrad in (False, True):
        tx, p = fo.adam(0.02, beta2=0.9, amsgrad=amsgrad), params
        state = tx.init(p)
        for step, g in enumerate(grads):
            p, state = tx.update({k: x * (2.0 if step < STEPS // 2 else 0.1) for k, x in g.items()}, state, p)
        results.append(p["weight"])
    assert (results[0] - results[1]).abs().max() > 0.05


def test_default_numbers_of_adamax_are_those_of_torch():
    theirs = {key: p.default for key, p in inspect.signature(torch.optim.Adamax).parameters.items()}
    own = {key: p.default for key, p in inspect.signature(fo.adamax).parameters.items()}
    assert (own["beta1"], own["beta2"]) == theirs["betas"]
    for key in ("lr", "eps", "weight_decay", "maximize"):
        assert own[key] == theirs[key]


@pytest.mark.parametrize("options", [{"nesterov": True}, {"debias": "power"}])
@pytest.mark.parametrize("make", [fo.adam, fo.adamw])
def test_amsgrad_has_no_such_form(make: Any, options: Any):
    with pytest.raises(ValueError, match="adam: amsgrad goes without nesterov and with debias='weight' only"):
        make(amsgrad=True, **options)


@pytest.mark.parametrize("links", [fo.scale_by_rms(initial_scale=0.5), fo.scale_by_rms(bias_correction=True)], ids=str)
def test_a_checkpoint_of_torch_has_no_such_form(links: fo.Transform):
    tx = fo.chain(fo.add_decayed_weights(), links, fo.scale_by_lr())
    model = torch.nn.Linear(2, 1)
    optimizer = fo.StatefulOptimizer(model.parameters(), tx)
    with pytest.raises(ValueError, match=r"initial_scale=0.5, which|bias_correction=True, which"):
        fo.to_torch_state_dict(optimizer)
