"""The sweep over learning rates: every curve is that of training alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import functopt as fo
from functopt.training.lr_sweep import LRSweep, lr_sweep, pure_loss
from functopt.training.random import random_state

LRS = np.geomspace(1e-3, 1e3, 7)


def data(count: int = 48) -> TensorDataset:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return TensorDataset(x, (x[:, :3].sum(1) > 0).long())


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()


def alone(make: Any, lr: float, batches: list[Any], steps: int) -> list[float]:
    """Train a network with torch's own classes, and return the losses."""
    model = network()
    optimizer = make(model.parameters(), lr=lr)
    losses = []
    for i in range(steps):
        x, y = batches[i % len(batches)]
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


MAKES = {
    "sgd": (fo.sgd(0.1, momentum=0.9), lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9)),
    "adamw": (
        fo.adamw(weight_decay=0.1, debias="power"),
        lambda params, lr: torch.optim.AdamW(params, lr, weight_decay=0.1),
    ),
    "a schedule is replaced": (fo.sgd(fo.linear_schedule(1.0, 0.0, 5)), torch.optim.SGD),
}


@pytest.mark.parametrize("name", MAKES)
def test_every_curve_is_that_of_training_alone(name):
    tx, make = MAKES[name]
    batches = [*DataLoader(data(), batch_size=16)]
    found = lr_sweep(*pure_loss(network(), cross_entropy), tx, batches, LRS[:4], steps=10, compile=False)
    assert found.losses.shape == (10, 4)
    for column, lr in enumerate(LRS[:4]):
        np.testing.assert_allclose(found.losses[:, column], alone(make, lr, batches, 10), rtol=1e-10, atol=0)


@pytest.mark.usefixtures("_graphs_only")
def test_compiled_or_in_chunks_it_is_the_same():
    arguments = [*pure_loss(network(), cross_entropy), fo.sgd(0.1), [*DataLoader(data(), batch_size=16)], LRS[:3]]
    plain = lr_sweep(*arguments, steps=5, compile=False)
    for options in ({"compile": False, "chunk": 2}, {"compile": True}):
        np.testing.assert_allclose(lr_sweep(*arguments, steps=5, **options).losses, plain.losses, rtol=1e-10)


def quadratic(params: dict[str, Tensor], batch: Any) -> Tensor:
    """Fall by the factor ``(1 - lr)^2`` at each step, from 1/2."""
    return 0.5 * (params["x"] ** 2).sum()


def sweep_quadratic(lrs: Any, steps: int = 60, **options: Any) -> LRSweep:
    start = {"x": torch.ones(1, dtype=torch.float64)}
    return lr_sweep(quadratic, start, fo.sgd(0.1), [torch.zeros(1)], lrs, steps=steps, compile=False, **options)


def test_a_quadratic_in_closed_form():
    """Gradient descent on x²/2 converges for rates below 2, best at 1."""
    lrs = np.array([0.01, 0.5, 0.9, 1.5, 1.95, 2.05, 1e3])
    found = sweep_quadratic(lrs)
    with np.errstate(over="ignore"):
        want = 0.5 * (1 - lrs) ** (2 * np.arange(60)[:, None])
    np.testing.assert_allclose(found.losses[:, :6], want[:, :6], rtol=1e-12)
    assert (found.best_lr, found.largest_stable()) == (0.9, 1.95)
    # 999^(2k)/2 passes the largest double, 1.8e308, at k = 52; its parameter only at 103
    assert found.diverged_at.tolist() == [-1, -1, -1, -1, -1, -1, 52]
    assert np.isnan(found.losses[53:, 6]).all()
    assert np.isnan(found.final).tolist() == [False] * 6 + [True]
    assert np.isfinite(found[:52].final).all()
    # 0.95^(2k) falls by half in 7 steps, and hardly in one
    assert found[:2].largest_stable() == 1.5
    np.testing.assert_allclose(sweep_quadratic(lrs, smooth=0.0).final[:6], want[-1, :6], rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 20, 59])
def test_the_first_steps_are_a_shorter_sweep(steps):
    lrs = [0.1, 1.2, 30.0, 1e9]
    long, short = sweep_quadratic(lrs)[:steps], sweep_quadratic(lrs, steps)
    np.testing.assert_array_equal(long.losses, short.losses)
    np.testing.assert_array_equal(long.diverged_at, short.diverged_at)
    np.testing.assert_array_equal(long.final, short.final)
    assert (long.best_lr, long.largest_stable(), len(long)) == (short.best_lr, short.largest_stable(), steps)


def test_a_network_that_only_guesses_is_not_stable():
    """Its loss is finite, and even below the first one, by next to nothing."""
    found = sweep_quadratic([0.01, 1.0])
    stuck = LRSweep(
        np.array([0.1, 1.0]), np.array([[2.32, 2.32], [1.0, 90.0], [0.5, 2.30]]), np.array([-1, -1]), 0.0, found.result
    )
    assert (stuck.best_lr, stuck.largest_stable(), stuck.largest_stable(gain=0.0)) == (0.1, 0.1, 1.0)


def test_when_all_diverge_or_none_learns():
    lost = sweep_quadratic([1e100, 1e120])
    assert (lost.best_lr, lost.largest_stable()) == (None, None)
    assert repr(lost) == "LRSweep(2 learning rates, 1e+100 to 1e+120, 60 steps; best: none, largest stable: none)"
    worse = sweep_quadratic([2.5, 3.0], steps=5)
    assert (worse.best_lr, worse.largest_stable()) == (2.5, None)
    for found in (lost, worse):
        found.plot().figure.canvas.draw()  # pyright: ignore[reportAttributeAccessIssue]
        found.plot_curves().figure.canvas.draw()  # pyright: ignore[reportAttributeAccessIssue]


