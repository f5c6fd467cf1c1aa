"""The lesson on momentum: its curves are the seeds' and those of closed forms, and its picture shows them."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

momentum: Any = import_module("momentum")
SEEDS = np.load(Path(__file__).parent / "seeds.npz")


def closed_form(y: np.ndarray, beta: float, variant: str) -> np.ndarray:
    """The same as a product with the matrix of all weights."""
    t = np.arange(len(y))
    weights = np.tril(beta ** np.clip(t[:, None] - t, 0, None).astype(float))
    if variant == "debiased":
        return weights @ y / weights.sum(1)
    coefficient = 1.0 if variant == "undamped" else 1 - beta
    return coefficient * weights @ y + beta ** (t + 1.0) * y[0]


@pytest.mark.parametrize("variant", momentum.VARIANTS)
@pytest.mark.parametrize("name", ["noise", "parabola"])
def test_curves(name, variant):
    y, betas = SEEDS[f"A/curves/{name}/y"], SEEDS[f"A/curves/{name}/betas"]
    assert tuple(betas) == momentum.BETAS
    row = momentum.VARIANTS.index(variant) + 1
    for i, beta in enumerate(betas.tolist()):
        got = momentum.curve(torch.from_numpy(y), beta, variant).numpy()
        # rounding of sums of 200 numbers that are about 1 and partly cancel
        np.testing.assert_allclose(got, closed_form(y, beta, variant), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(got, SEEDS[f"A/curves/{name}/mom{row}"][i], rtol=1e-12, atol=1e-13)


def test_data_are_those_of_the_notebook():
    sets = momentum.data()
    (noisy, flat), (curved, parabola) = sets["noise"], sets["parabola"]
    assert noisy.shape == curved.shape == (200,)
    assert torch.equal(flat, torch.full((200,), 0.3, dtype=torch.float64))
    assert curved[0] == 0.5
    x = np.linspace(-4, 4, 200)
    np.testing.assert_allclose(parabola, 1 - (x / 3) ** 2, rtol=1e-12, atol=1e-15)
    # three standard errors of 200 draws
    assert abs((noisy - flat).std() - 1) < 3 / 20
    assert abs((curved - parabola)[1:].std() - 0.1) < 3 * 0.1 / 20


@pytest.mark.parametrize("beta", [0.5, 0.7, 0.9])
def test_readings_are_those_of_theory(beta):
    sets = momentum.data(2000)
    curves = {(n, v, beta): momentum.curve(sets[n][0], beta, v) for n in sets for v in momentum.VARIANTS}
    reading = momentum.read(curves, sets, beta)
    # an average trails a parabola by just so many points, once its start is forgotten
    assert reading.lag == pytest.approx(beta / (1 - beta), rel=1e-6)
    # measured on 1000 random points, for beta 0.9 worth about 50
    assert reading.height == pytest.approx(1 / (1 - beta), rel=0.05)
    assert reading.spread == pytest.approx(((1 - beta) / (1 + beta)) ** 0.5, rel=0.2)
    assert abs(reading.debiased) < abs(reading.damped)


def test_the_example_at_reduced_size(tmp_path, capsys):
    out = tmp_path / "momentum.png"
    figure = momentum.main(out, points=40, seed=1)
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"picture: {out}" in printed
    table = [line.split() for line in printed.splitlines()[1:5]]
    assert [float(row[0]) for row in table] == list(momentum.BETAS)
    assert len(figure.axes) == 24
    assert [ax.get_title() for ax in figure.axes[:4]] == [f"beta = {beta:g}" for beta in momentum.BETAS]
    rows = [ax.get_ylabel() for ax in figure.axes[::4]]
    assert rows == [f"{name}, {variant}" for name in ("noise", "parabola") for variant in momentum.VARIANTS]
    assert {ax.get_xlabel() for ax in figure.axes[-4:]} == {"point"}
    sets = momentum.data(40, seed=1)
    for i, ax in enumerate(figure.axes):
        name, variant = rows[i // 4].split(", ")
        points, truth, average = (line.get_ydata() for line in ax.get_lines())
        np.testing.assert_array_equal(points, sets[name][0])
        np.testing.assert_array_equal(truth, sets[name][1])
        want = closed_form(sets[name][0].numpy(), momentum.BETAS[i % 4], variant)
        np.testing.assert_allclose(average, want, rtol=1e-12, atol=1e-13)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["points", "without noise", "average"]
