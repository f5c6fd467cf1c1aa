"""The seeds' reference trajectories: fastai's notebook, article and library, in float64.

Everything is driven by the JSON file: it says what each case computes, the NPZ file holds the numbers. Set
``FUNCTOPT_SEEDS`` to a path without extension to check other drawings of the same cases.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import functopt as fo
from functopt import tree

STEM = os.environ.get("FUNCTOPT_SEEDS", str(Path(__file__).parent / "seeds"))
SPEC = json.loads(Path(STEM + ".json").read_text())
ARRAYS = np.load(STEM + ".npz")
RTOL, ATOL = 1e-9, 1e-12

# Groups, set_hypers, freezing and state_dict are in test_seeds_groups.py.
GROUPS = ("B/groups/", "B/freeze/", "B/set_hypers/", "B/state_dict/")
CASES = [case for case in SPEC["cases"] if not case["name"].startswith(GROUPS)]
TRAJECTORIES = [case for case in CASES if "data" in case]


def array(key: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(ARRAYS[key], dtype=np.float64))


def close(got: Any, want: Any, what: str = "", atol: float = ATOL) -> None:
    got, want = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(want, dtype=torch.float64)
    torch.testing.assert_close(got, want, rtol=RTOL, atol=atol, msg=lambda m: f"{what}: {m}")


# From a case to an optimizer


def notebook(family: str, variant: dict, h: dict) -> fo.Transform:
    """Section A: fastai's notebook, whose decay runs after the step unless the variant says otherwise."""
    wd, moments = (
        h.get("wd", 0.0),
        {k: h[n] for k, n in (("beta1", "mom"), ("beta2", "sqr_mom"), ("eps", "eps")) if n in h},
    )
    if family.startswith("sgd"):
        return fo.chain(fo.add_decayed_weights(wd), fo.scale_by_lr()) if variant["decay"] else fo.scale_by_lr()
    if family.startswith("momentum"):
        buffer = fo.rename(fo.ema(h["mom"], debias=False), decay="momentum") if variant["damp"] else fo.trace(h["mom"])
        if variant.get("decay") == "l2_reg":  # it runs after the statistics, so that it only touches the gradient left
            return fo.chain(buffer, fo.scale_by_lr())
        return fo.chain(buffer, fo.scale_by_lr(), fo.shrink_weights(wd))
    if family.startswith("lamb"):
        return fo.lamb(**moments, weight_decay=wd, form="notebook")
    adam = fo.chain(fo.scale_by_adam(**moments, damped=variant["damp"]), fo.scale_by_lr(), fo.shrink_weights(wd))
    return fo.sequence(adam, fo.scale_by_lr()) if variant.get("xtra") == "sgd_step" else adam


def article(family: str, h: dict) -> fo.Transform:
    """Section C: the article's NAdam."""
    form = {"nadam_literal": "article_raw", "nadam_formula": "article"}[family]
    return fo.nadam(
        beta1=h["mom"], beta2=h["sqr_mom"], eps=h["eps"], weight_decay=h["wd"], form=form, decoupled=True
    )  # fmt: skip


def fastai(case: dict) -> fo.Transform:
    """Section B: fastai's library, whose decay runs before the step."""
    h, given = case["resolved"][0], case["given"]
    decoupled = given.get("decouple_wd", True)
    no_decay = {leaf for leaf, marks in case.get("marks", {}).items() if marks.get("do_wd") is False}
    mask = {leaf: leaf not in no_decay for leaf in SPEC["data"][case["data"]]["shapes"]} if no_decay else None
    common = {"weight_decay": h["wd"], "mask": mask}
    either = {**common, "decoupled": decoupled}
    betas = {"beta1": h["mom"], "beta2": h.get("sqr_mom"), "eps": h.get("eps")}
    # fastai divides by 1 - mom^t with the present mom, which matters where mom changes between steps
    debias = "power" if "mom" in case.get("per_step", {}) else "weight"
    match case["factory"]:
        case "SGD":
            tx = fo.sgd(momentum=h["mom"], **either)
        case "RMSProp":
            tx = fo.rmsprop(decay=h["sqr_mom"], eps=h["eps"], momentum=h["mom"], momentum_of="gradient", **either)
        case "Adam":
            tx = (fo.adamw if decoupled else fo.adam)(**betas, **common, debias=debias)
        case "RAdam":
            tx = fo.radam(**betas, **either, softplus_beta=h["beta"], eps_debiased=True)
        case "QHAdam":
            tx = fo.qhadam(**betas, **either, nu1=h["nu_1"], nu2=h["nu_2"])
        case "Larc":
            clip = given.get("clip", True)
            tx = fo.larc(
                momentum=h["mom"], trust_coefficient=h["trust_coeff"], eps=h["eps"], clip=clip, **either
            )  # fmt: skip
        case "Lamb":
            tx = fo.lamb(**betas, **either, form="fastai", debias=debias)
        case "ranger":
            tx = fo.ranger(**betas, **either, softplus_beta=h["beta"])
        case other:
            raise KeyError(other)
    if "lookahead" in case:
        k, alpha = case["lookahead"]["k"], case["lookahead"]["alpha"]
        if case["factory"] == "ranger":
            return tx.with_hypers(sync_period=k, slow_step_size=alpha)
        return fo.lookahead(tx, sync_period=k, slow_step_size=alpha)
    return tx