def test_model_loader_and_random_numbers_are_as_before():
    model, generator = network(), torch.Generator().manual_seed(3)
    model[3].bias.requires_grad_(False)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    loss, params = pure_loss(model, cross_entropy)
    assert "3.bias" not in params
    start = {name: value.clone() for name, value in params.items()}
    numbers, own = random_state(), generator.get_state()
    for its_own in (None, generator):
        loader = DataLoader(data(), batch_size=16, shuffle=True, generator=its_own)
        lr_sweep(loss, params, fo.sgd(0.1), loader, LRS[:2], steps=4, compile=False)
    assert torch.equal(generator.get_state(), own)
    assert torch.equal(random_state()["torch"], numbers["torch"])
    assert all(map(torch.equal, model.state_dict().values(), before))
    assert all(torch.equal(params[name], value) for name, value in start.items())


def test_batches_that_the_steps_gather():
    batches = fo.Batches(tuple(data().tensors), 16, epochs=1, seed=4)
    loss, params = pure_loss(network(), cross_entropy)
    found = lr_sweep(loss, params, fo.sgd(0.1), batches, [0.1], steps=7, compile=False)
    again = [*fo.Batches(tuple(data().tensors), 16, steps=7, seed=4)]
    np.testing.assert_allclose(found.losses[:, 0], alone(torch.optim.SGD, 0.1, again, 7), rtol=1e-10)


def test_dropout_differs_between_rates_if_asked_for():
    model = nn.Sequential(nn.Dropout(0.5), network())
    arguments = [*pure_loss(model, cross_entropy), fo.sgd(0.1), [*DataLoader(data(), batch_size=16)], [0.1, 0.2]]
    with pytest.raises(RuntimeError, match="randomness"):
        lr_sweep(*arguments, steps=2, compile=False)
    losses = {
        kind: lr_sweep(*arguments, steps=2, compile=False, randomness=kind).losses for kind in ("same", "different")
    }
    assert losses["same"][0, 0] == pytest.approx(losses["same"][0, 1], rel=1e-12)
    assert losses["different"][0, 0] != pytest.approx(losses["different"][0, 1], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lrs": [0.1, -1.0]}, ValueError, "lrs must be positive and finite"),
        ({"lrs": []}, ValueError, "lrs must be positive and finite"),
        ({"lrs": [0.1, float("nan")]}, ValueError, "lrs must be positive and finite"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"smooth": 1.0}, ValueError, r"smooth must be in \[0, 1\)"),
        ({"batches": []}, ValueError, "there are no batches"),
        ({"batches": iter([torch.zeros(1)] * 2), "steps": 5}, ValueError, "ended after 2 and cannot start over"),
        ({"tx": fo.scale_by_adam()}, KeyError, "no hyper 'lr'"),
    ],
)
def test_what_is_wrong_is_said(options, error, message):
    arguments = {"tx": fo.sgd(0.1), "batches": [torch.zeros(1)], "lrs": [0.1], "steps": 3, **options}
    with pytest.raises(error, match=message):
        lr_sweep(quadratic, {"x": torch.ones(1)}, compile=False, **arguments)


def test_only_the_first_steps_can_be_taken():
    found = sweep_quadratic([0.1], steps=3)
    for steps in (slice(1, 2), slice(None, None, 2), 1):
        with pytest.raises(TypeError, match="take the first steps"):
            found[steps]  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no steps are left of 3"):
        found[:0]


def test_the_rates_come_in_order_and_from_a_tensor():
    assert sweep_quadratic(torch.tensor([1.0, 0.25, 0.5])).lrs.tolist() == [0.25, 0.5, 1.0]
    defaults = sweep_quadratic(None, steps=1).lrs
    np.testing.assert_allclose(defaults, np.geomspace(1e-5, 1, 32))


def test_pictures(tmp_path):
    found = sweep_quadratic([0.01, 0.1, 0.5, 0.9, 1.5, 1.95, 2.05, 1e3, 1e5])
    ax = found.plot()
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlabel()) == ("log", "log", "learning rate")
    assert ax.get_legend_handles_labels()[1] == [
        "loss after 60 steps", "best 9.0e-01", "largest stable 1.9e+00", "diverged (2)",
    ]  # fmt: skip
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), np.stack([found.lrs, found.final], 1))
    low, high = ax.get_ylim()
    assert low < np.nanmin(found.final) < 0.5 < high < 5
    # a second one in the same axes has one line more, and does not hide the first
    assert found[:5].plot(ax, label="few", marks=False) is ax
    assert ax.get_legend_handles_labels()[1][4:] == ["few"]
    assert ax.get_ylim()[0] <= low
    ax.figure.savefig(tmp_path / "final.png")  # pyright: ignore[reportAttributeAccessIssue]
    curves = found[:30].plot_curves()
    assert len(curves.get_lines()) >= 9
    assert (curves.get_xlabel(), curves.get_title()) == ("step", "9 learning rates, each from the start")
    assert len(curves.figure.axes) == 2
    assert curves.figure.axes[1].get_yscale() == "log"  # the colours
    curves.figure.savefig(tmp_path / "curves.png")  # pyright: ignore[reportAttributeAccessIssue]
