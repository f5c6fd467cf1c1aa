"""The seeds' cases of several groups: set_hypers, freezing, what a state holds and what clearing it leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_seeds import GROUPS, SPEC, array, at, build, check_state, close, data_of, plan
from torch import nn

import functopt as fo
from functopt import tree

CASES = [case for case in SPEC["cases"] if case["name"].startswith(GROUPS)]
OURS = {"nu_1": "nu1", "nu_2": "nu2", "trust_coeff": "trust_coefficient", "beta": "softplus_beta"}


def kind(name: str) -> list[Any]:
    cases = [case for case in SPEC["cases"] if case["name"].startswith(f"B/{name}/")]
    return [pytest.param(case, id=case["name"]) for case in cases]


def value_of(spec: Any) -> Any:
    return slice(*spec["slice"]) if isinstance(spec, dict) else spec


def make(case: dict) -> tuple[fo.StatefulOptimizer, dict[str, nn.Parameter], dict[str, torch.Tensor]]:
    """The optimizer of a case with its groups, its parameters and the gradients of all steps."""
    _, grads, init = data_of(case)
    params = {leaf: nn.Parameter(init[leaf].clone()) for leaf in init}
    case = {"resolved": case.get("hypers", [case["given"]]), **case}
    tx = build({**case, "resolved": [{"wd": 0.0, "mom": 0.9, "sqr_mom": 0.99, "eps": 1e-5, **case["resolved"][0]}]})
    given = {name: value_of(case["given"][name]) for name in ("lr", "wd") if name in case["given"]}
    lists = [[(leaf, params[leaf]) for leaf in group] for group in case["groups"]]
    optimizer = fo.StatefulOptimizer(lists, tx)
    optimizer.set_hypers(**given)
    optimizer.set_hypers(**{name: value_of(value) for name, value in case.get("set_hypers", {}).items()})
    return optimizer, params, grads


def check_hypers(optimizer: fo.StatefulOptimizer, case: dict, resolved: list[dict]) -> None:
    for hypers, want in zip(optimizer.hypers, resolved, strict=True):
        for name, value in want.items():
            if name == "mom" and value == 0 and "momentum" not in hypers:
                continue  # momentum 0 leaves the hyper out
            close(hypers[OURS.get(name, name)], value, f"{name} of {case['name']}")


def check_training(case: dict, optimizer: fo.StatefulOptimizer, params: dict[str, nn.Parameter], grads: Any) -> None:
    """Take all steps, with a gradient for every parameter, and compare where the parameters are after each."""
    rows = {leaf: [param.detach().clone()] for leaf, param in params.items()}
    for step in range(SPEC["data"][case["data"]]["steps"]):
        for leaf, param in params.items():
            param.grad = grads[leaf][step].clone()
        optimizer.step()
        for leaf, param in params.items():
            rows[leaf].append(param.detach().clone())
    for leaf in params:
        close(torch.stack(rows[leaf]), array(f"{case['name']}/params/{leaf}"), f"params/{leaf}")


@pytest.mark.parametrize("case", kind("groups"))
def test_groups(case):
    optimizer, params, grads = make(case)
    check_hypers(optimizer, case, case["resolved"])
    check_training(case, optimizer, params, grads)
    betas = {leaf: resolved for group, resolved in zip(case["groups"], case["resolved"], strict=True) for leaf in group}
    for leaf in params:
        own = {**case, "resolved": betas[leaf]}
        check_state(own, tree.unpack(optimizer._inner.state), leaf, at(plan(own, optimizer.tx), 0)["lr"])


@pytest.mark.parametrize("compile", [False, {"backend": "aot_eager"}], ids=["eager", "compiled"])
@pytest.mark.parametrize("case", kind("do_wd"))
def test_marks_instead_of_a_mask(case, compile):
    leaves, grads, init = data_of(case)
    params = {leaf: nn.Parameter(init[leaf].clone()) for leaf in leaves}
    unmarked = {name: value for name, value in case.items() if name != "marks"}
    optimizer = fo.StatefulOptimizer(params.items(), build(unmarked), compile=compile)
    optimizer.set_hypers(lr=case["resolved"][0]["lr"])
    for leaf, marks in case["marks"].items():
        optimizer.state[params[leaf]]["do_wd"] = marks["do_wd"]
    check_training(case, optimizer, params, grads)


@pytest.mark.parametrize("case", kind("freeze"))
def test_freezing(case):
    optimizer, params, grads = make(case)
    for leaf in case["force_train"]:
        optimizer.state[params[leaf]]["force_train"] = True
    rows = {leaf: [param.detach().clone()] for leaf, param in params.items()}
    step = 0
    for phase in case["phases"]:
        optimizer.freeze_to(phase["freeze_to"])
        assert optimizer.frozen_idx == phase["frozen_idx"]
        assert [leaf for leaf, param in params.items() if param.requires_grad] == phase["requires_grad"]
        for _ in range(phase["steps"]):
            torch.stack([(param * grads[leaf][step]).sum() for leaf, param in params.items()]).sum().backward()
            assert {a.param for a in optimizer.all_params(with_grad=True)} == {
                params[leaf] for leaf in phase["updated"]
            }
            optimizer.step()
            optimizer.zero_grad(set_to_none=not case["name"].endswith("zero"))
            step += 1
            for leaf, param in params.items():
                rows[leaf].append(param.detach().clone())
    for leaf in params:
        close(torch.stack(rows[leaf]), array(f"{case['name']}/params/{leaf}"), f"params/{leaf}")


@pytest.mark.parametrize("case", kind("set_hypers"))
def test_set_hypers(case):
    want = array(f"{case['name']}/lr").numpy()
    for row, count in zip(want, range(1, len(want) + 1), strict=True):
        optimizer = fo.StatefulOptimizer([[nn.Parameter(torch.ones(2))] for _ in range(count)], fo.sgd())
        value = value_of(case["value"])
        optimizer.set_hypers(lr=value[:count] if isinstance(value, list) and len(value) > 1 else value)
        close([hypers["lr"] for hypers in optimizer.hypers], row[~np.isnan(row)])
        if isinstance(value, list) and len(value) > 1:
            before = optimizer.hypers
            with pytest.raises(ValueError, match="values, but there are"):
                optimizer.set_hypers(wd=0.5, lr=[*value[:count], 0.1, 0.2])
            assert optimizer.hypers == before


@pytest.mark.parametrize("case", kind("state_dict"))
def test_what_a_state_holds(case):
    optimizer, params, grads = make(case)
    fresh = optimizer.state_dict()["state"]
    check_hypers(optimizer, case, case["hypers"])
    marked = params["g0.b"]
    optimizer.mark([marked], do_wd=False, force_train=True)
    for step in range(2):
        for leaf, param in params.items():
            param.grad = grads[leaf][step].clone()
        optimizer.step()
    marks = {"do_wd", "force_train"}
    leaves = [leaf for group in case["groups"] for leaf in group]
    for leaf, keys in zip(leaves, case["state_keys"], strict=True):
        own = optimizer.state[params[leaf]]
        assert marks & own.keys() == marks & {*keys}
        assert bool(own.keys() - marks) >= bool({*keys} - marks)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["steps"] == 2
    optimizer.clear_state()
    cleared = optimizer.state_dict()["state"]
    for i, keys in enumerate(case["state_keys_after_clear"]):
        own = dict(cleared.get(i, {}))
        assert {name: own.pop(name) for name in keys} == dict.fromkeys(keys, False) | (
            {"force_train": True} if keys else {}
        )
        want = {name: t for name, t in fresh.get(i, {}).items() if "slow" not in name}
        for name, leaf in want.items():
            assert torch.equal(own[name], leaf), name
    optimizer.load_state_dict(saved)
    again = optimizer.state_dict()
    assert again["param_groups"] == saved["param_groups"]
    assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for i in saved["state"]
               for x, y in zip(saved["state"][i].values(), again["state"][i].values(), strict=True))  # fmt: skip


def test_every_case_is_used():
    assert {case["name"].split("/")[1] for case in CASES} == {"groups", "freeze", "set_hypers", "state_dict"}
