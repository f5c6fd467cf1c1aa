"""The example of the two ways to find a learning rate says what its numbers say."""

from __future__ import annotations

import csv
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

lr_find: Any = import_module("lr_find")
digits: Any = import_module("digits")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def found(folder: Path) -> Any:
    options = ["--rates", "8", "--steps", "10", "30", "--max-iter", "50", "--batch-size", "16"]
    return lr_find.main([*options, "--out", str(folder / "lr_find.png")])


def test_the_sweep_has_the_suggested_rates_and_each_trains_alone(found):
    assert {lr for lr in found.curve.suggestions if lr is not None} <= {*found.sweep.lrs.tolist()}
    lr = found.curve.suggestions.steep
    model = digits.conv_net(0)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    losses = []
    for batch in digits.batches(digits.load(0).train, 16, 1, 0):
        loss = cross_entropy(model(batch.images), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    column = found.sweep.losses[:, found.sweep.lrs.tolist().index(lr)]
    np.testing.assert_allclose(column, losses[:30], rtol=1e-3)  # in float32


def test_the_finder_and_the_sweep_start_alike(found):
    assert found.curve.losses[0] == pytest.approx(found.sweep.losses[0, 0], rel=1e-6)
    np.testing.assert_allclose(found.curve.lrs, 1e-4 * 1e5 ** (np.arange(len(found.curve.lrs)) / 50))
    assert len(found.slow.lrs) > 1.2 * len(found.curve.lrs)


def test_the_best_rate_falls_with_longer_training(found):
    """Which the report says, as it does all that follows from the numbers."""
    few, many = found.sweep[: found.few], found.sweep
    assert few.best_lr >= many.best_lr
    assert f"Best after 10 steps is {few.best_lr:.2g}, after 30 steps {many.best_lr:.2g}" in found.report
    assert np.nanmin(many.final) < 0.5 * np.nanmin(few.final)
    table = {line[:32].strip(): line[32:].split() for line in found.report.split("\n\n")[0].splitlines()[1:]}
    for name, lr in found.curve.suggestions._asdict().items():
        at = many.lrs == lr
        want = [f"{lr:.2g}", f"{few.final[at][0]:.4g}", f"{many.final[at][0]:.4g}"]
        assert table[f"suggested: {name}"] == want


def test_the_reasons(found):
    reasons = dict(re.findall(r"^- (.+?)\. (.*)$", found.report, re.MULTILINE))
    assert [*reasons] == ["One path", "One step for each rate", "Smoothing", "How long is trained"]
    # the finder survives, for a step, rates with which no run trains
    explodes, stable = lr_find.explosion(found.curve), found.sweep.largest_stable()
    assert explodes > stable
    assert f"up to {explodes:.2g}. A run of 30 steps is stable up to {stable:.2g}" in reasons["One step for each rate"]
    lowest = [found.curve.lrs[found.curve.trusted][curve[found.curve.trusted].argmin()] for curve in curves(found)]
    assert f"is lowest at {lowest[0]:.2g}, the loss itself at {lowest[1]:.2g}: it lags" in reasons["Smoothing"]
    assert lowest[0] > lowest[1]


def curves(found: Any) -> list[np.ndarray]:
    return [found.curve.smoothed, found.curve.losses]


def test_the_files(found, folder):
    assert (folder / "lr_find.png").stat().st_size > 20_000
    with (folder / "lr_find.csv").open() as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)] == found.curve.lrs.tolist()


def test_it_says_when_there_is_nothing_to_compare(tmp_path):
    """With rates that all are too large the finder's loss only rises."""
    curve = lr_find.LRCurve(np.geomspace(1, 9, 30), np.linspace(1, 9, 30), "end", 0.98, 30)
    sweep = lr_find.lr_sweep(
        lambda params, batch: (params["x"] ** 2).sum(), {"x": torch.ones(1)}, lr_find.fo.sgd(0.1), [torch.ones(1)],
        [1e20, 1e30], steps=4, compile=False,
    )  # fmt: skip
    assert lr_find.disagreements(curve, curve, sweep, 2) == [
        "Nothing to compare: no rate trained, or the finder's loss never fell."
    ]
    assert "none" in lr_find.worth(curve, sweep, 2)[1]
    lr_find.draw(curve, sweep, 2, tmp_path / "nothing.png")