def build(case: dict) -> fo.Transform:
    family = case["name"].split("/")[1]
    if case["section"] == "A":
        return notebook(family, case.get("variant") or {}, case["resolved"])
    return article(family, case["resolved"]) if case["section"] == "C" else fastai(case)


def resolved(case: dict) -> dict:
    return case["resolved"][0] if isinstance(case["resolved"], list) else case["resolved"]


def plan(case: dict, tx: fo.Transform) -> dict[str, Any]:
    """The hypers of each step, under our names: a number, or a tensor with one value per step."""
    names = {"lr": "lr", "mom": "momentum" if "momentum" in tx.hypers else "beta1"}
    steps = {"lr": resolved(case)["lr"], **case.get("per_step", {})}
    return {names[k]: array(v["npz"]) if isinstance(v, dict) else v for k, v in steps.items()}


def at(hypers: dict[str, Any], step: int) -> dict[str, float]:
    return {k: float(v[step]) if isinstance(v, torch.Tensor) else v for k, v in hypers.items()}


def data_of(case: dict) -> tuple[list[str], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The leaves of a case, their gradients at every step, and their initial values."""
    leaves = list(SPEC["data"][case["data"]]["shapes"])
    grads = {leaf: array(f"data/{case['data']}/grads/{leaf}") for leaf in leaves}
    init = {leaf: array(f"data/{case['data']}/init/{leaf}") for leaf in leaves}
    return leaves, grads, init


def steps_of(case: dict) -> int:
    return SPEC["data"][case["data"]]["steps"]


# What a state holds, in the seeds' words


def entry(state: Any, *names: str) -> Any:
    """The first of these entries that the state has."""
    for name in names:
        try:
            return tree.get(state, name)
        except KeyError:
            continue
    raise KeyError(names)


def in_our_state(word: str, state: Any, leaf: str, lr: float) -> torch.Tensor:
    match word:
        case "grad_avg":
            return entry(state, *(f"{name}.total.{leaf}" for name in ("mu", "trace.trace", "trace", "ema.ema", "ema")))
        case "sqr_avg":
            return entry(state, f"nu.total.{leaf}")
        case "slow":
            return entry(state, f"slow.{leaf}")
        case "local_lr":
            return lr * entry(state, f"ratio.{leaf}")
    raise KeyError(word)


def check_state(case: dict, state: Any, leaf: str, lr: float) -> None:
    for key in case["keys"]:
        if "/state/" not in key or not key.endswith("/" + leaf):
            continue
        word, want = key.split("/state/")[1].split("/")[0], array(key)
        if word == "step":
            check_steps(case, state, leaf, int(want))
        else:
            close(in_our_state(word, state, leaf, lr).reshape(want.shape), want, f"state/{word}/{leaf}")


def check_steps(case: dict, state: Any, leaf: str, steps: int) -> None:
    """There is no step count: the weight of the second moment says how many gradients are in it."""
    beta, weight = resolved(case)["sqr_mom"], tree.get(state, "nu.weight")
    weight = weight[leaf] if isinstance(weight, dict) else weight
    damped = (case.get("variant") or {}).get("damp", True)
    close(weight, (1 - beta**steps) / (1 if damped else 1 - beta), f"steps of {leaf}")


def check_grads_left(case: dict, leaves: list[str], grads: Any, rows: Any) -> None:
    """The notebook's l2_reg changes the gradient in place; here that gradient is what add_decayed_weights returns."""
    offset = 1 if (case.get("variant") or {}).get("xtra") == "l2_reg" else 0
    link = fo.add_decayed_weights(resolved(case)["wd"])
    for step in range(steps_of(case)):
        params = {leaf: rows[leaf][step + offset] for leaf in leaves}
        left, _ = link.transform({leaf: grads[leaf][step] for leaf in leaves}, (), params)
        for leaf in leaves:
            close(left[leaf], array(f"{case['name']}/grads_left/{leaf}")[step], f"grads_left/{leaf}")


def is_missing(case: dict, leaf: str, step: int) -> bool:
    return step in case.get("no_grad", {}).get(leaf, [])


@pytest.mark.parametrize("case", [c for c in TRAJECTORIES if "no_grad" not in c], ids=lambda case: case["name"])
def test_trajectory_of_the_pure_functions(case):
    leaves, grads, params = data_of(case)
    tx = build(case)
    hypers = plan(case, tx)
    state, rows = tx.init(params), {leaf: [params[leaf]] for leaf in leaves}
    for step in range(steps_of(case)):
        params, state = tx.update({leaf: grads[leaf][step] for leaf in leaves}, state, params, at(hypers, step))
        for leaf in leaves:
            rows[leaf].append(params[leaf])
    for leaf in leaves:
        close(torch.stack(rows[leaf]), array(f"{case['name']}/params/{leaf}"), f"params/{leaf}")
        check_state(case, state, leaf, at(hypers, steps_of(case) - 1)["lr"])
    if any("/grads_left/" in key for key in case["keys"]):
        check_grads_left(case, leaves, grads, rows)


@pytest.mark.parametrize("case", TRAJECTORIES, ids=lambda case: case["name"])
def test_trajectory_of_the_wrapper(case):
    leaves, grads, init = data_of(case)
    tx = build(case)
    hypers = plan(case, tx)
    params = {leaf: torch.nn.Parameter(init[leaf].clone()) for leaf in leaves}
    optimizer = fo.StatefulOptimizer(params.items(), tx)
    rows = {leaf: [init[leaf]] for leaf in leaves}
    for step in range(steps_of(case)):
        optimizer.param_groups[0].update(at(hypers, step))
        for leaf in leaves:
            params[leaf].grad = None if is_missing(case, leaf, step) else grads[leaf][step].clone()
        optimizer.step()
        for leaf in leaves:
            rows[leaf].append(params[leaf].detach().clone())
    for leaf in leaves:
        close(torch.stack(rows[leaf]), array(f"{case['name']}/params/{leaf}"), f"params/{leaf}")
        check_state(case, tree.unpack(optimizer._inner.state), leaf, at(hypers, steps_of(case) - 1)["lr"])


# Averages: the notebook's debias and its curves


def test_debias_is_the_weight_of_an_ema():
    for case in CASES:
        if case["name"] != "A/debias":
            continue
        mom, damp, steps, values = (array(f"A/debias/{key}") for key in ("mom", "damp", "step", "values"))
        for i, beta in enumerate(mom.tolist()):
            for j, coefficient in enumerate(damp[i].tolist()):
                ema, weights = fo.Ema.zeros({"x": torch.zeros(1, dtype=torch.float64)}, beta), []
                for _ in range(int(steps.max())):
                    ema = ema.update({"x": torch.ones(1, dtype=torch.float64)}, beta, coefficient)
                    weights.append(ema.weight)
                for k, step in enumerate(steps.tolist()):
                    close(weights[int(step) - 1] if step else 0.0, values[i, j, k])
        return
    pytest.fail("no case A/debias")


@pytest.mark.parametrize("case", [c for c in CASES if c["name"].startswith("A/curves/")], ids=lambda c: c["name"])
def test_curves_of_averages(case):
    y, betas, mom1, mom2, mom3 = (array(f"{case['name']}/{key}") for key in ("y", "betas", "mom1", "mom2", "mom3"))
    for i, beta in enumerate(betas.tolist()):
        zero = fo.Ema.zeros(y[0], beta)
        started = zero._replace(total=y[0])
        curves: list[list] = [[], [], []]
        emas = [started, started, zero]
        for value in y:
            emas = [emas[0].update(value, beta, 1.0), emas[1].update(value, beta), emas[2].update(value, beta)]
            for curve, point in zip(curves, (emas[0].total, emas[1].total, emas[2].mean), strict=True):
                curve.append(point)
        for curve, want in zip(curves, (mom1[i], mom2[i], mom3[i]), strict=True):
            close(torch.stack(curve), want)


# Section D: schedules

SCHEDULES = {
    "SchedLin": fo.linear_schedule,
    "SchedCos": fo.cosine_schedule,
    "SchedNo": lambda start, end: fo.constant_schedule(start),
    "SchedExp": fo.exponential_schedule,
    "SchedPoly": fo.power_schedule,
}


def build_schedule(case: dict) -> Any:
    kind = case["name"].split("/")[1]
    if kind == "combine_scheds":
        return fo.join(case["pcts"], [SCHEDULES[name](*args) for name, *args in case["scheds"]])
    if kind == "combined_cos":
        pct, start, middle, end = (
            torch.tensor(a, dtype=torch.float64) if isinstance(a, list) else a for a in case["args"]
        )
        return fo.join([pct, 1 - pct], [fo.cosine_schedule(start, middle), fo.cosine_schedule(middle, end)])
    return SCHEDULES[kind](*case["args"])


@pytest.mark.parametrize("case", [c for c in CASES if c["section"] == "D"], ids=lambda case: case["name"])
def test_schedule(case):
    if "n" in case:
        schedule = fo.exponential_schedule(case["min_lr"], case["max_lr"], case["n"])
        close(schedule(torch.arange(case["n"] + 1)), array(f"{case['name']}/lr"))
        return
    schedule, position = build_schedule(case), array(f"{case['name']}/pos")
    for name in ("values", "values_ref", "values_lib"):
        if f"{case['name']}/{name}" in case["keys"]:
            want = array(f"{case['name']}/{name}")
            got = torch.stack([schedule(p) for p in position])
            # fastai keeps the fractions of combine_scheds in float32
            close(got, want, name, atol=1e-6 * float(want.abs().max()) if name == "values_lib" else ATOL)


def test_every_case_is_used():
    used = {c["name"] for c in TRAJECTORIES} | {c["name"] for c in CASES if c["section"] == "D"}
    used |= {c["name"] for c in CASES if c["name"].startswith(("A/curves/", "A/debias"))}
    assert {c["name"] for c in CASES} == used
