"""Metrics over uneven batches are those of the whole set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils._python_dispatch import TorchDispatchMode

import functopt as fo
from functopt.training.learner import Learner, PureLearner
from functopt.training.metrics import Gathered, Mean, accuracy, as_metrics, validate

SIZES = [16, 16, 1, 7]  # a mean of the batches' means is another number


class F1:
    """What is no mean: counted over all batches."""

    def reset(self) -> None:
        self.right = self.wrong = torch.tensor(0.0, dtype=torch.float64)

    def update(self, predictions: Tensor, target: Tensor) -> None:
        found = predictions.argmax(1)
        self.right = self.right + ((found == 1) & (target == 1)).sum()
        self.wrong = self.wrong + (found != target).sum()

    def value(self) -> Tensor:
        return 2 * self.right / (2 * self.right + self.wrong)


def learners(seed: int = 0) -> list[Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)).double()
    stateful = Learner(model, fo.StatefulOptimizer(model.parameters(), fo.sgd(0.1)), cross_entropy)
    return [stateful, PureLearner(model, fo.sgd(0.1), cross_entropy)]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(SIZES), 4, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + torch.randn(sum(SIZES), generator=generator) > 0).long()
    order = y.argsort()  # so that the small batches differ from the others
    return x[order], y[order]


def batches() -> list[tuple[Tensor, Tensor]]:
    x, y = data()
    return [*zip(x.split(SIZES), y.split(SIZES), strict=True)]


@pytest.mark.parametrize("learner", learners(), ids=lambda learner: type(learner).__name__)
def test_they_are_those_of_the_whole_set(learner):
    auc = Gathered(lambda scores, target: roc_auc_score(target, scores[:, 1]))
    found = validate(learner, batches(), {"accuracy": accuracy, "f1": F1(), "auc": auc, "wrong": lambda p, t: 0.5})
    x, y = data()
    scores = learner.model.eval()(x).detach()
    labels = scores.argmax(1)
    want = {
        "valid_loss": log_loss(y, scores.softmax(1).numpy()),
        "accuracy": accuracy_score(y, labels),
        "f1": f1_score(y, labels),
        "auc": roc_auc_score(y, scores[:, 1]),
        "wrong": 0.5,
    }
    assert list(found) == list(want)
    assert all(type(value) is float for value in found.values())
    np.testing.assert_allclose([*found.values()], [*want.values()], rtol=1e-12)
    means = np.mean([accuracy(learner.predict(batch)[0], batch[1]).item() for batch in batches()])
    assert abs(means - found["accuracy"]) > 0.01


def test_a_second_validation_starts_anew_and_training_mode_returns():
    learner = learners()[0]
    metrics = {"f1": F1(), "mean": Mean(accuracy), "auc": Gathered(lambda p, t: (p.argmax(1) == t).double().mean())}
    first = validate(learner, batches(), metrics)
    assert learner.model.training
    assert validate(learner, batches(), metrics) == first
    assert first["mean"] == pytest.approx(first["auc"], rel=1e-12)
    with pytest.raises(RuntimeError, match="shape"):
        validate(learner, [(torch.ones(2, 3).double(), torch.zeros(2).long())])
    assert learner.model.training


def test_regression_and_sequences():
    found = Mean(mse_loss)
    x, y = torch.randn(10, 3, dtype=torch.float64), torch.randn(10, 3, dtype=torch.float64)
    for part, target in zip(x.split([7, 3]), y.split([7, 3]), strict=True):
        found.update(part, target)
    assert float(found.value()) == pytest.approx(mse_loss(x, y).item(), rel=1e-14)
    scores, target = torch.randn(5, 4, 6), torch.randint(4, (5, 6))
    assert accuracy(scores, target).item() == pytest.approx((scores.argmax(1) == target).double().mean().item())


class Transfers(TorchDispatchMode):
    """Counts how often Python asks a tensor for its value."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_nothing_is_asked_of_the_device_before_the_end():
    learner = learners()[0]
    seen = []
    with Transfers() as transfers:
        validate(learner, batches(), [accuracy, F1()], between=lambda: seen.append(transfers.count))
    assert seen == [0] * len(SIZES)


def test_names():
    assert list(as_metrics(None)) == []
    assert list(as_metrics(accuracy)) == ["accuracy"]
    assert list(as_metrics([accuracy, F1()])) == ["accuracy", "F1"]
    assert list(as_metrics({"a": accuracy})) == ["a"]


def test_errors():
    with pytest.raises(ValueError, match="two are called 'accuracy'"):
        as_metrics([accuracy, accuracy])
    with pytest.raises(ValueError, match="'valid_loss' is the name of something else"):
        as_metrics({"valid_loss": accuracy})
    with pytest.raises(TypeError, match="class F1; call it"):
        as_metrics([F1])
    with pytest.raises(TypeError, match="'x' is a float"):
        as_metrics({"x": 0.5})
    with pytest.raises(ValueError, match=r"one number, got shape \[4\]"):
        Mean(lambda p, t: p).update(torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match="cannot be weighed"):
        Mean(lambda p, t: 1.0).update(torch.ones(4), torch.tensor(1.0))
    with pytest.raises(ValueError, match="no mean of no examples"):
        Mean(accuracy).value()
    with pytest.raises(ValueError, match="cross_entropy: there is no mean of no examples"):
        validate(learners()[0], [])
    # shapes that would broadcast
    with pytest.raises(ValueError, match="accuracy: expected scores"):
        accuracy(torch.ones(4, 3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="accuracy: expected scores"):
        accuracy(torch.ones(4), torch.zeros(4))
