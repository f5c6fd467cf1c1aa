"""Transfer learning, with groups and in the pure form: it learns, freezes what it says, and both forms agree."""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import functopt as fo
from functopt.training.callbacks import Callback
from functopt.training.metrics import accuracy
from functopt.training.policies import fine_tune

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

transfer: Any = import_module("transfer")
discriminative: Any = import_module("discriminative")

EPOCHS = (2, 3)


@pytest.fixture(scope="module")
def known() -> Any:
    """A network that knows the digits 0 to 4, in float64."""
    model, recorder = transfer.pretrained(3, 0, torch.float64)
    assert recorder.epochs[-1]["accuracy"] > 0.95
    return model


def new_task(dtype: torch.dtype = torch.float64) -> Any:
    return transfer.task(range(5, 10), 4, transfer.BATCH, 0, dtype)


def test_transfer(tmp_path, capsys):
    out = tmp_path / "transfer.png"
    result = transfer.main(pretrain_epochs=3, epochs=(4, 6), out=str(out))
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith(("0-4", "5-9"))]
    assert [line.split("%")[0].split()[-1] for line in rows[1:]] == [
        f"{100 * row['accuracy']:.1f}"
        for row in (result.transfer.epochs[3], result.transfer.epochs[-1], result.scratch.epochs[-1])
    ]
    assert result.transfer.epochs[-1]["accuracy"] > 0.7  # chance is 0.2
    assert result.scratch.epochs[-1]["accuracy"] > 0.6
    assert (result.frozen_steps, len(result.transfer), len(result.scratch)) == (16, 40, 40)
    assert imread(out).shape == (1080, 960, 4)


def test_the_task_is_made_of_the_new_digits():
    data = new_task()
    (train, valid) = (torch.cat([y for _, y in loader]) for loader in data)
    assert train.bincount().tolist() == [4] * 5
    assert sorted(valid.unique().tolist()) == list(range(5))
    assert len(valid) > 100


def test_phases_freeze_what_they_say_and_are_fine_tune(known):
    """The convolutions stay bit for bit in the first phase, normalisation moves; one call of fine_tune is the same."""
    seen: list[dict[str, torch.Tensor]] = []

    class Keep(Callback):
        def after_epoch(self, run: Any) -> None:
            seen.append({name: value.detach().clone() for name, value in run.learner.model.named_parameters()})

    model, other = copy.deepcopy(known), copy.deepcopy(known)
    recorder = transfer.transfer(model, new_task(), EPOCHS)
    train, valid = new_task()
    again = fine_tune(
        transfer.grouped(other), train, valid, EPOCHS[1], transfer.BASE_LR, freeze_epochs=EPOCHS[0], metrics=accuracy,
        callbacks=Keep(),
    )  # fmt: skip
    np.testing.assert_array_equal(recorder.losses, again.losses)
    assert recorder.epochs == again.epochs
    start = dict(known.named_parameters())
    moved = [{name for name in start if not torch.equal(epoch[name], start[name])} for epoch in seen]
    body = {"first.conv.weight", "second.conv.weight"}
    assert moved == [{*start} - body] * EPOCHS[0] + [{*start}] * EPOCHS[1]
    lrs = recorder.hypers["lr"]
    steps = EPOCHS[0] * 4
    np.testing.assert_allclose(lrs[:steps, 2] / lrs[:steps, 0], 10)
    np.testing.assert_allclose(lrs[steps:, [1, 2]] / lrs[steps:, [0]], [[10, 100]] * (EPOCHS[1] * 4))


def test_the_pure_form_gives_the_same_numbers(known, tmp_path, capsys):
    pure = discriminative.transferred(copy.deepcopy(known), new_task(), EPOCHS)
    model = copy.deepcopy(known)
    stateful = transfer.transfer(model, new_task(), EPOCHS)
    np.testing.assert_allclose(pure.losses, stateful.losses, rtol=1e-9)
    for row, other in zip(pure.epochs, stateful.epochs, strict=True):
        assert row["valid_loss"] == pytest.approx(other["valid_loss"], rel=1e-9)
        assert row["accuracy"] == other["accuracy"]
    lines, steps = pure.lines("lr"), EPOCHS[0] * 4
    lrs = stateful.hypers["lr"].T
    assert (lines["first.conv"][:steps] == 0).all()
    for name, wanted in (("head", lrs[2]), ("first", lrs[0]), ("second", lrs[1])):
        part = slice(None) if name == "head" else slice(steps, None)
        np.testing.assert_allclose(lines[name][part], wanted[part], rtol=1e-12)
    np.testing.assert_allclose(lines["first.norm"][:steps], lrs[0][:steps], rtol=1e-12)
    out = tmp_path / "discriminative.png"
    discriminative.main(2, EPOCHS, out=str(out))
    assert "differ from those of the stateful form by" in capsys.readouterr().out
    assert imread(out).shape == (1080, 960, 4)


def test_the_picture(known):
    recorder = transfer.transfer(copy.deepcopy(known), new_task(), EPOCHS)
    lrs = {
        "a": recorder.hypers["lr"][:, 0],
        "b": recorder.hypers["lr"][:, 2],
        "none": np.zeros(20),
        "c": recorder.hypers["lr"][:, 0],
    }
    figure = transfer.draw({"one": recorder, "two": recorder}, lrs, 8)
    top, middle, bottom = figure.axes
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "linear", "log"]
    names = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
    assert names == [["one", "two"], ["one", "two"], ["a, c", "b", "none: 0"]]
    assert (bottom.get_xlabel(), middle.get_ylabel()) == ("step", "validation accuracy")
    np.testing.assert_array_equal(middle.lines[0].get_xdata(), [4, 8, 12, 16, 20])
    assert [ax.lines[-1].get_xdata()[0] for ax in figure.axes] == [8, 8, 8]
    assert len(top.lines) == 3


def test_trees_and_names():
    model = transfer.network(0)
    tree = discriminative.as_tree(model.named_parameters())
    assert list(tree) == ["first", "second", "head"]
    assert discriminative.by_name(tree).keys() == dict(model.named_parameters()).keys()
    assert fo.tree.map(lambda t, lr: lr, tree, discriminative.HEAD_ONLY)["second"]["conv"]["weight"] == 0.0
