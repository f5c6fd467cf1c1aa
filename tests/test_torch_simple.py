"""Agreement with torch.optim in float64, all options: Adadelta, Adagrad, ASGD, Rprop and SparseAdam."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from registry import make_grads, make_params
from test_torch_parity import STEPS, compare
from torch import Tensor, nn

import functopt as fo
from functopt import tree

Options = dict[str, Any]


def options() -> list[tuple[Any, Any, Options, Options]]:
    """Ours and torch's, and what each is called with."""
    cases: list[tuple[Any, Any, Options, Options]] = []

    def add(ours: Any, theirs: Any, same: Options, own: Options | None = None, in_torch: Options | None = None) -> None:
        cases.append((ours, theirs, same | (own or {}), same | (in_torch or {})))

    for decay, maximize in itertools.product((0.0, 0.05), (False, True)):
        both = {"weight_decay": decay, "maximize": maximize}
        add(fo.adadelta, torch.optim.Adadelta, both)
        add(fo.adadelta, torch.optim.Adadelta, {"lr": 0.3, "rho": 0.5, "eps": 1e-3, **both})
        add(fo.adagrad, torch.optim.Adagrad, both)
        add(fo.adagrad, torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "eps": 0.3, **both})
        add(fo.adagrad, torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.2, **both})
        add(fo.asgd, torch.optim.ASGD, both)
        add(fo.asgd, torch.optim.ASGD, {"lr": 0.1, "lambd": 0.3, "alpha": 0.5, "t0": 20.0, **both})
    for maximize in (False, True):
        both = {"maximize": maximize}
        add(fo.rprop, torch.optim.Rprop, both)
        own = {"eta_minus": 0.3, "eta_plus": 1.5, "min_step_size": 0.02, "max_step_size": 0.04}
        in_torch = {"etas": (0.3, 1.5), "step_sizes": (0.02, 0.04)}
        add(fo.rprop, torch.optim.Rprop, {"lr": 0.03, **both}, own, in_torch)
        add(fo.rprop, torch.optim.Rprop, {"lr": 0.3, **both}, own, in_torch)  # out of bounds
    return cases


def name(case: Any) -> str:
    return "-".join([case[1].__name__, *(f"{key}={value}" for key, value in case[3].items() if value)])


CASES = options()


@pytest.fixture(autouse=True)
def _torch_counts_in_float64() -> Iterator[None]:
    """ASGD keeps its learning rate in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_on_given_gradients(case: Any):
    generator = torch.Generator().manual_seed(1)
    shapes = {key: p.shape for key, p in make_params()["body"].items()}
    grads = [
        {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()} for _ in range(STEPS)
    ]
    grads[10]["bias"] = torch.zeros(shapes["bias"])
    compare(case, torch.float64, lambda _, step: grads[step])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_on_a_quadratic(case: Any):
    sign = -1.0 if case[2].get("maximize") else 1.0
    solution = make_params(1)["body"]
    compare(case, torch.float64, lambda params, _: {key: sign * (p - 0.3 * solution[key]) for key, p in params.items()})


def test_the_averaged_parameters_of_asgd():
    tx = fo.asgd(0.1, 0.3, t0=3.0)
    params, grads = make_params()["body"], [g["body"] for g in make_grads()]
    mirror = {key: nn.Parameter(p.clone()) for key, p in params.items()}
    state, reference = tx.init(params), torch.optim.ASGD(mirror.values(), 0.1, 0.3, t0=3.0, foreach=False)
    for grad in grads:
        params, state = tx.update(grad, state, params)
        for key, p in mirror.items():
            p.grad = grad[key]
        reference.step()
        for key, p in mirror.items():
            want = reference.state[p]["ax"]
            torch.testing.assert_close(tree.get(state, "ax")[key], want, rtol=1e-13, atol=1e-13)
    assert not torch.equal(tree.get(state, "ax")["bias"], params["bias"])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (fo.adadelta, torch.optim.Adadelta),
        (fo.adagrad, torch.optim.Adagrad),
        (fo.asgd, torch.optim.ASGD),
        (fo.rprop, torch.optim.Rprop),
    ],
)
def test_default_numbers_are_those_of_torch(ours: Any, theirs: Any):
    defaults = {key: p.default for key, p in inspect.signature(theirs).parameters.items()}
    if "etas" in defaults:
        defaults["eta_minus"], defaults["eta_plus"] = defaults.pop("etas")
        defaults["min_step_size"], defaults["max_step_size"] = defaults.pop("step_sizes")
    own = {key: p.default for key, p in inspect.signature(ours).parameters.items()}
    shared = defaults.keys() & own.keys()
    assert {"lr", "maximize"} <= shared
    assert {key: own[key] for key in shared} == {key: defaults[key] for key in shared}
    numbers = {
        key for key, value in defaults.items() if isinstance(value, (float, int)) and not isinstance(value, bool)
    }
    assert numbers <= shared


def rows_of(grad: Tensor, rows: list[int]) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([rows]), grad[rows], grad.shape, check_invariants=True)


@pytest.mark.parametrize("maximize", [False, True])
def test_sparse_adam(maximize: bool):
    """Where nothing has been said of a row, neither it nor its averages move."""
    both: Options = {"lr": 0.05, "eps": 1e-3, "maximize": maximize}
    tx = fo.sparse_adam(**both, beta1=0.8, beta2=0.95)
    params = {"table": make_params()["body"]["weight"]}
    mirror = nn.Parameter(params["table"].clone())
    state, reference = tx.init(params), torch.optim.SparseAdam([mirror], **both, betas=(0.8, 0.95))
    for i, grad in enumerate(g["body"]["weight"] for g in make_grads()):
        rows = [[0], [1, 3], [3]][i % 3]
        mirror.grad = rows_of(grad, rows)
        dense = mirror.grad.to_dense()
        params, state = tx.update({"table": dense}, state, params)
        reference.step()
        torch.testing.assert_close(params["table"], mirror.detach(), rtol=1e-12, atol=1e-12)
    assert torch.equal(params["table"][2], make_params()["body"]["weight"][2])
