"""Orthogonalisation, and what Muon takes for a matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import functopt as fo
from functopt.dimensions import MatrixLeaves
from functopt.linalg import NS_COEFFS


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polar(x: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


# The function


@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (3, 8), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("preconditioning", ["frobenius", "spectral", "aol", "schatten"])
def test_finds_the_nearest_orthogonal_matrix(shape: tuple[int, ...], preconditioning: str):
    x = matrix(*shape)
    got = fo.orthogonalize(x, ns_coeffs="polar_express", ns_steps=16, preconditioning=preconditioning)
    want = polar(x)
    if preconditioning == "aol":  # which scales rows, so that it is an orthogonal matrix next to another one
        short = got @ got.mT if shape[-2] <= shape[-1] else got.mT @ got
        want, got = torch.eye(min(shape[-2:]), dtype=x.dtype).expand_as(short), short
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("standard", 0.6, 1.3), ("dion", 0.7, 1.2), ("polar_express", 0.85, 1.15)]
)
def test_five_steps_bring_singular_values_near_one(name: str, low: float, high: float):
    u, s, vh = torch.linalg.svd(matrix(20, 30), full_matrices=False)
    s = torch.logspace(-1.5, 0, 20, dtype=torch.float64)
    found = torch.linalg.svdvals(fo.orthogonalize((u * s) @ vh, ns_coeffs=name))
    assert low < found.min()
    assert found.max() < high


def test_a_step_is_the_polynomial_of_singular_values():
    x = matrix(4, 6)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = s / (x.norm() + 0.1)
    rows = [(3.0, -3.5, 1.4), (2.0, -1.5, 0.5)]
    for a, b, c in [*rows, rows[-1]]:
        s = a * s + b * s**3 + c * s**5
    got = fo.orthogonalize(x, 0.1, ns_coeffs=rows, ns_steps=3)
    torch.testing.assert_close(got, (u * s) @ vh, rtol=1e-12, atol=1e-12)
    floor = fo.orthogonalize(x, 100.0, ns_coeffs=(1.0, 0.0, 0.0), eps_as_floor=True)
    torch.testing.assert_close(floor, x / 100, rtol=1e-14, atol=0)


def optimal_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd polynomial of degree 5 that is nearest to 1 between two values, by Remez' exchange."""
    if low / high > 1 - 5e-6:
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    q, r = (3 * low + high) / 4, (low + 3 * high) / 4
    a = b = c = 0.0
    for _ in range(100):
        points = np.array([low, q, r, high])
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        a, b, c, _error = np.linalg.solve(np.stack([points, points**3, points**5, signs], 1), np.ones(4))
        root = math.sqrt(9 * b * b - 20 * a * c)
        q, r = (math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
    return a, b, c


def test_the_polar_express_is_optimal_at_every_step():
    """Its published numbers, from the definition: values from 1e-3, or 0.0240733 of the largest if that is more."""
    low, high = 1e-3, 1.0
    for step, (a, b, c) in enumerate(NS_COEFFS["polar_express"]):
        factor = 1.01 if step < 7 else 1.0  # a margin for rounding in bfloat16
        want = np.array(optimal_quintic(max(low, 0.02407327424182761 * high), high))
        value = lambda x, p: p[0] * x + p[1] * x**3 + p[2] * x**5
        want = want * 2 / (value(low, want) + value(high, want))  # centred on 1 again
        np.testing.assert_allclose([a * factor, b * factor**3, c * factor**5], want, rtol=2e-5)
        low = value(low, want)
        high = 2 - low


def test_a_stack_is_its_matrices_and_nothing_is_nothing():
    x = matrix(3, 4, 2)
    torch.testing.assert_close(
        fo.orthogonalize(x), torch.stack([fo.orthogonalize(m) for m in x]), rtol=1e-12, atol=1e-12
    )
    assert not fo.orthogonalize(torch.zeros(3, 2)).any()
    assert fo.orthogonalize(torch.zeros(3, 0)).shape == (3, 0)
    assert fo.orthogonalize(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ns_coeffs": "quick"},
            r"ns_coeffs must be one of \['standard', 'dion', 'polar_express'\] or numbers, got 'quick'",
        ),
        ({"ns_coeffs": (1.0, 2.0)}, "must be three numbers, or rows of three"),
        ({"ns_coeffs": ()}, "must be three numbers, or rows of three"),
        ({"preconditioning": "none"}, "preconditioning must be one of .*, got 'none'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str):
    for make in (lambda **o: fo.orthogonalize(matrix(2, 2), **o), fo.scale_by_muon):
        with pytest.raises(ValueError, match=message):
            make(**options)


def test_other_wrong_options():
    with pytest.raises(ValueError, match=r"expected a matrix or a stack of matrices, got shape \[3\]"):
        fo.orthogonalize(torch.ones(3))
    with pytest.raises(ValueError, match="scale_by_muon: form must be one of"):
        fo.scale_by_muon(form="paper")
    with pytest.raises(ValueError, match="scale_by_shape: form must be one of"):
        fo.scale_by_shape(form="paper")
    with pytest.raises(ValueError, match="scale_by_shape: adjust_lr_fn must be one of"):
        fo.scale_by_shape(adjust_lr_fn="none")


# Which leaves

PARAMS = {"conv": matrix(6, 2, 3, 3), "linear": matrix(4, 8), "bias": matrix(4), "heads": matrix(3, 5, 2)}
GRADS = {name: matrix(*p.shape, seed=i + 1) for i, (name, p) in enumerate(PARAMS.items())}
EXACT: Any = {"ns_coeffs": "polar_express", "ns_steps": 16}


def updates(tx: fo.Transform) -> dict[str, torch.Tensor]:
    return tx.transform(GRADS, tx.init(PARAMS), PARAMS)[0]


def test_only_what_has_two_axes_is_a_matrix():
    got = updates(fo.scale_by_muon(**EXACT))
    torch.testing.assert_close(got["linear"], polar(GRADS["linear"]))
    for name in ("conv", "bias", "heads"):
        assert got[name] is GRADS[name]
    state = fo.scale_by_muon().init(PARAMS)
    assert {name for name, leaf in state.mu.total.items() if isinstance(leaf, torch.Tensor)} == {"linear"}


def test_one_specification_for_linear_and_convolution():
    got = updates(fo.scale_by_muon(**EXACT, weight_dimension_numbers=fo.MuonDimensionNumbers(reduction_axis=...)))
    for name in ("conv", "linear", "heads"):
        flat = GRADS[name].flatten(1)
        torch.testing.assert_close(got[name], polar(flat).view_as(GRADS[name]))
    assert got["bias"] is GRADS["bias"]


def by_name(params: dict[str, torch.Tensor]) -> dict[str, fo.MuonDimensionNumbers | None]:
    return {name: SPECS[name] for name in params}


SPECS = {
    "conv": fo.MuonDimensionNumbers((1, 2, 3), 0),
    "linear": None,
    "bias": None,
    "heads": fo.MuonDimensionNumbers(-1, 1),
}


@pytest.mark.parametrize("numbers", [SPECS, by_name], ids=["tree", "function"])
def test_a_specification_for_each_leaf(numbers: Any):
    got = updates(fo.scale_by_muon(**EXACT, weight_dimension_numbers=numbers))
    torch.testing.assert_close(got["conv"], polar(GRADS["conv"].flatten(1)).view_as(GRADS["conv"]))
    torch.testing.assert_close(got["heads"], polar(GRADS["heads"]))
    assert got["linear"] is GRADS["linear"]
    sized = updates(fo.scale_by_shape(weight_dimension_numbers=numbers))
    torch.testing.assert_close(sized["heads"], math.sqrt(5 / 2) * GRADS["heads"])
    torch.testing.assert_close(sized["conv"], GRADS["conv"])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (fo.MuonDimensionNumbers(0, 0), r"reduced axes \(0,\) and the output axes \(0,\) .* must be different ones"),
        (fo.MuonDimensionNumbers((), 0), "at least one each"),
        (fo.MuonDimensionNumbers(4, 0), "names an axis that a leaf of shape .* does not have"),
        ({**SPECS, "linear": {"weight": None}}, "weight_dimension_numbers is no prefix of params: 'linear.weight'"),
        (dict.fromkeys(PARAMS, 3), "expected MuonDimensionNumbers or None at a leaf, got 3"),
    ],
)
def test_wrong_specifications(numbers: Any, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        fo.scale_by_muon(weight_dimension_numbers=numbers).init(PARAMS)


# The recipe


def test_other_leaves_are_adamw_s():
    tx = fo.muon(0.1, eps=1e-8, weight_decay=0.5, adam_beta1=0.8, adam_weight_decay=0.1, adam_lr=0.01)
    adamw = fo.adamw(0.01, 0.8, weight_decay=0.1, nesterov=True)
    params, state = PARAMS, tx.init(PARAMS)
    alone = {name: p for name, p in PARAMS.items() if name != "linear"}
    adam_state = adamw.init(alone)
    for _ in range(3):
        params, state = tx.update(GRADS, state, params)
        alone, adam_state = adamw.update({name: GRADS[name] for name in alone}, adam_state, alone)
    for name, p in alone.items():
        torch.testing.assert_close(params[name], p, rtol=1e-13, atol=1e-13)


def test_one_learning_rate_for_all_and_hypers_by_name():
    tx = fo.muon()
    assert set(tx.hypers) == {
        "lr", "momentum", "eps", "weight_decay", "consistent_rms",
        "adam_beta1", "adam_beta2", "adam_eps_root", "adam_weight_decay",
    }  # fmt: skip
    assert fo.muon(adjust_lr_fn="match_rms_adamw").hypers["consistent_rms"] == 0.2
    assert fo.muon(adam_lr=0.1).hypers["adam_lr"] == 0.1


def test_match_rms_means_it():
    got = updates(fo.chain(fo.scale_by_muon(**EXACT), fo.scale_by_shape(0.2, adjust_lr_fn="match_rms_adamw")))
    torch.testing.assert_close(got["linear"].square().mean().sqrt(), torch.tensor(0.2, dtype=torch.float64))


def test_a_mask_of_numbers_is_a_value_of_its_own():
    numbers = {"conv": fo.MuonDimensionNumbers(), "linear": None, "bias": None, "heads": None}
    tx = fo.muon(muon_weight_dimension_numbers=numbers)
    numbers["conv"] = None
    same = fo.muon(muon_weight_dimension_numbers={**numbers, "conv": fo.MuonDimensionNumbers()})
    assert tx == same
    assert hash(tx) == hash(same)
    assert tx != fo.muon(muon_weight_dimension_numbers=numbers)
    assert MatrixLeaves(others=True)(PARAMS) == {"conv": True, "linear": False, "bias": True, "heads": True}
